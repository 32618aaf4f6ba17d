"""A run in shards: one dataset, whoever works on it, in how many parts, and whatever happens to one of them."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count as counting
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import pytest
from anyio import to_thread

from pipeline.data import Part, Reply, Request, Usage
from pipeline.endpoint.connection import Connect, OpenEndpoint
from pipeline.execution.exit_codes import exit_code
from pipeline.execution.finish import Summary, finish
from pipeline.execution.run import Run
from pipeline.execution.run_status import RunStatus, run_status
from pipeline.execution.shards import PLAN_WAIT_S, ShardStart, divided, parts_of
from pipeline.execution.start import open_run
from pipeline.faults import Broken, OutputInUse, UsageError
from pipeline.policy.compose import RunLimits
from pipeline.storage.remote.hydration import snapshot
from pipeline.storage.remote.lease import RENEW_S, TAKEOVER_S
from pipeline.storage.remote.segments import segments_in
from pipeline.storage.remote.shards import POLL_S, Patience, Shard
from tests.crash.small import RunPlace
from tests.memory_store import BUCKET, DIES_IN_THREADS, MemoryStore, contents
from tests.test_remote_output import Cloud

pytestmark = DIES_IN_THREADS


class CostlyPlace(RunPlace):
    """A place where each answer costs 500 tokens."""

    def moved(self, folder: Path) -> RunPlace:
        return CostlyPlace(folder, self.shape, self.rows, **self._job)

    def with_job(self, **changes: Any) -> RunPlace:
        return CostlyPlace(self.folder, self.shape, self.rows, **{**self._job, **changes})

    def _answer(self, request: Request, notes: int) -> Reply:
        return replace(super()._answer(request, notes), usage=Usage(100, 400))


class ShardedCloud(Cloud):
    """A bucket, and machines that each work on a shard of one run."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.place = CostlyPlace(folder / "machine").prepare()
        self.said: list[str] = []
        self.while_waiting: Callable[[], None] = lambda: None

    def pause(self, seconds: float) -> None:
        self.clock.now += seconds
        self.while_waiting()

    def work(
        self,
        shard: Shard,
        *,
        machine: str = "",
        store: MemoryStore | None = None,
        opened: Callable[[Run], None] = lambda _: None,
        **changes: Any,
    ) -> Summary:
        """One start of a shard, to its end, on a machine with a state folder of its own."""
        place = self.machine(machine or f"machine-{shard.name}")
        stop_after = changes.pop("stop_after", None)
        settings = divided(place.settings(**changes), shard)
        start = ShardStart(shard, Patience(self.pause, self.said.append))
        objects = (store or self.store()).objects()
        with open_run(place.job(), settings, objects=objects, shard=start) as run:
            opened(run)
            self.parts: list[Part] = anyio.run(parts_of, run, place.connect(run.context.stop, stop_after))
            return finish([run])[0]

    def killed_shard(self, shard: Shard, store: MemoryStore, **changes: Any) -> bool:
        try:
            self.work(shard, store=store, **changes)
        except BaseException:
            if not store.dead:
                raise
        return store.dead

    def seem_elsewhere(self, shard: Shard) -> None:
        """The holder of the shard's lease is on another machine, where it cannot be seen whether it lives."""
        key = f"out/{shard.lease}"
        found = self.buckets.get(BUCKET, key)
        away = json.dumps({**json.loads(found.data), "machine": "another"}).encode()
        self.buckets.put(BUCKET, key, away, {})

    def status(self) -> RunStatus:
        with TemporaryDirectory(dir=self.folder) as folder:
            return run_status(Path(folder) / "out", snapshot(self.store().objects(), Path(folder) / "out"))

    def later(self) -> None:
        """All leases have run out."""
        self.clock.now += RENEW_S + TAKEOVER_S + 1


@pytest.fixture
def cloud(tmp_path: Path) -> ShardedCloud:
    return ShardedCloud(tmp_path)


def all_of(count: int) -> list[Shard]:
    return [Shard(index, count) for index in range(count)]


def asked(cloud: ShardedCloud) -> int:
    return sum(map(len, cloud.place.said().values()))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_shards_write_the_dataset_of_a_run_in_one_piece(cloud: ShardedCloud, count: int) -> None:
    """The rows of 3 chunks: of 7 shards, some have none. The last to end writes the manifest and the marker."""
    ended = [cloud.work(shard) for shard in all_of(count)]
    assert sum(summary.requests for summary in ended) == cloud.place.shape.rows
    assert {summary.status for summary in ended[:-1]} <= {"done"}
    assert (ended[-1].status, ended[-1].rows, ended[-1].left) == ("complete", cloud.place.shape.rows, 0)
    assert ended[-1].run.calls == cloud.place.shape.rows - ended[-1].failed
    cloud.require_whole()
    assert cloud.work(Shard(0, count)).requests == 0
    cloud.require_whole()


