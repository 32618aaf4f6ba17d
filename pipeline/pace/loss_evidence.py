"""Whether slowing down helps: compares refusals at several rates, and decides between a quota and "background".

Many causes of a 429 have nothing to do with how fast we send. Loss says nothing by itself; its response to the rate
does (BBR: Cardwell et al., ACM Queue 14(5), 2016; PCC: Dong et al., NSDI 2015). A quota refuses what exceeds it, so
the share refused falls with the rate. Background is loss that does not depend on our rate: the share stays the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.pace.refusal_counts import Traffic

_KEPT_S = 6.0
_KEPT_REQUESTS = 120
_KEPT = 24
"""Trials are kept for 6 s, or for 120 requests at the current rate if that is longer: a quota may move."""

_CALM_S = 5.0

_ENOUGH = 40
_MORE_FOR_MUCH = 60
"""Requests needed before background is believed; more if it refuses more than a third."""

_BELIEVABLE = 0.6
_AT_LOW_RATES = 0.3
"""The share of requests that must have been sent at 0.7 of the highest rate or less."""


class Trial(NamedTuple):
    """Requests sent at one rate (per second), and how many of them were refused."""

    rate: float
    sent: int
    refused: int


@dataclass(frozen=True, slots=True)
class LossVerdict:
    """What the trials show. `odds` is a log-likelihood ratio: above 0 for background, below 0 for a quota."""

    odds: float
    quota: float
    """Requests per second that the quota grants, if it is one."""
    background_loss: float | None
    """The share refused at any rate; None while that is not certain enough."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A period in which requests left at one rate, and the limit that was abandoned because of what happened in it."""

    began: float
    ended: float
    rate: float
    limit: float

    def trial(self, traffic: Traffic, known_until: float) -> Trial:
        """The outcome of its requests, as far as it can be known."""
        ended = min(self.ended, known_until)
        sent = max(0, traffic.until(ended) - traffic.until(self.began))
        return Trial(self.rate, sent, min(sent, traffic.refused(self.began, ended)))


@dataclass(slots=True)
class Evidence:
    """The stretches since refusals became frequent. Refusals arrive late, so they are counted only when needed."""

    traffic: Traffic
    _stretches: list[Stretch] = field(default_factory=list)
    _calm: Trial | None = None
    _calm_at: float = -math.inf

    def __bool__(self) -> bool:
        return bool(self._stretches)

    def trials(self, known_until: float) -> list[Trial]:
        """The trials, in order."""
        trials = [stretch.trial(self.traffic, known_until) for stretch in self._stretches]
        return [trial for trial in trials if trial.sent]

    @property
    def began(self) -> float:
        """When refusals became frequent."""
        return self._stretches[0].began if self._stretches else math.inf

    def highest(self, otherwise: float) -> float:
        """The highest limit that was abandoned: where to return if it was background."""
        return max((stretch.limit for stretch in self._stretches), default=otherwise)

    def latest(self, otherwise: float) -> float:
        """The limit that was abandoned last."""
        return self._stretches[-1].limit if self._stretches else otherwise

    def add(self, stretch: Stretch) -> None:
        """Adds a stretch."""
        self._stretches.append(stretch)

    def forget(self, now: float, rate: float) -> None:
        """Drops old stretches."""
        since = now - max(_KEPT_S, _KEPT_REQUESTS / rate)
        self._stretches = [one for one in self._stretches[-_KEPT + 1 :] if one.ended > since]

    def clear(self) -> None:
        """Starts over."""
        self._stretches.clear()

    def calm(self, now: float, trial: Trial) -> None:
        """Records how many were refused at the known rate before refusals became frequent."""
        self._calm, self._calm_at = trial, now

    def verdict(self, now: float, known_until: float, background: float, *latest: Trial) -> LossVerdict:
        """The verdict on all trials and the `latest`; neutral while there are none."""
        trials = [*self.trials(known_until), *latest]
        if not trials:
            return LossVerdict(0.0, math.inf, None)
        odds, quota = compared(trials, background)
        surely = odds
        if self._calm is not None and now - self._calm_at < _CALM_S:
            surely, _ = compared(trials, background, self._calm)
        return LossVerdict(odds, quota, _background_loss(trials, surely))


def compared(trials: Sequence[Trial], background: float, calm: Trial | None = None) -> tuple[float, float]:
    """The log-likelihood ratio of background to a quota, and the quota that fits the trials best.

    Each explanation gets its best-fitting parameter (a generalised likelihood ratio). `calm` is from before the
    trials: background of the present strength would have shown then too, whereas a quota may have shrunk since.
    """
    before = [] if calm is None else [calm]
    background_loss = max(sum(_likelihood(trial, share) for trial in [*before, *trials]) for share in _SHARES)
    highest = max(trial.rate for trial in trials)
    best, found = -math.inf, highest
    for step in range(_STEPS):
        quota = highest * 2.0 ** (-step / _STEPS_AN_OCTAVE)
        goes = quota * (1.0 - background)
        likelihood = sum(_likelihood(trial, max(background, 1.0 - goes / trial.rate)) for trial in trials)
        if likelihood > best + 1e-9:
            best, found = likelihood, quota
    if calm is not None:
        best += _likelihood(calm, calm.refused / calm.sent)
    return background_loss - best, found


_SHARES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
_STEPS_AN_OCTAVE = 6.0
_STEPS = 40


def _background_loss(trials: Sequence[Trial], odds: float) -> float | None:
    """The share that background refuses; None unless many requests show it, at low rates as at high ones."""
    fastest = max(trial.rate for trial in trials)
    sent, refused = _sum(trials)
    low_sent, low_refused = _sum([trial for trial in trials if trial.rate <= 0.7 * fastest])
    if refused < 6 or refused > _BELIEVABLE * sent or odds < 2.0 + 5.0 * refused / sent:
        return None
    if sent < (_ENOUGH if refused < 0.35 * sent else _MORE_FOR_MUCH) or low_sent < _AT_LOW_RATES * sent:
        return None
    if sent > low_sent and low_refused / low_sent > 1.5 * (refused - low_refused) / (sent - low_sent) + 0.05:
        return None  # more is refused although we are slower: a quota that has shrunk
    return min(refused / sent, (low_refused + 1) / (low_sent + 1))


def _sum(trials: Sequence[Trial]) -> tuple[int, int]:
    return sum(trial.sent for trial in trials), sum(trial.refused for trial in trials)


def _likelihood(trial: Trial, share: float) -> float:
    share = min(0.98, max(0.005, share))
    return trial.refused * math.log(share) + (trial.sent - trial.refused) * math.log(1.0 - share)
