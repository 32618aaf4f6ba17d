"""The recent speed of a run, for everything that shows it."""

from __future__ import annotations

from collections import deque

WINDOW_S = 30.0
"""Seconds over which the rate is measured: the mean since the start would hide a quota that has just been cut."""

WINDOW_ROWS = 10
"""The minimum number of rows for the rate: fewer predict the next ones poorly."""


class RecentRate:
    """Rows per second over the last `WINDOW_S`, or over the last `WINDOW_ROWS` rows if those took longer."""

    def __init__(self, now: float, done: int) -> None:
        self._samples = deque([(now, done)])
        self._now = now

    def add(self, now: float, done: int) -> None:
        """Adds a sample, and drops those that have left the window."""
        self._now = now
        if done != self._samples[-1][1]:
            self._samples.append((now, done))
        while len(self._samples) > 1 and self._is_enough(*self._samples[1]):
            self._samples.popleft()

    def _is_enough(self, began: float, before: int) -> bool:
        return self._now - began >= WINDOW_S and self._samples[-1][1] - before >= WINDOW_ROWS

    @property
    def per_second(self) -> float:
        """0 before the first row."""
        began, before = self._samples[0]
        return (self._samples[-1][1] - before) / (self._now - began) if self._now > began else 0.0

    def seconds_left(self, rows: int) -> float | None:
        """How long `rows` more rows take at this rate; None before the first row."""
        return rows / self.per_second if self.per_second > 0 else None
