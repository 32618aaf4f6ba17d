"""The values of a row some of whose columns cannot be read: they fail the row only when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.faults import InvalidRow


class RowValues(dict[str, Any]):
    """The columns that could be read; `problems` says in words what is wrong with the others.

    Asking for one of those by name raises `InvalidRow`, so that a prompt which does not look at it can be made.
    """

    def __init__(self, values: Mapping[str, Any], problems: Mapping[str, str]) -> None:
        super().__init__(values)
        self.problems = problems

    def __missing__(self, name: str) -> Any:
        if name in self.problems:
            raise InvalidRow(self.problems[name])
        raise KeyError(name)

    def get(self, name: str, default: Any = None) -> Any:
        """As `dict.get`, but for columns that cannot be read."""
        return self[name] if name in self.problems else super().get(name, default)
