"""The replies kept beside each part, byte for byte, so that it can be rebuilt under another schema."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data import Entry
from pipeline.faults import Broken
from pipeline.storage.batches import bounded_batches, parquet_at
from pipeline.storage.codec import decode, encode
from pipeline.storage.durable import PRIVATE_FILE, PRIVATE_FOLDER, FileSystem
from pipeline.storage.output_columns import columns_of
from pipeline.storage.part_writer import parquet_writer, part_name
from pipeline.storage.run_folder import REPLIES, RUN

_SCHEMA = pa.schema([("ordinal", pa.int64()), ("meta", pa.binary()), ("body", pa.binary())])


@contextmanager
def replies_writer(folder: Path, chunk: int, files: FileSystem) -> Iterator[pq.ParquetWriter]:
    """A writer for the kept replies of one part; they are durable when the block exits without an error."""
    path = replies_path(folder, chunk)
    files.make_folder(path.parent, mode=PRIVATE_FOLDER)
    with files.atomic_writer(path, mode=PRIVATE_FILE) as file, parquet_writer(file, _SCHEMA) as writer:
        yield writer


def encoded(entries: Sequence[tuple[int, Entry]]) -> pa.RecordBatch:
    """The entries as `replies_writer` stores them."""
    rows = [(ordinal, *encode(entry)) for ordinal, entry in entries]
    return pa.RecordBatch.from_arrays(columns_of(rows, _SCHEMA), schema=_SCHEMA)


def kept_replies(folder: Path, chunk: int) -> Iterator[tuple[int, Entry]]:
    """The entries that `seal` kept beside a part, in order. Raises `Broken` when they are missing or damaged."""
    try:
        with parquet_at(replies_path(folder, chunk)) as file:
            for batch in bounded_batches(file):
                for ordinal, meta, body in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    yield ordinal, decode(meta, body)
    except (OSError, pa.ArrowException, ValueError) as error:
        raise _unreadable(chunk, error) from error


def require_replies(folder: Path, chunk: int) -> None:
    """Raises `Broken` when the replies kept beside a part are not there, or their pages are not what was written."""
    try:
        with parquet_at(replies_path(folder, chunk)) as file:
            for _ in bounded_batches(file):
                pass
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(chunk, error) from error


def _unreadable(chunk: int, error: Exception) -> Broken:
    message = f"the kept replies of {part_name(chunk)} cannot be read: {error}"
    return Broken(f"{message}; restore the file, or use --fresh to ask again")


def replies_path(folder: Path, chunk: int) -> Path:
    """Where the kept replies of a part are, below an output folder."""
    # A Parquet file without the suffix: DuckDB reads every *.parquet below a folder as part of the dataset.
    return folder / RUN / REPLIES / f"part-{chunk:06d}.replies"
