"""Parquet: footers before everything else, then only the columns asked for, in small batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data import Row
from pipeline.faults import Broken, Misuse
from pipeline.source.files import HashedFile, Watch
from pipeline.source.layout import MAX_BATCH_ROWS, Batch, File, Position, Survey, one_line, record_batch

_BATCH_BYTES = 16 << 20
_DECODED_ROWS = 4096  # decoding has a price per call, so it takes more rows at once than a batch has
_UNREADABLE = (OSError, pa.ArrowException)  # what Arrow raises for bytes that are not, or no longer, Parquet


def survey_parquet(paths: Sequence[Path], chunk_rows: Callable[[float], int], limit: int | None) -> Survey:
    """Read every footer and hash every file; no data page is decoded.

    Raises `Misuse` for a file that is corrupt or cut short, and for a column of different types in different files.
    """
    footers = [_footer(path) for path in paths]
    schema = _settled(paths, [schema for _, schema in footers])
    counts = _limited([metadata.num_rows for metadata, _ in footers], limit)
    rows = sum(counts)
    mean = sum(map(_data_bytes, (metadata for metadata, _ in footers))) / max(sum(f.num_rows for f, _ in footers), 1)
    size = chunk_rows(mean)
    return Survey(
        files=tuple(_file(path, count) for path, count in zip(paths, counts, strict=True)),
        format="parquet",
        columns={field.name: str(field.type) for field in schema},
        rows=rows,
        bad_lines=(),
        bad_count=0,
        mean_row_bytes=mean,
        chunk_rows=size,
        chunks=tuple(_positions(counts, size)),
        schema=schema.serialize().to_pybytes(),
    )


def _footer(path: Path) -> tuple[pq.FileMetaData, pa.Schema]:
    try:
        with pq.ParquetFile(path) as file:
            metadata, schema = file.metadata, file.schema_arrow
    except _UNREADABLE as error:
        raise Misuse(
            f"{path} is no whole Parquet file ({one_line(error)}); write it again or take it out of the input"
        ) from error
    repeated = [name for name, count in Counter(schema.names).items() if count > 1]
    if repeated:
        raise Misuse(f"{path} has several columns named {', '.join(repeated)}; give them different names")
    return metadata, schema


def _file(path: Path, rows: int) -> File:
    with HashedFile(path) as file:
        return file.sealed(rows)


def _data_bytes(metadata: pq.FileMetaData) -> int:
    return sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))


def _limited(counts: Sequence[int], limit: int | None) -> list[int]:
    if limit is None:
        return list(counts)
    ends = [min(end, limit) for end in accumulate(counts)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _positions(counts: Sequence[int], chunk_rows: int) -> Iterator[Position]:
    first = 0
    for index, count in enumerate(counts):
        for ordinal in range(-(-first // chunk_rows) * chunk_rows, first + count, chunk_rows):
            yield Position(index, ordinal - first)
        first += count


def _settled(paths: Sequence[Path], schemas: Sequence[pa.Schema]) -> pa.Schema:
    """The columns of all files, all nullable, in the order they are first seen. One without any value is a string."""
    types: dict[str, pa.DataType] = {}
    origin: dict[str, Path] = {}
    for path, schema in zip(paths, schemas, strict=True):
        for field in schema:
            before = types.get(field.name, pa.null())
            merged = widened(before, field.type)
            if merged is None:
                raise Misuse(
                    f"column {field.name!r} is {field.type} in {path} but {before} in {origin[field.name]}: write the "
                    "files with one type for it"
                )
            if before == pa.null():
                origin[field.name] = path
            types[field.name] = merged
    return pa.schema([(name, pa.string() if pa.types.is_null(kind) else kind) for name, kind in types.items()])


def widened(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type of both, null widening to anything and a required field to an optional one; else None."""
    if pa.types.is_null(other) or one == other:
        return one
    if pa.types.is_null(one):
        return other
    if pa.types.is_list(one) and pa.types.is_list(other):
        field = _widened_field(one.value_field, other.value_field)
        return None if field is None else pa.list_(field)
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        if [field.name for field in one] != [field.name for field in other]:
            return None
        fields = [_widened_field(left, right) for left, right in zip(one, other, strict=True)]
        return pa.struct(fields) if all(field is not None for field in fields) else None
    return None


def _widened_field(one: pa.Field, other: pa.Field) -> pa.Field | None:
    kind = widened(one.type, other.type)
    return None if kind is None else pa.field(one.name, kind, nullable=one.nullable or other.nullable)


