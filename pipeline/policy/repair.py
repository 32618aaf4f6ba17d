"""Answers that were cut, or do not fit, are asked for again: every call of that is governed like any other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pipeline.data import Ask, Failure, Outcome, Reply, Request, together
from pipeline.faults import Cut, Fault, Unparsable
from pipeline.policy.tool_loop import message_of

MOST_TOKENS = 65_536
"""Room beyond which a cut answer is not asked for again."""


def repairing(ask: Ask, outcome: Callable[[int, Reply], Outcome], repairs: int) -> Ask:
    """Ask, again when the answer was cut (once, with more room) or does not fit (`repairs` times, with the complaint).

    A cut answer is never shown to the model: it would go on from broken text. The reply carries the usage of every
    call. With `repairs` 0 nothing is asked again.
    """

    async def repairing_ask(request: Request) -> Reply:
        reply = await ask(request)
        widened, left = False, repairs
        while left or (repairs and not widened):
            try:
                judged = outcome(request.ordinal, reply)
            except Exception:  # a bug of the job's own, which ends the run: what was paid is kept before
                if request.calls is not None:
                    await request.calls.keep()
                raise
            fault = judged.fault if isinstance(judged, Failure) else None
            again = _again(request, reply, fault, widened=widened, left=left)
            if again is None:
                return reply
            widened, left = (True, left) if isinstance(fault, Cut) else (widened, left - 1)
            request = again
            reply = together(reply, await ask(request))
        return reply

    return repairing_ask


def _again(request: Request, reply: Reply, fault: Fault | None, *, widened: bool, left: int) -> Request | None:
    match fault:
        case Cut() if not widened:
            return _with_more_room(request, reply)
        case Unparsable() if left:
            text = str(message_of(reply).get("content") or "")
            complaint = f"That does not fit: {fault.message}. Answer again, with nothing but the corrected JSON."
            said = [{"role": "assistant", "content": text}] if text else []
            messages = [*request.payload["messages"], *said, {"role": "user", "content": complaint}]
            return replace(request, payload={**request.payload, "messages": messages})
    return None


def _with_more_room(request: Request, reply: Reply) -> Request | None:
    """The same request with twice the room and what thinking took; or, without a limit of ours, with less thinking."""
    payload = dict(request.payload)
    thought = reply.usage.reasoning if reply.usage else 0
    name = next((name for name in ("max_tokens", "max_completion_tokens") if payload.get(name)), None)
    if name is not None:
        if payload[name] >= MOST_TOKENS:
            return None
        payload[name] = min(MOST_TOKENS, 2 * payload[name] + thought)
        return replace(request, payload=payload)
    if thought and payload.get("reasoning_effort") not in {"none", "minimal", "low"}:
        own = str(payload.get("extra_body", ""))
        if "thinking_config" in own or "thinkingConfig" in own:
            return None
        return replace(request, payload={**payload, "reasoning_effort": "low"})
    return None
