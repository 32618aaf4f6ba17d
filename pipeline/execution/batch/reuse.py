"""The reply cache around batch jobs: known answers are not submitted, and new ones are stored."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path

import anyio
from anyio import to_thread

from pipeline.data import Entry, Reply, Request, Row, Success
from pipeline.execution.context import RunContext
from pipeline.faults import InvalidRow
from pipeline.policy import Keys, LocalBudget, cached
from pipeline.storage.submissions import Submission

_ROWS_AT_ONCE = 256


class _NotKnown(Exception):
    pass


class CacheReader:
    """What a run's cache knows of rows; nothing without a cache."""

    def __init__(self, context: RunContext[LocalBudget]) -> None:
        self._context = context
        reuse, root = context.settings.bounds.reuse, context.job.media_root
        folder = None if root is None else Path(root)
        self._keys = None if reuse is None else Keys(reuse.endpoint, folder, reuse.repeat)
        self._known: dict[int, Reply] = {}

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """A block in which answers can be looked up and stored."""
        cache = self._context.cache
        if cache is None:
            yield
            return
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cache.keep_working, self._context.counters.notices.append)
            try:
                yield
            finally:
                tasks.cancel_scope.cancel()

    async def known(self, rows: Sequence[Row]) -> list[tuple[int, Entry]]:
        """The answers of those rows that have one, which cost nothing; inside of `working`."""
        self._known = {}
        async with anyio.create_task_group() as tasks:
            for row in rows if self._keys and self._context.cache else ():
                tasks.start_soon(self._look_up, row)
        found, self._known = self._known, {}
        for ordinal in list(found):
            outcome = self._context.job.outcome(ordinal, found[ordinal])
            if self._context.cache is not None:
                self._context.cache.settle(outcome)
            if not isinstance(outcome, Success):  # it is asked again
                del found[ordinal]
        return sorted(found.items())

    async def _look_up(self, row: Row) -> None:
        if self._keys is None or self._context.cache is None:
            return
        ask = cached(_not_known, self._context.cache, self._keys.of, self._context.counters)
        try:
            self._known[row.ordinal] = await ask(self._context.job.request(row))
        except (_NotKnown, InvalidRow):
            return

    async def store(self, submission: Submission) -> None:
        """Stores the recorded answers of a job; inside of `working`."""
        cache, keys, job = self._context.cache, self._keys, self._context.job
        if cache is None or not keys:
            return
        for index in submission.ordinals.chunks(self._context.chunks.chunk_of):
            recorded = self._recorded(index, submission)
            while pairs := await to_thread.run_sync(_some, recorded):
                for row, entry in pairs:
                    outcome = job.outcome(row.ordinal, entry)
                    if isinstance(outcome, Success) and not outcome.reply.from_cache:
                        cache.hold(row.ordinal, await keys.of(job.request(row)), outcome.reply)
                        cache.settle(outcome)

    def _recorded(self, index: int, submission: Submission) -> Iterator[tuple[Row, Entry]]:
        """The rows of a job in a chunk that have an entry, and it; reads the chunk again."""
        chunk = self._context.chunks.chunk(index)
        rows = (row for batch in self._context.chunks.source.chunk(index) for row in batch.rows)
        entries = self._context.journal.entries(chunk.first, chunk.rows)
        row = next(rows, None)
        for ordinal, entry in entries:
            while row is not None and row.ordinal < ordinal:
                row = next(rows, None)
            if row is not None and row.ordinal == ordinal and ordinal in submission.ordinals:
                yield row, entry


def _some(recorded: Iterator[tuple[Row, Entry]]) -> list[tuple[Row, Entry]]:
    return list(islice(recorded, _ROWS_AT_ONCE))


async def _not_known(_: Request) -> Reply:
    raise _NotKnown
