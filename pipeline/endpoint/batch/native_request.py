"""Our request, which is of OpenAI's form, as Gemini's own GenerateContentRequest: the same question.

What the compatible endpoint ignores is left out; what it understands and has no native form is refused by name.
https://cloud.google.com/vertex-ai/generative-ai/docs/migrate/openai/overview lists what it understands, and
https://cloud.google.com/vertex-ai/docs/reference/rest/v1/GenerationConfig the native names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.endpoint.batch.request_contents import contents_of
from pipeline.endpoint.untrusted_json import dig
from pipeline.faults import InvalidRow

_PLAIN = {
    "temperature": "temperature",
    "top_p": "topP",
    "max_tokens": "maxOutputTokens",
    "max_completion_tokens": "maxOutputTokens",
    "seed": "seed",
    "frequency_penalty": "frequencyPenalty",
    "presence_penalty": "presencePenalty",
    "n": "candidateCount",
}
_TRANSLATED = frozenset(
    {
        "messages",
        "stop",
        "response_format",
        "reasoning_effort",
        "tools",
        "tool_choice",
        "functions",
        "function_call",
        "modalities",
        "web_search_options",
        "extra_body",
    }
)
_IGNORED = frozenset(
    {
        "model",
        "stream",
        "stream_options",
        "logprobs",
        "top_logprobs",
        "parallel_tool_calls",
        "service_tier",
        "store",
        "metadata",
        "user",
        "logit_bias",
        "prediction",
    }
)
"""`model` belongs to the job, streams have no place in one; the compatible endpoint ignores the others."""

_BUDGETS = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24576}
"""Thinking tokens by effort before Gemini 3; Vertex AI documents low, medium and high. Minimal is inferred."""

_LEVELS = {"minimal": "LOW", "low": "LOW", "medium": "MEDIUM", "high": "HIGH"}
"""Since Gemini 3, whose thinking cannot be turned off; which level an effort stands for is inferred."""

_CHOICES = {"none": "NONE", "auto": "AUTO", "required": "ANY", "validated": "VALIDATED"}
_MIME_TYPES = {"json_object": "application/json", "json_schema": "application/json", "text": "text/plain"}
_GOOGLE = {
    "safety_settings": "safetySettings",
    "cached_content": "cachedContent",
}
_GOOGLE_TRANSLATED = frozenset({"thinking_config", "media_resolution", "tools"})
_GOOGLE_IGNORED = frozenset({"thought_tag_marker", "stream_function_call_arguments"})
"""How the compatible endpoint writes answers, which natively have parts of their own for it."""

_GENERATION = re.compile(r"gemini-(\d+)")
_NEWEST = 3


def native_request(payload: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, Any]:
    """The native request, with these labels. It may hold `orjson.Fragment`s.

    Raises `InvalidRow` for what cannot be asked natively, with its name.
    """
    given = {name: value for name, value in payload.items() if value is not None}
    for name in given:
        if name not in _PLAIN and name not in _TRANSLATED and name not in _IGNORED:
            raise _refused(f"`{name}`", "is not known to be understood there")
    google = _google(given.get("extra_body"))
    generation = _generation_of(str(given.get("model", "")))
    system, contents, resolutions = contents_of(_objects(given.get("messages"), "messages"))
    config = _config(given, google, generation)
    if resolutions:
        config["mediaResolution"] = _resolution(resolutions)
    tools = _tools(given, google)
    request: dict[str, Any] = {"contents": contents}
    optional = {
        "systemInstruction": {"parts": system} if system else None,
        "tools": tools or None,
        "toolConfig": _tool_config(given),
        "generationConfig": config or None,
        **{native: google.get(name) for name, native in _GOOGLE.items()},
        "labels": dict(labels) or None,
    }
    return request | {name: value for name, value in optional.items() if value is not None}


def _refused(what: str, why: str) -> InvalidRow:
    return InvalidRow(f"{what} cannot go into a batch: it {why}; leave it out, or ask without --batch")


def _generation_of(model: str) -> int:
    found = _GENERATION.search(model)
    return int(found[1]) if found else _NEWEST


def _google(extra_body: object) -> dict[str, Any]:
    """Google's own options, in snake case."""
    if extra_body is None:
        return {}
    if not isinstance(extra_body, dict) or not isinstance(extra_body.get("google", {}), dict):
        raise InvalidRow("`extra_body` and its `google` must be objects")
    for name in extra_body:
        if name != "google":
            raise _refused(f"`extra_body.{name}`", "is not known to be understood there")
    found = {_snake(name): value for name, value in extra_body.get("google", {}).items() if value is not None}
    for name in found:
        if name not in _GOOGLE and name not in _GOOGLE_TRANSLATED and name not in _GOOGLE_IGNORED:
            raise _refused(f"`extra_body.google.{name}`", "is not known to be understood there")
    return found


