"""The formats of an exported file, by its suffix; text is compressed if the name ends in `.gz` or `.zst`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.export.selection import ColumnSelection, dotted, values_at
from pipeline.export.values import json_bytes, python_rows, text_of
from pipeline.faults import UsageError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}

_BOM = b"\xef\xbb\xbf"
_GROUP_ROWS = 100_000
_GROUP_BYTES = 64 << 20
"""Rows and bytes of a row group, which is in memory as a whole."""


@dataclass(frozen=True, slots=True)
class ExportFormat:
    """What the name of a file says of its content: its suffix, in lower case, and its compression, if any."""

    suffix: str
    compression: str | None


class Writer(Protocol):
    """Writes batches of the dataset to a file. A name below is that of a column in the file."""

    names: list[str]

    def write(self, batch: pa.RecordBatch) -> None:
        """Appends the rows of a batch."""

    def close(self) -> None:
        """Writes what is left; the file stays open."""


def format_of(file: str, *, bom: bool = False) -> ExportFormat:
    """The format of a file of this name. Raises `UsageError` for an unknown one, or a `bom` that it cannot have."""
    name = file.lower()
    packed = next((suffix for suffix in COMPRESSIONS if name.endswith(suffix)), "")
    suffix = next((one for one in SUFFIXES if name.removesuffix(packed).endswith(one)), None)
    if suffix is None or (packed and suffix == ".parquet"):
        also = "all but .parquet also with .gz or .zst"
        raise UsageError(f"--to names {file!r}: the name must end in one of {', '.join(SUFFIXES)} ({also})")
    if bom and suffix not in (".csv", ".tsv"):
        raise UsageError(f"--bom is for .csv and .tsv, not for {suffix}")
    return ExportFormat(suffix, COMPRESSIONS.get(packed))


@contextmanager
def writer_to(file: BinaryIO, kind: ExportFormat, selection: ColumnSelection, *, bom: bool) -> Iterator[Writer]:
    """A writer of the selected columns. The file is complete when the block exits without an error."""
    if kind.suffix == ".parquet":
        writer: Writer = _Parquet(file, selection)
        yield writer
        writer.close()
        return
    with _compressed(file, kind.compression) as stream:
        if kind.suffix in (".csv", ".tsv"):
            writer = _Delimited(stream, selection, "\t" if kind.suffix == ".tsv" else ",", bom=bom)
        else:
            writer = _Lines(stream, selection)
        yield writer


@contextmanager
def _compressed(file: BinaryIO, compression: str | None) -> Iterator[Any]:
    if compression is None:
        yield file
        return
    with pa.CompressedOutputStream(pa.PythonFile(file, mode="w"), compression) as stream:
        yield stream


class _Delimited:
    """CSV by RFC 4180 in UTF-8, with a header and lines that end in a newline.

    Structs are flattened. A null is an empty cell, and an empty text two quotes: PostgreSQL, for one, tells them apart.
    """

    def __init__(self, file: Any, selection: ColumnSelection, delimiter: str, *, bom: bool) -> None:
        self._file, self._delimiter = file, delimiter
        self._leaves = selection.leaves()
        self._special = re.compile(f'[{delimiter}"\r\n]|^$|^\\s|\\s$')
        self.names = [dotted(leaf) for leaf in self._leaves]
        self._file.write((_BOM if bom else b"") + self._line(self.names))

    def write(self, batch: pa.RecordBatch) -> None:
        rows = python_rows([values_at(batch, leaf) for leaf in self._leaves])
        self._file.write(b"".join(map(self._line, rows)))

    def close(self) -> None:
        pass

    def _line(self, row: list[Any]) -> bytes:
        return ((self._delimiter.join(map(self._cell, row)) or '""') + "\n").encode()  # a blank line is not a row

    def _cell(self, value: Any) -> str:
        if value is None:
            return ""
        text = text_of(value)
        return '"{}"'.format(text.replace('"', '""')) if self._special.search(text) else text


class _Lines:
    """JSON Lines: an object for each row, with every selected column; structs are objects."""

    def __init__(self, file: Any, selection: ColumnSelection) -> None:
        self._file, self._selection = file, selection
        self.names = selection.nested().names

    def write(self, batch: pa.RecordBatch) -> None:
        rows = python_rows(self._selection.pruned(batch).columns)
        self._file.write(b"".join(json_bytes(dict(zip(self.names, row, strict=True))) + b"\n" for row in rows))

    def close(self) -> None:
        pass


class _Parquet:
    """Parquet with the types of the dataset, compressed with zstd, in row groups of bounded size."""

    def __init__(self, file: Any, selection: ColumnSelection) -> None:
        self._selection = selection
        self._schema = selection.nested().with_metadata(selection.schema.metadata)
        self.names = self._schema.names
        options: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True, "write_page_index": True}
        self._writer = pq.ParquetWriter(file, self._schema, **options)
        self._waiting: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0

    def write(self, batch: pa.RecordBatch) -> None:
        pruned = self._selection.pruned(batch)
        self._waiting.append(pa.RecordBatch.from_arrays(pruned.columns, schema=self._schema))
        self._rows, self._bytes = self._rows + pruned.num_rows, self._bytes + pruned.nbytes
        if self._rows >= _GROUP_ROWS or self._bytes >= _GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.Table.from_batches(self._waiting).unify_dictionaries())
        self._waiting, self._rows, self._bytes = [], 0, 0
