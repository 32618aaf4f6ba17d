"""Asks of several calls: media are read in, tools are run, answers that do not fit are asked for again.

Like every policy, each of these takes an ask and returns one. They stand at the two ends of the composition: reading
media in is innermost, so that bytes are held for no more rows than are in flight; tools and repairs are outermost, so
that every call of theirs is cached, budgeted, retried and limited like any other.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import orjson
from anyio import to_thread

from pipeline.attachments import INLINE_LIMIT, Attachment, load
from pipeline.data import Ask, Failure, Outcome, Reply, Request
from pipeline.faults import Cut, Fault, Unparsable
from pipeline.tools import Tool, ToolError, result_text

MOST_TOKENS = 65_536
"""Room beyond which a cut answer is not asked for again."""


def attaching(ask: Ask, root: Path | None) -> Ask:
    """Ask, with the attachments of the messages read in and encoded, in a thread."""

    async def attaching_ask(request: Request) -> Reply:
        if not any(isinstance(message.get("content"), list) for message in request.payload["messages"]):
            return await ask(request)
        messages = await to_thread.run_sync(_attached, request.payload["messages"], root)
        return await ask(replace(request, payload={**request.payload, "messages": messages}))

    return attaching_ask


def repairing(ask: Ask, outcome: Callable[[int, Reply], Outcome], repairs: int) -> Ask:
    """Ask, again when the answer was cut (once, with more room) or does not fit (`repairs` times, with the complaint).

    A cut answer is never shown to the model: it would go on from broken text. The reply carries the usage of every
    call. With `repairs` 0 nothing is asked again.
    """

    async def repairing_ask(request: Request) -> Reply:
        reply = await ask(request)
        widened, left = False, repairs
        while left or (repairs and not widened):
            judged = outcome(request.ordinal, reply)
            fault = judged.fault if isinstance(judged, Failure) else None
            again = _again(request, reply, fault, widened=widened, left=left)
            if again is None:
                return reply
            widened, left = (True, left) if isinstance(fault, Cut) else (widened, left - 1)
            request = again
            reply = _together(reply, await ask(request))
        return reply

    return repairing_ask


def with_tools(ask: Ask, tools: Sequence[Tool], *, max_turns: int, timeout_s: float, transcript: bool) -> Ask:
    """Ask, with the calls of tools carried out and their results handed back until the model answers.

    Calls of one turn run side by side, each with its own deadline. The model's message is handed back as it came,
    thought signatures and all; only ids that are missing or repeated are mended. What goes wrong with a call is
    told to the model. A call of a tool without a function is recorded, as the answer. Raises `Cut` when the model
    still calls tools after `max_turns` turns.
    """
    known = {tool.name: tool for tool in tools}

    async def asking_with_tools(request: Request) -> Reply:
        messages = list(request.payload["messages"])
        payload = dict(request.payload)
        reply: Reply | None = None
        for turn in range(max_turns):
            answered = await ask(replace(request, payload={**payload, "messages": messages}))
            reply = _together(reply, answered)
            message = _message_of(reply)
            if not message.get("tool_calls") or _is_recorded(message["tool_calls"], known):
                return _with_transcript(reply, [*messages, message], keep=transcript)
            message = {**message, "tool_calls": _mended(message["tool_calls"], turn)}
            messages = [*messages, message, *await _carried_out(message["tool_calls"], known, timeout_s)]
            if payload.get("tool_choice") not in (None, "none", "auto", "validated"):
                payload["tool_choice"] = "auto"  # it was required once; required forever would never end
        raise Cut(f"the model still calls tools after {max_turns} turns (max_turns)")

    return asking_with_tools


def _attached(messages: Sequence[Mapping[str, Any]], root: Path | None) -> list[Mapping[str, Any]]:
    """The messages with parts in the place of attachments; the limit is on all of them together."""
    budget = INLINE_LIMIT
    whole: list[Mapping[str, Any]] = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            parts = []
            for part in content:
                loaded = load(part, root, budget) if isinstance(part, Attachment) else part
                budget -= _size(loaded) if isinstance(part, Attachment) else 0
                parts.append(loaded)
            message = {**message, "content": parts}  # noqa: PLW2901 - the same message, loaded
        whole.append(message)
    return whole


def _size(part: Mapping[str, Any]) -> int:
    return len(part["input_audio"]["data"] if part["type"] == "input_audio" else part["image_url"]["url"])


def _again(request: Request, reply: Reply, fault: Fault | None, *, widened: bool, left: int) -> Request | None:
    match fault:
        case Cut() if not widened:
            return _with_more_room(request, reply)
        case Unparsable() if left:
            text = str(_message_of(reply).get("content") or "")
            complaint = f"That does not fit: {fault.message}. Answer again, with nothing but the corrected JSON."
            said = [{"role": "assistant", "content": text}] if text else []
            messages = [*request.payload["messages"], *said, {"role": "user", "content": complaint}]
            return replace(request, payload={**request.payload, "messages": messages})
    return None


def _with_more_room(request: Request, reply: Reply) -> Request | None:
    """The same request with twice the room and what thinking took; or, without a limit of ours, with less thinking."""
    payload = dict(request.payload)
    name = next((name for name in ("max_tokens", "max_completion_tokens") if payload.get(name)), None)
    if name is not None:
        if payload[name] >= MOST_TOKENS:
            return None
        payload[name] = min(MOST_TOKENS, 2 * payload[name] + reply.usage.reasoning)
        return replace(request, payload=payload)
    if reply.usage.reasoning and payload.get("reasoning_effort") not in {"none", "minimal", "low"}:
        own = str(payload.get("extra_body", ""))
        if "thinking_config" in own or "thinkingConfig" in own:
            return None
        return replace(request, payload={**payload, "reasoning_effort": "low"})
    return None


def _together(before: Reply | None, reply: Reply) -> Reply:
    """The later reply, with what both cost."""
    if before is None:
        return reply
    priced = before.cost_usd is not None and reply.cost_usd is not None
    return replace(
        reply,
        usage=before.usage + reply.usage,
        cost_usd=(before.cost_usd or 0.0) + (reply.cost_usd or 0.0) if priced else None,
        attempts=before.attempts + reply.attempts,
        latency_s=before.latency_s + reply.latency_s,
        first_token_s=before.first_token_s,
        from_cache=before.from_cache and reply.from_cache,
        saved=before.saved + reply.saved,
        saved_usd=before.saved_usd + reply.saved_usd,
    )


def _message_of(reply: Reply) -> dict[str, Any]:
    """The first answer's message, unchanged, with all that the endpoint put into it."""
    choices = orjson.loads(reply.body).get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    return message if isinstance(message, dict) else {}


