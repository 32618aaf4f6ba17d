"""Rows in batches bounded both in number and in bytes, however large a single row is."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data import Entry, Reply
from pipeline.faults import Broken
from pipeline.source.nanoseconds import exact_value, exact_values
from pipeline.storage.remote.part_files import part_object
from pipeline.text import one_line

SLICE_ROWS = 1000
"""Maximum rows of a row group: their replies are in memory together while a part is written."""

SLICE_BYTES = 16 << 20
"""Bytes after which a row group ends early. A bound on rows alone is not enough: one reply may take megabytes."""

BatchSlice = tuple[list[pa.RecordBatch], list[tuple[int, Entry]]]


def slices(kept: Iterable[pa.RecordBatch], entries: Iterable[tuple[int, Entry]]) -> Iterator[BatchSlice]:
    """Consecutive rows, bounded in number and bytes: their copied input columns and their entries."""
    left = iter(entries)
    columns: list[pa.RecordBatch] = []
    some: list[tuple[int, Entry]] = []
    size = 0.0
    for piece in _pieces(kept):
        start, share = 0, piece.nbytes / max(piece.num_rows, 1)
        for end, entry in enumerate(islice(left, piece.num_rows), 1):
            some.append(entry)
            size += share + _size(entry[1])
            if len(some) == SLICE_ROWS or size >= SLICE_BYTES:
                yield [*columns, piece.slice(start, end - start)], some
                start, columns, some, size = end, [], [], 0.0
        if start < piece.num_rows:
            columns.append(piece.slice(start))
    if some or columns:
        yield columns, some
    if next(left, None) is not None:
        raise RuntimeError("there are more entries than rows")


def _pieces(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Splits the batches into pieces no larger than a slice, assuming rows of roughly equal size."""
    for batch in batches:
        rows = max(1, int(batch.num_rows * SLICE_BYTES / max(batch.nbytes, 1)))
        for start in range(0, batch.num_rows, rows):
            yield batch.slice(start, rows)


def _size(entry: Entry) -> int:
    return len(entry.body) + len(entry.transcript or "") if isinstance(entry, Reply) else len(entry.message)


def rows_of(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows of a batch as plain Python values; a value that Python cannot represent becomes text."""
    try:
        columns = [exact_values(column) for column in batch.columns]
    except _NO_FORM:
        columns = [[_plain(value) for value in column] for column in batch.columns]
    if not columns:
        return [{} for _ in range(batch.num_rows)]
    names = batch.schema.names
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


_NO_FORM = (ValueError, OverflowError, KeyError, pa.ArrowException)
"""What Arrow raises for nanoseconds, years beyond 9999, text that is not UTF-8, and unknown time zones."""


def _plain(value: pa.Scalar) -> Any:
    try:
        return exact_value(value)
    except _NO_FORM:
        return _in_words(value)


def _in_words(value: pa.Scalar) -> Any:
    """Converts a nested value as far as possible; only the parts that cannot be converted become text."""
    match value:
        case pa.StructScalar():
            return {name: _plain(value[index]) for index, name in enumerate(value.type.names)}
        case pa.MapScalar():
            return [
                (_plain(key), _plain(item))
                for key, item in zip(value.values.field(0), value.values.field(1), strict=True)
            ]
        case pa.ListScalar() | pa.LargeListScalar() | pa.FixedSizeListScalar() | pa.ListViewScalar():
            return [_plain(item) for item in value.values]
        case pa.DictionaryScalar() | pa.ExtensionScalar():
            return _plain(value.value)
        case pa.StringScalar() | pa.LargeStringScalar() | pa.StringViewScalar():
            return value.as_buffer().to_pybytes().decode("utf-8", "replace")
        case _:
            return _as_text(value)


def _as_text(value: pa.Scalar) -> str:
    plain = pa.timestamp(value.type.unit) if pa.types.is_timestamp(value.type) and value.type.tz else value.type
    try:
        text = str(value.cast(plain).cast(pa.string()).as_py())
    except _NO_FORM:
        return f"a {value.type} that cannot be shown"
    return text if plain == value.type else f"{text}Z"


@contextmanager
def parquet_at(path: Path) -> Iterator[pq.ParquetFile]:
    """A Parquet file, open for the duration of the block; any name the file system accepts works.

    A part that is in a bucket and not on this machine is read there, as far as it is needed.
    """
    if not path.exists() and (found := part_object(path)) is not None:
        options: dict[str, Any] = {"pre_buffer": True, "buffer_size": 0}  # the columns of a row group in few requests
        raw = pa.PythonFile(found, mode="r")
    else:
        options = {}
        raw = pa.OSFile(os.fsencode(path))  # given a str, Arrow rejects names that are not valid UTF-8
    with raw, pq.ParquetFile(raw, page_checksum_verification=True, **options) as file:
        yield file


@contextmanager
def part_file(path: Path) -> Iterator[pq.ParquetFile]:
    """A file of a part, open for the duration of the block. Raises `Broken` when it is missing or damaged."""
    try:
        with parquet_at(path) as file:
            yield file
    except (OSError, pa.ArrowException) as error:
        raise Broken(
            f"{path} cannot be read: {one_line(str(error))}; restore it, or run `pipeline reparse` on its folder"
        ) from error


def bounded_batches(
    file: pq.ParquetFile, columns: Sequence[str] | None = None, *, groups: Iterable[int] | None = None
) -> Iterator[pa.RecordBatch]:
    """The rows of a file, or of the given row groups, in batches of bounded bytes; no batch spans two groups."""
    for group in range(file.num_row_groups) if groups is None else groups:
        metadata = file.metadata.row_group(group)
        rows = int(metadata.num_rows * SLICE_BYTES / max(metadata.total_byte_size, 1))
        size = max(1, min(rows, SLICE_ROWS))
        yield from file.iter_batches(batch_size=size, row_groups=[group], columns=columns, use_threads=False)
