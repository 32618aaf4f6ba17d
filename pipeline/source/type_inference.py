"""Infers the Arrow type of each column of JSON values, over all rows of all files, before the first row is used.

Types form a semilattice: `merge` is associative, idempotent and, except for the order of struct fields, commutative.
So the result does not depend on how the rows are divided into blocks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from types import NoneType
from typing import Any

import orjson
import pyarrow as pa

from pipeline.source.plain_types import EXACT, MAX_DEPTH, MAX_FIELDS, SMALL_INT, columns_of, is_scalar, plain_type

# Four types that JSON values never have mark what Arrow has no type for. A column's final type contains none of them.
# One is SMALL_INT: integers that a double holds exactly.
JSON_TEXT = pa.binary()  # lists or objects without a common type
HUGE_INT = pa.uint64()  # integers beyond 64 bits
MIXED = pa.large_binary()  # a column of values without a common type: text

_NULL, _BOOL, _INT, _DOUBLE, _STRING = pa.null(), pa.bool_(), pa.int64(), pa.float64(), pa.string()
_NUMBERS = (SMALL_INT, _INT, _DOUBLE, HUGE_INT)

GIVEN: Mapping[str, pa.DataType] = {"integer": _INT, "number": _DOUBLE, "boolean": _BOOL}
"""The types of columns for which a job names one, also if they hold no value."""

ALWAYS_JSON = frozenset({"messages", "body"})
"""Columns that are kept as JSON text whenever they hold lists or objects: chats, whose content varies by row."""

MAX_COLUMNS = 2_000


def merge(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The narrowest type that holds the values of both exactly, or None when there is none."""
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


def merge_columns(one: pa.DataType, other: pa.DataType | None) -> pa.DataType:
    """As `merge`, for whole columns, which can hold anything as text; None means values without a common type."""
    if other is None or MIXED in (one, other):
        return MIXED
    merged = merge(one, other)
    if merged == HUGE_INT:
        return MIXED
    if merged is None:
        return JSON_TEXT if _is_nested(one) and _is_nested(other) else MIXED
    return merged


def _is_nested(kind: pa.DataType) -> bool:
    return bool(kind == JSON_TEXT or pa.types.is_nested(kind))


def infer_type(values: Sequence[Any], *, as_text: bool = False) -> pa.DataType | None:
    """The type of JSON values, possibly one of the markers above, or None when they have no common type.

    With `as_text`, lists and objects always count as JSON text.
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
    except (pa.ArrowException, OverflowError):  # raised by Arrow when the values have no common type
        return JSON_TEXT
    return _mark(array) if _fits(array.type) else JSON_TEXT


def _fits(kind: pa.DataType, depth: int = 1) -> bool:
    if (kind.num_fields and depth > MAX_DEPTH) or kind.num_fields > MAX_FIELDS:
        return False
    return all(_fits(kind.field(index).type, depth + 1) for index in range(kind.num_fields))


def _mark(array: pa.Array) -> pa.DataType:
    """The array's type, with its integers marked by size."""
    if pa.types.is_list(array.type):
        return pa.list_(_mark(array.flatten()))
    if pa.types.is_struct(array.type):
        return pa.struct([(field.name, _mark(array.field(field.name))) for field in array.type])
    if array.type != _INT:
        return array.type
    import pyarrow.compute as pc  # a third of pyarrow's load time, and many inputs hold no integers

    low, high = pc.min_max(array).as_py().values()
    return SMALL_INT if low is None or (low >= -EXACT and high <= EXACT) else _INT


def _settled(kind: pa.DataType) -> pa.DataType | None:
    """The final type, without markers, or None when only JSON text can hold the values."""
    if pa.types.is_list(kind):
        inner = _settled(kind.value_type)
        return None if inner is None else pa.list_(inner)
    if pa.types.is_struct(kind):
        fields = [(field.name, _settled(field.type)) for field in kind]
        return pa.struct(fields) if fields and all(inner is not None for _, inner in fields) else None
    if kind in (JSON_TEXT, MIXED):
        return None
    return {_NULL: _STRING, SMALL_INT: _INT}.get(kind, kind)