def read_parquet(survey: Survey, index: int, *, needed: Sequence[str], kept: pa.Schema) -> Generator[Batch, None, None]:
    """The batches from the start of a chunk to the end of the input, none of them across the end of a chunk.

    Raises `Broken` for a page that cannot be read, and when a file does not stay the one that was surveyed.
    """
    start, ordinal, end = survey.chunks[index], index * survey.chunk_rows, 0
    columns = {*needed, *kept.names}
    for number, file in enumerate(survey.files):
        end += file.rows
        if number < start.file:
            continue
        skip = start.offset if number == start.file else 0
        watch = Watch(file)
        watch.check()
        for batch in _slices(_decoded(file, skip, columns), ordinal, end, survey.chunk_rows):
            watch.check()
            yield Batch(_rows(batch, ordinal, needed), _kept(batch, kept))
            ordinal += batch.num_rows
        if ordinal != end:
            raise Broken(f"{file.path} ends too early: it changed during the run")


def _decoded(file: File, start: int, columns: Collection[str]) -> Iterator[pa.RecordBatch]:
    """The rows of a file from row `start` on, in batches of bounded bytes; earlier row groups stay unread."""
    group = 0
    try:
        # Buffered and not read ahead, a column chunk is in memory by pages; a mapped file that shrank would kill us.
        options = {"buffer_size": 1 << 16, "pre_buffer": False, "page_checksum_verification": True}
        with pq.ParquetFile(file.path, **options) as parquet:
            for group, skip in _groups(parquet.metadata, start):
                yield from _dropping(_batches(parquet, group, columns), skip)
    except _UNREADABLE as error:
        raise Broken(f"{file.path}, row group {group}: cannot be read: {one_line(error)}") from error


def _groups(metadata: pq.FileMetaData, start: int) -> Iterator[tuple[int, int]]:
    """The row groups from the one that holds row `start` on, each with how many of its rows to pass over."""
    end = 0
    for group in range(metadata.num_row_groups):
        first, end = end, end + metadata.row_group(group).num_rows
        if end > start:
            yield group, max(start - first, 0)


def _batches(parquet: pq.ParquetFile, group: int, columns: Collection[str]) -> Iterator[pa.RecordBatch]:
    metadata = parquet.metadata.row_group(group)
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
    """The batches cut to the size of ours, none across the end of a chunk, up to the ordinal `end`."""
    for batch in batches:
        offset = 0
        while offset < batch.num_rows and ordinal < end:
            count = min(MAX_BATCH_ROWS, end - ordinal, chunk_rows - ordinal % chunk_rows)
            piece = batch.slice(offset, count)
            yield piece
            offset, ordinal = offset + piece.num_rows, ordinal + piece.num_rows
        if ordinal == end:
            return


def _kept(batch: pa.RecordBatch, kept: pa.Schema) -> pa.RecordBatch:
    columns = [_as_settled(_column(batch, field.name), field.type, batch.num_rows) for field in kept]
    return record_batch(columns, kept, batch.num_rows)


def _as_settled(column: pa.Array | None, kind: pa.DataType, rows: int) -> pa.Array:
    if column is None or pa.types.is_null(column.type):
        return pa.nulls(rows, kind)
    return column if column.type == kind else column.cast(kind)


def _column(batch: pa.RecordBatch, name: str) -> pa.Array | None:
    index = batch.schema.get_field_index(name)
    return None if index < 0 else batch.column(index)


def _rows(batch: pa.RecordBatch, ordinal: int, needed: Sequence[str]) -> list[Row]:
    columns = [(name, _column(batch, name)) for name in needed]
    try:
        values = [[None] * batch.num_rows if column is None else column.to_pylist() for _, column in columns]
    except (ValueError, OverflowError):  # some value has no Python form: the rows one by one, to tell which
        return [_row(batch.slice(index, 1), ordinal + index, needed) for index in range(batch.num_rows)]
    if not values:
        return [Row(at, {}) for at in range(ordinal, ordinal + batch.num_rows)]
    return [Row(at, dict(zip(needed, row, strict=True))) for at, row in enumerate(zip(*values, strict=True), ordinal)]


def _row(batch: pa.RecordBatch, ordinal: int, needed: Sequence[str]) -> Row:
    values: dict[str, Any] = {}
    for name in needed:
        column = _column(batch, name)
        try:
            values[name] = None if column is None else column[0].as_py()
        except UnicodeDecodeError:
            return Row(ordinal, {}, f"row {ordinal}: column {name!r} is not valid UTF-8")
        except (ValueError, OverflowError):
            kind = batch.schema.field(name).type
            return Row(ordinal, {}, f"row {ordinal}: column {name!r} holds a {kind} that Python has no exact value for")
    return Row(ordinal, values)
