"""The parent of a run's worker processes: starts them, assigns chunks, records parts, replaces workers that die."""

from __future__ import annotations

import logging
import os
import signal
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import anyio
from anyio import to_thread

from pipeline.data import Part, Reply, Request
from pipeline.endpoint.connection import OpenEndpoint
from pipeline.endpoint.log_events import log
from pipeline.execution.processes.lease_allocator import LeaseAllocator
from pipeline.execution.processes.messages import (
    Assignment,
    Channel,
    ChunkAssigned,
    ChunkWanted,
    PartRecorded,
    PartWritten,
    StopRequested,
    WorkerDone,
    WorkerFailed,
    WorkerReport,
)
from pipeline.execution.processes.relayed_records import log_relayed
from pipeline.execution.processes.spawn import Process, WorkerPool
from pipeline.execution.run import Run
from pipeline.faults import Broken, UsageError
from pipeline.policy import LocalUpstream
from pipeline.policy.compose import ComposedAsk
from pipeline.storage.journal_reader import worker_journal_path
from pipeline.totals.ledger import NOTHING

_LOG = logging.getLogger(__name__)

TICK_S = 0.02
"""Interval at which leases are recomputed."""

MOST_BARREN = 5
"""How many workers in a row may die without having recorded a row before the run stops."""

LAST_WORDS_S = 5.0
"""How long a worker that is no longer needed may take to commit what it received."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """The source of worker processes, their number, and what each needs to start.

    `lanes` names the endpoints that every worker will open, with their weights. None of this is secret: workers get
    their own tokens, and an API key from the environment.
    """

    workers: WorkerPool
    start: Any
    lanes: Sequence[tuple[str, float]]


async def execute(run: Run, pool: PoolSpec) -> None:
    """Like `Run.execute`, in worker processes: the same dataset, under the limits of one run."""
    if not (chunks := run.begin()):
        return
    context = run.context
    composed = context.compose([OpenEndpoint(name, weight, _unasked) for name, weight in pool.lanes])
    count = min(pool.workers.count, len(chunks), context.settings.bounds.concurrency)
    await to_thread.run_sync(pool.workers.reduce, count)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run.monitor(composed).keep)
        tasks.start_soon(run.stop_if_taken_over)
        run.upload_first()
        await _Parent(run, pool, composed).work([chunk.index for chunk in chunks])
        tasks.cancel_scope.cancel()


async def _unasked(_: Request) -> Reply:
    raise RuntimeError("the parent sends no request itself")


@dataclass(slots=True, eq=False)
class _Child:
    """A worker process, and the parent's ends of its channel and lifeline."""

    number: int
    process: Process
    channel: Channel
    lifeline: int
    open: set[int] = field(default_factory=set)
    """The chunks assigned to it that are not sealed."""
    wants: bool = False
    recorded: bool = False
    done: bool = False

    def let_go(self) -> None:
        """Closes the lifeline: the process commits what it has received, and ends."""
        if self.lifeline >= 0:
            os.close(self.lifeline)
            self.lifeline = -1


