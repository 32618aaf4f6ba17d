"""Servers that grant a quota, in virtual time, and clients that know nothing of it: the real dispatcher."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import anyio
import trio
from trio.testing import MockClock

from pipeline.data import Reply, Request
from pipeline.faults import Interrupted, Throttled
from pipeline.pace import AdaptiveRate, first_rate
from pipeline.policy import Dispatcher, Limits, LocalUpstream, Shutdown
from pipeline.totals.counters import Counters

_SLICE_S = 0.1

Steps = Sequence[tuple[float, float]]
"""Seconds since the start, and requests a second from then on."""


class Grants(Protocol):
    """Whether a request that arrives now is granted."""

    def __call__(self, now: float) -> bool: ...


@dataclass
class Bucket:
    """A quota by the second: a bucket that fills at a rate that moves, and holds `depth_s` seconds of it.

    With `jitter` the rate is another one every second, by as much at the most; with `tokens` it counts tokens, whose
    number a request is log-normal with that sigma; `loss` of the requests is refused whatever the quota.
    """

    steps: Steps
    depth_s: float
    dice: random.Random
    jitter: float = 0.0
    tokens: float = 0.0
    loss: float = 0.0
    level: float | None = None
    at: float = 0.0
    _factors: dict[int, float] = field(default_factory=dict)

    def rate(self, now: float) -> float:
        """Requests a second now."""
        if self.jitter and int(now) not in self._factors:
            self._factors[int(now)] = self.dice.uniform(1.0 - self.jitter, 1.0 + self.jitter)
        rate = next(rate for begins, rate in reversed(self.steps) if begins <= now)
        return rate * self._factors.get(int(now), 1.0)

    def total(self, seconds: float) -> float:
        """Requests that the quota came to, without what the bucket held at first."""
        slices = int(seconds / _SLICE_S)
        return sum(self.rate((number + 0.5) * _SLICE_S) for number in range(slices)) * _SLICE_S

    def __call__(self, now: float) -> bool:
        if self.loss and self.dice.random() < self.loss:
            return False
        if self.level is None:
            self.level, self.at = self._holds(now), now
        while self.at < now:
            until = min(now, (int(self.at / _SLICE_S + 1e-9) + 1) * _SLICE_S)
            self.level = min(self._holds(self.at), self.level + (until - self.at) * self.rate(self.at))
            self.at = until
        needs = self.dice.lognormvariate(-(self.tokens**2) / 2, self.tokens) if self.tokens else 1.0
        if self.level < min(needs, self._holds(now)):
            return False
        self.level -= needs
        return True

    def _holds(self, now: float) -> float:
        return max(1.0, self.rate(now) * self.depth_s)


@dataclass
class Windows:
    """A quota of so many requests in each window, granted at once if need be."""

    most: int
    seconds: float
    offset: float = 0.0
    granted: Counter[int] = field(default_factory=Counter)

    def __call__(self, now: float) -> bool:
        window = int((now + self.offset) // self.seconds)
        self.granted[window] += 1
        return self.granted[window] <= self.most


@dataclass
class Weather:
    """No quota at all: a share of the requests is refused by chance."""

    share: float
    dice: random.Random

    def __call__(self, now: float) -> bool:  # noqa: ARG002 - as quotas are asked
        return self.dice.random() >= self.share


Latency = Callable[[random.Random], float]


def lognormal(median_s: float, sigma: float) -> Latency:
    """Seconds that an answer takes."""
    return lambda dice: median_s * dice.lognormvariate(0.0, sigma)


@dataclass
class Server:
    """Answers after a latency what was granted, and refuses the rest with a 429 that comes soon."""

    grants: Grants
    dice: random.Random
    latency: Latency = field(default_factory=lambda: lognormal(0.5, 0.4))
    refusals: Latency = field(default_factory=lambda: lognormal(0.02, 0.0))
    granted: int = 0
    refused: int = 0
    ended: float = 0.0

    async def ask(self, _: Request) -> Reply:
        """A reply, or `Throttled` without a hint."""
        if not self.grants(anyio.current_time()):
            self.refused += 1
            await anyio.sleep(self.refusals(self.dice))
            raise Throttled("429")
        self.granted += 1
        await anyio.sleep(self.latency(self.dice))
        self.ended = anyio.current_time()
        return Reply(b"{}")

    @property
    def waste(self) -> float:
        """Refusals for each request that was granted."""
        return self.refused / max(1, self.granted)


@dataclass
class Client:
    """A run as the dispatcher sees it: rows without end, or so many of them. Its rate can be looked at."""

    server: Server
    concurrency: int
    adaptive: bool = True
    rows: int | None = None
    known: float | None = None
    done: int = 0
    rate: AdaptiveRate | None = None

    async def work(self) -> None:
        """Until all rows are done, or for ever."""
        stop = Shutdown()
        self.rate = AdaptiveRate(first_rate(self.concurrency), self.known) if self.adaptive else None
        lane = LocalUpstream("server", self.server.ask, rate=self.rate)
        lanes, limits = [lane], Limits(self.concurrency)
        dispatcher = Dispatcher(lanes, limits, stop=stop, counters=Counters(), give_up_s=1e9, dice=self.server.dice)
        numbers = iter(range(10**9 if self.rows is None else self.rows))

        async def worker() -> None:
            for number in numbers:
                try:
                    await dispatcher.ask(Request(number, {"messages": []}))
                except Interrupted:
                    return
                self.done += 1

        async with anyio.create_task_group() as tasks:
            for _ in range(self.concurrency + min(self.concurrency, 512)):
                tasks.start_soon(worker)


def simulate(clients: Sequence[Client], seconds: float = 1e6) -> None:
    """Lets the clients work, for so many virtual seconds at the most; every time in the same way."""

    async def main() -> None:
        with anyio.move_on_after(seconds):
            async with anyio.create_task_group() as tasks:
                for client in clients:
                    tasks.start_soon(client.work)

    with _in_order():
        trio.run(main, clock=MockClock(autojump_threshold=0))


@contextmanager
def _in_order() -> Iterator[None]:
    """Trio runs the tasks that are ready in an order that it draws, unless it is asked not to, as pytest-trio does."""
    scheduler, name = vars(trio._core._run), "_ALLOW_DETERMINISTIC_SCHEDULING"
    before, scheduler[name] = scheduler[name], True
    scheduler["_r"].seed(0)
    try:
        yield
    finally:
        scheduler[name] = before
