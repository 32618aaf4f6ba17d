"""A tool's parameters in the dialect that Gemini accepts: a subset of OpenAPI 3.0 schemas, by an allow-list.

A request with one unknown keyword is answered with a 400. Constraints without a keyword go into the description, so
that the model knows them, and are checked on arrival in any case. Google's own list:
https://cloud.google.com/vertex-ai/docs/reference/rest/v1/Schema. Where that list and public reports of rejections
disagree (`default`, `pattern`, formats), the keyword is omitted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.faults import UsageError
from pipeline.schema.dialects import listed_values, standard
from pipeline.schema.shape import JsonSchema, resolve

_BOUNDS: Mapping[str, tuple[str, ...]] = {
    "array": ("minItems", "maxItems"),
    "string": ("minLength", "maxLength"),
    "integer": ("minimum", "maximum"),
    "number": ("minimum", "maximum"),
    "boolean": (),
    "object": ("minProperties", "maxProperties"),
}
_FORMATS: Mapping[str, str] = {
    "date": "a date, YYYY-MM-DD",
    "time": "a time, HH:MM:SS",
    "duration": "a duration in ISO 8601, as in PT1H30M",
    "uri": "a URL",
    "uuid": "a UUID",
    "email": "an e-mail address",
    "regex": "a regular expression",
    "byte": "base64",
    "base64url": "URL-safe base64",
    "binary": "",
    "path": "",
    "password": "",
    "int32": "",
    "int64": "",
    "float": "",
    "double": "",
}
_NOTES: Mapping[str, str] = {
    "exclusiveMinimum": "greater than {}",
    "exclusiveMaximum": "less than {}",
    "multipleOf": "a multiple of {}",
    "pattern": "matching the regular expression {}",
}
_ANYTHING = {"string": "text, or a list or an object as JSON text", "number": "", "boolean": ""}
"""The types requested for a value of any type. A schema without a type is rejected."""


def gemini_parameters(schema: JsonSchema) -> dict[str, Any] | None:
    """The parameters that a JSON Schema of an object declares; None if there are none, and they are to be omitted.

    References are inlined, `T | None` becomes `nullable`, and free-form objects become lists of their entries, which
    `pipeline.schema.conversions` turns back into objects. Raises `UsageError` for a recursive schema.
    """
    root = standard(schema)
    declared = _DialectConverter(root).object_of(root, ())
    return {"type": "object", **_described(declared, [root.get("description", "")])} if declared else None


class _DialectConverter:
    """Converts the schemas of one document. Each becomes a list of alternatives first, as `anyOf` has no siblings."""

    def __init__(self, root: JsonSchema) -> None:
        self._root = root

    def schema(self, schema: Any, inside: tuple[str, ...]) -> dict[str, Any]:
        """The schema, in the dialect."""
        alternatives, nullable = self._alternatives(schema if isinstance(schema, Mapping) else {}, inside)
        real = [each for at, each in enumerate(alternatives) if each not in alternatives[:at]]
        if not real:
            real, nullable = [_described({"type": "string"}, ["always null"])], True
        real = [{**each, "nullable": True} if nullable else each for each in real]
        return real[0] if len(real) == 1 else {"anyOf": real}  # Vertex accepts no siblings, not even a description

    def object_of(self, schema: JsonSchema, inside: tuple[str, ...]) -> dict[str, Any]:
        """`properties` and `required`; empty when there are no properties."""
        schema, inside = self._resolved(schema, inside)
        declared = {name: self.schema(inner, inside) for name, inner in schema.get("properties", {}).items()}
        needed = [name for name in schema.get("required", ()) if name in declared]
        return ({"properties": declared} if declared else {}) | ({"required": needed} if needed else {})

    def _alternatives(self, schema: JsonSchema, inside: tuple[str, ...]) -> tuple[list[dict[str, Any]], bool]:
        schema, inside = self._resolved(schema, inside)
        schema = listed_values(dict(schema))
        unions = [*schema.get("anyOf", ()), *schema.get("oneOf", ())]
        if unions:
            return self._of_all(unions, schema, ("anyOf", "oneOf"), inside)
        kind = schema.get("type", _implied(schema))
        if isinstance(kind, list):
            return self._of_all([{"type": each} for each in kind], schema, ("type",), inside)
        if kind == "null":
            return [], True
        if not isinstance(kind, str) or kind not in _BOUNDS:
            own = schema.get("description", "")
            return [_described({"type": each}, [own, note]) for each, note in _ANYTHING.items()], False
        return [self._one(kind, schema, inside)], False

    def _of_all(
        self, members: Iterable[Any], schema: JsonSchema, apart: tuple[str, ...], inside: tuple[str, ...]
    ) -> tuple[list[dict[str, Any]], bool]:
        """The alternatives of all members of a union, each merged with the union's siblings."""
        beside = {key: value for key, value in schema.items() if key not in {*apart, "description", "title"}}
        found: list[dict[str, Any]] = []
        nullable = False
        for member in members:
            inner, null = self._alternatives({**beside, **member} if isinstance(member, Mapping) else beside, inside)
            found += [_described(each, [schema.get("description", ""), each.get("description", "")]) for each in inner]
            nullable |= null
        return found, nullable

    def _one(self, kind: str, schema: JsonSchema, inside: tuple[str, ...]) -> dict[str, Any]:
        notes = [schema.get("description", ""), *_format_note(kind, schema)]
        plain: dict[str, Any] = {"type": kind}
        plain |= {name: schema[name] for name in _BOUNDS[kind] if name in schema}
        plain |= _inclusive(kind, schema)
        exact = ("exclusiveMinimum", "exclusiveMaximum") if kind == "integer" else ()
        notes += [text.format(schema[word]) for word, text in _NOTES.items() if word in schema and word not in exact]
        if kind == "object":
            declared = self.object_of(schema, inside)
            return _described(plain | declared, notes) if declared else self._entries(schema, inside, notes)
        if kind == "array":
            places = schema.get("prefixItems")
            plain["items"] = self.schema({"anyOf": places} if places else schema.get("items"), inside)
            notes += ["without repetitions"] if schema.get("uniqueItems") is True else []
        elif kind == "string" and schema.get("format") == "date-time":
            plain["format"] = "date-time"
        values = schema.get("enum")
        if values is not None and kind == "string" and all(isinstance(value, str) and value for value in values):
            plain["enum"] = values
        elif values is not None:  # numbers, and the empty text, are rejected
            written = ", ".join(json.dumps(value, ensure_ascii=False) for value in values)
            notes.append(f"one of {written}" if len(values) > 1 else f"always {written}")
            numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
            plain |= (
                {"minimum": min(numbers), "maximum": max(numbers)} if numbers and "minimum" in _BOUNDS[kind] else {}
            )
        return _described(plain, notes)

    def _entries(self, schema: JsonSchema, inside: tuple[str, ...], notes: list[str]) -> dict[str, Any]:
        """A free-form object, which Gemini does not support, as a list of its entries."""
        more = schema.get("additionalProperties")
        patterns = list(schema.get("patternProperties", {}).items())
        values = more if isinstance(more, Mapping) else patterns[0][1] if patterns else {}
        named = {"pattern": patterns[0][0]} if patterns else schema.get("propertyNames", {})
        names = dict(self._resolved(named, inside)[0])
        if "enum" in names:  # keys are text
            names["enum"] = [value if isinstance(value, str) else json.dumps(value) for value in names["enum"]]
        entry = {
            "type": "object",
            "properties": {
                "key": self.schema({**names, "type": "string"}, inside),
                "value": self.schema(values, inside),
            },
            "required": ["key", "value"],
        }
        sizes = {"minItems": schema.get("minProperties"), "maxItems": schema.get("maxProperties")}
        listed = {"type": "array", "items": entry, **{word: size for word, size in sizes.items() if size is not None}}
        return _described(listed, [*notes, "the entries of an object, each key once"])

    def _resolved(self, schema: JsonSchema, inside: tuple[str, ...]) -> tuple[JsonSchema, tuple[str, ...]]:
        """The schema with its `$ref` and `allOf` inlined."""
        while "$ref" in schema or "allOf" in schema:
            rest = {key: value for key, value in schema.items() if key not in {"$ref", "allOf"}}
            parts = list(schema.get("allOf", ()))
            if reference := schema.get("$ref"):
                if reference in inside:
                    raise UsageError(
                        "a tool's parameters cannot hold themselves: the endpoint takes no recursive schemas there"
                    )
                inside = (*inside, reference)
                parts.append(resolve(self._root, reference))
            for part in parts:
                rest = _merged(part, rest)
            schema = rest
        return schema, inside


