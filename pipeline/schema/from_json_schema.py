"""Makes an `AnswerSchema` from a JSON Schema document, for jobs that keep their schema in a file.

| in the schema | in Parquet |
|---|---|
| `string` | `string`; with format `date`, `date-time`: `date32`, `timestamp[us, UTC]` |
| `string` with format `time` | `string`, HH:MM:SS with a fraction if it has one; `time64[us]` with `time_as="time"` |
| `integer`, `number`, `boolean` | `int64`, `float64`, `bool` |
| `enum`, `const` | `string` when all values are text, `int64` when all are integers, else JSON text |
| `array` with `items` | `list<element: T>` |
| `object` with `properties` | `struct`, its properties in order |
| `["T", "null"]`, `anyOf` of `T` and `null`, a property that is not required | the column of `T`, nullable |
| `$ref` within the document | what it refers to; JSON text where it refers to what it is inside of |
| everything else | JSON text: a `string` column |

Answers are validated against the whole document. Properties that it does not name do not become columns.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

from pipeline.faults import UsageError
from pipeline.schema.columns import (
    BOOL,
    DATE,
    FLOAT64,
    INSTANT,
    INT64,
    STRING,
    TIME,
    Column,
    Field,
    Misfit,
    json_text,
    list_of,
    quoted,
    struct_of,
    via,
)
from pipeline.schema.conversions import without_leap_second
from pipeline.schema.dialects import asked, standard
from pipeline.schema.exact_numbers import Inexact
from pipeline.schema.shape import AnswerSchema, JsonSchema, bare_json, load, resolve, subschemas, unparsable


def shape_of_document(document: JsonSchema, name: str) -> AnswerSchema:
    """The schema of answers for a JSON Schema (draft 2020-12 unless `$schema` says otherwise); its values are dicts.

    Raises `UsageError` for an invalid schema, a root that is not an object with properties, and a `$ref` to another
    document, which would have to be fetched.
    """
    document = standard(document)
    validator = _validator(document)
    _refuse_foreign_references(document)
    columns = _column(document, document, frozenset())
    if not columns.label.startswith("struct<") or columns.label == "struct<>":
        raise UsageError("the schema's root must be an object with properties: give its value a name in one")
    sent = {key: value for key, value in document.items() if key != "$schema"}
    return AnswerSchema(name, asked(sent), columns, lambda text: _read(validator, text))


def _validator(document: JsonSchema) -> Any:
    import jsonschema  # only jobs with a schema file need it
    import referencing

    kind = jsonschema.validators.validator_for(document, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(dict(document))
    except jsonschema.SchemaError as error:
        raise UsageError(
            f"the schema is not valid JSON Schema: {error.json_path}: {quoted(error.message, 200)}"
        ) from None
    formats = jsonschema.FormatChecker(formats=())
    for format_name, column in _FORMATS.items():
        formats.checks(format_name, raises=Misfit)(functools.partial(_has_format, column))
    return kind(document, registry=referencing.Registry(), format_checker=formats)


def _has_format(column: Column, value: Any) -> bool:
    if isinstance(value, str):
        column.plain(value)
    return True


def _refuse_foreign_references(schema: JsonSchema) -> None:
    if not str(schema.get("$ref", "#")).startswith("#"):
        raise UsageError(
            f"the schema refers to another document, {schema['$ref']!r}: copy it into $defs and refer to that"
        )
    for inner in subschemas(schema):
        _refuse_foreign_references(inner)


def _read(validator: Any, text: str) -> dict[str, Any]:
    value: dict[str, Any]
    value, _ = load(bare_json(text))
    errors = list(validator.iter_errors(value))
    if errors:
        raise unparsable((error.absolute_path, _reason(error)) for error in errors)
    return value


def _reason(error: Any) -> str:
    """What is wrong, without the value, which jsonschema's own messages print in full."""
    if error.validator == "required":
        missing = [name for name in error.validator_value if name not in error.instance]
        return f"{', '.join(missing)} missing"
    return f"breaks {error.validator} {quoted(error.validator_value, 60)}"


def _parsed(kind: str, pattern: str, parse: Callable[[str], Any]) -> Callable[[Any], Any]:
    compiled = re.compile(pattern, re.ASCII)

    def parsed(value: Any) -> Any:
        try:
            if compiled.fullmatch(value):
                return parse(value.upper())
        except ValueError:
            pass
        raise Misfit(f"{quoted(value)!r} is not a {kind}")

    return parsed


def _clock(text: str) -> time:
    return time.fromisoformat(without_leap_second(text)).replace(tzinfo=None)


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(without_leap_second(text))


