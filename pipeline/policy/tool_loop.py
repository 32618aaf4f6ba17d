"""Runs the tools that the model calls and returns their results to it, until it answers.

The loop wraps cache, budget, retries and limits, so that each of its calls is governed like any other.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any

import anyio
from anyio import to_thread

from pipeline.data import Ask, Reply, Request, together
from pipeline.endpoint.finish_reasons import fault_of
from pipeline.endpoint.messages import is_object
from pipeline.endpoint.wire import completion_of_reply, first_message
from pipeline.faults import Fault, Truncated
from pipeline.job.attachments import Attachment
from pipeline.job.tools import Tool, ToolError, result_text


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolLimits:
    """Limits of tool calls: turns per row, calls per turn, seconds per call."""

    turns: int
    calls: int
    timeout_s: float


def with_tools(ask: Ask, tools: Sequence[Tool], limits: ToolLimits, *, transcript: bool) -> Ask:
    """Ask, running the tools that the model calls and returning their results until it answers.

    Calls of one turn run concurrently, each with its own deadline. The model's message is returned to it unchanged,
    thought signatures included; only missing or repeated ids, and arguments that are not a JSON object, are replaced.
    Errors of a call are reported to the model. A call of a tool without a function is recorded as the answer. If a
    turn was truncated or blocked, none of its tools run: its reply is returned, with the request that it answers
    (`asked`). Raises `Truncated` if the model still calls tools after the last turn, or calls too many in one.
    """
    known = {tool.name: tool for tool in tools}

    async def asking_with_tools(request: Request) -> Reply:
        messages = list(request.payload["messages"])
        payload = dict(request.payload)
        reply: Reply | None = None
        for turn in range(limits.turns):
            asked = replace(request, payload={**payload, "messages": messages})
            reply = replace(together(reply, await ask(asked)), asked=asked if turn else None)
            message = first_message(reply.body)
            calls = message.get("tool_calls")
            if not calls or not _is_whole(reply) or _is_recorded(calls, known):
                return _with_transcript(reply, [*messages, message], keep=transcript)
            if len(calls) > limits.calls:
                raise _cut(f"the model calls {len(calls)} tools in one turn (max_calls_per_turn {limits.calls})", reply)
            calls = _with_ids(calls, turn)
            run = partial(_run_tools, calls, known, limits.timeout_s)
            results = await run() if request.calls is None else await request.calls.tool_results(run)
            # A new list: the log of the row's calls identifies each call by the messages that it had.
            messages = [*messages, _handed_back(message, calls), *results]
            if payload.get("tool_choice") not in (None, "none", "auto", "validated"):
                payload["tool_choice"] = "auto"  # it was required once; required forever would never end
        raise _cut(f"the model still calls tools after {limits.turns} turns (max_turns)", reply)

    return asking_with_tools


def _cut(message: str, reply: Reply | None) -> Truncated:
    fault = Truncated(message)
    fault.reply = reply
    return fault


def _is_whole(reply: Reply) -> bool:
    """Whether the first answer may be acted on: it was not truncated or blocked, and did not fail."""
    completion = completion_of_reply(reply)
    return bool(completion.answers) and fault_of(completion.answers[0], completion) is None


def _is_recorded(calls: Sequence[Mapping[str, Any]], known: Mapping[str, Tool]) -> bool:
    """Whether a tool is called that has no function."""
    names = [call["function"]["name"] for call in calls]
    return any(name in known and known[name].function is None for name in names)


def _with_ids(calls: Sequence[Mapping[str, Any]], turn: int) -> list[dict[str, Any]]:
    """The calls, each with a unique id."""
    taken = {call["id"] for call in calls}
    fresh = (name for number in count() if (name := f"call-{turn}-{number}") not in taken)
    seen: set[str] = set()
    named = []
    for call in calls:
        name = call["id"] if call["id"] and call["id"] not in seen else next(fresh)
        seen.add(name)
        named.append({**call, "id": name})
    return named


def _handed_back(message: Mapping[str, Any], calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The model's message as it is returned: endpoints refuse arguments that are not JSON; the result reports them."""
    whole = [
        call
        if is_object(call["function"]["arguments"])
        else {**call, "function": {**call["function"], "arguments": "{}"}}
        for call in calls
    ]
    role = message["role"] if isinstance(message.get("role"), str) else "assistant"
    return {**message, "role": role, "tool_calls": whole}


async def _run_tools(
    calls: Sequence[Mapping[str, Any]], known: Mapping[str, Tool], timeout_s: float
) -> list[dict[str, Any]]:
    """A tool message for each call, in the order of the calls."""
    results = [""] * len(calls)
    faults: list[Fault] = []

    async def carry_out(number: int, call: Mapping[str, Any]) -> None:
        # Set before the call and replaced by its result: when the deadline passes, the block is left without one.
        results[number] = _error_result(f"it took longer than {timeout_s:g} s")
        with anyio.move_on_after(timeout_s):
            try:
                results[number] = await _called(call, known)
            except ToolError as error:
                results[number] = _error_result(str(error))
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
    name, text = call["function"]["name"], call["function"]["arguments"]
    tool = known.get(name)
    if tool is None or tool.function is None:
        raise ToolError(f"there is no tool {name!r}; there are: {', '.join(known)}")
    arguments = tool.validated(text)
    if not is_object(text):  # validation accepts more than JSON does, and only JSON can be returned
        raise ToolError(f"wrong arguments for {name}: arguments: not JSON")
    run = tool.function
    try:
        if inspect.iscoroutinefunction(run):
            return result_text(await run(**arguments))
        return result_text(await to_thread.run_sync(lambda: run(**arguments), abandon_on_cancel=True))
    except Fault:
        raise
    except Exception as error:
        # The tool belongs to the user: whatever it raises is reported to the model, and must not stop the run.
        raise ToolError(f"{type(error).__name__}: {error}") from error


def _error_result(problem: str) -> str:
    return json.dumps({"error": problem}, ensure_ascii=False)


def _with_transcript(reply: Reply, messages: Sequence[Any], *, keep: bool) -> Reply:
    if not keep:
        return reply
    try:
        text = json.dumps(messages, ensure_ascii=False, default=_placeholder)
        text.encode()
    except (RecursionError, UnicodeEncodeError):
        text = json.dumps("this conversation cannot be written as JSON")
    return replace(reply, transcript=text)


def _placeholder(value: object) -> str:
    """In the transcript an attachment is named, not repeated."""
    if isinstance(value, Attachment):
        return f"{value.kind} of column {value.column}"
    raise TypeError(type(value).__name__)
