"""The endpoint's completions, read into our values.

The shapes are those of Vertex AI's OpenAI-compatible endpoint and of OpenAI's own: a 200 may hold no completion at
all, and every part of a completion may be missing or null.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from pipeline.data import Usage
from pipeline.error_body import excerpt, fault_in, parse
from pipeline.faults import Fault, Unavailable
from pipeline.foreign import as_integer, as_text, dig
from pipeline.usage import read_usage


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that the model asks for; `arguments` is JSON text, as it came."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Media:
    """Bytes that the model made."""

    mime_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """One choice of a completion. `refusal` says why there is none, when the server does."""

    text: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    media: tuple[Media, ...] = ()
    finish_reason: str | None = None
    refusal: str | None = None
    has_message: bool = True


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole response body: its answers in the order of their index, and what it cost."""

    answers: tuple[Answer, ...]
    id: str | None
    model: str | None
    usage: Usage | None
    traffic_type: str | None
    blocked: str | None


def read_completion(body: bytes) -> Completion:
    """The completion that `body` holds.

    Raises `Unavailable` when the body is not one (cut short, not JSON, an HTML page), and the fault that an error
    body stands for when a 200 carries one.
    """
    document = parse(body)
    fault = fault_in(document)
    if fault is not None:
        raise fault
    if not isinstance(document, dict):
        raise Unavailable(f"the endpoint answered 200 with something that is no completion: {excerpt(body)}")
    choices = document.get("choices")
    found = [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []
    if len(found) > 1:
        found.sort(key=lambda choice: as_integer(choice.get("index")) or 0)
    usage = document.get("usage")
    return Completion(
        answers=tuple([_answer(choice) for choice in found]),
        id=as_text(document.get("id")),
        model=as_text(document.get("model")),
        usage=read_usage(usage),
        traffic_type=as_text(dig(usage, "extra_properties", "google", "traffic_type")),
        blocked=_blocked(document),
    )


def usage_in(body: bytes) -> Usage | None:
    """What a body says that its call used, although it holds no completion; None when it does not say."""
    try:
        return read_usage(dig(parse(body), "usage"))
    except Fault:
        return None


def _answer(choice: Mapping[str, Any]) -> Answer:
    message = choice.get("message")
    finish_reason = as_text(choice.get("finish_reason"))
    if not isinstance(message, dict):
        return Answer(finish_reason=finish_reason, has_message=False)
    text, reasoning = _content(message)
    return Answer(
        text=text,
        reasoning=reasoning,
        tool_calls=tuple(_tool_calls(message.get("tool_calls"))),
        media=tuple(_media(message)),
        finish_reason=finish_reason,
        refusal=as_text(message.get("refusal")),
    )


def _content(message: Mapping[str, Any]) -> tuple[str | None, str | None]:
    content = message.get("content")
    reasoning = as_text(message.get("reasoning_content")) or as_text(message.get("reasoning"))
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if isinstance(part, dict) and as_text(part.get("text")))
    return as_text(content), reasoning


def _tool_calls(calls: object) -> list[ToolCall]:
    if not isinstance(calls, list):
        return []
    read = []
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            read.append(
                ToolCall(
                    as_text(call.get("id")) or "",
                    as_text(function.get("name")) or "",
                    _arguments(function.get("arguments")),
                )
            )
    return read


def _arguments(value: object) -> str:
    """Arguments are JSON text; some servers send the object itself."""
    return orjson.dumps(value).decode() if isinstance(value, dict) else as_text(value) or "{}"


def _media(message: Mapping[str, Any]) -> list[Media]:
    """Image output arrives as `message.audio.data`, with the MIME type in Google's extra content."""
    audio = message.get("audio")
    data = as_text(audio.get("data")) if isinstance(audio, dict) else None
    if data is None:
        return []
    mime_type = as_text(dig(audio, "extra_content", "google", "mime_type")) or "application/octet-stream"
    try:
        return [Media(mime_type, base64.b64decode(data, validate=True))]
    except ValueError:
        return []


def _blocked(document: Mapping[str, Any]) -> str | None:
    for name in ("promptFeedback", "prompt_feedback"):
        reason = dig(document, name, "blockReason") or dig(document, name, "block_reason")
        if isinstance(reason, str):
            return reason
    return None
