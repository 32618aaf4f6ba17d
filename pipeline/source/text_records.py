"""Rows from text: JSON in any layout and CSV, plain or compressed, one record at a time.

The formats differ in two functions: how a text is split into records, and how a record is parsed. Everything else is
shared: bad records, types, chunks, and reading from the middle.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.data import Row
from pipeline.faults import Broken, UsageError
from pipeline.source.cell_types import CellType, typed_record
from pipeline.source.decompression import Stream
from pipeline.source.delimited import dialect_of, header_line, parse_record, records
from pipeline.source.discovery import Discovery, FoundFile
from pipeline.source.files import HashedFile, InputFile, Located, UnchangedCheck, opened_in_turn, several_at_once
from pipeline.source.format_detection import HEAD_BYTES, arrangement_of, looks_like, rows_by_column, rows_within
from pipeline.source.formats import format_of, is_json, is_tab_separated
from pipeline.source.generations import ChunkSpans
from pipeline.source.json_documents import values
from pipeline.source.jsonl import Line, is_plain, line_blocks, lines, parse, parse_lines, rows_of
from pipeline.source.progress import SurveyProgress
from pipeline.source.survey import (
    MAX_BATCH_ROWS,
    BadLine,
    Batch,
    ChunkRows,
    File,
    Partitions,
    Position,
    Survey,
    record_batch,
)
from pipeline.source.type_inference import MAX_COLUMNS, ColumnTypes, json_text

MAX_BLOCK_BYTES = 8 << 20

_SURVEY_ROWS = 4096  # rows whose types are inferred at once
_LINES_AT_ONCE = 512  # that are parsed before their types are inferred: their records stay in the processor's cache
_BAD_LINES = 20
_TOO_WIDE = f"its keys are more than the {MAX_COLUMNS:,} columns that an input may have"
_WIDE_SHARE = 0.1
"""From this share of rows with too many keys on, the input is rejected as a whole, not row by row."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a text is split into records, from its start or from any record; and how a record is parsed."""

    split: Callable[[Callable[[int], bytes], Position], Iterator[Line]]
    parse: Callable[[bytes], dict[str, Any] | str]
    columns: tuple[str, ...] = ()
    """The columns that a header names."""
    has_lines: bool = False
    """Whether a record is a line, as `parse` reads it."""


def layout_of(file: Located, fault: Callable[[str], Exception], types: Mapping[str, CellType]) -> _Layout:
    """The layout of a file, from its name and its first bytes: always the same for the same content."""
    path = str(file.path)
    if format_of(Path(path)) == "csv":
        with InputFile(file, HEAD_BYTES) as raw, Stream(raw, fault) as stream:
            dialect = dialect_of(path, stream.read, tabs=is_tab_separated(path))
        split = partial(records, dialect=dialect)
        if not types:
            return _Layout(split, partial(parse_record, dialect=dialect), dialect.columns)
        return _Layout(split, lambda content: typed_record(parse_record(content, dialect), types), dialect.columns)
    arrangement = arrangement_of(_head(file, fault)) if is_json(path) else "lines"
    if arrangement == "lines":
        return _Layout(lines, parse, has_lines=True)
    return _Layout(partial(values, array=arrangement == "array"), parse)


def _head(file: Located, fault: Callable[[str], Exception]) -> bytes:
    head = b""
    with InputFile(file, HEAD_BYTES) as raw, Stream(raw, fault) as stream:
        while len(head) < HEAD_BYTES and (block := stream.read(HEAD_BYTES - len(head))):
            head += block
    return head