def test_the_shards_of_a_run_have_each_chunk_once_and_in_order() -> None:
    for count in range(1, 12):
        for chunks in range(40):
            found = [chunk for shard in all_of(count) for chunk in shard.chunks(chunks)]
            assert found == list(range(chunks))


def test_a_range_of_chunks_goes_in_and_the_records_of_their_parts_come_out(cloud: ShardedCloud) -> None:
    cloud.work(Shard(0, 2), chunk_rows=2)
    assert [(part.chunk, part.rows) for part in cloud.parts] == [(chunk, 2) for chunk in range(5)]
    assert sorted(key for key in cloud.names() if "/parts/" in key) == [f"_run/parts/00000{n}.json" for n in range(5)]


def test_a_new_run_is_cut_into_chunks_for_all_shards(tmp_path: Path) -> None:
    """Without a given size: 20 rows would be one chunk of a run in one piece."""
    cloud = ShardedCloud(tmp_path)
    assert [cloud.work(shard, chunk_rows=None).status for shard in all_of(4)] == [*["done"] * 3, "complete"]
    cloud.require_whole()
    assert len([key for key in cloud.names() if key.startswith("data/")]) >= 16


def test_o7_a_shard_that_never_starts_leaves_no_marker_and_status_names_it(cloud: ShardedCloud) -> None:
    cloud.work(Shard(0, 3))
    cloud.work(Shard(2, 3), stop_after=3)
    assert not {"_SUCCESS", "_manifest.json"} & set(cloud.names())
    found = cloud.status()
    assert found.status == "stopped"
    assert found.reason == "shards not started: 1/3; stopped: 2/3"
    assert [(one.shard, one.state, one.rows) for one in found.shards] == [
        ("0/3", "done", 7),
        ("1/3", "not started", 7),
        ("2/3", "stopped", 6),
    ]
    assert [one.done for one in found.shards] == [7, 0, asked(cloud) - 7]
    cloud.work(Shard(1, 3))
    assert cloud.work(Shard(2, 3)).status == "complete"
    cloud.require_whole()
    assert cloud.status().reason is None
    assert {one.state for one in cloud.status().shards} == {"done"}


def test_status_tells_a_shard_at_work_from_one_that_was_lost(cloud: ShardedCloud) -> None:
    def look(_: Run) -> None:
        assert (cloud.status().status, cloud.status().holder) == ("running", "1 of 2 shards")
        assert [one.state for one in cloud.status().shards] == ["running", "not started"]

    cloud.work(Shard(0, 2), opened=look)
    lease = json.loads(contents(cloud.buckets)["out/_run/shards/0-of-2.json"])
    away = json.dumps({**lease, "released": False, "machine": "another"}).encode()
    cloud.clock.now = 1_700_000_000.0
    cloud.buckets.put(BUCKET, "out/_run/shards/1-of-2.json", away, {})
    assert [one.state for one in cloud.status().shards] == ["done", "lost"]


@pytest.mark.parametrize("lost", [False, True], ids=["same_machine", "another_machine"])
def test_o7_a_shard_that_is_killed_at_any_request_is_started_again(tmp_path: Path, *, lost: bool) -> None:
    """While the other one has not started. What is in the bucket is not asked again, and on its machine nothing is."""
    for number in range(2 + lost, 200, 5):
        cloud = ShardedCloud(tmp_path / f"at_{number}")
        shard = Shard(0, 2)
        died = cloud.killed_shard(shard, cloud.store(dies_at=number), chunk_rows=5)
        before, sealed = asked(cloud), sum(key.startswith("_run/parts/") for key in cloud.names())
        cloud.work(shard, machine="another" if lost else "", chunk_rows=5)
        again = asked(cloud) - before
        assert again <= (10 - 5 * sealed if lost else 10 - before), number
        cloud.work(Shard(1, 2), chunk_rows=5)
        cloud.require_whole()
        if not died:
            return
    raise AssertionError("a start has more requests than this test expects")


def test_o7_a_dead_shard_is_waited_for_until_its_lease_has_run_out(cloud: ShardedCloud) -> None:
    """Its platform starts it again at once, where nobody can know whether the first one is dead."""
    cloud.work(Shard(0, 2), stop_after=1)
    assert cloud.killed_shard(Shard(1, 2), cloud.store(dies_at=25))
    cloud.seem_elsewhere(Shard(1, 2))
    began = cloud.clock.now
    assert cloud.work(Shard(1, 2), machine="another").status == "done"
    assert RENEW_S + TAKEOVER_S <= cloud.clock.now - began <= RENEW_S + TAKEOVER_S + 3 * POLL_S
    assert "waiting until it is known whether an earlier start of this shard is alive" in cloud.said[-1]


