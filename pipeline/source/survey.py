"""The result of a survey: files, columns, chunks, bad lines. Frozen values that can be pickled and written as JSON."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import pyarrow as pa

from pipeline.data import Row
from pipeline.faults import UsageError
from pipeline.source.cell_types import CellType
from pipeline.source.generations import Generation

Format = Literal["jsonl", "csv", "parquet"]
"""`jsonl` is JSON in any layout: one object per line, an array, consecutive objects."""

Partitions = tuple[tuple[str, str | None], ...]
"""The columns given by a file's folders (`date=2026-11-01/`), with their values."""

MAX_BATCH_ROWS = 256
MAX_CHUNK_BYTES = 256 << 20
"""Maximum bytes of uncompressed input per chunk, since a chunk is written as one part."""


@dataclass(frozen=True, slots=True)
class File:
    """One surveyed input file. `sha256` is of the bytes on disk; `rows` is the number of its rows that are used.

    `name` is its path below the folder that all input files share, as of the creation of the run. With `only_ok` it is
    a part of a run of which the ok rows are read.
    """

    path: str
    size: int
    mtime_ns: int
    sha256: str
    rows: int
    name: str = ""
    partitions: Partitions = ()
    only_ok: bool = False
    version: str = ""
    """Of an object: its generation or etag, which every read is pinned to. It then has no `sha256` and `mtime_ns`."""
    rows_before: int = 0
    """The number of its rows, at its beginning, that belong to earlier generations and are not counted in `rows`."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a chunk begins: the index of a file, and a position in it.

    For text, `offset` counts bytes of the decompressed file as UTF-8, and `line` is the line number there, from 1. For
    Parquet, `offset` counts rows of the file, whether or not they are read, and `line` is 0.
    """

    file: int
    offset: int
    line: int = 0


