"""A run over a cluster: its one limiter, its tasks, and what is sent between machines; Ray itself where installed."""

from __future__ import annotations

import pickle
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from pipeline.cli.ray_options import ClusterRunOptions, RaySetup
from pipeline.cli.ray_run import opened_task
from pipeline.data import Part, Reply, Request
from pipeline.endpoint.connection import Connect, Connection, OpenEndpoint, Start
from pipeline.execution.cluster.chunk_task import TaskName, ask_chunks
from pipeline.execution.cluster.clocks import ClockOffset, shifted_lease, shifted_report
from pipeline.execution.cluster.limiter import LOST_S, RunLimiter, Terms, take_over
from pipeline.execution.cluster.task_order import OpenedTask, TaskEnd, TaskOrder, limiter_order
from pipeline.execution.cluster.task_window import in_window
from pipeline.execution.finish import finish
from pipeline.execution.processes.messages import BudgetReport, LaneLease, LaneReport, Lease, WorkerReport
from pipeline.execution.run import Run
from pipeline.execution.shards import ShardStart
from pipeline.execution.start import open_run
from pipeline.faults import Broken, Fault, InvalidRow, ProviderUnusable, UsageError
from pipeline.pace import Refusal
from pipeline.policy import LocalBudget, LocalUpstream, Shutdown
from pipeline.policy.compose import ComposedAsk, RunLimits, compose
from pipeline.storage.remote.shards import Shard
from pipeline.totals.counters import Counters
from pipeline.totals.failures import FailureKind, Failures
from pipeline.totals.ledger import Charges
from tests import virtual
from tests.commands import JOB, Shell
from tests.memory_store import MemoryStore
from tests.test_lease_allocator import report, sharing
from tests.test_remote_runs import PLACE
from tests.test_shards import ShardedCloud, all_of

anyio_backend = virtual.anyio_backend


def limiter_of(*budgets: LocalBudget, **bounds: object) -> RunLimiter:
    _, composed, counters, stop = sharing(*budgets, **bounds)
    return RunLimiter(composed, counters, stop)


def lease_of(terms: Terms) -> Lease:
    assert terms.lease is not None
    return terms.lease


# The limiter.


def test_the_places_of_a_run_are_divided_among_its_tasks() -> None:
    limiter = limiter_of(concurrency=10)
    first, second = limiter.join("task 1", 0.0), limiter.join("task 2", 0.0)
    leases = [lease_of(limiter.exchange(number, report(waiting=50), None, 0.1)) for number in (first, second)]
    assert sum(lease.concurrency for lease in leases) <= 10
    assert limiter.exchange(second, report(leases[1].number, waiting=50), None, 0.2).lease is None


def test_a_task_that_is_started_again_takes_the_place_of_its_lost_start() -> None:
    limiter = limiter_of(concurrency=10)
    lost = limiter.join("task 1", 0.0)
    assert lease_of(limiter.exchange(lost, report(waiting=50), None, 0.0)).concurrency == 10
    again = limiter.join("task 1", 1.0)
    assert lease_of(limiter.exchange(again, report(waiting=50), None, 1.0)).concurrency == 10
    assert not limiter.exchange(lost, report(), None, 1.0).is_known
    assert limiter.progress(None, 1.0).notices == ["task 1 was lost; another start goes on from what it recorded"]


def test_a_silent_task_loses_its_share_and_is_told_so() -> None:
    limiter = limiter_of(concurrency=10)
    silent, other = limiter.join("task 1", 0.0), limiter.join("task 2", 0.0)
    limiter.exchange(silent, report(waiting=50), None, 0.0)
    few = lease_of(limiter.exchange(other, report(waiting=50), None, LOST_S - 1))
    assert few.concurrency < 10
    all_places = lease_of(limiter.exchange(other, report(few.number, waiting=50), None, LOST_S + 1))
    assert all_places.concurrency == 10
    assert not limiter.exchange(silent, report(1), None, LOST_S + 1).is_known


def test_calls_granted_to_a_lost_task_stay_spent() -> None:
    """Whether they were made, nobody knows: another task must not spend the same money."""
    budget = LocalBudget(10.0, "USD")
    limiter = limiter_of(budget)
    lost = limiter.join("task 1", 0.0)
    wanted = BudgetReport(wanted=4, each=1.0)
    granted = lease_of(limiter.exchange(lost, report(waiting=9, budgets={"USD": wanted}), None, 0.0)).budgets["USD"]
    paid = BudgetReport(costs=[(0.5, 1.0)], ended=1, freed=1.0, granted=granted.calls, wanted=4, each=1.0)
    more = lease_of(limiter.exchange(lost, report(1, waiting=9, budgets={"USD": paid}), None, 0.1)).budgets["USD"]
    assert more.calls > granted.calls == 1
    limiter.join("task 1", 1.0)
    assert budget.spent == 0.5 + more.amount - granted.amount
    assert not budget.in_flight


