"""What hedging does to the slowest rows, in virtual time: the real policies over an endpoint that drags at times."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import anyio
import trio
from trio.testing import MockClock

from pipeline.data import Reply, Request
from pipeline.pace import StragglerDetector
from pipeline.policy import Dispatcher, Limits, LocalUpstream, Shutdown, hedged, watched
from pipeline.totals.counters import Counters
from tests.benchmarks.figures import FigureTarget, Line, percentile
from tests.benchmarks.scale import Scale

ROWS = 20_000
IN_FLIGHT = 1000
SHARE = 0.03
SLOW, TIMES = 0.05, 20.0


@dataclass
class Dragging:
    """Answers after a log-normal latency whose median is a second; every twentieth call takes 20 times as long."""

    sigma: float
    dice: random.Random
    calls: int = 0

    async def ask(self, _: Request) -> Reply:
        """An answer, in its time."""
        self.calls += 1
        slow = TIMES if self.dice.random() < SLOW else 1.0
        await anyio.sleep(slow * self.dice.lognormvariate(0, self.sigma))
        return Reply(b"{}")


def simulate(
    sigma: float, share: float, *, rows: int = ROWS, in_flight: int = IN_FLIGHT, seed: int = 1
) -> tuple[list[float], int]:
    """How long each row took, in order of size, and how many calls it took in all."""
    endpoint, latencies = Dragging(sigma, random.Random(seed)), list[float]()

    async def main() -> None:
        stragglers, counters = StragglerDetector(share, 20 * in_flight), Counters()
        lane = LocalUpstream("here", watched(endpoint.ask, stragglers), rate=None)
        dispatcher = Dispatcher([lane], Limits(in_flight), stop=Shutdown(), counters=counters, give_up_s=1e9)
        ask = hedged(dispatcher.ask, stragglers, counters) if share else dispatcher.ask

        async def work(numbers: Iterator[int]) -> None:
            for number in numbers:
                started = anyio.current_time()
                await ask(Request(number, {}))
                latencies.append(anyio.current_time() - started)

        async with anyio.create_task_group() as tasks:
            numbers = iter(range(rows))
            for _ in range(in_flight):
                tasks.start_soon(work, numbers)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    return sorted(latencies), endpoint.calls


def measure(scale: Scale) -> list[Line]:
    """The slowest rows with hedges and without, and the calls that those add."""
    lines, rows = [], scale.of(ROWS, 4000)
    for sigma in (0.5, 1.0)[: 1 if scale.quick else None]:
        (without, _), (with_hedges, calls) = simulate(sigma, 0.0, rows=rows), simulate(sigma, SHARE, rows=rows)
        where = f"hedging {SHARE:g}, sigma {sigma:g}"
        slowest, hedged_slowest = percentile(without, 0.999), percentile(with_hedges, 0.999)
        lines += [
            Line(f"{where}: p99.9 of a row, to none", "s, virtual", hedged_slowest, slowest),
            Line(f"{where}: more calls", "of 1", calls / rows - 1.0, target=FigureTarget("<=", SHARE)),
        ]
    return lines