class _Parent:
    def __init__(self, run: Run, pool: PoolSpec, composed: ComposedAsk[LocalUpstream]) -> None:
        self._run = run
        self._pool = pool
        self._stop = run.context.stop
        self._allocator = LeaseAllocator(composed, run.context.counters, self._stop)
        self._left: deque[int] = deque()
        self._children: dict[int, _Child] = {}
        self._barren = 0

    async def work(self, chunks: Sequence[int]) -> None:
        self._left.extend(chunks)
        async with anyio.create_task_group() as around:
            around.start_soon(self._lease_often)
            around.start_soon(self._report_stop)
            async with anyio.create_task_group() as tasks:
                for number in range(self._pool.workers.count):
                    tasks.start_soon(self._employ, number)
            around.cancel_scope.cancel()

    async def _employ(self, number: int) -> None:
        """Keeps one worker running until all is done or the run stops; starts another if it dies."""
        while not self._stop.requested and (self._left or self._open()):
            started = self._pool.workers.start()
            child = _Child(number, started.process, Channel(started.channel), started.lifeline)
            try:
                await self._order(child)
                await self._serve(child)
            finally:
                with anyio.CancelScope(shield=True):
                    await self._end(child)
            if child.done:
                return
            self._replace(child)

    async def _order(self, child: _Child) -> None:
        """Sends a worker its assignment, before any other message."""
        context, pool = self._run.context, self._pool
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):  # as in `_send`
            await child.channel.share(self._run.lock)
        order = Assignment(
            plan=context.plan,
            settings=context.settings,
            number=child.number,
            of=pool.workers.count,
            start=pool.start,
            log_level=logging.getLogger("pipeline").getEffectiveLevel(),
        )
        await self._send(child, order)
        self._children[child.number] = child
        self._allocator.join(child.number)
        if self._stop.requested:
            await self._send(child, StopRequested(self._stop.reason))

    async def _serve(self, child: _Child) -> None:
        """Handles the messages of a worker until its channel closes."""
        while (message := await child.channel.receive()) is not None:
            match message:
                case WorkerReport():
                    self._allocator.report(child.number, message, anyio.current_time())
                    log_relayed(message.records)
                    if message.counted.get("ok") or message.counted.get("failed"):
                        child.recorded, self._barren = True, 0
                        self._run.stop_if_too_many_failed()
                case ChunkWanted():
                    child.wants = True
                    await self._hand_out()
                case PartWritten():
                    await self._keep(child, message.part)
                case WorkerFailed():
                    self._failed(message)
                case WorkerDone():
                    child.done = True

    async def _keep(self, child: _Child, part: Part) -> None:
        try:
            await self._run.record_part(part)
        except Broken as fault:
            self._stop.request(fault)
            await self._send(child, PartRecorded(part.chunk, fault))
            return
        child.open.discard(part.chunk)
        await self._send(child, PartRecorded(part.chunk))
        await self._hand_out()

    def _failed(self, message: WorkerFailed) -> None:
        if isinstance(message.reason, str):
            raise RuntimeError(f"a worker process failed:\n{message.reason}")  # noqa: TRY004 - a bug of ours, not a wrong type
        if isinstance(message.reason, UsageError):
            self._stop.request(Broken(f"a worker process cannot begin: {message.reason}"))
        else:
            self._stop.request(message.reason)

    async def _hand_out(self) -> None:
        """Assigns a chunk to each worker that wants one, while none gets more than its share of what is left."""
        while (ready := self._next()) is not None:
            child, chunk = ready
            child.wants = False
            if chunk is not None:
                child.open.add(chunk)
            await self._send(child, ChunkAssigned(chunk))

    def _next(self) -> tuple[_Child, int | None] | None:
        """The next worker and its chunk; the chunk is None once all are sealed."""
        unsealed = len(self._left) + len(self._open())
        # Rounded up. Near the end, chunks are thus spread over the workers, instead of one holding several.
        share = -(-unsealed // self._pool.workers.count)
        for child in self._children.values():
            if child.wants and self._left and len(child.open) < share:
                return child, self._left.popleft()
            if child.wants and not unsealed:
                return child, None
        return None

    def _open(self) -> set[int]:
        return {chunk for child in self._children.values() for chunk in child.open}

    async def _end(self, child: _Child) -> None:
        """Waits for a process to end, kills it if it does not, and absorbs its journal."""
        child.let_go()
        await child.channel.close()
        with anyio.move_on_after(LAST_WORDS_S):
            await to_thread.run_sync(child.process.wait, abandon_on_cancel=True)
        if child.process.returncode is None:
            child.process.kill()
            await to_thread.run_sync(child.process.wait)
        context = self._run.context
        journal, charged = worker_journal_path(context.folder.journal, child.number), NOTHING
        if journal.exists():
            try:
                charged = await to_thread.run_sync(context.journal.absorb, journal)
            except Broken as fault:
                self._stop.request(fault)
        self._allocator.leave(child.number, charged)
        self._left.extendleft(sorted(child.open, reverse=True))
        self._children.pop(child.number, None)

    def _replace(self, child: _Child) -> None:
        """Notes a death. Workers that die without recording anything would do so forever: then the run stops."""
        self._barren += not child.recorded
        how = _ended(child.process.returncode)
        log(_LOG, "worker.end", worker=child.number, how=how)
        notices = self._run.context.counters.notices
        notices.append(f"a worker process has ended ({how}); another goes on from its journal")
        if self._barren >= MOST_BARREN:
            report = f"{self._barren} worker processes in a row ended before they recorded a row ({how})"
            self._stop.request(Broken(f"{report}: fix what ends them, then run again"))

    async def _lease_often(self) -> None:
        while True:
            for number, lease in self._allocator.leases(anyio.current_time()).items():
                if number in self._children:
                    await self._send(self._children[number], lease)
            await anyio.sleep(TICK_S)

    async def _report_stop(self) -> None:
        await self._stop.wait()
        for child in list(self._children.values()):
            await self._send(child, StopRequested(self._stop.reason))

    async def _send(self, child: _Child, message: object) -> None:
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):  # `_serve` notices that it is gone
            await child.channel.send(message)


def _ended(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit {code}"
