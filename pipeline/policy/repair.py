"""Asks again for answers that were truncated or do not fit the schema; each such call is governed like any other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pipeline.data import Ask, Failure, Outcome, Reply, Request, together
from pipeline.endpoint.untrusted_json import as_integer, dig
from pipeline.endpoint.wire import completion_of_reply
from pipeline.faults import Fault, Truncated, Unparsable

MOST_TOKENS = 65_536
"""The token limit from which a truncated answer is not asked for again."""

_EMPTY = "Your answer was empty. Answer now."


def repairing(ask: Ask, outcome: Callable[[int, Reply], Outcome], repairs: int) -> Ask:
    """Ask again if the answer was truncated (once, with more room) or does not fit (`repairs` times, with the error).

    A truncated answer is never shown to the model: it would continue from broken text. The reply carries the usage of
    every call. With `repairs` 0, nothing is asked again.
    """

    async def repairing_ask(request: Request) -> Reply:
        reply = await ask(request)
        widened, left = False, repairs
        while left or (repairs and not widened):
            try:
                judged = outcome(request.ordinal, reply)
            except Exception:  # a bug in the job, which ends the run: keep what was paid for first
                if request.calls is not None:
                    await request.calls.keep()
                raise
            fault = judged.fault if isinstance(judged, Failure) else None
            # A row of several turns continues from its last request: its tools are not called again.
            again = _again(reply.asked or request, reply, fault, widened=widened, left=left)
            if again is None:
                return reply
            widened, left = (True, left) if isinstance(fault, Truncated) else (widened, left - 1)
            request = again
            reply = together(reply, await ask(request))
        return reply

    return repairing_ask


def _again(request: Request, reply: Reply, fault: Fault | None, *, widened: bool, left: int) -> Request | None:
    match fault:
        case Truncated() if not widened:
            return _with_more_room(request, reply)
        case Unparsable() if left:
            text = _text_of(reply)
            complaint = f"That does not fit: {fault.message}. Answer again, with nothing but the corrected JSON."
            said = [{"role": "assistant", "content": text}] if text else []
            asked = {"role": "user", "content": complaint if text else _EMPTY}
            return replace(
                request, payload={**request.payload, "messages": [*request.payload["messages"], *said, asked]}
            )
    return None


def _text_of(reply: Reply) -> str:
    """The text of the first answer, unless it is blank."""
    answers = completion_of_reply(reply).answers
    text = answers[0].text if answers else None
    return text if text and text.strip() else ""


def _with_more_room(request: Request, reply: Reply) -> Request | None:
    """The same request with twice the room plus what thinking took; or, if it sets no limit, with less thinking."""
    payload = dict(request.payload)
    thought = reply.usage.reasoning if reply.usage else 0
    name = next((name for name in ("max_tokens", "max_completion_tokens") if payload.get(name)), None)
    if name is not None:
        room = _count(payload[name])
        if room is None or room >= MOST_TOKENS:
            return None
        # Thinking counts against the limit, and will come again: without it the answer would be cut at the same place.
        payload[name] = min(MOST_TOKENS, 2 * room + thought)
        return replace(request, payload=payload)
    if thought and payload.get("reasoning_effort") not in ("none", "minimal", "low"):
        google = dig(payload, "extra_body", "google")
        if dig(google, "thinking_config") is not None or dig(google, "thinkingConfig") is not None:
            return None
        return replace(request, payload={**payload, "reasoning_effort": "low"})
    return None


def _count(value: object) -> int | None:
    """A number of tokens; ready-made requests may hold it as text."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 10:
        value = int(value)
    number = as_integer(value)
    return number if number is not None and number > 0 else None
