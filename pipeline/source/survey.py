"""What a survey finds: files, columns, chunks, bad lines. Frozen values that pickle and travel as JSON."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import pyarrow as pa

from pipeline.data import Row
from pipeline.faults import UsageError

Format = Literal["jsonl", "csv", "parquet"]
"""`jsonl` is JSON in any arrangement: one object a line, an array, objects one after the other."""

Partitions = tuple[tuple[str, str | None], ...]
"""The columns that a file's folders stand for (`date=2026-11-01/`), with their values."""

MAX_BATCH_ROWS = 256
MAX_CHUNK_BYTES = 256 << 20
"""What the rows of a chunk may take of the input, uncompressed: it is written as one part."""


@dataclass(frozen=True, slots=True)
class File:
    """One input file as it was surveyed. `sha256` is of the bytes on disk; `rows` is how many of its rows are used.

    `name` is its path below the folder that all input files have in common, as it was when the run was created.
    """

    path: str
    size: int
    mtime_ns: int
    sha256: str
    rows: int
    name: str = ""
    partitions: Partitions = ()


@dataclass(frozen=True, slots=True)
class Position:
    """Where a chunk begins: a file by its index, and the place in it.

    For text `offset` counts bytes of the file as UTF-8 without its compression, and `line` is the number of the line
    there, from 1. For Parquet `offset` counts rows of the file and `line` is 0.
    """

    file: int
    offset: int
    line: int = 0


