"""Answer schemas: sent to the endpoint, checked when an answer arrives, and turned into columns."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from typing import Any

from pipeline.faults import Fault, Unparsable
from pipeline.schema.columns import Column, Misfit, times_as_text
from pipeline.schema.exact_numbers import Inexact, json_of
from pipeline.text import excerpt

JsonSchema = Mapping[str, Any]

_MAPS = ("properties", "$defs", "definitions", "patternProperties", "dependentSchemas")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLES = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")
_BEYOND_STRICT = {
    "allOf", "oneOf", "not", "if", "then", "else", "prefixItems", "patternProperties", "propertyNames",
    "dependentRequired", "dependentSchemas", "contains",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class AnswerSchema:
    """The schema of a job's answers. Build it with `pipeline.schema.from_pydantic.shape_of`, once per job.

    `json_schema` is sent to the endpoint; `columns` is the struct in the dataset's `parsed` column; `read` parses an
    answer's text into a value: a model instance or, for a schema file, a dict.
    """

    name: str
    json_schema: JsonSchema
    columns: Column
    read: Callable[[str], Any]

    @property
    def response_format(self) -> dict[str, Any]:
        """The request's `response_format`; `strict` is true only where the strict subset can express the schema."""
        name = re.sub(r"[^A-Za-z0-9_-]", "_", self.name)[:64]
        schema = {"name": name, "schema": self.json_schema, "strict": is_strict(self.json_schema)}
        return {"type": "json_schema", "json_schema": schema}

    def with_times_as_text(self) -> AnswerSchema:
        """The same schema with times of day as text columns."""
        return replace(self, columns=times_as_text(self.columns))

    @property
    def fingerprint(self) -> str:
        """Canonical JSON of the schema and the columns: equal when answers and columns have the same meaning."""
        whole = {"columns": self.columns.label, "schema": self.json_schema}
        return json.dumps(whole, sort_keys=True, ensure_ascii=False, separators=(",", ":"))

    def arrow_type(self) -> Any:
        """The `pyarrow.StructType` of the columns, known before the first row."""
        return self.columns.arrow()

    def parse(self, text: str) -> Any:
        """The answer's value. Raises `Unparsable`, one line of at most 300 characters, if the text does not fit."""
        try:
            return self.read(text)
        except RecursionError:
            raise Unparsable("nested too deeply") from None
        except Fault:
            raise
        except Exception as error:
            # A job's own validator may raise anything: an answer that it cannot process does not fit.
            raise unparsable([((), type(error).__name__)]) from error

    def plain(self, value: Any) -> dict[str, Any]:
        """The value as plain Python for `arrow_type()`. Raises `Unparsable` if a part does not fit exactly."""
        try:
            record: dict[str, Any] = self.columns.plain(value)
        except Misfit as misfit:
            raise unparsable([(misfit.path, misfit.reason)]) from None
        except RecursionError:
            raise Unparsable("nested too deeply") from None
        return record


def unparsable(problems: Iterable[tuple[Iterable[str | int], str]]) -> Unparsable:
    """The fault for these problems, each a path and a reason: the first three, on one line of 300 characters."""
    lines = []
    found = list(problems)
    for path, reason in found[:3]:
        place = _path(path)
        lines.append(f"{place}: {reason}" if place else reason)
    if len(found) > 3:
        lines.append(f"and {len(found) - 3} more")
    line = "".join(char if char.isprintable() else "?" for char in " ".join("; ".join(lines).split()))
    return Unparsable(excerpt(line, 300))


def _path(steps: Iterable[str | int]) -> str:
    text = ""
    for step in steps:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += ("." if text else "") + (step if step.isprintable() else ascii(step))
    return excerpt(text, 90)


def bare_json(text: str) -> str:
    """The JSON of an answer, without surrounding whitespace, byte order mark and ``` fence."""
    text = text.strip("\ufeff \t\r\n")
    start, end = text.find("```"), text.rfind("```")
    if text[:1] in "{[" or start == end:
        return text
    head, newline, body = text[start + 3 : end].partition("\n")
    if newline and (not head.strip() or head.strip().isalnum()):
        return body.strip()
    return (head + newline + body).strip().removeprefix("json").strip()