def test_o7_the_same_shard_twice_is_refused_as_soon_as_the_first_one_is_seen_alive(cloud: ShardedCloud) -> None:
    def second(run: Run) -> None:
        assert run.follower is not None
        cloud.while_waiting = run.follower.lease.renew
        with pytest.raises(OutputInUse, match=r"another run works on shard 0/2 of gs://bucket/out: pid \d+ on "):
            cloud.work(Shard(0, 2), machine="another")
        cloud.while_waiting = lambda: None

    began = cloud.clock.now
    assert cloud.work(Shard(0, 2), opened=second).status == "done"
    assert cloud.clock.now - began < RENEW_S


@pytest.mark.parametrize("counts", [(3, 2), (2, 5), (1, 4)])
def test_o7_all_are_stopped_and_go_on_in_another_number_without_asking_a_row_again(
    tmp_path: Path, counts: tuple[int, int]
) -> None:
    """On other machines, by what the first ones uploaded as they drained; then once more in the first number."""
    cloud = ShardedCloud(tmp_path)
    first, second = counts
    for shard in all_of(first):
        cloud.work(shard, chunk_rows=3, stop_after=2)
    for shard in all_of(second):
        cloud.work(shard, chunk_rows=3, stop_after=1)
    assert asked(cloud) < cloud.place.shape.rows
    ended = [cloud.work(shard, chunk_rows=3) for shard in all_of(first)]
    assert ended[-1].status == "complete"
    assert asked(cloud) == cloud.place.shape.rows
    assert ended[-1].run.calls == cloud.place.shape.rows - ended[-1].failed
    cloud.require_whole()


def test_o7_shards_go_on_from_a_run_in_one_piece_and_it_from_them(cloud: ShardedCloud) -> None:
    cloud.start(cloud.place, cloud.store(), stop_after=4, chunk_rows=3)
    cloud.work(Shard(1, 2), chunk_rows=3, stop_after=3)
    summary = cloud.start(cloud.place, cloud.store(), chunk_rows=3)
    assert (summary.status, asked(cloud)) == ("complete", cloud.place.shape.rows)
    assert summary.run.calls == cloud.place.shape.rows - summary.failed
    cloud.require_whole()
    assert cloud.status().shards == ()


@pytest.mark.parametrize("other", [Shard(2, 3), None], ids=str)
def test_o7_who_divides_the_run_in_another_way_waits_until_all_have_ended(
    cloud: ShardedCloud, other: Shard | None
) -> None:
    """One that slept over the time of its lease finds it closed, and changes nothing."""

    def start_other(run: Run) -> None:
        cloud.seem_elsewhere(Shard(0, 2))
        with pytest.raises(OutputInUse, match=r"shard 0/2 still works on gs://bucket/out: pid .* is free in 80 s"):
            cloud.start(cloud.place, cloud.store()) if other is None else cloud.work(other)
        cloud.later()
        cloud.start(cloud.place, cloud.store()) if other is None else cloud.work(other)
        assert run.follower is not None
        with pytest.raises(Broken, match="has taken over"):
            run.follower.lease.renew()

    with pytest.raises(Broken, match="has taken over"):
        cloud.work(Shard(0, 2), opened=start_other)


def test_shards_are_refused_while_a_run_in_one_piece_works(cloud: ShardedCloud) -> None:
    def start_shard(_: Run) -> None:
        with pytest.raises(OutputInUse, match="a run that is not divided still works on gs://bucket/out: pid"):
            cloud.work(Shard(0, 2))

    cloud.start(cloud.place, cloud.store(), opened=start_shard)


def test_the_others_wait_for_the_plan_of_the_first_shard(cloud: ShardedCloud) -> None:
    def first() -> None:
        cloud.while_waiting = lambda: None
        cloud.work(Shard(0, 2))

    cloud.while_waiting = first
    summary = cloud.work(Shard(1, 2))
    assert (summary.status, summary.requests) == ("complete", 13)
    assert "waiting until shard 0/2 has read the input" in cloud.said
    cloud.require_whole()


