"""A worker process of a run: works on the chunks assigned to it, under the limits leased to it."""

from __future__ import annotations

import heapq
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from operator import itemgetter

import anyio
from anyio import to_thread

from pipeline.counters import Counters
from pipeline.data import Entry, Part
from pipeline.endpoint.connection import Connect
from pipeline.execution import engine
from pipeline.execution.chunks import ChunkWorker
from pipeline.execution.processes.leased_limits import LeasedBudget, LeasedUpstream, renew
from pipeline.execution.processes.messages import (
    Assignment,
    Channel,
    ChunkAssigned,
    ChunkWanted,
    Done,
    Failed,
    Lease,
    PartRecorded,
    PartWritten,
    Report,
    StopRequested,
)
from pipeline.execution.run import open_cache, prepare_process
from pipeline.faults import Broken, Fault, Interrupted, UsageError
from pipeline.job.job import Job
from pipeline.pace import RetryBudget
from pipeline.policy import Account, Dispatcher, Limits, Shutdown
from pipeline.policy.compose import lane_ask, lateness_for, prices_for, with_policies, workers_for
from pipeline.policy.turns import Turn
from pipeline.storage.journal import Journal
from pipeline.storage.journal_reader import entries_in, recorded_in, turns_in, worker_journal_path
from pipeline.storage.reply_cache import Cache
from pipeline.storage.run_folder import RunFolder
from pipeline.storage.unfinished_rows import merged

TICK_S = 0.02
"""Interval of a worker's reports; a change of its share takes as long to reach it."""

_LATENCIES = 20
"""Latencies per report at most: a sample, which quantiles do not suffer from."""


class Records:
    """The entries of two journals: the worker's own and the run's, in which nothing changes those of its chunks."""

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


async def work(job: Job, order: Assignment, connect: Connect, link: Channel, lifeline: int) -> None:
    """Works until there is nothing left or the run stops. Ends the process when the parent, at the lifeline, dies.

    Raises `UsageError` if the job is not the one of the run.
    """
    if job.fingerprint() != order.plan.job:
        raise UsageError("the job was changed while the run was starting its processes: run again")
    prepare_process(order.settings)
    folder = RunFolder(order.settings.output, order.settings.files)
    journal = Journal(worker_journal_path(folder.journal, order.number), order.settings.files)
    threading.Thread(target=_outlived, args=(lifeline, journal), daemon=True).start()
    try:
        with open_cache(order.settings.bounds.reuse) as cache:
            await _Worker(job, order, link, journal, cache).work(connect)
    finally:
        journal.close()


def _outlived(lifeline: int, journal: Journal) -> None:
    """Waits for the parent to die; then commits what was received, and exits at once."""
    os.read(lifeline, 1)
    with suppress(Broken):  # nothing more can be done about it
        journal.commit()
    os._exit(1)