def survey_text(
    discovery: Discovery,
    chunk_rows: ChunkRows,
    limit: int | None,
    types: Mapping[str, CellType] | None = None,
    progress: SurveyProgress | None = None,
) -> Survey:
    """Read everything once: every record is parsed, every file hashed, every column's type found.

    `chunk_rows` decides the size of a chunk once the mean size of the first rows is known; if larger rows follow,
    chunks are made smaller and everything is read again. Raises `UsageError` for compressed data that is damaged or
    truncated, and, with what the input looks like, when no record can be read; and for a column of `types` that is not
    in the input.
    """
    types, progress = types or {}, progress or SurveyProgress()
    layouts = [*several_at_once(partial(layout_of, fault=UsageError, types=types), discovery.files)]
    _require_columns(types, layouts)
    size = chunk_rows.of(_mean_of_first(discovery.files, layouts))
    while True:
        total = _Pass(size, limit, types, progress)
        progress.begin(len(layouts), sum(found.size for found in discovery.files))
        with closing(opened_in_turn(discovery.files, progress, ahead=limit is None)) as opened:
            files = tuple(map(total.file, discovery.files, opened, layouts, range(len(layouts))))
        smaller = chunk_rows.fitting(size, total.largest_chunk)
        if smaller == size or chunk_rows.is_fixed:
            break
        size = smaller
    total.require_readable(files)
    return Survey(
        files=files,
        format=discovery.format,
        columns=total.columns.words(),
        rows=total.rows,
        bad_lines=tuple(total.bad_lines),
        bad_count=total.bad_count,
        mean_row_bytes=total.bytes / max(total.rows, 1),
        chunk_rows=total.chunk_rows,
        chunks=tuple(total.chunks),
        schema=pa.schema(list(total.columns.types().items())).serialize().to_pybytes(),
        json_columns=total.columns.as_json(),
        notes=(*discovery.notes, *total.notes()),
        types=dict(types),
    )


def _require_columns(names: Iterable[str], layouts: Sequence[_Layout]) -> None:
    """Raises `UsageError` for names that no header holds."""
    known = dict.fromkeys(name for layout in layouts for name in layout.columns)
    for name in names:
        if known and name not in known:
            raise UsageError(f"`types` names the column {name!r}, which the input lacks; it has: {', '.join(known)}")


