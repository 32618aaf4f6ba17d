"""Gemini's own request (`GenerateContentRequest`), which the lines of a batch prediction job hold.

It is checked, and read as the request of OpenAI's form that means the same. Names may be written in snake_case or in
camelCase. Names and types follow https://cloud.google.com/vertex-ai/generative-ai/docs/model-reference/inference and
https://cloud.google.com/vertex-ai/docs/reference/rest/v1/GenerationConfig; that a wrong name is refused with the
message of protobuf's JSON reader was reported for this and the chat endpoint (FuzzAnything/PromptFuzz#42). What a
documented field does not change here (`topK`, `audioTimestamp` ...) is accepted and ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import orjson

from pipeline.emulator.protocol.dialect import violations
from pipeline.emulator.protocol.native_contents import messages_of
from pipeline.emulator.protocol.native_fields import Fields, camel
from pipeline.emulator.protocol.request import ChatRequest, request_of
from pipeline.emulator.protocol.wire import JsonMapping, JsonObject, invalid

_ROOT = """
contents systemInstruction cachedContent tools toolConfig labels safetySettings generationConfig model modelArmorConfig
"""
_GENERATION = """
temperature topP topK candidateCount maxOutputTokens stopSequences responseLogprobs logprobs presencePenalty
frequencyPenalty seed responseMimeType responseSchema responseJsonSchema routingConfig audioTimestamp
responseModalities mediaResolution speechConfig thinkingConfig enableAffectiveDialog imageConfig modelConfig
"""
_THINKING = "includeThoughts thinkingBudget thinkingLevel"
_TOOL = """
functionDeclarations retrieval googleSearch googleSearchRetrieval googleMaps enterpriseWebSearch codeExecution
urlContext computerUse parallelAiSearch
"""
_DECLARATION = "name description parameters parametersJsonSchema response responseJsonSchema behavior"
_NUMBERS = ("temperature", "topP", "topK", "presencePenalty", "frequencyPenalty")
_WHOLE = ("candidateCount", "maxOutputTokens", "seed", "logprobs")
_MODES = {"MODE_UNSPECIFIED": "auto", "AUTO": "auto", "NONE": "none", "ANY": "required", "VALIDATED": "validated"}
_LABEL = re.compile(r"[a-z0-9_-]{0,63}")
_LABEL_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
MOST_LABELS = 64


def read_native(request: Any, model: str) -> ChatRequest:
    """What a native request asks of a model, `publisher/name`. Raises a 400."""
    root = Fields.of(request, "", _ROOT)
    config = Fields.of(root.get("generationConfig", {}), "generation_config", _GENERATION)
    check_labels(root.get("labels"))
    functions = list(_declarations(root.get("tools")))
    extensions = {
        **_thinking(config.get("thinkingConfig")),
        "cached_content": root.get("cachedContent"),
        "safety_settings": root.get("safetySettings"),
    }
    payload: JsonObject = {
        "model": model,
        "messages": messages_of(root),
        "extra_body": {"google": {name: value for name, value in extensions.items() if value is not None}},
        "tools": [{"type": "function", "function": function} for function, _ in functions] or None,
        **_generation(config),
        **_tool_choice(root.get("toolConfig")),
    }
    allowed = payload.pop("allowed", ())
    asked = request_of(payload)
    schemas = {function["name"]: schema for function, schema in functions if schema is not None}
    kept = tuple(
        replace(each, parameters=orjson.dumps(schemas.get(each.name, orjson.loads(each.parameters))))
        for each in asked.functions
        if not allowed or each.name in allowed
    )
    return replace(asked, functions=kept)


def check_labels(labels: Any) -> None:
    """Raises a 400 unless the labels are as documented: https://cloud.google.com/resource-manager/docs/labels-overview.

    International letters, which are allowed too, are refused; that rows of a job are checked for it is inferred.
    """
    if labels is None:
        return
    if not isinstance(labels, dict) or not all(isinstance(value, str) for value in labels.values()):
        raise violations([("labels", "Invalid value at 'labels', a map of texts is expected")])
    for name, value in labels.items():
        if not _LABEL_NAME.fullmatch(name) or not _LABEL.fullmatch(value):
            raise invalid(
                f"Invalid label {name[:100]!r}: {value[:100]!r}. Keys and values have at most 63 characters: "
                "lower-case letters, digits, underscores and dashes; a key begins with a letter."
            )
    if len(labels) > MOST_LABELS:
        raise invalid(f"At most {MOST_LABELS} labels can be given.")


def _generation(config: Fields) -> JsonObject:
    for name in _NUMBERS:
        config.require(name, int | float, "TYPE_FLOAT")
    for name in _WHOLE:
        config.require(name, int, "TYPE_INT32")
    modalities = config.get("responseModalities")
    return {
        "temperature": config.get("temperature"),
        "n": config.get("candidateCount"),
        "max_tokens": config.get("maxOutputTokens"),
        "stop": config.get("stopSequences"),
        "modalities": [str(each).lower() for each in modalities] if isinstance(modalities, list) else modalities,
        "response_format": _format(config),
    }


def _format(config: Fields) -> JsonObject | None:
    """The response format; that a schema needs JSON's type is documented, the messages are inferred."""
    kind, schema = config.get("responseMimeType"), config.get("responseSchema")
    json_schema = config.get("responseJsonSchema")
    if not isinstance(kind, str | None):
        raise violations([("generation_config.response_mime_type", "Invalid value (TYPE_STRING)")])
    if schema is not None and json_schema is not None:
        raise invalid("Only one of response_schema and response_json_schema may be set.")
    chosen = _camelled(schema) if json_schema is None else json_schema
    if chosen is None:
        return {"type": kind} if kind else None
    if kind not in ("application/json", "text/x.enum"):
        raise invalid(
            "GenerateContentRequest.generation_config.response_schema: only allowed when response_mime_type is "
            "application/json or text/x.enum"
        )
    return {"type": "json_schema", "json_schema": {"name": "response", "schema": chosen}}


