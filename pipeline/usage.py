"""What a server says that a call used."""

from __future__ import annotations

from pipeline.data import Usage
from pipeline.foreign import as_integer, dig

_MOST = 2**40
"""More tokens than any call has: sums of such counts stay within 64 bits."""


def read_usage(usage: object) -> Usage:
    """Tokens in disjoint kinds.

    Vertex leaves reasoning out of `completion_tokens`, OpenAI puts it in; `total_tokens` tells which it was.
    """
    if not isinstance(usage, dict):
        return Usage()
    prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    reasoning = _count(dig(usage, "completion_tokens_details", "reasoning_tokens"))
    cached = _count(dig(usage, "prompt_tokens_details", "cached_tokens"))
    inside = reasoning and reasoning <= completion and _count(usage.get("total_tokens")) == prompt + completion
    return Usage(prompt, completion - reasoning if inside else completion, reasoning, min(cached, prompt))


def _count(value: object) -> int:
    number = as_integer(value) or 0
    return number if 0 <= number <= _MOST else 0
