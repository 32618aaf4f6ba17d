"""A task: the chunks of one shard of a run, under the limits that are leased to it, to the records of their parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import anyio

from pipeline.data import Part
from pipeline.endpoint.connection import Connect, OpenEndpoint
from pipeline.execution import engine
from pipeline.execution.cluster.clocks import ClockOffset, shifted_lease, shifted_report
from pipeline.execution.cluster.limiter import LEASE_S, LimiterLink, bare_fault, bare_report
from pipeline.execution.context import RunContext
from pipeline.execution.processes.lease_holder import LeaseHolder
from pipeline.execution.processes.leased_limits import LeasedBudget
from pipeline.execution.processes.worker import TICK_S
from pipeline.execution.run import Run
from pipeline.faults import Fault, Halt, Interrupted
from pipeline.policy import LocalBudget
from pipeline.policy.compose import units_of
from pipeline.storage.remote.shard_follower import ShardFollower
from pipeline.totals.counters import Counters


@dataclass(frozen=True, slots=True)
class TaskName:
    """One of the `of` tasks that run at a time, and what it is called in messages."""

    name: str
    of: int


async def ask_chunks(run: Run, limiter: LimiterLink, connect: Connect, task: TaskName) -> list[Part]:
    """Asks the rows of an opened shard under leases, and seals its chunks. Returns the records of the sealed parts.

    Returns early once the run stops; what was answered is then in the bucket. The run's stop has the reason.
    """
    if run.chunks():
        run.unfinish()
        context = _under_leases(run.context)
        number = await limiter.join(task.name)
        async with connect() as endpoints:
            await _Asker(run, context, limiter, endpoints, number, task.of).work()
        try:
            await limiter.leave(number, run.charged)
        except Halt as fault:  # it is gone; what was answered is uploaded nevertheless
            run.context.stop.request(fault)
    if isinstance(run.follower, ShardFollower):
        run.follower.end_shard(run.parts.values())
    return [run.parts[chunk] for chunk in run.assigned if chunk in run.parts]


def _under_leases(context: RunContext[LocalBudget]) -> RunContext[LeasedBudget]:
    return RunContext(
        settings=context.settings,
        folder=context.folder,
        chunks=context.chunks,
        journal=context.journal,
        cache=context.cache,
        budgets=[LeasedBudget(unit) for unit in units_of(context.settings.bounds)],
        counters=Counters(),
        stop=context.stop,
    )


class _Asker:
    def __init__(
        self,
        run: Run,
        context: RunContext[LeasedBudget],
        limiter: LimiterLink,
        endpoints: Sequence[OpenEndpoint],
        number: int,
        of: int,
    ) -> None:
        self._run = run
        self._context = context
        self._limiter = limiter
        self._number = number
        self._holder = LeaseHolder(context, endpoints, number=number, of=of)
        self._ahead = ClockOffset()

    async def work(self) -> None:
        run, context = self._run, self._context
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._exchange_often)
            tasks.start_soon(run.stop_if_taken_over)
            for lane in self._holder.composed.lanes:
                tasks.start_soon(self._holder.compare_when_asked, lane)
            run.upload_first()
            await self._holder.leased.wait()
            await context.process(self._holder.composed.ask, engine.in_order(run.chunks()), run.record_part)
            tasks.cancel_scope.cancel()
        try:
            await self._exchange()
        except Halt as fault:
            context.stop.request(fault)

    async def _exchange_often(self) -> None:
        try:
            while True:
                await self._exchange()
                await self._lease_passes()
        except Halt as fault:
            self._context.stop.request(fault)
            self._holder.leased.set()

    async def _lease_passes(self) -> None:
        """Returns when it is time to report again; soon, if a request was refused: the others must slow down too."""
        for _ in range(round(LEASE_S / TICK_S)):
            if self._holder.was_throttled:
                return
            await anyio.sleep(TICK_S)

    async def _exchange(self) -> None:
        """Reports what happened, and applies what the limiter says."""
        stop, asked = self._context.stop, anyio.current_time()
        report = shifted_report(bare_report(self._holder.report()), self._ahead.seconds)
        reason = bare_fault(stop.reason) if isinstance(stop.reason, Fault) else None
        terms = await self._limiter.exchange(self._number, report, reason)
        self._ahead.learn(asked, anyio.current_time(), terms.now)
        if terms.stop is not None:
            stop.request(terms.stop)
            self._holder.leased.set()
        elif not terms.is_known:
            raise Interrupted("the run has given this task's share of its limits to others: it was silent for long")
        if terms.lease is not None:
            self._holder.renew(shifted_lease(terms.lease, -self._ahead.seconds))
