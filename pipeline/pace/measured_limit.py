"""The rate limit once it is known: how it is measured, how far above it to probe, and how often."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.pace.refusal_counts import Traffic

MARGIN = 0.99
"""Just under the rate that was granted: climbs use up the rest, so that a token bucket does not fill meanwhile."""

_CAREFUL_S, _CAREFUL_DELAYS = 1.5, 8.0
_BOLD_S, _BOLD_DELAYS = 0.5, 2.0
_BOLD_ABOVE = 1.3
_BOLD_BELOW = 0.4
"""A climb doubles the rate in 1.5 s until it is 30 % above a confirmed limit; then in 0.5 s, since the quota must have
grown. While the limit is unconfirmed, it is fast only far below the rate that was last refused. Slow refusals make
climbs slower: whatever leaves before the first refusal arrives is refused too."""

_STALE_ABOVE = 2.5
"""The rate of an earlier start is stale once 2.5 times as much is granted: less may come from a full bucket."""

_SHORT_S = 0.35
_LEAST_REQUESTS = 8
_SHORTEST_S = 1.2
_LONGEST_S = 10.0
_PRICE = 0.037
_CLIMB_S = 0.7
_WASTE = 0.028
"""Between two climbs: 0.35 s while the limit is unconfirmed, at least eight requests; otherwise long enough that the
refusals that end climbs are about 3.7 % of the requests, growing with the square once more than 2.8 % are refused in
all (which happens when other clients share the quota: our climbs cause refusals of their requests too). Tuned by hand
against simulated quotas of 5 to 1,000 per second: not an optimum, and not from any source."""

_GROWN = 1.25
_FAR = 2.5
"""The quota has grown if 25 % more was granted than before, or a climb reached 2.5 times the limit."""

_OVERSHOOT = 0.55
_SAVED_UP = 0.75
"""After a climb that found the quota grown, the rate is the smaller of two shares. Of the climb's highest rate: with a
bucket of a quarter of a second, a climb that doubles in half a second is at 1.9 times the quota when the bucket runs
empty. Of what its last second was granted: a bucket of one second has granted up to twice the quota."""


@dataclass(slots=True)
class Limit:
    """What is known about the limit. All times are when requests left.

    Whenever a request is refused, the token bucket is empty. What was granted between two such moments is therefore
    exactly what flowed in between them, however full the bucket was before: that measures the quota.
    """

    known: bool = False
    sure: bool = False
    """Whether it was confirmed: measured again at about the same rate."""
    climbed_from: float = 0.0
    climbs_at: float = math.inf
    ceiling: float = math.inf
    """The rate that was last refused."""
    remembered: bool = False
    best: float = 0.0
    """The highest confirmed limit, in requests per second."""
    waste: float = 0.0
    """The share of requests refused, over about ten seconds."""
    _used_up: tuple[float, int] | None = None
    _agreeing: int = 0
    _cost: float = 1.0

    def count(self, rate: float, *, refused: bool) -> None:
        """Counts a request that leaves, or one that was refused."""
        weight = 1.0 / max(100.0, 10.0 * rate)
        self.waste = self.waste + weight if refused else self.waste * (1.0 - weight)

    def found(self) -> None:
        """A limit was found. The refusals it took to find it say nothing about those it takes to keep it."""
        if not self.known:
            self.known, self.waste = True, 0.0

    def used_up(self, left_at: float, number: int, rate: float) -> None:
        """Request `number` found the quota exhausted at `rate`."""
        self._used_up, self.ceiling = (left_at, number), rate

    def doubling_s(self, rate: float, refusals_take_s: float) -> float:
        """Seconds in which a climb at this rate may double it."""
        far = self.remembered or rate >= _BOLD_ABOVE * self.climbed_from
        if far if self.sure else rate < _BOLD_BELOW * self.ceiling:
            return max(_BOLD_S, _BOLD_DELAYS * refusals_take_s)
        return max(_CAREFUL_S, _CAREFUL_DELAYS * refusals_take_s)

    def doubt(self) -> None:
        """The limit may have moved: earlier measurements no longer count."""
        self.sure, self._agreeing = False, 0

    def remember(self, rate: float) -> None:
        """It was this rate in an earlier start, up to which climbs are fast."""
        self.sure, self.remembered, self.climbed_from = True, True, rate

    def left_behind(self, rate: float) -> bool:
        """Whether a climb is so far above the remembered rate that it is no longer the limit."""
        return self.remembered and rate >= _STALE_ABOVE * self.climbed_from

    def after_climb(
        self, top: float, traffic: Traffic, now: float, left_at: float, number: int, background: float
    ) -> float:
        """The rate to cruise at after a climb up to `top` that this request ended.

        If far more was granted than before, the quota has grown, by an unknown amount.
        """
        before = self.climbed_from
        granted, since = self._granted(traffic, left_at, number)
        grown = granted is not None and (granted > _GROWN * before or top > _FAR * before)
        if granted is None or (grown and self.sure):
            last_second = traffic.accepted(left_at - 1.0, left_at)
            rate = min(_OVERSHOOT * top, _SAVED_UP * last_second) if top > 1.6 * before else before
            rate = max(rate, MARGIN * (granted or 0.0))
            self.doubt()
        else:
            rate = min(max((MARGIN - min(0.15, 2.0 * background)) * granted, 0.8 * before), top)
            self._agreeing = self._agreeing + 1 if abs(rate / before - 1.0) < 0.25 else 0
            self.sure = self._agreeing >= 2 or (self._agreeing > 0 and since >= 1.0)
            if top >= 1.5 * before:
                rate = max(
                    rate, (1.03 + 0.1 * min(1.0, now - left_at)) * before
                )  # a small bucket was full, and lost what it could not hold
        if self.sure:
            self.best = max(self.best, rate)
        self.remembered = False
        self.used_up(left_at, number, top)
        self.found()
        return rate

    def cost(self, refused: int) -> None:
        """A climb from a confirmed limit ended with this many refusals (averaged over about five climbs)."""
        self._cost += 0.2 * (refused - self._cost)

    def cruise(self, now: float, rate: float, seconds: float) -> None:
        """Schedules the next climb after `seconds`, and at least eight requests."""
        self.climbs_at = now + max(seconds, _LEAST_REQUESTS / rate)

    def cruise_on(
        self, now: float, rate: float, refusals_take_s: float, background_loss: float = 0.0, others: float = 0.0
    ) -> None:
        """Schedules the next climb when its refusals are affordable; soon, while the limit is unconfirmed.

        `background_loss` is the share refused at any rate, and `others` the share that may be due to other clients: if
        a rate below the limit is refused now and then, others climb too, and each pays for the others' climbs.
        """
        short = _SHORT_S + 2.0 * refusals_take_s
        if not self.sure:
            self.cruise(now, rate, short)
            return
        affordable = self._cost / (_PRICE * rate) - _CLIMB_S
        factor = max(1.0, (self.waste - background_loss) / _WASTE) ** 2
        factor *= 1.0 + min(2.0, 40.0 * max(0.0, others - 0.012))
        self.cruise(now, rate, min(_LONGEST_S, factor * max(_SHORTEST_S + 4.0 * refusals_take_s, affordable)))

    def _granted(self, traffic: Traffic, left_at: float, number: int) -> tuple[float | None, float]:
        """Requests per second granted since the quota was last exhausted, and for how long; None if too short."""
        if self._used_up is None:
            return None, 0.0
        at, first = self._used_up
        since = left_at - at
        if since <= 0.2:
            return None, since
        return (number - first - traffic.refused(at, left_at)) / since, since