def _thinking(config: Any) -> JsonObject:
    if config is None:
        return {}
    fields = Fields.of(config, "generation_config.thinking_config", _THINKING)
    fields.require("includeThoughts", bool, "TYPE_BOOL")
    fields.require("thinkingBudget", int, "TYPE_INT32")
    return {"thinking_config": dict(fields.values)}


def _declarations(tools: Any) -> Iterator[tuple[JsonObject, JsonMapping | None]]:
    """The functions as OpenAI writes them, each with its `parametersJsonSchema`, which is not held to OpenAPI."""
    if tools is None:
        return
    if not isinstance(tools, list):
        raise violations([("tools", "Invalid value at 'tools', a list is expected")])
    for number, tool in enumerate(tools):
        found = Fields.of(tool, f"tools[{number}]", _TOOL).get("functionDeclarations", [])
        if not isinstance(found, list):
            raise violations([(f"tools[{number}].function_declarations", "Invalid value, a list is expected")])
        for index, declared in enumerate(found):
            fields = Fields.of(declared, f"tools[{number}].function_declarations[{index}]", _DECLARATION)
            schema = fields.get("parametersJsonSchema")
            if schema is not None and (not isinstance(schema, dict) or fields.get("parameters") is not None):
                raise invalid("Only one of parameters and parameters_json_schema may be set, and it is an object.")
            function = {name: fields.get(name) for name in ("name", "description")}
            yield {**function, "parameters": _camelled(fields.get("parameters"))}, schema


def _tool_choice(config: Any) -> JsonObject:
    fields = Fields.of(
        config or {}, "tool_config", "functionCallingConfig retrievalConfig includeServerSideToolInvocations"
    )
    calling = fields.get("functionCallingConfig")
    if calling is None:
        return {}
    inner = Fields.of(
        calling, "tool_config.function_calling_config", "mode allowedFunctionNames streamFunctionCallArguments"
    )
    mode, names = inner.get("mode", "AUTO"), inner.get("allowedFunctionNames", [])
    if not isinstance(mode, str) or mode not in _MODES:
        at = "tool_config.function_calling_config.mode"
        raise violations([(at, f"Invalid value at '{at}' (type.googleapis.com/Mode), \"{mode}\"")])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise violations(
            [(inner.place, f"Invalid value at '{inner.place}.allowed_function_names', a list of texts is expected")]
        )
    if names and mode not in {"ANY", "VALIDATED"}:
        raise invalid("allowed_function_names can only be set when function calling mode is ANY or VALIDATED.")
    return {"tool_choice": _MODES[mode], "allowed": tuple(names)}


def _camelled(schema: Any) -> Any:
    """An OpenAPI schema with its keywords in camelCase, since protobuf reads both; properties keep their names."""
    if not isinstance(schema, Mapping):
        return schema
    found: JsonObject = {}
    for name, value in schema.items():
        keyword = camel(name)
        if keyword == "properties" and isinstance(value, Mapping):
            found[keyword] = {key: _camelled(inner) for key, inner in value.items()}
        elif isinstance(value, list):
            found[keyword] = [_camelled(inner) for inner in value]
        else:
            found[keyword] = value if keyword in {"example", "default"} else _camelled(value)
    return found
