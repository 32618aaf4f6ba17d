"""The fields of a protobuf message that was sent as JSON: known names only, in snake_case or camelCase."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import UnionType
from typing import Any

from pipeline.emulator.protocol.dialect import violations

_WORD = re.compile(r"_([a-z0-9])")


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of one message by their names in camelCase; `place` is where it stands, as errors name it."""

    values: Mapping[str, Any]
    place: str

    @classmethod
    def of(cls, message: Any, place: str, known: str) -> Fields:
        """The fields of a message that may have the `known` ones, separated by spaces. Raises a 400.

        That the same field in both spellings is refused is inferred.
        """
        if not isinstance(message, dict):
            where = f" at '{place}'" if place else ""
            raise violations([(place, f"Invalid value{where}, an object is expected")])
        allowed = _names(known)
        found: dict[str, Any] = {}
        unknown = []
        for name, value in message.items():
            plain = camel(name)
            if plain not in allowed:
                where = f" at '{place}'" if place else ""
                unknown.append((place, f'Unknown name "{name}"{where}: Cannot find field.'))
            elif plain in found:
                unknown.append((place, f'Invalid value: the field "{name}" is given twice.'))
            found[plain] = value
        if unknown:
            raise violations(unknown)
        return cls({name: value for name, value in found.items() if value is not None}, place)

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a field; null counts as absent, as in protobuf's JSON."""
        return self.values.get(name, default)

    def require(self, name: str, kind: type | UnionType, shown: str) -> None:
        """Raises a 400 for a value of another type; `shown` is the type as protobuf calls it."""
        value = self.values.get(name)
        if value is None or (isinstance(value, kind) and (kind is bool or not isinstance(value, bool))):
            return
        at = f"{self.place}.{snake(name)}".lstrip(".")
        raise violations([(at, f"Invalid value at '{at}' ({shown}), {value!r}")])


@cache
def camel(name: str) -> str:
    """`max_output_tokens` as `maxOutputTokens`; other names as they are."""
    return _WORD.sub(lambda match: match[1].upper(), name)


def snake(name: str) -> str:
    """`maxOutputTokens` as `max_output_tokens`."""
    return re.sub(r"[A-Z]", lambda match: f"_{match[0].lower()}", name)


@cache
def _names(known: str) -> frozenset[str]:
    return frozenset(known.split())