def test_without_a_first_shard_another_one_makes_the_plan_after_ten_minutes(cloud: ShardedCloud) -> None:
    began = cloud.clock.now
    assert cloud.work(Shard(1, 2)).status == "done"
    assert PLAN_WAIT_S <= cloud.clock.now - began < PLAN_WAIT_S + 2 * POLL_S
    assert "this shard reads the input itself" in cloud.said[-1]
    assert cloud.work(Shard(0, 2)).status == "complete"
    cloud.require_whole()


def test_of_two_shards_that_read_the_input_one_makes_the_plan(cloud: ShardedCloud) -> None:
    store = cloud.store()

    def other_first(request: str) -> None:
        if request == "PUT out/_run/plan.json":
            store.before = lambda _: None
            cloud.work(Shard(1, 2))

    store.before = other_first
    summary = cloud.work(Shard(0, 2), store=store)
    assert (summary.status, asked(cloud)) == ("complete", cloud.place.shape.rows)
    cloud.require_whole()


def test_a_shard_of_another_job_is_refused_field_by_field(cloud: ShardedCloud) -> None:
    """Even before anything was recorded: others may be on their way with that plan."""
    cloud.work(Shard(0, 2), stop_after=0)
    cloud.place = cloud.place.with_job(model="google/gemini-other")
    with pytest.raises(UsageError, match=r"already holds a different run:\n  - model changed: 'google/gemini-test'"):
        cloud.work(Shard(1, 2))


def test_shards_cannot_extend_a_run(cloud: ShardedCloud) -> None:
    cloud.work(Shard(0, 1), limit=10)
    with pytest.raises(UsageError, match="the first 10 rows, and shards cannot extend it: give the same --limit"):
        cloud.work(Shard(0, 1))


def test_of_two_that_end_the_run_at_the_same_time_both_are_content(cloud: ShardedCloud) -> None:
    cloud.work(Shard(0, 2))
    store = cloud.store()

    def other_first(request: str) -> None:
        if request == "PUT out/_manifest.json":
            store.before = lambda _: None
            assert cloud.work(Shard(0, 2)).status == "complete"

    store.before = other_first
    assert cloud.work(Shard(1, 2), store=store).status == "complete"
    cloud.require_whole()
    manifest = json.loads(contents(cloud.buckets)["out/_manifest.json"])
    assert manifest["charged"]["calls"] == manifest["ok"]


def test_failed_rows_are_asked_again_by_the_shard_that_has_them(cloud: ShardedCloud) -> None:
    failed = [cloud.work(shard) for shard in all_of(2)][-1].failed
    again = [cloud.work(shard, retry_failed=True) for shard in all_of(2)]
    assert sum(summary.requests for summary in again) == failed
    assert again[-1].status == "complete"
    cloud.require_whole()


def test_no_marker_is_left_when_a_shard_begins_to_ask_again_while_another_ends_the_run(cloud: ShardedCloud) -> None:
    cloud.work(Shard(0, 2))
    store = cloud.store()

    def other_opens(request: str) -> None:
        if request == "PUT out/_SUCCESS":
            store.before = lambda _: None
            with pytest.raises(KeyboardInterrupt):
                cloud.work(Shard(0, 2), retry_failed=True, opened=die)

    def die(run: Run) -> None:
        run.begin()
        raise KeyboardInterrupt

    store.before = other_opens
    cloud.work(Shard(1, 2), store=store)
    assert "_SUCCESS" not in cloud.names()
    assert cloud.work(Shard(0, 2)).status == "complete"
    cloud.require_whole()


def test_too_many_failed_rows_are_told_by_the_shard_that_ends_the_run(cloud: ShardedCloud) -> None:
    cloud.place = cloud.place.with_job(max_failed=1)
    first, last = (cloud.work(shard, fail_fast="never") for shard in all_of(2))
    assert (first.status, exit_code(first, None)) == ("done", 0)
    assert (last.status, exit_code(last, None)) == ("failed", 3)
    assert "_SUCCESS" not in cloud.names()


def bounded(cloud: ShardedCloud, tokens: float) -> dict[str, Any]:
    return {"bounds": replace(cloud.place.settings().bounds, budget_tokens=tokens), "chunk_rows": 2}


def test_o7_a_budget_holds_over_shards_and_over_their_number(cloud: ShardedCloud) -> None:
    """Calls of 500 tokens: 8 of them, then 16, in whatever parts."""
    for shard in all_of(2):
        assert cloud.work(shard, **bounded(cloud, 4000)).status == "stopped"
    first = answered(cloud)
    assert 4 <= first <= 8
    for shard in all_of(4):
        cloud.work(shard, **bounded(cloud, 4000))
    assert first <= answered(cloud) <= 8
    for shard in all_of(4):
        cloud.work(shard, machine=f"new-{shard.index}", **bounded(cloud, 8000))
    assert 8 < answered(cloud) <= 16


