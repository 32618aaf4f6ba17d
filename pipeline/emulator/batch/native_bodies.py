"""Gemini's own response (`GenerateContentResponse`) for the emulator's answers."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from pipeline.emulator.answers.answers import EmulatedAnswer
from pipeline.emulator.protocol.request import ChatRequest
from pipeline.emulator.protocol.tools import signature_of
from pipeline.emulator.protocol.wire import JsonObject, TokenCounts
from pipeline.emulator.server.bodies import calls_of
from pipeline.emulator.server.faults import damaged_text

_REASONS = {"stop": "STOP", "tool_calls": "STOP", "length": "MAX_TOKENS"}
_WITHOUT_CANDIDATES = frozenset({"blocked", "no_choices", "empty_choices"})


def response_of(
    asked: ChatRequest, found: Sequence[EmulatedAnswer], reasoning: int, tokens: TokenCounts, kind: str | None
) -> JsonObject:
    """The response after a fault, without its id and its date."""
    body: JsonObject = {"modelVersion": asked.model.rpartition("/")[2]}
    if kind == "blocked":
        body["promptFeedback"] = {"blockReason": "SAFETY"}
    elif kind == "empty_choices":
        body["candidates"] = []
    elif kind not in _WITHOUT_CANDIDATES:
        body["candidates"] = [_candidate(asked, each, n, reasoning, kind) for n, each in enumerate(found)]
    if kind != "no_usage":
        body["usageMetadata"] = _usage(tokens)
    return body


def _candidate(asked: ChatRequest, answer: EmulatedAnswer, number: int, reasoning: int, kind: str | None) -> JsonObject:
    """A candidate; that the first has no `index` is as published, and how protobuf writes a 0."""
    index = {"index": number} if number else {}
    if kind == "content_filter":
        return {"finishReason": "SAFETY", **index}
    if kind in {"length", "no_message"}:
        return {"content": {"role": "model"}, "finishReason": "MAX_TOKENS", **index}
    parts = _parts(asked, answer, number, reasoning, kind)
    content = {"parts": parts, "role": "model"} if parts else {"role": "model"}
    return {"content": content, "finishReason": _REASONS[answer.finish_reason], **index}


def _parts(
    asked: ChatRequest, answer: EmulatedAnswer, number: int, reasoning: int, kind: str | None
) -> list[JsonObject]:
    parts: list[JsonObject] = []
    if answer.thoughts:
        parts.append({"text": answer.thoughts, "thought": True})
    calls = calls_of(asked, answer, kind)
    if calls:
        made: list[JsonObject] = [{"functionCall": {"args": call.arguments, "name": call.name}} for call in calls]
        made[0]["thoughtSignature"] = signature_of(calls[0])
        return [*parts, *made]
    if answer.text is not None:
        part: JsonObject = {"text": damaged_text(kind, answer.text)}
        if reasoning:
            part["thoughtSignature"] = base64.b64encode(asked.digest * 4 + bytes([number])).decode()
        parts.append(part)
    if answer.media is not None:
        data = base64.b64encode(answer.media.data).decode()
        parts.append({"inlineData": {"data": data, "mimeType": answer.media.mime_type}})
    return parts


def _usage(tokens: TokenCounts) -> JsonObject:
    """`usageMetadata`; a captured row of a batch says ON_DEMAND too, though it costs half. Zeros are left out."""
    counts = {
        "promptTokenCount": tokens.prompt,
        "candidatesTokenCount": tokens.completion,
        "thoughtsTokenCount": tokens.reasoning,
        "cachedContentTokenCount": tokens.cached,
        "totalTokenCount": tokens.prompt + tokens.completion + tokens.reasoning,
    }
    return {**{name: count for name, count in counts.items() if count}, "trafficType": "ON_DEMAND"}
