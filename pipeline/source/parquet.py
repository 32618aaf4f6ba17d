"""Parquet: footers first, then only the requested columns, in small batches."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as t

from pipeline.data import Row, RowValues
from pipeline.faults import Broken, UsageError
from pipeline.source.discovery import Discovery, FoundFile
from pipeline.source.files import HashedFile, UnchangedCheck, parquet_file, several_at_once
from pipeline.source.format_detection import not_parquet
from pipeline.source.generations import ChunkSpans
from pipeline.source.kept_types import with_valid_text, without_null, without_views
from pipeline.source.nanoseconds import exact_value, exact_values
from pipeline.source.progress import SurveyProgress
from pipeline.source.survey import (
    MAX_BATCH_ROWS,
    Batch,
    ChunkRows,
    Conflict,
    File,
    Partitions,
    Position,
    Survey,
    record_batch,
)
from pipeline.source.type_promotion import conformed, widened
from pipeline.store.address import Address
from pipeline.text import one_line

_BATCH_BYTES = 16 << 20
_STATUS = "status"
_LEFT_OUT = "{:,} failed rows of an earlier run are not read (--input-rows all reads them)"
_DECODED_ROWS = 4096  # decoding has a cost per call, so more rows than a batch has are decoded at once
_UNREADABLE = (OSError, pa.ArrowException)  # raised by Arrow for bytes that are not, or no longer, Parquet
_FORMLESS = (
    ValueError,
    OverflowError,
    pa.ArrowException,
)  # raised by pyarrow for a value that Python cannot represent
_Footer = tuple[pq.FileMetaData, pa.Schema]
_CALENDAR_SECONDS = 1e12
"""About 31,700 years before and after 1970: soon beyond that, Arrow's calendar writes wrong years."""


def survey_parquet(
    discovery: Discovery, chunk_rows: ChunkRows, limit: int | None, progress: SurveyProgress | None = None
) -> Survey:
    """Read every footer and hash every file, several at once; no data page is decoded. Objects are not hashed.

    Raises `UsageError` for a corrupt or truncated file. A column whose types have no exact common type is a conflict,
    which matters only if the column is used.
    """
    # All footers before any file is hashed: a damaged one among thousands is found in seconds.
    sizes = [0 if found.version else found.size for found in discovery.files]
    progress = progress or SurveyProgress()
    progress.begin(len(sizes), sum(sizes))
    footers = []
    for found, footer in zip(discovery.files, several_at_once(_footer, discovery.files), strict=True):
        footers.append(footer)
        progress.rows += footer[0].num_rows
        progress.files += 1 if found.version else 0
    schema, conflicts = _settled(discovery.files, footers)
    held = [*several_at_once(_rows_in, discovery.files, [metadata for metadata, _ in footers])]
    left_out = sum(metadata.num_rows for metadata, _ in footers) - sum(held)
    counts = _limited(held, limit)
    mean = sum(map(_data_bytes, (metadata for metadata, _ in footers))) / max(sum(f.num_rows for f, _ in footers), 1)
    size = chunk_rows.of(mean)
    # Rows may be larger in one row group than on average, and a chunk there would exceed what a part may hold.
    if not chunk_rows.is_fixed:
        size = chunk_rows.fitting(size, size * _largest_row_bytes(footers))
    names = dict.fromkeys(name for _, schema in footers for name in schema.names) | dict.fromkeys(schema.names)
    types = {field.name: str(field.type) for field in schema}
    files = []
    for file in several_at_once(_file, discovery.files, counts):
        files.append(file)
        progress.files += 0 if file.version else 1
        progress.bytes += 0 if file.version else file.size
    return Survey(
        files=tuple(files),
        format="parquet",
        columns={name: types.get(name, "mixed") for name in names},
        rows=sum(counts),
        bad_lines=(),
        bad_count=0,
        mean_row_bytes=mean,
        chunk_rows=size,
        chunks=tuple(_positions(discovery.files, counts, size)),
        schema=schema.serialize().to_pybytes(),
        conflicts=conflicts,
        notes=(*discovery.notes, *([_LEFT_OUT.format(left_out)] if left_out else [])),
    )


