"""The functions of a request, and the calls and results of earlier turns: checked as Gemini 3 checks them."""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import orjson

from pipeline.emulator.protocol.content import Spoken
from pipeline.emulator.protocol.dialect import check_parameters
from pipeline.emulator.protocol.wire import JsonMapping, Problem, invalid

ANY_SIGNATURE = "skip_thought_signature_validator"
"""Documented by Google for calls made by another model: https://ai.google.dev/gemini-api/docs/thought-signatures."""

MOST_FUNCTIONS = 512

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.:-]{0,127}")
_UNEQUAL = (
    "Please ensure that the number of function response parts is equal to the number of function call parts of the "
    "function call turn."
)


@dataclass(frozen=True, slots=True)
class FunctionDeclaration:
    """A function that may be called; `parameters` is the JSON of its schema."""

    name: str
    description: str
    parameters: bytes


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """A call of a function."""

    name: str
    arguments: JsonMapping

    @property
    def key(self) -> tuple[str, bytes]:
        """Equal for calls of the same function with the same arguments."""
        return self.name, orjson.dumps(self.arguments, option=orjson.OPT_SORT_KEYS)

    @property
    def written(self) -> str:
        """The arguments as they are sent."""
        return orjson.dumps(self.arguments).decode()


@dataclass(frozen=True, slots=True)
class CompletedCall:
    """A call that was made, and the text of its result."""

    call: FunctionCall
    result: str


CompletedCalls = tuple[CompletedCall, ...]
"""The calls of one message of the model."""


def read_functions(payload: JsonMapping) -> tuple[FunctionDeclaration, ...]:
    """The functions in `tools`; tools of other types are ignored. Raises a 400."""
    tools = payload.get("tools")
    if tools is None:
        return ()
    if not isinstance(tools, list):
        raise invalid("tools must be a list.")
    functions = [_read_function(tool, index) for index, tool in enumerate(tools) if _is_function(tool, index)]
    if len(functions) > MOST_FUNCTIONS:
        raise invalid(f"At most {MOST_FUNCTIONS} function declarations can be given.")
    for name, count in Counter(function.name for function in functions).items():
        if count > 1:
            raise invalid(f"Duplicate function declaration found: {name}")
    return tuple(functions)


def read_choice(
    payload: JsonMapping, functions: tuple[FunctionDeclaration, ...]
) -> tuple[tuple[FunctionDeclaration, ...], bool]:
    """The functions that `tool_choice` allows, and whether one of them must be called. Raises a 400."""
    choice = payload.get("tool_choice")
    if choice is None or choice in ("auto", "validated"):
        return functions, False
    if choice == "none":
        return (), False
    if not functions:
        raise invalid("Function calling config is set without function_declarations.")
    if choice == "required":
        return functions, True
    inner = choice.get("function") if isinstance(choice, dict) else None
    name = inner.get("name") if isinstance(inner, dict) else None
    named = tuple(function for function in functions if function.name == name)
    if not named:
        raise invalid(f"tool_choice must be none, auto, required, validated or a function of tools, not {choice!r}.")
    return named, True


def read_turns(messages: Sequence[JsonMapping], read: Sequence[Spoken], *, signed: bool) -> tuple[CompletedCalls, ...]:
    """The turns since the last user message. Raises a 400 for calls without results, and results without calls.

    With `signed` the first call of each of these turns must carry the signature it was sent with; earlier turns are
    history and need none.
    """
    last_user = max((index for index, spoken in enumerate(read) if spoken.role == "user"), default=-1)
    turns: list[CompletedCalls] = []
    index = 0
    while index < len(read):
        role, calls = read[index].role, messages[index].get("tool_calls")
        if role == "tool":
            raise invalid(_UNEQUAL)
        index += 1
        if role != "assistant" or not calls:
            continue
        answered = index
        while answered < len(read) and read[answered].role == "tool":
            answered += 1
        turn = _matched(calls, messages[index:answered], read[index:answered])
        if index > last_user:
            turns.append(turn)
            if signed:
                _check_signature(calls[0], turn[0].call, index)
        index = answered
    return tuple(turns)


def signature_of(call: FunctionCall) -> str:
    """The thought signature of a call: opaque to clients, the same for the same call."""
    name, arguments = call.key
    return base64.b64encode(blake2b(name.encode() + b"\0" + arguments).digest()).decode()


def _is_function(tool: Any, index: int) -> bool:
    if not isinstance(tool, dict) or not isinstance(tool.get("type"), str):
        raise invalid(f"tools[{index}] is an object without a type.")
    return str(tool["type"]) == "function"


def _read_function(tool: JsonMapping, index: int) -> FunctionDeclaration:
    inner = tool.get("function")
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str) or not _NAME.fullmatch(inner["name"]):
        raise invalid(f"Invalid function name in tools[{index}]. Must start with a letter or an underscore.")
    parameters, description = inner.get("parameters"), inner.get("description")
    if not isinstance(parameters, dict | None) or not isinstance(description, str | None):
        raise invalid(f"tools[{index}].function: parameters is an object, description a text.")
    if parameters is not None:
        check_parameters(inner["name"], index, parameters)
    return FunctionDeclaration(inner["name"], description or "", orjson.dumps(parameters or {"type": "object"}))


def _matched(calls: Any, messages: Sequence[JsonMapping], read: Sequence[Spoken]) -> CompletedCalls:
    """The calls of a message with their results: each id has exactly one."""
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise invalid("tool_calls must be a list of calls.")
    names = [str(call.get("id") or "") for call in calls]
    pairs = zip(messages, read, strict=True)
    texts = {str(message.get("tool_call_id") or ""): spoken.text for message, spoken in pairs}
    if "" in texts or not len(texts) == len(messages) == len(names) or set(texts) != set(names):
        raise invalid(_UNEQUAL)
    return tuple(CompletedCall(_read_call(call), texts[name]) for call, name in zip(calls, names, strict=True))


def _read_call(call: JsonMapping) -> FunctionCall:
    function = call.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(name, str) or not name:
        raise invalid("A tool call needs the name of its function.")
    try:
        arguments = orjson.loads(function.get("arguments") or "{}")
    except (orjson.JSONDecodeError, TypeError):
        arguments = None
    if not isinstance(arguments, dict):
        raise invalid(f"The arguments of the tool call {name} are not a JSON object.")
    return FunctionCall(name, arguments)


def _check_signature(message: JsonMapping, call: FunctionCall, position: int) -> None:
    extra = message.get("extra_content")
    google = extra.get("google") if isinstance(extra, dict) else None
    signature = google.get("thought_signature") if isinstance(google, dict) else None
    if signature not in (ANY_SIGNATURE, signature_of(call)):
        raise _unsigned(call.name, position, missing=not signature)


def _unsigned(name: str, position: int, *, missing: bool) -> Problem:
    problem = "is missing a thought_signature" if missing else "has a corrupted thought_signature"
    return invalid(
        f"Function call {problem} in functionCall parts. This is required for tools to work correctly, and missing "
        "thought_signature may lead to degraded model performance. Additional data, function call "
        f"`default_api:{name}` , position {position}. Please refer to "
        "https://ai.google.dev/gemini-api/docs/thought-signatures for more details."
    )
