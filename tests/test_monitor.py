"""A run seen from outside: its events, its present state, the changes to its limits, the warning of its budget."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import orjson
import pytest

from pipeline.data import Reply, Request
from pipeline.endpoint.connection import OpenEndpoint
from pipeline.execution.monitor import RunMonitor, apply, ask_to_tune, state_of
from pipeline.execution.rate_memory import GrantedRates
from pipeline.faults import Broken, UsageError
from pipeline.job.job import Job
from pipeline.pace import Pacer, RateChange, RecentRate
from pipeline.policy import Limits, LocalBudget, LocalUpstream, Shutdown
from pipeline.policy.compose import ComposedAsk, RunLimits, compose
from pipeline.storage.durable import FileSystem
from pipeline.storage.run_folder import EVENTS, STATE, TUNE
from pipeline.totals.counters import Counters
from tests import virtual

anyio_backend = virtual.anyio_backend
pytestmark = pytest.mark.anyio


@dataclass(frozen=True)
class NotedFiles(FileSystem):
    """The disk, which notes when a state was written to it, and tells when that was done so many times.

    Nobody else may wait for a time meanwhile: the clock would jump while the disk works.
    """

    until: int = 1
    written: list[float] = field(default_factory=list)
    enough: anyio.Event = field(default_factory=anyio.Event)

    def write_atomic(self, path: Path, content: bytes, *, mode: int = 0o644) -> None:
        super().write_atomic(path, content, mode=mode)
        anyio.from_thread.run_sync(self._note)

    def _note(self) -> None:
        self.written.append(anyio.current_time())
        if len(self.written) == self.until:
            self.enough.set()

    async def watched(self, run: MonitoredRun) -> None:
        """Lets the watch work until then."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run.watch.keep)
            await self.enough.wait()
            tasks.cancel_scope.cancel()


async def answer(_: Request) -> Reply:
    return Reply(b"{}")


def composed(*budgets: LocalBudget, concurrency: int = 8, adaptive: bool = True) -> ComposedAsk[LocalUpstream]:
    job = Job(name="j", model="m", user="{{ a }}")
    bounds = RunLimits(concurrency=concurrency, adaptive=adaptive)
    endpoints = [OpenEndpoint("here", 1.0, answer), OpenEndpoint("there", 1.0, answer)]
    return compose(job, bounds, endpoints, budgets, counters=Counters(), stop=Shutdown())


class MonitoredRun:
    """A watch over a run that does nothing by itself."""

    def __init__(self, folder: Path, *budgets: LocalBudget, files: FileSystem | None = None, **bounds: Any) -> None:
        self.folder = folder
        self.counters = Counters()
        self.stop = Shutdown()
        self.composed = composed(*budgets, **bounds)
        self.watch = RunMonitor(folder, self.composed, self.counters, self.stop, files or FileSystem(), budgets=budgets)

    @property
    def limits(self) -> Limits:
        return self.composed.dispatcher.limits

    def second(self) -> None:
        """What the watch does once a second."""
        self.watch._tune()
        self.watch._warn()
        self.watch._write(self.watch._event())

    def events(self) -> list[dict[str, Any]]:
        path = self.folder / EVENTS
        return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


async def test_a_line_is_written_every_second(tmp_path: Path) -> None:
    files = NotedFiles(until=4)
    await files.watched(MonitoredRun(tmp_path, files=files))
    assert files.written == [1.0, 2.0, 3.0, 4.0]
    first, *seconds = (orjson.loads(line) for line in (tmp_path / EVENTS).read_bytes().splitlines())
    assert first == {"at": first["at"], "start": True}
    assert ["done" in event for event in seconds] == [True] * 4


async def test_an_event_says_what_happened_since_the_one_before(tmp_path: Path) -> None:
    run = MonitoredRun(tmp_path)
    run.counters.ok, run.counters.requests, run.counters.throttled, run.counters.hedged = 3, 5, 1, 1
    run.second()
    run.counters.ok, run.counters.requests, run.counters.failed, run.counters.hedged = 4, 7, 1, 3
    run.second()
    names = ("ok", "failed", "requests", "retries", "throttled", "hedged", "done")
    assert [[event[name] for name in names] for event in run.events()] == [[3, 0, 5, 0, 1, 1, 3], [1, 1, 2, 0, 0, 2, 5]]


async def test_what_earlier_starts_did_is_no_news(tmp_path: Path) -> None:
    run = MonitoredRun(tmp_path)
    run.counters.done_before = 100
    run.second()
    assert (run.events()[0]["ok"], run.events()[0]["done"]) == (0, 100)