_DAY = r"\d{4}-\d\d-\d\d"
_CLOCK = r"\d\d:\d\d(:\d\d(\.\d+)?)?"  # digits beyond the microsecond are dropped, as in pydantic
_OFFSET = r"([Zz]|[+-]\d\d:\d\d)?"
_FORMATS: Mapping[str, Column] = {
    "date": via(_parsed("date (YYYY-MM-DD)", _DAY, date.fromisoformat), DATE),
    "time": via(_parsed("time (RFC 3339)", _CLOCK + _OFFSET, _clock), TIME),
    "date-time": via(_parsed("date-time (RFC 3339)", rf"{_DAY}[Tt ]{_CLOCK}{_OFFSET}", _instant), INSTANT),
}


def _whole(value: Any) -> Any:
    """An integer as JSON Schema defines it, such as 3.0, but not a number that only rounding makes an integer."""
    if isinstance(value, Inexact):
        raise Misfit(f"{quoted(value.literal)} does not fit int64")
    return int(value) if isinstance(value, float) and value.is_integer() else value


_SCALARS: Mapping[str, Column] = {
    "string": STRING,
    "integer": via(_whole, INT64),
    "number": FLOAT64,
    "boolean": BOOL,
}


def _column(schema: Any, root: JsonSchema, above: frozenset[str]) -> Column:
    """The column for a schema. `above` holds the references that enclose it."""
    if not isinstance(schema, Mapping):
        return json_text(nullable=True)
    if "$ref" in schema:
        return _referred(schema, root, above)
    kind, nullable = _without_null(schema.get("type"))
    column = _of_kind(schema, kind, root, above)
    return dataclasses.replace(column, nullable=True) if nullable else column


def _referred(schema: JsonSchema, root: JsonSchema, above: frozenset[str]) -> Column:
    reference = schema["$ref"]
    if reference in above or reference == "#":
        return json_text(nullable=True)
    siblings = {key: value for key, value in schema.items() if key != "$ref"}
    return _column({**_target(root, reference), **siblings}, root, above | {reference})


def _target(root: JsonSchema, reference: str) -> JsonSchema:
    try:
        target = resolve(root, reference)
    except (LookupError, TypeError):
        raise UsageError(f"the schema's $ref {reference!r} leads nowhere") from None
    return target if isinstance(target, Mapping) else {}


def _without_null(kinds: Any) -> tuple[Any, bool]:
    if not isinstance(kinds, list):
        return kinds, False
    present = [kind for kind in kinds if kind != "null"]
    return (present[0] if len(present) == 1 else present), len(present) < len(kinds)


def _of_kind(schema: JsonSchema, kind: Any, root: JsonSchema, above: frozenset[str]) -> Column:
    if "enum" in schema or "const" in schema:
        return _enumeration(schema.get("enum", [schema.get("const")]))
    if "anyOf" in schema or "oneOf" in schema:
        return _union(schema.get("anyOf", schema.get("oneOf")), root, above)
    if "properties" in schema and kind in (None, "object"):
        return _struct(schema, root, above)
    if kind == "array" and "items" in schema and "prefixItems" not in schema:
        return list_of(_column(schema["items"], root, above))
    if kind == "string":
        return _FORMATS.get(schema.get("format", ""), STRING)
    if isinstance(kind, str) and kind in _SCALARS:
        return _SCALARS[kind]
    return json_text(nullable=kind in (None, "null"))


def _enumeration(values: list[Any]) -> Column:
    present = [value for value in values if value is not None]
    column = json_text()
    if all(isinstance(value, str) for value in present):
        column = STRING
    elif all(isinstance(value, int) and not isinstance(value, bool) for value in present):
        column = _SCALARS["integer"]
    return dataclasses.replace(column, nullable=len(present) < len(values))


def _union(members: list[Any], root: JsonSchema, above: frozenset[str]) -> Column:
    present = [member for member in members if member != {"type": "null"}]
    if len(present) == 1:
        column = _column(present[0], root, above)
        return dataclasses.replace(column, nullable=column.nullable or len(members) > 1)
    return json_text(nullable=True)


def _struct(schema: JsonSchema, root: JsonSchema, above: frozenset[str]) -> Column:
    required = schema.get("required", ())
    fields = []
    for name, inner in schema["properties"].items():
        column = _column(inner, root, above)
        nullable = column.nullable or name not in required
        fields.append(Field(name, _getter(name), dataclasses.replace(column, nullable=nullable)))
    return struct_of(fields, dict, str(schema.get("title", "the schema")))


def _getter(name: str) -> Callable[[Any], Any]:
    return lambda record: record.get(name)


def schema_file(path: Path) -> dict[str, Any]:
    """The JSON Schema in a file. Raises `UsageError` when it cannot be read, or is not one."""
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(
            f"`schema`: the file {str(path)!r} cannot be read from {Path.cwd()} ({error.strerror}); "
            f'it is a path to a JSON Schema, or "json_object"'
        ) from None
    except ValueError as error:
        raise UsageError(f"`schema`: {path} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise UsageError(f"`schema`: {path} holds no JSON Schema")
    return document
