"""Which columns of the input a job keeps, and which it adds; under which names they are in the output."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.faults import UsageError
from pipeline.schema.bigquery import legal_names
from pipeline.text import nearest

Added = Literal["row", "source_file", "source_row"]
ADDED: tuple[Added, ...] = ("row", "source_file", "source_row")
"""Columns that say where a row comes from: its ordinal, its file, and its position in that file; numbers from 0."""

OURS = ("status", "parsed", "response", "error")
"""The output columns that the pipeline adds, after the input's own."""

_BINARY = re.compile(r"(^|[:=,] |=|map<)(large_|fixed_size_)?binary(_view)?\b(?!:)")
"""Matches the name of a type that contains binary values, at any level of nesting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """The input columns that requests `need`, those that are copied to the output, and the columns added there.

    `kept` gives the output name of each copied column; `added` say where a row comes from.
    """

    needed: Sequence[str]
    kept: Mapping[str, str]
    added: Sequence[Added]


def kept_columns(
    types: Mapping[str, str],
    *,
    keep: Sequence[str] | None,
    rename: Mapping[str, str] | Literal["bigquery"],
    key: str | None,
    add: Sequence[Added] | None,
) -> dict[str, str]:
    """Output name by input column, in input order; `types` names the type of each input column.

    Raises `UsageError` for unknown columns and name conflicts.
    """
    others = {} if isinstance(rename, str) else rename
    for name in [*(keep or ()), *others, *([key] if key else [])]:
        require_column(name, list(types), "the job")
    chosen = [
        name
        for name, kind in types.items()
        if (name in keep or name == key if keep is not None else not _BINARY.search(kind))
    ]
    if isinstance(rename, str):
        return legal_names(chosen, taken=[*OURS, *(add or ())])
    kept = {name: others.get(name, name) for name in chosen}
    _refuse_ours(kept)
    _refuse_nul(kept)
    _refuse_alike(kept)
    return kept


def _refuse_ours(kept: Mapping[str, str]) -> None:
    for source, target in kept.items():
        if target.lower() in OURS:
            raise UsageError(
                f"the input column {source!r} has the name of an output column: leave it out with `keep`, "
                f'or give it another name: rename={{"{source}": "input_{source}"}}'
            )


def _refuse_nul(kept: Mapping[str, str]) -> None:
    for source, target in kept.items():
        if "\0" in target:
            raise UsageError(
                f"the input column {source!r} has a NUL character in its name, at which DuckDB and Polars end it: "
                "leave it out with `keep`, or give it another name with `rename`"
            )


def _refuse_alike(kept: Mapping[str, str]) -> None:
    # Case aside: DuckDB, Spark and BigQuery take `Id` and `id` for one column.
    counts = Counter(name.lower() for name in kept.values())
    alike = [repr(name) for name in kept.values() if counts[name.lower()] > 1]
    if alike:
        raise UsageError(
            f"two output columns would have the same name (case aside): {', '.join(alike)}; "
            "leave some of them out with `keep`, or give them other names with `rename`"
        )


def added_columns(kept: Mapping[str, str], *, add: Sequence[Added] | None, key: str | None) -> tuple[Added, ...]:
    """The columns that say where a row comes from; the default `row` is omitted if the input has such a column.

    Raises `UsageError` when a kept column has the name of a requested one.
    """
    taken = {name.lower() for name in kept.values()}
    if add is None:
        return ("row",) if key is None and "row" not in taken else ()
    for name in add:
        if name in taken:
            raise UsageError(
                f"`add` and the input both have a column {name!r}: leave the input's out with `keep`, "
                f'or give it another name: rename={{"{name}": "input_{name}"}}'
            )
    return tuple(name for name in ADDED if name in add)


def require_column(name: str, available: Sequence[str], who: str) -> None:
    """Raises `UsageError` for a column that the input does not have; `who` names it."""
    if name not in available:
        raise UsageError(f"{who} names the column {name!r}, which is not in the input{nearest(name, available)}")
