"""The work on chunks: rows read, asked and recorded, parts written. The same whoever hands out the chunks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import pyarrow as pa
from anyio import to_thread

from pipeline import run as engine
from pipeline.data import Ask, Entry, Outcome, Part, Row
from pipeline.dataset import Dataset
from pipeline.disk import FILES, Files
from pipeline.faults import Fault, Halt
from pipeline.job import Job
from pipeline.plan import Plan
from pipeline.policy import RowCalls
from pipeline.source import Source, Survey
from pipeline.tally import Tally
from pipeline.turns import Turn

Keep = Callable[[Part], Awaitable[None]]
"""Makes a written part one of the run's; returns when that is durable."""


class Records(Protocol):
    """What the work needs of a journal."""

    async def put(self, ordinal: int, entry: Entry) -> None:
        """Hands an entry over."""

    async def put_turn(self, ordinal: int, number: int, turn: Turn) -> None:
        """Hands over an answer of a row that is not finished."""

    def turns(self, first: int, rows: int) -> dict[int, dict[int, Turn]]:
        """What was kept of rows of `[first, first + rows)` that are not finished."""

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
        self.source = Source(self.survey, needed=needed, kept=list(kept))
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
        unfinished: dict[int, dict[int, Turn]] = {}

        async def answer(row: Row) -> Entry:
            calls = RowCalls(row.ordinal, journal, unfinished.pop(row.ordinal, None))
            return await answered(self.job, ask, row, calls)

        async def record(ordinal: int, entry: Entry) -> None:
            await journal.put(ordinal, entry)  # before it is read, which is where a job's own code may fail
            outcome = self.job.outcome(ordinal, entry)
            tally.count(outcome)
            if cache is not None:
                cache.settle(outcome)

        async def done(chunk: engine.Chunk) -> set[int]:
            unfinished.update(await to_thread.run_sync(journal.turns, chunk.first, chunk.rows))
            return await to_thread.run_sync(journal.recorded, chunk.first, chunk.rows)

        async def seal(chunk: engine.Chunk) -> None:
            await journal.flush()
            await keep(await to_thread.run_sync(self._write, chunk, journal))

        return engine.Hands(read=self._read, done=done, answer=answer, record=record, seal=seal)

    def close(self) -> None:
        """Closes the input."""
        self.source.close()

    async def _read(self, chunk: int) -> AsyncGenerator[engine.Batch, None]:
        batches = self.source.chunk(chunk)
        while (batch := await to_thread.run_sync(next, batches, None)) is not None:
            yield batch

    def _write(self, chunk: engine.Chunk, journal: Records) -> Part:
        entries = journal.entries(chunk.first, chunk.rows)
        return self.dataset.seal(chunk.index, chunk.first, chunk.kept, entries, replies=self.plan.keep_replies)


async def answered(job: Job, ask: Ask, row: Row, calls: RowCalls) -> Entry:
    """What became of a row: the reply, or the fault that ended it, with what all its calls have cost.

    Raises `Halt`, which ends no row but the run.
    """
    try:
        return calls.whole(await ask(replace(job.request(row), calls=calls)))
    except Halt:
        raise
    except Fault as fault:
        fault.reply = calls.so_far()
        return fault


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