def _merged(below: Any, above: Mapping[str, Any]) -> dict[str, Any]:
    """Both schemas merged; `above` wins for a keyword in both, except that properties are combined."""
    if not isinstance(below, Mapping):
        return dict(above)
    both = {**below, **above}
    if "properties" in below and "properties" in above:
        both["properties"] = {**below["properties"], **above["properties"]}
    if "required" in below and "required" in above:
        both["required"] = list(dict.fromkeys([*below["required"], *above["required"]]))
    return both


def _implied(schema: JsonSchema) -> str | None:
    if {"properties", "additionalProperties", "patternProperties"} & schema.keys():
        return "object"
    if {"items", "prefixItems"} & schema.keys():
        return "array"
    return "string" if {"pattern", "format", "minLength", "maxLength"} & schema.keys() else None


def _inclusive(kind: str, schema: JsonSchema) -> dict[str, Any]:
    """Inclusive bounds from exclusive ones: exact for integers, the same number for other types."""
    found: dict[str, Any] = {}
    if kind not in {"integer", "number"}:
        return found
    low, high = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if low is not None:
        low = math.floor(low) + 1 if kind == "integer" else low
        found["minimum"] = max(low, schema.get("minimum", low))
    if high is not None:
        high = math.ceil(high) - 1 if kind == "integer" else high
        found["maximum"] = min(high, schema.get("maximum", high))
    return found


def _format_note(kind: str, schema: JsonSchema) -> list[str]:
    name = str(schema.get("format", ""))
    if kind != "string" or not name or name == "date-time":
        return []
    return [_FORMATS.get(name, f"in the format {name}")]


def _described(plain: dict[str, Any], notes: Iterable[str]) -> dict[str, Any]:
    """The schema with its notes as the description; the first note is the schema's own description."""
    lines = list(dict.fromkeys(note for note in notes if note))
    rest = {key: value for key, value in plain.items() if key != "description"}
    if not lines:
        return rest
    return {**rest, "description": lines[0] + "".join(f" ({note})" for note in lines[1:])}
