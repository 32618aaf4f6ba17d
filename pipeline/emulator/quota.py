"""A token bucket: arithmetic of time. The caller brings the clock."""

from __future__ import annotations


class Bucket:
    """Grants `rate` calls per second and a burst of one second's worth (one call at least). Starts full.

    Refilled continuously (https://en.wikipedia.org/wiki/Token_bucket): in any window of `t` seconds at most
    `capacity + rate * t` calls are granted.
    """

    __slots__ = ("_at", "_level", "capacity", "rate")

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self.capacity = max(1.0, rate)
        self._level = self.capacity
        self._at = now

    def take(self, now: float) -> bool:
        """Whether a call is granted at `now`, in seconds of a clock that does not go back."""
        self._level = min(self.capacity, self._level + (now - self._at) * self.rate)
        self._at = now
        if self._level < 1.0:
            return False
        self._level -= 1.0
        return True
