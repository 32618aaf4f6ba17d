"""JSON Lines: one JSON object per line.

Only a newline byte ends a line. A byte order mark at the start of a file is skipped, and so are blank lines, which are
not rows. Of two equal keys in one object the last counts. Dates stay strings.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import orjson

from pipeline.source.survey import Position

MAX_LINE_BYTES = 32 << 20
_SPLIT_BYTES = 1 << 17  # bytes that are split into lines at once: they stay in the processor's cache
MAX_NESTING = 200
"""Maximum levels of lists and objects, well below what can be written as JSON again."""

Line = tuple[int, int, bytes]
"""The number of a line in its file, from 1; its byte offset in the decompressed file; its content."""

BOM = b"\xef\xbb\xbf"

# The skeleton of a line: digits become 0 and brackets [, minus signs stay, all else becomes blank. It finds the lines
# that need a second look, at the cost of a memcpy. 64-bit integers have up to 20 digits; below -2^63, 19 and a sign.
_SKELETON = bytes(
    ord("0") if chr(code) in "0123456789" else ord("[") if chr(code) in "[{" else code if code == ord("-") else ord(" ")
    for code in range(256)
)
NOT_UTF8 = "not valid UTF-8; if the file is Windows' or Latin-1: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"

_LONG, _LONG_NEGATIVE = b"0" * 20, b"-" + b"0" * 19


_KINDS = {list: "a list", str: "a string", int: "a number", float: "a number", bool: "a boolean", type(None): "null"}


def parse(line: bytes) -> dict[str, Any] | str:
    """The record of a line, with exact integers; or a message, quoting none of it, that says why it is not one."""
    if len(line) > MAX_LINE_BYTES:
        return f"longer than {MAX_LINE_BYTES >> 20} MiB"
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return f"not valid JSON: {error.msg} (column {error.colno}){_hint(line)}" if _is_utf8(line) else NOT_UTF8
    if type(record) is not dict:
        return f"not a JSON object but {_KINDS[type(record)]}"
    skeleton = line.translate(_SKELETON)
    if skeleton.count(b"[") > MAX_NESTING and _depth(record) > MAX_NESTING:
        return f"nested deeper than {MAX_NESTING} levels"
    if _LONG in skeleton or _LONG_NEGATIVE in skeleton:  # orjson turns integers beyond 64 bits into doubles
        return dict(json.loads(line))
    return record


def parse_lines(lines: Sequence[bytes]) -> list[dict[str, Any]] | None:
    """The records of lines, none of them blank or over the limit; None when one cannot be read.

    Unless `is_plain` is true of the lines, a record may be nested too deep, or have an integer beyond 64 bits as a
    double: then `parse` reads them.
    """
    try:
        records = [*map(orjson.loads, lines)]
    except orjson.JSONDecodeError:
        return None
    return records if set(map(type, records)) == {dict} else None


def is_plain(lines: Sequence[bytes]) -> bool:
    """Whether no line can hold an integer beyond 64 bits, or be nested too deep."""
    skeleton = b"\n".join(lines).translate(_SKELETON)
    if _LONG in skeleton or _LONG_NEGATIVE in skeleton:
        return False
    if skeleton.count(b"[") <= MAX_NESTING:
        return True
    return all(len(line) <= MAX_NESTING or line.count(b"[") + line.count(b"{") <= MAX_NESTING for line in lines)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _hint(line: bytes) -> str:
    return "; NaN and Infinity are not JSON: write null" if b"NaN" in line or b"Infinity" in line else ""


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [child for parent in level for child in _children(parent) if isinstance(child, (dict, list))]
    return depth


def _children(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def lines(read: Callable[[int], bytes], start: Position) -> Iterator[Line]:
    """Number, byte offset and content of every non-blank line, from a stream positioned at `start`.

    A line over the size limit is truncated, to a length still over the limit, and is never in memory as a whole.
    """
    for block in line_blocks(read, start):
        yield from rows_of(block.number, block.offset, block.lines)


def rows_of(number: int, offset: int, consecutive: Sequence[bytes]) -> Iterator[Line]:
    """As `lines`, of consecutive lines, of which the first has this number and offset."""
    return (line for line in _numbered(number, offset, consecutive) if not is_blank(line[2]))


def all_lines(read: Callable[[int], bytes], start: Position) -> Iterator[Line]:
    """As `lines`, including blank ones."""
    for block in line_blocks(read, start):
        yield from _numbered(block.number, block.offset, block.lines)


def _numbered(number: int, offset: int, consecutive: Sequence[bytes]) -> Iterator[Line]:
    for at, line in enumerate(consecutive, number):
        yield at, offset, line
        offset += len(line) + 1


@dataclass(frozen=True, slots=True)
class LineBlock:
    """Consecutive lines: number and byte offset of the first, their content, and the bytes of it.

    A line that was truncated is alone.
    """

    number: int
    offset: int
    lines: Sequence[bytes]
    size: int


def line_blocks(read: Callable[[int], bytes], start: Position) -> Iterator[LineBlock]:
    """As `all_lines`, many lines at once."""
    offset, number, first = start.offset, start.line, b""
    while offset == 0 and len(first) < len(BOM) and (more := read(_SPLIT_BYTES)):
        first += more
    if first.startswith(BOM):
        offset, first = len(BOM), first[len(BOM) :]
    begun: list[bytes] = []  # the pieces of a line whose end was not read yet
    held = dropped = 0  # its bytes in them, and those that are not kept
    for block in chain((first,), iter(partial(read, _SPLIT_BYTES), b"")):
        lines = block.split(b"\n")
        if len(lines) == 1:
            if held > MAX_LINE_BYTES:
                dropped += len(block)
            else:
                begun.append(block)
                held += len(block)
            continue
        end = lines.pop()
        lines[0] = b"".join((*begun, lines[0]))
        size = held + len(block) - len(lines) - len(end)
        if dropped:
            line = lines.pop(0)
            yield LineBlock(number, offset, [line], len(line))
            offset, number, size = offset + len(line) + 1 + dropped, number + 1, size - len(line)
        if lines:
            yield LineBlock(number, offset, lines, size)
        offset, number = offset + size + len(lines), number + len(lines)
        begun, held, dropped = [end], len(end), 0
    if held:
        yield LineBlock(number, offset, [b"".join(begun)], held)


def is_blank(line: bytes) -> bool:
    """Whether a line is blank and therefore not a row."""
    # A line over the limit was truncated and the rest is unknown: never blank.
    return not line or (line.isspace() and len(line) <= MAX_LINE_BYTES)
