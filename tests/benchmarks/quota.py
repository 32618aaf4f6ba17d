"""The adaptive rate against a shared quota that moves, in virtual time: goodput and waste of the real dispatcher."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import anyio
import trio
from trio.testing import MockClock

from pipeline.data import Reply, Request
from pipeline.faults import Interrupted, Throttled
from pipeline.pace import AdaptiveRate, first_rate
from pipeline.policy import Dispatcher, Lane, Limits, Stop
from pipeline.tally import Tally
from tests.benchmarks.figures import Line, Target
from tests.benchmarks.scale import Scale

Capacity = Callable[[float], float]


def steady(_: float) -> float:
    """100 requests a second."""
    return 100.0


def steps(at: float) -> float:
    """100 requests a second, then 200, then 50, a minute each."""
    return 100.0 if at < 60 else 200.0 if at < 120 else 50.0


SCENARIOS: list[tuple[str, Capacity, int, int]] = [
    ("of 100/s", steady, 120, 1),
    ("of 100, 200, 50/s", steps, 180, 1),
    ("of 100, 200, 50/s, three clients", steps, 180, 3),
]
"""A name, the capacity, virtual seconds, clients."""


@dataclass
class Pool:
    """A quota by the second: a bucket that fills at the capacity and holds one second of it."""

    capacity: Capacity
    dice: random.Random
    tokens: float = 0.0
    at: float = 0.0
    granted: Counter[int] = field(default_factory=Counter)
    refused: Counter[int] = field(default_factory=Counter)

    async def ask(self, _: Request) -> Reply:
        """An answer after a log-normal latency of half a second, or a 429 at once."""
        now = anyio.current_time()
        self.tokens = min(self.capacity(now), self.tokens + (now - self.at) * self.capacity(now))
        self.at = now
        if self.tokens < 1:
            self.refused[int(now)] += 1
            await anyio.sleep(0.02)
            raise Throttled("429")
        self.tokens -= 1
        self.granted[int(now)] += 1
        await anyio.sleep(0.5 * self.dice.lognormvariate(0, 0.4))
        return Reply(b"{}")


async def one_client(pool: Pool, seconds: float, concurrency: int) -> None:
    """Asks without end, with no knowledge of the limit."""
    stop, tally = Stop(), Tally()
    lane = Lane("pool", pool.ask, rate=AdaptiveRate(first_rate(concurrency)))
    dispatcher = Dispatcher([lane], Limits(concurrency), stop=stop, tally=tally, give_up_s=1e9)

    async def work(number: int) -> None:
        while not stop.requested:
            try:
                await dispatcher.ask(Request(number, {"messages": []}))
            except Interrupted:
                return

    with anyio.move_on_after(seconds):
        async with anyio.create_task_group() as tasks:
            for number in range(2 * concurrency):
                tasks.start_soon(work, number)


def simulate(capacity: Capacity, seconds: float, *, clients: int = 1, concurrency: int = 256, seed: int = 1) -> Pool:
    """The pool after so many virtual seconds."""
    pool = Pool(capacity, random.Random(seed))

    async def main() -> None:
        pool.at, pool.tokens = anyio.current_time(), capacity(0.0)
        async with anyio.create_task_group() as tasks:
            for _ in range(clients):
                tasks.start_soon(one_client, pool, seconds, concurrency)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    return pool


def figures(pool: Pool, capacity: Capacity, seconds: int) -> Mapping[str, float]:
    """Goodput and waste over all, and how long after each step it took to be back at 90 %."""
    asked = sum(pool.granted.values())
    back = [
        next((s - start for s in range(start, seconds) if pool.granted[s] >= 0.9 * capacity(s + 0.5)), seconds)
        for start in (60, 120)
        if start < seconds
    ]
    return {
        "goodput": asked / sum(capacity(second + 0.5) for second in range(seconds)),
        "waste": sum(pool.refused.values()) / asked,
        "back_s": max(back, default=0),
    }


def measure(scale: Scale) -> list[Line]:
    """What is granted of a limit that nobody names, and what finding it costs."""
    lines = []
    for name, capacity, seconds, clients in SCENARIOS[: 1 if scale.quick else None]:
        found = figures(simulate(capacity, seconds, clients=clients), capacity, seconds)
        lines += [
            Line(f"quota {name}: 429s an accepted request", "of 1", found["waste"], target=Target("<=", 0.05)),
            Line(f"quota {name}: granted of what there was", "of 1", found["goodput"], target=Target(">=", 0.9)),
        ]
    return lines
