"""The common Arrow type of a column that has different types in different files, if one holds all values exactly."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pyarrow.types as t

from pipeline.source.kept_types import cast, without_views

_UNITS = ("s", "ms", "us", "ns")
_UTC = frozenset(
    {
        "utc", "z", "zulu", "gmt", "uct", "universal", "greenwich", "gmt0", "gmt+0", "gmt-0", "+00:00", "-00:00", "+00",
        "+0000", "-0000", "etc/utc", "etc/zulu", "etc/gmt", "etc/uct", "etc/universal", "etc/greenwich", "etc/gmt0",
        "etc/gmt+0", "etc/gmt-0",
    }
)  # fmt: skip
"""Names of UTC: writers spell it differently."""

_SIGNED = {8: pa.int8(), 16: pa.int16(), 32: pa.int32(), 64: pa.int64()}
_FLOATS = {16: pa.float16(), 32: pa.float32(), 64: pa.float64()}
_DIGITS = {8: 3, 16: 5, 32: 10, 64: 20}
"""Decimal digits of integers by their width in bits, signed or not."""


def widened(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type that holds the values of both exactly, or None when there is none.

    Null widens to anything, and a required field to an optional one. Kinds of strings and of lists, widths of integers,
    fractions and decimals, units of time, and names of UTC widen to one another; instants in different zones widen to
    UTC. Dictionaries widen to their values' type, and structs to one with the fields of both, in order of first
    appearance.
    """
    if t.is_null(other) or one == other:
        return one
    if t.is_null(one):
        return other
    one, other = _plain(one), _plain(other)
    if one == other:
        return one
    return next((kind for rule in _RULES if (kind := rule(one, other)) is not None), None)


def conformed(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """The array, cast to a type that its own was widened to. Raises `pa.ArrowException` if a value does not fit."""
    if array.type == kind:
        return array
    if t.is_null(array.type):
        return pa.nulls(len(array), kind)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    return cast(array, kind)


def _plain(kind: pa.DataType) -> pa.DataType:
    """The value type of a dictionary, the storage type of an extension type, what a view is a view of."""
    if t.is_dictionary(kind):
        return _plain(kind.value_type)
    return _plain(kind.storage_type) if isinstance(kind, pa.BaseExtensionType) else without_views(kind)


def _texts(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    for is_kind, kind in ((_is_string, pa.string()), (_is_binary, pa.binary())):
        if is_kind(one) and is_kind(other):
            return kind
    return None


def _is_string(kind: pa.DataType) -> bool:
    return bool(t.is_string(kind) or t.is_large_string(kind) or t.is_string_view(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(
        t.is_binary(kind) or t.is_large_binary(kind) or t.is_binary_view(kind) or t.is_fixed_size_binary(kind)
    ) and not t.is_decimal(kind)


def _numbers(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if t.is_integer(one) and t.is_integer(other):
        return _integers(one, other)
    if t.is_floating(one) and t.is_floating(other):
        return _FLOATS[max(one.bit_width, other.bit_width)]
    if t.is_integer(other):
        one, other = other, one
    if t.is_integer(one) and t.is_floating(other) and one.bit_width < 64:
        return _FLOATS[max(2 * one.bit_width, other.bit_width)]  # these hold integers of 11, 24 and 53 bits
    if (t.is_integer(one) or t.is_decimal(one)) and t.is_decimal(other):
        precision, scale = (_DIGITS[one.bit_width], 0) if t.is_integer(one) else (one.precision, one.scale)
        return _decimal(max(precision - scale, other.precision - other.scale), max(scale, other.scale))
    return None


def _integers(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    if t.is_signed_integer(one) == t.is_signed_integer(other):
        return one if one.bit_width > other.bit_width else other
    signed, unsigned = (one, other) if t.is_signed_integer(one) else (other, one)
    bits = max(signed.bit_width, 2 * unsigned.bit_width)
    return _SIGNED.get(bits) or pa.decimal128(_DIGITS[64], 0)


def _decimal(whole: int, scale: int) -> pa.DataType | None:
    if whole + scale > 76:
        return None
    return pa.decimal128(whole + scale, scale) if whole + scale <= 38 else pa.decimal256(whole + scale, scale)


def _times(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    for is_kind in (t.is_timestamp, t.is_time, t.is_duration):
        if is_kind(one) and is_kind(other):
            break
    else:
        return None
    unit = max(one.unit, other.unit, key=_UNITS.index)
    if t.is_duration(one):
        return pa.duration(unit)
    if t.is_time(one):
        return pa.time64(unit) if unit in {"us", "ns"} else pa.time32(unit)
    zones = {_zone(one), _zone(other)}
    if len(zones) == 1:
        return pa.timestamp(unit, zones.pop())
    # Instants are the same in every zone; but a time without a zone is not an instant.
    return None if None in zones else pa.timestamp(unit, "UTC")


def _zone(kind: pa.TimestampType) -> str | None:
    return "UTC" if kind.tz is not None and kind.tz.lower() in _UTC else kind.tz


def _nested(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if _is_list(one) and _is_list(other):
        field = _field(one.value_field, other.value_field)
        return None if field is None else pa.list_(field)
    if t.is_map(one) and t.is_map(other):
        key, item = widened(one.key_type, other.key_type), widened(one.item_type, other.item_type)
        return None if key is None or item is None else pa.map_(key, item)
    return _structs(one, other) if t.is_struct(one) and t.is_struct(other) else None


def _is_list(kind: pa.DataType) -> bool:
    return bool(t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind))


def _structs(one: pa.StructType, other: pa.StructType) -> pa.DataType | None:
    names = [field.name for field in one], [field.name for field in other]
    if any(len(set(some)) < len(some) for some in names):
        return None
    fields: dict[str, pa.Field] = {}
    for name in dict.fromkeys([*names[0], *names[1]]):
        found = [kind.field(name) for kind, some in ((one, names[0]), (other, names[1])) if name in some]
        merged = _field(*found) if len(found) == 2 else found[0].with_nullable(True)  # noqa: FBT003 - pyarrow's name
        if merged is None:
            return None
        fields[name] = merged
    return pa.struct(list(fields.values()))


def _field(one: pa.Field, other: pa.Field) -> pa.Field | None:
    kind = widened(one.type, other.type)
    return None if kind is None else pa.field(one.name, kind, nullable=one.nullable or other.nullable)


_RULES: tuple[Callable[[pa.DataType, pa.DataType], pa.DataType | None], ...] = (_texts, _numbers, _times, _nested)