def load(text: str) -> tuple[Any, list[Inexact]]:
    """The parsed JSON, and the `Inexact` numbers in it.

    Raises `Unparsable` for what is not JSON, and for JSON that parsers disagree about: a repeated key, NaN (RFC 8259,
    sections 4 and 6). A number beyond float64 becomes an infinite `Inexact`, which only JSON text keeps.
    """
    inexact: list[Inexact] = []

    def number(literal: str) -> float:
        value = _float(literal)
        if isinstance(value, Inexact):
            inexact.append(value)
        return value

    if not text:
        raise Unparsable("the answer is empty")
    try:
        if not _MAYBE_INEXACT.search(text):
            return _PLAIN.decode(text), inexact
        tree = json.loads(text, object_pairs_hook=_object, parse_float=number, parse_constant=_constant)
    except json.JSONDecodeError as error:
        raise Unparsable(f"not JSON: {error.msg} at character {error.pos}") from None
    except ValueError:
        raise Unparsable("holds an integer of thousands of digits") from None
    except RecursionError:
        raise Unparsable("nested too deeply") from None
    return tree, inexact


def with_numbers_as_text(text: str, literals: Collection[str]) -> str:
    """The same JSON, with the given numbers as strings of their digits."""
    return json_of(json.loads(text, parse_float=lambda literal: literal if literal in literals else _float(literal)))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise Unparsable("the same key twice in one object")
    return record


def _constant(name: str) -> float:
    raise Unparsable(f"{name} is not a JSON number")


_PLAIN = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)
_MAYBE_INEXACT = re.compile(r"[-+.\deE]{17}|\d[eE]")
"""Matches in every text with a number that `_float` must examine again, and in few others."""


def _float(literal: str) -> float:
    value = float(literal)
    if len(literal) < 17 and "e" not in literal and "E" not in literal:
        return value  # 15 digits always survive
    if math.isfinite(value) and _is_kept(value, literal):
        return value
    return Inexact.of(literal)


def _is_kept(value: float, literal: str) -> bool:
    try:
        exact = Decimal(literal)
    except InvalidOperation:  # an exponent of 20 digits: the float is 0 or infinite
        return False
    return exact == Decimal(repr(value)) and (exact == Decimal(value) or not value.is_integer())


def resolve(root: JsonSchema, reference: str) -> Any:
    """The target of a `$ref` within the document, "#/a/b". Raises LookupError or TypeError when there is none."""
    target: Any = root
    if reference == "#":
        return root
    for step in reference.removeprefix("#/").split("/"):
        target = target[step.replace("~1", "/").replace("~0", "~")]
    return target


def subschemas(schema: JsonSchema) -> Iterator[JsonSchema]:
    """The schemas directly inside this one. Property names are not mistaken for keywords."""
    for key, value in schema.items():
        if key in _MAPS and isinstance(value, Mapping):
            yield from (inner for inner in value.values() if isinstance(inner, Mapping))
        elif key in _LISTS and isinstance(value, list):
            yield from (inner for inner in value if isinstance(inner, Mapping))
        elif key in _SINGLES and isinstance(value, Mapping):
            yield value


def mapped(schema: JsonSchema, change: Callable[[JsonSchema], Any]) -> dict[str, Any]:
    """A copy with `change` applied to the schemas directly inside."""

    def of(value: Any) -> Any:
        return change(value) if isinstance(value, Mapping) else value

    copy = dict(schema)
    for key, value in schema.items():
        if key in _MAPS and isinstance(value, Mapping):
            copy[key] = {name: of(inner) for name, inner in value.items()}
        elif key in _LISTS and isinstance(value, list):
            copy[key] = [of(inner) for inner in value]
        elif key in _SINGLES:
            copy[key] = of(value)
    return copy


def is_strict(schema: JsonSchema) -> bool:
    """Whether the strict subset of structured outputs can express the schema: no free-form object, nothing optional.

    https://platform.openai.com/docs/guides/structured-outputs#supported-schemas
    """
    return _is_strict_here(schema) and all(map(is_strict, subschemas(schema)))


def _is_strict_here(schema: JsonSchema) -> bool:
    if _BEYOND_STRICT & schema.keys() or not {"type", "anyOf", "$ref", "enum", "const"} & schema.keys():
        return False
    kinds = schema.get("type")
    if "object" not in ([kinds] if isinstance(kinds, str) else kinds or ()):
        return True
    required = set(schema.get("required", ()))
    return schema.get("additionalProperties") is False and required == schema.get("properties", {}).keys()
