"""What happened since the rate was last set, and when a trial of another rate is over."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from pipeline.pace.loss_evidence import LossVerdict, Trial, compared

_CLUSTER = 8


class Aim(Enum):
    """What a trial is for."""

    FIND = "find a rate at which less is refused"
    CHECK = "check that a lower rate is still no better"


class End(Enum):
    """How a trial ends."""

    QUOTA = "less is refused: this is about the limit"
    LOWER = "much is refused here, too"
    FAR_LOWER = "nearly all is refused here, too"
    BACKGROUND_LOSS = "as much is refused at any rate"
    BACK = "it was no better, or nothing can be told"


@dataclass(slots=True)
class Regime:
    """What happened since the rate was last set: requests that left earlier say nothing about it."""

    at: float = -math.inf
    first: int = 0
    refused: int = 0
    clusters: int = 0
    """Refusals, those within eight requests counted once: background is constant, other clients' climbs are bursts."""
    _cluster: int = -99
    _episode: tuple[float, int, int] | None = None

    def refuse(self, left_at: float, number: int, *, begins: bool) -> None:
        """Request `number` was refused; `begins` says whether that starts an episode of refusals."""
        self.refused += 1
        if begins or self._episode is None:
            self._episode = (left_at, number, self.refused)
        if number - self._cluster >= _CLUSTER:
            self.clusters, self._cluster = self.clusters + 1, number

    def episode(self, left_at: float, number: int) -> tuple[float, int, int]:
        """When the first request refused in this episode left; and how many were sent and refused after it."""
        began, first, refused = self._episode or (left_at, number, self.refused)
        since = self.refused - refused
        return began, max(number - first, since), since

    def begin_counting(self, first: int) -> None:
        """Earlier requests have been learned from: only those after the first `first` count from now on."""
        self.first, self.refused, self._episode = first, 0, None


def ended(
    trial: Trial, verdict: LossVerdict, background: float, *, lasted: float, check: bool, lowest: bool
) -> End | None:
    """How a trial at a lower rate ends; None while it goes on. `lasted` excludes what cannot be known yet."""
    rate, sent, refused = trial
    if sent < 4:
        return None
    if ((sent >= 8 and refused >= 0.6 * sent) or sent == refused) and not lowest:
        return End.LOWER if refused < 0.8 * sent else End.FAR_LOWER
    unlikely = sent >= 10 and refused >= max(0.3, background + 0.2) * sent and verdict.odds < 0
    much = unlikely or (sent >= 40 and refused > max(0.25, background + 0.1) * sent)
    if much and not lowest and not check:
        return End.LOWER
    if sent >= 40 and refused >= max(3, 0.05 * sent) and verdict.odds > -2:
        return End.BACKGROUND_LOSS
    if check and verdict.odds >= -3 and (sent >= 40 or lasted > 4.0):
        return End.BACK
    little = (verdict.odds < -3 and refused < 0.5 * sent) or (lasted > 1.5 and sent >= 8 and refused < 2)
    if little or sent >= 40 or lasted > min(max(2.5, 45 / rate), 6.0):
        return End.QUOTA
    return None


def ended_above(low: Trial, trial: Trial, background: float) -> End | None:
    """How a trial at a higher rate ends: if refusals do not depend on the rate, the share refused is no larger."""
    odds, _ = compared([low, trial], min(0.02, background))
    if trial.sent >= 12 and odds > 1.0 and trial.refused < 0.6 * trial.sent:
        return End.BACKGROUND_LOSS
    return End.BACK if (trial.sent >= 6 and odds < -1.5) or trial.sent >= 25 else None


_CHECK_S = 2.0
_LONGEST_CHECK_S = 30.0
_RECHECK_S = 5.0
_DOUBTFUL_WASTE = 0.06
_DOUBTFUL = 0.03
_FALLEN = 0.35


@dataclass(slots=True)
class Checks:
    """When to try another rate although nothing has changed, to check that the current belief still holds.

    If refusals do not depend on the rate, a lower rate is tried after 2 s, then 4, up to every 30. If a limit is known
    and 6 % are refused, with 3 % at rates that it should grant or after it fell to a third of what it was, a higher
    rate is tried, every 5 s at most.
    """

    at: float = math.inf
    _every: float = _CHECK_S
    _up_at: float = 0.0

    def begin(self, now: float) -> None:
        """Refusals do not depend on the rate: schedules a first check, if none is scheduled."""
        if self.at == math.inf:
            self.at = now + self._every

    def restart(self) -> None:
        """A new belief: its checks begin with the shortest time again."""
        self._every = _CHECK_S

    def later(self, now: float) -> None:
        """The belief held: the next check comes after twice the time."""
        self.at = now + self._every
        self._every = min(_LONGEST_CHECK_S, 2.0 * self._every)

    def doubts(self, now: float, waste: float, background: float, fallen: float) -> bool:
        """Whether so much more is refused than a real limit would cost that a higher rate is worth trying."""
        return now >= self._up_at and waste > _DOUBTFUL_WASTE and (background > _DOUBTFUL or fallen < _FALLEN)

    def tried_up(self, now: float) -> None:
        """A higher rate is being tried."""
        self._up_at = now + _RECHECK_S
