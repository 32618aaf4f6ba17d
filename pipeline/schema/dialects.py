"""Dialects of JSON Schema: converts what people write to the standard, and the standard to what endpoints accept.

Gemini's structured output supports a part of JSON Schema and ignores the rest, including `const`: an answer would then
be unconstrained where the schema constrains it. `$ref` must have no siblings.
https://cloud.google.com/vertex-ai/docs/reference/rest/v1/GenerationConfig (`responseJsonSchema`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.schema.shape import JsonSchema, mapped

NULL: JsonSchema = {"type": "null"}
TYPES: Mapping[type, str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    type(None): "null",
    list: "array",
    dict: "object",
}
"""JSON Schema's names for the Python types of JSON values."""

_ABOUT = ("title", "description")


def standard(document: JsonSchema) -> dict[str, Any]:
    """A standard JSON Schema from one in OpenAPI 3.0's dialect or Gemini's.

    `nullable` allows null (OpenAPI 3.0.3, 4.7.24), types may be in capitals, and a `oneOf` with a `discriminator`
    becomes an `anyOf`, since its branches differ by their tags.
    """
    read = mapped(document, _standard)
    read.pop("nullable", None)  # not at the root: an answer is an object
    return _common(read)


def _standard(schema: JsonSchema) -> dict[str, Any]:
    read = _common(mapped(schema, _standard))
    nullable = read.pop("nullable", False)
    return with_null(read) if nullable is True else read


def _common(schema: dict[str, Any]) -> dict[str, Any]:
    kinds = schema.get("type")
    if isinstance(kinds, str):
        schema["type"] = _type_name(kinds)
    elif isinstance(kinds, list):
        schema["type"] = [_type_name(kind) if isinstance(kind, str) else kind for kind in kinds]
    return any_of_tagged(schema)


def _type_name(kind: str) -> str:
    return kind.lower() if kind.lower() in TYPES.values() else kind


def with_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema extended to allow null, which a schema without types and values already does."""
    kind = schema.get("type")
    if isinstance(kind, str) and not {"enum", "const"} & schema.keys():
        return schema if kind == "null" else {**schema, "type": [kind, "null"]}
    if not {"type", "enum", "const", "$ref", "anyOf", "oneOf", "allOf"} & schema.keys():
        return schema
    about = {key: schema[key] for key in _ABOUT if key in schema}
    inner = {key: value for key, value in schema.items() if key not in about}
    branches = inner.get("anyOf")
    if inner.keys() == {"anyOf"} and isinstance(branches, list):
        return {**about, "anyOf": branches if NULL in branches else [*branches, NULL]}
    return {**about, "anyOf": [inner, NULL]}


def any_of_tagged(schema: dict[str, Any]) -> dict[str, Any]:
    """A `oneOf` with a `discriminator` as an `anyOf`; other schemas unchanged."""
    if "discriminator" not in schema or "oneOf" not in schema:
        return schema
    rest = {key: value for key, value in schema.items() if key not in {"oneOf", "discriminator"}}
    return {**rest, "anyOf": schema["oneOf"]}


def asked(schema: JsonSchema) -> dict[str, Any]:
    """The schema as it is sent: it allows the same answers, using only keywords that endpoints support."""
    sent = listed_values(mapped(schema, asked))
    if "$ref" in sent and len(sent) > 1 and not all(key.startswith("$") for key in sent):
        reference = {"$ref": sent.pop("$ref")}
        return {**sent, "anyOf": [reference]} if "anyOf" not in sent else {**sent, "allOf": [reference]}
    return sent


def listed_values(schema: dict[str, Any]) -> dict[str, Any]:
    """`const` and `enum` as an `enum` of one type, or as an `anyOf` of those."""
    if "const" not in schema and not isinstance(schema.get("enum"), list):
        return schema
    rest = {key: value for key, value in schema.items() if key not in {"const", "enum", "type"}}
    values = schema.get("enum", [schema.get("const")])
    if "const" in schema:
        values = [value for value in values if value == schema["const"]] or [schema["const"]]
    if not all(type(value) in TYPES for value in values):  # values of Python, not of JSON
        return {**schema}
    groups: dict[str, list[Any]] = {}
    for value in _allowed(values, schema.get("type")):
        groups.setdefault(TYPES[type(value)], []).append(value)
    if not groups or groups.keys() & {"array", "object"}:
        return {**schema}
    if "integer" in groups and "number" in groups:
        groups["number"] += groups.pop("integer")
    branches = [dict(NULL) if kind == "null" else {"type": kind, "enum": few} for kind, few in groups.items()]
    if len(branches) > 1 and "anyOf" in rest:
        return {**schema}
    return {**branches[0], **rest} if len(branches) == 1 else {**rest, "anyOf": branches}


def _allowed(values: list[Any], kinds: Any) -> list[Any]:
    """The values of these types; an answer cannot have the others."""
    names = [kinds] if isinstance(kinds, str) else kinds
    if not isinstance(names, list):
        return values
    names = [*names, "integer"] if "number" in names else names
    return [value for value in values if TYPES[type(value)] in names or _is_whole(value, names)]


def _is_whole(value: Any, names: list[Any]) -> bool:
    return isinstance(value, float) and value.is_integer() and "integer" in names
