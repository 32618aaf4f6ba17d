"""Names in the output for input columns that have a name of the output's own columns."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence


def free_names(reserved: Sequence[str], taken: Collection[str]) -> dict[str, str]:
    """Other names for the reserved columns of an earlier run: `input_parsed`, or more of the prefix if it is taken."""
    names: dict[str, str] = {}
    for name in reserved:
        free = f"input_{name}"
        while free in taken:
            free = f"input_{free}"
        names[name] = free
    return names


def clash_of(columns: Sequence[str]) -> str:
    """The message about input columns whose names are reserved, all at once, with the remedy."""
    names = ", ".join(map(repr, columns))
    rename = json.dumps({name: f"input_{name}" for name in columns}, ensure_ascii=False)
    if len(columns) == 1:
        clash = f"the input column {names} has the name of an output column: leave it out"
        return f"{clash} with `keep`, or give it another name: rename={rename}"
    clash = f"the input columns {names} have the names of output columns: leave them out"
    return f"{clash} with `keep`, or give them other names: rename={rename}"
