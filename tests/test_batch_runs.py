"""Runs by batch: every row once, whatever the service does to rows and jobs, and wherever the run is killed."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.data import PARTS, Reply
from pipeline.emulator.bucket.objects import Buckets
from pipeline.endpoint.batch.backend import BatchLimits
from pipeline.execution.batch.open_jobs import require_collected
from pipeline.execution.batch.settings import BatchSettings
from pipeline.execution.exit_codes import exit_code
from pipeline.execution.finish import Summary
from pipeline.execution.run import Run
from pipeline.execution.start import open_run
from pipeline.faults import UsageError
from pipeline.policy.compose import CacheSettings, RunLimits
from pipeline.storage.kept_replies import kept_replies
from pipeline.storage.remote.objects import OutputObjects
from pipeline.storage.submissions import submissions_in
from tests.batches import BatchService, FakeBackend, OnlineEndpoint, ServedJob, Time, carried_out
from tests.crash.small import RunPlace, Shape, require_finished, rows_of
from tests.memory_store import BUCKET, Clock, Killed, MemoryStore

ROWS = 20
KILLED_EVERY = 5
"""Which requests a run is killed at here; `make soak` kills it at all of them."""

PRICE = {"google/gemini-test": {"input": 1.0, "output": 2.0}}
EACH_USD = (10 * 1.0 + 5 * 2.0) / 1e6
"""What a row costs online."""


@dataclass
class Batches:
    """A run, its service and its endpoint; each start is a process of its own to them."""

    place: RunPlace
    service: BatchService = field(default_factory=BatchService)
    endpoint: OnlineEndpoint = field(default_factory=OnlineEndpoint)
    clock: Time = field(default_factory=Time)

    def start(
        self,
        backend: FakeBackend | None = None,
        *,
        opened: Callable[[Run], None] = lambda _: None,
        objects: OutputObjects | None = None,
        place: RunPlace | None = None,
        settings: dict[str, Any] | None = None,
        in_virtual_time: bool = False,
        ended: Callable[[Run], None] = lambda _: None,
        **batch: Any,
    ) -> Summary:
        place = place or self.place
        with open_run(place.job(), place.settings(**(settings or {})), objects=objects) as run:
            opened(run)
            # Without virtual time nothing is waited for: the service ends jobs by how often they are looked at.
            chosen = BatchSettings(**({} if in_virtual_time else {"poll_s": 0.0}) | batch)
            backend = backend or FakeBackend(self.service)
            summary = carried_out(run, backend, self.endpoint, chosen, self.clock, in_virtual_time=in_virtual_time)
            ended(run)
            return summary

    def killed(self, backend: FakeBackend, **changes: Any) -> bool:
        """A start that may be killed; whether it was."""
        try:
            self.start(backend, **changes)
        except (Killed, BaseExceptionGroup):
            if not backend.dead:
                raise
        return backend.dead

    def rows(self) -> list[dict[str, Any]]:
        return [row for part in sorted((self.place.output / PARTS).glob("part-*.parquet")) for row in rows_of(part)]

    def require_whole(self, *, failed: frozenset[int] = frozenset()) -> list[dict[str, Any]]:
        """Every row is there once, in order, with an answer of its own."""
        rows = self.rows()
        assert [row["id"] for row in rows] == list(range(self.place.shape.rows))
        for row in rows:
            assert row["status"] == ("failed" if row["id"] in failed else "ok"), row
            if row["id"] not in failed:
                assert row["parsed"]["text"] == f"text {row['id']}"
                assert f"nonce-{row['id']}-" in row["parsed"]["nonce"]
        require_finished(self.place.output)
        return rows


@pytest.fixture
def batches(tmp_path: Path) -> Batches:
    place = RunPlace(tmp_path / "machine", Shape(rows=ROWS), prices=PRICE, max_tokens=50).prepare()
    return Batches(place)


def test_all_rows_are_answered_by_one_job_at_half_the_price(batches: Batches) -> None:
    summary = batches.start()
    assert (summary.status, summary.ok, summary.batch_jobs, summary.batch_calls) == ("complete", ROWS, 1, ROWS)
    assert batches.endpoint.asked == []
    assert summary.cost_usd == pytest.approx(ROWS * EACH_USD / 2)
    assert summary.batch_cost_usd == summary.cost_usd
    rows = batches.require_whole()
    assert {row["response"]["traffic_type"] for row in rows} == {"BATCH"}
    assert not list((batches.place.output / "_run").glob("batch-*"))


def test_the_line_of_an_answer_is_kept_without_the_request_that_it_repeats(batches: Batches) -> None:
    batches.start()
    for ordinal, entry in kept_replies(batches.place.output, 0):
        assert isinstance(entry, Reply)
        raw = json.loads(entry.body)["batch_answer"]
        assert raw["key"] == f"r-{ordinal:09d}"
        assert json.loads(raw["response"]["native"])["text"] == f"text {ordinal}"
        assert "request" not in raw


def test_rows_are_split_into_jobs_by_rows_and_by_bytes(batches: Batches) -> None:
    batches.service.limits = BatchLimits(6, 1_000_000)
    summary = batches.start()
    assert [len(job.lines) for job in batches.service.jobs] == [6, 6, 6, 2]
    assert summary.batch_jobs == 4
    batches.require_whole()
    assert set(batches.service.sent.values()) == {1}


KINDS = {
    # How many rows the endpoint is asked for, and how many fail.
    "transient": (1, 0),
    "permanent": (0, 1),
    "missing": (1, 0),
    "doubled": (0, 0),
    "disputed": (1, 0),
    "unknown": (1, 0),
    "keyless": (1, 0),
    "cut": (1, 0),
    "unfit": (1, 0),
    "empty": (1, 0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_b2_a_row_that_the_service_does_not_answer_is_asked_online(batches: Batches, kind: str) -> None:
    asked, failed = KINDS[kind]
    batches.service.faults = {4: kind}
    summary = batches.start()
    assert summary.status == "complete"
    assert batches.endpoint.asked == [4] * asked
    batches.require_whole(failed=frozenset({4} if failed else ()))
    assert summary.batch_jobs_open == 0


@pytest.mark.parametrize("kind", ["cut", "unfit"])
def test_b2_an_answer_that_does_not_fit_is_corrected_online_and_paid_once(batches: Batches, kind: str) -> None:
    """The endpoint is not asked the first question again: it is told what is wrong with the answer, or given room."""
    batches.service.faults = {4: kind}
    summary = batches.start()
    (payload,) = batches.endpoint.payloads
    if kind == "unfit":
        assert [one["role"] for one in payload["messages"]] == ["user", "assistant", "user"]
        assert payload["messages"][1]["content"] == "no JSON"
    else:
        assert payload["max_tokens"] == 100
    row = batches.require_whole()[4]
    assert row["response"]["cost_usd"] == pytest.approx(EACH_USD * 1.5)
    assert summary.cost_usd == pytest.approx(ROWS * EACH_USD / 2 + EACH_USD)
    assert summary.batch_cost_usd == pytest.approx(ROWS * EACH_USD / 2)


FAULTS = {2: "transient", 3: "missing", 5: "doubled", 9: "disputed", 11: "unfit", 12: "cut", 15: "unknown"}


def everything_at_once(batches: Batches) -> None:
    batches.service.faults = dict(FAULTS)
    batches.service.limits = BatchLimits(15, 1_000_000)
    batches.service.looks = 2


@pytest.mark.parametrize("answers_lost", [False, True], ids=["before", "after"])
def test_b1_a_run_that_is_killed_at_any_request_submits_nothing_twice(tmp_path: Path, *, answers_lost: bool) -> None:
    """Killed before or after the service did what it was asked; then the next start goes on."""
    dead = True
    for at in range(1 + answers_lost, 100, KILLED_EVERY):
        if not dead:
            break
        place = RunPlace(tmp_path / f"{at}", Shape(rows=ROWS), prices=PRICE, max_tokens=50).prepare()
        batches = Batches(place)
        everything_at_once(batches)
        dead = batches.killed(FakeBackend(batches.service, dies_at=at, answers_lost=answers_lost))
        summary = batches.start() if dead else None
        batches.require_whole()
        assert len(batches.service.jobs) == 2, f"killed at request {at}"
        assert set(batches.service.sent.values()) == {1}
        assert sorted(batches.endpoint.asked) == [2, 3, 9, 11, 12, 15]
        if summary is not None:
            assert summary.run.cost_usd == pytest.approx((ROWS - 4) * EACH_USD / 2 + 6 * EACH_USD)
    assert at > 10


# How jobs end.


def test_b4_a_failed_job_whose_incomplete_rows_alone_go_on(batches: Batches) -> None:
    batches.service.ends = lambda _: "failed"
    batches.service.share = lambda _: 0.6
    summary = batches.start()
    assert summary.status == "complete"
    assert sorted(batches.endpoint.asked) == list(range(12, ROWS))
    batches.require_whole()
    assert summary.cost_usd == pytest.approx(12 * EACH_USD / 2 + 8 * EACH_USD)


def test_b5_a_job_that_failed_without_an_answer_stops_the_run_and_is_submitted_again(batches: Batches) -> None:
    """Or everything would be asked online, at the full price, for a model that was misspelt."""
    batches.service.ends = lambda _: "failed"
    batches.service.share = lambda _: 0.0
    summary = batches.start()
    assert (summary.status, summary.reason) == (
        "stopped",
        f"batch job {batches.service.jobs[0].name} failed and answered nothing: the model is not there",
    )
    assert batches.endpoint.asked == []
    batches.service.ends, batches.service.share = lambda _: "succeeded", lambda _: 1.0
    assert batches.start().status == "complete"
    assert [job.name[-3:] for job in batches.service.jobs] == ["1-0", "1-1"]
    batches.require_whole()


def test_b4_an_expired_job_keeps_what_it_answered(batches: Batches) -> None:
    batches.service.ends = lambda _: "expired"
    batches.service.share = lambda _: 0.5
    assert batches.start().status == "complete"
    assert sorted(batches.endpoint.asked) == list(range(10, ROWS))
    batches.require_whole()


def test_b3_answers_that_cannot_be_assigned_are_not_recorded(batches: Batches) -> None:
    """A service that does not give the keys back: nothing is guessed, and nothing is asked at the full price."""
    batches.service.faults = dict.fromkeys(range(ROWS), "keyless")
    summary = batches.start()
    assert summary.status == "stopped"
    assert "cannot be assigned to rows (20 without a key)" in str(summary.reason)
    assert (batches.rows(), batches.endpoint.asked) == ([], [])


def test_b4_a_stuck_job_is_cancelled_in_time_and_the_rest_is_asked_online(batches: Batches) -> None:
    batches.service.looks = 1_000_000
    batches.service.share = lambda _: 0.5
    summary = batches.start(in_virtual_time=True, wait_s=8 * 3600.0)
    assert summary.status == "complete"
    (job,) = batches.service.jobs
    assert job.cancelled
    assert 8 * 12 <= job.looked < 8 * 12 + 20
    assert sorted(batches.endpoint.asked) == list(range(10, ROWS))
    batches.require_whole()


def test_b4_a_job_that_does_not_even_end_when_it_is_cancelled_is_given_up(batches: Batches) -> None:
    batches.service.looks = 1_000_000
    batches.service.deaf = True
    batches.service.share = lambda _: 0.0
    summary = batches.start(in_virtual_time=True, wait_s=60.0)
    assert summary.status == "complete"
    assert sorted(batches.endpoint.asked) == list(range(ROWS))


def test_the_time_to_wait_goes_on_while_no_process_runs(batches: Batches) -> None:
    batches.service.looks = 1_000_000
    batches.start(detach=True)
    batches.clock.now += 8 * 3600.0
    batches.start(in_virtual_time=True, wait_s=8 * 3600.0)
    assert batches.service.jobs[0].looked <= 5
    batches.require_whole()


def test_b7_an_outage_while_jobs_work_does_not_end_the_run_until_its_patience_is_over(batches: Batches) -> None:
    batches.service.away = range(2, 6)
    batches.service.looks = 3
    assert batches.start(in_virtual_time=True).status == "complete"
    batches.require_whole()


def test_b7_a_service_that_stays_away_ends_the_run_and_leaves_the_jobs(batches: Batches) -> None:
    batches.service.away = range(1, 1000)
    summary = batches.start(in_virtual_time=True)
    assert (summary.status, summary.reason) == ("stopped", "no route to the service")
    assert 1800 / 300 < batches.service.looks_made < 1800 / 30
    batches.service.away = range(0)
    assert batches.start().status == "complete"
    assert len(batches.service.jobs) == 1


# Leaving and coming back.


def test_a_detached_run_ends_once_its_jobs_are_submitted(batches: Batches) -> None:
    """Then it is not ready, and at last collected; the run keeps its id although it had recorded nothing."""
    batches.service.looks = 2
    submitted = batches.start(detach=True)
    assert (submitted.status, submitted.batch_jobs_open, submitted.left) == ("submitted", 1, ROWS)
    assert exit_code(submitted, None) == 0
    with (
        pytest.raises(UsageError, match="not collected yet"),
        open_run(batches.place.job(), batches.place.settings()) as run,
    ):
        require_collected(run, simulated=False)
    reasons: list[object] = []
    waiting = batches.start(detach=True, ended=lambda run: reasons.append(run.context.stop.reason))
    assert waiting.status == "stopped"
    assert exit_code(waiting, reasons[0]) == 75
    collected = batches.start(detach=True)
    assert (collected.status, collected.run_id, collected.batch_jobs_open) == ("complete", submitted.run_id, 0)
    assert len(batches.service.jobs) == 1
    batches.require_whole()


def test_a_signal_ends_the_wait_and_leaves_the_jobs(batches: Batches) -> None:
    batches.service.looks = 3

    def stop_at_second_look(run: Run) -> None:
        look = batches.service.look

        def looking(job: ServedJob) -> None:
            look(job)
            if job.looked == 2:
                run.context.stop.request(signal.SIGTERM)

        batches.service.look = looking  # type: ignore[method-assign] # the service is the test's own

    summary = batches.start(opened=stop_at_second_look)
    assert (summary.status, summary.reason, summary.batch_jobs_open) == ("stopped", "SIGTERM", 1)
    assert not batches.service.jobs[0].cancelled
    assert batches.start().status == "complete"
    assert len(batches.service.jobs) == 1
    batches.require_whole()


def test_rows_that_are_added_later_go_into_a_job_of_their_own(batches: Batches) -> None:
    batches.start(settings={"limit": 8})
    batches.start()
    assert [len(job.lines) for job in batches.service.jobs] == [8, 12]
    batches.require_whole()


def test_the_rest_by_batch_goes_into_further_jobs_and_then_online(batches: Batches) -> None:
    """Answers that do not fit are corrected online; a row that no job answers is asked online at last."""
    batches.service.faults = {2: "transient", 3: "missing", 5: "unfit"}
    batches.service.always = {7: "missing"}
    summary = batches.start(rest="batch")
    assert summary.status == "complete"
    assert [len(job.lines) for job in batches.service.jobs] == [ROWS, 3, 1]
    assert [job.name.split("-")[2:] for job in batches.service.jobs] == [["1", "0"], ["2", "0"], ["3", "0"]]
    assert sorted(batches.endpoint.asked) == [5, 7]
    batches.require_whole()


def test_rows_that_do_not_go_into_a_batch_are_asked_online(batches: Batches) -> None:
    batches.service.unsuited = frozenset({1, 8})
    assert batches.start().status == "complete"
    assert sorted(batches.endpoint.asked) == [1, 8]
    batches.require_whole()


# Money.


def test_a_budget_that_does_not_hold_the_estimate_submits_nothing(batches: Batches) -> None:
    """The estimate is the upper end of the one that `plan` shows, at half the price."""
    bounds = RunLimits(budget_usd=ROWS * EACH_USD, adaptive=False)
    summary = batches.start(settings={"bounds": bounds})
    assert summary.status == "stopped"
    assert "nothing was submitted" in str(summary.reason)
    assert batches.service.jobs == []
    enough = RunLimits(budget_usd=ROWS * (10 * 1.0 + 50 * 2.0) / 1e6, adaptive=False)
    assert batches.start(settings={"bounds": enough}).status == "complete"


def test_a_budget_is_reserved_until_a_job_has_ended_and_then_settled(batches: Batches) -> None:
    batches.service.looks = 2
    first = RunLimits(budget_usd=1.0, adaptive=False)
    batches.start(settings={"bounds": first, "limit": 10}, detach=True)
    (job,) = submissions_in(batches.place.output / "_run/journal.sqlite")
    assert job.usd is not None
    tight = RunLimits(budget_usd=job.usd * 1.5, adaptive=False)
    refused = batches.start(settings={"bounds": tight}, detach=True)
    assert f"beside {job.usd:.6g} for jobs that have not ended" in str(refused.reason)
    spent: list[float] = []
    for _ in range(2):
        batches.start(
            settings={"bounds": first},
            opened=lambda run: spent.append(run.context.budgets[0].spent),
            ended=lambda run: spent.append(run.context.budgets[0].spent),
        )
    assert spent == [0.0, *[pytest.approx(ROWS * EACH_USD / 2)] * 3]


# The reply cache.


def test_known_answers_are_not_submitted_and_new_ones_are_stored(batches: Batches, tmp_path: Path) -> None:
    reuse = CacheSettings(folder=tmp_path / "cache", endpoint="vertex")
    settings = {"bounds": RunLimits(reuse=reuse, adaptive=False)}
    batches.start(settings={**settings, "limit": 8})
    other = Batches(batches.place.moved(tmp_path / "other"), batches.service)
    other.place.folder.mkdir()
    summary = other.start(settings=settings)
    assert (summary.cache_hits, [len(job.lines) for job in batches.service.jobs]) == (8, [8, 12])
    other.require_whole()
    assert summary.cost_usd == pytest.approx(12 * EACH_USD / 2)


# Another machine.


@pytest.mark.parametrize("answers_lost", [False, True], ids=["before", "after"])
def test_b1_another_machine_with_an_empty_disk_goes_on(tmp_path: Path, *, answers_lost: bool) -> None:
    dead = True
    for at in range(1 + answers_lost, 100, KILLED_EVERY):
        if not dead:
            break
        buckets = Buckets([BUCKET], Clock())
        place = RunPlace(tmp_path / f"{at}", Shape(rows=ROWS), prices=PRICE, max_tokens=50).prepare()
        batches = Batches(place)
        everything_at_once(batches)
        backend = FakeBackend(batches.service, dies_at=at, answers_lost=answers_lost)
        dead = batches.killed(backend, objects=MemoryStore(buckets).objects())
        if dead:
            moved = place.moved(tmp_path / f"{at}-other")
            moved.folder.mkdir()
            summary = batches.start(place=moved, objects=MemoryStore(buckets).objects())
            assert summary.status == "complete"
            assert summary.run.cost_usd == pytest.approx((ROWS - 4) * EACH_USD / 2 + 6 * EACH_USD)
        assert len(batches.service.jobs) == 2, f"killed at request {at}"
        assert set(batches.service.sent.values()) == {1}
        assert {2, 3, 9, 11, 12, 15} <= set(batches.endpoint.asked)
    assert at > 10


def test_answers_that_another_machine_recorded_are_counted_and_paid_once(tmp_path: Path) -> None:
    """Killed when its journal was uploaded, and not that the job had ended: the job is collected once more."""
    buckets = Buckets([BUCKET], Clock())
    batches = Batches(RunPlace(tmp_path / "one", Shape(rows=ROWS), prices=PRICE).prepare())
    store = MemoryStore(buckets)

    def die(what: str) -> None:
        if what.startswith("PUT ") and what.endswith(".ended.json"):
            raise Killed(what)

    store.before = die
    with pytest.raises(BaseExceptionGroup):
        batches.start(objects=store.objects())
    moved = batches.place.moved(tmp_path / "two")
    moved.folder.mkdir()
    summary = batches.start(place=moved, objects=MemoryStore(buckets).objects())
    assert (summary.status, summary.start_ok, summary.batch_calls) == ("complete", 0, ROWS)
    assert summary.run.cost_usd == pytest.approx(ROWS * EACH_USD / 2)
    assert len(batches.service.jobs) == 1


def test_a_record_that_was_changed_meanwhile_is_that_of_the_bucket_still(tmp_path: Path) -> None:
    """Killed before the job was created; then its state was noted, as `pipeline cancel` does."""
    buckets = Buckets([BUCKET], Clock())
    batches = Batches(RunPlace(tmp_path / "one", Shape(rows=ROWS), prices=PRICE).prepare())
    assert batches.killed(FakeBackend(batches.service, dies_at=1), objects=MemoryStore(buckets).objects())

    def note(run: Run) -> None:
        (one,) = run.context.journal.submissions.all()
        run.context.journal.submissions.save(replace(one, state="cancelling"))

    assert batches.start(objects=MemoryStore(buckets).objects(), opened=note).status == "complete"
    assert len(batches.service.jobs) == 1


def test_a_finished_run_asks_for_nothing_whatever_its_jobs_are_said_to_be(batches: Batches) -> None:
    batches.start()
    with open_run(batches.place.job(), batches.place.settings()) as run:
        (one,) = run.context.journal.submissions.all()
        run.context.journal.submissions.save(replace(one, progress="submitted"))
        require_collected(run, simulated=False)
