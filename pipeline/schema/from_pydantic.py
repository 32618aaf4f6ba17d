r"""Makes a job's `AnswerSchema`: pydantic model <-> JSON schema for the endpoint <-> Arrow type for Parquet.

All columns are known before the first row. What a type becomes:

| in the model | in Parquet |
|---|---|
| `str` | `string` |
| `int` | `int64`; larger is a failure of the row |
| `float` | `float64`, the nearest; NaN and infinity are failures of the row |
| `bool` | `bool` |
| `Decimal` | `decimal128(38, 9)`, or `(max_digits, decimal_places)` of its `Field`; never rounded |
| `date` | `date32` |
| `time` | `string`, HH:MM:SS with a fraction if it has one; `time64[us]` with `time_as="time"`; without its offset |
| `datetime` | `timestamp[us, UTC]`: without an offset taken as UTC, with one converted; to the microsecond |
| `NaiveDatetime` | `timestamp[us]`: as it is written, without its offset |
| `timedelta` | `string`, ISO 8601 |
| `bytes` | `binary` |
| `UUID`, URLs, `EmailStr`, `Path`, IP addresses | `string` |
| `Enum`, `Literal` | `string` when all values are text, `int64` when all are integers, else JSON text |
| `T \| None` | the column of `T`, nullable; every other column is not |
| `list`, `Sequence`, `deque`, `tuple[T, ...]` | `list<element: T>` |
| `set`, `frozenset` | `list<element: T>`, sorted |
| a model | `struct`, its fields in order |
| a `RootModel` inside | the column of its root |
| a model inside itself | JSON text, below the first level |
| other unions, `dict`, `tuple[A, B]`, `TypedDict`, dataclasses, `Any`, models without fields | `string`: JSON text |

Constraints (`Annotated`, `Field`, `Strict`) do not change a column's type. JSON uses the fields' aliases; the columns
have the Python names, because an alias is free text and a warehouse's column name is not. Computed fields, and extra
keys that a model allows, do not become columns. JSON text keeps every digit of a number, and writes a decimal as a
string.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import types
import typing
from collections import abc
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from operator import attrgetter
from pathlib import PurePath
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

import pydantic
from pydantic import BaseModel, RootModel
from pydantic_core import to_jsonable_python

from pipeline.faults import UsageError
from pipeline.schema.columns import (
    BINARY,
    BOOL,
    DATE,
    FLOAT64,
    INSTANT,
    INT64,
    STRING,
    TIME,
    WALL_TIME,
    Column,
    Field,
    bare,
    decimal,
    json_text,
    list_of,
    struct_of,
    via,
)
from pipeline.schema.from_json_schema import shape_of_document
from pipeline.schema.model_validation import input_name, read_answer
from pipeline.schema.shape import AnswerSchema, is_strict
from pipeline.schema.strict_schema import json_schema

__all__ = ["AnswerSchema", "is_strict", "json_schema", "shape_of"]


def shape_of(schema: type[BaseModel] | Mapping[str, Any], name: str | None = None) -> AnswerSchema:
    """The schema of a job's answers, from a pydantic model or a JSON Schema. `name` is sent to the endpoint.

    Raises `UsageError`, with the remedy, for what cannot be a table: no fields, a root that is not an object, names
    that differ only in case, a type without a JSON schema.
    """
    if isinstance(schema, Mapping):
        return shape_of_document(schema, name or str(schema.get("title", "answer")))
    if not (isinstance(schema, type) and issubclass(schema, BaseModel)):
        raise UsageError(f"the schema must be a pydantic model or a JSON Schema, not {schema!r}")
    if issubclass(schema, RootModel):
        raise UsageError(
            f"{schema.__name__} is a RootModel: put its value in a field of a BaseModel, to give it a column name"
        )
    document = json_schema(schema)
    if not schema.model_fields:
        raise UsageError(
            f"{schema.__name__} has no fields, so it has no columns: give it one, or drop the schema for plain text"
        )
    columns = _struct(schema, frozenset())
    return AnswerSchema(name or schema.__name__, document, columns, lambda text: read_answer(schema, text))


_SCALARS: tuple[tuple[type, Column], ...] = (  # the first match counts: bool is an int, datetime is a date
    (bool, BOOL),
    (int, INT64),
    (float, FLOAT64),
    (str, STRING),
    (bytes, BINARY),
    (datetime, INSTANT),
    (pydantic.AwareDatetime, INSTANT),
    (pydantic.PastDatetime, INSTANT),
    (pydantic.FutureDatetime, INSTANT),
    (pydantic.NaiveDatetime, WALL_TIME),
    (date, DATE),
    (pydantic.PastDate, DATE),
    (pydantic.FutureDate, DATE),
    (time, TIME),
    (timedelta, via(to_jsonable_python, STRING)),
)
_TEXTUAL = (
    UUID, PurePath, IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network,
    pydantic.AnyUrl, pydantic.EmailStr, pydantic.NameEmail,
    pydantic.IPvAnyAddress, pydantic.IPvAnyInterface, pydantic.IPvAnyNetwork,
)  # fmt: skip
_LISTS = (list, tuple, collections.deque, abc.Sequence, abc.MutableSequence)
_SETS = (set, frozenset, abc.Set, abc.MutableSet)
_SECRETS = (pydantic.SecretStr, pydantic.SecretBytes, pydantic.Secret)


def _column(annotation: Any, metadata: tuple[Any, ...], above: frozenset[Any]) -> Column:
    """The column for a type. `above` holds the models and aliases that enclose it."""
    origin = typing.get_origin(annotation) or annotation
    arguments = typing.get_args(annotation)
    if origin is Annotated:
        return _column(arguments[0], (*metadata, *annotation.__metadata__), above)
    if hasattr(origin, "__value__"):  # an alias: `type Name = ...`
        value = origin.__value__[arguments] if arguments else origin.__value__
        return _json_text() if origin in above else _column(value, metadata, above | {origin})
    if hasattr(origin, "__supertype__"):  # a NewType
        return _column(origin.__supertype__, metadata, above)
    if isinstance(origin, TypeVar):
        return _column(origin.__bound__ or Any, metadata, above)
    if origin in (typing.Union, types.UnionType):
        return _union(arguments, metadata, above)
    if origin is Literal:
        return _enumeration(arguments)
    if origin in _LISTS or origin in _SETS:
        return _list(origin, arguments, above)
    return _class(origin, metadata, above) if isinstance(origin, type) else _json_text(nullable=origin is Any)


def _class(kind: type, metadata: tuple[Any, ...], above: frozenset[Any]) -> Column:
    if issubclass(kind, BaseModel):
        return _model(kind, above)
    if issubclass(kind, Enum):
        return _enumeration(tuple(kind))
    if issubclass(kind, Decimal):
        return _decimal(metadata)
    if issubclass(kind, _TEXTUAL) or hasattr(kind, "unicode_string"):  # the last: URLs with several hosts
        return via(str, STRING)
    if issubclass(kind, _SECRETS):
        raise UsageError(f"{kind.__name__} hides its value, so it cannot be a column: use str or bytes")
    scalars = (column for scalar, column in _SCALARS if issubclass(kind, scalar))
    return next(scalars, _json_text(nullable=kind in (Any, object, type(None), pydantic.Json)))


def _union(members: tuple[Any, ...], metadata: tuple[Any, ...], above: frozenset[Any]) -> Column:
    present = [member for member in members if not _is_none(member)]
    if len(present) == 1:
        return dataclasses.replace(_column(present[0], metadata, above), nullable=True)
    return _json_text(nullable=len(present) < len(members))


def _is_none(member: Any) -> bool:
    return member is type(None) or (typing.get_origin(member) is Annotated and _is_none(member.__origin__))


def _enumeration(members: tuple[Any, ...]) -> Column:
    values = [bare(member) for member in members if member is not None]
    nullable = len(values) < len(members)
    if all(isinstance(value, str) for value in values):
        return dataclasses.replace(via(bare, STRING), nullable=nullable)
    if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        return dataclasses.replace(via(bare, INT64), nullable=nullable)
    return _json_text(nullable=nullable)


def _decimal(metadata: tuple[Any, ...]) -> Column:
    limits: dict[str, int] = {}
    for item in _flat(metadata):
        for limit in ("max_digits", "decimal_places"):
            if getattr(item, limit, None) is not None:
                limits[limit] = getattr(item, limit)
    if "decimal_places" in limits:
        return decimal(limits.get("max_digits", 38), limits["decimal_places"])
    return decimal()


def _flat(metadata: Iterable[Any]) -> Iterator[Any]:
    for item in metadata:
        yield from _flat(item.metadata) if isinstance(item, pydantic.fields.FieldInfo) else (item,)


def _list(origin: Any, arguments: tuple[Any, ...], above: frozenset[Any]) -> Column:
    if origin is tuple and arguments and arguments[1:] != (Ellipsis,):
        return _json_text()
    return list_of(_column(arguments[0] if arguments else Any, (), above), ordered=origin not in _SETS)


def _model(model: type[BaseModel], above: frozenset[Any]) -> Column:
    if model in above or not model.model_fields:
        return _json_text()
    if issubclass(model, RootModel):
        root = model.model_fields["root"]
        return via(attrgetter("root"), _column(root.annotation, tuple(root.metadata), above | {model}))
    return _struct(model, above)


def _struct(model: type[BaseModel], above: frozenset[Any]) -> Column:
    fields = [
        Field(name, attrgetter(name), _column(info.annotation, tuple(info.metadata), above | {model}))
        for name, info in model.model_fields.items()
    ]
    return struct_of(fields, model, model.__name__)


def _json_text(*, nullable: bool = False) -> Column:
    return json_text(_jsonable, nullable=nullable)


def _jsonable(value: Any) -> Any:
    """The value as JSON types, with nothing rounded or hidden. Raises ValueError when JSON cannot represent it.

    Pydantic's own serialization leaves the order of sets to the hash seed, and writes NaN as null.
    """
    value = bare(value)
    match value:
        case None | str() | int() | float():
            return value
        case RootModel():
            return _jsonable(value.root)
        case BaseModel():
            named = {input_name(name, info): getattr(value, name) for name, info in type(value).model_fields.items()}
            return _jsonable(named | (value.model_extra or {}))
        case Mapping():
            return {_key_text(key): _jsonable(item) for key, item in value.items()}
        case list() | tuple() | collections.deque():
            return [_jsonable(item) for item in value]
        case set() | frozenset():
            return sorted((_jsonable(item) for item in value), key=json.dumps)
        case _ if dataclasses.is_dataclass(value):
            return {field.name: _jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
        case _:
            return to_jsonable_python(value)


def _key_text(key: Any) -> str:
    return key if type(key) is str else next(iter(to_jsonable_python({bare(key): None})))