def test_a_stop_reaches_all_whoever_asks_for_it() -> None:
    limiter = limiter_of()
    first, second = limiter.join("task 1", 0.0), limiter.join("task 2", 0.0)
    fault = ProviderUnusable("no billing")
    limiter.exchange(first, report(), fault, 0.0)
    assert limiter.exchange(second, report(), None, 0.0).stop is fault
    assert limiter.progress(None, 0.0).stop is fault
    limiter = limiter_of()
    number = limiter.join("task 1", 0.0)
    limiter.progress(signal.SIGINT, 0.0)
    assert limiter.exchange(number, report(), None, 0.0).stop is signal.SIGINT


def test_the_driver_sees_the_counts_of_all_tasks_and_no_row() -> None:
    limiter = limiter_of()
    failed = Failures((FailureKind(InvalidRow.__name__, None, 1, 3, "the name is Canary"),))
    for task in ("task 1", "task 2"):
        counted = {"ok": 2, "failed": 1, "failures": failed, "requests": 3}
        limiter.exchange(limiter.join(task, 0.0), report(in_flight=2, counted=counted), None, 0.0)
    counters = Counters(rows=9)
    for _ in range(2):  # totals, so that a lost answer costs nothing
        take_over(counters, limiter.progress(None, 0.0))
    assert (counters.ok, counters.failed, counters.requests, counters.in_flight) == (4, 2, 6, 4)
    assert (counters.rows, counters.failures.count) == (9, 2)
    assert b"Canary" not in pickle.dumps(limiter.progress(None, 0.0))


# Clocks.

EVENTS: list[tuple[Any, ...]] = [
    ("answered", 1.0, True),
    ("refused", Refusal(row=1, kind="k", suspect=True, message="m", left_at=2.0, ended_at=3.0)),
    ("throttled", 4.0, 0.5),
    ("failed", 7, 5.0, "reset"),
    ("failed", 7, None, None),
]


def test_times_in_messages_are_told_by_the_clock_of_whoever_reads_them() -> None:
    lane = LaneReport(sent=[1.0, 2.0], events=EVENTS, held_back_at=6.0, lost_at=7.0)
    (moved,) = shifted_report(report(lanes=[lane]), 100.0).lanes
    assert (moved.sent, moved.held_back_at, moved.lost_at) == ([101.0, 102.0], 106.0, 107.0)
    refused = moved.events[1][1]
    assert (refused.left_at, refused.ended_at) == (102.0, 103.0)
    others = [("answered", 101.0, True), ("throttled", 104.0, 0.5), ("failed", 7, 105.0, "reset"), EVENTS[4]]
    assert [event for event in moved.events if event[0] != "refused"] == others
    terms = LaneLease(rate=2.0, opened_at=1.0, failing_since=None, cleared_until=3.0, hold_ends=4.0)
    (leased,) = shifted_lease(Lease(number=1, concurrency=1, lanes=[terms]), 100.0).lanes
    assert leased == replace(terms, opened_at=101.0, cleared_until=103.0, hold_ends=104.0)


def test_the_shortest_answer_tells_the_other_clock_best() -> None:
    ahead = ClockOffset()
    ahead.learn(10.0, 12.0, 1012.0)
    assert ahead.seconds == 1001.0
    ahead.learn(20.0, 20.5, 1020.25)
    ahead.learn(30.0, 39.0, 1039.0)
    assert ahead.seconds == 1000.0


# The window.


@pytest.mark.anyio
async def test_a_bounded_number_of_tasks_is_out_and_none_begins_after_a_stop() -> None:
    out, most, done, stop = 0, 0, list[int](), Shutdown()

    async def work(item: int) -> None:
        nonlocal out, most
        out, most = out + 1, max(most, out + 1)
        await anyio.sleep(1.0 + item % 3)
        out -= 1
        done.append(item)
        if len(done) == 5:
            stop.request(signal.SIGINT)

    await in_window(range(100), 3, work, stop)
    assert (most, out) == (3, 0)
    assert 5 <= len(done) <= 7


# Tasks.