class _Worker:
    def __init__(self, job: Job, order: Assignment, link: Channel, journal: Journal, cache: Cache | None) -> None:
        self._job = job
        self._cache = cache
        self._order = order
        self._link = link
        self._journal = journal
        self._tally = Counters()
        self._stop = Shutdown()
        self._parent_knows_of_stop = False
        self._leased = anyio.Event()
        self._lease = 0
        self._kept: dict[int, PartRecorded] = {}
        self._news = anyio.Event()
        self._assigned: list[ChunkAssigned] = []
        self._purses = [LeasedBudget(unit) for unit in _units(order)]
        prices = prices_for(job, order.settings.bounds)
        self._account = Account(prices, self._tally, self._stop, self._purses, journal)
        self._dispatcher: Dispatcher

    async def work(self, connect: Connect) -> None:
        order, settings = self._order, self._order.settings
        chunks = ChunkWorker(self._job, order.plan, settings.output, settings.files)
        records = Records(self._journal, RunFolder(settings.output, settings.files))
        try:
            async with anyio.create_task_group() as tasks, connect() as endpoints:
                lateness = lateness_for(settings.bounds)
                lanes = [
                    LeasedUpstream(
                        one.name,
                        lane_ask(self._job, one, self._account, lateness),
                        one.weight,
                        rate=None,
                        hitch=one.hitch,
                    )
                    for one in endpoints
                ]
                self._dispatcher = Dispatcher(
                    lanes,
                    Limits(0),
                    stop=self._stop,
                    tally=self._tally,
                    give_up_s=settings.bounds.give_up_s,
                    account=self._account,
                )
                tasks.start_soon(self._listen)
                tasks.start_soon(self._report_often)
                tasks.start_soon(self._report_stop)
                tasks.start_soon(self._journal.keep_writing)
                if self._cache is not None:
                    tasks.start_soon(self._cache.keep_working, self._tally.notices.append)
                await self._leased.wait()
                retries = RetryBudget(per_second=1.0 / order.of, most=max(1.0, 50.0 / order.of))
                ask = with_policies(
                    self._job,
                    settings.bounds,
                    self._dispatcher,
                    self._account,
                    lateness=lateness,
                    store=self._cache,
                    retries=retries,
                )
                await engine.process_chunks(
                    self._take_from(chunks),
                    chunks.hands(ask, records, self._keep, self._tally, self._cache),
                    workers=workers_for(settings.bounds.concurrency),
                    stop=self._stop,
                    grace_s=settings.grace_s,
                    open_chunks=chunks.open_chunks(settings.bounds.concurrency),
                )
                with suppress(Broken):  # it already is the reason of the stop
                    await self._journal.flush()
                await self._tell(self._report())
                tasks.cancel_scope.cancel()
        finally:
            chunks.close()
        if isinstance(self._stop.reason, Fault):
            await self._tell(Failed(self._stop.reason))
        await self._tell(Done())

    def _take_from(self, chunks: ChunkWorker) -> engine.NextChunk:
        async def take() -> engine.Chunk | None:
            await self._tell(ChunkWanted())
            while not self._assigned:
                await self._news.wait()
            chunk = self._assigned.pop().chunk
            return None if chunk is None else chunks.chunk(chunk)

        return take

    async def _keep(self, part: Part) -> None:
        """Has the parent record the part, and only then deletes its journal entries."""
        await self._tell(PartWritten(part))
        while part.chunk not in self._kept:
            await self._news.wait()
        kept = self._kept.pop(part.chunk)
        if kept.broken is not None:
            raise kept.broken
        await to_thread.run_sync(self._journal.discard, part)

    async def _listen(self) -> None:
        while (message := await self._link.receive()) is not None:
            match message:
                case Lease():
                    self._renew(message)
                case ChunkAssigned():
                    self._assigned.append(message)
                case PartRecorded():
                    self._kept[message.chunk] = message
                case StopRequested():
                    self._parent_knows_of_stop = True
                    self._stop.request(message.reason)
            self._news.set()
            self._news = anyio.Event()

    def _renew(self, lease: Lease) -> None:
        order = self._order
        self._account.learn_all(lease.maxima)
        for budget, granted, amount in zip(self._purses, lease.calls, lease.amounts, strict=True):
            budget.renew(granted, amount)
        renew(self._dispatcher, lease, anyio.current_time(), offset=order.number / order.of)
        self._lease = lease.number
        self._leased.set()

    async def _report_often(self) -> None:
        while True:
            await self._tell(self._report())
            await anyio.sleep(TICK_S)

    async def _tell(self, message: object) -> None:
        """Sends a message to the parent. If that is gone, the worker stops; calls cut off by it may be billed."""
        try:
            await self._link.send(message)
        except anyio.BrokenResourceError:
            self._stop.request(Interrupted("the run's parent is gone"))
            raise

    def _report(self) -> Report:
        """What happened since the last report."""
        tally = self._tally
        if (denied := self._dispatcher.judge.look(anyio.current_time())) is not None:
            self._stop.request(denied)
        counted = tally.drain()
        answered = counted.get("ok", 0) + counted.get("failed", 0)
        return Report(
            lease=self._lease,
            in_flight=tally.in_flight,
            waiting=tally.waiting,
            retrying=tally.retrying,
            waits_for=tally.waits_for,
            trouble=tally.trouble,
            counted=counted,
            notices=self._notes(),
            latencies=self._dispatcher.latencies.newest(min(answered, _LATENCIES)),
            lanes=[lane.take() for lane in self._dispatcher.lanes if isinstance(lane, LeasedUpstream)],
            purses=[budget.take() for budget in self._purses],
            maxima=dict(self._account.estimate.maxima) if self._purses else {},
        )

    def _notes(self) -> list[str]:
        notices, self._tally.notices[:] = list(self._tally.notices), []
        return notices

    async def _report_stop(self) -> None:
        await self._stop.wait()
        if not self._parent_knows_of_stop and isinstance(self._stop.reason, Fault):
            await self._tell(Failed(self._stop.reason))


def _units(order: Assignment) -> list[str]:
    bounds = order.settings.bounds
    named = {"USD": bounds.budget_usd, "tokens": bounds.budget_tokens}
    return [unit for unit, cap in named.items() if cap is not None]
