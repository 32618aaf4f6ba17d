"""The start, when no limit is known: up to a first rate at once, then twice as fast every time that answers come."""

from __future__ import annotations

import math
from dataclasses import dataclass

FIRST_RATE = 32.0

_LEAST_KNOWN = 8.0
"""A start is never slower, whatever was granted before: to find out costs a refusal or two."""

_RAMP_S = 0.3
_RAMP_DOUBLING_S = 0.1
"""A start doubles from 32 a second to the rate that the concurrency suggests so fast, within 0.3 s at the longest:
where the quota is far lower, the first refusals arrive before many requests are out."""

_FASTEST_DOUBLING_S = 0.05
_SLOWEST_DOUBLING_S = 0.5
_REFUSAL_DELAYS = 2.0
"""Slow start doubles about once in the time that an answer takes, within these bounds; and in twice the time that a
refusal takes, when there was one."""

_LARGE = 0.25
_SURE = 16
_IN_A_ROW = 4
_UNLIKELY = 1e-4
_MOST = 0.7
"""What ends a slow start: a quarter more than the background refused of 16 requests, or four refusals in a row (more
where there is much background, so that chance does it once in 10,000), or nearly as many."""


@dataclass(slots=True)
class SlowStart:
    """How fast a start is. `known` is the rate that an earlier start was granted, while it counts."""

    first: float
    known: float | None = None
    peak: float = 0.0
    """The most a second that went through."""
    _ramp: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.known is not None:
            self.known = max(_LEAST_KNOWN, self.known)

    @property
    def target(self) -> float:
        """The rate to go up to at once."""
        return self.known or self.first

    def begin(self, now: float, rate: float) -> None:
        """From this rate it goes up from now on."""
        self._ramp = (now, rate)

    def stop(self) -> None:
        """Something was refused: it does not go up at once any more."""
        self._ramp = None

    def ramp(self, now: float, rate: float) -> float | None:
        """The rate that it has come to; None when it does not go up at once."""
        if self._ramp is None:
            return None
        at, start = self._ramp
        doublings = max(math.log2(self.target / start), _RAMP_S / _RAMP_DOUBLING_S) * (now - at) / _RAMP_S
        rate = max(rate, min(self.target, start * 2.0 ** min(doublings, 60.0)))
        if rate >= self.target:
            self._ramp = None
        return rate

    def doubling_s(self, latency: float | None, refusals_take_s: float | None) -> float:
        """Seconds in which it doubles, when answers take so long, and refusals, if there was one."""
        seconds = min(max((latency or 0.0) - 0.05, _FASTEST_DOUBLING_S), _SLOWEST_DOUBLING_S)
        return max(seconds, _REFUSAL_DELAYS * (refusals_take_s or 0.0))


def is_much(sent: int, refused: int, row: int, background: float) -> bool:
    """Whether so much of what was sent is refused, `row` of them one after the other, that a slow start is over."""
    if refused < (background + _LARGE * (1.0 - background)) * sent:
        return False
    in_a_row = max(_IN_A_ROW, math.log(_UNLIKELY) / math.log(max(background, 1e-3)))
    return sent >= _SURE or row >= in_a_row or refused >= max(_IN_A_ROW, _MOST * sent)


def first_rate(concurrency: int) -> float:
    """Requests a second to begin with: the calls that may be in flight are all on their way in little over a second.

    Who allows many expects the quota to grant them; where it does not, the first refusals say so.
    """
    return max(FIRST_RATE, float(concurrency))
