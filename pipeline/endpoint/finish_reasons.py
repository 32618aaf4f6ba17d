"""How answers end: one table of the finish reasons that servers give, in any case and spelling.

The same functions decide for a live reply and for a stored one that is parsed again, so that a row ends the same way.
"""

from __future__ import annotations

import re
from enum import Enum
from functools import lru_cache

from pipeline.data import Usage
from pipeline.endpoint.error_body import fault_in
from pipeline.endpoint.redaction import redact_tokens
from pipeline.endpoint.wire import Completion, CompletionChoice
from pipeline.faults import Fault, Refused, Throttled, Truncated, Unavailable
from pipeline.text import one_line


class Ending(Enum):
    """What a finish reason says about an answer."""

    WHOLE = "whole"
    CUT = "cut"
    """The answer reached its length limit: a higher limit may help."""
    BLOCKED = "blocked"
    """The endpoint withholds the answer."""
    BROKEN = "broken"
    """The endpoint failed to produce an answer: worth another attempt."""


_WORDS = {
    Ending.BLOCKED: (
        "armor", "block", "blocked", "blocklist", "contentfilter", "csam", "filter", "filtered", "flagged",
        "guardrail", "guardrails", "harmful", "intervened", "jailbreak", "language", "moderated", "moderation",
        "policy", "prohibited", "recitation", "refusal", "refused", "safety", "sensitive", "spii",
    ),
    Ending.BROKEN: (
        "abort", "aborted", "cancelled", "canceled", "disconnect", "error", "errored", "fail", "failed", "failure",
        "insufficient", "interrupted", "invalid", "malformed", "many", "missing", "network", "no", "other",
        "overloaded", "rate", "time", "timeout", "unavailable", "unexpected",
    ),
    Ending.CUT: (
        "cutoff", "incomplete", "length", "limit", "maxlength", "maxtokens", "tokens", "truncated", "window",
    ),
}  # fmt: skip
"""The deciding words, by kind; the first kind with a match counts. A reason with no match ends a complete answer.

Gemini's reasons: https://cloud.google.com/vertex-ai/generative-ai/docs/reference/rest/v1/GenerateContentResponse
(how the compatible endpoint spells them is inferred; length and content_filter were seen). Others in public reports:
maximhq/bifrost#5425, genkit-ai/genkit#6259, mozilla-ai/any-llm#1202, router-for-me/CLIProxyAPI#433.
"""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_LONGEST = 60


@lru_cache(maxsize=256)
def ending_of(reason: str | None) -> Ending:
    """The meaning of a finish reason. None and unknown reasons end complete answers."""
    if reason in (None, "stop", "tool_calls"):
        return Ending.WHOLE
    words = {word.lower() for word in _WORD.findall(reason[:_LONGEST])}
    return next((ending for ending, known in _WORDS.items() if not words.isdisjoint(known)), Ending.WHOLE)


def fault_of(answer: CompletionChoice, completion: Completion) -> Fault | None:
    """Why an answer is not complete, according to its server; None when it is."""
    if answer.error is not None:
        return fault_in({"error": answer.error})
    if answer.finish_reason == "stop" and answer.refusal is None:
        return None
    match ending_of(answer.finish_reason):
        case Ending.BLOCKED if answer.finish_reason == "content_filter":
            return Refused("the answer was blocked by the content filter")
        case Ending.BLOCKED:
            return Refused(f"the answer was blocked (finish_reason {_spelled(answer)})")
        case _ if answer.refusal:
            return Refused(f"the model refused: {_server_text(answer.refusal)}")
        case Ending.CUT:
            return Truncated(f"the answer was cut at max_tokens{_after(completion.usage)}")
        case Ending.BROKEN:
            return Unavailable(f"the endpoint failed to make an answer (finish_reason {_spelled(answer)})")
    return None


def _after(usage: Usage | None) -> str:
    """The length of a truncated answer, if the server reports it."""
    if usage is None:
        return ""
    thinking = f", {usage.reasoning} of them on thinking" if usage.reasoning else ""
    return f" after {usage.output + usage.reasoning} tokens{thinking}"


def fault_of_all(completion: Completion) -> Fault | None:
    """Why a completion has no answer at all; None when it has one, complete or not."""
    if completion.blocked:
        return Refused(f"the prompt was blocked: {_server_text(completion.blocked)}")
    if not completion.answers:
        return Unavailable(f"the endpoint gave no answer (no choices): {completion.instead or ''}")
    return None


def worth_another_try(completion: Completion) -> Fault | None:
    """The fault for which a completion is requested again: that of its first answer, if all answers have it."""
    fault = fault_of_all(completion)
    if fault is None:
        faults = [fault_of(answer, completion) for answer in completion.answers]
        fault = faults[0] if all(isinstance(each, Throttled | Unavailable) for each in faults) else None
    return fault if isinstance(fault, Throttled | Unavailable) else None


def _spelled(answer: CompletionChoice) -> str:
    """The finish reason, for a message."""
    return one_line(answer.finish_reason or "")[:_LONGEST]


def _server_text(text: str) -> str:
    """The beginning of a server's text. Cut before and after redaction, which is slow for long texts."""
    return redact_tokens(text[:1000])[:300]
