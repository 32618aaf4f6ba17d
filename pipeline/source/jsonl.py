"""JSON Lines: one JSON object per line.

Only a newline byte ends a line. A byte order mark at the start of a file is skipped, and so are blank lines, which are
not rows. Of two equal keys in one object the last counts. Dates stay strings.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import orjson

from pipeline.source.files import BLOCK_BYTES
from pipeline.source.survey import Position

MAX_LINE_BYTES = 32 << 20
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
    return (line for line in all_lines(read, start) if not is_blank(line[2]))


def all_lines(read: Callable[[int], bytes], start: Position) -> Iterator[Line]:
    """As `lines`, including blank ones."""
    offset, number, tail, dropped = start.offset, start.line, b"", 0
    for block in iter(partial(read, BLOCK_BYTES), b""):
        if len(tail) > MAX_LINE_BYTES and b"\n" not in block:
            dropped += len(block)
            continue
        tail += block
        if offset == 0 and tail.startswith(BOM):
            offset, tail = len(BOM), tail[len(BOM) :]
        *whole, tail = tail.split(b"\n")
        for line in whole:
            yield number, offset, line
            offset += len(line) + 1 + dropped
            number, dropped = number + 1, 0
    if tail:
        yield number, offset, tail


def is_blank(line: bytes) -> bool:
    """Whether a line is blank and therefore not a row."""
    # A line over the limit was truncated and the rest is unknown: never blank.
    return not line or (line.isspace() and len(line) <= MAX_LINE_BYTES)