def _footer(found: FoundFile) -> _Footer:
    path = found.path
    try:
        with parquet_file(found) as file:
            metadata, schema = file.metadata, file.schema_arrow
    except _UNREADABLE as error:
        cause = one_line(str(error))
        raise UsageError(
            (not_parquet(path) if isinstance(path, Path) else None)
            or f"{path} is not a complete Parquet file ({cause}); write it again or take it out of the input"
        ) from error
    repeated = [name for name, count in Counter(schema.names).items() if count > 1]
    if repeated:
        raise UsageError(f"{path} has several columns named {', '.join(repeated)}; give them different names")
    return metadata, schema


def _file(found: FoundFile, rows: int) -> File:
    with HashedFile(found) as file:
        return replace(file.sealed(found.name, found.partitions, rows), only_ok=found.only_ok)


def _rows_in(found: FoundFile, metadata: pq.FileMetaData) -> int:
    """The number of rows of a file that are read."""
    return sum(len(places) for _, places in _ok_places(found)) if found.only_ok else int(metadata.num_rows)


def _ok_places(found: FoundFile) -> Iterator[tuple[int, pa.Array]]:
    """For each batch of a run's part: the number of rows before it, and the places of its ok rows within it."""
    import pyarrow.compute as pc  # here, as most runs do without it

    first = 0
    try:
        with parquet_file(found, buffer_size=1 << 16, page_checksum_verification=True) as file:
            for batch in file.iter_batches(columns=[_STATUS], use_threads=False):
                yield first, pc.indices_nonzero(_is_ok(batch))
                first += batch.num_rows
    except _UNREADABLE as error:
        raise UsageError(f"{found.path} cannot be read: {one_line(str(error))}; restore it") from error


def _is_ok(batch: pa.RecordBatch) -> pa.BooleanArray:
    import pyarrow.compute as pc

    return pc.equal(batch.column(_STATUS).cast(pa.string()), "ok")


def _data_bytes(metadata: pq.FileMetaData) -> int:
    return sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))


def _largest_row_bytes(footers: Sequence[_Footer]) -> float:
    """The mean row size of the row group with the largest rows: footers say nothing about single rows."""
    groups = (metadata.row_group(index) for metadata, _ in footers for index in range(metadata.num_row_groups))
    return max((group.total_byte_size / group.num_rows for group in groups if group.num_rows), default=0.0)


