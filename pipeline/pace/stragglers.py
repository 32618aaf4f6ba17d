"""Detects slow calls while they run, by comparing each with the calls that started no later."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from dataclasses import dataclass, field
from operator import attrgetter

LEAST_SEEN = 100
"""Calls that must have started no later than a call before it can count as late: a quantile of fewer is noise."""

_SOON_S = 0.1
_STEP = 1 / 16
"""A call is looked at again after 0.1 s while little is known, then after a sixteenth of its age: at most 6 % late, and
the number of looks grows only with the logarithm of its latency."""


@dataclass(slots=True, eq=False)
class TimedCall:
    """A call: when it started and how long it took; infinite if it was hedged, None while it runs."""

    began: float
    took: float | None = None


@dataclass(slots=True)
class StragglerDetector:
    """Identifies running calls among the slowest `share` of all, as soon as that can be known.

    A call is late when all but `share` of the calls that started no later took no longer than it has run so far; or
    when a call that started after it is late. Younger calls are not evidence: only the fast ones can have ended. This
    matters at the start of a run, when all slow calls of the first wave are still running: judged by the answers seen
    so far, each of them would be late, and the share would go to whichever came first, not to the slowest.

    Hedging the slowest calls, all at the same age, shortens the tail most for a given share of second requests
    (Kaler et al., Optimal Reissue Policies for Reducing Tail Latency, SPAA 2017). A hedged call counts as slower than
    all others, since it is unknown how long it would have taken. The latest `size` calls count.
    """

    share: float
    size: int = 2000
    begun: int = 0
    hedged: int = 0
    _calls: deque[TimedCall] = field(default_factory=deque)
    _running: list[float] = field(default_factory=list)
    """Start times of the calls that still run, sorted."""
    _took: list[float] = field(default_factory=list)
    """Latencies of the calls that have ended, sorted."""
    _late_if_begun: float = -math.inf

    def begin(self, now: float) -> TimedCall:
        """A call starts; the oldest is forgotten when there are `size`. `now` must not decrease."""
        self.begun += 1
        if len(self._calls) == self.size:
            self._forget(self._calls.popleft())
        call = TimedCall(now)
        self._calls.append(call)
        self._running.append(now)
        return call

    def end(self, call: TimedCall, now: float) -> None:
        """The call has ended, in whatever way."""
        if call.took is None:
            self._settle(call, now - call.began)

    def may_hedge(self, call: TimedCall, now: float) -> bool:
        """Whether this running call is late, and one more hedge keeps them below `share` of the calls."""
        return self.hedged + 1 < self.share * self.begun and self._is_late(call, now)

    def hedge(self, call: TimedCall) -> None:
        """The call is hedged."""
        self.hedged += 1
        if call.took is None:
            self._settle(call, math.inf)

    def look_again(self, call: TimedCall, now: float) -> float:
        """Seconds until it is worth asking again whether the call may be hedged."""
        age = now - call.began
        if len(self._took) < LEAST_SEEN:
            return _SOON_S
        # Slightly below the target quantile: at the quantile itself the hedged calls begin, whose latency is unknown.
        usual = self._took[int(max(0.0, 1.0 - 1.25 * self.share) * len(self._took))]
        return max(usual - age if usual < math.inf else 0.0, age * _STEP, _SOON_S * _STEP)

    def _is_late(self, call: TimedCall, now: float) -> bool:
        # 1. A call that started later was late already, or this one outlasted the window (see `_forget`).
        if call.began <= self._late_if_begun or call.took is not None:
            return True
        # 2. Of the calls as old as this one, `slower` ended after a longer time and `running` may still do so.
        as_old = bisect_right(self._calls, call.began, key=attrgetter("began"))
        # `_took` also holds younger calls, but none of them can have taken longer than this one has run.
        slower = len(self._took) - bisect_right(self._took, now - call.began)
        running = bisect_right(self._running, call.began)
        if as_old < LEAST_SEEN or slower + running > self.share * as_old:
            return False
        self._late_if_begun = call.began
        return True

    def _settle(self, call: TimedCall, took: float) -> None:
        call.took = took
        del self._running[bisect_left(self._running, call.began)]
        insort(self._took, took)

    def _forget(self, call: TimedCall) -> None:
        """Drops the oldest call; one that still runs after `size` others started counts as late."""
        if call.took is None:
            self._settle(call, math.inf)
        del self._took[bisect_left(self._took, call.took or 0.0)]
