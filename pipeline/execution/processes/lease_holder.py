"""A process that works under leases: applies them to its queue and budgets, and reports what it did under them."""

from __future__ import annotations

from collections.abc import Sequence

import anyio

from pipeline.data import Ask
from pipeline.endpoint.connection import OpenEndpoint
from pipeline.execution.context import RunContext
from pipeline.execution.processes.leased_limits import LeasedBudget, LeasedUpstream, renew
from pipeline.execution.processes.messages import Lease, WorkerReport
from pipeline.faults import Halt
from pipeline.pace import RetryBudget
from pipeline.policy import Limits
from pipeline.policy.compose import ProcessLimits

_LATENCIES = 20
"""Latencies per report at most: a sample is enough for quantiles."""


class LeaseHolder:
    """The leased limits of one process, number `number` of `of` that share a run. Nothing leaves before a lease."""

    def __init__(
        self, context: RunContext[LeasedBudget], endpoints: Sequence[OpenEndpoint], *, number: int, of: int
    ) -> None:
        # Of the retries, each process may make its part.
        retries = RetryBudget(per_second=1.0 / of, most=max(1.0, 50.0 / of))
        self.composed = context.compose_within(ProcessLimits(Limits(0), _leased, retries), endpoints)
        self.leased = anyio.Event()
        """Set by the first lease."""
        self._context = context
        self._offset = (number % of) / of
        self._lease = 0
        self._renewed = anyio.Event()

    @property
    def was_throttled(self) -> bool:
        """Whether a request was refused for lack of quota since the last report."""
        return any(event[0] == "throttled" for lane in self.composed.lanes for event in lane.report.events)

    def renew(self, lease: Lease) -> None:
        """Applies a lease, in place of the one before."""
        composed = self.composed
        composed.account.learn_all(lease.maxima)
        for budget in self._context.budgets:
            budget.renew(lease.budgets[budget.unit])
        renew(composed.dispatcher, composed.lanes, lease, anyio.current_time(), offset=self._offset)
        self._lease = lease.number
        self.leased.set()
        self._renewed.set()
        self._renewed = anyio.Event()

    async def compare_when_asked(self, lane: LeasedUpstream) -> None:
        """Sends an answered request again whenever that is needed to tell whose fault refusals are; never returns."""
        while True:
            while lane.compared == (asked := lane.lease.comparisons):
                await self._renewed.wait()
            try:
                await self.composed.dispatcher.compare(lane)
            except Halt as fault:
                self._context.stop.request(fault)
            lane.compared = asked

    def report(self) -> WorkerReport:
        """What happened since the last report."""
        counters, composed, budgets = self._context.counters, self.composed, self._context.budgets
        if (denied := composed.dispatcher.failure_policy.look(anyio.current_time())) is not None:
            self._context.stop.request(denied)
        counted = counters.drain()
        answered = counted.get("ok", 0) + counted.get("failed", 0)
        return WorkerReport(
            lease=self._lease,
            in_flight=counters.in_flight,
            waiting=counters.waiting,
            retrying=counters.retrying,
            waits_for=counters.waits_for,
            trouble=counters.trouble,
            last_throttle=counters.last_throttle,
            last_failure=counters.last_failure,
            counted=counted,
            notices=self._notes(),
            latencies=composed.dispatcher.latencies.newest(min(answered, _LATENCIES)),
            lanes=[lane.take() for lane in composed.lanes],
            budgets={budget.unit: budget.take() for budget in budgets},
            maxima=dict(composed.account.estimate.maxima) if budgets else {},
        )

    def _notes(self) -> list[str]:
        notices = self._context.counters.notices
        new, notices[:] = list(notices), []
        return new


def _leased(endpoint: OpenEndpoint, ask: Ask) -> LeasedUpstream:
    return LeasedUpstream(endpoint.name, ask, endpoint.weight, hitch=endpoint.hitch)
