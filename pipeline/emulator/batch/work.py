"""The work of batch jobs: rows are answered as the jobs' clock says, in small steps between other requests."""

from __future__ import annotations

import asyncio
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from io import BytesIO
from typing import Protocol

from pipeline.emulator.batch.clock import JobClock
from pipeline.emulator.batch.line_index import LineIndex
from pipeline.emulator.batch.rows import MalformedLine, RowWriter
from pipeline.emulator.options import Options

WAITING_SHARE = 0.25
"""The share of its time in which a job waits."""

ANSWERING_SHARE = 0.9
"""The share of the rest after which its last row is answered."""

CANCELLING_SHARE = 0.1
"""How long a job takes to be cancelled, as a share of its time."""

SCANNED_AT_ONCE = 500
ANSWERED_AT_ONCE = 20
TICK = 0.05
"""Seconds between two looks at a clock that goes by itself."""

OPENINGS = {"failed": 0.6, "expired": 0.6, "partial": 0.9}
"""The share of its rows that a job with this fault answers."""


class JobPhase(StrEnum):
    """How far a job is."""

    PENDING = "pending"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    PARTIAL = "partially succeeded"

    @property
    def ended(self) -> bool:
        """Whether it is the last one of a job."""
        return self not in {JobPhase.PENDING, JobPhase.RUNNING, JobPhase.CANCELLING}


_LAST = {"failed": JobPhase.FAILED, "expired": JobPhase.EXPIRED, "partial": JobPhase.PARTIAL}


