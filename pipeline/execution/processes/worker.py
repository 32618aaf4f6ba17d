"""A worker process of a run: works on the chunks assigned to it, under the limits leased to it."""

from __future__ import annotations

import heapq
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from operator import itemgetter

import anyio
from anyio import to_thread

from pipeline.data import Entry, Part
from pipeline.endpoint.connection import Connect, OpenEndpoint
from pipeline.execution import engine
from pipeline.execution.chunks import ChunkWorker
from pipeline.execution.context import RunContext, open_cache, prepare_process
from pipeline.execution.processes.lease_holder import LeaseHolder
from pipeline.execution.processes.leased_limits import LeasedBudget
from pipeline.execution.processes.messages import (
    Assignment,
    Channel,
    ChunkAssigned,
    ChunkWanted,
    Lease,
    PartRecorded,
    PartWritten,
    StopRequested,
    WorkerDone,
    WorkerFailed,
    WorkerReport,
)
from pipeline.execution.processes.relayed_records import RelayedRecords
from pipeline.faults import Broken, Fault, Interrupted, UsageError
from pipeline.job.job import Job
from pipeline.job.turns import Turn
from pipeline.policy import Shutdown
from pipeline.policy.compose import units_of
from pipeline.storage.journal import Journal
from pipeline.storage.journal_reader import entries_in, recorded_in, turns_in, worker_journal_path
from pipeline.storage.run_folder import RunFolder
from pipeline.storage.unfinished_rows import merged
from pipeline.totals.counters import Counters

TICK_S = 0.02
"""Interval of a worker's reports; a change of its share takes as long to reach it."""


class JournalPair:
    """The entries of two journals: the worker's own, and the run's, which is not changed for this worker's chunks."""

    def __init__(self, own: Journal, folder: RunFolder) -> None:
        self._own = own
        self._run = folder.journal

    async def put(self, ordinal: int, entry: Entry) -> None:
        """Hands an entry over; it is durable within a tick."""
        await self._own.put(ordinal, entry)

    async def room(self) -> None:
        """Returns once there is room for more replies."""
        await self._own.room()

    async def put_turn(self, ordinal: int, number: int, turn: Turn) -> None:
        """Hands over an answer of an unfinished row."""
        await self._own.put_turn(ordinal, number, turn)

    def turns(self, first: int, rows: int) -> dict[int, dict[int, Turn]]:
        """The kept answers of unfinished rows in `[first, first + rows)`."""
        return merged(turns_in(self._run, first, rows), self._own.turns(first, rows))

    async def flush(self) -> None:
        """Returns once everything put before is durable."""
        await self._own.flush()

    def recorded(self, first: int, rows: int) -> set[int]:
        """The ordinals of `[first, first + rows)` that have an entry."""
        return self._own.recorded(first, rows) | recorded_in(self._run, first, rows)

    def entries(self, first: int, rows: int) -> Iterator[tuple[int, Entry]]:
        """The entries of `[first, first + rows)`, in order."""
        both = (self._own.entries(first, rows), entries_in(self._run, first, rows))
        return heapq.merge(*both, key=itemgetter(0))


async def work(job: Job, order: Assignment, connect: Connect, channel: Channel, lifeline: int) -> None:
    """Works until there is nothing left or the run stops. Ends the process when the parent, at the lifeline, dies.

    Raises `UsageError` if the job is not the one of the run.
    """
    if job.fingerprint() != order.plan.job:
        raise UsageError("the job was changed while the run was starting its processes: run again")
    settings = order.settings
    prepare_process(settings)
    folder = RunFolder(settings.output)
    with closing(Journal(worker_journal_path(folder.journal, order.number))) as journal:
        threading.Thread(target=_outlived, args=(lifeline, journal), daemon=True).start()
        with open_cache(settings.bounds.reuse) as cache, closing(ChunkWorker(job, order.plan, folder.output)) as chunks:
            context = RunContext(
                settings=settings,
                folder=folder,
                chunks=chunks,
                journal=journal,
                cache=cache,
                budgets=[LeasedBudget(unit) for unit in units_of(settings.bounds)],
                counters=Counters(),
                stop=Shutdown(),
            )
            async with connect() as endpoints:
                await _Worker(context, order, channel, endpoints).work()


def _outlived(lifeline: int, journal: Journal) -> None:
    """Waits for the parent to die; then commits what was received, and exits at once."""
    os.read(lifeline, 1)
    with suppress(Broken):  # nothing more can be done about it
        journal.commit()
    os._exit(1)


class _Worker:
    def __init__(
        self, context: RunContext[LeasedBudget], order: Assignment, channel: Channel, endpoints: Sequence[OpenEndpoint]
    ) -> None:
        self._context = context
        self._channel = channel
        self._parent_knows_of_stop = False
        self._records = RelayedRecords.attached(order.log_level, order.number)
        self._kept: dict[int, PartRecorded] = {}
        self._news = anyio.Event()
        self._assigned: list[ChunkAssigned] = []
        self._holder = LeaseHolder(context, endpoints, number=order.number, of=order.of)

    async def work(self) -> None:
        context, stop = self._context, self._context.stop
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._listen)
            tasks.start_soon(self._report_often)
            tasks.start_soon(self._report_stop)
            for lane in self._holder.composed.lanes:
                tasks.start_soon(self._holder.compare_when_asked, lane)
            await self._holder.leased.wait()
            records = JournalPair(context.journal, context.folder)
            await context.process(self._holder.composed.ask, self._next_chunk, self._keep, records=records)
            await self._tell(self._report())
            tasks.cancel_scope.cancel()
        if isinstance(stop.reason, Fault):
            await self._tell(WorkerFailed(stop.reason))
        await self._tell(WorkerDone())

    async def _next_chunk(self) -> engine.Chunk | None:
        await self._tell(ChunkWanted())
        while not self._assigned:
            await self._news.wait()
        chunk = self._assigned.pop().chunk
        return None if chunk is None else self._context.chunks.chunk(chunk)

    async def _keep(self, part: Part) -> None:
        """Has the parent record the part, and only then deletes its journal entries."""
        await self._tell(PartWritten(part))
        while part.chunk not in self._kept:
            await self._news.wait()
        kept = self._kept.pop(part.chunk)
        if kept.broken is not None:
            raise kept.broken
        await to_thread.run_sync(self._context.journal.discard, part)

    async def _listen(self) -> None:
        while (message := await self._channel.receive()) is not None:
            match message:
                case Lease():
                    self._holder.renew(message)
                case ChunkAssigned():
                    self._assigned.append(message)
                case PartRecorded():
                    self._kept[message.chunk] = message
                case StopRequested():
                    self._parent_knows_of_stop = True
                    self._context.stop.request(message.reason)
            self._news.set()
            self._news = anyio.Event()

    async def _report_often(self) -> None:
        while True:
            await self._tell(self._report())
            await anyio.sleep(TICK_S)

    async def _tell(self, message: object) -> None:
        """Sends a message to the parent. If that is gone, the worker stops; calls cut off by it may be billed."""
        try:
            await self._channel.send(message)
        except anyio.BrokenResourceError:
            self._context.stop.request(Interrupted("the run's parent is gone"))
            raise

    def _report(self) -> WorkerReport:
        """What happened since the last report."""
        return replace(self._holder.report(), records=self._records.take())

    async def _report_stop(self) -> None:
        stop = self._context.stop
        await stop.wait()
        if not self._parent_knows_of_stop and isinstance(stop.reason, Fault):
            await self._tell(WorkerFailed(stop.reason))
