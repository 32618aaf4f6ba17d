"""Works on chunks: reads, asks and records rows, and writes parts; the same for one process and several."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa
from anyio import to_thread

from pipeline.data import Ask, Entry, Failure, Outcome, Part, Reply, Row
from pipeline.execution import engine
from pipeline.faults import Fault, Halt, UsageError
from pipeline.job.job import Job
from pipeline.job.turns import Turn
from pipeline.policy import RowCalls
from pipeline.schema.bigquery import legal_type, refused_names
from pipeline.source import ChunkSpans, Source, Survey, hint_of_rows_within
from pipeline.storage.dataset import Dataset
from pipeline.storage.durable import FILES, FileSystem
from pipeline.storage.output_columns import output_schema
from pipeline.storage.run_folder import RunIdentity
from pipeline.totals.counters import Counters

KEPT_BYTES = 128 << 20
"""Memory for the kept columns of open chunks; beyond it, they are read again when their part is written."""

ROWS_AHEAD_BYTES = 64 << 20
"""Memory for the rows that wait for a worker, by the mean row of the input."""

PASSED_BYTES = 64 << 20
"""Bytes that pass through memory before freed pages are returned to the system: with large blocks allocated and freed
in several threads, glibc retains several times what is in use."""

Keep = Callable[[Part], Awaitable[None]]
"""Records a written part; returns once that is durable."""


class ChunkJournal(Protocol):
    """What a chunk worker needs of a journal."""

    async def put(self, ordinal: int, entry: Entry) -> None:
        """Hands an entry over."""

    async def room(self) -> None:
        """Returns once the replies that wait for their commit leave room in memory for more."""

    async def put_turn(self, ordinal: int, number: int, turn: Turn) -> None:
        """Hands over an answer of an unfinished row."""

    def turns(self, first: int, rows: int) -> dict[int, dict[int, Turn]]:
        """The kept answers of unfinished rows in `[first, first + rows)`."""

    async def flush(self) -> None:
        """Returns once everything put before is durable."""

    def recorded(self, first: int, rows: int) -> set[int]:
        """The ordinals of `[first, first + rows)` that have an entry."""

    def entries(self, first: int, rows: int) -> Iterator[tuple[int, Entry]]:
        """The entries of `[first, first + rows)`, in order."""


class Settling(Protocol):
    """What a chunk worker needs of a reply cache."""

    def settle(self, outcome: Outcome) -> None:
        """Takes the outcome of a row."""


class RowObserver(Protocol):
    """Is given the rows of a run as they are answered."""

    def begin(self, row: Row) -> None:
        """Takes a row before it is asked, with all of its kept columns."""

    async def observe(self, outcome: Outcome) -> None:
        """Takes the outcome of a row, which is durable. The row's slot is free once this returns."""