class LocalLink:
    """A limiter in this process. What is said to it and back is pickled, and kept."""

    def __init__(self, composed: ComposedAsk[LocalUpstream], counters: Counters, stop: Shutdown) -> None:
        self.limiter = RunLimiter(composed, counters, stop)
        self.said: list[bytes] = []
        self.gone = False

    def _passed(self, value: Any) -> Any:
        if self.gone:
            raise Broken("the limiter of the run is gone")
        self.said.append(pickle.dumps(value))
        return pickle.loads(self.said[-1])  # noqa: S301 - our own

    async def join(self, task: str) -> int:
        return self.limiter.join(task, anyio.current_time())

    async def exchange(self, number: int, report: WorkerReport, stop: Fault | None) -> Terms:
        told: WorkerReport = self._passed(report)
        answer: Terms = self._passed(self.limiter.exchange(number, told, stop, anyio.current_time()))
        return answer

    async def leave(self, number: int, charged: Charges) -> None:
        self.limiter.leave(number, self._passed(charged))


async def never(_: Request) -> Reply:
    raise AssertionError("the limiter asks nothing")


class TaskedCloud(ShardedCloud):
    """A bucket, and a run whose shards are tasks under one limiter."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.counters = Counters()
        bounds = RunLimits(concurrency=3, adaptive=False)
        lanes = [OpenEndpoint("small", 1.0, never)]
        composed = compose(self.place.job(), bounds, lanes, (), counters=self.counters, stop=Shutdown())
        self.link = LocalLink(composed, self.counters, composed.account.stop)

    def opened(self) -> Run:
        """The run as its driver knows it, which opens and closes it."""
        with open_run(self.place.job(), self.place.settings(), objects=self.store().objects()) as run:
            return run

    def task(self, shard: Shard, store: MemoryStore | None = None) -> TaskEnd:
        place = self.machine(f"node-{shard.name}")
        objects = (store or self.store()).objects()
        with open_run(place.job(), place.settings(), objects=objects, shard=ShardStart(shard)) as run:
            connect = place.connect(run.context.stop, None)
            parts: list[Part] = anyio.run(ask_chunks, run, self.link, connect, TaskName(str(shard), shard.count))
            reason = run.context.stop.reason
            return TaskEnd(parts, reason if isinstance(reason, Fault) else None)


@pytest.fixture
def cloud(tmp_path: Path) -> TaskedCloud:
    return TaskedCloud(tmp_path)


def test_tasks_write_the_dataset_of_a_run_in_one_piece_and_return_the_records_of_its_parts(cloud: TaskedCloud) -> None:
    """Nothing that passes the limiter or comes back has a row or an answer."""
    cloud.opened()
    ends = [cloud.task(shard) for shard in all_of(3)]
    assert [part.chunk for end in ends for part in end.parts] == [0, 1, 2]
    assert cloud.counters.requests == cloud.place.shape.rows
    assert (cloud.counters.ok, cloud.counters.failed) == (18, 2)
    passed = [*cloud.link.said, *map(pickle.dumps, ends)]
    assert not [one for one in passed if b"text 1" in one or b'"nonce' in one]
    with open_run(cloud.place.job(), cloud.place.settings(), objects=cloud.store().objects()) as run:
        assert run.chunks() == []
        [summary] = finish([run])
    assert (summary.status, summary.run.calls) == ("complete", 18)
    cloud.require_whole()
    assert all(len(nonces) == 1 for nonces in cloud.place.said().values())


def test_a_task_whose_limiter_is_gone_stops_and_keeps_what_was_answered(cloud: TaskedCloud) -> None:
    """The driver was killed, and the limiter with it."""
    cloud.opened()

    @asynccontextmanager
    async def losing() -> AsyncIterator[Sequence[OpenEndpoint]]:
        async with connect() as endpoints:
            [endpoint] = endpoints

            async def ask(request: Request) -> Reply:
                cloud.link.gone = request.ordinal >= 9
                await anyio.sleep(0.25 * cloud.link.gone)
                return await endpoint.ask(request)

            yield [replace(endpoint, ask=ask)]

    place = cloud.machine("node")
    shard = ShardStart(Shard(0, 1))
    with open_run(place.job(), place.settings(), objects=cloud.store().objects(), shard=shard) as run:
        connect: Connect = place.connect(run.context.stop, None)
        anyio.run(ask_chunks, run, cloud.link, losing, TaskName("task 1", 1), backend_options={})
        assert isinstance(run.context.stop.reason, Broken)
    with open_run(cloud.place.job(), cloud.place.settings(), objects=cloud.store().objects()) as run:
        known = run.context.counters.done_before
    assert known == sum(map(len, cloud.place.said().values()))
    assert 9 <= known < cloud.place.shape.rows


def test_what_is_sent_to_a_cluster_has_no_key_no_token_and_no_row(
    cloud: TaskedCloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The canaries are where a key, a private key and a row are on the driver's machine."""
    monkeypatch.setenv("OPENAI_API_KEY", "canary-of-a-key")
    credentials = tmp_path / "credentials.json"
    credentials.write_text('{"private_key": "canary-of-credentials"}')
    run = cloud.opened()
    run.context.counters.failures += Failures((FailureKind(InvalidRow.__name__, None, 1, 3, "canary-of-a-row"),))
    connection = Connection(base_urls=["http://127.0.0.1:9/v1"], credentials=credentials)
    start = Start(
        target="job.py", inputs=None, model=None, assignments=None, output=None, connection=connection,
        credentials=credentials,
    )  # fmt: skip
    task = TaskOrder(
        shard=Shard(0, 2),
        settings=run.context.settings,
        start=start,
        of_input={},
        state_dir=None,
        folder=tmp_path,
        workers=2,
        opening=opened_task,
    )
    for sent in (task, limiter_order(run, task, [("here", 1.0)])):
        content = pickle.dumps(sent)
        assert b"canary" not in content
        assert b"text 1" not in content
        assert type(pickle.loads(content)) is type(sent)  # noqa: S301 - our own


