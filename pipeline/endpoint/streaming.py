"""Assembles streamed chunks into the completion that an unstreamed call would return. All in linear time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

import orjson

from pipeline.endpoint.error_body import excerpt, unwrapped
from pipeline.endpoint.messages import Call, Said, is_thought, message_in, said_in, whole_arguments
from pipeline.endpoint.server_sent_events import BOM, EventReader, is_event_stream
from pipeline.endpoint.untrusted_json import (
    as_integer,
    as_name,
    as_position,
    as_text,
    decode,
    decoded,
    dig,
    objects,
    read,
    writable,
)
from pipeline.endpoint.usage import usage_of
from pipeline.endpoint.wire import choices_in
from pipeline.faults import Unavailable

_BLOCKED_IN = ("promptFeedback", "prompt_feedback", "prompt_filter_results")
_HEAD = ("created", "id", "model", "system_fingerprint", *_BLOCKED_IN)


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
    if b'"delta"' not in body:
        return body
    assembly, at_first = Assembly(), True
    try:
        for document, data in _documents(decoded(body)):
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
            if BOM.startswith(self._head) or not self._head.removeprefix(BOM).strip():
                return False  # the first letter tells an event stream from a body
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
            if not self._has_events:  # words, in the place of an answer
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
            if _is_end(data):
                self.ended = True
            if self.ended:
                break
            self.has_begun = self._assembly.add(data) or self.has_begun
        return bool(events)


class Assembly:
    """One streamed answer, chunk by chunk.

    Fragments of tool calls are distinguished by their id or, if a fragment has none, by their index: Google sends the
    id with every fragment and sometimes a wrong index, OpenAI sends the id once and then only the index.
    """

    def __init__(self) -> None:
        self._head: dict[str, Any] = {}
        self._choices: dict[int, _Choice] = {}
        self._usage: dict[str, Any] | None = None

    def add(self, data: bytes) -> bool:
        """Adds the data of an event; returns whether it contains a piece of the answer.

        Raises `Unavailable` when it is not a chunk, and the fault for an error in it.
        """
        try:
            chunk = read(data, _chunk_of, halves=True)
        except ValueError:
            raise Unavailable(f"the stream holds something that is not JSON: {excerpt(data)}") from None
        for name in _HEAD:
            if chunk.head.get(name):
                self._head[name] = chunk.head[name]
            elif name in chunk.head:
                self._head.setdefault(name, chunk.head[name])
        self._usage = chunk.usage or self._usage
        found = False
        for piece in chunk.pieces:
            if piece.choice not in self._choices:
                self._choices[piece.choice] = _Choice()
            found = self._choices[piece.choice].add(piece) or found
        return found

    def body(self) -> bytes:
        """The completion's body, keys sorted as in Vertex AI's. Raises `Unavailable` when the stream was cut short."""
        # A blocked prompt has no choices, but its usage arrived: that stream is complete.
        cut = not all(choice.has_ended for choice in self._choices.values())
        if cut or not (self._choices or self._usage or any(map(self._head.get, _BLOCKED_IN))):
            raise Unavailable("the stream ended before the answer did")
        choices = [self._choices[index].whole(index) for index in sorted(self._choices)]
        completion = {**_typed(self._head), "choices": choices, "object": "chat.completion", "usage": self._usage}
        try:  # `float` for `Digits`
            return orjson.dumps(completion, default=float, option=orjson.OPT_SORT_KEYS)
        except TypeError:  # half a surrogate pair, or an object nested too deeply in a place that is not used
            kept = {name: writable(value) for name, value in completion.items() if name != "choices"}
            kept["choices"] = [writable(choice) or writable(_without_extras(choice)) for choice in choices]
            return orjson.dumps(kept, default=float, option=orjson.OPT_SORT_KEYS)


class _Piece(NamedTuple):
    """What a chunk adds to one choice."""

    choice: int
    finish_reason: str | None
    has_ended: bool
    error: Mapping[str, Any] | str | None
    said: Said
    extra: Mapping[str, Any] | None
    is_message: bool
    """Whether it is a whole message instead of a delta."""


class _Chunk(NamedTuple):
    """A chunk, typed except for its head."""

    head: Mapping[str, Any]
    usage: dict[str, Any] | None
    pieces: list[_Piece]


def _chunk_of(document: object) -> _Chunk:
    """A chunk, typed. Raises the fault for an error in it, and `Unavailable` when it is not an object."""
    document = unwrapped(document)
    choices = choices_in(document)
    if document is None:  # counts as an event without data
        return _Chunk({}, None, [])
    if not isinstance(document, dict):
        raise Unavailable("the stream holds a chunk that is no object")
    return _Chunk(
        document,
        usage_of(document, choices),
        [_piece_of(choice) for choice in choices],
    )


def _typed(head: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a completion other than choices and usage."""
    types = {"created": as_integer, "id": as_name, "model": as_text, "system_fingerprint": as_text}
    typed = {name: types[name](value) if name in types else value for name, value in head.items()}
    return {name: value for name, value in typed.items() if value is not None}


