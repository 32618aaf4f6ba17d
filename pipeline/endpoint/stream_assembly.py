"""Assembles the chunks of a stream into the completion that an unstreamed call would return. In linear time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from pipeline.endpoint.call_fragments import StreamedCalls
from pipeline.endpoint.error_body import excerpt, unwrapped
from pipeline.endpoint.messages import Said, is_thought, message_in, said_in
from pipeline.endpoint.untrusted_json import as_integer, as_name, as_position, as_text, read, writable, writable_fields
from pipeline.endpoint.usage import usage_of
from pipeline.endpoint.wire import choices_in
from pipeline.faults import Unavailable

_BLOCKED_IN = ("promptFeedback", "prompt_feedback", "prompt_filter_results")
_HEAD = ("created", "id", "model", "system_fingerprint", *_BLOCKED_IN)


class Assembly:
    """One streamed answer, chunk by chunk."""

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
        # The last value that says anything: Azure's first chunk has an empty id and model.
        for name in _HEAD:
            if chunk.head.get(name):
                self._head[name] = chunk.head[name]
            elif name in chunk.head:
                self._head.setdefault(name, chunk.head[name])
        # Usage so far, in servers that send it with every chunk: the last one covers the others.
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


class _ChoiceDelta(NamedTuple):
    """What a chunk adds to one choice."""

    choice: int
    finish_reason: str | None
    has_ended: bool
    error: object
    said: Said
    extra: Mapping[str, Any] | None
    is_message: bool
    """Whether it is a whole message instead of a delta."""


class _StreamChunk(NamedTuple):
    """A chunk, typed except for its head."""

    head: Mapping[str, Any]
    usage: dict[str, Any] | None
    pieces: list[_ChoiceDelta]


def _chunk_of(document: object) -> _StreamChunk:
    """A chunk, typed. Raises the fault for an error in it, and `Unavailable` when it is not an object."""
    document = unwrapped(document)
    choices = choices_in(document)
    if document is None:  # counts as an event without data
        return _StreamChunk({}, None, [])
    if not isinstance(document, dict):
        raise Unavailable("the stream holds a chunk that is not an object")
    return _StreamChunk(document, usage_of(document, choices), [_piece_of(choice) for choice in choices])


def _typed(head: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a completion other than choices and usage."""
    types = {"created": as_integer, "id": as_name, "model": as_text, "system_fingerprint": as_text}
    typed = {name: types[name](value) if name in types else value for name, value in head.items()}
    return {name: value for name, value in typed.items() if value is not None}


def _piece_of(choice: Mapping[str, Any]) -> _ChoiceDelta:
    message = message_in(choice, ("delta", "message"))
    error, extra = choice.get("error"), message.get("extra_content")
    return _ChoiceDelta(
        choice=as_position(choice.get("index")) or 0,
        finish_reason=as_text(choice.get("finish_reason")) or None,
        has_ended=bool(choice.get("finish_reason") or error),
        error=error or None,
        said=said_in(message),
        extra=extra if isinstance(extra, dict) and not is_thought(message) else None,
        is_message=message is choice.get("message"),
    )


_NOTHING = Said()


class _Choice:
    def __init__(self) -> None:
        self.has_ended = False
        self._finish_reason: str | None = None
        self._error: object = None
        self._text: dict[str, list[str]] = {"content": [], "reasoning_content": [], "refusal": []}
        self._calls = StreamedCalls()
        self._audio: dict[str, Any] = {}
        self._audio_data: list[str] = []
        self._extra: Mapping[str, Any] | None = None

    def add(self, piece: _ChoiceDelta) -> bool:
        # Some servers end with the whole message, after its deltas: without this, tools would run twice.
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
        """The last message of a stream without the text that earlier chunks have given already."""
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
        # Joined once: pieces of base64 that are added one by one take quadratic time.
        if self._audio_data:
            message["audio"] = {**self._audio, "data": "".join(self._audio_data)}
        error = {"error": self._error} if self._error else {}
        return {"finish_reason": self._finish_reason, "index": index, "logprobs": None, "message": message, **error}


def _without_extras(choice: Mapping[str, Any]) -> dict[str, Any]:
    """A choice without fields that are nested too deeply to be written; only its server understands those."""
    message = choice["message"]
    calls = [writable_fields(call) for call in message.get("tool_calls", ())]
    audio = writable_fields(message.get("audio", {}))
    kept = {**writable_fields(message), "tool_calls": calls, "audio": audio}
    error = {"error": writable(choice["error"]) or "nested too deeply"} if "error" in choice else {}
    return {**choice, "message": kept, **error}
