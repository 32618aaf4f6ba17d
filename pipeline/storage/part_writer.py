"""Writes the files of a part, each of bounded size, and hashes them as they are written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data import PartFile
from pipeline.storage.durable import stamp_of

FILE_BYTES = 1 << 30
"""Uncompressed bytes after which a part continues in another file: readers that load a whole string column into one
array with 32-bit offsets fail at 2 GiB."""

_DICTIONARIES = ["status", "response.finish_reason", "response.model", "error.type"]
"""Columns of few different values. All others are written plainly: a dictionary is built in memory before it is found
to be no smaller than the values."""


def part_name(chunk: int, number: int = 0) -> str:
    """The name of a chunk's part, and of its additional files; lexical order is row order up to a million parts."""
    return f"part-{chunk:06d}_{number:02d}.parquet" if number else f"part-{chunk:06d}.parquet"


class PartWriter:
    """The files of one part in `folder` while they are written. `opened` gives a new file, to be at a path later on."""

    def __init__(self, folder: Path, chunk: int, schema: pa.Schema, opened: Callable[[Path], BinaryIO]) -> None:
        self._folder = folder
        self._chunk = chunk
        self._schema = schema
        self._opened = opened
        self._written: list[tuple[Path, _Digest, int]] = []
        self._begin()

    def _begin(self) -> None:
        self._path = self._folder / part_name(self._chunk, len(self._written))
        self._digest = _Digest(self._opened(self._path))
        self._writer = parquet_writer(self._digest, self._schema)
        self._rows = self._bytes = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Appends a row group; starts another file when this one would exceed `FILE_BYTES`."""
        # Decided before the row group is written, so that a file never holds more than the bound and one row group.
        if self._rows and self._bytes + batch.nbytes > FILE_BYTES:
            self.close()
            self._begin()
        self._writer.write_batch(batch)
        self._rows += batch.num_rows
        self._bytes += batch.nbytes

    def close(self) -> None:
        """Writes the footer of the file that is being written."""
        self._writer.close()
        self._written.append((self._path, self._digest, self._rows))

    def sealed(self) -> list[PartFile]:
        """The files written, once they are in place."""
        return [
            PartFile(path.name, rows, digest.size, digest.hexdigest(), stamp_of(path))
            for path, digest, rows in self._written
        ]


class _Digest:
    """A binary file that is hashed while it is written."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        # Hashed on the way: reading the file again would double the reads, and would hash what the disk says.
        self._file.write(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()

    def tell(self) -> int:
        return self.size

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def parquet_writer(file: Any, schema: pa.Schema) -> pq.ParquetWriter:
    """A writer of Parquet as all our files are: zstd, with page checksums, so that a flipped bit is found."""
    names = {field.name for field in schema}
    return pq.ParquetWriter(
        file,
        schema,
        compression="zstd",
        compression_level=3,  # zstd's own default; levels above cost several times the time for a few percent
        use_dictionary=[name for name in _DICTIONARIES if name.split(".")[0] in names],
        write_page_checksum=True,
        write_page_index=True,
    )