@dataclass(frozen=True, slots=True)
class ChunkRows:
    """The number of rows per chunk, given the mean bytes per row; `is_fixed` when the user set it."""

    of: Callable[[float], int]
    is_fixed: bool = False
    max_bytes: int = MAX_CHUNK_BYTES
    """Maximum bytes of input per chunk, unless the number of rows is fixed."""

    def fitting(self, rows: int, largest: float) -> int:
        """At most `rows`, and few enough to stay within `max_bytes` when `rows` of them took `largest` bytes."""
        return rows if largest <= self.max_bytes else max(1, min(rows // 2, int(rows * self.max_bytes / largest)))


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is not a record. `problem` is that of its row: "line 17: ...", quoting none of the line's content."""

    path: str
    line_number: int
    ordinal: int
    problem: str


@dataclass(frozen=True, slots=True)
class Conflict:
    """A column whose values have no common type. `problem` names the places and the types."""

    column: str
    problem: str


@dataclass(frozen=True, slots=True)
class Survey:
    """The result of one pass over the whole input, made before the first call.

    `rows` counts every record, including the `bad_count` that cannot be read; `bad_lines` holds the first 20 of those.
    `columns` maps every column to the name of its type; `conflicts` lists the columns without a type, which
    `arrow_schema` omits. `json_columns` are kept as text: strings unchanged, everything else as compact JSON.
    `mean_row_bytes` is uncompressed.
    Chunk `i` begins at `chunks[i]`; of the first generation it holds the rows from ordinal `i * chunk_rows` on, and of
    later ones those that `ChunkSpans` says. `notes` tells the user, in sentences, what to know about the input, such as
    files that were skipped.
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
    types: Mapping[str, CellType] = field(default_factory=dict)
    """The types that the job gives to columns of CSV."""
    appended: tuple[Generation, ...] = ()
    """The generations after the first."""
    left_out: tuple[str, ...] = ()
    """Columns that only appended rows have. They are not used: the columns of a run are those of its first rows."""

    @property
    def generations(self) -> tuple[Generation, ...]:
        """All generations, the first one included."""
        rows, files = (sum(getattr(one, name) for one in self.appended) for name in ("rows", "files"))
        return (Generation(self.rows - rows, self.chunk_rows, len(self.files) - files), *self.appended)

    def arrow_schema(self) -> pa.Schema:
        """The types of all columns that have one, all nullable."""
        return pa.ipc.read_schema(pa.py_buffer(self.schema))

    def to_json(self) -> dict[str, Any]:
        """The survey as dicts, lists, strings and numbers; `from_json` is its inverse."""
        return {
            "files": [_values(file) for file in self.files],
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
            "types": dict(self.types),
            "appended": [[one.rows, one.chunk_rows, one.files, one.added] for one in self.appended],
            "left_out": list(self.left_out),
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Survey:
        """The survey that `to_json` wrote. Raises `UsageError` for any other value."""
        try:
            return _sound(Survey._read(value))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OSError) as error:
            raise UsageError(
                f"the run folder's record of its input cannot be read ({type(error).__name__}: {error}): use --fresh"
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
            types=dict(value.get("types", {})),  # not in surveys of earlier versions, as the following
            appended=tuple(Generation(*one) for one in value.get("appended", ())),
            left_out=tuple(value.get("left_out", ())),
        )


def _sound(survey: Survey) -> Survey:
    """The survey. Raises `TypeError` or `ValueError` when it cannot be one that `to_json` wrote."""
    counts = [survey.rows, survey.bad_count, survey.chunk_rows]
    counts += [number for file in survey.files for number in (file.size, file.rows, file.rows_before)]
    counts += [number for one in survey.appended for number in (one.rows, one.chunk_rows, one.files)]
    counts += [number for chunk in survey.chunks for number in (chunk.file, chunk.offset, chunk.line)]
    counts += [abs(file.mtime_ns) for file in survey.files]  # there are files from before 1970
    sizes = [survey.chunk_rows, *(one.chunk_rows for one in survey.appended)]
    if any(type(count) is not int or count < 0 for count in counts) or min(sizes) < 1:
        raise TypeError("a count is not a whole number from 0 on")
    if not set(survey.types.values()) <= set(get_args(CellType)):
        raise TypeError("a type of a column of CSV is not known")
    texts = [survey.format, *survey.columns, *survey.columns.values(), *survey.json_columns, *survey.notes]
    texts += [*survey.types, *survey.left_out, *(one.added for one in survey.appended)]
    texts += [text for file in survey.files for text in (file.path, file.sha256, file.name, file.version)]
    texts += [text for bad in survey.bad_lines for text in (bad.path, bad.problem)]
    texts += [text for conflict in survey.conflicts for text in (conflict.column, conflict.problem)]
    if not all(isinstance(text, str) for text in texts) or survey.format not in get_args(Format):
        raise TypeError("a name is not text, or the format is unknown")
    if type(survey.mean_row_bytes) not in (int, float):
        raise TypeError("the mean size of a row is not a number")
    if any(chunk.file >= len(survey.files) for chunk in survey.chunks):
        raise ValueError("a chunk begins in a file that is not listed")
    if any(one.rows < 0 or one.files < 0 for one in survey.generations):
        raise ValueError("the generations do not add up to the rows and files")
    if len(survey.chunks) != sum(one.chunks for one in survey.generations):
        raise ValueError("the chunks do not add up to the rows")
    survey.arrow_schema()
    return survey


def _values(file: File) -> list[Any]:
    partitions = [*map(list, file.partitions)]
    values = [file.path, file.size, file.mtime_ns, file.sha256, file.rows, file.name, partitions, file.only_ok]
    if file.rows_before:
        return [*values, file.version, file.rows_before]
    return [*values, *([file.version] if file.version else [])]


def _file(*values: Any) -> File:
    path, size, mtime_ns, sha256, rows, name, partitions, *more = values
    given: list[Any] = [False, "", 0]
    given[: len(more)] = more  # earlier versions said nothing of these
    only_ok, version, rows_before = given
    pairs = tuple((key, value) for key, value in partitions)
    return File(path, size, mtime_ns, sha256, rows, name, pairs, only_ok is True, version, rows_before)


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive rows, at most 256, and their kept columns in the final types.

    A row with a problem has nulls in `kept` for the columns that could not be read.
    """

    rows: Sequence[Row]
    kept: pa.RecordBatch


def record_batch(columns: Sequence[pa.Array], schema: pa.Schema, rows: int) -> pa.RecordBatch:
    """The columns as one record batch, which has the right number of rows even without any column."""
    if columns:
        return pa.RecordBatch.from_arrays(list(columns), schema=schema)
    return pa.RecordBatch.from_struct_array(pa.array([{}] * rows, pa.struct([])))


def kept_schema(survey: Survey, kept: Sequence[str]) -> pa.Schema:
    """The schema of the kept columns, in the requested order.

    Raises `UsageError` for a column that the input does not have, or whose values have no common type.
    """
    for conflict in survey.conflicts:
        if conflict.column in kept:
            raise UsageError(conflict.problem)
    schema = survey.arrow_schema()
    require(survey, kept)
    types = {field.name: field.type for field in schema}
    return pa.schema([pa.field(name, types.get(name, pa.string())) for name in kept])


def require(survey: Survey, names: Sequence[str]) -> None:
    """Raise `UsageError` when the input lacks one of the columns. An input without readable rows lacks none."""
    if not survey.columns:
        return
    for name in names:
        if name not in survey.columns:
            raise UsageError(f"the input has no column {name!r}; it has: {', '.join(survey.columns)}")