# Ray itself, where it is installed; kills are tried by `tests.crash.ray_soak`.


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_the_limiter_finds_the_job_where_the_command_was_given(
    cloud: TaskedCloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ray starts its processes in folders of its own. A job that is not there ends the run, with the reason."""
    ray_engine = pytest.importorskip("pipeline.execution.ray_engine", reason="the extra ray is not installed")
    monkeypatch.chdir(tmp_path)
    run = cloud.opened()
    seen: list[Path] = []

    @contextmanager
    def opening(order: TaskOrder) -> Iterator[OpenedTask]:
        seen.append(Path.cwd())
        if order.folder != tmp_path / "command":
            raise UsageError("there is no job file 'job.py'")
        yield OpenedTask(cloud.place.job(), order.settings, cloud.store().objects(), cloud.place.connect(Shutdown(), 1))

    start: Any = None
    task = TaskOrder(
        shard=Shard(0, 1), settings=run.context.settings, start=start, of_input={}, state_dir=None,
        folder=tmp_path / "command", workers=1, opening=opening,
    )  # fmt: skip
    task.folder.mkdir()
    limiter = ray_engine.LimiterActor(limiter_order(run, task, [("small", 1.0)]))
    assert await limiter.begin() is None
    assert seen == [task.folder]
    assert (await limiter.progress(None)).stop is None
    await limiter.end()
    lost = replace(task, folder=tmp_path / "elsewhere")
    error = await ray_engine.LimiterActor(limiter_order(run, lost, [("small", 1.0)])).begin()
    assert str(error) == "there is no job file 'job.py'"


# The command.


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("-o", "out", "--engine", "ray"), "--engine ray needs an --output that all machines reach: gs://, s3://"),
        (("-o", PLACE, "--engine", "ray", "--shard", "0/2"), "--shard and --engine ray both divide the run"),
        (("-o", PLACE, "--engine", "ray", "--ray-address", "auto"), "--emulate starts a server that only this machine"),
        (("-o", PLACE, "--engine", "ray", "--batch"), "--batch leaves nothing for a cluster to do"),
        (("-o", PLACE, "--engine", "ray", "--append"), "--append takes in the new rows without a cluster"),
        (("-o", PLACE, "--ray-address", "auto"), "--ray-address belongs to --engine ray"),
    ],
)
def test_what_a_cluster_cannot_do_is_refused_with_the_remedy(tmp_path: Path, more: tuple[str, ...], said: str) -> None:
    shell = Shell(tmp_path, {"OPENAI_API_KEY": ""})
    shell.write("job.py", JOB)
    shell.rows(3)
    done = shell.pipeline("run", "job.py", "--emulate", *more)
    assert (done.code, done.out) == (2, "")
    assert said in done.err


def test_a_new_run_has_chunks_for_all_tasks() -> None:
    start: Any = None
    assert RaySetup(5, start, ClusterRunOptions(), None).chunks == 20
    assert RaySetup(None, start, ClusterRunOptions(ray_address="10.0.0.2:6379"), None).chunks == 64
