"""CSV and TSV by RFC 4180: a header, one record per line, quoted fields where they hold delimiters, quotes or newlines.

Every field is text, as written: what looks like a number may be a postcode. An empty field is null. A record with
more or fewer fields than the header cannot be read, and only that row fails.
"""

from __future__ import annotations

import csv
import shlex
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from pipeline.faults import UsageError
from pipeline.source.format_detection import HEAD_BYTES
from pipeline.source.jsonl import BOM, MAX_LINE_BYTES, NOT_UTF8, Line, all_lines
from pipeline.source.survey import Position

_DELIMITERS = (",", ";", "\t", "|")
_RECORDS_SEEN = 20
_MAX_HEAD_BYTES = 1 << 20

csv.field_size_limit(MAX_LINE_BYTES)  # a record's limit applies to its fields too: see `parse_record`


@dataclass(frozen=True, slots=True)
class Dialect:
    """A file's delimiter, its columns, and the number of records before its rows."""

    delimiter: str
    columns: tuple[str, ...]
    skipped: int
    """1 for the header; 2 if Excel's line `sep=;` precedes it; 0 in an empty file."""


def dialect_of(path: str, read: Callable[[int], bytes], *, tabs: bool) -> Dialect:
    """The dialect, detected from the beginning of a text.

    Raises `UsageError` when no header names the columns.
    """
    text = _beginning(read).removeprefix(BOM)
    if b"\r" in text and b"\n" not in text:
        name = shlex.quote(path)
        raise UsageError(f"{path}: its lines end with a carriage return alone: tr '\\r' '\\n' < {name} > new.csv")
    lines = [line for line in text.split(b"\n") if line.strip()]
    if not lines:
        return Dialect(",", (), 0)
    named = lines[0].rstrip() if lines[0].lower().startswith(b"sep=") and len(lines[0].rstrip()) == 5 else b""
    if named:
        text = text.partition(b"\n")[2]
    delimiter = chr(named[4]) if named else "\t" if tabs else _delimiter_of(text)
    return Dialect(delimiter, _columns(path, text, delimiter), 2 if named else 1)


def _beginning(read: Callable[[int], bytes]) -> bytes:
    """The part of a text that is examined, including the whole header."""
    head = b""
    while len(head) < HEAD_BYTES or (b"\n" not in head and len(head) < _MAX_HEAD_BYTES):
        block = read(HEAD_BYTES)
        if not block:
            break
        head += block
    return head


def _delimiter_of(text: bytes) -> str:
    """The delimiter that gives the most records as many fields as the header; of several, the most frequent one."""

    def fit(delimiter: str) -> tuple[int, int]:
        widths = [len(fields) for fields in _first_records(text, delimiter)]
        width = widths[0] if widths else 0
        return (widths.count(width), width) if width > 1 else (0, 0)

    return max(_DELIMITERS, key=fit)


def _first_records(text: bytes, delimiter: str) -> Iterator[list[str]]:
    lines = ((0, 0, line) for line in text.split(b"\n"))
    for _, _, record in islice(_joined(lines, delimiter, None), _RECORDS_SEEN):
        fields = _fields(record, delimiter)
        yield fields if isinstance(fields, list) else []


def _columns(path: str, text: bytes, delimiter: str) -> tuple[str, ...]:
    record = next(_joined(((0, 0, line) for line in text.split(b"\n")), delimiter, None), None)
    header = [] if record is None else _fields(record[2], delimiter)
    if isinstance(header, str):
        raise UsageError(f"{path}: its first line is not a header: {header}")
    names = [name.strip() or f"column_{index}" for index, name in enumerate(header, 1)]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UsageError(f"{path} has several columns named {', '.join(repeated)}; give them different names")
    return tuple(names)


