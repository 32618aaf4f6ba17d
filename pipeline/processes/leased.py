"""A worker's side of the run's limits: lanes and purses that allow what was leased, and note what is to be reported."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import anyio

from pipeline.faults import Unavailable
from pipeline.pace import LATE_S, Refusal, Spacing
from pipeline.policy import Dispatcher, Lane, Stop
from pipeline.processes.messages import LaneLease, LaneReport, Lease, PurseReport

_SPARE_CALLS = 8


@dataclass(slots=True)
class LeasedLane(Lane):
    """A lane whose rate, breaker and gate are the run's. Make it with `rate=None`: `pace` is its share."""

    pace: Spacing | None = None
    lease: LaneLease = field(default_factory=LaneLease)
    probed: int = 0
    report: LaneReport = field(default_factory=LaneReport)

    @property
    def opened_at(self) -> float | None:
        """Since when the endpoint has failed as a whole; None when it has not."""
        return self.lease.opened_at

    @property
    def failing_since(self) -> float | None:
        """When the first request left that failed since the last answer."""
        return self.lease.failing_since

    @property
    def has_served(self) -> bool:
        """Whether it has answered a request, of any worker."""
        return self.lease.served or self.blame.has_served

    def clears(self, refusal: Refusal) -> bool:
        """Whether a refusal was found to be its row's own."""
        return refusal.ended_at <= self.lease.cleared_until

    def renew(self, lease: LaneLease, now: float) -> None:
        """What was leased is another from now on."""
        self.lease = lease
        if lease.opened_at is None:
            self.probed = lease.probes
        if lease.gate_opens > now and lease.gate_opens > self.gate.opens_at:
            self.gate.close(now, lease.gate_opens - now)
        if lease.rate is None:
            self.pace = None
        elif self.pace is None:
            self.pace = Spacing(60.0 * lease.rate, late_s=LATE_S)
        else:
            self.pace.change(now, 60.0 * lease.rate)

    def wait(self, now: float) -> float:
        """Seconds until a request may leave by this lane."""
        if self.opened_at is not None and self.lease.probes <= self.probed:
            return math.inf
        pace = self.pace.wait(now) if self.pace else 0.0
        if pace:
            self.report.held_back_at = now
        return max(self.gate.wait(now), pace)

    def sent(self, now: float) -> None:
        """A request leaves."""
        self.answered_at = now if self.answered_at is None else self.answered_at
        if self.opened_at is not None:
            self.probed += 1
        if self.pace:
            self.pace.take(now)
        self.report.sent.append(now)

    def answered(self, now: float, left_at: float, *, served: bool = True) -> None:
        """A request was answered; or refused for reasons of its own, and then not `served`."""
        self.noted(now, served=served)
        if served:
            self.blame.served(left_at)
        events = self.report.events
        if events and events[-1][0] == "answered" and events[-1][2] == served:
            left_at = max(left_at, events.pop()[1])  # of several in a row the run need know only the last
        events.append(("answered", left_at, served))

    def refused(self, refusal: Refusal) -> None:
        """A request was refused, perhaps for a reason that is everybody's."""
        self.report.events.append(("refused", refusal))

    def throttled(self, now: float, left_at: float, retry_after: float | None) -> None:
        """A request was refused for want of quota."""
        if retry_after is not None:
            self.gate.close(now, retry_after)
        self.report.events.append(("throttled", left_at, retry_after))

    def failed(self, now: float, row: int, in_play: int = 0, left_at: float | None = None) -> None:  # noqa: ARG002 - the run counts its own
        """A request that left then failed."""
        self.health = max(0.02, 0.9 * self.health)
        cause = self.trouble.cause if isinstance(self.trouble, Unavailable) else None
        self.report.events.append(("failed", row, left_at, cause))

    def take(self) -> LaneReport:
        """What happened since this was called last."""
        report, self.report = self.report, LaneReport()
        return report


class LeasedPurse:
    """A purse of the run: calls leave as far as they were granted, and what they cost is reported."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self._calls = anyio.Semaphore(0)
        self._granted = 0
        self._started = 0
        self._waiting = 0
        self._ended = False
        self._report = PurseReport()

    async def reserve(self, stop: Stop) -> None:
        """Returns when a call may leave. Raises `Interrupted` when the run is ending."""
        self._waiting += 1
        try:
            await self._calls.acquire()
        finally:
            self._waiting -= 1
        if self._ended:
            self._calls.release()
            stop.check()
        self._started += 1
        self._report.in_flight += 1

    def settle(self, cost: float | None) -> None:
        """A call has ended; None when it cost nothing."""
        self._report.in_flight -= 1
        self._report.costs.append(cost)

    def renew(self, granted: int) -> None:
        """So many calls were granted by now, all together."""
        for _ in range(granted - self._granted):
            self._calls.release()
        self._granted = granted

    def end(self) -> None:
        """No call leaves any more: whoever waits is told."""
        self._ended = True
        self._calls.release()

    def take(self) -> PurseReport:
        """What calls have cost since this was called last, and how many more are wanted or given back."""
        busy = self._started or self._waiting
        stock = self._waiting + (2 * self._started + _SPARE_CALLS if busy else 0)
        self._started = 0
        unused = 0 if self._ended else self._calls.value
        returned = max(0, unused - stock)
        for _ in range(returned):
            self._calls.acquire_nowait()
        report = PurseReport(
            self._report.costs, self._report.in_flight, self._granted, max(0, stock - unused), returned
        )
        self._report = PurseReport(in_flight=report.in_flight)
        return report


def renew(dispatcher: Dispatcher, lease: Lease, now: float, *, offset: float) -> None:
    """The dispatcher keeps to a lease from now on.

    `offset` puts a worker's first turn under a declared limit off, by a part of its interval: workers take turns.
    """
    limits = dispatcher.limits
    limits.concurrency = lease.concurrency
    limits.requests = _renewed(limits.requests, lease.rpm, now, offset)
    limits.tokens = _renewed(limits.tokens, lease.tpm, now, offset)
    for lane, leased in zip(dispatcher.lanes, lease.lanes, strict=True):
        if isinstance(lane, LeasedLane):
            lane.renew(leased, now)
    dispatcher.admit()


def _renewed(spacing: Spacing | None, per_minute: float | None, now: float, offset: float) -> Spacing | None:
    if per_minute is None:
        return None
    if spacing is None:
        spacing = Spacing(per_minute)
        spacing.take(now, offset)
    else:
        spacing.change(now, per_minute)
    return spacing
