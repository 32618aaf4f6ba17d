"""Which calls are late: told while they still run, from how long those took that began no later."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from dataclasses import dataclass, field
from operator import attrgetter

LEAST_SEEN = 100
"""The calls that must have begun no later than a call before it can be late."""

_SOON_S = 0.1
_STEP = 1 / 16


@dataclass(slots=True, eq=False)
class Call:
    """One call: when it began, and how long it took; infinitely long when it was hedged, None while it runs."""

    began: float
    took: float | None = None


@dataclass(slots=True)
class StragglerDetector:
    """Says of running calls that they are among the slowest `share` of all, as soon as that can be known.

    A call is late when all but `share` of the calls that began no later took no longer than it has run; and when a
    call is late that began after it. Younger calls are no witnesses: of those, only the quick can have ended. Nothing
    else would do at the start of a run, whose first wave has all its slow calls before it: judged by the answers
    seen so far, each of them would be late, and the share would be spent on whichever came first, not on the slowest.

    Hedging the slowest calls, all at the same age, is what shortens the tail most for a given share of second requests
    (Kaler et al., Optimal Reissue Policies for Reducing Tail Latency, SPAA 2017). A call that was hedged counts as
    slower than all others, since how long it would have taken is not known. The latest `size` calls count.
    """

    share: float
    size: int = 2000
    begun: int = 0
    hedged: int = 0
    _calls: deque[Call] = field(default_factory=deque)
    _running: list[float] = field(default_factory=list)
    """When those began that still run, in order."""
    _took: list[float] = field(default_factory=list)
    """How long the others took, in order."""
    _late_if_begun: float = -math.inf

    def begin(self, now: float) -> Call:
        """One more call; the oldest is forgotten when there are `size` of them. `now` never goes back."""
        self.begun += 1
        if len(self._calls) == self.size:
            self._forget(self._calls.popleft())
        call = Call(now)
        self._calls.append(call)
        self._running.append(now)
        return call

    def end(self, call: Call, now: float) -> None:
        """It is over, one way or another."""
        if call.took is None:
            self._settle(call, now - call.began)

    def may_hedge(self, call: Call, now: float) -> bool:
        """Whether this call, which still runs, is late, and one more hedge leaves them below `share` of the calls."""
        return self.hedged + 1 < self.share * self.begun and self._is_late(call, now)

    def hedge(self, call: Call) -> None:
        """It is hedged."""
        self.hedged += 1
        if call.took is None:
            self._settle(call, math.inf)

    def look_again(self, call: Call, now: float) -> float:
        """Seconds until it is worth asking whether the call may be hedged."""
        age = now - call.began
        if len(self._took) < LEAST_SEEN:
            return _SOON_S
        # A little below the quantile that is looked for: where the hedged ones begin, no latency is known.
        usual = self._took[int(max(0.0, 1.0 - 1.25 * self.share) * len(self._took))]
        return max(usual - age if usual < math.inf else 0.0, age * _STEP, _SOON_S * _STEP)

    def _is_late(self, call: Call, now: float) -> bool:
        if call.began <= self._late_if_begun or call.took is not None:
            return True
        as_old = bisect_right(self._calls, call.began, key=attrgetter("began"))
        slower = len(self._took) - bisect_right(self._took, now - call.began)
        running = bisect_right(self._running, call.began)
        if as_old < LEAST_SEEN or slower + running > self.share * as_old:
            return False
        self._late_if_begun = call.began
        return True

    def _settle(self, call: Call, took: float) -> None:
        call.took = took
        del self._running[bisect_left(self._running, call.began)]
        insort(self._took, took)

    def _forget(self, call: Call) -> None:
        """A call that outlasts so many others is late, whatever became of them."""
        if call.took is None:
            self._settle(call, math.inf)
        del self._took[bisect_left(self._took, call.took or 0.0)]