@dataclass(frozen=True, slots=True)
class ChunkRows:
    """How many rows a chunk has, by the mean bytes of a row; `is_fixed` when that was said and nothing changes it."""

    of: Callable[[float], int]
    is_fixed: bool = False
    max_bytes: int = MAX_CHUNK_BYTES
    """What the rows of a chunk may take of the input, where the number of its rows is not fixed."""

    def fitting(self, rows: int, largest: float) -> int:
        """At most `rows`, and few enough when `rows` of them took `largest` bytes."""
        return rows if largest <= self.max_bytes else max(1, min(rows // 2, int(rows * self.max_bytes / largest)))


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is no record. `problem` is that of its row: "line 17: ...", repeating none of the line's content."""

    path: str
    line_number: int
    ordinal: int
    problem: str


@dataclass(frozen=True, slots=True)
class Conflict:
    """A column that fits no one type. `problem` names the places and the types."""

    column: str
    problem: str


@dataclass(frozen=True, slots=True)
class Survey:
    """One pass over the whole input, made before the first call.

    `rows` counts every record, also the `bad_count` that cannot be read; `bad_lines` holds the first 20 of those.
    `columns` gives a type in words to every column; `conflicts` names the columns that have none, which
    `arrow_schema` leaves out. `json_columns` are kept as text: strings as they are, all else as compact
    JSON. `mean_row_bytes` is uncompressed.
    Chunk `i` holds the rows from ordinal `i * chunk_rows` on, and begins at `chunks[i]`. `notes` says, in sentences,
    what the user should know of the input: files that were passed over.
    """

    files: tuple[File, ...]
    format: Format
    columns: Mapping[str, str]
    rows: int
    bad_lines: tuple[BadLine, ...]
    bad_count: int
    mean_row_bytes: float
    chunk_rows: int
    chunks: tuple[Position, ...]
    schema: bytes
    json_columns: tuple[str, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    notes: tuple[str, ...] = ()

    def arrow_schema(self) -> pa.Schema:
        """The settled types of all columns that have one, all nullable."""
        return pa.ipc.read_schema(pa.py_buffer(self.schema))

    def to_json(self) -> dict[str, Any]:
        """The survey as dicts, lists, strings and numbers; `from_json` is its inverse."""
        return {
            "files": [
                [file.path, file.size, file.mtime_ns, file.sha256, file.rows, file.name, [*map(list, file.partitions)]]
                for file in self.files
            ],
            "format": self.format,
            "columns": dict(self.columns),
            "rows": self.rows,
            "bad_lines": [[bad.path, bad.line_number, bad.ordinal, bad.problem] for bad in self.bad_lines],
            "bad_count": self.bad_count,
            "mean_row_bytes": self.mean_row_bytes,
            "chunk_rows": self.chunk_rows,
            "chunks": [[chunk.file, chunk.offset, chunk.line] for chunk in self.chunks],
            "schema": base64.b64encode(self.schema).decode(),
            "json_columns": list(self.json_columns),
            "conflicts": [[conflict.column, conflict.problem] for conflict in self.conflicts],
            "notes": list(self.notes),
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Survey:
        """The survey that `to_json` wrote. Raises `UsageError` for any other value."""
        try:
            return _sound(Survey._read(value))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OSError) as error:
            raise UsageError(
                f"what the run folder says of its input cannot be read ({error!r}): use --fresh"
            ) from error

    @staticmethod
    def _read(value: Mapping[str, Any]) -> Survey:
        return Survey(
            files=tuple(_file(*file) for file in value["files"]),
            format=value["format"],
            columns=dict(value["columns"]),
            rows=value["rows"],
            bad_lines=tuple(BadLine(*bad) for bad in value["bad_lines"]),
            bad_count=value["bad_count"],
            mean_row_bytes=value["mean_row_bytes"],
            chunk_rows=value["chunk_rows"],
            chunks=tuple(Position(*chunk) for chunk in value["chunks"]),
            schema=base64.b64decode(value["schema"]),
            json_columns=tuple(value["json_columns"]),
            conflicts=tuple(Conflict(*conflict) for conflict in value["conflicts"]),
            notes=tuple(value["notes"]),
        )


def _sound(survey: Survey) -> Survey:
    """The survey. Raises `TypeError` or `ValueError` when what was read cannot be what was written."""
    counts = [survey.rows, survey.bad_count, survey.chunk_rows]
    counts += [number for file in survey.files for number in (file.size, file.rows)]
    counts += [number for chunk in survey.chunks for number in (chunk.file, chunk.offset, chunk.line)]
    counts += [abs(file.mtime_ns) for file in survey.files]  # there are files from before 1970
    if any(type(count) is not int or count < 0 for count in counts) or survey.chunk_rows < 1:
        raise TypeError("a count is none")
    texts = [survey.format, *survey.columns, *survey.columns.values(), *survey.json_columns, *survey.notes]
    texts += [text for file in survey.files for text in (file.path, file.sha256, file.name)]
    texts += [text for bad in survey.bad_lines for text in (bad.path, bad.problem)]
    texts += [text for conflict in survey.conflicts for text in (conflict.column, conflict.problem)]
    if not all(isinstance(text, str) for text in texts) or survey.format not in get_args(Format):
        raise TypeError("a name is no text")
    if type(survey.mean_row_bytes) not in (int, float):
        raise TypeError("the mean of the rows is no number")
    if any(chunk.file >= len(survey.files) for chunk in survey.chunks):
        raise ValueError("a chunk begins in a file that there is not")
    if len(survey.chunks) != -(-survey.rows // survey.chunk_rows):
        raise ValueError("the chunks do not add up to the rows")
    survey.arrow_schema()
    return survey


def _file(*values: Any) -> File:
    *plain, partitions = values
    file = File(*plain)
    return replace(file, partitions=tuple((name, value) for name, value in partitions))


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive rows, at most 256, and the kept columns of the same rows in the settled types.

    A row that has a problem holds nulls in `kept` where its columns could not be read.
    """

    rows: Sequence[Row]
    kept: pa.RecordBatch


def record_batch(columns: Sequence[pa.Array], schema: pa.Schema, rows: int) -> pa.RecordBatch:
    """The columns as one record batch, which counts its rows also when there is no column."""
    if columns:
        return pa.RecordBatch.from_arrays(list(columns), schema=schema)
    return pa.RecordBatch.from_struct_array(pa.array([{}] * rows, pa.struct([])))


def kept_schema(survey: Survey, kept: Sequence[str]) -> pa.Schema:
    """The schema of the kept columns, in the order asked for.

    Raises `UsageError` for a column that the input does not have, or that fits no one type.
    """
    for conflict in survey.conflicts:
        if conflict.column in kept:
            raise UsageError(conflict.problem)
    schema = survey.arrow_schema()
    require(survey, kept)
    types = {field.name: field.type for field in schema}
    return pa.schema([pa.field(name, types.get(name, pa.string())) for name in kept])


def require(survey: Survey, names: Sequence[str]) -> None:
    """Raise `UsageError` when the input lacks one of the columns. An input without any readable row lacks none."""
    if not survey.columns:
        return
    for name in names:
        if name not in survey.columns:
            raise UsageError(f"the input has no column {name!r}; it has: {', '.join(survey.columns)}")


def one_line(error: Exception) -> str:
    """What a library says of a failure, on one line."""
    return " ".join(str(error).split())
