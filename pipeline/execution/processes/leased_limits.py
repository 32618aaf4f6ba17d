"""A worker's side of the run's limits: lanes and budgets that allow what was leased, and record what to report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.execution.processes.messages import BudgetLease, BudgetReport, LaneLease, LaneReport, Lease
from pipeline.faults import BudgetExhausted, Unavailable
from pipeline.pace import LATE_S, Pacer, Refusal
from pipeline.policy import Dispatcher, Upstream

_SPARE_CALLS = 8
"""Granted calls kept beside twice those that left since the last report, so that none waits a tick for its grant."""

_ROUNDING = 1e-9
"""Amounts are sums of sums: rounding errors must not delay a call."""


@dataclass(slots=True)
class LeasedUpstream(Upstream):
    """A lane whose rate, breaker and hold belong to the run; `pace` is its leased share of the rate."""

    pace: Pacer | None = None
    lease: LaneLease = field(default_factory=LaneLease)
    probed: int = 0
    compared: int = 0
    """How many of the comparisons that the parent asked for have ended."""
    report: LaneReport = field(default_factory=LaneReport)

    @property
    def rate(self) -> None:
        """None: the parent decides the rate."""

    @property
    def opened_at(self) -> float | None:
        """When the endpoint as a whole failed; None if it works."""
        return self.lease.opened_at

    @property
    def failing_since(self) -> float | None:
        """When the first request to fail since the last answer left."""
        return self.lease.failing_since

    @property
    def has_served(self) -> bool:
        """Whether it has answered a request of any worker."""
        return self.lease.served or self.blame.has_served

    def clears(self, refusal: Refusal) -> bool:
        """Whether a refusal is known to be its row's own."""
        return refusal.ended_at <= self.lease.cleared_until

    def renew(self, lease: LaneLease, now: float) -> None:
        """Replaces the lease."""
        self.control.is_wanted |= lease.comparisons > self.lease.comparisons
        self.lease = lease
        # The parent counts all probes it ever granted: those left from an outage that is over are not used.
        if lease.opened_at is None:
            self.probed = lease.probes
        if lease.hold_ends > now and lease.hold_ends > self.hold.opens_at:
            self.hold.close(now, lease.hold_ends - now)
        if lease.rate is None:
            self.pace = None
        elif self.pace is None:
            self.pace = Pacer(60.0 * lease.rate, late_s=LATE_S)
        else:
            self.pace.change(now, 60.0 * lease.rate)

    def wait(self, now: float) -> float:
        """Seconds until a request may leave by this lane."""
        # While the endpoint has failed, only a granted probe may leave; a new lease wakes the queue.
        if self.opened_at is not None and self.lease.probes <= self.probed:
            return math.inf
        pace = self.pace.wait(now) if self.pace else 0.0
        if pace:
            self.report.held_back_at = now
        return max(self.hold.wait(now), pace)

    def sent(self, now: float) -> None:
        """A request leaves."""
        self.answered_at = now if self.answered_at is None else self.answered_at
        if self.opened_at is not None:
            self.probed += 1
        if self.pace:
            self.pace.take(now)
        self.report.sent.append(now)

    def answered(self, now: float, left_at: float, *, served: bool = True) -> None:
        """A request was answered; or refused for its own fault (not `served`)."""
        self.noted(now, served=served)
        if served:
            self.blame.served(left_at)
        events = self.report.events
        if events and events[-1][0] == "answered" and events[-1][2] == served:
            left_at = max(left_at, events.pop()[1])  # of several in a row, only the last matters to the run
        events.append(("answered", left_at, served))

    def refused(self, refusal: Refusal) -> None:
        """A request was refused, perhaps for a reason that applies to every row."""
        self.report.events.append(("refused", refusal))

    def throttled(self, now: float, left_at: float, retry_after: float | None) -> None:
        """A request was refused for lack of quota."""
        if retry_after is not None:  # here at once: the parent's hold arrives a tick later
            self.hold.close(now, retry_after)
        self.report.events.append(("throttled", left_at, retry_after))

    def failed(self, now: float, row: int, in_play: int = 0, left_at: float | None = None) -> None:  # noqa: ARG002 - the parent counts its own
        """A request that left at `left_at` failed."""
        self.weakened()
        cause = self.trouble.cause if isinstance(self.trouble, Unavailable) else None
        self.report.events.append(("failed", row, left_at, cause))

    def take(self) -> LaneReport:
        """Returns what happened since the last call of this method."""
        report, self.report = self.report, LaneReport()
        report.compares, report.compared = self.control.request is not None, self.compared
        report.lost_at = self.control.lost_at
        return report


