"""Graders for the fields that the user did not name, from the schema of the job's answers.

| in the schema | grader |
|---|---|
| `enum`, `const` | `Enum` |
| `boolean` | `Bool` |
| `integer` | `Number()` |
| `number`, and decimals (a number or a numeral) | `Number(relative=1e-9)` |
| `string` | `Text()`; with format `date`, `date-time`, `time`: `Date()`, `Date(by="second")`, `Time()` |
| `array` with `items` | `Items`, of what its items are; `Set` with `uniqueItems` |
| `object` with `properties` | `Object`, of what its properties are |
| `anyOf`, `oneOf`, `allOf` of one type and null, `["T", "null"]` | that of the type |
| `$ref` within the document | that of what it refers to; `Exact` where it refers to what it is inside of |
| everything else | `Exact` |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.faults import Misuse
from pipeline.grade.graders import Grader, Ignore, require_grader
from pipeline.grade.grading import ANSWER, Graders
from pipeline.grade.lists import Items, Listed, Set
from pipeline.grade.moments import Date, Time
from pipeline.grade.objects import Object
from pipeline.grade.scalars import Bool, Enum, Exact, Number, Text
from pipeline.job import nearest
from pipeline.shapes import JsonSchema, resolve

_SCALARS: Mapping[str, Grader] = {"boolean": Bool(), "integer": Number(), "number": Number(relative=1e-9)}
_FORMATS: Mapping[str, Grader] = {"date": Date(), "date-time": Date(by="second"), "time": Time()}


def graders_for(schema: JsonSchema | None, named: Mapping[str, Grader]) -> Graders:
    """A grader for every field: the named ones, what is inside of them completed, and the schema's for the others.

    `schema` is the JSON Schema of the answers; None when they are text (then the one field is `answer`), and
    `{"type": "object"}` when they are any object (then only what is named is graded). Misuse, with the nearest name,
    for a grader of a field that there is not; and when nothing is left to grade.
    """
    for name, grader in named.items():
        require_grader(grader, f"fields[{name!r}]")
    graders = _of_text(named) if schema is None else _of_schema(schema, named)
    if all(isinstance(grader, Ignore) for grader in graders.fields.values()):
        raise Misuse("the evaluation grades no field: name one in `fields`")
    return graders


def _of_text(named: Mapping[str, Grader]) -> Graders:
    for name in named:
        if name != ANSWER:
            raise Misuse(f"the job has no schema, so its one field is {ANSWER!r}: there is no {name!r} to grade")
    return Graders({ANSWER: named.get(ANSWER, Text())}, whole=True)


def _of_schema(schema: JsonSchema, named: Mapping[str, Grader]) -> Graders:
    found = _followed(_Here(schema, schema))
    if found is None or not isinstance(found.schema.get("properties"), Mapping):
        return Graders(named)
    return Graders(_fields(found, named, "the schema"), closed=True)


@dataclass(frozen=True, slots=True)
class _Here:
    """A place in a schema. `above` holds the references that it is inside of."""

    schema: Any
    root: JsonSchema
    above: frozenset[str] = frozenset()

    def inside(self, schema: Any) -> _Here:
        return replace(self, schema=schema)


def _fields(here: _Here, named: Mapping[str, Grader], where: str) -> dict[str, Grader]:
    """The graders of an object's properties, in the schema's order."""
    properties: Mapping[str, Any] = here.schema["properties"]
    for name in named:
        if name not in properties:
            hint = nearest(name, [*properties])
            raise Misuse(f"a grader is named for the field {name!r}, which {where} does not have{hint}")
    places = {name: here.inside(inner) for name, inner in properties.items()}
    return {
        name: _completed(named[name], place, f"the field {name!r}") if name in named else _default(place)
        for name, place in places.items()
    }


def _completed(grader: Grader, here: _Here, where: str) -> Grader:
    """The named grader, with the schema's for what it leaves open inside."""
    found = _followed(here)
    schema = {} if found is None else found.schema
    if found is not None and isinstance(grader, Object) and isinstance(schema.get("properties"), Mapping):
        return replace(grader, fields=_fields(found, grader.fields, where))
    if found is not None and isinstance(grader, Listed) and isinstance(schema.get("items"), Mapping):
        return _completed_list(grader, found.inside(schema["items"]), where)
    return grader


def _completed_list(grader: Listed, items: _Here, where: str) -> Grader:
    if grader.of is not None:
        return replace(grader, of=_completed(grader.of, items, where))
    found = _followed(items)
    if isinstance(grader, Items) and found is not None and isinstance(found.schema.get("properties"), Mapping):
        fields = _fields(found, grader.fields, where)
        for name in grader.keys:
            if name not in fields:
                raise Misuse(f"{where} has the key {name!r}, which its items do not have{nearest(name, [*fields])}")
        return replace(grader, fields=fields)
    if isinstance(grader, Items) and (grader.fields or grader.keys):
        raise Misuse(f"{where} has `fields` or a `key`, but its items are no objects: name their grader with `of`")
    return replace(grader, of=_default(items))


def _default(here: _Here) -> Grader:
    found = _followed(here)
    if found is None:
        return Exact()
    schema = found.schema
    if "enum" in schema or "const" in schema:
        return Enum(tuple(value for value in schema.get("enum", [schema.get("const")]) if value is not None))
    if isinstance(schema.get("properties"), Mapping) and schema["properties"]:
        return Object(_fields(found, {}, "the schema"))
    kind = _kind(schema)
    if kind == "array" and isinstance(schema.get("items"), Mapping) and "prefixItems" not in schema:
        return _completed(Set() if schema.get("uniqueItems") else Items(), found, "")
    if kind == "string":
        return _FORMATS.get(str(schema.get("format")), Text())
    return _SCALARS.get(str(kind), Exact())


def _followed(here: _Here) -> _Here | None:
    """Where references and unions with null lead to; None where they turn in a circle or lead to several types."""
    schema = here.schema
    if not isinstance(schema, Mapping):
        return None
    if "$ref" in schema:
        return _referred(here)
    for union in ("anyOf", "oneOf", "allOf"):
        if isinstance(schema.get(union), list):
            return _one_of(here, schema[union])
    return here


def _referred(here: _Here) -> _Here | None:
    reference = here.schema["$ref"]
    if reference in here.above or reference == "#":
        return None
    try:
        target = resolve(here.root, reference)
    except (LookupError, TypeError):
        return None
    siblings = {key: value for key, value in here.schema.items() if key != "$ref"}
    merged = {**target, **siblings} if isinstance(target, Mapping) else target
    return _followed(_Here(merged, here.root, here.above | {reference}))


def _one_of(here: _Here, members: list[Any]) -> _Here | None:
    present = [found for member in members if member != {"type": "null"} and (found := _followed(here.inside(member)))]
    kinds = {_kind(found.schema) for found in present}
    if kinds == {"number", "string"}:  # how pydantic writes a decimal
        return next(found for found in present if _kind(found.schema) == "number")
    if kinds == {"integer", "number"}:
        return next(found for found in present if _kind(found.schema) == "number")
    return present[0] if len(present) == 1 else None


def _kind(schema: JsonSchema) -> Any:
    kinds = schema.get("type")
    if not isinstance(kinds, list):
        return kinds
    present = [kind for kind in kinds if kind != "null"]
    return present[0] if len(present) == 1 else None
