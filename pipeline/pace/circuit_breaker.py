"""Holds that apply to all workers: the server's Retry-After, and the circuit breaker of a failed endpoint."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

PROBE_S = 15.0
"""Interval between probes of a failed endpoint."""

SILENCE_S = 5.0
"""How long nothing must succeed before an endpoint counts as failed."""

SILENCE_AMONG_S = 1.5
"""The same with several endpoints: the work can go to another, so leaving one too soon costs little."""

ROWS = 10
"""Different rows that must fail before an endpoint counts as failed, if that many are in play."""

_SUSPECTS = 10_000
"""Rows remembered as bad at most: a bound on memory."""


@dataclass(slots=True)
class RetryAfterHold:
    """A hold on all workers until the latest time the server named.

    That time is a lower bound: no request passes before it, and the waiting ones resume spread out, not all at once.
    """

    dice: random.Random = field(default_factory=random.Random)
    _opens: float = float("-inf")

    def wait(self, now: float) -> float:
        """Seconds until this caller may pass; 0 if it may now. Includes fresh jitter on each call while closed."""
        closed = self._opens - now
        # Spread over a fifth of the wait, 2 s at most: enough to avoid a burst, without wasting a long hold.
        return closed + self.dice.uniform(0.0, min(0.2 * closed, 2.0)) if closed > 0 else 0.0

    @property
    def opens_at(self) -> float:
        """When the hold ends, or ended."""
        return self._opens

    def close(self, now: float, retry_after: float) -> None:
        """The server wants no request for `retry_after` seconds."""
        self._opens = max(self._opens, now + retry_after)


@dataclass(slots=True)
class CircuitBreaker:
    """Tells a failed endpoint from failing rows.

    Opens when ten different rows (or all rows in play, at least two) have failed since the last success of any row,
    and nothing has succeeded for `silence_s`. Rows that had already failed before that success do not count: others
    succeeded meanwhile, so the fault was their own. While open, one probe leaves every `PROBE_S`; the first success
    closes it.
    """

    silence_s: float = SILENCE_S
    _last_success: float | None = None
    _rows: set[int] = field(default_factory=set)
    _suspects: dict[int, None] = field(default_factory=dict)
    _opened: float | None = None
    _next_probe: float = 0.0
    failing_since: float | None = None
    """When the first call to fail since the last success left."""

    @property
    def opened_at(self) -> float | None:
        """When it opened; None when closed."""
        return self._opened

    def wait(self, now: float) -> float:
        """Seconds until a probe may leave; 0 when closed, or when a probe is due now."""
        return 0.0 if self._opened is None else max(0.0, self._next_probe - now)

    def sent(self, now: float) -> None:
        """A request leaves; while open, it is the probe."""
        if self._opened is not None:
            self._next_probe = now + PROBE_S
        elif self._last_success is None:
            self._last_success = now

    def succeeded(self, now: float) -> bool:
        """A request was answered, or refused for its own fault. Returns whether this closed the breaker."""
        self._last_success, self.failing_since = now, None
        was_open, self._opened = self._opened is not None, None
        if self._rows and not was_open:
            self._suspects |= dict.fromkeys(self._rows)
            for row in list(self._suspects)[:-_SUSPECTS]:
                del self._suspects[row]
        self._rows.clear()
        return was_open

    def failed(self, now: float, row: int, in_play: int = ROWS, left_at: float | None = None) -> bool:
        """A request of this row failed, with `in_play` rows in play. Returns whether this opened the breaker."""
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
