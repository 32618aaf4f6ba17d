"""Slow start, while no limit is known: ramps up to a first rate, then doubles about once per response time."""

from __future__ import annotations

import math
from dataclasses import dataclass

FIRST_RATE = 32.0
"""Requests per second that every run may begin with."""

_LEAST_KNOWN = 8.0
"""A start is never slower than this, whatever was granted before: finding out costs a refusal or two."""

_RAMP_S = 0.3
_RAMP_DOUBLING_S = 0.1
"""A start ramps from 32 per second to the rate the concurrency suggests, doubling every 0.1 s and within 0.3 s in all:
if the quota is far lower, the first refusals arrive before many requests have left."""

_FASTEST_DOUBLING_S = 0.05
_SLOWEST_DOUBLING_S = 0.5
_REFUSAL_DELAYS = 2.0
"""Slow start doubles about once per response time, within these bounds; and no faster than once in twice the time
that a refusal takes, once there was one."""

_LARGE = 0.25
_SURE = 16
_IN_A_ROW = 4
_UNLIKELY = 1e-4
_MOST = 0.7
"""What ends a slow start: 25 % more refusals than the background among 16 requests; or four refusals in a row (more
with a high background, so that chance causes it once in 10,000); or four refusals that are 70 % of the requests."""


@dataclass(slots=True)
class SlowStart:
    """How fast a start is. `known` is the rate that an earlier start was granted, until it is reached."""

    first: float
    known: float | None = None
    peak: float = 0.0
    """The most requests per second that went through."""
    _ramp: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.known is not None:
            self.known = max(_LEAST_KNOWN, self.known)

    @property
    def target(self) -> float:
        """The rate to ramp up to, in requests per second."""
        return self.known or self.first

    def begin(self, now: float, rate: float) -> None:
        """Starts the ramp from this rate."""
        self._ramp = (now, rate)

    def stop(self) -> None:
        """Something was refused: ends the ramp."""
        self._ramp = None

    def ramp(self, now: float, rate: float) -> float | None:
        """The rate that the ramp has reached; None when there is no ramp."""
        if self._ramp is None:
            return None
        at, start = self._ramp
        doublings = max(math.log2(self.target / start), _RAMP_S / _RAMP_DOUBLING_S) * (now - at) / _RAMP_S
        rate = max(rate, min(self.target, start * 2.0 ** min(doublings, 60.0)))
        if rate >= self.target:
            self._ramp = None
        return rate

    def doubling_s(self, latency: float | None, refusals_take_s: float | None) -> float:
        """Seconds in which the rate doubles, given how long answers take, and refusals (None if there was none)."""
        seconds = min(max((latency or 0.0) - 0.05, _FASTEST_DOUBLING_S), _SLOWEST_DOUBLING_S)
        return max(seconds, _REFUSAL_DELAYS * (refusals_take_s or 0.0))


def is_much(sent: int, refused: int, row: int, background: float) -> bool:
    """Whether enough of `sent` requests were refused, `row` of them consecutively, to end a slow start."""
    if refused < (background + _LARGE * (1.0 - background)) * sent:
        return False
    in_a_row = max(_IN_A_ROW, math.log(_UNLIKELY) / math.log(max(background, 1e-3)))
    return sent >= _SURE or row >= in_a_row or refused >= max(_IN_A_ROW, _MOST * sent)


def first_rate(concurrency: int) -> float:
    """Requests per second to begin with: high enough to fill the concurrency in little over a second.

    A user who allows a high concurrency expects the quota to grant it; if it does not, the first refusals show it.
    """
    return max(FIRST_RATE, float(concurrency))