class FailedWork(Exception):
    """What ends a job before its rows: a code of google.rpc and a message. `line` is that of a wrong row."""

    def __init__(self, code: int, message: str, line: MalformedLine | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.line = line


class Shelf(Protocol):
    """Where a job's rows come from and go to."""

    def load(self) -> Sequence[bytes]:
        """The input. Raises `FailedWork`."""

    def put(self, number: int, lines: bytes) -> None:
        """Stores one file of the output, its number counted from 0. Raises `FailedWork`."""

    @property
    def failed_apart(self) -> bool:
        """Whether the lines of rows without an answer go to `put_failed`."""

    def put_failed(self, lines: bytes) -> None:
        """Stores the lines of all rows without an answer, if they are kept apart."""

    def left_out(self, rows: LineIndex, indices: Sequence[int]) -> None:
        """Told which rows an expired job did not answer."""


@dataclass(slots=True)
class Counts:
    """How many rows a job has, and how many of them it answered or failed to answer."""

    total: int = 0
    succeeded: int = 0
    failed: int = 0
    missing: int = 0
    """Rows without a line in the output, on demand."""


@dataclass(slots=True)
class Work:
    """One job at work. `fault` is that of a job, without the group's name; `created` a time of the jobs' clock."""

    writer: RowWriter
    shelf: Shelf
    options: Options
    number: int
    created: float
    fault: str | None = None
    phase: JobPhase = JobPhase.PENDING
    counts: Counts = field(default_factory=Counts)
    started: float | None = None
    ended: float | None = None
    changed: float = 0.0
    cancelled: float | None = None
    error: FailedWork | None = None
    files: int = 0
    _rows: LineIndex | None = None
    _order: array[int] | None = None
    _done: int = 0
    _written: BytesIO = field(default_factory=BytesIO)
    _failed: BytesIO = field(default_factory=BytesIO)

    def __post_init__(self) -> None:
        self.changed = self.created

    @property
    def begins(self) -> float:
        """When it no longer waits."""
        return self.created + self.options.batch_delay * WAITING_SHARE

    @property
    def ends(self) -> float:
        """When it is over, if it is not cancelled and the work is done by then."""
        return self.created + self.options.batch_delay

    def cancel(self, now: float) -> None:
        """Asks for its end; what is answered by now is kept."""
        if not self.phase.ended and self.cancelled is None:
            self.phase, self.cancelled, self.changed = JobPhase.CANCELLING, now, now

    def step(self, now: float) -> bool:
        """Does some of what is due; whether more is due at once."""
        if self.phase.ended:
            return False
        try:
            return self._step(now)
        except FailedWork as failure:
            self.error = failure
            self._end(JobPhase.FAILED, now)
        return False

    def _step(self, now: float) -> bool:
        if self.cancelled is not None:
            if now >= self.cancelled + self.options.batch_delay * CANCELLING_SHARE:
                self._end(JobPhase.CANCELLED, now)
            return False
        if self._rows is None:
            return self._begun(now)
        if self._order is None:
            self._scan(self._rows)
            return True
        if self._done < self._due(now):
            self._answer(self._rows, self._order, min(self._due(now), self._done + ANSWERED_AT_ONCE))
            return True
        if self._done == self._last and now >= self.ends:
            self._finish(self._rows, self._order, now)
        return False

    def _begun(self, now: float) -> bool:
        if self.fault == "stuck" or now < self.begins:
            return False
        self.phase, self.started, self.changed = JobPhase.RUNNING, now, now
        if self.fault == "denied":
            raise FailedWork(
                7,
                "The Vertex AI service agent does not have storage.objects.get access to the input object (or it may "
                "not exist).",
            )
        contents = self.shelf.load()
        if sum(map(len, contents)) > self.options.batch_most_bytes:
            raise FailedWork(3, f"The input is larger than {self.options.batch_most_bytes} bytes.")
        self._rows = LineIndex(contents)
        return True

    def _scan(self, rows: LineIndex) -> None:
        """Checks some more lines; then draws the order in which the rows are answered and written."""
        before, more = len(rows), rows.find(SCANNED_AT_ONCE)
        if len(rows) > self.options.batch_most_rows:
            raise FailedWork(3, f"The input has more than {self.options.batch_most_rows} requests.")
        for number in range(before, len(rows)):
            try:
                self.writer.check(rows[number], number + 1)
            except MalformedLine as line:
                raise FailedWork(3, line.message, line) from None
        if not more:
            order = list(range(len(rows)))
            random.Random(f"{self.options.seed}/{self.number}").shuffle(order)  # noqa: S311 - nothing secret
            self._order = array("I", order)
            self.counts.total = len(rows)

    @property
    def answered(self) -> bool:
        """Whether every row that will be answered is."""
        return self._done == self._last

    @property
    def _last(self) -> int:
        """How many rows will be answered."""
        return int(self.counts.total * OPENINGS.get(self.fault or "", 1.0))

    def _due(self, now: float) -> int:
        """How many rows are answered at a time."""
        time = (self.ends - self.begins) * ANSWERING_SHARE
        share = 1.0 if time <= 0 or now >= self.ends else min(1.0, (now - self.begins) / time)
        return int(share * self._last)

    def _answer(self, rows: LineIndex, order: array[int], until: int) -> None:
        counts = self.counts
        while self._done < until:
            index = order[self._done]
            row = self.writer.write(rows[index], index + 1)
            counts.succeeded += row.succeeded
            counts.failed += not row.succeeded and bool(row.lines)
            counts.missing += not row.lines
            apart = self.shelf.failed_apart and not row.succeeded
            for line in row.lines:
                (self._failed if apart else self._written).write(line + b"\n")
            self._done += 1
            if self._done >= (self.files + 1) * counts.total / self.options.batch_files:
                self._put()

    def _put(self) -> None:
        written, self._written = self._written, BytesIO()
        self.shelf.put(self.files, written.getvalue())
        self.files += 1

    def _finish(self, rows: LineIndex, order: array[int], now: float) -> None:
        if self.fault == "failed":
            raise FailedWork(13, "The batch prediction job failed with an internal error.")
        if self.fault == "expired":
            self.shelf.left_out(rows, order[self._done :])
        self._end(_LAST.get(self.fault or "", JobPhase.SUCCEEDED), now)

    def _end(self, phase: JobPhase, now: float) -> None:
        """Stores what is written and not yet stored, and lets go of the input."""
        begun = self._order is not None
        self._rows = self._order = None
        self.phase, self.ended, self.changed = phase, now, now
        try:
            if self._failed.tell():
                self.shelf.put_failed(self._failed.getvalue())
            if begun and (self._written.tell() or not self.files):
                self._put()
        except FailedWork as failure:
            self.error, self.phase = failure, JobPhase.FAILED


class WorkQueue:
    """All jobs at work. They move on when `settle` is called, and with `run` as time passes."""

    def __init__(self, clock: JobClock) -> None:
        self.clock = clock
        self._works: list[Work] = []
        self._wake = asyncio.Event()

    def add(self, work: Work) -> None:
        """Takes up a new job."""
        self._works.append(work)
        self._wake.set()

    def wake(self) -> None:
        """Looks again at what is due."""
        self._wake.set()

    async def settle(self) -> None:
        """Returns when everything that is due is done."""
        while True:
            now = self.clock.now()
            if not any([work.step(now) for work in self._works]):  # noqa: C419 - every job takes its step
                break
            await asyncio.sleep(0)
        self._works = [work for work in self._works if not work.phase.ended]

    async def run(self) -> None:
        """Keeps the jobs at work until it is cancelled."""
        while True:
            await self.settle()
            self._wake.clear()
            moving = self._works and not self.clock.manual
            try:
                async with asyncio.timeout(TICK if moving else None):
                    await self._wake.wait()
            except TimeoutError:
                continue
