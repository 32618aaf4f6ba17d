"""The types of plain JSON values: those of one kind, which most columns hold. Found without making Arrow arrays.

An answer is the one that `pipeline.source.type_inference.infer_type` gives, at a tenth of its cost; other values are
left to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from types import NoneType
from typing import Any

import pyarrow as pa

SMALL_INT = pa.int32()
"""Marks integers that a double holds exactly."""

EXACT = 2**53
"""Up to here, and from its negative on, a double holds every integer."""

MAX_FIELDS = 256
"""An object with more fields than this counts as a mapping, not a record."""
MAX_DEPTH = 10
"""Lists and objects nested deeper than this are kept as JSON text: several Parquet readers stop at 15 levels."""

_NULL, _BOOL, _INT, _DOUBLE, _STRING = pa.null(), pa.bool_(), pa.int64(), pa.float64(), pa.string()
_INT64 = 2**63
_SCALARS = frozenset({str, bool, int, NoneType})


def plain_type(values: Sequence[Any], depth: int = 0) -> pa.DataType | None:
    """The type of values that are null or of one kind; None for others, and for what may not be exact.

    A double of 2^63 or more may stand for an integer that does not fit 64 bits. Lists and objects are at most
    `MAX_DEPTH` levels deep, and the objects have the same keys, at most `MAX_FIELDS`.
    """
    kinds = set(map(type, values))
    if NoneType in kinds:
        kinds.remove(NoneType)
        values = [value for value in values if value is not None]
    if len(kinds) != 1:
        return None if kinds else _NULL
    [kind] = kinds
    if kind is str:
        return _STRING
    if kind is int:
        return _type_of_ints(min(values), max(values))
    if kind is float:
        return _DOUBLE if max(map(abs, values)) < _INT64 else None
    if kind is bool:
        return _BOOL
    if depth == MAX_DEPTH:
        return None
    return _type_of_lists(values, depth) if kind is list else _type_of_objects(values, depth)


def is_scalar(values: Iterable[Any]) -> bool:
    """Whether all values are null, booleans, integers or strings: whatever their type is, they are exact."""
    return set(map(type, values)) <= _SCALARS


def columns_of(records: Sequence[Mapping[str, Any]]) -> dict[str, Sequence[Any]] | None:
    """The values of each key, if all records have the keys of the first; None otherwise, and without any key."""
    names = tuple(records[0])
    if not names or sum(map(len, records)) != len(names) * len(records):
        return None
    try:
        return {name: [*map(itemgetter(name), records)] for name in names}
    except KeyError:
        return None


def _type_of_ints(low: int, high: int) -> pa.DataType | None:
    if low >= -EXACT and high <= EXACT:
        return SMALL_INT
    return _INT if low >= -_INT64 and high < _INT64 else None


def _type_of_lists(values: Sequence[Any], depth: int) -> pa.DataType | None:
    inner = plain_type([*chain.from_iterable(values)], depth + 1)
    return None if inner is None else pa.list_(inner)


def _type_of_objects(values: Sequence[Any], depth: int) -> pa.DataType | None:
    columns = columns_of(values)
    if columns is None or len(columns) > MAX_FIELDS:
        return None
    fields: list[tuple[str, pa.DataType]] = []
    for name, column in columns.items():
        kind = plain_type(column, depth + 1)
        if kind is None:
            return None
        fields.append((name, kind))
    return pa.struct(fields)
