"""A few rows that take very long: what they cost the others, in virtual time and so to the second.

The real engine with its bound on open chunks, the real queue, and seals that take half a second.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import anyio
import trio
from trio.testing import MockClock

from pipeline import Job
from pipeline.data import Ask, Entry, Reply, Request, Row
from pipeline.endpoint.connection import OpenEndpoint
from pipeline.execution.engine import Chunk, EngineCallbacks, in_order, open_chunks_for, process_chunks
from pipeline.policy import Shutdown
from pipeline.policy.compose import RunLimits, compose, workers_for
from pipeline.totals.counters import Counters
from tests.benchmarks.canned import CannedLatency
from tests.benchmarks.engine import BareRows
from tests.benchmarks.figures import FigureTarget, Line
from tests.benchmarks.scale import Scale

CHUNK = 1000
ROW_BYTES = 500
LATENCY = CannedLatency(1.0, sigma=0.3, slow=0.01, factor=50.0)
SEAL_S = 0.5


@dataclass(frozen=True, slots=True)
class Slow:
    """What each row takes, drawn once."""

    seconds: list[float]

    async def ask(self, request: Request) -> Reply:
        """An answer when its time has come."""
        await anyio.sleep(self.seconds[request.ordinal])
        return Reply(b"{}")

    def ideal_s(self, places: int) -> float:
        """How long the rows take in their order when no place is ever empty while one is left."""
        ends = [0.0] * places
        for seconds in self.seconds:
            heapq.heapreplace(ends, ends[0] + seconds)
        return max(ends)


def measure(scale: Scale) -> list[Line]:
    """One row in a hundred takes fifty times as long."""
    return [_at(64, scale.of(10_000, 4000)), *([] if scale.quick else [_at(1000, scale.of(40_000, 0))])]


def _at(concurrency: int, rows: int) -> Line:
    dice = random.Random(1)
    slow = Slow([LATENCY.draw(dice) for _ in range(rows)])
    ours, ideal = took(slow, concurrency), slow.ideal_s(concurrency)
    target = FigureTarget("<=", 1.1, of_ratio=True)
    return Line(f"tail: 1 % of rows 50 times slower, {concurrency} in flight, to the ideal", "s", ours, ideal, target)


def took(slow: Slow, concurrency: int) -> float:
    """How long the engine takes, in virtual seconds."""

    async def main() -> float:
        counters, stop, bounds = Counters(), Shutdown(), RunLimits(concurrency=concurrency)
        endpoint = [OpenEndpoint("here", 1.0, slow.ask)]
        composed = compose(Job(name="bench", user="x"), bounds, endpoint, [], counters=counters, stop=stop)
        chunks = [Chunk(number, number * CHUNK, CHUNK) for number in range(len(slow.seconds) // CHUNK)]
        began = anyio.current_time()
        await process_chunks(
            in_order(chunks),
            _hands(composed.ask),
            workers=workers_for(concurrency),
            stop=stop,
            grace_s=1.0,
            open_chunks=open_chunks_for(concurrency, CHUNK, ROW_BYTES),
        )
        return float(anyio.current_time() - began)

    return trio.run(main, clock=MockClock(autojump_threshold=0))


def _hands(ask: Ask) -> EngineCallbacks:
    async def read(chunk: int) -> AsyncGenerator[BareRows, None]:
        await anyio.lowlevel.checkpoint()
        yield BareRows([Row(ordinal, {}) for ordinal in range(chunk * CHUNK, (chunk + 1) * CHUNK)])

    async def done(_: Chunk) -> set[int]:
        return set()

    async def answer(row: Row) -> Entry:
        return await ask(Request(row.ordinal, {"messages": []}))

    async def record(_ordinal: int, _entry: Entry) -> None:
        pass

    async def seal(_: Chunk) -> None:
        await anyio.sleep(SEAL_S)

    return EngineCallbacks(read=read, done=done, answer=answer, record=record, seal=seal)
