"""Parses server-sent events as they arrive, in linear time.

https://html.spec.whatwg.org/multipage/server-sent-events.html

The SDK's parser ends a stream at the first event without data (`retry: 3000`, a ping with an id).
"""

from __future__ import annotations

import re

BOM = b"\xef\xbb\xbf"
_FIELD = re.compile(rb"(?:\xef\xbb\xbf)?\s*[A-Za-z:]")


def is_event_stream(body: bytes) -> bool:
    """Whether a body, or the beginning of one, may be that of an event stream: a field of any name, or a comment.

    Text in plain words may be, too: what brings no event is none.
    """
    return _FIELD.match(body) is not None


class EventReader:
    """The data of events, from bytes split anywhere. Events without data are skipped; other fields are ignored."""

    def __init__(self) -> None:
        self._line: list[bytes] = []
        self._data: list[bytes] = []
        self._first = True

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of the events that end in this piece."""
        self._line.append(piece)
        if b"\n" not in piece and b"\r" not in piece:
            return []
        lines = b"".join(self._line).splitlines(keepends=True)
        # A line feed may follow a carriage return in the next piece.
        self._line = [] if lines[-1].endswith(b"\n") else [lines.pop()]
        return self._events(lines)

    def end(self) -> list[bytes]:
        """The data of the remaining events, once the stream has ended."""
        lines, self._line = b"".join(self._line).splitlines(keepends=True), []
        return self._events([*lines, b"\n"])

    def _events(self, lines: list[bytes]) -> list[bytes]:
        events = []
        for line in lines:
            bare = line.rstrip(b"\r\n")
            if self._first:
                bare, self._first = bare.removeprefix(BOM), False
            if bare:
                name, _, value = bare.partition(b":")
                if name.strip() == b"data":
                    self._data.append(value.removeprefix(b" "))
            elif self._data:
                data, self._data = b"\n".join(self._data), []
                if data.strip():
                    events.append(data)
        return events
