"""The work on chunks: rows read, asked and recorded, parts written. The same whoever hands out the chunks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa
from anyio import to_thread

from pipeline import run as engine
from pipeline.data import Ask, Entry, Outcome, Part, Reply, Row
from pipeline.dataset import Dataset
from pipeline.disk import FILES, Files
from pipeline.faults import Fault, Halt
from pipeline.job import Job
from pipeline.plan import Plan
from pipeline.source import Source, Survey
from pipeline.tally import Tally

KEPT_BYTES = 128 << 20
"""What the kept columns of open chunks may hold in memory; beyond it they are read again when their part is written."""

ROWS_AHEAD_BYTES = 64 << 20
"""What the rows that wait for a worker may hold, by the mean row of the input."""

PASSED_BYTES = 64 << 20
"""What goes through memory before its freed parts are given back to the system: of large pieces that come and go in
several threads, glibc keeps several times what is in use."""

Keep = Callable[[Part], Awaitable[None]]
"""Makes a written part one of the run's; returns when that is durable."""


class Records(Protocol):
    """What the work needs of a journal."""

    async def put(self, ordinal: int, entry: Entry) -> None:
        """Hands an entry over."""

    async def room(self) -> None:
        """Returns when more may be asked for: what was handed over is small enough to be held in memory."""

    async def flush(self) -> None:
        """Returns when everything that was put before is durable."""

    def recorded(self, first: int, rows: int) -> set[int]:
        """The ordinals of `[first, first + rows)` that have an entry."""

    def entries(self, first: int, rows: int) -> Iterator[tuple[int, Entry]]:
        """The entries of `[first, first + rows)`, in order."""


class Settling(Protocol):
    """What the work needs of a reply cache."""

    def settle(self, outcome: Outcome) -> None:
        """What became of a row."""


class Work:
    """The rows of a run, and the dataset that they go to. Needs nothing but the job, the plan and the folder."""

    def __init__(self, job: Job, plan: Plan, output: Path, files: Files = FILES) -> None:
        self.job = job
        self.plan = plan
        self.survey = Survey.from_json(plan.survey)
        kept = job.columns_kept(self.survey.columns)
        needed = job.columns_needed(list(self.survey.columns))
        self._kept = list(kept)
        self._kept_bytes = 0
        self._passed_bytes = 0
        self.source = Source(self.survey, needed=needed, kept=self._kept)
        self._source_again: Source | None = None
        self.dataset = Dataset(output, renamed(self.source.kept_schema, kept), job.reader, _footer(plan), files)

    def chunk(self, index: int) -> engine.Chunk:
        """A chunk by its index, with nothing of it done."""
        first = index * self.survey.chunk_rows
        return engine.Chunk(index, first, min(self.survey.chunk_rows, self.survey.rows - first))

    def open_chunks(self, concurrency: int) -> int:
        """How many chunks are worked on at once."""
        return engine.open_chunks_for(concurrency, self.survey.chunk_rows, self.survey.mean_row_bytes)

    def hands(
        self, ask: Ask, journal: Records, keep: Keep, tally: Tally, cache: Settling | None = None
    ) -> engine.Hands:
        """What the engine needs to take chunks from their rows to parts that are kept."""

        async def answer(row: Row) -> Entry:
            await journal.room()
            return await answered(self.job, ask, row)

        async def record(ordinal: int, entry: Entry) -> None:
            self._passed_bytes += len(entry.body) if isinstance(entry, Reply) else 0
            await journal.put(ordinal, entry)  # before it is read, which is where a job's own code may fail
            outcome = self.job.outcome(ordinal, entry)
            tally.count(outcome)
            if cache is not None:
                cache.settle(outcome)

        async def done(chunk: engine.Chunk) -> set[int]:
            return await to_thread.run_sync(journal.recorded, chunk.first, chunk.rows)

        async def seal(chunk: engine.Chunk) -> None:
            await journal.flush()
            await keep(await to_thread.run_sync(self._write, chunk, journal))
            self._kept_bytes -= sum(kept.nbytes for kept in chunk.kept if kept is not None)

        ahead = max(1, min(engine.ROWS_AHEAD, int(ROWS_AHEAD_BYTES / max(self.survey.mean_row_bytes, 1.0))))
        return engine.Hands(read=self._read, done=done, answer=answer, record=record, seal=seal, rows_ahead=ahead)

    def close(self) -> None:
        """Closes the input."""
        self.source.close()
        if self._source_again is not None:
            self._source_again.close()

    async def _read(self, chunk: int) -> AsyncGenerator[engine.Batch, None]:
        batches = self.source.chunk(chunk)
        while (batch := await to_thread.run_sync(next, batches, None)) is not None:
            self._passed_bytes += batch.kept.nbytes
            if self._passed_bytes > PASSED_BYTES:
                await to_thread.run_sync(self._release)
            if self._kept_bytes + batch.kept.nbytes > KEPT_BYTES:
                yield _Bare(batch.rows)
                continue
            self._kept_bytes += batch.kept.nbytes
            yield batch

    def _release(self) -> None:
        self._passed_bytes = 0
        pa.system_memory_pool().release_unused()

    def _write(self, chunk: engine.Chunk, journal: Records) -> Part:
        entries = journal.entries(chunk.first, chunk.rows)
        kept = self.kept_again(chunk.index) if None in chunk.kept else chunk.kept
        part = self.dataset.seal(chunk.index, chunk.first, kept, entries, replies=self.plan.keep_replies)
        if sum(file.bytes for file in part.files) > PASSED_BYTES or self._passed_bytes > PASSED_BYTES:
            self._release()
        return part

    def kept_again(self, chunk: int) -> Iterator[pa.RecordBatch]:
        """The kept columns of a chunk, read again; for one thread at a time, beside the one that reads the rows."""
        if self._source_again is None:
            self._source_again = Source(self.survey, needed=(), kept=self._kept)
        return (batch.kept for batch in self._source_again.chunk(chunk))


@dataclass(frozen=True, slots=True)
class _Bare:
    """The rows of a batch, whose kept columns are not held in memory."""

    rows: Sequence[Row]
    kept: None = None


async def answered(job: Job, ask: Ask, row: Row) -> Entry:
    """What became of a row: the reply, or the fault that ended it. Raises `Halt`, which ends no row but the run."""
    try:
        return await ask(job.request(row))
    except Halt:
        raise
    except Fault as fault:
        return fault.without_trace()


def renamed(schema: pa.Schema, names: Mapping[str, str]) -> pa.Schema:
    """The kept columns under their output names."""
    return pa.schema([field.with_name(names[field.name]) for field in schema])


def _footer(plan: Plan) -> dict[str, str]:
    """What the footer of every part says; pandas drops it, so the manifest says it too."""
    return {
        "pipeline.run_id": plan.run_id,
        "pipeline.job": plan.job_name,
        "pipeline.model": plan.job.get("model", ""),
        "pipeline.version": plan.version,
        "pipeline.created": plan.created,
        "pipeline.simulated": str(plan.simulated).lower(),
    }
