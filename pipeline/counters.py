"""What a run counts while it goes: one place that the policies write to and the display reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pipeline.data import Failure, Outcome
from pipeline.failures import Failures

_PRESENT = {
    "rows", "done_before", "ok_before", "failures_before", "in_flight", "retrying", "waiting", "waits_for", "trouble",
    "limit", "notes", "cost_before_usd",
}  # fmt: skip
"""What tells how it stands; everything else counts."""


@dataclass(slots=True)
class Counters:
    """Counters of one start of a run. Written on the event loop only."""

    rows: int = 0
    """Rows of the input, done before this start or not."""
    done_before: int = 0
    ok_before: int = 0
    """Those of them that have a value."""
    ok: int = 0
    failed: int = 0
    failures: Failures = field(default_factory=Failures)
    failures_before: Failures = field(default_factory=Failures)
    """Those of earlier starts."""
    requests: int = 0
    """Requests that left this process, answered or not."""
    retries: int = 0
    throttled: int = 0
    in_flight: int = 0
    retrying: int = 0
    """Rows that sleep before their next try."""
    waiting: int = 0
    """Rows that wait for their turn."""
    waits_for: str | None = None
    """What the next of them waits for, when it is more than a place among the calls in flight."""
    trouble: str | None = None
    """Why nothing is answered, when nothing is."""
    limit: float | None = None
    """Requests a second that the quota was found to grant."""
    hedged: int = 0
    cache_hits: int = 0
    """Calls that the reply cache answered; they are no `requests`."""
    cost_usd: float = 0.0
    """What the calls of this start have cost, as they are answered."""
    cost_before_usd: float = 0.0
    """What those of earlier starts did."""
    notices: list[str] = field(default_factory=list)
    """What the user is to be told, once each."""
    unpriced: int = 0
    """Calls without a known price, which `cost_usd` leaves out."""

    @property
    def done(self) -> int:
        """Rows that need no further call, from earlier starts too."""
        return self.done_before + self.ok + self.failed

    def count(self, outcome: Outcome) -> None:
        """Adds one finished row."""
        if isinstance(outcome, Failure):
            self.failed += 1
            self.failures += Failures.of([outcome])
        else:
            self.ok += 1

    def drain(self) -> dict[str, Any]:
        """What was counted since this was called last."""
        counted = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in _PRESENT}
        for name, value in counted.items():
            setattr(self, name, type(value)())
        return {name: value for name, value in counted.items() if value != type(value)()}

    def add(self, counted: Mapping[str, Any]) -> None:
        """Adds what another tally has counted."""
        for name, value in counted.items():
            setattr(self, name, getattr(self, name) + value)
