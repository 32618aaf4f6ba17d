"""Waiting together: for a time that the server named, and for an endpoint that has failed."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

PROBE_S = 15.0
"""How often an endpoint that has failed is tried again."""

SILENCE_S = 5.0
"""How long nothing succeeds before an endpoint has failed."""

SILENCE_AMONG_S = 1.5
"""The same where there are other endpoints for the work to go to: leaving one alone too soon costs little then."""

ROWS = 10
"""Different rows that must fail before an endpoint has failed, where so many are in play."""

_SUSPECTS = 10_000


@dataclass(slots=True)
class RetryAfterHold:
    """One gate for all workers, closed until the time that the server named last.

    The server's time is a floor: nobody passes before it, and those who waited come back one after the other over
    a spread, not all in the same instant.
    """

    dice: random.Random = field(default_factory=random.Random)
    _opens: float = float("-inf")

    def wait(self, now: float) -> float:
        """Seconds until this caller may pass; 0 when it may now. Drawn anew at each call while closed."""
        closed = self._opens - now
        return closed + self.dice.uniform(0.0, min(0.2 * closed, 2.0)) if closed > 0 else 0.0

    @property
    def opens_at(self) -> float:
        """When it opens, or has opened."""
        return self._opens

    def close(self, now: float, retry_after: float) -> None:
        """The server wants no request for so many seconds."""
        self._opens = max(self._opens, now + retry_after)


@dataclass(slots=True)
class CircuitBreaker:
    """Whether the endpoint as a whole has failed, as against single rows.

    It opens when ten different rows (or all that are in play, but two at least) have failed since the last success
    of any row, and nothing succeeded for `silence_s`. Rows that had failed before that success do not count: while
    others went well, the fault was theirs. While it is open one probe leaves every `PROBE_S`; the first success
    closes it.
    """

    silence_s: float = SILENCE_S
    _last_success: float | None = None
    _rows: set[int] = field(default_factory=set)
    _suspects: dict[int, None] = field(default_factory=dict)
    _opened: float | None = None
    _next_probe: float = 0.0
    failing_since: float | None = None
    """When the first call left that failed since the last success."""

    @property
    def opened_at(self) -> float | None:
        """Since when it is open; None when it is not."""
        return self._opened

    def wait(self, now: float) -> float:
        """Seconds until a probe may leave; 0 when requests pass, or when this caller is the probe to send now."""
        return 0.0 if self._opened is None else max(0.0, self._next_probe - now)

    def sent(self, now: float) -> None:
        """A request leaves; while open it is the probe."""
        if self._opened is not None:
            self._next_probe = now + PROBE_S
        elif self._last_success is None:
            self._last_success = now

    def succeeded(self, now: float) -> bool:
        """A request was answered, or refused for reasons of its own; says whether this closed the breaker."""
        self._last_success, self.failing_since = now, None
        was_open, self._opened = self._opened is not None, None
        if self._rows and not was_open:
            self._suspects |= dict.fromkeys(self._rows)
            for row in list(self._suspects)[:-_SUSPECTS]:
                del self._suspects[row]
        self._rows.clear()
        return was_open

    def failed(self, now: float, row: int, in_play: int = ROWS, left_at: float | None = None) -> bool:
        """A request of this row failed, with so many rows in play; says whether this opened the breaker."""
        if self.failing_since is None:
            self.failing_since = now if left_at is None else left_at
        if self._opened is not None or row in self._suspects:
            return False
        self._rows.add(row)
        silence = now - self._last_success if self._last_success is not None else 0.0
        if len(self._rows) < min(ROWS, max(2, in_play)) or silence < self.silence_s:
            return False
        self._opened, self._next_probe = now, now + PROBE_S
        return True
