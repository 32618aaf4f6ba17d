"""Columns as every reader accepts them: the same values, in types and text that none of them refuses.

Parquet stores a view as what it is a view of, and an instant in UTC, whatever Arrow calls them; but the footer has
Arrow's name for the type, and Polars refuses a file for it. Arrow itself (26.0) cannot write every slice of a view.
DuckDB and Polars refuse a file for one text that is not UTF-8.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.types as t

from pipeline.source.nanoseconds import exact_value

_OFFSET = re.compile(r"[+-]\d{2}:?\d{2}")
"""A time zone that is an offset, not a name: Polars and DuckDB know none."""


def without_views(kind: pa.DataType) -> pa.DataType:
    """The type without views: of text, of bytes and of lists, at any level."""
    if t.is_string_view(kind):
        return pa.string()
    if t.is_binary_view(kind):
        return pa.binary()
    if _is_list_view(kind):
        return without_views(pa.list_(kind.value_field) if t.is_list_view(kind) else pa.large_list(kind.value_field))
    return _with_inner(kind, without_views)


def without_null(kind: pa.DataType) -> pa.DataType:
    """The type with text in place of columns that never hold a value, at any level: Spark refuses those."""
    return pa.string() if t.is_null(kind) else _with_inner(kind, without_null)


def kept_type(kind: pa.DataType) -> pa.DataType:
    """The type in which a column of this type is copied: an offset for a time zone becomes UTC."""
    if t.is_timestamp(kind) and kind.tz is not None and _OFFSET.fullmatch(kind.tz):
        return pa.timestamp(kind.unit, "UTC")
    return _with_inner(kind, kept_type)


def _is_list_view(kind: pa.DataType) -> bool:
    return bool(t.is_list_view(kind) or t.is_large_list_view(kind))


def _has_list_view(kind: pa.DataType) -> bool:
    inner = (kind.field(number).type for number in range(kind.num_fields))
    return _is_list_view(kind) or any(map(_has_list_view, inner))


def cast(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """The array in another type, which is not a list view. Raises `pa.ArrowException` if a value does not fit."""
    return array if array.type == kind else _without_views(array).cast(kind)


def _without_views(array: pa.Array) -> pa.Array:
    """The array with lists in place of list views.

    Arrow's own cast (26.0) copies the offsets without the lengths, which makes other lists of them.
    """
    kind = array.type
    if not _has_list_view(kind):
        return array
    if t.is_struct(kind):
        inner = [_without_views(array.field(number)) for number in range(kind.num_fields)]
        fields = [field.with_type(column.type) for field, column in zip(kind, inner, strict=True)]
        return pa.StructArray.from_arrays(inner, fields=fields, mask=array.is_null())
    offsets, values = _offsets_and_values(array)
    items = _without_views(values)
    if t.is_map(kind):
        return pa.MapArray.from_arrays(offsets.cast(pa.int32()), items.field(0), items.field(1), mask=array.is_null())
    field = kind.value_field.with_type(items.type)
    return pa.LargeListArray.from_arrays(offsets, items, type=pa.large_list(field), mask=array.is_null())


def _offsets_and_values(array: pa.Array) -> tuple[pa.Array, pa.Array]:
    """The items of all lists, one after another, and where each list begins, as well as where the last one ends."""
    import pyarrow.compute as pc  # a third of pyarrow's load time, for types that are rare

    if t.is_list(array.type) or t.is_large_list(array.type) or t.is_map(array.type):
        first, end = array.offsets[0].as_py(), array.offsets[-1].as_py()
        return pc.subtract(array.offsets.cast(pa.int64()), first), array.values.slice(first, end - first)
    lengths = pc.fill_null(pc.list_value_length(array), 0).cast(pa.int64())
    offsets = pa.concat_arrays([pa.array([0], pa.int64()), pc.cumulative_sum(lengths)])
    if t.is_fixed_size_list(array.type):
        return offsets, array.flatten()
    # Arrow's `flatten` of list views (26.0) loses the length of lists of nulls within them; readers of Parquet make
    # views that lie one after another, so nothing has to be moved.
    begin = array.offsets[0].as_py() if len(array) else 0
    if pc.add(offsets[:-1], begin).equals(array.offsets.cast(pa.int64())):
        return offsets, array.values.slice(begin, offsets[-1].as_py())
    return offsets, array.flatten()


def with_valid_text(array: pa.Array) -> pa.Array:
    """The array with U+FFFD in place of bytes that are not UTF-8; the array itself if there are none.

    A value that has such text, and others that Python cannot represent, becomes null.
    """
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        raw = array.cast(_with_bytes(array.type))
        return pa.array([_decoded(raw[index], array.type) for index in range(len(raw))], array.type)
    return array


def _with_inner(kind: pa.DataType, change: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """The type with `change` applied to the types of its fields; itself if it has none."""

    def changed(field: pa.Field) -> pa.Field:
        return field.with_type(change(field.type))

    if t.is_struct(kind):
        return pa.struct([changed(field) for field in kind])
    if t.is_map(kind):
        return pa.map_(changed(kind.key_field), changed(kind.item_field), keys_sorted=kind.keys_sorted)
    if t.is_fixed_size_list(kind):
        return pa.list_(changed(kind.value_field), kind.list_size)
    if t.is_list(kind):
        return pa.list_(changed(kind.value_field))
    if t.is_large_list(kind):
        return pa.large_list(changed(kind.value_field))
    return kind


def _is_text(kind: pa.DataType) -> bool:
    return bool(t.is_string(kind) or t.is_large_string(kind) or t.is_string_view(kind))


def _with_bytes(kind: pa.DataType) -> pa.DataType:
    return pa.large_binary() if _is_text(kind) else _with_inner(kind, _with_bytes)


def _decoded(value: pa.Scalar, kind: pa.DataType) -> Any:
    try:
        return _as_text(exact_value(value), kind)
    except (ValueError, OverflowError, pa.ArrowException):
        return None


def _as_text(value: Any, kind: pa.DataType) -> Any:
    """A Python value, in which bytes stand for text, with that text."""
    if value is None:
        return None
    if _is_text(kind):
        return value.decode("utf-8", "replace")
    if t.is_struct(kind):
        return {field.name: _as_text(value[field.name], field.type) for field in kind}
    if t.is_map(kind):
        return [(_as_text(key, kind.key_type), _as_text(item, kind.item_type)) for key, item in value]
    if t.is_nested(kind) and hasattr(kind, "value_type"):
        return [_as_text(item, kind.value_type) for item in value]
    return value
