"""JSONL: one JSON object a line, plain or compressed with gzip or zstd.

Lines end at a newline byte and nowhere else. A byte order mark at the start of a file is passed over, and so are blank
lines: they are no rows. Of two equal keys in one object the last counts. Dates stay the strings they are.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Self

import orjson
import pyarrow as pa

from pipeline.data import Row
from pipeline.faults import Broken, Misuse
from pipeline.source.files import BLOCK_BYTES, HashedFile, InputFile, Watch
from pipeline.source.layout import MAX_BATCH_ROWS, BadLine, Batch, File, Position, Survey, one_line, record_batch
from pipeline.source.settle import Columns, json_text

MAX_LINE_BYTES = 32 << 20
MAX_BLOCK_BYTES = 8 << 20
MAX_NESTING = 200
"""Levels of lists and objects that can be written as JSON again, with room to spare."""

Line = tuple[int, int, bytes]
"""The number of a line in its file, from 1; its byte offset in the decompressed file; its content."""

_BOM = b"\xef\xbb\xbf"
_SURVEY_ROWS = 4096  # rows whose types are settled in one go
_BAD_LINES = 20

# A line with its digits as 0, its brackets as [, its minus signs kept and all else blank: what to look at twice shows
# in it at the price of a memcpy. Integers of 64 bits have up to 20 digits; below -2^63 they have 19 and a sign.
_SKELETON = bytes(
    ord("0") if chr(code) in "0123456789" else ord("[") if chr(code) in "[{" else code if code == ord("-") else ord(" ")
    for code in range(256)
)
_LONG, _LONG_NEGATIVE = b"0" * 20, b"-" + b"0" * 19


_KINDS = {list: "a list", str: "a string", int: "a number", float: "a number", bool: "a boolean", type(None): "null"}


def parse(line: bytes) -> dict[str, Any] | str:
    """The record of a line, its integers exact; or, in words that repeat none of it, why it is not one."""
    if len(line) > MAX_LINE_BYTES:
        return f"longer than {MAX_LINE_BYTES >> 20} MiB"
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return f"not valid JSON: {error.msg} (column {error.colno})"
    if type(record) is not dict:
        return f"not a JSON object but {_KINDS[type(record)]}"
    skeleton = line.translate(_SKELETON)
    if skeleton.count(b"[") > MAX_NESTING and _depth(record) > MAX_NESTING:
        return f"nested deeper than {MAX_NESTING} levels"
    if _LONG in skeleton or _LONG_NEGATIVE in skeleton:  # orjson makes doubles of integers beyond 64 bits
        return dict(json.loads(line))
    return record


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [child for parent in level for child in _children(parent) if isinstance(child, (dict, list))]
    return depth


def _children(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def lines(read: Callable[[int], bytes], start: Position) -> Iterator[Line]:
    """Number, byte offset and content of every line that is not blank, from a stream that stands at `start`.

    A line over the limit comes cut, but still over the limit, and is never in memory whole.
    """
    offset, number, tail, dropped = start.offset, start.line, b"", 0
    for block in iter(partial(read, BLOCK_BYTES), b""):
        if len(tail) > MAX_LINE_BYTES and b"\n" not in block:
            dropped += len(block)
            continue
        tail += block
        if offset == 0 and tail.startswith(_BOM):
            offset, tail = len(_BOM), tail[len(_BOM) :]
        *whole, tail = tail.split(b"\n")
        for line in whole:
            if not _is_blank(line):
                yield number, offset, line
            offset += len(line) + 1 + dropped
            number, dropped = number + 1, 0
    if not _is_blank(tail):
        yield number, offset, tail


def _is_blank(line: bytes) -> bool:
    # What was cut from a line over the limit is unknown: never blank.
    return not line or (line.isspace() and len(line) <= MAX_LINE_BYTES)


def _blocks(found: Iterable[Line], rows: int, ordinal: int, chunk_rows: int) -> Iterator[list[Line]]:
    """The lines in blocks of at most `rows`, bounded in bytes, none of them across the end of a chunk."""
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


class Stream:
    """The decompressed bytes of a file. Damaged compression raises `fault`; so does an end that comes too early."""

    def __init__(self, file: InputFile, fault: Callable[[str], Exception]) -> None:
        self.file = file
        self._fault = fault
        self._stream: Any = file
        suffix = Path(file.path).suffix.lower()
        if suffix == ".gz":
            self._stream = gzip.GzipFile(fileobj=file)
        elif suffix == ".zst":  # of Arrow, not zstandard: its reader takes a file that was cut short for a whole one
            self._stream = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def read(self, count: int) -> bytes:
        """Up to `count` bytes; none at the end."""
        try:
            return bytes(self._stream.read(count))
        except (EOFError, OSError, zlib.error) as error:
            raise self._fault(f"{self.file.path} is damaged or cut short: {one_line(error)}") from error

    def seek(self, offset: int) -> None:
        """From the start to a byte offset: at once in a plain file, by decompressing in others."""
        if self._stream is self.file:
            self.file.seek(offset)
            return
        while offset and (block := self.read(min(offset, BLOCK_BYTES))):
            offset -= len(block)


class _Pass:
    """What one pass over JSONL files gathers."""

    def __init__(self, chunk_rows: int, limit: int | None) -> None:
        self.chunk_rows = chunk_rows
        self.limit = limit
        self.rows = 0
        self.bytes = 0
        self.bad_count = 0
        self.bad_lines: list[BadLine] = []
        self.chunks: list[Position] = []
        self.columns = Columns()

    def file(self, path: str, index: int) -> File:
        """Take in one file, up to the limit; hash all of it."""
        before = self.rows
        with HashedFile(path) as raw, Stream(raw, Misuse) as stream:
            found = lines(stream.read, Position(index, 0, 1))
            wanted = found if self.limit is None else islice(found, self.limit - self.rows)
            for block in _blocks(wanted, _SURVEY_ROWS, self.rows, self.chunk_rows):
                self._block(path, index, block)
            return raw.sealed(self.rows - before)

    def _block(self, path: str, index: int, block: Sequence[Line]) -> None:
        if self.rows % self.chunk_rows == 0:
            self.chunks.append(Position(index, block[0][1], block[0][0]))
        records, numbers = [], []
        for ordinal, (number, _, line) in enumerate(block, self.rows):
            record = parse(line)
            if isinstance(record, str):
                self._bad(BadLine(path, number, ordinal, _problem(number, record)))
            else:
                records.append(record)
                numbers.append(number)
        self.columns.add(records, path, numbers)
        self.rows += len(block)
        self.bytes += sum(len(line) for _, _, line in block)

    def _bad(self, bad: BadLine) -> None:
        self.bad_count += 1
        if len(self.bad_lines) < _BAD_LINES:
            self.bad_lines.append(bad)


def survey_jsonl(paths: Sequence[Path], chunk_rows: Callable[[float], int], limit: int | None) -> Survey:
    """Read everything once: every line is parsed, every file hashed, every column settled.

    `chunk_rows` is asked for the size of a chunk once the mean size of the first rows is known. Raises `Misuse` for
    compressed data that is damaged or cut short.
    """
    total = _Pass(chunk_rows(_mean_of_first(paths)), limit)
    files = tuple(total.file(str(path), index) for index, path in enumerate(paths))
    return Survey(
        files=files,
        format="jsonl",
        columns=total.columns.words(),
        rows=total.rows,
        bad_lines=tuple(total.bad_lines),
        bad_count=total.bad_count,
        mean_row_bytes=total.bytes / max(total.rows, 1),
        chunk_rows=total.chunk_rows,
        chunks=tuple(total.chunks),
        schema=pa.schema(list(total.columns.types().items())).serialize().to_pybytes(),
        json_columns=total.columns.as_json(),
        conflicts=total.columns.conflicts(),
    )


def _mean_of_first(paths: Sequence[Path]) -> float:
    """Mean bytes of the first lines: a thousand of them, or as many as make up a few MiB."""
    count = size = 0
    for path in paths:
        with InputFile(path) as raw, Stream(raw, Misuse) as stream:
            for _, _, line in lines(stream.read, Position(0, 0, 1)):
                count, size = count + 1, size + len(line)
                if count == 1000 or size >= MAX_BLOCK_BYTES:
                    return size / count
    return size / max(count, 1)


def read_jsonl(survey: Survey, index: int, *, needed: Sequence[str], kept: pa.Schema) -> Generator[Batch, None, None]:
    """The batches from the start of a chunk to the end of the input, none of them across the end of a chunk.

    Raises `Broken` when a file is not, or does not stay, the one that was surveyed.
    """
    start, ordinal, end = survey.chunks[index], index * survey.chunk_rows, 0
    for number, file in enumerate(survey.files):
        end += file.rows
        if number < start.file:
            continue
        position = start if number == start.file else Position(number, 0, 1)
        watch = Watch(file)
        with InputFile(file.path) as raw, Stream(raw, Broken) as stream:
            stream.seek(position.offset)
            found = islice(lines(stream.read, position), end - ordinal)
            for block in _blocks(found, MAX_BATCH_ROWS, ordinal, survey.chunk_rows):
                watch.check()
                yield _batch(ordinal, block, needed, kept, frozenset(survey.json_columns))
                ordinal += len(block)
        if ordinal != end:
            raise Broken(f"{file.path} ends too early: it changed during the run")


def _problem(line_number: int, why: str) -> str:
    return f"line {line_number}: {why}"


def _batch(
    ordinal: int, block: Sequence[Line], needed: Sequence[str], kept: pa.Schema, as_json: frozenset[str]
) -> Batch:
    records = [parse(line) for _, _, line in block]
    rows = [
        Row(at, {}, _problem(line[0], record))
        if isinstance(record, str)
        else Row(at, {name: record.get(name) for name in needed})
        for at, (line, record) in enumerate(zip(block, records, strict=True), ordinal)
    ]
    values = [{} if isinstance(record, str) else record for record in records]
    columns = [_column(field, [record.get(field.name) for record in values], as_json) for field in kept]
    return Batch(rows, record_batch(columns, kept, len(rows)))


def _column(field: pa.Field, values: Sequence[Any], as_json: frozenset[str]) -> pa.Array:
    if field.name in as_json:
        values = [None if value is None else json_text(value) for value in values]
    return pa.array(values, field.type)
