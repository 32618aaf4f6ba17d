"""The content of a message, or of a piece of one in a stream: the one place that types the fields of foreign messages.

The completion parser, the assembly of streams and the tool loop all read messages here. The forms are those of Vertex
AI's compatible endpoint, of OpenAI, and of other compatible servers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from pipeline.endpoint.untrusted_json import as_name, as_position, as_text, dig, json_text, objects

_PREFIX = "default_api."
"""A prefix that Gemini sometimes adds to function names: googleapis/python-aiplatform#4472."""

_TOO_DEEP = "(nested too deeply to be written)"
"""Replaces arguments that are such an object: it is not JSON, so no tool accepts it."""

ARGUMENTS = ("arguments", "args", "input", "parameters")
"""Where a call has its arguments: OpenAI's name, and those of Gemini, of Anthropic and of Llama, which gateways let
through. A call whose arguments are overlooked would be made without any."""

_LEVELS = 4
"""Levels to which texts are searched for inside a content part."""

_THOUGHT = ("thinking", "reasoning", "thought")
_TEXTS = ("text", "output_text")


@dataclass(frozen=True, slots=True)
class ReceivedCall:
    """One tool call, or a fragment of one; what is not known yet is empty.

    `arguments` is always text; `raw` is the call with everything that the server sent in it.
    """

    id: str
    index: int | None
    name: str
    arguments: str
    raw: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Audio:
    """A piece of generated media: base64, and what is known about it."""

    data: str
    about: Mapping[str, Any]


class Said(NamedTuple):
    """The content of a message, or what it adds to earlier pieces. Empty text counts as no text."""

    text: str = ""
    reasoning: str = ""
    refusal: str = ""
    calls: Sequence[ReceivedCall] = ()
    audio: Audio | None = None


def message_in(choice: Mapping[str, Any], names: Sequence[str] = ("message", "delta")) -> Mapping[str, Any]:
    """The message of a choice, under the first of these names that has one; empty when there is none.

    Also the bare `text` of OpenAI's older endpoint, which some servers still use.
    """
    for name in names:
        message = choice.get(name)
        if message and isinstance(message, dict):
            return message
        if message and isinstance(message, str | list):  # its content, without a level around it
            return {"content": message}
    text = choice.get("text")
    return {"content": text} if isinstance(text, str) else {}


def said_in(message: Mapping[str, Any]) -> Said:
    """The content of a message or delta. Raises `Rounded` (see `pipeline.endpoint.untrusted_json.read`)."""
    content = message.get("content")
    if isinstance(content, str):
        text, thoughts, refusal = content, "", ""
    else:
        is_value = bool(content) or isinstance(content, int | float)
        text, thoughts, refusal = _parts(content) if is_value else ("", "", "")
    # Google's mark takes precedence over the tag inside the text (see `thought_tag_marker`).
    if "extra_content" in message and is_thought(message):
        text, thoughts = "", text + thoughts
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    audio = message.get("audio")
    return Said(
        text,
        _flat(reasoning) + thoughts if reasoning else thoughts,
        refusal or as_text(message.get("refusal")) or "",
        calls_in(message),
        _audio(audio) if audio else None,
    )


def calls_in(message: Mapping[str, Any]) -> Sequence[ReceivedCall]:
    """The calls of a message, or fragments of them. Raises `Rounded`."""
    calls = message.get("tool_calls")
    if not calls:
        function = message.get("function_call")  # OpenAI's older form
        return [_call({"function": function})] if isinstance(function, dict) and function else ()
    if isinstance(calls, dict) and not {"function", "name", "id"} & calls.keys():
        calls = list(calls.values())  # an object by number instead of a list
    return [_call(call) for call in objects(calls)]


def whole_arguments(text: str) -> str:
    """The arguments of a call as JSON text of an object, if they can mean one; else unchanged.

    Servers write empty arguments as nothing, `null` or `""`, and some encode the object twice.
    """
    bare = text.strip()
    if bare in {"", "null"}:
        return "{}"
    if bare[0] != '"':
        return text
    try:
        inner = orjson.loads(bare)
        if inner.strip() in {"", "null"}:
            return "{}"
        return inner if isinstance(orjson.loads(inner), dict) else text
    except orjson.JSONDecodeError:
        return text


def is_object(text: str) -> bool:
    """Whether text is a JSON object."""
    try:
        return isinstance(orjson.loads(text), dict)
    except orjson.JSONDecodeError:
        return False


def is_thought(thing: Mapping[str, Any]) -> bool:
    """Whether Google marks a message, or a part of its content, as a thought.

    https://cloud.google.com/vertex-ai/generative-ai/docs/migrate/openai/overview
    """
    return dig(thing, "extra_content", "google", "thought") in (True, "true", "True")


def _call(call: Mapping[str, Any]) -> ReceivedCall:
    function = call.get("function")
    if isinstance(function, dict):
        name, arguments = function.get("name"), _first_of(function, ARGUMENTS)
    else:  # some servers name the function here, or leave the level out
        name, arguments = function or call.get("name"), _first_of(call, ARGUMENTS)
    return ReceivedCall(
        id=as_name(call.get("id")),
        index=as_position(call.get("index")),
        name=(as_text(name) or "").strip().removeprefix(_PREFIX),
        arguments=_arguments(arguments),
        raw=call,
    )


def _first_of(thing: Mapping[str, Any], names: Sequence[str]) -> object:
    """What is under the first of these names that holds anything."""
    return next((value for name in names if (value := thing.get(name)) is not None), None)


def _arguments(value: object) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json_text(value) or _TOO_DEEP


def _parts(content: object) -> tuple[str, str, str]:
    """Text, thoughts and refusal in content other than plain text: a list of parts, a part, or another JSON value."""
    if isinstance(content, int | float):  # an answer like `42` that a gateway has decoded
        return json_text(content) or "", "", ""
    if isinstance(content, dict):
        if as_text(content.get("type")) not in _TEXTS:
            return json_text(content) or "", "", ""
        content = [content]
    kinds: dict[str, list[str]] = {"text": [], "thought": [], "refusal": []}
    for part in content if isinstance(content, list) else ():
        kind, piece = _part(part)
        kinds[kind].append(piece)
    text, thoughts, refusal = ("".join(pieces) for pieces in kinds.values())
    return text, thoughts, refusal


def _part(part: object) -> tuple[str, str]:
    if not isinstance(part, dict):
        return "text", _flat(part)
    kind = as_text(part.get("type")) or ""
    if kind == "refusal":
        return "refusal", as_text(part.get("refusal")) or ""
    if kind.startswith(_THOUGHT) or is_thought(part):
        return "thought", _flat(part)
    return "text", _flat(part.get("text"))


def _flat(value: object, levels: int = _LEVELS) -> str:
    """The text inside a text, a part, or a list of parts."""
    if isinstance(value, str):
        return value
    if not levels:
        return ""
    if isinstance(value, list):
        return "".join([_flat(item, levels - 1) for item in value])
    if isinstance(value, dict):
        found = (_flat(value.get(name), levels - 1) for name in ("text", "thinking", "reasoning", "content", "value"))
        return next(filter(None, found), "")
    return ""


def _audio(audio: object) -> Audio | None:
    if not isinstance(audio, dict) or not audio:
        return None
    return Audio(as_text(audio.get("data")) or "", {name: value for name, value in audio.items() if name != "data"})
