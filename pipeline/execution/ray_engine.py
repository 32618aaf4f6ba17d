"""Ray as the executor of a run: one task a shard, and the run's limiter as a named actor. Nothing else imports ray.

Tasks are started again by Ray when their worker or machine is lost, and go on from the shard's state folder or from
the bucket. The limiter runs beside the driver, so that it is lost only with it: the tasks then end, and the next start
of the run counts what all were charged.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from typing import Any, TypeVar

import anyio
import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.data import Reply, Request
from pipeline.endpoint.connection import OpenEndpoint
from pipeline.execution.cluster.chunk_task import TaskName, ask_chunks
from pipeline.execution.cluster.limiter import (
    LEASE_S,
    RunLimiter,
    RunProgress,
    StopReason,
    Terms,
    bare_fault,
    take_over,
)
from pipeline.execution.cluster.task_order import LimiterOrder, OpenedTask, TaskEnd, TaskOrder, limiter_order
from pipeline.execution.cluster.task_window import in_window
from pipeline.execution.monitor import RunMonitor
from pipeline.execution.processes.messages import WorkerReport
from pipeline.execution.rate_memory import GrantedRates
from pipeline.execution.run import Run
from pipeline.execution.shards import ShardStart
from pipeline.execution.start import open_run
from pipeline.faults import Broken, Fault, Halt, Interrupted, UsageError
from pipeline.policy import Shutdown
from pipeline.policy.compose import budgets_for, compose
from pipeline.storage.remote.shards import Shard
from pipeline.totals.ledger import Charges

MOST_RETRIES = 8
"""How often Ray starts a task again whose worker or machine was lost."""

MOST_SILENT = 3
"""How often a task is given out again that was silent for too long."""

TASKS_A_WORKER = 4
"""Tasks for each that runs at the same time: the fewer, the less they cost; the more, the more even the end."""

_NAMESPACE = "pipeline"
_ANSWER_S = 60.0
"""How long a task waits for the limiter, in seconds: its machine may be busy."""

Answer = TypeVar("Answer")


# The cluster.


@contextmanager
def cluster(address: str | None, workers: int | None) -> Iterator[int]:
    """A connection to the cluster at an address or, without one, to a cluster of this machine for the block alone.

    Yields how many tasks may run at the same time: `workers`, or as many as the cluster has processors.
    Raises `UsageError` if there is no cluster at the address.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "namespace": _NAMESPACE}
    try:
        if address is None:
            here = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
            ray.init(address="local", num_cpus=workers, **here, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        place = f"no Ray cluster answers at {address}" if address else "Ray cannot start a cluster on this machine"
        raise UsageError(f"{place}: {error}") from error
    try:
        yield workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    finally:
        ray.shutdown()


# The limiter.


class LimiterActor:
    """A `RunLimiter` as an async actor, with the monitor of the run, which writes to the driver's state folder."""

    def __init__(self, order: LimiterOrder) -> None:
        self._order = order
        self._limiter: RunLimiter | None = None
        self._monitoring: asyncio.Task[None] | None = None

    async def begin(self) -> UsageError | None:
        """Loads the job, for its prices, and begins to watch the run. Returns why it cannot."""
        order, settings = self._order, self._order.task.settings
        _enter(order.task)
        try:
            with order.task.opening(order.task) as opened:
                job = opened.job
        except UsageError as error:
            return error
        rates = GrantedRates(order.run_folder, order.rates)
        bounds = replace(settings.bounds, granted=rates.load())
        counters, stop = order.counters, Shutdown()
        endpoints = [OpenEndpoint(name, weight, _unasked) for name, weight in order.lanes]
        budgets = budgets_for(job, bounds, order.charged)
        composed = compose(job, bounds, endpoints, budgets, counters=counters, stop=stop)
        self._limiter = RunLimiter(composed, counters, stop)
        monitor = RunMonitor(order.run_folder, composed, counters, stop, rates=rates, budgets=budgets)
        self._monitoring = asyncio.create_task(monitor.keep())
        return None

    async def join(self, task: str) -> int:
        """See `RunLimiter.join`."""
        return self._known.join(task, _now())

    async def exchange(self, number: int, report: WorkerReport, stop: Fault | None) -> Terms:
        """See `RunLimiter.exchange`."""
        return self._known.exchange(number, report, stop, _now())

    async def leave(self, number: int, charged: Charges) -> None:
        """See `RunLimiter.leave`."""
        self._known.leave(number, charged)

    async def progress(self, stop: StopReason | None) -> RunProgress:
        """See `RunLimiter.progress`."""
        return self._known.progress(stop, _now())

    async def end(self) -> None:
        """Saves the rates that were found."""
        if self._monitoring is not None:
            self._monitoring.cancel()
            with suppress(asyncio.CancelledError):
                await self._monitoring

    @property
    def _known(self) -> RunLimiter:
        if self._limiter is None:
            raise RuntimeError("the limiter was not begun")
        return self._limiter


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _unasked(_: Request) -> Reply:
    raise RuntimeError("the limiter sends no request itself")


class _ActorLink:
    """The limiter, as a task reaches it."""

    def __init__(self, name: str) -> None:
        self._actor = ray.get_actor(name, namespace=_NAMESPACE)

    async def join(self, task: str) -> int:
        return await _answer(self._actor.join.remote(task))

    async def exchange(self, number: int, report: WorkerReport, stop: Fault | None) -> Terms:
        return await _answer(self._actor.exchange.remote(number, report, stop))

    async def leave(self, number: int, charged: Charges) -> None:
        await _answer(self._actor.leave.remote(number, charged))


async def _answer(asked: Awaitable[Answer]) -> Answer:
    """What an actor answers. Raises `Broken` if it is gone, or does not answer."""
    try:
        with anyio.fail_after(_ANSWER_S):
            return await asked
    except RayTaskError:
        raise
    except (RayError, GetTimeoutError, TimeoutError) as error:
        raise Broken(f"the limiter of the run is gone ({type(error).__name__}): run again") from error


# A task.


def work(order: TaskOrder, limiter: str) -> TaskEnd:
    """Works on a shard in a worker process of the cluster. What it returns are records of parts, and never rows."""
    _enter(order)
    try:
        with order.opening(order) as opened, _opened_shard(order, opened) as run:
            link, task = _ActorLink(limiter), TaskName(order.name, order.workers)
            parts = anyio.run(ask_chunks, run, link, opened.connect, task)
            reason = run.context.stop.reason
            return TaskEnd(parts, bare_fault(reason) if isinstance(reason, Fault) else None)
    except UsageError as error:
        return TaskEnd((), error)
    except Halt as fault:
        return TaskEnd((), bare_fault(fault))


def _enter(order: TaskOrder) -> None:
    """Makes relative paths those of the command, where the folder is known."""
    if order.folder.is_dir():
        os.chdir(order.folder)


def _opened_shard(order: TaskOrder, opened: OpenedTask) -> AbstractContextManager[Run]:
    return open_run(opened.job, opened.settings, objects=opened.objects, shard=ShardStart(order.shard))


# The driver.


async def execute(run: Run, order: TaskOrder, lanes: Sequence[tuple[str, float]]) -> None:
    """Has the rows asked that are left, in tasks. Returns at the end, or once the stop was requested and drained.

    The run was opened, and closed again: tasks hold leases of their own. Its counters and its stop are those of the
    whole run meanwhile.
    """
    context = run.context
    name = f"limiter-{context.plan.run_id}-{uuid.uuid4().hex[:8]}"
    made = limiter_order(run, order, lanes)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(LimiterActor).options(
        name=name, num_cpus=0, max_restarts=0, max_concurrency=1000, scheduling_strategy=here
    )
    limiter = actor.remote(made)
    if (error := await _answer(limiter.begin.remote())) is not None:
        context.stop.request(Broken(f"the limiter of the run cannot begin: {error}"))
        return
    count = min(len(context.survey.chunks), TASKS_A_WORKER * order.workers)
    tasks = [replace(order, shard=Shard(index, count)) for index in range(count)]
    driver = _Driver(run, limiter, name)
    async with anyio.create_task_group() as around:
        around.start_soon(driver.follow)
        await in_window([task for task in tasks if driver.is_open(task.shard)], order.workers, driver.ask, context.stop)
        around.cancel_scope.cancel()
    with suppress(Broken):
        await driver.look()
        await _answer(limiter.end.remote())


class _Driver:
    def __init__(self, run: Run, limiter: Any, name: str) -> None:
        self._run = run
        self._limiter = limiter
        self._name = name
        self._stop = run.context.stop
        self._task = ray.remote(work).options(num_cpus=1, max_retries=MOST_RETRIES, retry_exceptions=False)

    def is_open(self, shard: Shard) -> bool:
        """Whether a chunk of it is not sealed."""
        return any(chunk not in self._run.parts for chunk in shard.chunks(len(self._run.context.survey.chunks)))

    async def ask(self, order: TaskOrder) -> None:
        """Has a task worked on until its chunks are sealed, or the run stops."""
        for _ in range(MOST_SILENT):
            try:
                end: TaskEnd = await self._task.remote(order, self._name)
            except RayTaskError as error:
                raise RuntimeError(f"{order.name} failed:\n{error}") from None
            except RayError as error:
                lost = f"{order.name} was lost {MOST_RETRIES + 1} times ({type(error).__name__})"
                self._stop.request(Broken(f"{lost}: fix what ends its workers, then run again"))
                return
            self._run.parts.update({part.chunk: part for part in end.parts})
            if not self.is_open(order.shard) or self._stop.requested:
                return
            if not isinstance(end.reason, Interrupted):
                break
        self._stop.request(_reason(order, end.reason))

    async def follow(self) -> None:
        """Keeps the counters up to date, and tells the tasks of a stop; until it is cancelled."""
        try:
            while True:
                await self.look()
                self._run.stop_if_too_many_failed()
                await anyio.sleep(LEASE_S)
        except Broken as fault:
            self._stop.request(fault)

    async def look(self) -> None:
        """Takes over what the run has done so far."""
        reason = self._stop.reason
        told = bare_fault(reason) if isinstance(reason, Fault) else reason
        progress: RunProgress = await _answer(self._limiter.progress.remote(told))
        take_over(self._run.context.counters, progress)
        if progress.stop is not None:
            self._stop.request(progress.stop)


def _reason(order: TaskOrder, reason: Fault | UsageError | None) -> Fault:
    if isinstance(reason, Fault):
        return reason
    return Broken(f"{order.name} cannot work: {reason or 'its chunks are not sealed'}")