def _config(given: Mapping[str, Any], google: Mapping[str, Any], generation: int) -> dict[str, Any]:
    config = {native: given[name] for name, native in _PLAIN.items() if name in given}
    if stop := given.get("stop"):
        config["stopSequences"] = _texts([stop] if isinstance(stop, str) else stop, "stop")
    config |= _format(given.get("response_format"))
    if modalities := given.get("modalities"):
        config["responseModalities"] = [each.upper() for each in _texts(modalities, "modalities")]
    if "media_resolution" in google:
        config["mediaResolution"] = google["media_resolution"]
    if thinking := _thinking(given.get("reasoning_effort"), google.get("thinking_config"), generation):
        config["thinkingConfig"] = thinking
    return config


def _format(response_format: object) -> dict[str, Any]:
    if response_format is None:
        return {}
    kind = dig(response_format, "type")
    if not isinstance(kind, str):
        raise InvalidRow("`response_format` must be an object with a type")
    mime_type = _MIME_TYPES.get(kind, kind)
    if "/" not in mime_type:
        raise _refused(f"`response_format` of the type {kind!r}", "is neither json_schema nor json_object nor text")
    schema = dig(response_format, "json_schema", "schema") if kind == "json_schema" else None
    return {"responseMimeType": mime_type, **({"responseJsonSchema": schema} if schema is not None else {})}


def _thinking(effort: object, config: object, generation: int) -> dict[str, Any]:
    if config is not None:
        if effort is not None:
            raise InvalidRow("`reasoning_effort` and google's `thinking_config` exclude each other: keep one of them")
        if not isinstance(config, dict):
            raise InvalidRow("`thinking_config` must be an object")
        native = {_camel(name): value for name, value in config.items() if value is not None}
        if isinstance(level := native.get("thinkingLevel"), str):
            native["thinkingLevel"] = level.upper()  # the compatible endpoint takes both cases
        return native
    if effort is None:
        return {}
    if generation < _NEWEST and effort in _BUDGETS:
        return {"thinkingBudget": _BUDGETS[str(effort)]}
    if generation >= _NEWEST and effort in _LEVELS:
        return {"thinkingLevel": _LEVELS[str(effort)]}
    raise _refused(f"`reasoning_effort` {effort!r}", "stands for no thinking that this model is known to have")


def _resolution(asked: set[str]) -> str:
    if len(asked) > 1:
        raise _refused("`detail` of several kinds", "is one for the whole request")
    return next(iter(asked))


def _tools(given: Mapping[str, Any], google: Mapping[str, Any]) -> list[dict[str, Any]]:
    tools = [*_objects(given.get("tools", []), "tools")]
    functions = [_declaration(tool.get("function"), tool.get("type")) for tool in tools]
    functions += [_declaration(each, "function") for each in _objects(given.get("functions", []), "functions")]
    native: list[dict[str, Any]] = [{"functionDeclarations": functions}] if functions else []
    if "web_search_options" in given:
        native.append({"googleSearch": {}})
    return native + _objects(google.get("tools", []), "extra_body.google.tools")


def _declaration(function: object, kind: object) -> dict[str, Any]:
    if kind != "function" or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise _refused(f"a tool of the type {kind!r}", "is no function with a name")
    known = ("name", "description", "parameters")
    return {name: function[name] for name in known if function.get(name) is not None}


def _tool_config(given: Mapping[str, Any]) -> dict[str, Any] | None:
    choice = given.get("tool_choice", given.get("function_call"))
    if choice is None:
        return None
    mode = _CHOICES.get(choice) if isinstance(choice, str) else None
    if mode is not None:
        return {"functionCallingConfig": {"mode": mode}}
    name = dig(choice, "function", "name") or dig(choice, "name")
    if not isinstance(name, str):
        raise _refused(f"`tool_choice` {choice!r}", "is neither none, auto, required, validated nor a function")
    return {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": [name]}}


def _objects(value: object, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(each, dict) for each in value):
        raise InvalidRow(f"`{name}` must be a list of objects")
    return [dict(each) for each in value]


def _texts(value: object, name: str) -> list[str]:
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise InvalidRow(f"`{name}` must be a list of texts")
    return list(value)


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])([A-Z])", lambda found: f"_{found[1].lower()}", name)


def _camel(name: str) -> str:
    return re.sub(r"_([a-z])", lambda found: found[1].upper(), name)
