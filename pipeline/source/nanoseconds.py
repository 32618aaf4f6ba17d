"""Arrow values as Python values, the same whether pandas is installed or not.

Where it is, pyarrow converts nanoseconds to pandas' own types, which round times and print otherwise. Where it is not,
it refuses what is not in whole microseconds. Here it is always refused.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.types as t


@cache
def in_microseconds(kind: pa.DataType) -> pa.DataType:
    """The type with microseconds in place of nanoseconds, also within lists, maps, structs and dictionaries."""
    if t.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", kind.tz)
    if t.is_time64(kind) and kind.unit == "ns":
        return pa.time64("us")
    if t.is_duration(kind) and kind.unit == "ns":
        return pa.duration("us")
    if t.is_struct(kind):
        return pa.struct([field.with_type(in_microseconds(field.type)) for field in kind])
    if t.is_map(kind):
        return pa.map_(in_microseconds(kind.key_type), in_microseconds(kind.item_type))
    if t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind):
        return _list_in_microseconds(kind)
    if t.is_dictionary(kind):
        return pa.dictionary(kind.index_type, in_microseconds(kind.value_type))
    return kind


def _list_in_microseconds(kind: pa.DataType) -> pa.DataType:
    inner = kind.value_field.with_type(in_microseconds(kind.value_type))
    if t.is_fixed_size_list(kind):
        return pa.list_(inner, kind.list_size)
    return pa.large_list(inner) if t.is_large_list(kind) else pa.list_(inner)


def exact_values(array: pa.Array | pa.ChunkedArray) -> list[Any]:
    """The values of an array. Raises as pyarrow does for a value that Python cannot represent."""
    kind = in_microseconds(array.type)
    return list((array if kind == array.type else array.cast(kind)).to_pylist())


def exact_value(value: pa.Scalar) -> Any:
    """A value. Raises as pyarrow does for one that Python cannot represent."""
    kind = in_microseconds(value.type)
    return value.as_py() if kind == value.type or not value.is_valid else value.cast(kind).as_py()
