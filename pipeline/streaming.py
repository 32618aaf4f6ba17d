"""Streamed chunks put together into the completion that would have come unstreamed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from pipeline.error_body import fault_in
from pipeline.faults import Unavailable


class Assembly:
    """One streamed answer, chunk by chunk.

    Fragments of tool calls are told apart by their id and, where a fragment has none, by their index: Google sends
    the id with every fragment and sometimes a wrong index, OpenAI sends the id once and then the index alone.
    """

    def __init__(self) -> None:
        self._head: dict[str, Any] = {}
        self._choices: dict[int, _Choice] = {}
        self._usage: object = None

    def add(self, chunk: object) -> bool:
        """Takes a chunk; says whether it holds a piece of the answer. Raises the fault that an error in it means."""
        fault = fault_in(chunk)
        if fault is not None:
            raise fault
        if not isinstance(chunk, dict):
            raise Unavailable("the stream holds a chunk that is no object")
        for name in ("created", "id", "model", "system_fingerprint"):
            if name in chunk:
                self._head[name] = chunk[name]
        self._usage = chunk.get("usage") or self._usage
        choices = chunk.get("choices")
        found = [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []
        added = [self._add_choice(choice) for choice in found]
        return any(added)

    def body(self) -> bytes:
        """The completion's body, keys sorted as Vertex does. Raises `Unavailable` when the stream was cut short."""
        # A blocked prompt has no choices, but its usage came: that stream is whole.
        cut = any(choice.finish_reason is None for choice in self._choices.values())
        if cut or not (self._choices or self._usage):
            raise Unavailable("the stream ended before the answer did")
        choices = [self._choices[index].whole(index) for index in sorted(self._choices)]
        completion = {**self._head, "choices": choices, "object": "chat.completion", "usage": self._usage}
        return orjson.dumps(completion, option=orjson.OPT_SORT_KEYS)

    def _add_choice(self, choice: Mapping[str, Any]) -> bool:
        index = choice.get("index")
        known = self._choices.setdefault(index if isinstance(index, int) else 0, _Choice())
        known.finish_reason = choice.get("finish_reason") or known.finish_reason
        delta = choice.get("delta")
        return known.add(delta) if isinstance(delta, dict) else False


class _Choice:
    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self._text: dict[str, list[str]] = {"content": [], "reasoning_content": [], "refusal": []}
        self._calls: list[dict[str, Any]] = []
        self._by_index: dict[int, dict[str, Any]] = {}
        self._rest: dict[str, Any] = {}

    def add(self, delta: Mapping[str, Any]) -> bool:
        google = delta.get("extra_content")
        thought = (
            isinstance(google, dict) and isinstance(google.get("google"), dict) and google["google"].get("thought")
        )
        found = False
        for name, pieces in self._text.items():
            piece = delta.get(name)
            if isinstance(piece, str) and piece:
                (self._text["reasoning_content"] if thought and name == "content" else pieces).append(piece)
                found = True
        for call in delta.get("tool_calls") or ():
            if isinstance(call, dict):
                self._add_call(call)
                found = True
        if isinstance(google, dict) and not thought:
            self._rest["extra_content"] = google
        if isinstance(delta.get("audio"), dict):
            self._add_audio(delta["audio"])
            found = True
        return found

    def whole(self, index: int) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", **self._rest, "content": "".join(self._text["content"]) or None}
        for name in ("reasoning_content", "refusal"):
            if self._text[name]:
                message[name] = "".join(self._text[name])
        if self._calls:
            message["tool_calls"] = self._calls
        return {"finish_reason": self.finish_reason, "index": index, "logprobs": None, "message": message}

    def _add_call(self, fragment: Mapping[str, Any]) -> None:
        call = self._call_of(fragment)
        function = fragment.get("function")
        if isinstance(function, dict):
            call["function"]["name"] = function.get("name") or call["function"]["name"]
            call["function"]["arguments"] += function.get("arguments") or ""
        if isinstance(fragment.get("extra_content"), dict):
            call["extra_content"] = fragment["extra_content"]

    def _call_of(self, fragment: Mapping[str, Any]) -> dict[str, Any]:
        name, index = fragment.get("id"), fragment.get("index")
        at_index = self._by_index.get(index or 0)
        known = next((call for call in reversed(self._calls) if call["id"] == name), None) if name else at_index
        if known is not None and (known is not at_index or _more(fragment)) and _is_whole(known):
            known = None  # another call that came with the same id, or with neither id nor index
        if known is None:
            known = {"id": name or "", "type": "function", "function": {"name": "", "arguments": ""}}
            self._calls.append(known)
        self._by_index[index or 0] = known
        return known

    def _add_audio(self, audio: Mapping[str, Any]) -> None:
        known = self._rest.setdefault("audio", {"data": ""})
        known.update({name: value for name, value in audio.items() if name != "data"})
        known["data"] += audio.get("data") or ""


def _more(fragment: Mapping[str, Any]) -> str:
    """The piece of arguments in a fragment."""
    function = fragment.get("function")
    return str(function.get("arguments") or "").strip() if isinstance(function, dict) else ""


def _is_whole(call: Mapping[str, Any]) -> bool:
    """Whether all arguments of a call have come."""
    arguments = call["function"]["arguments"].rstrip()
    if not arguments.endswith("}"):
        return False
    try:
        orjson.loads(arguments)
    except orjson.JSONDecodeError:
        return False
    return True