class ChunkWorker:
    """Turns the rows of a run into parts of its dataset. Needs only the job, the plan and the folder.

    With `whole_rows`, rows are read with their kept columns, not only with those that requests need.
    """

    def __init__(
        self, job: Job, plan: RunIdentity, output: Path, files: FileSystem = FILES, *, whole_rows: bool = False
    ) -> None:
        self.job = job
        self.plan = plan
        self.survey = Survey.from_json(plan.survey)
        self._spans = ChunkSpans(self.survey.generations)
        self._kept_bytes = 0
        self._passed_bytes = 0
        self.source, kept = source_of(job, self.survey, whole=whole_rows)
        self._source_again: Source | None = None
        self.dataset = Dataset(output, kept, job.reader, _footer(plan), files)

    def chunk(self, index: int) -> engine.Chunk:
        """A chunk by its index, with nothing of it done."""
        span = self._spans.of(index)
        return engine.Chunk(index, span.start, len(span))

    def chunk_of(self, ordinal: int) -> int:
        """The index of the chunk of a row."""
        return self._spans.chunk_of(ordinal)

    def open_chunks(self, concurrency: int) -> int:
        """How many chunks are worked on at once."""
        latest = self.survey.generations[-1]  # the others are sealed, as a rule
        return engine.open_chunks_for(concurrency, latest.chunk_rows, self.survey.mean_row_bytes)

    def callbacks(
        self,
        ask: Ask,
        journal: ChunkJournal,
        keep: Keep,
        counters: Counters,
        cache: Settling | None = None,
        failed: Callable[[], None] = lambda: None,
        observer: RowObserver | None = None,
    ) -> engine.EngineCallbacks:
        """The callbacks by which the engine turns chunks into parts; `failed` is called after each failed row."""
        unfinished: dict[int, dict[int, Turn]] = {}

        async def answer(row: Row) -> Entry:
            # Before the request, not after: a reply that has no room would wait here, paid for and not recorded.
            await journal.room()
            # Taken out, so that memory holds the turns of unfinished rows only until each row is asked.
            calls = RowCalls(row.ordinal, journal, unfinished.pop(row.ordinal, None))
            if observer is not None:
                observer.begin(row)
            return await answered(self.job, ask, row, calls)

        async def record(ordinal: int, entry: Entry) -> None:
            self._passed_bytes += len(entry.body) if isinstance(entry, Reply) else 0
            await journal.put(ordinal, entry)  # before parsing: a paid reply must survive a bug in the job's code
            outcome = self.job.outcome(ordinal, entry)
            counters.count(outcome)
            if isinstance(outcome, Failure):
                failed()
            if cache is not None:
                cache.settle(outcome)
            if observer is not None:
                await journal.flush()
                await observer.observe(outcome)

        async def done(chunk: engine.Chunk) -> set[int]:
            # Together with `recorded`, before the first row of the chunk is asked: both read the database in a thread.
            unfinished.update(await to_thread.run_sync(journal.turns, chunk.first, chunk.rows))
            return await to_thread.run_sync(journal.recorded, chunk.first, chunk.rows)

        async def seal(chunk: engine.Chunk) -> None:
            # Order matters for crashes: entries durable, then the part, then its record; only then may entries go.
            await journal.flush()
            await keep(await to_thread.run_sync(self._write, chunk, journal))
            # Only now: they are in memory until the part is written.
            self._kept_bytes -= sum(kept.nbytes for kept in chunk.kept if kept is not None)

        ahead = max(1, min(engine.ROWS_AHEAD, int(ROWS_AHEAD_BYTES / max(self.survey.mean_row_bytes, 1.0))))
        return engine.EngineCallbacks(
            read=self._read, done=done, answer=answer, record=record, seal=seal, rows_ahead=ahead
        )

    def close(self) -> None:
        """Closes the input."""
        self.source.close()
        if self._source_again is not None:
            self._source_again.close()

    async def _read(self, chunk: int) -> AsyncGenerator[engine.RowBatch, None]:
        batches = self.source.chunk(chunk)
        # In a thread: decompressing and decoding a batch takes tens of milliseconds, in which no reply would arrive.
        while (batch := await to_thread.run_sync(next, batches, None)) is not None:
            self._passed_bytes += batch.kept.nbytes
            if self._passed_bytes > PASSED_BYTES:
                await to_thread.run_sync(self._release)
            if self._kept_bytes + batch.kept.nbytes > KEPT_BYTES:  # then `_write` reads them again
                yield _Bare(batch.rows)
                continue
            self._kept_bytes += batch.kept.nbytes
            yield batch

    def _release(self) -> None:
        self._passed_bytes = 0
        pa.system_memory_pool().release_unused()

    def _write(self, chunk: engine.Chunk, journal: ChunkJournal) -> Part:
        entries = journal.entries(chunk.first, chunk.rows)
        # One batch that was not held makes all be read again: they are merged with the entries in the order of rows.
        kept = self.kept_again(chunk.index) if None in chunk.kept else chunk.kept
        part = self.dataset.seal(chunk.index, chunk.first, kept, entries, replies=self.plan.keep_replies)
        if sum(file.bytes for file in part.files) > PASSED_BYTES or self._passed_bytes > PASSED_BYTES:
            self._release()
        return part

    def kept_again(self, chunk: int) -> Iterator[pa.RecordBatch]:
        """Reads the kept columns of a chunk again; for one thread at a time, beside the one that reads rows."""
        if self._source_again is None:
            # A source of its own: the other one is in the middle of a later chunk, in another thread.
            self._source_again, _ = source_of(self.job, self.survey, asks=False)
        return (batch.kept for batch in self._source_again.chunk(chunk))


@dataclass(frozen=True, slots=True)
class _Bare:
    """The rows of a batch whose kept columns are not held in memory."""

    rows: Sequence[Row]
    kept: None = None


async def answered(job: Job, ask: Ask, row: Row, calls: RowCalls) -> Entry:
    """The entry of a row: its reply, or the fault that ended it, with the cost of all its calls.

    Raises `Halt`, which ends the run rather than the row.
    """
    try:
        return calls.whole(await ask(job.request(row, calls)))
    except Halt:
        raise
    except Fault as fault:
        # What the row cost until it failed goes into its record, or the run's total would be too low.
        fault.reply = calls.so_far()
        return fault.without_trace()
    finally:
        calls.close()


def source_of(job: Job, survey: Survey, *, asks: bool = True, whole: bool = False) -> tuple[Source, pa.Schema]:
    """The rows of a job's input, and the schema of the columns copied or added to the output, under their output names.

    Without `asks`, rows come without the values that requests are made from; if `whole`, with all kept columns.

    Raises `UsageError` if the job does not fit the columns of its input, or if it renames columns for BigQuery and its
    schema has names that BigQuery refuses.
    """
    try:
        columns = job.projection(survey.columns)
    except UsageError as error:
        if (hint := hint_of_rows_within(survey)) is not None:
            raise UsageError(f"{error}; {hint}") from None
        raise
    as_type = legal_type if job.rename == "bigquery" else None
    needed = [*dict.fromkeys([*columns.needed, *(columns.kept if whole else ())])] if asks else []
    source = Source(survey, needed=needed, kept=list(columns.kept), added=columns.added, as_type=as_type)
    names = [*columns.kept.values(), *columns.added]
    schema = pa.schema([field.with_name(name) for field, name in zip(source.kept_schema, names, strict=True)])
    if job.rename == "bigquery" and (refused := list(refused_names(output_schema(schema, job.reader)))):
        raise UsageError(
            f"BigQuery refuses {', '.join(refused)}, of the job's schema: give the fields other names there"
        )
    return source, schema


def _footer(plan: RunIdentity) -> dict[str, str]:
    """The metadata in the footer of every part; pandas drops it, so the manifest has it too."""
    return {
        "pipeline.run_id": plan.run_id,
        "pipeline.job": plan.job_name,
        "pipeline.model": plan.job.get("model", ""),
        "pipeline.version": plan.version,
        "pipeline.created": plan.created,
        "pipeline.simulated": str(plan.simulated).lower(),
    }
