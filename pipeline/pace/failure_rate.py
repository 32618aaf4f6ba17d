"""What the answers so far say about the next: how many tries a row deserves, and when one is late."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass, field
from itertools import islice

UNLIKELY = 1e-6
MOST_ATTEMPTS = 20

BAD_SHARE = 0.05
BAD_ROWS = 5
"""Bad weather begins where so many rows fail their first try, and such a share of all: fewer failures are the rows'."""

_PRIOR = 20.0
_MEMORY = 500.0

_ROUNDING = 1e-9
"""Without it, who has waited exactly as long as was said may be told to wait for less than the clock can show."""


@dataclass(slots=True)
class FailureRate:
    """How often the endpoint fails rows in general: what tells a bad hour from a bad row.

    Only the first try of each row counts, so that one row that always fails weighs no more than any other. Old
    observations fade: the last `_MEMORY` or so count. No row gets more than `most` tries for it.
    """

    most: int = MOST_ATTEMPTS
    _tries: float = 0.0
    _failures: float = 0.0

    def saw(self, *, failed: bool) -> None:
        """One row's first try has ended."""
        fading = 1 - 1 / _MEMORY
        self._tries = self._tries * fading + 1
        self._failures = self._failures * fading + failed

    @property
    def share(self) -> float:
        """The share of first tries that fail now, cautiously low while little was seen."""
        return self._failures / (self._tries + _PRIOR)

    def attempts(self, least: int) -> int:
        """How many tries a row gets: `least`, and in bad weather so many that mere chance hardly uses them all up.

        With 10 % of calls failing, one row in 100,000 would fail five times in a row by chance alone; ten million
        rows would lose a hundred. Where few rows fail, each of them stands out, and `least` bounds its tries.
        """
        if self.share < BAD_SHARE or self._failures < BAD_ROWS:
            return least
        needed = math.ceil(math.log(UNLIKELY) / math.log(min(self.share, 0.9)))
        return max(least, min(needed, self.most))


@dataclass(slots=True)
class RetryBudget:
    """Retries as a bounded share of calls, so that a failing endpoint is not asked twice as much as a healthy one.

    A first try earns a part of a retry, and so does time, a little: with nothing else to do, retries go on slowly.
    """

    share: float = 0.75
    per_second: float = 1.0
    most: float = 50.0
    _left: float = 50.0
    _at: float = float("-inf")

    def first_try(self) -> None:
        """A row is asked for the first time."""
        self._left = min(self.most, self._left + self.share)

    def take(self, now: float) -> float:
        """Seconds to wait before a retry; 0 when it may go now, and then it is paid for."""
        if self._at > float("-inf"):
            self._left = min(self.most, self._left + (now - self._at) * self.per_second)
        self._at = now
        if self._left >= 1.0 - _ROUNDING:
            self._left -= 1.0
            return 0.0
        return (1.0 - self._left) / self.per_second


@dataclass(slots=True)
class LatencyWindow:
    """Quantiles of the latest latencies, in seconds."""

    size: int = 2000
    _latest: deque[float] = field(default_factory=deque)
    _sorted: list[float] = field(default_factory=list)

    def add(self, latency: float) -> None:
        """One more; the oldest goes when there are `size` of them."""
        if len(self._latest) == self.size:
            oldest = self._latest.popleft()
            del self._sorted[_index_of(self._sorted, oldest)]
        self._latest.append(latency)
        insort(self._sorted, latency)

    def quantile(self, share: float) -> float | None:
        """The latency that this share of calls stays under; None before there are any."""
        if not self._sorted:
            return None
        return self._sorted[min(len(self._sorted) - 1, int(share * len(self._sorted)))]

    def newest(self, count: int) -> list[float]:
        """The latest so many of them, the newest first."""
        return list(islice(reversed(self._latest), count))

    def __len__(self) -> int:
        return len(self._sorted)


def _index_of(values: list[float], value: float) -> int:
    return bisect_left(values, value)
