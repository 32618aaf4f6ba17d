"""From a value of a dataset's `parsed` column back to the answer as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipeline.grade.following import Here, followed, kind_of
from pipeline.grade.values import plain
from pipeline.shapes import JsonSchema


def restored(parsed: Any, schema: JsonSchema) -> Any:
    """The answer under the names of the JSON Schema, JSON text that stands for a value read as that value.

    Columns have a model's Python names, and JSON its aliases: both are in the same order. What has no column type of
    its own is JSON text in a column (see `pipeline.schema`).
    """
    return _restored(plain(parsed), Here(schema, schema))


def _restored(value: Any, here: Here) -> Any:
    found = followed(here)
    schema: JsonSchema = {} if found is None else found.schema
    if isinstance(value, str) and not _is_text(schema):
        return _read(value)
    if found is None:
        return value
    properties, items = schema.get("properties"), schema.get("items")
    if isinstance(value, Mapping) and isinstance(properties, Mapping):
        return {
            name: _restored(item, found.inside(properties.get(name, {}))) for name, item in _named(value, properties)
        }
    if isinstance(value, list) and isinstance(items, Mapping):
        return [_restored(item, found.inside(items)) for item in value]
    return value


def _named(value: Mapping[str, Any], properties: Mapping[str, Any]) -> list[tuple[str, Any]]:
    if value.keys() <= properties.keys() or len(value) != len(properties):
        return list(value.items())
    return list(zip(properties, value.values(), strict=True))


def _is_text(schema: JsonSchema) -> bool:
    """Whether text in a column of this schema is itself."""
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if values is not None:
        return all(value is None or isinstance(value, str) for value in values)
    return kind_of(schema) in ("string", "number", "integer", "boolean")


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
