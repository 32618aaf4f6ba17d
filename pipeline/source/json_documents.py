"""JSON that is not one object per line: an array of objects, or consecutive objects that span several lines.

The text is split into values without being parsed, so that each value fails on its own and reading can resume at any
of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial

from pipeline.source.files import BLOCK_BYTES
from pipeline.source.jsonl import BOM, MAX_LINE_BYTES, Line
from pipeline.source.survey import Position

_BETWEEN = re.compile(rb"[\s,\]]*")
_MARK = re.compile(rb'["{}\[\]]')
_IN_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_AFTER_SCALAR = re.compile(rb"[\s,\]]")


def values(read: Callable[[int], bytes], start: Position, *, array: bool) -> Iterator[Line]:
    """Line number, byte offset and content of every value, from a stream positioned at `start`.

    With `array`, the first bracket of the text opens the array that holds the values. Commas, whitespace and closing
    brackets between values are skipped. A value over the size limit is truncated, to a length still over the limit, and
    is never in memory as a whole; one that is never closed ends with the text.
    """
    cutter = _Cutter(start, array=array)
    for block in iter(partial(read, BLOCK_BYTES), b""):
        yield from cutter.feed(block)
    yield from cutter.end()


class _Cutter:
    """Finds where values begin and end in a text that arrives in blocks. No byte is examined twice."""

    def __init__(self, start: Position, *, array: bool) -> None:
        self._text = b""
        self._begin = 0  # index of the value's first byte, or of the first one not examined yet
        self._offset, self._number = start.offset, start.line  # position of the byte at `_begin`
        self._at = 0  # bytes before this index were examined
        self._is_start, self._is_unopened = start.offset == 0, array and start.offset == 0
        self._is_value = self._is_scalar = self._is_string = False  # what `_at` is inside
        self._depth = 0
        self._cut_bytes = self._cut_lines = 0  # of this value, already dropped from `_text`

    def feed(self, block: bytes) -> Iterator[Line]:
        """The values that end in this block."""
        self._text += block
        if self._is_start and len(self._text) >= len(BOM):
            self._is_start = False
            if self._text.startswith(BOM):
                self._advance(len(BOM))
        while self._begins() and self._ends():
            yield self._taken()
        self._shrink()

    def end(self) -> Iterator[Line]:
        """The value that the text ends in, if there is one."""
        self._at = len(self._text)
        if self._begins():
            self._at = len(self._text)
            yield self._taken()

    def _taken(self) -> Line:
        line = self._number, self._offset, self._text[self._begin : self._at]
        self._advance(self._at)
        self._is_value = self._is_scalar = False
        return line

    def _advance(self, to: int) -> None:
        """Moves the beginning to `to`."""
        self._number += self._text.count(b"\n", self._begin, to) + self._cut_lines
        self._offset += to - self._begin + self._cut_bytes
        self._begin, self._cut_bytes, self._cut_lines = to, 0, 0

    def _begins(self) -> bool:
        """Whether a value has begun, or begins in the text."""
        if self._is_value:
            return True
        self._advance(_BETWEEN.match(self._text, self._begin).end())  # type: ignore[union-attr] # it matches nothing, too
        if self._begin == len(self._text):
            return False
        if self._is_unopened:
            self._is_unopened = False
            if self._text[self._begin] == ord("["):
                self._advance(self._begin + 1)
                return self._begins()
        self._is_value, self._at = True, self._begin + 1
        first = chr(self._text[self._begin])
        self._is_string, self._depth = first == '"', int(first in "[{")
        self._is_scalar = not self._is_string and not self._depth
        return True

    def _ends(self) -> bool:
        """Whether the value ends in the text; if so, `_at` is just after it."""
        if self._is_scalar:
            after = _AFTER_SCALAR.search(self._text, self._at)
            self._at = after.start() if after else len(self._text)
            return after is not None
        while self._is_string or self._depth:
            if self._is_string:
                self._at = _IN_STRING.match(self._text, self._at).end()  # type: ignore[union-attr] # as above
                if self._text[self._at : self._at + 1] != b'"':
                    return False
                self._at, self._is_string = self._at + 1, False
            elif mark := _MARK.search(self._text, self._at):
                self._at = mark.end()
                self._is_string = mark[0] == b'"'
                self._depth += {b"{": 1, b"[": 1, b"}": -1, b"]": -1}.get(mark[0], 0)
            else:
                self._at = len(self._text)
                return False
        return True

    def _shrink(self) -> None:
        """Drops the text that was processed, and the part of a value over the limit."""
        self._text, self._at, self._begin = self._text[self._begin :], max(self._at - self._begin, 0), 0
        if self._is_value and self._at > MAX_LINE_BYTES + 1:
            gone = self._text[MAX_LINE_BYTES + 1 : self._at]
            self._text = self._text[: MAX_LINE_BYTES + 1] + self._text[self._at :]
            self._at = MAX_LINE_BYTES + 1
            self._cut_bytes += len(gone)
            self._cut_lines += gone.count(b"\n")
