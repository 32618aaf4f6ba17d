"""How fast to send: found out where nobody says it, kept to where somebody does."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from itertools import takewhile

FIRST_RATE = 32.0
LEAST_RATE = 0.2

LATE_S = 0.02
"""How late a sleeper may wake without losing its place: a clock's coarseness is no reason to send less."""

_SLOWEST_DOUBLING_S = 0.5
_FASTEST_DOUBLING_S = 0.05
_CAUTION = 0.97
_MEASUREMENT = 10
_ENOUGH = 20
_KEPT_S = 60.0
_KEPT = 20_000


@dataclass(slots=True)
class AdaptiveRate:
    """Requests a second that the quota grants now, found by the answers alone; a clock value goes in everywhere.

    Slow start: the rate doubles every half second, faster when answers come faster. A throttled answer ends it, and
    cuts the rate to just under what was granted over the last second (or the last 20 requests): once per episode,
    for a request that left before the last cut says nothing about the rate since. As soon as 20 that left since are
    known, they alone tell the next cut: a start that is far too high costs a few dozen refusals. Without throttling
    the rate grows by half a percent a second at first, twice as fast every two seconds, as in CUBIC (RFC 9438): flat
    near the limit that is known, steep where the limit must have moved. It grows only on answers, only while the rate
    is what holds requests back, and not while the endpoint fails.

    Why a rate and not a number of calls in flight: Vertex's shared quota counts requests and tokens by time, and a
    bound on calls in flight lets through more of them whenever answers come faster.
    """

    first: float = FIRST_RATE
    rate: float = 0.0
    _slow_start: bool = True
    _next: float = 0.0
    _cut_at: float = float("-inf")
    _grown_at: float = float("-inf")
    _held_back_at: float = float("-inf")
    _sent: deque[float] = field(default_factory=deque)
    _refused: deque[float] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.rate = self.first

    def wait(self, now: float) -> float:
        """Seconds until the next request may leave; 0 when it may now."""
        wait = max(0.0, self._next - now)
        if wait:
            self.held_back(now)
        return wait

    def held_back(self, at: float) -> None:
        """A request that was ready then had to wait for the rate."""
        self._held_back_at = max(self._held_back_at, at)

    def sent(self, now: float) -> None:
        """A request leaves: the next one may follow after its interval, so that no second sees a burst."""
        self._next = max(self._next, now - LATE_S) + 1.0 / self.rate
        self._sent.append(now)
        self._forget(now)

    def answered(self, now: float, left_at: float) -> None:
        """A request that left at `left_at` was answered: room to grow, perhaps."""
        if left_at < self._cut_at:
            return
        since, self._grown_at = now - self._grown_at, now
        if now - self._held_back_at > 1.0:
            return
        step = min(since, 0.25)
        self.rate *= math.exp2(step * self._doublings(now, latency=now - left_at))

    def failed(self, now: float) -> None:
        """The endpoint failed a request: no growth on account of the time until now."""
        self._grown_at = now

    def throttled(self, now: float, left_at: float) -> None:
        """A request that left at `left_at` was refused for want of quota."""
        self._refused.append(left_at)
        if left_at < self._cut_at:
            return
        measured = _between(self._sent, self._cut_at, left_at) >= _ENOUGH
        if not measured and now < self._cut_at + max(0.25, 5.0 / self.rate):
            return
        sent, granted = self._granted(left_at, since=self._cut_at if measured else float("-inf"))
        # A few requests are no measurement: a single 429 among the first says little about the quota.
        self._slow_start = self._slow_start and sent < _MEASUREMENT
        least = self.rate * (0.7 if sent < _MEASUREMENT else 0.125)
        self.rate = max(LEAST_RATE, _CAUTION * min(self.rate, max(granted, least)))
        self._cut_at = self._grown_at = now
        self._next = now + 1.0 / self.rate

    def restart(self, now: float) -> None:
        """Begins anew after an outage, from a fifth of the rate that went through before."""
        self.rate = max(LEAST_RATE, self.rate / 5.0)
        self._slow_start = True
        self._next = self._grown_at = now

    def _doublings(self, now: float, *, latency: float) -> float:
        """How many times a second the rate may double now."""
        if self._slow_start:
            return 1.0 / min(max(latency, _FASTEST_DOUBLING_S), _SLOWEST_DOUBLING_S)
        return min(1.0, 0.005 * math.exp2(min((now - self._cut_at) / 2.0, 30.0)))

    def _granted(self, until: float, since: float) -> tuple[int, float]:
        """Requests that left shortly before `until`, and how many a second of them were not refused.

        Those that left later are still on their way: to count them as granted would hide how many are refused.
        """
        window = max(1.0, _ENOUGH / self.rate)
        start = max(until - window, since, self._sent[0] if self._sent else until)
        sent, refused = _between(self._sent, start, until), _between(self._refused, start, until)
        return sent, (sent - refused) / max(until - start, _FASTEST_DOUBLING_S)

    def _forget(self, now: float) -> None:
        for times in (self._sent, self._refused):
            while times and (times[0] < now - _KEPT_S or len(times) > _KEPT):
                times.popleft()


def _between(times: deque[float], start: float, end: float) -> int:
    """How many of the times are after `start` and not after `end`."""
    return sum(start < at <= end for at in takewhile(lambda at: at > start, reversed(times)))


def first_rate(concurrency: int) -> float:
    """Requests a second to begin with: the calls that may be in flight are all on their way within a second.

    Who allows many expects the quota to grant them; where it does not, the first refusals say so.
    """
    return max(FIRST_RATE, float(concurrency))


@dataclass(slots=True)
class Spacing:
    """A declared rate, kept exactly: at most `per_minute` units in any minute, and no more than its share of a second.

    Units are requests, or tokens: those are estimated before a request leaves and settled when it is answered. It
    is the generic cell rate algorithm without any burst (ITU-T I.371): each request puts the next one off by the
    time that its units take.
    """

    per_minute: float
    late_s: float = 0.0
    """How late a request may leave without putting off the next one."""
    _next: float = float("-inf")

    def wait(self, now: float) -> float:
        """Seconds until the next request may leave."""
        return max(0.0, self._next - now)

    def take(self, now: float, units: float = 1.0) -> None:
        """A request of so many units leaves."""
        self._next = max(self._next, now - self.late_s) + units * 60.0 / self.per_minute

    def change(self, now: float, per_minute: float) -> None:
        """The rate is another from now on: what is left to wait for takes as much longer, or shorter."""
        self._next = now + max(0.0, self._next - now) * self.per_minute / per_minute
        self.per_minute = per_minute

    def settle(self, estimated: float, actual: float) -> None:
        """An answer tells how many units it really were."""
        self._next += (actual - estimated) * 60.0 / self.per_minute


@dataclass(slots=True)
class TokenEstimate:
    """Tokens of a request before it is asked, learned from the run's own answers."""

    _per_byte: float = 0.25
    _answer: float = 200.0
    _seen: float = 0.0

    def of(self, size: int) -> float:
        """Tokens that a request of `size` bytes is likely to take, answer included."""
        return size * self._per_byte + self._answer

    def learn(self, size: int, asked: int, answered: int) -> None:
        """A request of `size` bytes took so many tokens in and out."""
        self._seen = min(self._seen + 1.0, 200.0)
        share = 1.0 / self._seen
        self._per_byte += share * (asked / max(size, 1) - self._per_byte)
        self._answer += share * (answered - self._answer)
