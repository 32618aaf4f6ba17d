"""Writes answers as Vertex does: the choices of a completion, and their token counts."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Sequence

from pipeline.emulator.answers.answers import EmulatedAnswer, tokens_in
from pipeline.emulator.answers.seeded import Dice
from pipeline.emulator.protocol.request import ChatRequest
from pipeline.emulator.protocol.tools import FunctionCall, signature_of
from pipeline.emulator.protocol.wire import JsonObject, TokenCounts, choice
from pipeline.emulator.server.faults import WITHOUT_OUTPUT, damaged_calls, damaged_text

CACHED_TOKENS = 4096
"""Tokens of any cached content, which the emulator has not seen."""

DEFAULT_ROOM = 1024


def choices_of(
    asked: ChatRequest, answers: Sequence[EmulatedAnswer], reasoning: int, kind: str | None
) -> list[JsonObject]:
    """The `choices` for the answers, after applying a fault to texts or calls."""
    return [
        choice(index, _message(asked, answer, index, reasoning, kind), answer.finish_reason)
        for index, answer in enumerate(answers)
    ]


def counted(asked: ChatRequest, answers: Sequence[EmulatedAnswer], reasoning: int, kind: str | None) -> TokenCounts:
    """The token counts of a call."""
    cached = CACHED_TOKENS if asked.extensions.cached else 0
    prompt = tokens_in(asked.characters) + sum(medium.tokens for medium in asked.media) + cached
    if kind in WITHOUT_OUTPUT:
        eaten = (asked.max_tokens or reasoning or DEFAULT_ROOM) if kind in {"length", "no_message"} else 0
        return TokenCounts(prompt, 0, eaten, cached)
    return TokenCounts(prompt, sum(_written(asked, answer, kind) for answer in answers), reasoning, cached)


def _written(asked: ChatRequest, answer: EmulatedAnswer, kind: str | None) -> int:
    text = 0 if answer.text is None else tokens_in(len(damaged_text(kind, answer.text)))
    media = answer.media.tokens if answer.media else 0
    return text + media + sum(tokens_in(len(call.name) + len(call.written)) for call in calls_of(asked, answer, kind))


def _message(asked: ChatRequest, answer: EmulatedAnswer, index: int, reasoning: int, kind: str | None) -> JsonObject:
    message: JsonObject = {"role": "assistant"}
    if answer.text is not None or answer.thoughts is not None:
        text = "" if answer.text is None else damaged_text(kind, answer.text)
        message["content"] = _shown(answer.thoughts, asked.extensions.marker) + text
    if answer.media is not None:
        message.setdefault("content", None)
        google = {"mime_type": answer.media.mime_type}
        message["audio"] = {
            "data": base64.b64encode(answer.media.data).decode(),
            "extra_content": {"google": google},
        }
    calls = calls_of(asked, answer, kind)
    if calls:
        message["content"] = None
        message["tool_calls"] = _written_calls(calls, Dice(asked.digest + bytes([index])))
    elif reasoning:
        signature = base64.b64encode(asked.digest * 4 + bytes([index])).decode()
        message["extra_content"] = {"google": {"thought_signature": signature}}
    return message


def calls_of(asked: ChatRequest, answer: EmulatedAnswer, kind: str | None) -> tuple[FunctionCall, ...]:
    """The calls of an answer, after applying a fault to them."""
    return damaged_calls(kind, answer.calls, later_turn=bool(asked.turns))


def _shown(thoughts: str | None, marker: str | None) -> str:
    """Thought summaries are part of the text: in tags if the request names one, else bare."""
    if not thoughts:
        return ""
    return f"<{marker}>{thoughts}</{marker}>" if marker else f"{thoughts}\n"


def _written_calls(calls: Sequence[FunctionCall], dice: Dice) -> list[JsonObject]:
    """The calls with ids in Vertex's form; the first carries the thought signature for all of them."""
    written: list[JsonObject] = [
        {
            "function": {"arguments": call.written, "name": call.name},
            "id": f"function-call-{uuid.UUID(int=dice.below(2**128), version=4)}",
            "type": "function",
        }
        for call in calls
    ]
    written[0]["extra_content"] = {"google": {"thought_signature": signature_of(calls[0])}}
    return written