def _piece_of(choice: Mapping[str, Any]) -> _Piece:
    message = message_in(choice, ("delta", "message"))
    error, extra = choice.get("error"), message.get("extra_content")
    return _Piece(
        choice=as_position(choice.get("index")) or 0,
        finish_reason=as_text(choice.get("finish_reason")) or None,
        has_ended=bool(choice.get("finish_reason") or error),
        error=error if error and isinstance(error, dict | str) else None,
        said=said_in(message),
        extra=extra if isinstance(extra, dict) and not is_thought(message) else None,
        is_message=message is choice.get("message"),
    )


_NOTHING = Said()


class _Choice:
    def __init__(self) -> None:
        self.has_ended = False
        self._finish_reason: str | None = None
        self._error: Mapping[str, Any] | str | None = None
        self._text: dict[str, list[str]] = {"content": [], "reasoning_content": [], "refusal": []}
        self._calls = _Calls()
        self._audio: dict[str, Any] = {}
        self._audio_data: list[str] = []
        self._extra: Mapping[str, Any] | None = None

    def add(self, piece: _Piece) -> bool:
        if piece.is_message and piece.finish_reason and not self.has_ended:
            piece = piece._replace(said=self._news_in(piece.said))
        self.has_ended = self.has_ended or piece.has_ended
        self._finish_reason = piece.finish_reason or self._finish_reason
        self._error = piece.error or self._error
        self._extra = piece.extra or self._extra
        said = piece.said
        if said.text:
            self._text["content"].append(said.text)
        if said.reasoning:
            self._text["reasoning_content"].append(said.reasoning)
        if said.refusal:
            self._text["refusal"].append(said.refusal)
        if said.calls:
            self._calls.add(said.calls)
        if said.audio is not None:
            self._audio |= said.audio.about
            self._audio_data.append(said.audio.data)
        return said != _NOTHING

    def _news_in(self, said: Said) -> Said:
        """A message at the end, without what it says once more of all that came before."""
        before = {name: "".join(pieces) for name, pieces in self._text.items()}
        audio = said.audio
        return Said(
            text="" if said.text == before["content"] else said.text,
            reasoning="" if said.reasoning == before["reasoning_content"] else said.reasoning,
            refusal="" if said.refusal == before["refusal"] else said.refusal,
            calls=() if self._calls.are_all_of(said.calls) else said.calls,
            audio=None if audio is not None and audio.data == "".join(self._audio_data) else audio,
        )

    def whole(self, index: int) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._text["content"]) or None}
        if self._extra:
            message["extra_content"] = self._extra
        for name in ("reasoning_content", "refusal"):
            if self._text[name]:
                message[name] = "".join(self._text[name])
        calls = self._calls.whole()
        if calls:
            message["tool_calls"] = calls
        if self._audio_data:
            message["audio"] = {**self._audio, "data": "".join(self._audio_data)}
        error = {"error": self._error} if self._error else {}
        return {"finish_reason": self._finish_reason, "index": index, "logprobs": None, "message": message, **error}


_NONE = ("{}", "null")
"""What some servers send first in the place of arguments that follow."""

_LONGEST_NONE = max(map(len, _NONE))

_MARKS = re.compile(r'["\\{}\[\]]')


@dataclass(slots=True)
class _Call:
    """A call whose arguments are arriving; their brackets are counted, so that nothing is examined twice."""

    id: str
    name: str = ""
    extra: Mapping[str, Any] | None = None
    arguments: list[str] = field(default_factory=list)
    is_whole: bool = False
    """Whether the arguments' object is closed: what follows belongs to another call."""
    delta: int = 0
    """The last delta that it was part of, counted from 1."""
    _depth: int = 0
    _in_text: bool = False
    _escaped_at: int = -1
    _length: int = 0

    def is_named(self, piece: str) -> None:
        """Takes a name, which most servers repeat and some send in pieces."""
        if self.name and piece and not self.arguments and not piece.startswith(self.name):
            piece = self.name + piece
        self.name = piece or self.name

    def is_told_again_by(self, text: str) -> bool:
        """Whether text is no further piece of the arguments, but all of them once more, or in the place of none."""
        if not text.strip() or not (self.is_whole or self._length <= _LONGEST_NONE):
            return False
        so_far = "".join(self.arguments).strip()
        return text.lstrip()[0] == "{" if so_far in _NONE else self.is_whole and so_far == text.strip()

    def add(self, text: str) -> None:
        if not text:
            return
        if self.is_told_again_by(text):
            self.arguments.clear()
            self._depth, self._in_text, self._escaped_at, self._length = 0, False, -1, 0
        self.arguments.append(text)
        for mark in _MARKS.finditer(text):
            self._count(mark.group(), self._length + mark.start())
        self._length += len(text)

    def _count(self, mark: str, at: int) -> None:
        if self._in_text:
            if at == self._escaped_at:
                return
            if mark == "\\":
                self._escaped_at = at + 1
            elif mark == '"':
                self._in_text = False
        elif mark == '"':
            self._in_text = True
        elif mark != "\\":
            self._depth += 1 if mark in "{[" else -1
            self.is_whole = self._depth == 0 and mark == "}"