class _Pass:
    """The results of one pass over the files."""

    def __init__(
        self, chunk_rows: int, limit: int | None, types: Mapping[str, CellType], progress: SurveyProgress
    ) -> None:
        self._progress = progress
        self.chunk_rows = chunk_rows
        self.limit = limit
        self.rows = 0
        self.bytes = 0
        self.bad_count = 0
        self.bad_lines: list[BadLine] = []
        self.chunks: list[Position] = []
        self.columns = ColumnTypes(types)
        self.largest_chunk = 0
        self._chunk_bytes = 0
        self._wide = 0
        self._notes: list[str] = []
        self._latest: dict[str, Any] = {}

    def file(self, found: FoundFile, opened: HashedFile, layout: _Layout, index: int) -> File:
        """Add one file, up to the limit; hash all of it."""
        rows, bad, path = self.rows, self.bad_count, str(found.path)
        self.columns.add([dict.fromkeys(layout.columns)])
        with opened as raw, Stream(raw, UsageError) as stream:
            if layout.has_lines and not found.rows_before:
                self._lines(found, layout, index, stream)
            else:
                records_found = layout.split(stream.read, Position(index, 0, 1))
                stop = None if self.limit is None else found.rows_before + self.limit - self.rows
                self._blocks(found, layout, index, islice(records_found, found.rows_before, stop))
            file = raw.sealed(found.name, found.partitions, self.rows - rows)
        self._progress.files += 1
        if self.rows == rows + 1 and (count := rows_by_column(self._latest)):
            told = (
                f"{path} holds one record, of columns with {count:,} values each: if it is a table, write it row by row"
            )
            self._notes.append(f"{told}, as pandas does with to_json(orient='records', lines=True)")
        if self.rows > rows and self.bad_count - bad == self.rows - rows:
            self._require_no_other_kind(found)
        return file

    def _lines(self, found: FoundFile, layout: _Layout, index: int, stream: Stream) -> None:
        """Add the lines of a file: many at once, and one by one only where some are not plain records."""
        for block in line_blocks(stream.read, Position(index, 0, 1)):
            start, offset = 0, block.offset
            while start < len(block.lines):
                room = min(_LINES_AT_ONCE, self.chunk_rows - self.rows % self.chunk_rows)
                room = room if self.limit is None else min(room, self.limit - self.rows)
                if not room:
                    return
                some = block.lines[start : start + room]
                size = block.size if len(some) == len(block.lines) else sum(map(len, some))
                at = Position(index, offset, block.number + start)
                if size > MAX_BLOCK_BYTES or not self._plain_lines(found, at, some, size):
                    self._blocks(found, layout, index, rows_of(at.line, offset, some))
                start, offset = start + len(some), offset + size + len(some)

    def _plain_lines(self, found: FoundFile, at: Position, some: Sequence[bytes], size: int) -> bool:
        """Add lines of one chunk at once; False, having added none, if they must be added one by one."""
        records = parse_lines(some)
        if records is None:
            return False
        latest = records[-1]
        if found.partitions:
            records = [record | dict(found.partitions) for record in records]
        examined = self.columns.examine(records)
        if examined is None:
            return False
        types, is_exact = examined
        if not is_exact and not is_plain(some):
            return False
        self.columns.accept(types)
        self._latest = latest
        self._count(at, len(some), size)
        return True

    def _blocks(self, found: FoundFile, layout: _Layout, index: int, records: Iterable[Line]) -> None:
        for block in _blocks(records, _SURVEY_ROWS, self.rows, self.chunk_rows):
            self._block(found, layout, index, block)

    def _block(self, found: FoundFile, layout: _Layout, index: int, block: Sequence[Line]) -> None:
        good: list[dict[str, Any]] = []
        places: list[tuple[int, int]] = []
        for ordinal, (number, _, line) in enumerate(block, self.rows):
            record = layout.parse(line)
            if isinstance(record, str):
                self._bad(found, ordinal, number, record)
            else:
                self._latest = record
                good.append(record | dict(found.partitions))
                places.append((ordinal, number))
        for refused in self.columns.add(good):
            self._wide += 1
            self._bad(found, *places[refused], _TOO_WIDE)
        self._count(Position(index, block[0][1], block[0][0]), len(block), sum(len(line) for _, _, line in block))

    def _count(self, at: Position, rows: int, size: int) -> None:
        """Add rows of one chunk, the first of them at a position."""
        if self.rows % self.chunk_rows == 0:
            self.chunks.append(at)
            self._chunk_bytes = 0
        self.rows += rows
        self._progress.rows = self.rows
        self.bytes += size
        self._chunk_bytes += size
        self.largest_chunk = max(self.largest_chunk, self._chunk_bytes)

    def _bad(self, found: FoundFile, ordinal: int, number: int, problem: str) -> None:
        self.bad_count += 1
        if len(self.bad_lines) < _BAD_LINES:
            self.bad_lines.append(BadLine(str(found.path), number, ordinal, _problem(number, problem)))

    def _require_no_other_kind(self, found: FoundFile) -> None:
        """Raises `UsageError` when a file without any valid record looks like another kind of file."""
        path = str(found.path)
        if format_of(Path(path)) != "jsonl" or is_json(path):
            return
        if hint := looks_like(path, _head(found, UsageError)):
            first = next((bad.problem for bad in self.bad_lines if bad.path == path), "none can be read")
            raise UsageError(f"no line of {path} is a JSON object ({first}): {hint}")

    def notes(self) -> Iterator[str]:
        """What the user should know about the records."""
        yield from self._notes
        if self.bad_count:
            count = f"{self.bad_count:,} of {self.rows:,} records cannot be read, and are failed rows"
            yield f"{count}; the first: {self.bad_lines[0].path}: {self.bad_lines[0].problem}"

    def require_readable(self, files: Sequence[File]) -> None:
        """Raises `UsageError` when no record can be read although there are some, or when many have too many keys."""
        if self._wide > _WIDE_SHARE * self.rows:
            raise UsageError(
                f"the records have more than {MAX_COLUMNS:,} different keys together, and {self._wide:,} of "
                f"{self.rows:,} rows could not be used; put data that is keyed by values into one nested object"
            )
        if self.rows and self.bad_count == self.rows:
            first = self.bad_lines[0]
            told = f"none of the {self.rows:,} records of the input can be read"
            hint = _hint_of(first, next(file for file in files if file.path == first.path))
            raise UsageError(f"{told}; the first: {first.path}: {first.problem}" + (f"; {hint}" if hint else ""))


def _hint_of(first: BadLine, file: File) -> str | None:
    """What may be wrong with a file of which no record can be read, and the command that repairs it."""
    head, name = _head(file, UsageError), shlex.quote(first.path)
    if format_of(Path(first.path)) == "csv":
        line = header_line(head)
        return f"if its header is line {line}: tail -n +{line} {name} > new.csv" if line else None
    if first.problem.endswith("but a list"):
        return f"if its rows are in that list: jq -c '.[]' {name} > new.jsonl"
    return rows_within(first.path, head)


def hint_of_rows_within(survey: Survey) -> str | None:
    """A sentence for an input whose files hold one record each, with lists that may be the rows; else None."""
    if survey.format != "jsonl" or any(file.rows > 1 for file in survey.files):
        return None
    hints = (rows_within(file.path, _head(file, Broken)) for file in survey.files if file.rows)
    return next(filter(None, hints), None)


