"""The input of a run, row by row, exactly as it was asked, located by what the run recorded about it."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from pipeline.data import Row
from pipeline.execution.chunks import source_of
from pipeline.faults import UsageError
from pipeline.job.job import Job
from pipeline.source import ChunkSpans, Survey, changed, found_again
from pipeline.source import RowChoice as RowsRead


class InputRows:
    """Any row by its ordinal; fast if ordinals ascend. Reading a row reads its chunk up to that row.

    Raises `UsageError`, naming the difference, if the input has changed since the run or does not fit the job.
    """

    def __init__(self, job: Job, survey: Survey) -> None:
        self._survey = _where_it_is(job, survey)
        self._spans = ChunkSpans(self._survey.generations)
        self._source, self.kept = source_of(job, self._survey)
        self._rows: Iterator[tuple[Row, pa.RecordBatch]] = iter(())
        self._chunk, self._next = -1, 0

    def row(self, ordinal: int) -> tuple[Row, pa.RecordBatch]:
        """A row, and those of its columns that are copied to the output. Raises `Broken` if it cannot be read."""
        chunk = self._spans.chunk_of(ordinal)
        if chunk != self._chunk or ordinal < self._next:
            self._rows, self._chunk = self._rows_of(chunk), chunk
        self._next = ordinal + 1
        return next(found for found in self._rows if found[0].ordinal == ordinal)

    def close(self) -> None:
        """Closes the input's files."""
        self._source.close()

    def _rows_of(self, chunk: int) -> Iterator[tuple[Row, pa.RecordBatch]]:
        for batch in self._source.chunk(chunk):
            for number, row in enumerate(batch.rows):
                yield row, batch.kept.slice(number, 1)


def _where_it_is(job: Job, survey: Survey) -> Survey:
    """The survey with the current paths of its files: unchanged, or where the job looks for them."""
    differences = changed(survey)
    if not differences:
        return survey
    if job.input:
        rows: RowsRead = "ok" if any(file.only_ok for file in survey.files) else "all"
        moved, others = found_again(survey, job.input, job.include, rows=rows, allow_partial=True)
        if not others:
            return moved
    raise UsageError(f"the input is no longer the one that was asked: {differences[0]}")
