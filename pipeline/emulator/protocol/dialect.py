"""Schemas that Gemini refuses: function parameters, which follow OpenAPI 3.0, and structured output.

Each refusal was reported publicly, and names the report; messages are quoted from it. Inferred ones say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

from pipeline.emulator.protocol.wire import TOO_MANY_STATES, JsonMapping, Problem, invalid

_KNOWN = """
type format title description nullable items minItems maxItems enum properties propertyOrdering required
minProperties maxProperties minimum maximum minLength maxLength pattern example anyOf
"""
KNOWN = frozenset(_KNOWN.split())
"""https://cloud.google.com/vertex-ai/docs/reference/rest/v1/Schema, except `default`, which was refused
(datastax/astra-assistants-api#73), and `additionalProperties`, `$ref` and `$defs`: inferred to be still refused."""

TYPES = frozenset({"string", "number", "integer", "boolean", "array", "object", "null"})
_MESSAGE = "type.googleapis.com/google.cloud.aiplatform.v1beta1"
_LEARN = "https://cloud.google.com/vertex-ai/generative-ai/docs/multimodal/function-calling"


@dataclass(frozen=True, slots=True)
class _SchemaPlace:
    """A schema within a function's parameters, and the three ways in which messages name its place."""

    schema: Any
    field: str
    path: str
    request: str

    @property
    def kind(self) -> str:
        """Its type in lower case; empty without one."""
        return str(self.schema.get("type") or "").lower()


def check_parameters(function: str, index: int, schema: JsonMapping) -> None:
    """Raises a 400 for parameters that Gemini does not accept; `index` is the function's place in `tools`."""
    field = f"tools[0].function_declarations[{index}].parameters"
    places = list(_places(_SchemaPlace(schema, field, "parameters", f"GenerateContentRequest.{field}")))
    if unreadable := [complaint for place in places for complaint in _unreadable(place)]:
        raise violations(unreadable)
    for place in places:
        if fault := _misuse(place):
            about = f"`{function}` functionDeclaration `{place.path}` schema"
            raise invalid(f"Unable to submit request because {about} {fault}")
    if wrong := [line for place in places for check in CHECKS for line in check(place)]:
        raise invalid("".join(f"* {line}\n" for line in wrong))


def check_structured(root: JsonMapping) -> None:
    """Raises a 400 for a structured-output schema that is documented as unsupported; the messages are inferred.

    https://cloud.google.com/vertex-ai/docs/reference/rest/v1/GenerationConfig: next to a `$ref` only names that start
    with $ are allowed (and `description` and `default`: su-kaka/gcli2api#374), and cyclic references only within
    properties that are not required. Unsupported keywords are ignored.
    """
    needed: dict[str, set[str]] = {}
    definitions = {f"#/$defs/{name}": inner for name, inner in _items(root.get("$defs"))}
    for pointer, definition in ({"#": root} | definitions).items():
        found = list(_references(definition))
        if crowded := next((each for each, _ in found if any(map(_is_beside_reference, each))), None):
            raise invalid(f"Invalid schema: other fields are set alongside $ref {crowded['$ref']}.")
        needed[pointer] = {str(each["$ref"]) for each, required in found if required}
    try:
        TopologicalSorter(needed).prepare()
    except CycleError as cycle:
        raise invalid(f"{TOO_MANY_STATES} {cycle.args[1][0]} refers to itself in a required property.") from None


def _references(definition: Any) -> Iterator[tuple[JsonMapping, bool]]:
    """The schemas with a `$ref` in a definition, and whether all properties on the path to each are required."""
    ahead: list[tuple[Any, bool]] = [(definition, True)]
    while ahead:
        schema, required = ahead.pop()
        if not isinstance(schema, Mapping):
            continue
        if "$ref" in schema:
            yield schema, required
        names = _listed(schema.get("required"))
        ahead += [(inner, required and name in names) for name, inner in _items(schema.get("properties"))]
        for word in ("anyOf", "oneOf", "allOf", "prefixItems"):
            ahead += [(inner, required) for inner in _listed(schema.get(word))]
        ahead += [(schema.get(word), required) for word in ("items", "additionalProperties")]


def _is_beside_reference(name: str) -> bool:
    return not name.startswith("$") and name not in {"description", "default"}


def _places(root: _SchemaPlace) -> Iterator[_SchemaPlace]:
    """The schema and all inner schemas, in order."""
    ahead = [root]
    while ahead:
        place = ahead.pop()
        yield place
        if isinstance(place.schema, Mapping):
            ahead += reversed(list(_below(place, place.schema)))


def _below(at: _SchemaPlace, schema: JsonMapping) -> Iterator[_SchemaPlace]:
    for number, (name, inner) in enumerate(_items(schema.get("properties"))):
        field = f"{at.field}.properties[{number}].value"
        yield _SchemaPlace(inner, field, f"{at.path}.{name}", f"{at.request}.properties[{name}]")
    for number, inner in enumerate(_listed(schema.get("anyOf"))):
        yield _SchemaPlace(inner, f"{at.field}.any_of[{number}]", at.path, f"{at.request}.any_of[{number}]")
    if "items" in schema:
        yield _SchemaPlace(schema["items"], f"{at.field}.items", f"{at.path}.items", f"{at.request}.items")


def _unreadable(at: _SchemaPlace) -> Iterator[tuple[str, str]]:
    """Values that the request's protobuf message cannot hold: the field, and the error."""
    if not isinstance(at.schema, Mapping):  # inferred: a schema is a message
        yield at.field, f"Invalid value at '{at.field}' ({_MESSAGE}.Schema), {at.schema}"
        return
    for name in sorted(at.schema.keys() - KNOWN):  # zed-industries/zed#44875
        yield at.field, f"Unknown name \"{name}\" at '{at.field}': Cannot find field."
    for name in ("type", "properties", "anyOf", "enum", "required"):
        value = at.schema.get(name)
        if isinstance(value, list) and name in {"type", "properties"}:  # aoci-spec/aoci-code#61
            yield at.field, f"Unknown name \"{name}\" at '{at.field}': Proto field is not repeating, cannot start list."
        elif value is not None and not isinstance(value, list) and name in {"anyOf", "enum", "required"}:  # inferred
            yield f"{at.field}.{name}", f"Invalid value at '{at.field}.{name}', {value}"
    kind = at.schema.get("type")
    if kind is not None and not isinstance(kind, list) and str(kind).lower() not in TYPES:
        # google-gemini/deprecated-generative-ai-js#320
        yield f"{at.field}.type", f"Invalid value at '{at.field}.type' ({_MESSAGE}.Type), \"{kind}\""
    for number, value in enumerate(_listed(at.schema.get("enum"))):
        if not isinstance(value, str):  # microsoft/azure-devops-mcp#145
            field = f"{at.field}.enum[{number}]"
            yield field, f"Invalid value at '{field}' (TYPE_STRING), {value}"


def _misuse(at: _SchemaPlace) -> str | None:
    """Vertex's error for a schema of any type, if it has one."""
    if "anyOf" in at.schema:
        if len(at.schema) == 1:
            return None
        # lambda-alpha-labs/Graphenium#37, anomalyco/opencode#14700
        return "specified other fields alongside any_of. When using any_of, it must be the only field set."
    return None if at.kind else f"didn't specify the schema type field. Learn more: {_LEARN}"  # directus/mcp#8


def _of_texts(at: _SchemaPlace) -> Iterator[str]:
    form, values = at.schema.get("format"), _listed(at.schema.get("enum"))
    if at.kind == "string" and form is not None and form not in {"enum", "date-time"}:  # google-gemini/gemini-cli#5450
        yield f"{at.request}.format: only 'enum' and 'date-time' are supported for STRING type"
    if at.kind == "string" and form == "enum" and not values:  # elastic/kibana#286302
        yield f"{at.request}.enum: should be non-empty for STRING type with enum format"
    if values and at.kind != "string":  # musistudio/claude-code-router#475
        yield f"{at.request}.enum: only allowed for STRING type"
    for number, value in enumerate(values):
        if value == "":  # sbroenne/mcp-server-excel#607
            yield f"{at.request}.enum[{number}]: cannot be empty"


def _of_objects(at: _SchemaPlace) -> Iterator[str]:
    properties = dict(_items(at.schema.get("properties")))
    if at.kind != "object":
        for word in ("properties", "required"):
            if at.schema.get(word):  # anomalyco/opencode#11889
                yield f"{at.request}.{word}: only allowed for OBJECT type"
        return
    if not properties:  # agno-agi/agno#2112, browser-use/browser-use#7
        yield f"{at.request}.properties: should be non-empty for OBJECT type"
    for number, name in enumerate(_listed(at.schema.get("required"))):
        if not isinstance(name, str) or name not in properties:  # iBUHub/AIStudioToAPI#154
            yield f"{at.request}.required[{number}]: property is not defined"


def _of_lists(at: _SchemaPlace) -> Iterator[str]:
    if at.kind == "array" and "items" not in at.schema:  # cline/cline#7926
        yield f"{at.request}.items: missing field."


CHECKS: tuple[Callable[[_SchemaPlace], Iterator[str]], ...] = (_of_texts, _of_objects, _of_lists)
"""The checks for each type of schema; one message per violation."""


def violations(found: list[tuple[str, str]]) -> Problem:
    """The error for a message that cannot be parsed, with a google.rpc.BadRequest as details."""
    lines = [f"Invalid JSON payload received. {line}" if line.startswith("Unknown") else line for _, line in found]
    fields = [{"field": field, "description": line} for (field, _), line in zip(found, lines, strict=True)]
    details = {"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": fields}
    return Problem(400, "INVALID_ARGUMENT", "\n".join(lines), details=[details])


def _items(value: Any) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, Mapping) else []


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
