"""Answers as JSON values: how other types become JSON, when two values are equal, and when one is empty."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from typing import Any, Final, Literal

from pydantic import BaseModel


class _Absent:
    """The type of `ABSENT`."""

    def __repr__(self) -> str:
        return "ABSENT"

    def __bool__(self) -> bool:
        return False


ABSENT: Final = _Absent()
"""The value of a key that an object does not have."""

Nothing = Literal["any", "null", "absent"]
"""What counts as no value: null, absent and everything empty (`any`); null and absent; only absent."""


def plain(value: Any) -> Any:
    """The value in JSON form: converts Python types that Parquet or a model returns.

    Dates and times become ISO 8601. A decimal becomes a number with the same digits, or text if float64 would change
    them. NaN and infinities stay: they are equal to themselves and to nothing else.
    """
    match value:
        case BaseModel():
            return {name: plain(getattr(value, name)) for name in type(value).model_fields}
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case set() | frozenset():
            return sorted((plain(item) for item in value), key=repr)
        case Enum():
            return plain(value.value)
        case _:
            return _scalar(value)


def _scalar(value: Any) -> Any:
    match value:
        case None | bool() | int() | float() | str() | _Absent():
            return value
        case Decimal():
            return _number(value)
        case datetime() | date() | time():
            return value.isoformat()
        case bytes():
            return value.decode("utf-8", "backslashreplace")
        case _:
            return str(value)


def _number(value: Decimal) -> int | float | str:
    if not value.is_finite():
        return float(value)
    if value == value.to_integral_value():
        return int(value) if value.adjusted() < 400 else str(value)
    return float(value) if Decimal(repr(float(value))) == value else str(value)


def same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal: numbers by value (1 is 1.0), booleans are not numbers, keys in any order."""
    match one, other:
        case (bool(), _) | (_, bool()):
            return one is other
        case (int() | float(), int() | float()):
            return bool(one == other) or (_is_nan(one) and _is_nan(other))
        case (list(), list()):
            return len(one) == len(other) and all(map(same, one, other))
        case (Mapping(), Mapping()):
            return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
        case _:
            return type(one) is type(other) and bool(one == other)


def _is_nan(value: float) -> bool:
    return isinstance(value, float) and math.isnan(value)


def is_nothing(value: Any, nothing: Nothing) -> bool:
    """Whether this counts as no value. Under `any`, so do white space and containers of only such values."""
    if value is ABSENT:
        return True
    if nothing == "absent" or (nothing == "null" and value is not None):
        return False
    match value:
        case None:
            return True
        case str():
            return not value.strip()
        case Mapping():
            return all(is_nothing(item, nothing) for item in value.values())
        case list():
            return all(is_nothing(item, nothing) for item in value)
        case _:
            return False
