"""Foreign JSON: decoded with tolerance for what servers really send, and typed before anything uses it.

`read` is the only way from bytes to our values. A plain body costs one `orjson.loads`; everything else here is for
bodies that orjson rejects and for objects in place of text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import orjson

DEEPEST = 200
"""Levels of nesting that the tolerant decoder accepts. orjson reads 1,024, and writes 254."""

_FARTHEST = 10**9
_POSITION = re.compile("[0-9]{1,9}")

_LONGEST_INTEGER = 20
"""Characters of the longest 64-bit integer. Longer ones are floats: Python refuses to convert thousands of digits."""

Value = TypeVar("Value")


class Rounded(Exception):
    """The digits of a number matter, and the document was decoded without them. Never leaves `read`."""


class Digits(float):
    """A number with its original digits."""

    __slots__ = ("literal",)
    literal: str


def read(body: bytes, reader: Callable[[object], Value], *, halves: bool = False) -> Value:
    """The result of `reader` for the JSON in `body`, decoded again with all digits if they matter.

    With `halves`, lone surrogates are kept, for text whose other half may still arrive. Raises `ValueError` when the
    body is not JSON, and what `reader` raises.
    """
    try:
        return reader(decode(body, halves=halves))
    except Rounded:
        return reader(decode(body, exact=True, halves=halves))


def decode(body: bytes, *, exact: bool = False, halves: bool = False) -> object:
    """The JSON in `body`: UTF-8, or UTF-16 and UTF-32 with or without a byte order mark (RFC 4627, section 3).

    NaN and infinities are numbers. Lone surrogates, and bytes that are not text, become U+FFFD: one bad character is
    not worth paying for the answer again. With `exact`, every float is `Digits`. Raises `ValueError`.
    """
    if not exact:
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            pass
    try:
        document = json.loads(
            decoded(body),
            strict=False,  # some servers leave control characters in texts
            parse_int=_integer,
            parse_float=_digits if exact else float,
            parse_constant=_digits if exact else float,
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return _settled(document, halves=halves)


def decoded(body: bytes) -> str:
    """The text of a body, or of its beginning, in any Unicode encoding."""
    encoding = json.detect_encoding(body)
    try:
        return body.decode(encoding, "surrogatepass")
    except UnicodeDecodeError:
        return body.decode(encoding, "replace")


def json_text(value: object) -> str | None:
    """Foreign JSON as text again, numbers with all their digits; None when it is nested too deeply to be written.

    Raises `Rounded` when it was decoded without those digits.
    """
    try:
        written = orjson.dumps(value, default=_literal)
    except TypeError:  # lone surrogates, or depth
        try:
            written = orjson.dumps(_settled(value, halves=False), default=_literal)
        except (TypeError, ValueError):
            return None
    if any(type(leaf) is float for leaf in _leaves(value)):
        raise Rounded
    return written.decode()


def writable(value: Any) -> Any:
    """Foreign JSON that orjson can write, without lone surrogates; None when it is nested too deeply."""
    try:
        return _settled(value, halves=False)
    except ValueError:
        return None


def writable_fields(thing: Mapping[str, Any]) -> dict[str, Any]:
    """An object without its fields that cannot be written, or are null."""
    return {name: written for name, value in thing.items() if (written := writable(value)) is not None}


def whole_text(text: str) -> str:
    """Text in which surrogate halves are joined, and unpaired ones become U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def dig(value: object, *names: str) -> object:
    """The value at the end of a path of names; None when there is no such path."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def as_text(value: object) -> str | None:
    """The value if it is text, else None."""
    return value if isinstance(value, str) else None


def as_integer(value: object) -> int | None:
    """The value if it is an integer and not a boolean, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def as_position(value: object) -> int | None:
    """A place in a list: an integer, also written as `1.0` or `"1"`, as some servers do."""
    if isinstance(value, str):
        return int(value) if _POSITION.fullmatch(value.strip()) else None
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < _FARTHEST else None
    return as_integer(value)


def as_name(value: object) -> str:
    """An identifier as text, since some servers use numbers; empty when there is none."""
    number = as_integer(value)
    return str(number) if number is not None else as_text(value) or ""


def objects(value: object) -> list[dict[str, Any]]:
    """The objects in a list. An object with numbers as keys, or a bare object, counts as a list."""
    if isinstance(value, dict) and all(map(str.isdecimal, value)):
        value = list(value.values())
    if isinstance(value, list):
        return [item for item in value if isinstance(item, dict)]
    return [value] if isinstance(value, dict) and value else []


def _integer(literal: str) -> int | float:
    if len(literal) > _LONGEST_INTEGER:
        return _digits(literal)
    number = int(literal)
    return number if -(2**63) <= number < 2**64 else _digits(literal)


def _digits(literal: str) -> Digits:
    number = Digits(literal)
    number.literal = literal
    return number


def _literal(value: object) -> orjson.Fragment:
    if isinstance(value, Digits):
        return orjson.Fragment(value.literal.encode())
    raise TypeError(type(value).__name__)


def _settled(root: Any, *, halves: bool) -> Any:
    """The value with whole text, changed in place. Level by level, so foreign nesting cannot overflow the stack."""
    if isinstance(root, str):
        return root if halves else whole_text(root)
    level = [root] if isinstance(root, dict | list) else []
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for container in level:
            if not halves:
                _make_whole(container)
            values = container.values() if isinstance(container, dict) else container
            inner += [value for value in values if isinstance(value, dict | list)]
        level = inner
        if not level:
            return root
    raise ValueError("nested too deeply")


def _make_whole(container: Any) -> None:
    """Makes the texts directly in a container whole."""
    if isinstance(container, list):
        container[:] = [whole_text(item) if isinstance(item, str) else item for item in container]
    elif isinstance(container, dict):
        items = [
            (whole_text(name), whole_text(item) if isinstance(item, str) else item) for name, item in container.items()
        ]
        container.clear()
        container.update(items)


def _leaves(value: object) -> Iterator[object]:
    """Every value inside that is not a container."""
    left = [value]
    while left:
        inner = left.pop()
        if isinstance(inner, dict):
            left += inner.values()
        elif isinstance(inner, list):
            left += inner
        else:
            yield inner
