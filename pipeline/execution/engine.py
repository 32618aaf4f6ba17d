"""The engine: rows travel between two bounded streams, in one task group, to one graceful stop.

It knows neither Parquet nor HTTP nor SQLite: reading, answering, recording and sealing are given to it as functions.
Rows go through the first stream to the workers; a full stream is the back-pressure. A chunk whose rows are all
recorded goes through the second to the sealer. Ends travel by closing.
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
"""How many chunks are worked on at once, at least: a straggler in the oldest holds up no more than these."""

OPEN_BYTES = 64 << 20
"""What more chunks than those may hold of the input."""

FULL_CHUNKS = 1 / 8
"""The share of them that may be full, and not sealed yet, before no other is opened: one at least. Rows that would be
answered faster than they can be sealed wait in the input, not in memory."""

ROWS_PASSING = 40
"""Rows for each call in flight that may pass a straggler: as many as are done while a row takes 50 times the usual."""


ROWS_AHEAD = 256
"""Rows that wait for a worker, at most: enough for all to go on while the next ones are read."""


class Batch(Protocol):
    """Consecutive rows, and the columns of theirs that go to the output."""

    @property
    def rows(self) -> Sequence[Row]:
        """The rows, in order."""

    @property
    def kept(self) -> Any:
        """The kept columns, row by row."""


@dataclass(slots=True)
class Chunk:
    """Consecutive rows that are sealed together. `missing` counts those not recorded yet."""

    index: int
    first: int
    rows: int
    kept: list[Any] = field(default_factory=list)
    missing: int = -1

    def __post_init__(self) -> None:
        self.missing = self.rows


@dataclass(frozen=True, slots=True)
class EngineCallbacks:
    """What the engine is given to work with.

    `read` yields the rows of a chunk in order; `done` tells which of them have an entry already. `answer` makes an
    entry of a row, or raises `Halt`; `record` hands the entry over, and `seal` makes a finished chunk durable.
    """

    read: Callable[[int], AsyncGenerator[Batch, None]]
    done: Callable[[Chunk], Awaitable[set[int]]]
    answer: Callable[[Row], Awaitable[Entry]]
    record: Callable[[int, Entry], Awaitable[None]]
    seal: Callable[[Chunk], Awaitable[None]]
    rows_ahead: int = ROWS_AHEAD
    """How many rows may wait for a worker: fewer where they are large."""


NextChunk = Callable[[], Awaitable[Chunk | None]]
"""Gives the chunk to open next; None when there are no more. Asked once there is room for one."""


def in_order(chunks: Iterable[Chunk]) -> NextChunk:
    """Gives these chunks, one after the other."""
    left = iter(chunks)

    async def take() -> Chunk | None:
        return next(left, None)

    return take


def open_chunks_for(concurrency: int, chunk_rows: int, row_bytes: float) -> int:
    """How many chunks are worked on at once, so that a few very slow rows leave no call unused."""
    wanted = 1 + math.ceil(ROWS_PASSING * concurrency / chunk_rows)
    return max(OPEN_CHUNKS, min(wanted, int(OPEN_BYTES / (chunk_rows * max(row_bytes, 1.0)))))


async def process_chunks(
    take: NextChunk,
    hands: EngineCallbacks,
    *,
    workers: int,
    stop: Shutdown,
    grace_s: float,
    open_chunks: int = OPEN_CHUNKS,
) -> None:
    """Takes every row of the chunks given to a recorded entry, and every chunk to its seal.

    Ends when all is done, or soon after `stop` was requested: no new row is taken, rows that are being answered
    have `grace_s` seconds to finish, whole chunks are sealed. A `Halt` raised by the hands requests the stop; any
    other exception is a bug and leaves here, after everything was cancelled.
    """
    await _Engine(hands, stop, open_chunks).work(take, workers, grace_s)


_Taken = tuple[Chunk, Row]


class _Engine:
    def __init__(self, hands: EngineCallbacks, stop: Shutdown, open_chunks: int) -> None:
        self._hands = hands
        self._stop = stop
        self._open_chunks = open_chunks
        self._slots = anyio.Semaphore(open_chunks)
        self._most_full = max(1, int(FULL_CHUNKS * open_chunks))
        self._full_chunks = 0
        self._sealed = anyio.Event()
        self._working = anyio.CancelScope()
        self._feeding = anyio.CancelScope()
        self._watching = anyio.CancelScope()
        self._full: MemoryObjectSendStream[Chunk]

    async def work(self, take: NextChunk, workers: int, grace_s: float) -> None:
        send_rows, rows = anyio.create_memory_object_stream[_Taken](min(workers, self._hands.rows_ahead))
        self._full, full = anyio.create_memory_object_stream[Chunk](self._open_chunks)
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
        """Once the end was asked for: no new row at once, and no row at all when the grace period is over."""
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
        await self._slots.acquire()
        while self._full_chunks >= self._most_full:
            await self._sealed.wait()

    async def _feed_chunk(self, chunk: Chunk, rows: MemoryObjectSendStream[_Taken]) -> None:
        done = await self._hands.done(chunk)
        async with aclosing(self._hands.read(chunk.index)) as batches:
            async for batch in batches:
                chunk.kept.append(batch.kept)
                for row in batch.rows:
                    if row.ordinal in done:
                        self._settle(chunk)
                    else:
                        await _send(rows, (chunk, row))

    async def _work(self, rows: MemoryObjectReceiveStream[_Taken]) -> None:
        while await self._work_on_one(rows):
            pass  # in a call of its own, or a worker that waits would hold its last row and reply

    async def _work_on_one(self, rows: MemoryObjectReceiveStream[_Taken]) -> bool:
        """Takes a row to its recorded entry; whether there was one."""
        taken = await _next(rows)
        if taken is None:
            return False
        chunk, row = taken
        if self._stop.requested:
            return True
        try:
            await self._hands.record(row.ordinal, await self._hands.answer(row))
        except Halt as fault:
            self._halt(fault)
        else:
            self._settle(chunk)
        return True

    def _settle(self, chunk: Chunk) -> None:
        chunk.missing -= 1
        if chunk.missing == 0:
            self._full_chunks += 1
            self._full.send_nowait(chunk)

    async def _seal_all(self, full: MemoryObjectReceiveStream[Chunk]) -> None:
        with full:
            async for chunk in full:
                if isinstance(self._stop.reason, Broken):
                    continue
                try:
                    await self._hands.seal(chunk)
                except Halt as fault:
                    self._halt(fault)
                else:
                    chunk.kept.clear()  # whoever lists the chunks of a run need not hold its input
                    self._slots.release()
                    self._full_chunks -= 1
                    self._sealed.set()
                    self._sealed = anyio.Event()

    def _halt(self, fault: Fault) -> None:
        self._stop.request(fault)
        if isinstance(fault, Broken):
            # Nothing that is answered now could be kept.
            self._working.cancel()


async def _next(rows: MemoryObjectReceiveStream[_Taken]) -> _Taken | None:
    """The next row; None after the last. As with `_send`: `receive` alone goes round the event loop for each row."""
    try:
        try:
            return rows.receive_nowait()
        except anyio.WouldBlock:
            return await rows.receive()
    except anyio.EndOfStream:
        return None


async def _send(rows: MemoryObjectSendStream[_Taken], taken: _Taken) -> None:
    """Hands a row to whoever waits for one; waits itself only when nobody does.

    `send` alone goes round the event loop for each row, which at a thousand calls in flight starves the workers.
    """
    try:
        rows.send_nowait(taken)
    except anyio.WouldBlock:
        await rows.send(taken)
