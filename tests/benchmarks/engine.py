"""The engine and the policies by themselves: what one row costs on its way through them, with nothing to do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import anyio

from pipeline import Job
from pipeline.data import Ask, Entry, Reply, Request, Row
from pipeline.endpoint.connection import OpenEndpoint
from pipeline.execution.engine import Chunk, EngineCallbacks, in_order, process_chunks
from pipeline.policy import Shutdown
from pipeline.policy.compose import RunLimits, compose, workers_for
from pipeline.totals.counters import Counters
from tests.benchmarks.canned import BODY
from tests.benchmarks.figures import Line
from tests.benchmarks.scale import Scale

CONCURRENCY = 256
_BATCH = 250
_REPLY = Reply(BODY)


@dataclass(frozen=True, slots=True)
class BareRows:
    """A batch without columns."""

    rows: list[Row]
    kept: None = None


def measure(scale: Scale) -> list[Line]:
    """CPU a row, to tasks under a semaphore."""
    rows = scale.of(20_000, 2000)
    ours, plain = _cpu_us(rows, engine), _cpu_us(rows, semaphore)
    return [Line("engine alone: CPU a row, to a semaphore", "us", ours, plain)]


async def answered(_: Request) -> Reply:
    """The endpoint: a turn of the loop."""
    await anyio.lowlevel.checkpoint()
    return _REPLY


async def engine(rows: int) -> None:
    """Rows through both streams, the retries and the queue."""
    counters, stop = Counters(rows=rows), Shutdown()
    bounds = RunLimits(concurrency=CONCURRENCY)
    composed = compose(
        Job(name="bench", user="x"), bounds, [OpenEndpoint("here", 1.0, answered)], [], counters=counters, stop=stop
    )
    chunks = [Chunk(number, number * 1000, 1000) for number in range(rows // 1000)]
    workers = workers_for(CONCURRENCY)
    await process_chunks(in_order(chunks), _hands(composed.ask), workers=workers, stop=stop, grace_s=1.0)


async def semaphore(rows: int) -> None:
    """A task a row, so many at once."""
    slots = asyncio.Semaphore(CONCURRENCY)

    async def one(ordinal: int) -> Reply:
        async with slots:
            return await answered(Request(ordinal, {}))

    await asyncio.gather(*(one(ordinal) for ordinal in range(rows)))


def _hands(ask: Ask) -> EngineCallbacks:
    async def read(chunk: int) -> AsyncGenerator[BareRows, None]:
        for first in range(chunk * 1000, chunk * 1000 + 1000, _BATCH):
            await anyio.lowlevel.checkpoint()
            yield BareRows([Row(ordinal, {}) for ordinal in range(first, first + _BATCH)])

    async def done(_: Chunk) -> set[int]:
        return set()

    async def answer(row: Row) -> Entry:
        return await ask(Request(row.ordinal, {"messages": []}))

    async def record(_ordinal: int, _entry: Entry) -> None:
        pass

    async def seal(_: Chunk) -> None:
        pass

    return EngineCallbacks(read=read, done=done, answer=answer, record=record, seal=seal)


def _cpu_us(rows: int, work: object) -> float:
    before = time.process_time()
    anyio.run(work, rows, backend_options={"use_uvloop": True})  # type: ignore[arg-type] # either of the two above
    return (time.process_time() - before) / rows * 1e6
