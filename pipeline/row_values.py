"""The values of a row: with unreadable columns, which fail the row only when they are accessed; and for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.faults import InvalidRow


class RowValues(dict[str, Any]):
    """The readable columns; `problems` describes what is wrong with each of the others.

    Accessing one of those by name raises `InvalidRow`, so that a prompt which does not use it can still be made.
    """

    def __init__(self, values: Mapping[str, Any], problems: Mapping[str, str]) -> None:
        super().__init__(values)
        self.problems = problems

    def __missing__(self, name: str) -> Any:
        if name in self.problems:
            raise InvalidRow(self.problems[name])
        raise KeyError(name)

    def get(self, name: str, default: Any = None) -> Any:
        """As `dict.get`, but raises `InvalidRow` for columns that cannot be read."""
        return self[name] if name in self.problems else super().get(name, default)


def in_words(value: object) -> str:
    """A value that JSON cannot hold, for people: bytes by their size, others as text."""
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)
