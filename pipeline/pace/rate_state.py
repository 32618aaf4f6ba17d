"""What an adaptive rate knows: the present rate, its phase and what was seen at it; and how the rate is changed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

from pipeline.pace.background_check import BackgroundCheck
from pipeline.pace.loss_evidence import Evidence, LossVerdict, Stretch, Trial
from pipeline.pace.measured_limit import Limit
from pipeline.pace.rate_trials import Regime
from pipeline.pace.refusal_counts import Background, Excess, Traffic

LEAST_RATE = 0.2
"""Requests per second that the rate never falls below, unless nothing is granted."""

HELD_BACK_S = 1.0
"""For so long after a request had to wait, the rate counts as what limits the requests."""

_START_LEARNS, _CRUISE_LEARNS = 0.6, 0.1
"""The most that refusals during a slow start, and at other times, may raise the background to."""

_LONGEST_STEP_S = 0.25
"""The longest time that one answer lets the rate grow for, however long none came before."""


class Phase(Enum):
    """What the rate is doing now."""

    START = "slow start: no limit is known"
    CRUISE = "just under the limit"
    CLIMB = "above it, until something is refused"
    TRIAL = "at another rate, to see what that changes"
    CHECK = "at a far lower rate, to see whether refusals are still background"
    CLOSED = "nothing is granted"


@dataclass(frozen=True, slots=True)
class RateChange:
    """Why the rate was changed, for the user."""

    at: float
    text: str


@dataclass(slots=True)
class RateState:
    """The present rate in requests per second, and what was seen; `AdaptiveRate` and `BackgroundTrials` share one."""

    rate: float
    phase: Phase = Phase.START
    change: RateChange | None = None
    """Why the rate was cut, or was not, at last."""
    next: float = 0.0
    """When the next request may leave."""
    held_back_at: float = -math.inf
    """When a request last had to wait for the rate."""
    grown_at: float = -math.inf
    """Until when the rate has grown: time before that does not count again."""
    refusals_take: float = 0.05
    """Seconds from a request to its refusal, the longest of late."""
    traffic: Traffic = field(default_factory=Traffic)
    background: Background = field(default_factory=Background)
    excess: Excess = field(default_factory=Excess)
    limit: Limit = field(default_factory=Limit)
    regime: Regime = field(default_factory=Regime)
    evidence: Evidence = field(init=False)
    row: int = 0
    """Refusals in a row, of requests as they left."""
    background_loss: bool = False
    """Whether refusals are believed not to depend on the rate."""
    background_check: BackgroundCheck = field(default_factory=BackgroundCheck)
    _row_until: float = 0.0

    def __post_init__(self) -> None:
        self.evidence = Evidence(self.traffic)

    def set(self, now: float, phase: Phase, rate: float, said: str | None = None) -> None:
        """Another rate, which the next request waits for."""
        self.go_to(now, rate, phase, said)
        self.next = now + 1.0 / self.rate

    def go_to(self, now: float, rate: float, phase: Phase, said: str | None = None) -> None:
        """Another rate and phase; `said` is the reason, for the user. A start of the next request stays as it is."""
        before, self.rate, self.phase = self.rate, max(LEAST_RATE, rate), phase
        if said is not None:
            verb = "cut" if self.rate < before else "raised"
            self.change = RateChange(now, f"{said}: {verb} from {before:.3g} to {self.rate:.3g} a second")
        self.begin(now)

    def begin(self, now: float) -> None:
        """Counts anew: what left earlier says nothing about the present rate."""
        self.regime = Regime(now, self.traffic.sent)
        self.excess.begin(self.traffic.sent)
        self.grown_at = max(self.grown_at, now)

    def count_row(self, left_at: float) -> None:
        """A request that left at `left_at` was refused: one more in a row, unless one in between was accepted."""
        if left_at >= self._row_until:
            accepted = self.traffic.accepted(self._row_until, left_at)
            self.row = self.row + 1 if accepted <= 0 else 1
            self._row_until = left_at

    def known(self, now: float) -> int:
        """How many have left so long ago that a refusal would have come by now."""
        return self.traffic.until(now - self.refusals_take)

    def trial(self, now: float) -> Trial:
        """The present rate, so far."""
        refused = self.regime.refused
        # A refusal that came sooner than most is of a request that is not yet among the known ones.
        return Trial(self.rate, max(self.known(now) - self.regime.first, refused), refused)

    def learn(self, now: float) -> None:
        """What was refused at a low enough rate is the background: a tenth at most, unless a trial showed more.

        In background, only checks tell it: a tenth at most, in bursts that count once, would soon belittle strong
        background.
        """
        if self.background_loss and self.background_check.rate < math.inf:
            return
        _, sent, refused = self.trial(now)
        if sent >= 10 and self.phase is Phase.CRUISE:
            self.evidence.calm(now, Trial(self.rate, sent, min(sent, refused)))
        if sent > 0 and refused < 0.5 * sent:
            # No limit is known during a slow start: many refusals may be background then. Later, they are more
            # likely other clients' climbs, which come in bursts.
            start = self.phase is Phase.START
            counted, most = (refused, _START_LEARNS) if start else (self.regime.clusters, _CRUISE_LEARNS)
            self.background.learn(sent, counted, most=most, memory=max(300.0, 8.0 * self.rate))
            # Good times: what came before them is no longer evidence.
            if sent >= 20 and refused <= 0.02 * sent:
                self.evidence.clear()

    def keep(self, now: float) -> None:
        """What happened at this rate is evidence from now on."""
        sent = self.traffic.until(now) - self.traffic.until(self.regime.at)
        rate = max(LEAST_RATE, min(self.rate, sent / max(now - self.regime.at, 1e-3)))
        self.evidence.add(Stretch(self.regime.at, now, rate, self.rate))

    def verdict(self, now: float, *latest: Trial) -> LossVerdict:
        """What all the evidence, and `latest` with it, says: a quota, or background."""
        return self.evidence.verdict(now, now - self.refusals_take, self.background.share, *latest)

    def grow(self, now: float, doubling_s: float) -> None:
        """Grows for the time since it did last, while the rate is what holds requests back."""
        since, self.grown_at = max(0.0, now - self.grown_at), max(self.grown_at, now)
        if now - self.held_back_at <= HELD_BACK_S:
            grown = self.rate * 2.0 ** (min(since, _LONGEST_STEP_S) / doubling_s)
            # A rate that is not used is not tested: it stays within twice of what was sent.
            self.rate = max(self.rate, min(grown, 2.0 * max(self.traffic.rate(now), 1.0)))
