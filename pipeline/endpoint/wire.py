"""The endpoint's completions, read into our values.

The shapes are those of Vertex AI's OpenAI-compatible endpoint and of OpenAI's own: a 200 may hold no completion at
all, and every part of a completion may be missing, null or of another type.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.data import Reply, Usage
from pipeline.endpoint.error_body import excerpt, fault_in, unwrapped
from pipeline.endpoint.messages import ARGUMENTS, Audio, Call, calls_in, message_in, said_in, whole_arguments
from pipeline.endpoint.untrusted_json import as_name, as_position, as_text, dig, objects, read
from pipeline.endpoint.usage import read_usage, usage_of
from pipeline.faults import Unavailable


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that the model asks for; `arguments` is JSON text, of an object where what came can mean one."""

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
    """One choice of a completion; what is empty is None.

    `refusal` says why there is no answer, when the server does; `error` is what its choice reports in the place of one.
    """

    text: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    media: tuple[Media, ...] = ()
    finish_reason: str | None = None
    refusal: str | None = None
    error: Mapping[str, Any] | str | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole response body: its answers in the order of their index, and what it cost.

    `blocked` is why the prompt was blocked, where the body says so; `instead` is its beginning when it holds neither
    that nor an answer.
    """

    answers: tuple[Answer, ...]
    id: str | None
    model: str | None
    usage: Usage | None
    traffic_type: str | None
    blocked: str | None
    instead: str | None = None


def read_completion(body: bytes) -> Completion:
    """The completion that `body` holds.

    Raises `Unavailable` when the body is not one (cut short, not JSON, an HTML page), and the fault that an error
    body stands for when a 200 carries one.
    """
    try:
        completion = read(body, completion_of)
    except ValueError:
        told = f"the endpoint's answer is not JSON: {excerpt(body)}" if body else "the answer is empty"
        raise Unavailable(told) from None
    if completion is None:
        raise Unavailable(f"the endpoint answered 200 with something that is no completion: {excerpt(body)}")
    if not completion.answers and not completion.blocked:
        return replace(completion, instead=excerpt(body))
    return completion


def completion_of_reply(reply: Reply) -> Completion:
    """The completion that a reply holds, which is read once. Raises what `read_completion` raises."""
    known = reply.completion
    return known if isinstance(known, Completion) else read_completion(reply.body)


def completion_of(document: object) -> Completion | None:
    """The completion in a decoded body, None when it is no object. Raises the fault that an error in it stands for."""
    if not isinstance(document, dict) or "choices" not in document:
        document = unwrapped(document)
    choices = choices_in(document)
    if not isinstance(document, dict):
        return None
    if len(choices) > 1:
        choices.sort(key=lambda choice: as_position(choice.get("index")) or 0)
    usage = usage_of(document, choices)
    return Completion(
        answers=tuple([_answer(choice) for choice in choices]),
        id=as_name(document.get("id")) or None,
        model=as_text(document.get("model")),
        usage=read_usage(usage),
        traffic_type=as_text(dig(usage, "extra_properties", "google", "traffic_type")),
        blocked=None if _FEEDBACK.isdisjoint(document) else _blocked(document),
    )


def choices_in(document: object) -> list[dict[str, Any]]:
    """The choices of a completion or a chunk. Raises the fault that an error in the document stands for."""
    choices: list[dict[str, Any]] = []
    if isinstance(document, dict):
        choices = objects(document.get("choices"))
        if choices and not document.get("error"):
            return choices
    fault = fault_in(document)
    if fault is not None:
        raise fault
    return choices


def first_message(body: bytes) -> dict[str, Any]:
    """The first answer's message with all that the endpoint put into it; empty when there is none.

    Its calls are as `pipeline.endpoint.messages` reads them, and otherwise as they came: thought signatures go back
    unchanged.
    """

    def message_of(document: object) -> dict[str, Any]:
        document = unwrapped(document)
        choices = objects(document.get("choices")) if isinstance(document, dict) else []
        message = dict(message_in(choices[0])) if choices else {}
        if message.get("tool_calls") or message.get("function_call"):
            calls = [_written(call) for call in calls_in(message) if call.name]
            message = {name: value for name, value in message.items() if name != "function_call"}
            message["tool_calls"] = calls
        return message

    return read(body, message_of)


def _written(call: Call) -> dict[str, Any]:
    """A call as it is handed back: what is right stays as it came, in its place."""
    function = call.raw.get("function")
    known = {"name": call.name, "arguments": whole_arguments(call.arguments)}
    if isinstance(function, dict):
        rest = function if "arguments" in function else {n: v for n, v in function.items() if n not in ARGUMENTS}
        return {**call.raw, "id": call.id, "function": {**rest, **known}}
    rest = {name: value for name, value in call.raw.items() if name not in {"name", *ARGUMENTS}}
    return {**rest, "id": call.id, "type": "function", "function": known}


def usage_in(body: bytes) -> Usage | None:
    """What a body says that its call used, although it holds no completion; None when it does not say."""
    try:
        return read(body, lambda document: read_usage(dig(unwrapped(document), "usage")))
    except ValueError:
        return None


def _answer(choice: Mapping[str, Any]) -> Answer:
    said = said_in(message_in(choice))
    error = choice.get("error")
    return Answer(
        text=said.text or None,
        reasoning=said.reasoning or None,
        tool_calls=tuple(_tool_calls(said.calls)) if said.calls else (),
        media=() if said.audio is None else _media(said.audio),
        finish_reason=as_text(choice.get("finish_reason")),
        refusal=said.refusal or None,
        error=error if error and isinstance(error, dict | str) else None,
    )


def _tool_calls(calls: Sequence[Call]) -> list[ToolCall]:
    """The calls that name a tool: there is nothing to be done with another."""
    return [ToolCall(call.id, call.name, whole_arguments(call.arguments)) for call in calls if call.name]


def _media(audio: Audio) -> tuple[Media, ...]:
    """Image output arrives as `message.audio.data`, with the MIME type in Google's extra content."""
    if not audio.data:
        return ()
    mime_type = as_text(dig(audio.about, "extra_content", "google", "mime_type")) or "application/octet-stream"
    try:
        return (Media(mime_type, base64.b64decode(audio.data, validate=True)),)
    except ValueError:
        return ()


_FEEDBACK = frozenset({"promptFeedback", "prompt_feedback", "prompt_filter_results"})


def _blocked(document: Mapping[str, Any]) -> str | None:
    """Why the prompt was blocked: Gemini's own `promptFeedback`, or Azure's filter results."""
    for feedback in ("promptFeedback", "prompt_feedback"):
        for name in ("blockReason", "block_reason"):
            reason = as_text(dig(document, feedback, name))
            if reason and not reason.lower().endswith("unspecified"):
                return reason
    for result in objects(document.get("prompt_filter_results")):
        kinds = result.get("content_filter_results")
        for kind, found in kinds.items() if isinstance(kinds, dict) else ():
            if dig(found, "filtered") is True:
                return str(kind)
    return None