def _mean_of_first(files: Sequence[FoundFile], layouts: Sequence[_Layout]) -> float:
    """Mean bytes of the first records: a thousand of them, or a few MiB."""
    count = size = 0
    for found, layout in zip(files, layouts, strict=True):
        with InputFile(found) as raw, Stream(raw, UsageError) as stream:
            for _, _, line in layout.split(stream.read, Position(0, 0, 1)):
                count, size = count + 1, size + len(line)
                if count == 1000 or size >= MAX_BLOCK_BYTES:
                    return size / count
    return size / max(count, 1)


def read_text(survey: Survey, index: int, *, needed: Sequence[str], kept: pa.Schema) -> Generator[Batch, None, None]:
    """The batches from the start of a chunk to the end of the input, none of them across a chunk boundary.

    Raises `Broken` when a file is not, or no longer, the one that was surveyed.
    """
    spans = ChunkSpans(survey.generations)
    start, ordinal, end = survey.chunks[index], spans.of(index).start, 0
    for number, file in enumerate(survey.files):
        end += file.rows
        if number < start.file:
            continue
        # A chunk begins at its own rows; a file that has grown, at rows of an earlier generation.
        position, skipped = (start, 0) if number == start.file else (Position(number, 0, 1), file.rows_before)
        first, chunk_rows = spans.in_file(number)
        watch = UnchangedCheck(file)
        layout = layout_of(file, Broken, survey.types)
        batch = _BatchBuilder(survey, layout, file.partitions, needed, kept)
        with InputFile(file) as raw, Stream(raw, Broken) as stream:
            stream.seek(position.offset)
            found = islice(layout.split(stream.read, position), skipped, skipped + end - ordinal)
            for block in _blocks(found, MAX_BATCH_ROWS, ordinal - first, chunk_rows):
                watch.check()
                yield batch.of(ordinal, block)
                ordinal += len(block)
        if ordinal != end:
            raise Broken(f"{file.path} ends too early: it changed during the run")


def _problem(line_number: int, why: str) -> str:
    return f"line {line_number}: {why}"


def _blocks(found: Iterable[Line], rows: int, ordinal: int, chunk_rows: int) -> Iterator[list[Line]]:
    """The lines in blocks of at most `rows`, bounded in bytes, none of them across a chunk boundary."""
    block: list[Line] = []
    size = 0
    for next_ordinal, line in enumerate(found, ordinal + 1):
        block.append(line)
        size += len(line[2])
        if size >= MAX_BLOCK_BYTES or len(block) == rows or next_ordinal % chunk_rows == 0:
            yield block
            block, size = [], 0
    if block:
        yield block


class _BatchBuilder:
    """Makes batches from the records of one file."""

    def __init__(
        self, survey: Survey, layout: _Layout, partitions: Partitions, needed: Sequence[str], kept: pa.Schema
    ) -> None:
        self._columns = survey.columns.keys() | set(survey.left_out)
        self._as_json = frozenset(survey.json_columns)
        self._layout, self._partitions, self._needed, self._kept = layout, dict(partitions), needed, kept

    def of(self, ordinal: int, block: Sequence[Line]) -> Batch:
        """The batch of these records; `ordinal` is that of the first."""
        records = [self._read(line) for _, _, line in block]
        rows = [
            Row(at, {}, _problem(line[0], record))
            if isinstance(record, str)
            else Row(at, {name: record.get(name) for name in self._needed})
            for at, (line, record) in enumerate(zip(block, records, strict=True), ordinal)
        ]
        good = [{} if isinstance(record, str) else record for record in records]
        columns = [self._column(field, [record.get(field.name) for record in good]) for field in self._kept]
        return Batch(rows, record_batch(columns, self._kept, len(rows)))

    def _read(self, line: bytes) -> dict[str, Any] | str:
        record = self._layout.parse(line)
        if isinstance(record, str):
            return record
        if not record.keys() <= self._columns:
            return _TOO_WIDE
        return record | self._partitions if self._partitions else record

    def _column(self, field: pa.Field, values: Sequence[Any]) -> pa.Array:
        if field.name in self._as_json:
            values = [value if value is None or isinstance(value, str) else json_text(value) for value in values]
        return pa.array(values, field.type)
