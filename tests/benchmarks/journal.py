"""The journal by itself: what it costs that every reply is durable."""

from __future__ import annotations

import os
import struct
import tempfile
import time
import zlib
from pathlib import Path

import anyio

from pipeline.data import Reply
from pipeline.storage.codec import encode
from pipeline.storage.journal import TICK_S, Journal
from tests.benchmarks.canned import BODY
from tests.benchmarks.figures import Line
from tests.benchmarks.scale import Scale

BURST = 20
"""Replies that are put at once; with the pause after them, 2,000 a second."""

REPLY = Reply(BODY + b" " * (2048 - len(BODY)))


def measure(scale: Scale) -> list[Line]:
    """CPU a reply of 2 KB, to a log of framed records that is synced every tick, both at 2,000 replies a second."""
    rows = scale.of(4000, 1000)
    with tempfile.TemporaryDirectory() as folder:
        ours = _cpu_us(rows, journalled, Path(folder) / "journal.sqlite")
        plain = _cpu_us(rows, logged, Path(folder) / "log")
    return [Line("journal: CPU a reply, to a framed log", "us", ours, plain)]


async def journalled(rows: int, path: Path) -> None:
    """Through the journal, a transaction a tick."""
    journal = Journal(path)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(journal.keep_writing)
        for ordinal in range(rows):
            await journal.put(ordinal, REPLY)
            if ordinal % BURST == BURST - 1:
                await anyio.sleep(TICK_S)
        await journal.flush()
        tasks.cancel_scope.cancel()
    journal.close()


async def logged(rows: int, path: Path) -> None:
    """A hand-made log: length, checksum, content; one write and one sync a tick."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    pending: list[bytes] = []
    for ordinal in range(rows):
        meta, body = encode(REPLY)
        content = meta + (body or b"")
        pending += [struct.pack("<QII", ordinal, len(content), zlib.crc32(content)), content]
        if ordinal % BURST == BURST - 1:
            os.write(descriptor, b"".join(pending))
            await anyio.to_thread.run_sync(os.fsync, descriptor)
            pending.clear()
            await anyio.sleep(TICK_S)
    os.close(descriptor)


def _cpu_us(rows: int, work: object, path: Path) -> float:
    before = time.process_time()
    anyio.run(work, rows, path, backend_options={"use_uvloop": True})  # type: ignore[arg-type] # either of the two above
    return (time.process_time() - before) / rows * 1e6
