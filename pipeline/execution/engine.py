"""The engine: moves rows between two bounded streams, in one task group, and stops gracefully.

It knows nothing of Parquet, HTTP or SQLite: reading, answering, recording and sealing are passed in as functions.
Rows go through the first stream to the workers; a full stream is the back-pressure. A chunk whose rows are all
recorded goes through the second stream to the sealer. The end of the input propagates by closing the streams.
docs/stopping.md describes how a run stops.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from pipeline.data import Entry, Row
from pipeline.faults import Broken, Fault, Halt
from pipeline.policy.shutdown import Shutdown

OPEN_CHUNKS = 8
"""The least number of open chunks: a straggler in the oldest one blocks nothing until the others are done."""

OPEN_BYTES = 64 << 20
"""Bytes of input that open chunks may hold if there are more than `OPEN_CHUNKS`."""

FULL_CHUNKS = 1 / 8
"""The share of open chunks (at least one) that may be full and not yet sealed before another is opened: rows that are
answered faster than they can be sealed wait in the input, not in memory."""

ROWS_PASSING = 40
"""Rows per call in flight that may overtake a straggler: as many as are done while it takes 50 times the usual."""

ROWS_AHEAD = 256
"""The most rows that wait for a worker: enough to keep the workers busy while the next ones are read."""


class RowBatch(Protocol):
    """Consecutive rows, and those of their columns that are copied to the output."""

    @property
    def rows(self) -> Sequence[Row]:
        """The rows, in order."""

    @property
    def kept(self) -> Any:
        """The kept columns, row by row."""


@dataclass(slots=True)
class Chunk:
    """Consecutive rows that are sealed together. `missing` counts those not yet recorded."""

    index: int
    first: int
    rows: int
    kept: list[Any] = field(default_factory=list)
    missing: int = -1

    def __post_init__(self) -> None:
        self.missing = self.rows


@dataclass(frozen=True, slots=True)
class EngineCallbacks:
    """The functions that the engine works with.

    `read` yields the rows of a chunk in order; `done` returns the ordinals that already have an entry. `answer` turns
    a row into an entry, or raises `Halt`; `record` stores the entry, and `seal` makes a finished chunk durable.
    """

    read: Callable[[int], AsyncGenerator[RowBatch, None]]
    done: Callable[[Chunk], Awaitable[set[int]]]
    answer: Callable[[Row], Awaitable[Entry]]
    record: Callable[[int, Entry], Awaitable[None]]
    seal: Callable[[Chunk], Awaitable[None]]
    rows_ahead: int = ROWS_AHEAD
    """The most rows that may wait for a worker: fewer if they are large."""


NextChunk = Callable[[], Awaitable[Chunk | None]]
"""Returns the next chunk to open; None if there are no more. Called once there is room for one."""


def in_order(chunks: Iterable[Chunk]) -> NextChunk:
    """Yields these chunks, one after the other."""
    left = iter(chunks)

    async def take() -> Chunk | None:
        return next(left, None)

    return take


def open_chunks_for(concurrency: int, chunk_rows: int, row_bytes: float) -> int:
    """How many chunks to work on at once, so that a few very slow rows leave no call slot unused."""
    wanted = 1 + math.ceil(ROWS_PASSING * concurrency / chunk_rows)
    return max(OPEN_CHUNKS, min(wanted, int(OPEN_BYTES / (chunk_rows * max(row_bytes, 1.0)))))


async def process_chunks(
    take: NextChunk,
    callbacks: EngineCallbacks,
    *,
    workers: int,
    stop: Shutdown,
    grace_s: float,
    open_chunks: int = OPEN_CHUNKS,
) -> None:
    """Gets an entry recorded for every row of the given chunks, and seals every chunk.

    Returns when all is done, or soon after `stop` was requested: no new row is taken, rows being answered have
    `grace_s` seconds to finish, and complete chunks are sealed. A `Halt` raised by a callback requests the stop; any
    other exception is a bug and propagates, after everything was cancelled.
    """
    await _Engine(callbacks, stop, open_chunks).work(take, workers, grace_s)


_Taken = tuple[Chunk, Row]


class _Engine:
    def __init__(self, callbacks: EngineCallbacks, stop: Shutdown, open_chunks: int) -> None:
        self._callbacks = callbacks
        self._stop = stop
        self._open_chunks = open_chunks
        self._slots = anyio.Semaphore(open_chunks)
        self._most_full = max(1, int(FULL_CHUNKS * open_chunks))
        self._full_chunks = 0
        self._sealed = anyio.Event()
        # One scope per step of the stop: first the feeder, later the workers; the watcher itself when all is done.
        self._working = anyio.CancelScope()
        self._feeding = anyio.CancelScope()
        self._watching = anyio.CancelScope()
        self._full: MemoryObjectSendStream[Chunk]

    async def work(self, take: NextChunk, workers: int, grace_s: float) -> None:
        send_rows, rows = anyio.create_memory_object_stream[_Taken](min(workers, self._callbacks.rows_ahead))
        self._full, full = anyio.create_memory_object_stream[Chunk](self._open_chunks)
        # The sealer stands outside the scope of the workers: when they are cut off, complete chunks are still sealed.
        async with anyio.create_task_group() as around:
            around.start_soon(self._seal_all, full)
            around.start_soon(self._watch, grace_s)
            with self._working, rows, self._full:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._feed, take, send_rows)
                    for _ in range(workers):
                        tasks.start_soon(self._work, rows)
            self._watching.cancel()

    async def _watch(self, grace_s: float) -> None:
        """After the stop was requested: cancels the feeder at once, and the workers when the drain timeout is over."""
        with self._watching:
            await self._stop.wait()
            self._feeding.cancel()
            await anyio.sleep(grace_s)
            self._working.cancel()

    async def _feed(self, take: NextChunk, rows: MemoryObjectSendStream[_Taken]) -> None:
        with self._feeding, rows:
            await self._room()
            while (chunk := await take()) is not None:
                try:
                    await self._feed_chunk(chunk, rows)
                except Halt as fault:
                    self._halt(fault)
                    return
                await self._room()

    async def _room(self) -> None:
        """Returns when another chunk may be opened."""
        # 1. A bound on open chunks: they hold kept columns in memory, and entries in the journal.
        await self._slots.acquire()
        # 2. A bound on those that wait for the sealer, which may be slower than the answers.
        while self._full_chunks >= self._most_full:
            await self._sealed.wait()

    async def _feed_chunk(self, chunk: Chunk, rows: MemoryObjectSendStream[_Taken]) -> None:
        done = await self._callbacks.done(chunk)
        async with aclosing(self._callbacks.read(chunk.index)) as batches:
            async for batch in batches:
                chunk.kept.append(batch.kept)
                for row in batch.rows:
                    if row.ordinal in done:
                        self._settle(chunk)
                    else:
                        await _send(rows, (chunk, row))

    async def _work(self, rows: MemoryObjectReceiveStream[_Taken]) -> None:
        while await self._work_on_one(rows):
            pass  # in a call of its own: otherwise a waiting worker would keep its last row and reply alive

    async def _work_on_one(self, rows: MemoryObjectReceiveStream[_Taken]) -> bool:
        """Gets an entry recorded for the next row; False if there was none."""
        taken = await _next(rows)
        if taken is None:
            return False
        chunk, row = taken
        if self._stop.requested:  # drain the stream without asking: the rows stay for the next start
            return True
        try:
            await self._callbacks.record(row.ordinal, await self._callbacks.answer(row))
        except Halt as fault:
            self._halt(fault)
        else:
            self._settle(chunk)
        return True

    def _settle(self, chunk: Chunk) -> None:
        chunk.missing -= 1
        if chunk.missing == 0:
            self._full_chunks += 1
            self._full.send_nowait(chunk)  # never blocks: the stream has room for all open chunks

    async def _seal_all(self, full: MemoryObjectReceiveStream[Chunk]) -> None:
        with full:
            async for chunk in full:
                if isinstance(self._stop.reason, Broken):
                    continue  # the disk or the journal failed: sealing would fail too
                try:
                    await self._callbacks.seal(chunk)
                except Halt as fault:
                    self._halt(fault)
                else:
                    chunk.kept.clear()  # the list of chunks outlives them, and must not hold the input
                    self._slots.release()
                    self._full_chunks -= 1
                    self._sealed.set()
                    self._sealed = anyio.Event()

    def _halt(self, fault: Fault) -> None:
        self._stop.request(fault)
        if isinstance(fault, Broken):
            # Answers could no longer be kept: paying for more would be a waste.
            self._working.cancel()


async def _next(rows: MemoryObjectReceiveStream[_Taken]) -> _Taken | None:
    """The next row; None after the last. `receive` alone costs a round of the event loop per row: see `_send`."""
    try:
        try:
            return rows.receive_nowait()
        except anyio.WouldBlock:
            return await rows.receive()
    except anyio.EndOfStream:
        return None


async def _send(rows: MemoryObjectSendStream[_Taken], taken: _Taken) -> None:
    """Hands a row to a waiting worker or the buffer; waits only if the buffer is full.

    `send` alone costs a round of the event loop per row, which starves the workers at a thousand calls in flight.
    """
    try:
        rows.send_nowait(taken)
    except anyio.WouldBlock:
        await rows.send(taken)
