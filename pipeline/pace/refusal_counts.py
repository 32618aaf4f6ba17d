"""Counts requests and refusals by the time they left, and detects more refusals than usual."""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from dataclasses import dataclass, field

_KEPT = 20_000
"""Timestamps kept: twenty seconds at a thousand requests per second."""


@dataclass(slots=True)
class Traffic:
    """Counts requests by the time they left. Reports from several processes may arrive out of order."""

    sent: int = 0
    _sent: list[float] = field(default_factory=list)
    _refused: list[float] = field(default_factory=list)

    def send(self, at: float) -> None:
        """A request leaves."""
        self.sent += 1
        _put(self._sent, at)

    def refuse(self, left_at: float) -> None:
        """A request that left at `left_at` was refused."""
        _put(self._refused, left_at)

    def until(self, at: float) -> int:
        """How many had left by `at`."""
        return self.sent - len(self._sent) + bisect_right(self._sent, at)

    def refused(self, after: float, until: float) -> int:
        """How many of those that left after `after` and by `until` were refused."""
        return bisect_right(self._refused, until) - bisect_right(self._refused, after)

    def accepted(self, after: float, until: float) -> int:
        """How many of those that left after `after` and by `until` were not refused."""
        return self.until(until) - self.until(after) - self.refused(after, until)

    def rate(self, now: float) -> float:
        """Requests per second sent recently: over the last second, or the last 0.2 s if that is more."""
        if not self._sent:
            return 0.0
        age = max(0.05, now - self._sent[0])
        second = (self.sent - self.until(now - 1.0)) / min(1.0, age)
        return max(second, (self.sent - self.until(now - 0.2)) / 0.2) if age >= 0.2 else second


def _put(times: list[float], at: float) -> None:
    if times and at < times[-1]:
        insort(times, at)
    else:
        times.append(at)
    if len(times) > 2 * _KEPT:
        del times[:_KEPT]


_MOST_DOUBTED, _WEIGHT_DOUBTED = 0.02, 50.0


@dataclass(slots=True)
class Background:
    """The share that is refused however slowly we send: a busy hour, another client's burst.

    Learned at rates so low that our own quota cannot explain a refusal. Old observations fade.
    """

    refused: float = 0.1
    sent: float = 20.0

    @property
    def share(self) -> float:
        """The share, on average."""
        return self.refused / self.sent

    @property
    def sure(self) -> float:
        """A lower bound of the share, by 0.75 standard deviations: a single refusal hardly counts yet."""
        return max(0.0, self.refused - 0.75 * math.sqrt(self.refused)) / self.sent

    def learn(self, sent: int, refused: int, *, most: float, memory: float) -> None:
        """Of `sent` requests, `refused` were refused; a share above `most` is not learned from them."""
        self.sent += sent
        self.refused = min(self.refused + refused, max(self.refused, most * self.sent))
        if self.sent > memory:
            self.refused, self.sent = self.refused * memory / self.sent, memory

    def doubt(self) -> None:
        """A quota may have caused what was learned: 2 % at most is kept, with the weight of 50 observed requests."""
        self.believe(min(self.share, _MOST_DOUBTED), _WEIGHT_DOUBTED)

    def believe(self, share: float, sent: float) -> None:
        """Sets the share, with the weight of `sent` observed requests."""
        self.refused, self.sent = share * sent, sent


_MORE = 0.25
_LEAST_SHARE = 0.003


@dataclass(slots=True)
class Excess:
    """Evidence that more is refused than the background explains: Page's CUSUM (Biometrika 41, 1954).

    Sums the log-likelihood ratio of "a quarter more than the background is refused" to "only the background is". With
    no background, a refusal adds 4.4 and an acceptance subtracts 0.29; the sum never falls below 0. Chance alone
    passes a threshold of h about once in e^h requests.
    """

    value: float = 0.0
    _until: int = 0

    def begin(self, sent: int) -> None:
        """Starts over; only requests after the first `sent` count."""
        self.value, self._until = 0.0, sent

    def refuse(self, number: int, background: float) -> bool:
        """Request `number` was refused; returns whether that begins an episode."""
        usual, more = _shares(background)
        self.value = self.now(number - 1, background)
        begins = self.value <= 0.0
        self.value += math.log(more / usual)
        self._until = max(self._until, number)
        return begins

    def now(self, known: int, background: float) -> float:
        """The evidence, given that all others of the first `known` requests were accepted."""
        usual, more = _shares(background)
        return max(0.0, self.value + max(0, known - self._until) * math.log((1.0 - more) / (1.0 - usual)))


def _shares(background: float) -> tuple[float, float]:
    usual = min(0.6, max(_LEAST_SHARE, background))
    return usual, usual + _MORE * (1.0 - usual)
