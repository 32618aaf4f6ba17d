"""The clock of batch jobs: it goes by itself, or only when it is moved."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta


class JobClock:
    """Seconds since it was made. A `manual` clock stands still between calls of `advance`."""

    def __init__(self, *, manual: bool, ticks: Callable[[], float] = time.monotonic) -> None:
        self.manual = manual
        self._ticks = ticks
        self._start = ticks()
        self._moved = 0.0
        self._began = datetime.now(UTC)

    def now(self) -> float:
        """The seconds that have passed on this clock."""
        return self._moved + (0.0 if self.manual else self._ticks() - self._start)

    def advance(self, seconds: float) -> None:
        """Moves the clock on. Raises `ValueError` for a negative number."""
        if not 0 <= seconds < float("inf"):
            raise ValueError(f"batch_advance is a number of seconds, 0 or more, not {seconds!r}")
        self._moved += seconds

    def date(self, at: float) -> datetime:
        """The date at a time of this clock."""
        return self._began + timedelta(seconds=at)

    def stamp(self, at: float) -> str:
        """The same as Google's APIs write it, as in `2026-01-31T12:00:00.000001Z`."""
        return self.date(at).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
