"""Faults on demand: which request gets one, and what each fault sends instead of an answer."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

from pipeline.emulator.protocol.tools import FunctionCall
from pipeline.emulator.protocol.wire import (
    JsonObject,
    Problem,
    choice,
    denied,
    exhausted,
    front_end_page,
    invalid,
    not_found,
    unauthenticated,
    unavailable,
)

PAGES = {"408": "Request Timeout", "413": "Request Entity Too Large", "502": "Server Error"}
STATUSES = {
    "499": ("CANCELLED", "The operation was cancelled."),
    "500": ("INTERNAL", "Internal error encountered."),
    "504": ("DEADLINE_EXCEEDED", "Deadline expired before operation could complete."),
}
UNSTREAMED = {"stream_cut": "partial", "stream_stall": "hang", "stream_error": "503", "stream_error_object": "503"}
STREAMED = {"partial": "stream_cut"}
SAME_ID = "function-call-00000000-0000-4000-8000-000000000000"
WITHOUT_OUTPUT = frozenset({"no_choices", "empty_choices", "no_message", "length", "content_filter", "blocked"})
HTML_PAGE = front_end_page(200, "OK")


def chosen(
    faults: Mapping[str, float], poison: Mapping[str, str], *, prompt: str, digest: bytes, repeat: int, seed: int
) -> str | None:
    """The kind of fault for the `repeat`-th request with a prompt, counted from 0; None for a normal answer.

    Poison comes first and never changes. Shares are decided by a hash of seed, prompt and `repeat`: the same run gets
    the same faults, and a retry may succeed.
    """
    for needle, kind in poison.items():
        if needle in prompt:
            return kind
    if not faults:
        return None
    material = digest + repeat.to_bytes(4, "big") + seed.to_bytes(8, "big", signed=True)
    left = int.from_bytes(blake2b(material, digest_size=7).digest(), "big") / 2**56
    for kind, share in faults.items():
        left -= share
        if left < 0:
            return kind
    return None


def fitting(kind: str | None, *, stream: bool) -> str | None:
    """The kind, or its equivalent with or without streaming."""
    return (STREAMED if stream else UNSTREAMED).get(kind or "", kind)


def problem(kind: str, *, model: str, parent: str, retry_info: float | None) -> Problem | None:
    """The API error of a kind that is an error."""
    match kind:
        case "400":
            return invalid("Request contains an invalid argument.")
        case "401":
            return unauthenticated("ACCESS_TOKEN_EXPIRED")
        case "403":
            return denied(model, parent)
        case "404":
            return not_found(model, parent)
        case "429":
            return exhausted(retry_info)
        case "503":
            return unavailable()
    if kind in STATUSES:
        return Problem(int(kind), *STATUSES[kind])
    return None


def damaged_text(kind: str | None, text: str) -> str:
    """The answer's text after a fault that changes only the text."""
    match kind:
        case "fenced":
            return f"```json\n{text}\n```"
        case "invalid_json":
            return f"Here is the JSON you asked for: {text[: len(text) // 2]}"
        case "wrong_schema":
            return '{"unexpected_field":["not","what","was","asked"]}'
        case _:
            return text


def damaged_calls(kind: str | None, calls: Sequence[FunctionCall], *, later_turn: bool) -> tuple[FunctionCall, ...]:
    """The calls after a fault that changes them. In a `later_turn`, with the results at hand, none."""
    if later_turn or not calls:
        return tuple(calls)
    match kind:
        case "unknown_tool":
            return (FunctionCall("look_it_up_somewhere", {"what": calls[0].name}), *calls[1:])
        case "bad_arguments":
            wrong: JsonObject = {name: {"unexpected": value} for name, value in calls[0].arguments.items()}
            return (FunctionCall(calls[0].name, wrong or {"unexpected": True}), *calls[1:])
    return tuple(calls)


def damaged_body(kind: str | None, body: JsonObject, digest: bytes) -> JsonObject:
    """The completion after a fault that changes its structure; other kinds leave it unchanged."""
    damage = DAMAGES.get(kind or "")
    return damage(body, digest) if damage else body


def _no_choices(body: JsonObject, _: bytes) -> JsonObject:
    return {name: value for name, value in body.items() if name != "choices"}


def _empty_choices(body: JsonObject, _: bytes) -> JsonObject:
    return {**body, "choices": []}


def _no_message(body: JsonObject, _: bytes) -> JsonObject:
    return {**body, "choices": [{"finish_reason": "length", "index": 0, "logprobs": None}]}


def _length(body: JsonObject, _: bytes) -> JsonObject:
    return {**body, "choices": [choice(0, {"role": "assistant"}, "length")]}


def _content_filter(body: JsonObject, _: bytes) -> JsonObject:
    return {**body, "choices": [choice(0, {"content": None, "role": "assistant"}, "content_filter")]}


def _blocked(body: JsonObject, digest: bytes) -> JsonObject:
    """The report of a blocked prompt; inferred for this endpoint: Gemini's own feedback, or a filtered choice."""
    forms = (_no_choices, _empty_choices, _content_filter)
    feedback = {} if digest[0] % 3 == 2 else {"promptFeedback": {"blockReason": "SAFETY"}}
    return {**forms[digest[0] % 3](body, digest), **feedback}


def _big_signature(body: JsonObject, digest: bytes) -> JsonObject:
    signature = base64.b64encode(b"".join(blake2b(digest + bytes([i])).digest() for i in range(125))).decode()
    extra: dict[str, Any] = {"google": {"thought_signature": signature}}
    choices = [{**each, "message": {**each["message"], "extra_content": extra}} for each in body["choices"]]
    return {**body, "choices": choices}


def _empty_ids(body: JsonObject, _: bytes) -> JsonObject:
    return _with_ids(body, "")


def _same_ids(body: JsonObject, _: bytes) -> JsonObject:
    return _with_ids(body, SAME_ID)


def _with_ids(body: JsonObject, ident: str) -> JsonObject:
    choices = [
        {**each, "message": {**message, "tool_calls": [{**call, "id": ident} for call in message["tool_calls"]]}}
        if "tool_calls" in (message := each["message"])
        else each
        for each in body["choices"]
    ]
    return {**body, "choices": choices}


def _tool_stop(body: JsonObject, _: bytes) -> JsonObject:
    choices = [
        {**each, "finish_reason": "stop"} if "tool_calls" in each["message"] else each for each in body["choices"]
    ]
    return {**body, "choices": choices}


def _no_usage(body: JsonObject, _: bytes) -> JsonObject:
    return {name: value for name, value in body.items() if name != "usage"}


DAMAGES: Mapping[str, Callable[[JsonObject, bytes], JsonObject]] = {
    "no_choices": _no_choices,
    "empty_choices": _empty_choices,
    "no_message": _no_message,
    "length": _length,
    "content_filter": _content_filter,
    "blocked": _blocked,
    "big_signature": _big_signature,
    "no_usage": _no_usage,
    "empty_ids": _empty_ids,
    "same_ids": _same_ids,
    "tool_stop": _tool_stop,
}
