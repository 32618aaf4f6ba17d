"""Surveys an input, and reads its rows chunk by chunk."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import accumulate

import pyarrow as pa

from pipeline.faults import UsageError
from pipeline.source.cell_types import CellType
from pipeline.source.discovery import Discovery, Inputs, discover
from pipeline.source.generations import ChunkSpans
from pipeline.source.kept_types import cast, kept_type
from pipeline.source.parquet import read_parquet, survey_parquet
from pipeline.source.progress import SurveyProgress
from pipeline.source.run_parts import RowChoice
from pipeline.source.survey import MAX_CHUNK_BYTES, Batch, ChunkRows, Survey, kept_schema, record_batch, require
from pipeline.source.text_records import read_text, survey_text

_BatchStream = Generator[Batch, None, None]

_CHUNK_BYTES = 8 << 20
_CHUNK_ROWS = (1_000, 10_000)
_CHUNKS = 8
MOST_ROWS = 1 << 62
"""What stands for any limit above it: files of JSON and `islice` take no number that is much greater."""
_ADDED = {"row": pa.int64(), "source_file": pa.string(), "source_row": pa.int64()}


def survey(  # noqa: PLR0913 - each says what is read, or how
    inputs: Inputs,
    *,
    chunk_rows: int | None = None,
    min_chunk_rows: int = 1_000,
    limit: int | None = None,
    include: str | Sequence[str] = (),
    rows: RowChoice = "ok",
    allow_partial: bool = False,
    types: Mapping[str, CellType] | None = None,
    progress: SurveyProgress | None = None,
    chunks: int | None = None,
) -> Survey:
    """Read the whole input once and describe it.

    Without `chunk_rows`, a chunk has as many rows as make 8 MiB, estimated from the first rows: at least 1,000 and
    `min_chunk_rows`, otherwise at most 10,000. But an input is cut into about `_CHUNKS` chunks or more, so that
    processes can share it, as long as chunks keep 1,000 rows and a quarter of `min_chunk_rows`. With `chunks` there are
    about so many or more, however few rows each then has. No chunk has more rows
    than make 256 MiB. With `limit`, only the first `limit` rows count; files are still listed and hashed in full. Text
    is parsed record by record to find every column's type; of Parquet, only the footers are read, and the status of
    each row if `rows` of parts of a run are chosen by it. `types` converts columns of CSV. `progress` is told how far
    it is. Memory does not grow with the number of rows.

    Raises `UsageError` for what the user can fix: see `discover`; damaged files; an input without a readable record.
    """
    if chunk_rows is not None and chunk_rows < 1:
        raise UsageError(f"chunk_rows must be 1 or more, not {chunk_rows}")
    if limit is not None and limit < 0:
        raise UsageError(f"limit must be 0 or more, not {limit}")

    return survey_files(
        discover(inputs, include, rows=rows, allow_partial=allow_partial),
        chunk_rows=chunk_rows,
        min_chunk_rows=min_chunk_rows,
        limit=None if limit is None else min(limit, MOST_ROWS),
        types=types,
        progress=progress,
        chunks=chunks,
    )


def survey_files(
    discovery: Discovery,
    *,
    chunk_rows: int | None = None,
    min_chunk_rows: int = 1_000,
    limit: int | None = None,
    types: Mapping[str, CellType] | None = None,
    progress: SurveyProgress | None = None,
    chunks: int | None = None,
) -> Survey:
    """As `survey`, for files that were found; of a file that has grown, only its new rows count."""

    def decide(mean_row_bytes: float) -> int:
        low, high = _CHUNK_ROWS
        fitting = min(max(int(_CHUNK_BYTES / max(mean_row_bytes, 1)), low), high)
        about = sum(found.size for found in discovery.files) / (mean_row_bytes + 1)  # plus the newline
        about = min(about, limit or about)
        if chunks is None:
            even = max(low, min_chunk_rows // 4, math.ceil(about / _CHUNKS))
        else:
            even = max(1, int(about / chunks))
        largest = max(1, int(MAX_CHUNK_BYTES / max(mean_row_bytes, 1)))
        return chunk_rows or min(max(fitting, min_chunk_rows), even, largest)

    if types and discovery.format != "csv":
        raise UsageError("`types` is for columns of CSV, and the input is not CSV: its values have types")
    size = ChunkRows(decide, is_fixed=chunk_rows is not None)
    if discovery.format == "parquet":
        return survey_parquet(discovery, size, limit, progress)
    return survey_text(discovery, size, limit, types, progress)


class Source:
    """The rows of a surveyed input, by chunk. Used by one thread at a time; each chunk being read keeps one file open.

    `needed` names the columns of `Row.values`, None for all of them: every row has them all, None where a record lacks
    one. `kept` names the columns of `Batch.kept`. After them come those of `added`, which say where a row comes from:
    `row`, its ordinal; `source_file`, the name of its file; `source_row`, its position in that file, from 0. `as_type`
    renames the fields within a kept column's type. Raises `UsageError` for a column that the input does not have, and
    for a kept column whose values have no common type.
    """

    def __init__(
        self,
        survey: Survey,
        *,
        needed: Iterable[str] | None,
        kept: Sequence[str],
        added: Sequence[str] = (),
        as_type: Callable[[pa.DataType], pa.DataType] | None = None,
    ) -> None:
        self._read_schema: pa.Schema = kept_schema(survey, kept)
        as_type = as_type or (lambda kind: kind)
        own = [field.with_type(as_type(kept_type(field.type))) for field in self._read_schema]
        self.kept_schema: pa.Schema = pa.schema([*own, *((name, _ADDED[name]) for name in added)])
        self._added = tuple(added)
        self._starts = [0, *accumulate(file.rows for file in survey.files)]
        self._survey = survey
        self._spans = ChunkSpans(survey.generations)
        self._needed = tuple(survey.columns if needed is None else needed)
        require(survey, self._needed)
        self._parked: tuple[int, _BatchStream] | None = None

    def chunk(self, index: int) -> Iterator[Batch]:
        """The rows of one chunk, lazily and in order.

        The chunk after the last one read continues at the file's position; any other needs a seek, which in a
        compressed file means decompressing everything before it. Raises `Broken` when a file cannot be read, is missing
        or has changed.
        """
        if not 0 <= index < len(self._survey.chunks):
            raise IndexError(f"chunk {index} of {len(self._survey.chunks)}")
        span = self._spans.of(index)
        ordinal, end = span.start, span.stop
        batches = self._batches(index, ordinal)
        with ExitStack() as unfinished:
            unfinished.callback(batches.close)  # at once when the caller stops early, not at some later collection
            while ordinal < end:
                batch = next(batches)
                ordinal += len(batch.rows)
                yield self._as_kept(batch)
            unfinished.pop_all()
        self.close()
        self._parked = (ordinal, batches)

    def _batches(self, index: int, ordinal: int) -> _BatchStream:
        if self._parked is not None and self._parked[0] == ordinal:
            batches, self._parked = self._parked[1], None
            return batches
        read = read_parquet if self._survey.format == "parquet" else read_text
        return read(self._survey, index, needed=self._needed, kept=self._read_schema)

    def _as_kept(self, batch: Batch) -> Batch:
        if self.kept_schema == self._read_schema:
            return batch
        columns = [
            column if column.type == field.type else cast(column, kept_type(column.type)).view(field.type)
            for column, field in zip(batch.kept.columns, self.kept_schema, strict=False)
        ]
        first, count = batch.rows[0].ordinal, len(batch.rows)
        file = bisect_right(self._starts, first) - 1  # no batch spans two files
        for name in self._added:
            if name == "source_file":
                columns.append(pa.repeat(self._survey.files[file].name, count))
            else:
                in_file = first - self._starts[file] + self._survey.files[file].rows_before
                start = in_file if name == "source_row" else first
                columns.append(pa.array(range(start, start + count), pa.int64()))
        return Batch(batch.rows, record_batch(columns, self.kept_schema, count))

    def close(self) -> None:
        """Close the file kept open for the next chunk. The source stays usable."""
        if self._parked is not None:
            self._parked[1].close()
            self._parked = None