async def test_an_event_says_how_it_stands(tmp_path: Path) -> None:
    run = MonitoredRun(tmp_path, concurrency=40)
    run.counters.in_flight, run.counters.waiting, run.counters.retrying = 7, 2, 1
    run.counters.waits_for, run.counters.cost_usd = "quota", 0.25
    run.second()
    (event,) = run.events()
    rates = {lane.name: round(lane.rate.rate, 2) for lane in run.composed.lanes if lane.rate}
    shown = ("concurrency", "in_flight", "waiting", "retrying", "waits_for", "cost_usd", "lanes", "open")
    assert [event[name] for name in shown] == [40, 7, 2, 1, "quota", 0.25, rates, []]
    assert event["limit"] == run.counters.limit == pytest.approx(sum(rates.values()))


async def test_the_speed_is_that_of_the_progress_bar_and_slow_rows_have_one_too(tmp_path: Path) -> None:
    run, bar = MonitoredRun(tmp_path), RecentRate(anyio.current_time(), 0)
    run.counters.rows = 100
    for second in range(1, 200):
        await anyio.sleep(1)
        run.counters.ok = second // 45
        run.second()
        bar.add(anyio.current_time(), run.counters.ok)
    event = run.events()[-1]
    assert event["rows_per_s"] == round(bar.per_second, 3) > 0
    assert event["eta_s"] == round(bar.seconds_left(96) or 0, 1)


async def test_a_fixed_concurrency_has_no_limit_to_show(tmp_path: Path) -> None:
    run = MonitoredRun(tmp_path, adaptive=False)
    run.second()
    assert (run.events()[0]["limit"], run.events()[0]["lanes"], run.counters.limit) == (None, {}, None)


async def test_the_state_is_the_last_event(tmp_path: Path) -> None:
    run = MonitoredRun(tmp_path)
    assert state_of(tmp_path) == {}
    for ok in (1, 2):
        run.counters.ok = ok
        run.second()
    assert state_of(tmp_path) == {**run.events()[-1], "failures": []}


async def test_events_and_state_are_for_their_owner_only(tmp_path: Path) -> None:
    MonitoredRun(tmp_path).second()
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in (EVENTS, STATE)} == {0o600}


async def test_a_state_that_is_no_json_is_none(tmp_path: Path) -> None:
    (tmp_path / STATE).write_bytes(b"{")
    assert state_of(tmp_path) == {}


async def test_a_change_is_applied_once_and_noted(tmp_path: Path) -> None:
    run = MonitoredRun(tmp_path)
    assert ask_to_tune(tmp_path, ["concurrency=4", "rpm=120"]) == {"concurrency": 4.0, "rpm": 120.0}
    run.second()
    first = run.limits.requests
    assert (run.limits.concurrency, isinstance(first, Pacer)) == (4, True)
    run.limits.concurrency = 6
    run.second()
    assert (run.limits.concurrency, run.limits.requests) == (6, first)
    assert run.counters.notices == ["tuned: concurrency=4, rpm=120"]
    assert [event["note"] for event in run.events() if "note" in event] == run.counters.notices
    assert not (tmp_path / TUNE).exists()


async def test_a_change_is_clamped_to_the_workers_of_the_start_and_the_note_says_so(tmp_path: Path) -> None:
    run = MonitoredRun(tmp_path, concurrency=100)
    ask_to_tune(tmp_path, ["concurrency=5000"])
    run.second()
    assert run.limits.concurrency == run.limits.most == 200
    assert run.counters.notices == ["tuned: concurrency=200"]


async def test_a_change_that_an_earlier_start_was_asked_for_is_over_with_it(tmp_path: Path) -> None:
    files = NotedFiles(until=2)
    run = MonitoredRun(tmp_path, files=files)
    ask_to_tune(tmp_path, ["concurrency=1"])
    await files.watched(run)
    assert (run.limits.concurrency, run.counters.notices, (tmp_path / TUNE).exists()) == (8, [], False)


async def test_a_change_that_comes_while_it_works_is_applied_within_a_second(tmp_path: Path) -> None:
    run = MonitoredRun(tmp_path)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run.watch.keep)
        await anyio.sleep(0.5)
        ask_to_tune(tmp_path, ["tpm=6000"])
        await anyio.sleep(0.6)
        assert isinstance(run.limits.tokens, Pacer)
        tasks.cancel_scope.cancel()


def test_a_rate_of_0_lifts_the_limit_and_what_is_not_named_stays() -> None:
    limits = Limits(8, Pacer(60), Pacer(1000))
    tokens = limits.tokens
    apply(limits, {"rpm": 0})
    assert (limits.concurrency, limits.requests, limits.tokens) == (8, None, tokens)
    apply(limits, {"tpm": 0, "concurrency": 9.9})
    assert (limits.concurrency, limits.tokens) == (9, None)


