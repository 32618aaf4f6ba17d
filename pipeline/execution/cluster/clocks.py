"""Times in messages between machines, each of which has a monotonic clock of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pipeline.execution.processes.messages import LaneLease, LaneReport, Lease, WorkerReport


@dataclass(slots=True)
class ClockOffset:
    """How far the clock of another machine is ahead of this one, in seconds, as its answers tell."""

    seconds: float = 0.0
    _round_trip: float = float("inf")

    def learn(self, asked: float, answered: float, there: float) -> None:
        """A question left at `asked` and its answer, given `there` by the other clock, came at `answered`.

        The shortest round trip tells it best, and is kept: the other clock was read within it.
        """
        if answered - asked < self._round_trip:
            self._round_trip = answered - asked
            self.seconds = there - (asked + answered) / 2


def shifted_report(report: WorkerReport, by: float) -> WorkerReport:
    """A report, with all its times later by so many seconds."""
    return replace(report, lanes=[_shifted_lane(lane, by) for lane in report.lanes])


def shifted_lease(lease: Lease, by: float) -> Lease:
    """A lease, with all its times later by so many seconds."""
    return replace(lease, lanes=[_shifted_terms(lane, by) for lane in lease.lanes])


def _shifted_lane(lane: LaneReport, by: float) -> LaneReport:
    return replace(
        lane,
        sent=[at + by for at in lane.sent],
        events=[_shifted_event(event, by) for event in lane.events],
        held_back_at=lane.held_back_at + by,
        lost_at=lane.lost_at + by,
    )


def _shifted_event(event: tuple[Any, ...], by: float) -> tuple[Any, ...]:
    match event:
        case ("refused", refusal):
            return "refused", replace(refusal, left_at=refusal.left_at + by, ended_at=refusal.ended_at + by)
        case ("failed", row, left_at, cause):
            return "failed", row, _shifted(left_at, by), cause
        case (kind, left_at, detail):
            return kind, left_at + by, detail
    raise ValueError(f"a lane reports an event that is not known: {event[0]}")


def _shifted_terms(lane: LaneLease, by: float) -> LaneLease:
    return replace(
        lane,
        opened_at=_shifted(lane.opened_at, by),
        failing_since=_shifted(lane.failing_since, by),
        cleared_until=lane.cleared_until + by,
        hold_ends=lane.hold_ends + by,
    )


def _shifted(at: float | None, by: float) -> float | None:
    return None if at is None else at + by
