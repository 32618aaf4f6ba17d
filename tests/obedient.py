"""Answers that obey a JSON Schema to the letter and mean nothing by it: what an endpoint may send, and sometimes does.

Written from the standards (JSON Schema 2020-12, RFC 3339, 4122, 3986), not from our own reading of them: `obeys` has
the last word, and that is jsonschema's validator with formats checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from typing import Any

import jsonschema
from hypothesis import strategies as st

Schema = Mapping[str, Any]
Instances = st.SearchStrategy[Any]

FORMATS = jsonschema.FormatChecker()
_DATE_TIME = re.compile(
    r"\d{4}-\d\d-\d\d[Tt]([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)"
)
_URI = re.compile(
    r"[A-Za-z][A-Za-z0-9+.-]*:(//([\w.~!$&'()*+,;=:-]*@)?([\w.~-]+|\[[0-9a-f:.]+\])(:\d*)?(/[\w.~!$&'()*+,;=:@/-]*)?"
    r"|[\w.~!$&'()*+,;=:@-][\w.~!$&'()*+,;=:@/-]*)(\?[\w.~!$&'()*+,;=:@/?-]*)?(#[\w.~!$&'()*+,;=:@/?-]*)?",
    re.ASCII,
)
_DURATION = re.compile(
    r"P(?:\d+W|(?=.)(?:\d+Y(?:\d+M(?:\d+D)?)?|\d+M(?:\d+D)?|\d+D)?(?:T(?:\d+H(?:\d+M(?:\d+S)?)?|\d+M(?:\d+S)?|\d+S))?)"
)


@FORMATS.checks("date-time")
def _is_date_time(value: object) -> bool:
    return not isinstance(value, str) or bool(_DATE_TIME.fullmatch(value))


@FORMATS.checks("time")
def _is_time(value: object) -> bool:
    return not isinstance(value, str) or _is_date_time(f"2026-06-30T{value}")


@FORMATS.checks("uri")
def _is_uri(value: object) -> bool:
    return not isinstance(value, str) or bool(_URI.fullmatch(value))


@FORMATS.checks("duration")
def _is_duration(value: object) -> bool:
    return not isinstance(value, str) or bool(_DURATION.fullmatch(value))


def obeys(schema: Schema, instance: Any) -> bool:
    """Whether the standard calls the instance valid."""
    return bool(jsonschema.Draft202012Validator(schema, format_checker=FORMATS).is_valid(instance))


def answers(schema: Schema) -> st.SearchStrategy[str]:
    """JSON texts of instances of the schema."""
    return instances(schema, schema).filter(lambda value: obeys(schema, value)).map(json.dumps)


def instances(schema: Any, root: Schema, depth: int = 0) -> Instances:
    """Instances of the schema, most of them valid."""
    if not isinstance(schema, Mapping):
        return _ANYTHING if schema else st.nothing()
    if "$ref" in schema:
        target: Any = root
        for step in schema["$ref"].split("/")[1:]:
            target = target[step]
        return st.deferred(lambda: instances(target, root, depth + 1))
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    for union in ("anyOf", "oneOf"):
        if union in schema:
            rest = {key: value for key, value in schema.items() if key not in {union, "title", "description"}}
            return st.one_of([instances({**rest, **branch}, root, depth) for branch in schema[union]])
    kind = schema.get("type")
    if isinstance(kind, list):
        return st.one_of([instances({**schema, "type": each}, root, depth) for each in kind])
    return _of_type(kind, schema, root, depth)


def _of_type(kind: str | None, schema: Schema, root: Schema, depth: int) -> Instances:
    match kind:
        case "null":
            return st.none()
        case "boolean":
            return st.booleans()
        case "string":
            return _texts(schema)
        case "integer" | "number":
            return _numbers(schema, whole=kind == "integer")
        case "array":
            return _lists(schema, root, depth)
        case "object":
            return _objects(schema, root, depth)
    return _ANYTHING


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_TEXT, inner, max_size=2),
    max_leaves=4,
)
_DAYS = st.dates().map(lambda day: day.isoformat())
_FRACTION = st.sampled_from(["", ".5", ".123456", ".1234567", ".000000000001"])
_CLOCK = st.builds("{:%H:%M:%S}{}".format, st.times(), _FRACTION)
_OFFSET = st.sampled_from(["Z", "z", "+00:00", "-00:00", "+02:00", "-11:30", "+23:59"])
_TIMES = st.builds("{}{}".format, _CLOCK | st.just("23:59:60"), _OFFSET)
_INNER_DAYS = st.dates(min_value=date(2, 1, 1), max_value=date(9998, 1, 1))
_NAMED: Mapping[str, Instances] = {
    "date": _DAYS,
    "time": _TIMES,
    "date-time": st.builds("{}{}{}".format, _INNER_DAYS, st.sampled_from("Tt"), _TIMES),
    "duration": st.sampled_from(["P1Y", "P3W", "P2M10D", "PT36H", "P1Y2M3DT4H5M6S", "PT0S", "P400D", "PT100M", "P0D"]),
    "uuid": st.uuids().map(str) | st.uuids().map(lambda ident: str(ident).upper()),
    "ipv4": st.ip_addresses(v=4).map(str),
    "ipv6": st.ip_addresses(v=6).map(str),
    "email": st.sampled_from(["a@example.com", "x.y-z@mail.example.co"]),
    "uri": st.sampled_from(["https://example.com/a?b=c#d", "http://example.com", "urn:isbn:1", "ftp://example.com/a"]),
}


def _texts(schema: Schema) -> Instances:
    pattern, named = schema.get("pattern"), _NAMED.get(schema.get("format", ""))
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    if pattern is None:
        free = st.text(st.characters(exclude_categories=["Cs"]), min_size=least, max_size=most or least + 12)
        return free if named is None else named
    # `$` is the end, as ECMA-262 has it, and not a place before a line break.
    matching = st.from_regex(re.compile(re.sub(r"(?<!\\)\$(?=$|\))", r"\\Z", pattern), re.ASCII))
    if named is None:
        return matching
    version = re.search(r"-(\d)\[0-9a-fA-F\]\{3\}", pattern)
    if version is None:
        return matching | named
    return st.uuids(version=int(version[1]) if version[1] in "12345" else None).map(str)  # type: ignore[arg-type]


def _numbers(schema: Schema, *, whole: bool) -> Instances:
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    step = schema.get("multipleOf")
    if step is not None:
        size = Decimal(str(step))
        most = min(10**14, int(Decimal(high) / size) if high is not None else 10**14)
        least = max(-(10**14), int(Decimal(low) / size) if low is not None else -(10**14))
        return st.integers(least, most).map(lambda count: _written(count * size))
    if whole:
        bounds = (max(-(2**63), -(2**63) if low is None else low), min(2**63 - 1, 2**63 - 1 if high is None else high))
        # 3.0 is an integer, too.
        return st.integers(*bounds) | st.integers(-(2**50), 2**50).map(float)
    return st.floats(low, high, allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53)


def _written(number: Decimal) -> int | float:
    return int(number) if number == number.to_integral_value() else float(number)


def _lists(schema: Schema, root: Schema, depth: int) -> Instances:
    first = [instances(place, root, depth + 1) for place in schema.get("prefixItems", ())]
    least = max(0, schema.get("minItems", 0) - len(first))
    most = least if depth > 4 or first or schema.get("items") is False else schema.get("maxItems", least + 3)
    rest = st.lists(instances(schema.get("items", True) or True, root, depth + 1), min_size=least, max_size=most)
    return st.tuples(st.tuples(*first), rest).map(lambda both: [*both[0], *both[1]])


def _objects(schema: Schema, root: Schema, depth: int) -> Instances:
    properties, needed = schema.get("properties", {}), schema.get("required", ())
    known = {name: instances(inner, root, depth + 1) for name, inner in properties.items() if name in needed}
    maybe = {name: instances(inner, root, depth + 1) for name, inner in properties.items() if name not in needed}
    more = schema.get("additionalProperties", True)
    fixed = st.fixed_dictionaries(known, optional={} if depth > 3 else maybe)
    if more is False or properties:
        return fixed
    names = instances({"type": "string", **schema.get("propertyNames", {})}, root)
    free = st.dictionaries(names, instances(more, root, depth + 1), max_size=3)
    return st.tuples(free, fixed).map(lambda both: {**both[0], **both[1]})