@pytest.mark.parametrize(
    "assignment",
    [
        "concurrency", "concurrency=", "=3", "rpm=fast", "speed=3", "concurrency=0", "concurrency=-1", "rpm=-1",
        "tpm=-5", "concurrency=inf", "rpm=inf", "rpm=nan", "tpm=nan", "rpm 300",
    ],
)  # fmt: skip
def test_anything_but_a_number_for_what_can_be_tuned_is_refused_and_nothing_is_left(
    assignment: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=assignment):
        ask_to_tune(tmp_path, ["rpm=100", assignment])
    assert list(tmp_path.iterdir()) == []


async def test_a_budget_is_warned_of_once_from_80_percent_on(tmp_path: Path) -> None:
    budget = LocalBudget(10.0, "USD", spent=7.9)
    run = MonitoredRun(tmp_path, budget)
    run.second()
    assert run.counters.notices == []
    for spent in (8.0, 9.0, 10.0):
        budget.spent = spent
        run.second()
    assert run.counters.notices == ["80% of the budget of 10 USD is spent"]


async def test_the_disk_that_fails_ends_the_run_with_its_reason(tmp_path: Path) -> None:
    """The folder is gone: neither can be written."""
    run = MonitoredRun(tmp_path / "gone")
    await run.watch.keep()
    assert isinstance(run.stop.reason, Broken)
    assert "fix the disk" in str(run.stop.reason)


async def test_h2_why_the_rate_was_cut_is_in_the_state_and_told_once_a_minute(tmp_path: Path) -> None:
    run = MonitoredRun(tmp_path)
    run.second()
    assert state_of(tmp_path)["rate_change"] is None
    rate = run.composed.lanes[0].rate
    assert rate is not None
    for now in (0.0, 30.0, 61.0):
        await anyio.sleep(now - anyio.current_time())
        rate.change = RateChange(now, f"cut at {now:g}")
        run.second()
        run.second()
    assert state_of(tmp_path)["rate_change"].endswith(" UTC: here: cut at 61")
    told = [f"here: cut at {at} (--no-adaptive leaves the rate alone)" for at in (0, 61)]
    assert run.counters.notices == told


async def test_the_rates_that_were_granted_are_kept_at_the_end(tmp_path: Path) -> None:
    run = MonitoredRun(tmp_path)
    rate = run.composed.lanes[0].rate
    assert rate is not None
    rate._start.peak = 100.0
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run.watch.keep)
        await anyio.sleep(0.5)
        assert GrantedRates(tmp_path).load() == {}
        tasks.cancel_scope.cancel()
    assert GrantedRates(tmp_path).load() == {"here": 100.0}


async def test_what_rows_wait_for_and_why_is_logged_once_a_minute(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With the time for which the server wants no calls, which the state has too."""
    caplog.set_level("INFO", logger="pipeline")
    run = MonitoredRun(tmp_path)
    counters = run.counters
    counters.waits_for, counters.waiting, counters.last_throttle = "quota", 3, "429 RESOURCE_EXHAUSTED: later"
    for lane in run.composed.lanes:
        lane.hold.close(anyio.current_time(), 90.0)
    run.second()
    assert (counters.wait_s, state_of(tmp_path)["wait_reason"]) == (90.0, "429 RESOURCE_EXHAUSTED: later")
    await anyio.sleep(59.0)
    run.second()
    await anyio.sleep(2.0)
    run.second()
    await anyio.sleep(30.0)
    run.second()
    assert counters.wait_s is None
    counters.waits_for, counters.trouble = None, "connection refused"
    run.second()
    found = [one.fields for one in caplog.records if getattr(one, "event", None) == "run.waits"]  # type: ignore[attr-defined]
    assert [(one["waits_for"], one.get("wait_s"), one["reason"]) for one in found] == [
        ("quota", 90.0, "429 RESOURCE_EXHAUSTED: later"),
        ("quota", 29.0, "429 RESOURCE_EXHAUSTED: later"),
        ("an answer", None, "connection refused"),
    ]


async def test_every_change_of_a_rate_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="pipeline")
    run = MonitoredRun(tmp_path)
    [lane, _] = run.composed.lanes
    assert lane.rate is not None
    for at in (1.0, 1.0, 2.0):
        lane.rate.change = RateChange(at, f"cut at {at}")
        run.second()
    found = [one.fields for one in caplog.records if getattr(one, "event", None) == "rate.change"]  # type: ignore[attr-defined]
    assert [(one["lane"], one["reason"]) for one in found] == [("here", "cut at 1.0"), ("here", "cut at 2.0")]
