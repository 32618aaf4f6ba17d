"""The usage that a server reports for a call: typed and clamped, or None if it is not enough for a bill."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.data import Usage
from pipeline.endpoint.untrusted_json import dig

MOST_TOKENS = 2**40
"""Maximum tokens per call; larger values are clamped, so that no sum of calls overflows 64 bits."""

_LONGEST_NUMBER = 64


def usage_of(document: Mapping[str, Any], choices: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The usage in a completion or a chunk: beside the choices, or where some servers put it.

    Groq's streams have it in `x_groq` (https://console.groq.com/docs/api-reference), Moonshot's in the last choice
    (https://platform.moonshot.ai/docs/api/chat).
    """
    beside = document.get("usage")
    if beside and isinstance(beside, dict):
        return beside
    places = (dig(document, "x_groq", "usage"), *(choice.get("usage") for choice in choices))
    return next((usage for usage in places if usage and isinstance(usage, dict)), None)


def read_usage(usage: object) -> Usage | None:
    """Tokens in disjoint kinds, each from 0 to `MOST_TOKENS`, cached ones no more than the input. None when unknown.

    Numbers may be text or have a fraction. If the prompt or completion count is missing, negative or not a number, it
    follows from the total, if there is one. A completion count that is merely absent is 0: Google's JSON omits zeros
    (inferred from https://protobuf.dev/programming-guides/json/; a blocked prompt has none). Otherwise a partial usage
    counts as none: it would price half a call.

    Vertex AI excludes reasoning from `completion_tokens`, OpenAI includes it; `total_tokens` shows which.
    """
    if not isinstance(usage, dict):
        return None
    total = _count(usage.get("total_tokens"))
    prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    details = usage.get("completion_tokens_details")
    reasoning = (_count(dig(details, "reasoning_tokens")) or 0) if details else 0
    if completion is None and prompt is not None:
        completion = _rest(total, prompt + reasoning)
        if completion is None and usage.get("completion_tokens") is None:
            completion = 0
    elif prompt is None and completion is not None:
        prompt = _rest(total, completion + reasoning)
    if prompt is None or completion is None:
        return None
    details = usage.get("prompt_tokens_details")
    cached = min(prompt, _count(dig(details, "cached_tokens")) or 0) if details else 0
    inside = 0 < reasoning <= completion and total == prompt + completion
    return Usage(prompt, completion - reasoning if inside else completion, reasoning, cached)


def _rest(total: int | None, known: int) -> int | None:
    """The rest of a total after the known part."""
    return None if total is None or total < known else total - known


def _count(value: object) -> int | None:
    """A number of tokens; None if it is negative or not a number."""
    if type(value) is int and 0 <= value <= MOST_TOKENS:  # nearly all: five a reply, each read twice
        return value
    if isinstance(value, str):
        value = _number(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return min(int(value), MOST_TOKENS) if value >= 0 else None


def _number(text: str) -> float | None:
    """The number in a text. Exact up to 2^53, which exceeds `MOST_TOKENS`."""
    try:
        return float(text) if len(text) <= _LONGEST_NUMBER else None
    except ValueError:
        return None
