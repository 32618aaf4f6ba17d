"""A token bucket, fixed windows, and a capacity schedule: pure arithmetic; the caller passes the time."""

from __future__ import annotations

from collections.abc import Sequence


class TokenBucket:
    """Grants `rate` calls per second and a burst of `window` seconds' worth (at least one call). Starts full.

    Refilled continuously (https://en.wikipedia.org/wiki/Token_bucket): in any `t` seconds at a constant rate, at most
    `capacity + rate * t` calls are granted; at a rate of 0, none.
    """

    __slots__ = ("_at", "_level", "rate", "window")

    def __init__(self, rate: float, now: float, window: float = 1.0) -> None:
        self.rate = rate
        self.window = window
        self._level = self.capacity
        self._at = now

    @property
    def capacity(self) -> float:
        """The maximum number of calls granted at once."""
        return max(1.0, self.rate * self.window) if self.rate else 0.0

    def take(self, now: float) -> bool:
        """Whether a call is granted at `now`, in seconds of a clock that does not go back."""
        self._refill(now)
        if self._level < 1.0:
            return False
        self._level -= 1.0
        return True

    def change(self, rate: float, now: float) -> None:
        """Changes the rate; accumulated calls are kept up to the new capacity."""
        if rate != self.rate:
            self._refill(now)
            self.rate = rate
            self._level = min(self._level, self.capacity)

    def _refill(self, now: float) -> None:
        self._level = min(self.capacity, self._level + (now - self._at) * self.rate)
        self._at = now


class FixedWindow:
    """Grants `rate * window` calls (at least one) in each window of `window` seconds, possibly all at once.

    The first window begins with the first call. Many gateways count this way: around a boundary, twice the rate may
    pass.
    """

    __slots__ = ("_began", "_granted", "rate", "window")

    def __init__(self, rate: float, now: float, window: float) -> None:
        self.rate = rate
        self.window = window
        self._began = now
        self._granted = 0

    @property
    def capacity(self) -> float:
        """The number of calls granted per window."""
        return max(1.0, self.rate * self.window) if self.rate else 0.0

    def take(self, now: float) -> bool:
        """Whether a call is granted at `now`, in seconds of a clock that does not go back."""
        passed = (now - self._began) // self.window
        if passed >= 1:
            self._began, self._granted = self._began + passed * self.window, 0
        if self._granted + 1 > self.capacity:
            return False
        self._granted += 1
        return True

    def change(self, rate: float, now: float) -> None:  # noqa: ARG002 - the signature of `TokenBucket`
        """Changes the rate, within the current window."""
        self.rate = rate


def rate_at(schedule: Sequence[tuple[float, float]], elapsed: float, default: float | None) -> float | None:
    """The rate of the last step that has begun; `default` before the first."""
    return next((rate for begins, rate in reversed(schedule) if begins <= elapsed), default)
