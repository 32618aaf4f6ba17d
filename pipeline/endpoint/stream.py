"""Reads the answer to a streamed call as its bytes arrive: a stream of events, or a plain body. In linear time.

`pipeline.endpoint.stream_assembly` puts the chunks together.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from pipeline.endpoint.server_sent_events import BOM, EventReader, is_event_stream
from pipeline.endpoint.stream_assembly import Assembly
from pipeline.endpoint.untrusted_json import decode, decoded, dig, objects


def whole_body(body: bytes) -> bytes:
    """The body unchanged, or assembled if a server streamed what was not to be streamed.

    Raises `Unavailable` for a stream without its end, and the fault for an error in the stream.
    """
    if body[:1] in {b"{", b"["} or not is_event_stream(body):
        return _put_together(body)
    arriving = Arriving()
    arriving.feed(body)
    arriving.end()
    return arriving.body()


def _put_together(body: bytes) -> bytes:
    """A plain body unchanged, or the completion from the chunks in it: a list, lines, or a single chunk.

    Raises what `Assembly` raises: chunks that end before the answer does are not an answer.
    """
    # Nearly every plain body ends here, before anything is decoded twice.
    if b'"delta"' not in body:
        return body
    assembly, at_first = Assembly(), True
    try:
        for document, data in _documents(decoded(body)):
            # A completion that merely contains the word (in its text, say) is not a chunk.
            if at_first and not any(map(_is_delta, objects(dig(document, "choices")))):
                return body
            at_first = False
            assembly.add(data)
    except (ValueError, RecursionError):
        return body
    return assembly.body()


def _is_delta(choice: Mapping[str, Any]) -> bool:
    return isinstance(choice.get("delta"), dict) and not choice.get("message")


def _documents(text: str) -> Iterator[tuple[object, bytes]]:
    """The JSON documents in a list or a sequence: each decoded, and its own text."""
    decoder, at = json.JSONDecoder(), 0
    while (found := _BEGINS.match(text, at)) and found.end() < len(text):
        document, at = decoder.raw_decode(text, found.end())
        yield document, text[found.end() : at].encode()


_BEGINS = re.compile(r"[\s,\[\]]*")


def _apart(data: bytes) -> list[bytes]:
    """The data of an event, or of several, from servers that omit the blank lines between them."""
    if b"\n" not in data or _is_json(data):
        return [data]
    lines = data.split(b"\n")
    return lines if all(_is_end(line) or _is_json(line) for line in lines) else [data]


def _is_json(data: bytes) -> bool:
    try:
        decode(data)
    except ValueError:
        return False
    return True


def _is_end(data: bytes) -> bool:
    return data.lstrip()[:6].upper() == b"[DONE]"


class Arriving:
    """The answer to a streamed call as its bytes arrive. Servers that do not stream send a plain body instead."""

    def __init__(self) -> None:
        self.ended = False
        self.has_begun = False
        """Whether a piece of the answer has arrived."""
        self._head = b""
        self._events: EventReader | None = None
        self._plain: list[bytes] | None = None
        self._before: list[bytes] = []
        """What came before the first event, should there be none."""
        self._has_events = False
        self._assembly = Assembly()

    def feed(self, piece: bytes) -> bool:
        """Adds the next bytes; returns whether they had more than comments. Raises what `Assembly.add` raises."""
        if self._events is None and self._plain is None:
            self._head = (self._head + piece).lstrip()
            # The first letter tells an event stream from a body; blanks and a byte order mark may come before it.
            if BOM.startswith(self._head) or not self._head.removeprefix(BOM).strip():
                return False
            piece = self._decide()
        if self._events is None:
            self._collected.append(piece)
            return True
        if not self._has_events:
            self._before.append(piece)
        return self._take(self._events.feed(piece))

    def end(self) -> None:
        """Marks the end of the bytes."""
        rest = self._decide() if self._events is None and self._plain is None else b""
        if self._events is not None:
            self._before.append(rest)
            self._take([*self._events.feed(rest), *self._events.end()])
            # Plain words (`error: overloaded`) look like a field of an event until the end shows that there was none.
            if not self._has_events:
                self._events, self._plain = None, self._before
        else:
            self._collected.append(rest)
        self.ended = True

    def body(self) -> bytes:
        """The completion's body. Raises `Unavailable` when the stream ended before the answer did."""
        return self._assembly.body() if self._events is not None else _put_together(b"".join(self._collected))

    @property
    def _collected(self) -> list[bytes]:
        if self._plain is None:
            self._plain = []
        return self._plain

    def _decide(self) -> bytes:
        head, self._head = self._head, b""
        if is_event_stream(head):
            self._events = EventReader()
        else:
            self._plain = []
        return head

    def _take(self, events: list[bytes]) -> bool:
        if events and not self._has_events:
            self._has_events, self._before = True, []
        for data in chain.from_iterable(map(_apart, events)):
            # Whatever follows the end is not read: some servers repeat the usage there, others keep the stream open.
            if _is_end(data):
                self.ended = True
            if self.ended:
                break
            self.has_begun = self._assembly.add(data) or self.has_begun
        return bool(events)
