"""Which Arrow type holds a column of JSON values: settled over all rows of all files, before the first one is used.

Types form a semilattice: `merge` is associative, idempotent and, but for the order of struct fields, commutative.
So the outcome does not depend on how the rows are cut into blocks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from types import NoneType
from typing import Any

import orjson
import pyarrow as pa

from pipeline.faults import Misuse
from pipeline.source.layout import Conflict

# Three types that JSON values never have stand for what Arrow has no type for. They are gone once a column is settled.
SMALL_INT = pa.int32()  # an integer that a double holds exactly
JSON_TEXT = pa.binary()  # lists or objects that fit no one type
HUGE_INT = pa.uint64()  # an integer beyond 64 bits

_NULL, _BOOL, _INT, _DOUBLE, _STRING = pa.null(), pa.bool_(), pa.int64(), pa.float64(), pa.string()
_NUMBERS = (SMALL_INT, _INT, _DOUBLE, HUGE_INT)
_EXACT = 2**53

ALWAYS_JSON = frozenset({"messages", "body"})
"""Columns that are kept as JSON text whenever they hold lists or objects: chats, whose content varies by nature."""

MAX_COLUMNS = 2_000
MAX_FIELDS = 256
"""An object with more fields than this is a mapping, not a record."""
MAX_DEPTH = 10
"""Lists and objects nested deeper are kept as JSON text: several readers of Parquet stop at 15."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value stands, for people."""

    path: str
    line: int

    def __str__(self) -> str:
        return f"{self.path} line {self.line}"


