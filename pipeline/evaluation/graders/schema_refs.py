"""Places in a schema, with references and unions with null resolved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.schema.shape import JsonSchema, resolve


@dataclass(frozen=True, slots=True)
class Here:
    """A place in a schema. `above` holds the references that enclose it."""

    schema: Any
    root: JsonSchema
    above: frozenset[str] = frozenset()

    def inside(self, schema: Any) -> Here:
        """A schema inside this one."""
        return replace(self, schema=schema)


def followed(here: Here) -> Here | None:
    """The target of references and unions with null; None if they are circular or lead to several types."""
    schema = here.schema
    if not isinstance(schema, Mapping):
        return None
    if "$ref" in schema:
        return _referred(here)
    for union in ("anyOf", "oneOf", "allOf"):
        if isinstance(schema.get(union), list):
            return _one_of(here, schema[union])
    return here


def _referred(here: Here) -> Here | None:
    reference = here.schema["$ref"]
    if reference in here.above or reference == "#":
        return None
    try:
        target = resolve(here.root, reference)
    except (LookupError, TypeError):
        return None
    siblings = {key: value for key, value in here.schema.items() if key != "$ref"}
    merged = {**target, **siblings} if isinstance(target, Mapping) else target
    return followed(Here(merged, here.root, here.above | {reference}))


def _one_of(here: Here, members: list[Any]) -> Here | None:
    present = [found for member in members if member != {"type": "null"} and (found := followed(here.inside(member)))]
    kinds = {kind_of(found.schema) for found in present}
    if kinds == {"number", "string"}:  # pydantic's schema of a decimal
        return next(found for found in present if kind_of(found.schema) == "number")
    if kinds == {"integer", "number"}:
        return next(found for found in present if kind_of(found.schema) == "number")
    return present[0] if len(present) == 1 else None


def kind_of(schema: JsonSchema) -> Any:
    """The single type that a schema names besides null."""
    kinds = schema.get("type")
    if not isinstance(kinds, list):
        return kinds
    present = [kind for kind in kinds if kind != "null"]
    return present[0] if len(present) == 1 else None