def records(read: Callable[[int], bytes], start: Position, dialect: Dialect) -> Iterator[Line]:
    """Line number, byte offset and content of every non-blank record, from a stream positioned at `start`.

    A quote that is never closed, or that joins several lines into a record which does not match the header, affects
    only its own line: reading continues with the next.
    """
    found = _joined(all_lines(read, start), dialect.delimiter, len(dialect.columns))
    return islice(found, dialect.skipped if start.offset == 0 else 0, None)


def parse_record(content: bytes, dialect: Dialect) -> dict[str, str | None] | str:
    """The record by column; or a message, quoting none of it, that says why it cannot be read."""
    if len(content) > MAX_LINE_BYTES:
        return f"longer than {MAX_LINE_BYTES >> 20} MiB"
    fields = _fields(content, dialect.delimiter)
    if isinstance(fields, str):
        return fields
    if len(fields) != len(dialect.columns):
        return f"{len(fields)} fields, but the header has {len(dialect.columns)}"
    return {name: field or None for name, field in zip(dialect.columns, fields, strict=True)}


def _fields(content: bytes, delimiter: str) -> list[str] | str:
    try:
        return next(csv.reader([content.removesuffix(b"\r").decode()], delimiter=delimiter, strict=True), [])
    except UnicodeDecodeError:
        return NOT_UTF8
    except csv.Error as error:
        return next((said for part, said in _SAID.items() if part in str(error)), f"not valid CSV: {error}")


_SAID = {
    "end of data": "a quote is opened and never closed",
    "expected after": "not valid CSV: text after a closing quote (a quote within quotes is written twice)",
    "new-line character": "not valid CSV: a carriage return outside of quotes",
}
"""What the messages of Python's module mean; they speak to whoever calls it."""


def header_line(text: bytes) -> int | None:
    """The number of the line, from 1, that seems to be the header although others come before it; else None."""
    best, found, first = 1, None, 0
    for delimiter in _DELIMITERS:
        widths: dict[int, list[int]] = {}
        for number, line in enumerate(text.removeprefix(BOM).split(b"\n")[:_RECORDS_SEEN], 1):
            if not line.strip():
                continue
            first, fields = first or number, _fields(line, delimiter)
            if isinstance(fields, list) and len(fields) > 1:
                widths.setdefault(len(fields), []).append(number)
        numbers = max(widths.values(), key=len, default=[])
        if len(numbers) > best:
            best, found = len(numbers), numbers[0]
    return None if found == first else found


def _joined(lines: Iterable[Line], delimiter: str, width: int | None) -> Iterator[Line]:
    """The lines joined into records; `width` is the number of fields that a multi-line record must have."""
    waiting: deque[Line] = deque()
    more = iter(lines)

    def next_line() -> Line | None:
        return waiting.popleft() if waiting else next(more, None)

    while (first := next_line()) is not None:
        if not first[2].strip(b" \r"):  # but not a tab, which may separate two empty fields
            continue
        group, size, is_open = [first], len(first[2]), _opens(first[2], delimiter, within=False)
        while is_open and size <= MAX_LINE_BYTES and (line := next_line()) is not None:
            group.append(line)
            size += len(line[2]) + 1
            is_open = _opens(line[2], delimiter, within=True)
        content = b"\n".join(line[2] for line in group)
        if len(group) > 1 and (is_open or not _fits(content, delimiter, width)):
            waiting.extendleft(reversed(group[1:]))
            content = first[2]
        yield first[0], first[1], content


def _fits(content: bytes, delimiter: str, width: int | None) -> bool:
    return width is None or len(_fields(content, delimiter)) == width


def _opens(line: bytes, delimiter: str, *, within: bool) -> bool:
    """Whether a line ends within quotes, given whether it begins `within` them. Only a field's first byte opens any."""
    opening = delimiter.encode() + b'"'
    at = 0
    if not within and line.startswith(b'"'):
        within, at = True, 1
    while True:
        if within:
            at = line.find(b'"', at) + 1
            if at == 0:
                return True
            within = line[at : at + 1] == b'"'  # a doubled quote is an escaped one
            at += within
        else:
            at = line.find(opening, at) + 2
            if at == 1:
                return False
            within = True