def merge(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The narrowest type that holds the values of both, or None when no type does so exactly."""
    if other in (one, _NULL):
        return one
    if one == _NULL:
        return other
    if one in _NUMBERS and other in _NUMBERS:
        return _merge_numbers({one, other})
    if pa.types.is_list(one) and pa.types.is_list(other):
        inner = merge(one.value_type, other.value_type)
        return None if inner is None else pa.list_(inner)
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        return _merge_structs(one, other)
    return None


def _merge_numbers(kinds: set[pa.DataType]) -> pa.DataType | None:
    if kinds == {SMALL_INT, _INT}:
        return _INT
    return _DOUBLE if kinds == {SMALL_INT, _DOUBLE} else None


def _merge_structs(one: pa.StructType, other: pa.StructType) -> pa.DataType | None:
    fields = {field.name: field.type for field in one}
    for field in other:
        merged = merge(fields.get(field.name, _NULL), field.type)
        if merged is None:
            return None
        fields[field.name] = merged
    return pa.struct(list(fields.items())) if len(fields) <= MAX_FIELDS else None


def _merge_columns(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    merged = merge(one, other)
    return JSON_TEXT if merged is None and _is_nested(one) and _is_nested(other) else merged


def _is_nested(kind: pa.DataType) -> bool:
    return bool(kind == JSON_TEXT or pa.types.is_nested(kind))


def shape(values: Sequence[Any], *, as_text: bool = False) -> pa.DataType | None:
    """The type of JSON values, with the markers above, or None when they fit no one type.

    With `as_text`, lists and objects count as JSON text at once.
    """
    match sorted(kind.__name__ for kind in set(map(type, values)) - {NoneType}):
        case []:
            return _NULL
        case ["bool"]:
            return _BOOL
        case ["str"]:
            return _STRING
        case ["int"]:
            return _shape_of_ints(values)
        case ["float"]:
            return _DOUBLE
        case ["float", "int"]:
            ints = _shape_of_ints([value for value in values if type(value) is int])
            return merge(ints, _DOUBLE)
        case ["dict"] | ["list"] | ["dict", "list"]:
            return JSON_TEXT if as_text else _shape_of_nested(values)
    return None


def _shape_of_ints(values: Sequence[int | None]) -> pa.DataType:
    try:
        return _mark(pa.array(values, _INT))
    except OverflowError:
        return HUGE_INT


def _shape_of_nested(values: Sequence[Any]) -> pa.DataType:
    try:
        array = pa.array(values)
    except (pa.ArrowException, OverflowError):  # how Arrow says that the values have no type in common
        return JSON_TEXT
    return _mark(array) if _fits(array.type) else JSON_TEXT


def _fits(kind: pa.DataType, depth: int = 1) -> bool:
    if (kind.num_fields and depth > MAX_DEPTH) or kind.num_fields > MAX_FIELDS:
        return False
    return all(_fits(kind.field(index).type, depth + 1) for index in range(kind.num_fields))


def _mark(array: pa.Array) -> pa.DataType:
    """The array's type with its integers told apart by size."""
    if pa.types.is_list(array.type):
        return pa.list_(_mark(array.flatten()))
    if pa.types.is_struct(array.type):
        return pa.struct([(field.name, _mark(array.field(field.name))) for field in array.type])
    if array.type != _INT:
        return array.type
    import pyarrow.compute as pc  # a third of what pyarrow takes to load, and many inputs hold no integers

    low, high = pc.min_max(array).as_py().values()
    return SMALL_INT if low is None or (low >= -_EXACT and high <= _EXACT) else _INT


def _settled(kind: pa.DataType) -> pa.DataType | None:
    """The type without markers, or None when only JSON text can hold the values."""
    if pa.types.is_list(kind):
        inner = _settled(kind.value_type)
        return None if inner is None else pa.list_(inner)
    if pa.types.is_struct(kind):
        fields = [(field.name, _settled(field.type)) for field in kind]
        return pa.struct(fields) if fields and all(inner is not None for _, inner in fields) else None
    if kind == JSON_TEXT:
        return None
    return {_NULL: _STRING, SMALL_INT: _INT}.get(kind, kind)


class Columns:
    """The columns seen so far and their types. Memory grows with the number of columns, not of rows."""

    def __init__(self) -> None:
        self._types: dict[str, pa.DataType] = {}
        self._first: dict[str, Place] = {}
        self._conflicts: dict[str, Conflict] = {}

    def add(self, records: Sequence[Mapping[str, Any]], path: str, lines: Sequence[int]) -> None:
        """Take in records of one file, with their line numbers. Raises `Misuse` at too many columns."""
        names = dict.fromkeys(chain.from_iterable(records))
        if len(self._types.keys() | names.keys()) > MAX_COLUMNS:
            raise Misuse(
                f"{path}: more than {MAX_COLUMNS:,} different keys by line {lines[-1]}; put data that is keyed by "
                "values into one nested object"
            )
        for name in names:
            if name not in self._conflicts:
                self._add_column(name, [record.get(name) for record in records], path, lines)

    def _add_column(self, name: str, values: Sequence[Any], path: str, lines: Sequence[int]) -> None:
        before = self._types.get(name, _NULL)
        block = shape(values, as_text=name in ALWAYS_JSON or before == JSON_TEXT)
        merged = None if block is None else _merge_columns(before, block)
        if merged is None or merged == HUGE_INT:
            self._conflicts[name] = self._conflict(name, before, values, [Place(path, line) for line in lines])
        elif before == _NULL and merged != _NULL:
            index = next(index for index, value in enumerate(values) if value is not None)
            self._first[name] = Place(path, lines[index])
        self._types[name] = before if merged is None else merged

    def _conflict(self, name: str, before: pa.DataType, values: Sequence[Any], places: Sequence[Place]) -> Conflict:
        """The first value of a block that does not fit what came before it."""
        known, first = before, self._first.get(name)
        for value, place in zip(values, places, strict=True):
            kind = shape([value])
            merged = None if kind is None else _merge_columns(known, kind)
            if kind == HUGE_INT:
                return Conflict(name, _huge(name, place))
            if merged is None:
                return Conflict(name, _mixed(name, (first, known), (place, kind)))
            first = place if first is None and value is not None else first
            known = merged
        raise AssertionError(f"{name}: the values fit one by one but not together")

    def types(self) -> dict[str, pa.DataType]:
        """Every column without a conflict, with its settled type; JSON text is a string."""
        settled = {name: _settled(kind) for name, kind in self._types.items() if name not in self._conflicts}
        return {name: _STRING if kind is None else kind for name, kind in settled.items()}

    def as_json(self) -> tuple[str, ...]:
        """The columns whose lists and objects are kept as JSON text."""
        settled = ((name, _settled(kind)) for name, kind in self._types.items() if name not in self._conflicts)
        return tuple(name for name, kind in settled if kind is None)

    def words(self) -> dict[str, str]:
        """Every column with its type in words."""
        types, texts = self.types(), self.as_json()
        words = {name: "string (JSON)" if name in texts else str(types.get(name, "")) for name in self._types}
        return words | dict.fromkeys(self._conflicts, "mixed")

    def conflicts(self) -> tuple[Conflict, ...]:
        """The columns that fit no one type."""
        return tuple(self._conflicts.values())


def _mixed(name: str, one: tuple[Place | None, pa.DataType], other: tuple[Place, pa.DataType | None]) -> str:
    exact = "; a double does not hold integers beyond 2^53 exactly" if {_INT, _DOUBLE} == {one[1], other[1]} else ""
    return (
        f"column {name!r} is {_word(one[1])} in {one[0]} but {_word(other[1])} in {other[0]}{exact}: "
        "leave it out with `keep=[...]`, or make it one type in the input"
    )


def _huge(name: str, place: Place) -> str:
    return (
        f"column {name!r} holds an integer beyond 64 bits in {place}: "
        "leave it out with `keep=[...]`, or quote it as a string in the input"
    )


def _word(kind: pa.DataType | None) -> str:
    words = {
        SMALL_INT: "an integer",
        _INT: "an integer",
        _DOUBLE: "a fraction",
        _STRING: "a string",
        _BOOL: "a boolean",
    }
    return words.get(kind, "a list or an object")


def json_text(value: Any) -> str:
    """The value as compact JSON, integers of any size exact."""
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:  # an integer beyond 64 bits
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
