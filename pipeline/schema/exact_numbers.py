"""JSON numbers that keep their digits: floats that remember their literal, and JSON text written with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any


class Inexact(float):
    """A JSON number that float64 cannot hold exactly, or not at all; `literal` has all its digits."""

    __slots__ = ("literal",)
    literal: str

    @classmethod
    def of(cls, literal: str) -> Inexact:
        """The number with this literal."""
        number = cls(literal)
        number.literal = literal
        return number

    def __str__(self) -> str:
        """The literal, for messages."""
        return self.literal


def json_of(value: Any) -> str:
    """Compact JSON of plain values: keys in their original order, exact numbers, an `Inexact` as its literal.

    Raises ValueError for NaN and infinity, TypeError for what is not JSON.
    """
    if _holds_inexact(value):
        return "".join(_pieces(value))
    return _dumped(value)


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _holds_inexact(value: Any) -> bool:
    match value:
        case dict():
            return any(map(_holds_inexact, value.values()))
        case list() | tuple():
            return any(map(_holds_inexact, value))
    return isinstance(value, Inexact)


def _pieces(value: Any) -> Iterator[str]:
    """A slower encoder, for the few values that json.dumps would round: it has no hook for floats."""
    match value:
        case Inexact():
            yield value.literal
        case dict():
            mark = "{"
            for key, item in value.items():
                yield f"{mark}{_dumped(key)}:"
                yield from _pieces(item)
                mark = ","
            yield "}" if value else "{}"
        case list() | tuple():
            mark = "["
            for item in value:
                yield mark
                yield from _pieces(item)
                mark = ","
            yield "]" if value else "[]"
        case _:
            yield _dumped(value)
