"""Tools that a model may call: Python functions or pydantic models, with their descriptions and checked arguments."""

from __future__ import annotations

import inspect
import json
import re
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticUserError

from pipeline.faults import UsageError
from pipeline.schema.conversions import ENTRIES, read_model
from pipeline.schema.tool_parameters import gemini_parameters

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.:-]{0,63}")
"""Function names that Gemini accepts: https://cloud.google.com/vertex-ai/docs/reference/rest/v1/Tool."""


class ToolError(Exception):
    """An error in a tool call, with a message for the model, which may then call again."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool: its description for the model, the pydantic model of its arguments, and the function to call, if any."""

    name: str
    description: str
    arguments: type[BaseModel]
    function: Callable[..., Any] | None

    @property
    def definition(self) -> dict[str, Any]:
        """The entry of the request's `tools`."""
        schema = parameters(self.arguments)
        declared = {} if schema is None else {"parameters": schema}
        return {"type": "function", "function": {"name": self.name, "description": self.description, **declared}}

    def validated(self, arguments: str) -> dict[str, Any]:
        """The arguments of a call, by parameter name. Raises `ToolError` when they do not fit."""
        try:
            valid, _ = read_model(self.arguments, arguments or "{}", ENTRIES)
        except ValidationError as error:
            complaints = [
                f"{'.'.join(map(str, item['loc'])) or 'arguments'}: {item['msg']}"
                for item in error.errors(include_url=False)
            ]
            raise ToolError(f"wrong arguments for {self.name}: {'; '.join(complaints[:5])}") from None
        return {name: getattr(valid, name) for name in type(valid).model_fields}


def tool_of(thing: Callable[..., Any] | type[BaseModel]) -> Tool:
    """A tool from a function (described by signature and docstring) or a pydantic model (calls are only recorded).

    Raises `UsageError` when a parameter has no type, and for a name that Gemini rejects.
    """
    if not callable(thing):
        raise UsageError(f"a tool is a Python function or a pydantic model, not {thing!r}")
    name = getattr(thing, "__name__", type(thing).__name__)
    if not NAME.fullmatch(name):
        raise UsageError(f"a tool cannot have the name {name!r}: letters, digits, `_`, `-`, `.` and `:`, 64 at most")
    if isinstance(thing, type) and issubclass(thing, BaseModel):
        return Tool(thing.__name__, inspect.cleandoc(thing.__doc__ or ""), thing, None)
    return Tool(thing.__name__, _description(thing), _arguments_of(thing), thing)


def parameters(model: type[BaseModel]) -> dict[str, Any] | None:
    """A model's fields as parameters, in the schema dialect that Gemini accepts; None when it has no fields.

    Raises `UsageError` for a recursive model, and for a type without a schema.
    """
    try:
        schema = model.model_json_schema()
    except PydanticUserError as error:
        raise UsageError(f"the tool {model.__name__} has a parameter that JSON cannot carry: {error}") from None
    return gemini_parameters(schema)


def result_text(result: object) -> str:
    """A tool's return value as the content of a tool message: text unchanged, everything else as JSON."""
    if isinstance(result, str):
        return result
    if isinstance(result, BaseModel):
        return result.model_dump_json()
    return json.dumps(result, ensure_ascii=False, default=str)


def _description(function: Callable[..., Any]) -> str:
    import docstring_parser

    parsed = docstring_parser.parse(function.__doc__ or "")
    returns = f"Returns: {parsed.returns.description}" if parsed.returns and parsed.returns.description else None
    return "\n".join(filter(None, [parsed.short_description, parsed.long_description, returns]))


def _arguments_of(function: Callable[..., Any]) -> type[BaseModel]:
    """A model with a field for each parameter."""
    import docstring_parser

    hints = typing.get_type_hints(function, include_extras=True)
    documented = {item.arg_name: item.description for item in docstring_parser.parse(function.__doc__ or "").params}
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in hints or parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
            raise UsageError(f"the tool {function.__name__} has a parameter without a type: {name}")
        default = ... if parameter.default is parameter.empty else parameter.default
        # An explicit None would hide the description from an annotation.
        about: dict[str, Any] = {"description": documented[name]} if documented.get(name) else {}
        fields[name] = (hints[name], Field(default, **about))
    try:
        return create_model(function.__name__, __config__=ConfigDict(extra="forbid"), **fields)
    except PydanticUserError as error:
        raise UsageError(f"the tool {function.__name__} has a parameter that JSON cannot carry: {error}") from None


def tool_choice_of(choice: str, tools: Sequence[Tool]) -> Any:
    """A choice of tools as the request names it. Raises `UsageError` for a name that no tool has."""
    if choice in {"none", "auto", "required", "validated"}:
        return choice
    names = [tool.name for tool in tools]
    if choice in names:
        return {"type": "function", "function": {"name": choice}}
    raise UsageError(f"`tool_choice` is none, auto, required, validated or a tool's name, not {choice!r}")
