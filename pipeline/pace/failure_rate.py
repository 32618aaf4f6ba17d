"""Statistics of past calls: the failure rate and the retries it justifies, and the latency quantiles."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass, field
from itertools import islice

UNLIKELY = 1e-6
"""The chance that a good row may use up all its tries: 1 in 1,000,000, so that ten million rows lose about ten."""

MOST_ATTEMPTS = 20

BAD_SHARE = 0.05
BAD_ROWS = 5
"""Rows, and share of rows, that must fail their first try before the endpoint is blamed; fewer are the rows' fault."""

_PRIOR = 20.0
"""Successes assumed beforehand, so that the first failures do not look like a high rate."""

_MEMORY = 500.0
"""Observations that count: an exponential window of this length."""

_ROUNDING = 1e-9
"""Without it, a caller that waited exactly as asked may be asked to wait again, for less than the clock resolves."""


@dataclass(slots=True)
class FailureRate:
    """The rate at which the endpoint fails rows: tells a bad hour from a bad row.

    Only the first try of each row counts, so that a row that always fails weighs no more than any other. Old
    observations fade: about the last `_MEMORY` count. No row gets more than `most` tries because of it.
    """

    most: int = MOST_ATTEMPTS
    _tries: float = 0.0
    _failures: float = 0.0

    def saw(self, *, failed: bool) -> None:
        """A row's first try has ended."""
        fading = 1 - 1 / _MEMORY
        self._tries = self._tries * fading + 1
        self._failures = self._failures * fading + failed

    @property
    def share(self) -> float:
        """The share of first tries that fail now; deliberately low while few have been seen."""
        return self._failures / (self._tries + _PRIOR)

    def attempts(self, least: int) -> int:
        """How many tries a row gets: `least`, or at a high failure rate as many as chance alone hardly uses up.

        With 10 % of calls failing, one row in 100,000 would fail five times in a row by chance alone; ten million
        rows would lose a hundred. When few rows fail, the fault is their own, and `least` bounds their tries.
        """
        if self.share < BAD_SHARE or self._failures < BAD_ROWS:
            return least
        needed = math.ceil(math.log(UNLIKELY) / math.log(min(self.share, 0.9)))
        return max(least, min(needed, self.most))


@dataclass(slots=True)
class RetryBudget:
    """Bounds retries to a share of calls, so that a failing endpoint does not get twice the traffic of a healthy one.

    A token bucket: a first try earns `share` of a retry, and each second `per_second`, so that retries go on slowly
    when nothing else is sent.
    """

    share: float = 0.75
    per_second: float = 1.0
    most: float = 50.0
    _left: float = 50.0
    _at: float = float("-inf")

    def first_try(self) -> None:
        """A row is sent for the first time."""
        self._left = min(self.most, self._left + self.share)

    def take(self, now: float) -> float:
        """Seconds to wait before a retry; 0 if it may go now, in which case its token is taken."""
        if self._at > float("-inf"):
            self._left = min(self.most, self._left + (now - self._at) * self.per_second)
        self._at = now
        if self._left >= 1.0 - _ROUNDING:
            self._left -= 1.0
            return 0.0
        return (1.0 - self._left) / self.per_second


@dataclass(slots=True)
class LatencyWindow:
    """Quantiles of the latest `size` latencies, in seconds."""

    size: int = 2000
    _latest: deque[float] = field(default_factory=deque)
    _sorted: list[float] = field(default_factory=list)

    def add(self, latency: float) -> None:
        """Adds one, and drops the oldest when there are `size` of them."""
        if len(self._latest) == self.size:
            oldest = self._latest.popleft()
            del self._sorted[_index_of(self._sorted, oldest)]
        self._latest.append(latency)
        insort(self._sorted, latency)

    def quantile(self, share: float) -> float | None:
        """The latency that this share of calls stays below; None before the first."""
        if not self._sorted:
            return None
        return self._sorted[min(len(self._sorted) - 1, int(share * len(self._sorted)))]

    def newest(self, count: int) -> list[float]:
        """The latest `count` latencies, newest first."""
        return list(islice(reversed(self._latest), count))

    def __len__(self) -> int:
        return len(self._sorted)


def _index_of(values: list[float], value: float) -> int:
    return bisect_left(values, value)