def _is_recorded(calls: Sequence[Any], known: Mapping[str, Tool]) -> bool:
    """Whether a tool is called that there is no function of."""
    names = [(call.get("function") or {}).get("name") or "" for call in calls if isinstance(call, dict)]
    return any(name in known and known[name].function is None for name in names)


def _mended(calls: Sequence[Any], turn: int) -> list[dict[str, Any]]:
    """The calls, each with an id of its own."""
    whole = [call for call in calls if isinstance(call, dict)]
    taken = {call.get("id") for call in whole if isinstance(call.get("id"), str)}
    fresh = (name for number in count() if (name := f"call-{turn}-{number}") not in taken)
    seen: set[str] = set()
    mended = []
    for call in whole:
        given = call.get("id")
        name = given if isinstance(given, str) and given and given not in seen else next(fresh)
        seen.add(name)
        mended.append({**call, "id": name})
    return mended


async def _carried_out(
    calls: Sequence[Mapping[str, Any]], known: Mapping[str, Tool], timeout_s: float
) -> list[dict[str, Any]]:
    """A tool message for each call, in the order of the calls."""
    results = [""] * len(calls)
    faults: list[Fault] = []

    async def carry_out(number: int, call: Mapping[str, Any]) -> None:
        results[number] = _told(f"it took longer than {timeout_s:g} s")
        with anyio.move_on_after(timeout_s):
            try:
                results[number] = await _called(call, known)
            except ToolError as error:
                results[number] = _told(str(error))
            except Fault as fault:
                faults.append(fault)  # raised below, since a task group would wrap it

    async with anyio.create_task_group() as tasks:
        for number, call in enumerate(calls):
            tasks.start_soon(carry_out, number, call)
    if faults:
        raise faults[0]
    return [
        {"role": "tool", "tool_call_id": call["id"], "content": result}
        for call, result in zip(calls, results, strict=True)
    ]


async def _called(call: Mapping[str, Any], known: Mapping[str, Tool]) -> str:
    function = call.get("function") or {}
    tool = known.get(function.get("name") or "")
    if tool is None or tool.function is None:
        raise ToolError(f"there is no tool {function.get('name')!r}; there are: {', '.join(known)}")
    arguments = tool.validated(function.get("arguments") or "{}")
    run = tool.function
    try:
        if inspect.iscoroutinefunction(run):
            return result_text(await run(**arguments))
        return result_text(await to_thread.run_sync(lambda: run(**arguments), abandon_on_cancel=True))
    except Fault:
        raise
    except Exception as error:
        # The tool is the user's: whatever it raises is for the model to know, and no reason to stop the run.
        raise ToolError(f"{type(error).__name__}: {error}") from error


def _told(problem: str) -> str:
    return json.dumps({"error": problem}, ensure_ascii=False)


def _with_transcript(reply: Reply, messages: Sequence[Any], *, keep: bool) -> Reply:
    if not keep:
        return reply
    return replace(reply, transcript=json.dumps(messages, ensure_ascii=False, default=_placeholder))


def _placeholder(value: object) -> str:
    """In the transcript an attachment is named, not repeated."""
    if isinstance(value, Attachment):
        return f"{value.kind} of column {value.column}"
    raise TypeError(type(value).__name__)
