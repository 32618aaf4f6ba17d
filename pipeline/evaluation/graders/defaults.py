"""Graders for fields that the user did not name, derived from the schema of the job's answers.

| in the schema | grader |
|---|---|
| `enum`, `const` | `Enum` |
| `boolean` | `Bool` |
| `integer` | `Number()` |
| `number`, and decimals (a number or a numeral) | `Number(relative=1e-9)` |
| `string` | `Text()`; with format `date`, `date-time`, `time`: `Date()`, `Date(by="second")`, `Time()` |
| `array` with `items` | `Items` of its items' grader; `Set` with `uniqueItems` |
| `object` with `properties` | `Object` of its properties' graders |
| `anyOf`, `oneOf`, `allOf` of one type and null, `["T", "null"]` | the grader of the type |
| `$ref` within the document | the grader of its target; `Exact` for a reference to an enclosing schema |
| everything else | `Exact` |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipeline.evaluation.graders.base import Grader, Ignore, require_grader
from pipeline.evaluation.graders.dates import Date, Time
from pipeline.evaluation.graders.lists import Items, Listed, Set
from pipeline.evaluation.graders.objects import Object
from pipeline.evaluation.graders.rows import ANSWER, Graders
from pipeline.evaluation.graders.scalars import Bool, Enum, Exact, Number, Text
from pipeline.evaluation.graders.schema_refs import Here, followed, kind_of
from pipeline.faults import UsageError
from pipeline.schema.shape import JsonSchema
from pipeline.text import nearest

_SCALARS: Mapping[str, Grader] = {"boolean": Bool(), "integer": Number(), "number": Number(relative=1e-9)}
_FORMATS: Mapping[str, Grader] = {"date": Date(), "date-time": Date(by="second"), "time": Time()}


def graders_for(schema: JsonSchema | None, named: Mapping[str, Grader]) -> Graders:
    """A grader for every field: the named ones, completed inside, and the schema's defaults for the others.

    `schema` is the JSON Schema of the answers; None when they are text (the one field is then `answer`), and `{"type":
    "object"}` when they are any object (only named fields are then graded). Raises UsageError for a grader of an
    unknown field, with the nearest name, and when nothing is left to grade.
    """
    for name, grader in named.items():
        require_grader(grader, f"fields[{name!r}]")
    graders = _of_text(named) if schema is None else _of_schema(schema, named)
    if all(isinstance(grader, Ignore) for grader in graders.fields.values()):
        raise UsageError("the evaluation grades no field: name one in `fields`")
    return graders


def _of_text(named: Mapping[str, Grader]) -> Graders:
    for name in named:
        if name != ANSWER:
            raise UsageError(f"the job has no schema, so its one field is {ANSWER!r}: there is no {name!r} to grade")
    return Graders({ANSWER: named.get(ANSWER, Text())}, whole=True)


def _of_schema(schema: JsonSchema, named: Mapping[str, Grader]) -> Graders:
    found = followed(Here(schema, schema))
    if found is None or not isinstance(found.schema.get("properties"), Mapping):
        return Graders(named)
    return Graders(_fields(found, named, "the schema"), closed=True)


def _fields(here: Here, named: Mapping[str, Grader], where: str) -> dict[str, Grader]:
    """The graders of an object's properties, in the schema's order."""
    properties: Mapping[str, Any] = here.schema["properties"]
    for name in named:
        if name not in properties:
            hint = nearest(name, [*properties])
            raise UsageError(f"there is a grader for the field {name!r}, which {where} does not have{hint}")
    places = {name: here.inside(inner) for name, inner in properties.items()}
    return {
        name: _completed(named[name], place, f"the field {name!r}") if name in named else _default(place)
        for name, place in places.items()
    }


def _completed(grader: Grader, here: Here, where: str) -> Grader:
    """The named grader, with the schema's defaults for inner values that it leaves open."""
    found = followed(here)
    schema = {} if found is None else found.schema
    if found is not None and isinstance(grader, Object) and isinstance(schema.get("properties"), Mapping):
        return replace(grader, fields=_fields(found, grader.fields, where))
    if found is not None and isinstance(grader, Listed) and isinstance(schema.get("items"), Mapping):
        return _completed_list(grader, found.inside(schema["items"]), where)
    return grader


def _completed_list(grader: Listed, items: Here, where: str) -> Grader:
    if grader.of is not None:
        return replace(grader, of=_completed(grader.of, items, where))
    found = followed(items)
    if isinstance(grader, Items) and found is not None and isinstance(found.schema.get("properties"), Mapping):
        fields = _fields(found, grader.fields, where)
        for name in grader.keys:
            if name not in fields:
                raise UsageError(f"{where} has the key {name!r}, which its items do not have{nearest(name, [*fields])}")
        return replace(grader, fields=fields)
    if isinstance(grader, Items) and (grader.fields or grader.keys):
        raise UsageError(f"{where} has `fields` or a `key`, but its items are not objects: name their grader with `of`")
    return replace(grader, of=_default(items))


def _default(here: Here) -> Grader:
    found = followed(here)
    if found is None:
        return Exact()
    schema = found.schema
    if "enum" in schema or "const" in schema:
        return Enum(tuple(value for value in schema.get("enum", [schema.get("const")]) if value is not None))
    if isinstance(schema.get("properties"), Mapping) and schema["properties"]:
        return Object(_fields(found, {}, "the schema"))
    kind = kind_of(schema)
    if kind == "array" and isinstance(schema.get("items"), Mapping) and "prefixItems" not in schema:
        return _completed(Set() if schema.get("uniqueItems") else Items(), found, "")
    if kind == "string":
        return _FORMATS.get(str(schema.get("format")), Text())
    return _SCALARS.get(str(kind), Exact())
