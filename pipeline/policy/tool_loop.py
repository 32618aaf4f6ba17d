"""Tools that the model calls are run, and their results handed back, until it answers.

The loop stands outside of cache, budget, retries and limits, so that each of its calls is governed like any other.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import anyio
import orjson
from anyio import to_thread

from pipeline.attachments import Attachment
from pipeline.data import Ask, Reply, Request, together
from pipeline.faults import Cut, Fault
from pipeline.tools import Tool, ToolError, result_text


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
            reply = together(reply, answered)
            message = message_of(reply)
            if not message.get("tool_calls") or _is_recorded(message["tool_calls"], known):
                return _with_transcript(reply, [*messages, message], keep=transcript)
            message = {**message, "tool_calls": _mended(message["tool_calls"], turn)}
            run = partial(_carried_out, message["tool_calls"], known, timeout_s)
            results = await run() if request.calls is None else await request.calls.carried_out(run)
            messages = [*messages, message, *results]
            if payload.get("tool_choice") not in (None, "none", "auto", "validated"):
                payload["tool_choice"] = "auto"  # it was required once; required forever would never end
        raise Cut(f"the model still calls tools after {max_turns} turns (max_turns)")

    return asking_with_tools


def message_of(reply: Reply) -> dict[str, Any]:
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
