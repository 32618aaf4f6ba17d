"""Types that a job gives to columns of CSV, whose fields are text otherwise."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

CellType = Literal["integer", "number", "boolean"]

_INTEGER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_MOST_DIGITS = 400
_INT64 = range(-(2**63), 2**63)
_BOOLEANS = {"true": True, "false": False, "1": True, "0": False}


def typed_record(record: Mapping[str, str | None] | str, types: Mapping[str, CellType]) -> dict[str, Any] | str:
    """The record with the fields of the named columns converted; or a message, quoting none of it, if one cannot be.

    A null stays null, and a message stays a message. A number is a float64, and an integer an int64.
    """
    if isinstance(record, str):
        return record
    values: dict[str, Any] = dict(record)
    for name, kind in types.items():
        text = record.get(name)
        if text is None:
            continue
        value = _CONVERSIONS[kind](text.strip())
        if value is None:
            return f"column {name!r} holds no {_SAID[kind]}"
        values[name] = value
    return values


def _integer(text: str) -> int | None:
    if not _INTEGER.fullmatch(text) or len(text) > _MOST_DIGITS:
        return None
    value = int(text)
    return value if value in _INT64 else None


def _number(text: str) -> float | None:
    if not _NUMBER.fullmatch(text):
        return None
    value = float(text)
    return value if math.isfinite(value) else None


def _boolean(text: str) -> bool | None:
    return _BOOLEANS.get(text.lower())


_CONVERSIONS: Mapping[CellType, Callable[[str], Any]] = {"integer": _integer, "number": _number, "boolean": _boolean}

_SAID: Mapping[CellType, str] = {"integer": "integer of 64 bits", "number": "number", "boolean": "boolean"}
