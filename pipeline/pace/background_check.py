"""Whether refusals taken for background do not depend on the rate: a far lower rate must show as many."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.pace.loss_evidence import Trial

_GROWN = 2.5
"""The check comes when the rate has grown by so much since the last one. Clients that share a quota cause refusals of
each other's requests, which look like background to each of them; one that is wrong about it grows, since it no longer
heeds refusals, until half of its rate is a large share of the quota. Then the check shows that it was wrong."""

_SHARE, _OF_CHECKED = 0.5, 0.75
"""The rate of the check: half of the present one, and three quarters at most of the one that was last checked."""

_BURST = 5
_LEAST_REQUESTS, _LEAST_BURSTS = 15, 3
_MOST_REFUSED = 0.7
_LONGEST_S = 12.0

_IS_BACKGROUND, _NO_BACKGROUND = 3.5, -3.0
"""Log-likelihood ratios that end a check: odds of 33 to 1 for background, and of 20 to 1 against it."""

_QUIET = 0.015
_SHARES = (0.042, 0.071, 0.111, 0.146)
"""Bursts in each request: far below a quota, and in background that refuses 5, 10, 20 and 35 % of the requests."""


@dataclass(slots=True)
class BackgroundCheck:
    """A check of the belief in background: when it is due, and how it ends. Rates are requests per second."""

    rate: float = math.inf
    """The rate at which background was last found; infinite while there is nothing to check."""
    back: float = 0.0
    """The rate from before the check."""
    _bursts: int = 0
    _last: int = 0

    def is_due(self, rate: float) -> bool:
        """Whether the rate has grown so much that the belief must be checked again."""
        return rate > _GROWN * self.rate

    def begin(self, rate: float, sending: float, number: int) -> float:
        """A check begins after request `number`; returns its rate. `sending` is what was sent lately."""
        self.back, self._bursts, self._last = rate, 0, number - _BURST
        return min(_SHARE * min(rate, sending), _OF_CHECKED * self.rate)

    def refuse(self, number: int) -> None:
        """Request `number` was refused. Refusals that are close together count once: other clients' are in bursts."""
        if number - self._last >= _BURST:
            self._bursts, self._last = self._bursts + 1, number

    def is_background(self, trial: Trial, lasted: float) -> bool | None:
        """Whether it is still background; None while that cannot be told. `lasted` is in seconds."""
        odds = _odds(trial.sent, self._bursts)
        if odds > _IS_BACKGROUND and self._bursts >= _LEAST_BURSTS and trial.sent >= _LEAST_REQUESTS:
            return True
        nothing_granted = trial.sent >= 8 and trial.refused > _MOST_REFUSED * trial.sent
        too_long = lasted > (_LONGEST_S if odds < 0 else 2.0 * _LONGEST_S)
        return False if odds < _NO_BACKGROUND or nothing_granted or too_long else None


def _odds(sent: int, bursts: int) -> float:
    """The log-likelihood ratio of background, as strong as any of `_SHARES` with equal odds, to none."""
    quiet = max(0, sent - bursts)
    ratios = [bursts * math.log(one / _QUIET) + quiet * math.log((1.0 - one) / (1.0 - _QUIET)) for one in _SHARES]
    most = max(ratios)
    return most + math.log(sum(math.exp(ratio - most) for ratio in ratios) / len(ratios))