def _meant(arguments: str) -> object:
    """What arguments mean, however they are written."""
    text = whole_arguments(arguments)
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


class _Calls:
    """The calls of one choice, in the order in which they began."""

    def __init__(self) -> None:
        self._all: list[_Call] = []
        self._by_id: dict[str, _Call] = {}
        self._by_index: dict[int, _Call] = {}
        self._deltas = 0

    def add(self, fragments: Sequence[Call]) -> None:
        """Adds the fragments of one delta, each of a different call."""
        self._deltas += 1
        for position, fragment in enumerate(fragments):
            call = self._call_of(fragment, position)
            call.delta = self._deltas
            call.is_named(fragment.name)
            call.add(fragment.arguments)
            extra = fragment.raw.get("extra_content")
            if isinstance(extra, dict):
                call.extra = extra

    def are_all_of(self, calls: Sequence[Call]) -> bool:
        """Whether other calls are these, in the same order."""
        if len(calls) != len(self._all):
            return False
        ours = [(call.name, _meant("".join(call.arguments))) for call in self._all]
        return ours == [(call.name, _meant(call.arguments)) for call in calls]

    def whole(self) -> list[dict[str, Any]]:
        return list(self._written())

    def _written(self) -> Iterator[dict[str, Any]]:
        for call in self._all:
            function = {"name": call.name, "arguments": "".join(call.arguments)}
            extra = {"extra_content": call.extra} if call.extra else {}
            yield {"id": call.id, "type": "function", "function": function, **extra}

    def _call_of(self, fragment: Call, position: int) -> _Call:
        index = position if fragment.index is None else fragment.index
        at_index = self._by_index.get(index)
        known = self._begun(fragment, at_index)
        if known is not None and (known.delta == self._deltas or self._is_over(known, at_index, fragment)):
            known = None  # another call that came with the same id, or with neither id nor index
        if known is None:
            known = _Call(fragment.id)
            self._all.append(known)
            self._by_id[fragment.id] = known
        self._by_id.setdefault(fragment.id, known)
        self._by_index[index] = known
        return known

    def _begun(self, fragment: Call, at_index: _Call | None) -> _Call | None:
        """The call that a fragment goes on with, as far as its id and its index tell."""
        if not fragment.id or (at_index is not None and at_index.id == fragment.id):
            return at_index  # also where two calls bear the same id
        known = self._by_id.get(fragment.id)
        if known is None and not fragment.name and at_index is not None and not at_index.is_whole:
            return at_index  # some servers draw another id for each fragment
        return known

    @staticmethod
    def _is_over(known: _Call, at_index: _Call | None, fragment: Call) -> bool:
        """Whether this fragment can only be of another call: this one has all its arguments, or another name."""
        if known.is_whole:
            is_same = bool(fragment.id) and fragment.index is not None and known is at_index
            again = is_same and known.is_told_again_by(fragment.arguments)
            return known is not at_index or (bool(fragment.arguments.strip()) and not again)
        unplaced = not fragment.id and fragment.index is None
        return unplaced and bool(fragment.name and known.name) and fragment.name != known.name


def _without_extras(choice: Mapping[str, Any]) -> dict[str, Any]:
    """A choice without fields that are nested too deeply to be written; only its server understands those."""
    message = choice["message"]
    calls = [_writable_fields(call) for call in message.get("tool_calls", ())]
    audio = _writable_fields(message.get("audio", {}))
    kept = {**_writable_fields(message), "tool_calls": calls, "audio": audio}
    error = {"error": writable(choice["error"]) or "nested too deeply"} if "error" in choice else {}
    return {**choice, "message": kept, **error}


def _writable_fields(thing: Mapping[str, Any]) -> dict[str, Any]:
    return {name: written for name, value in thing.items() if (written := writable(value)) is not None}