class ColumnTypes:
    """The columns seen so far and their types. Memory grows with the number of columns, not rows.

    Columns in `given`, by name the keys of `GIVEN`, have these types from the start: their values fit them. Those in
    `known` have had values before.
    """

    def __init__(self, given: Mapping[str, str] | None = None, known: Mapping[str, pa.DataType] | None = None) -> None:
        self._types: dict[str, pa.DataType] = dict(known or {})
        self._given = {name: GIVEN[kind] for name, kind in (given or {}).items()}

    def add(self, records: Sequence[Mapping[str, Any]]) -> list[int]:
        """Add records. Returns the indices of those left out because they would make too many columns."""
        refused: list[int] = []
        names = dict.fromkeys(chain.from_iterable(records))
        if len(self._types.keys() | names.keys()) > MAX_COLUMNS:
            records, refused = self._fitting(records)
            names = dict.fromkeys(chain.from_iterable(records))
        for name in names:
            before = self._types.get(name, self._given.get(name, _NULL))
            values = [record.get(name) for record in records]
            block = infer_type(values, as_text=name in ALWAYS_JSON or before == JSON_TEXT) if before != MIXED else MIXED
            self._types[name] = merge_columns(before, block)
        return refused

    def examine(self, records: Sequence[Mapping[str, Any]]) -> tuple[dict[str, pa.DataType], bool] | None:
        """The types that the columns would have with these records, for `accept`; and whether all values are exact.

        They are exact if none can be an integer beyond 64 bits that was read as a double, and none is nested deeper
        than types are. None when the records would make too many columns.
        """
        columns: Mapping[str, Sequence[Any]] | None = columns_of(records)
        if columns is None:
            names = dict.fromkeys(chain.from_iterable(records))
            columns = {name: [record.get(name) for record in records] for name in names}
        if len(self._types.keys() | columns.keys()) > MAX_COLUMNS:
            return None
        types: dict[str, pa.DataType] = {}
        exact = True
        for name, values in columns.items():
            before = self._types.get(name, self._given.get(name, _NULL))
            as_text = name in ALWAYS_JSON or before == JSON_TEXT
            block = None if as_text or before == MIXED else plain_type(values)
            if block is None:
                exact = exact and is_scalar(values)
                block = MIXED if before == MIXED else infer_type(values, as_text=as_text)
            types[name] = before if block == before else merge_columns(before, block)
        return types, exact

    def accept(self, types: Mapping[str, pa.DataType]) -> None:
        """Add the records that were examined last."""
        self._types |= types

    def _fitting(self, records: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[int]]:
        known, fitting, refused = set(self._types), [], []
        for index, record in enumerate(records):
            if len(known | record.keys()) > MAX_COLUMNS:
                refused.append(index)
            else:
                known |= record.keys()
                fitting.append(record)
        return fitting, refused

    def types(self) -> dict[str, pa.DataType]:
        """Every column with its final type; columns kept as text are strings."""
        settled = {name: _settled(kind) for name, kind in self._types.items()}
        return {name: _STRING if kind is None else kind for name, kind in settled.items()}

    def as_json(self) -> tuple[str, ...]:
        """The columns that are kept as text, with values other than strings as JSON."""
        return tuple(name for name, kind in self._types.items() if _settled(kind) is None)

    def words(self) -> dict[str, str]:
        """Every column with the name of its type."""
        texts = {name: "string (mixed)" if self._types[name] == MIXED else "string (JSON)" for name in self.as_json()}
        return {name: texts.get(name, str(kind)) for name, kind in self.types().items()}


def json_text(value: Any) -> str:
    """The value as compact JSON, with exact integers of any size."""
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:  # an integer beyond 64 bits
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