def test_o7_a_budget_counts_what_was_in_flight_when_a_shard_was_killed(tmp_path: Path) -> None:
    for number in (30, 40):
        cloud = ShardedCloud(tmp_path / f"at_{number}")
        for machine in ("one", "two"):
            cloud.killed_shard(Shard(0, 2), cloud.store(dies_at=number), machine=machine, **bounded(cloud, 6000))
        cloud.work(Shard(0, 2), machine="three", **bounded(cloud, 6000))
        assert 0 < cloud.status().charged.tokens <= 3000, number


def answered(cloud: ShardedCloud) -> int:
    """The calls that the endpoint charges: a refused one costs nothing."""
    return sum(len(said) for ordinal, said in cloud.place.said().items() if ordinal % 7 != 6)


def test_a_budget_that_is_too_small_for_a_call_stops_the_shard_before_it(cloud: ShardedCloud) -> None:
    def no_call(run: Run) -> None:
        assert run.context.budgets[0].cap == 0.5

    summary = cloud.work(Shard(0, 2), opened=no_call, **bounded(cloud, 1))
    assert (summary.status, summary.requests) == ("stopped", 0)
    assert "the budget is used up" in str(summary.reason)


def test_the_limits_of_a_run_are_divided(cloud: ShardedCloud) -> None:
    bounds = RunLimits(concurrency=64, rpm=60, tpm=9000, budget_usd=3, budget_tokens=300)
    whole = cloud.place.settings(bounds=bounds, rates=Path("rates"))
    parts = [divided(whole, shard) for shard in all_of(3)]
    assert [part.bounds.concurrency for part in parts] == [22, 21, 21]
    assert {part.rates for part in parts} == {None}
    one = parts[0].bounds
    assert (one.rpm, one.tpm, one.budget_usd, one.budget_tokens, one.shards) == (20, 3000, 1, 100, 3)
    assert divided(whole, Shard(99, 100)).bounds.concurrency == 1
    assert parts[0].chunks == 12
    assert divided(whole, Shard(0, 1)).chunks == 8


def test_each_shard_begins_with_its_part_of_the_first_rate(cloud: ShardedCloud) -> None:
    async def first_rates(run: Run, connect: Connect) -> None:
        async with connect() as endpoints:
            [lane] = run.context.compose(endpoints).lanes
            assert lane.rate is not None
            found.append(lane.rate.rate)

    def look(run: Run) -> None:
        anyio.run(first_rates, run, cloud.place.connect(run.context.stop, None))

    found: list[float] = []
    bounds = RunLimits(concurrency=400)
    cloud.start(cloud.place, cloud.store(), opened=look, bounds=bounds)
    cloud.work(Shard(0, 4), opened=look, bounds=bounds)
    assert found[1] == found[0] / 4


def test_the_journal_is_uploaded_before_calls_in_flight_are_waited_for(cloud: ShardedCloud) -> None:
    """The last call in flight is answered only once a segment with what was answered before is in the bucket."""
    uploaded = threading.Event()
    store = cloud.store()
    stopped = threading.Event()

    def note(request: str) -> None:
        if request.startswith("PUT out/_run/journal/") and stopped.is_set():
            uploaded.set()

    def connecting(run: Run, connect: Connect) -> Connect:
        answers = counting(1)

        @asynccontextmanager
        async def connected() -> AsyncIterator[Sequence[OpenEndpoint]]:
            async with connect() as [endpoint]:

                async def ask(request: Request) -> Reply:
                    number = next(answers)
                    if number == 9:
                        await run.context.journal.flush()
                        stopped.set()
                        run.context.stop.request(signal.SIGTERM)
                        await to_thread.run_sync(uploaded.wait, 20)
                    return await endpoint.ask(request)

                yield [replace(endpoint, ask=ask)]

        return connected

    store.before = note
    place = cloud.machine("draining")
    settings = divided(place.settings(chunk_rows=20), Shard(0, 1))
    with open_run(place.job(), settings, objects=store.objects(), shard=ShardStart(Shard(0, 1))) as run:
        follower = run.follower
        assert follower is not None
        follower.end()
        follower._segments = follower._segments_of(lambda ordinal: ordinal // 20)
        follower._segments.keep(lambda _: None, interval_s=3600.0)  # the usual ones would hide it
        anyio.run(parts_of, run, connecting(run, place.connect(run.context.stop, None)))
        assert uploaded.is_set()
        finish([run])
    assert len({ordinal for rows in segments_in(store.objects()) for ordinal, *_ in rows}) == asked(cloud)