def _limited(counts: Sequence[int], limit: int | None) -> list[int]:
    if limit is None:
        return list(counts)
    ends = [min(end, limit) for end in accumulate(counts)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _positions(files: Sequence[FoundFile], counts: Sequence[int], chunk_rows: int) -> Iterator[Position]:
    first = 0
    for index, (found, count) in enumerate(zip(files, counts, strict=True)):
        wanted = range(-(-first // chunk_rows) * chunk_rows - first, count, chunk_rows)
        for place in _places_of(found, wanted) if found.only_ok else wanted:
            yield Position(index, place)
        first += count


def _places_of(found: FoundFile, wanted: Iterable[int]) -> Iterator[int]:
    """The places in a part of its ok rows with these numbers, which ascend."""
    numbers = deque(wanted)
    before = 0
    for first, places in _ok_places(found):
        while numbers and numbers[0] < before + len(places):
            yield first + places[numbers.popleft() - before].as_py()
        before += len(places)


def _settled(files: Sequence[FoundFile], footers: Sequence[_Footer]) -> tuple[pa.Schema, tuple[Conflict, ...]]:
    """The columns of all files, all nullable, in order of first appearance, those from folders last.

    A column without any value is a string. If a folder names the same column, the folder's value is used, as in DuckDB.
    A file without rows adds its columns, and changes the type of none.
    """
    types: dict[str, pa.DataType] = {}
    origin: dict[str, Path | Address] = {}
    conflicts: dict[str, Conflict] = {}
    for found, (metadata, schema) in zip(files, footers, strict=True):
        given = {field.name: field.type for field in schema} | {name: pa.string() for name, _ in found.partitions}
        for name, kind in given.items():
            before = types.get(name, pa.null())
            merged = widened(before, kind if metadata.num_rows else pa.null())
            if merged is None:
                problem = f"column {name!r} is {kind} in {found.path} but {before} in {origin[name]}"
                conflicts.setdefault(
                    name, Conflict(name, f"{problem}: leave it out with `keep=[...]`, or write the files with one type")
                )
                continue
            # The file that gave the column its type: that is the one which a conflict is reported against.
            if merged != before:
                origin[name] = found.path
            types[name] = merged
    # With no row to go by in any file, as an empty file says.
    empty = {field.name: field.type for _, schema in reversed(footers) for field in schema}
    final = {name: empty.get(name, kind) if t.is_null(kind) else kind for name, kind in types.items()}
    settled = {name: without_null(without_views(kind)) for name, kind in final.items() if name not in conflicts}
    return pa.schema(list(settled.items())), tuple(conflicts.values())


def read_parquet(survey: Survey, index: int, *, needed: Sequence[str], kept: pa.Schema) -> Generator[Batch, None, None]:
    """The batches from the start of a chunk to the end of the input, none of them across a chunk boundary.

    Raises `Broken` for a page that cannot be read, and when a file is no longer the one that was surveyed.
    """
    spans = ChunkSpans(survey.generations)
    start, ordinal, end = survey.chunks[index], spans.of(index).start, 0
    columns = {*needed, *kept.names}
    types = {field.name: field.type for field in survey.arrow_schema()}
    for number, file in enumerate(survey.files):
        end += file.rows
        if number < start.file:
            continue
        skip = start.offset if number == start.file else 0
        watch = UnchangedCheck(file)
        # Before the file is opened and before each batch is used: what was read of a changed file reaches no request.
        watch.check()
        first, chunk_rows = spans.in_file(number)
        for batch in _slices(_decoded(file, skip, columns), ordinal - first, end - first, chunk_rows):
            watch.check()
            yield _Columns(batch, types, file.partitions).batch(ordinal, needed, kept)
            ordinal += batch.num_rows
        if ordinal != end:
            raise Broken(f"{file.path} ends too early: it changed during the run")


def _decoded(file: File, start: int, columns: Collection[str]) -> Iterator[pa.RecordBatch]:
    """The rows that are read of a file, from its row `start` on, in batches of bounded bytes.

    Earlier row groups are not read.
    """
    group = 0
    needed = {*columns, _STATUS} if file.only_ok else columns
    try:
        # Buffered and without read-ahead, a column chunk is in memory page by page. Not memory-mapped: if the file
        # shrank, the process would be killed.
        options = {"buffer_size": 1 << 16, "pre_buffer": False, "page_checksum_verification": True}
        with parquet_file(file, **options) as parquet:
            for group, skip in _groups(parquet.metadata, start):
                found = _dropping(_batches(parquet, group, needed), skip)
                yield from (batch.filter(_is_ok(batch)) for batch in found) if file.only_ok else found
    except _UNREADABLE as error:
        raise Broken(f"{file.path}, row group {group}: cannot be read: {one_line(str(error))}") from error


def _groups(metadata: pq.FileMetaData, start: int) -> Iterator[tuple[int, int]]:
    """The row groups from the one that holds row `start` on, each with the number of its rows to skip."""
    end = 0
    for group in range(metadata.num_row_groups):
        first, end = end, end + metadata.row_group(group).num_rows
        if end > start:
            yield group, max(start - first, 0)


def _batches(parquet: pq.ParquetFile, group: int, columns: Collection[str]) -> Iterator[pa.RecordBatch]:
    metadata = parquet.metadata.row_group(group)
    # By the columns that are read: a job that uses a short text beside large images decodes many rows at once.
    rows = _BATCH_BYTES * metadata.num_rows // max(_bytes_of(metadata, columns), 1)
    batches: Iterator[pa.RecordBatch] = parquet.iter_batches(
        batch_size=max(1, min(rows, _DECODED_ROWS)),
        row_groups=[group],
        columns=[name for name in parquet.schema_arrow.names if name in columns],
        use_threads=False,
    )
    return batches


def _bytes_of(group: pq.RowGroupMetaData, columns: Collection[str]) -> int:
    chunks = (group.column(index) for index in range(group.num_columns))
    starts = tuple(f"{name}." for name in columns)
    return sum(c.total_uncompressed_size for c in chunks if f"{c.path_in_schema}.".startswith(starts))


def _dropping(batches: Iterator[pa.RecordBatch], skip: int) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        if batch.num_rows > skip:
            yield batch.slice(skip)
        skip = max(skip - batch.num_rows, 0)


def _slices(batches: Iterator[pa.RecordBatch], ordinal: int, end: int, chunk_rows: int) -> Iterator[pa.RecordBatch]:
    """The batches cut to our batch size, none across a chunk boundary, up to the ordinal `end`."""
    for batch in batches:
        offset = 0
        while offset < batch.num_rows and ordinal < end:
            count = min(MAX_BATCH_ROWS, end - ordinal, chunk_rows - ordinal % chunk_rows)
            piece = batch.slice(offset, count)
            yield piece
            offset, ordinal = offset + piece.num_rows, ordinal + piece.num_rows
        if ordinal == end:
            return


class _Columns:
    """The columns of some rows of a file, in their final types, including the columns given by its folders."""

    def __init__(self, batch: pa.RecordBatch, types: Mapping[str, pa.DataType], partitions: Partitions) -> None:
        self._rows = batch.num_rows
        self._types = types
        self._given = dict(zip(batch.schema.names, batch.columns, strict=True))
        self._given |= {name: pa.repeat(pa.scalar(value, pa.string()), self._rows) for name, value in partitions}
        self._settled: dict[str, pa.Array] = {}
        self._problems: dict[int, dict[str, str]] = {}

    def batch(self, ordinal: int, needed: Sequence[str], kept: pa.Schema) -> Batch:
        """The batch of these rows; `ordinal` is that of the first."""
        copied = [with_valid_text(self._column(field.name, ordinal)) for field in kept]
        values = [self._values(name, ordinal) for name in needed]
        rows = [
            Row(at, dict(zip(needed, row, strict=True)))
            for at, row in enumerate(zip(*values, strict=True) if values else [()] * self._rows, ordinal)
        ]
        for index, problems in self._problems.items():
            readable = {name: value for name, value in rows[index].values.items() if name not in problems}
            rows[index] = Row(ordinal + index, RowValues(readable, problems))
        return Batch(rows, record_batch(copied, kept, self._rows))

    def _column(self, name: str, ordinal: int) -> pa.Array:
        if name not in self._settled:
            array = self._given.get(name)
            kind = self._types.get(name, pa.string() if array is None else array.type)
            found = pa.nulls(self._rows, kind) if array is None else array
            self._settled[name] = self._conformed(name, found, kind, ordinal)
        return self._settled[name]

    def _conformed(self, name: str, array: pa.Array, kind: pa.DataType, ordinal: int) -> pa.Array:
        """The column in its final type; a value that does not fit becomes null, with a problem for its row."""
        try:
            return conformed(array, kind)
        except pa.ArrowException:  # one value at a time, to find the ones that do not fit
            pieces = []
            for index in range(self._rows):
                try:
                    pieces.append(conformed(array.slice(index, 1), kind))
                except pa.ArrowException:
                    pieces.append(pa.nulls(1, kind))
                    message = f"holds a {array.type} that does not fit {kind}, its type in other files"
                    self._problem(index, ordinal, name, message)
            return pa.concat_arrays(pieces)

    def _values(self, name: str, ordinal: int) -> list[Any]:
        column = self._column(name, ordinal)
        try:
            return exact_values(column)
        except _FORMLESS:  # Python cannot represent some value: one value at a time, to find it
            return [self._value(name, column, index, ordinal) for index in range(self._rows)]

    def _value(self, name: str, column: pa.Array, index: int, ordinal: int) -> Any:
        try:
            return _python_form(column[index])
        except UnicodeDecodeError:
            self._problem(index, ordinal, name, "is not valid UTF-8")
        except _FORMLESS:
            self._problem(index, ordinal, name, f"holds a {column.type} that Python has no exact value for")
        return None

    def _problem(self, index: int, ordinal: int, name: str, message: str) -> None:
        self._problems.setdefault(index, {})[name] = f"row {ordinal + index}: column {name!r} {message}"


def _python_form(value: pa.Scalar) -> Any:
    """The value as Python; times that Python cannot represent become ISO 8601 text with all their digits.

    Raises pyarrow's error when there is no such text either.
    """
    if not value.is_valid:
        return None
    if isinstance(value, pa.StructScalar):
        return {name: _python_form(inner) for name, inner in value.items()}
    if isinstance(value, pa.ListScalar):
        return [_python_form(inner) for inner in value.values]
    try:
        return exact_value(value)
    except _FORMLESS:
        if not t.is_temporal(value.type) or t.is_duration(value.type) or abs(_seconds(value)) > _CALENDAR_SECONDS:
            raise
        return value.cast(pa.string()).as_py()


def _seconds(value: pa.Scalar) -> float:
    if t.is_date32(value.type):
        return float(value.value * 86_400)
    unit = "ms" if t.is_date64(value.type) else value.type.unit
    return float(value.value / {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}[unit])