class LeasedBudget:
    """A worker's part of a run's budget: calls leave if they and their amounts were granted; costs are reported."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self._calls = 0
        self._amount = 0.0
        self._lease = BudgetLease()
        self._started = 0
        self._each = 0.0
        self._is_short = False
        """Whether a call could not leave for lack of grants."""
        self._report = BudgetReport()

    def affords(self, amount: float) -> bool:
        """Whether one more call may leave now for which this is to be reserved."""
        if self._calls and amount <= self._amount * (1 + _ROUNDING):
            return True
        self._is_short = True
        self._each = max(self._each, amount)
        return False

    def refusal(self, amount: float) -> BudgetExhausted | None:  # noqa: ARG002 - the parent decides
        """Always None: only the parent knows that a call can never leave, and then it stops the run."""
        return None

    def reserve(self, amount: float) -> None:
        """A call leaves."""
        self._calls -= 1
        self._amount = max(0.0, self._amount - amount)
        self._started += 1
        self._each = max(self._each, amount)

    def release(self, amount: float) -> None:
        """A call has ended."""
        self._report.ended += 1
        self._report.freed += amount

    def change(self, amount: float, before: float) -> None:
        """The reservation of a call in flight changes from `before` to `amount`."""
        self._report.changed += amount - before

    def charge(self, cost: float, reserved: float | None) -> None:
        """A call was answered, or abandoned for another."""
        self._report.costs.append((cost, reserved))

    def fail(self, why: BudgetExhausted) -> None:
        """What was paid is unknown: the parent learns it from the stop."""

    def renew(self, lease: BudgetLease) -> None:
        """Adopts the totals that the parent has granted so far."""
        self._calls += lease.calls - self._lease.calls
        self._amount += lease.amount - self._lease.amount
        self._lease = lease

    def take(self) -> BudgetReport:
        """Returns the costs since the last call of this method, and how many more calls are wanted or given back."""
        # 1. How many grants to hold: twice what left since the last report; none if idle, since others may need them.
        stock = 2 * self._started + _SPARE_CALLS if self._started or self._is_short else 0
        # 2. A call did not fit although grants were left: it is larger than they are. All are given back, because the
        #    parent may be able to afford the larger call only then.
        keep = 0 if self._is_short and self._calls else min(self._calls, stock)
        kept_amount = self._amount * keep / self._calls if self._calls else 0.0
        report = self._report
        if not self._calls:  # the calls reserved less than was granted for them
            report.changed, self._amount = report.changed - self._amount, 0.0
        report.returned, report.given_back = self._calls - keep, self._amount - kept_amount
        self._calls, self._amount = keep, kept_amount
        report.granted, report.wanted, report.each = self._lease.calls, stock - keep, self._each
        self._report, self._started, self._is_short = BudgetReport(), 0, False
        return report


def renew(dispatcher: Dispatcher, lanes: Sequence[LeasedUpstream], lease: Lease, now: float, *, offset: float) -> None:
    """Applies a lease to the dispatcher and its lanes.

    `offset` delays a worker's first request under a declared limit by a part of its interval, so that workers take
    turns instead of all sending at once.
    """
    limits = dispatcher.limits
    limits.concurrency = lease.concurrency
    limits.requests = _renewed(limits.requests, lease.rpm, now, offset)
    limits.tokens = _renewed(limits.tokens, lease.tpm, now, offset)
    for lane, leased in zip(lanes, lease.lanes, strict=True):
        lane.renew(leased, now)
    dispatcher.admit()


def _renewed(pacer: Pacer | None, per_minute: float | None, now: float, offset: float) -> Pacer | None:
    if per_minute is None:
        return None
    if pacer is None:
        pacer = Pacer(per_minute)
        pacer.take(now, offset)
    else:
        pacer.change(now, per_minute)
    return pacer
