"""The names that BigQuery takes for columns, and those that it refuses.

Its rules for flexible column names, which loading Parquet follows: https://cloud.google.com/bigquery/docs/schemas
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

ArrowType = Any
"""A type, or a field, of pyarrow's, which is loaded when one is asked for and not before."""

MAX_CHARACTERS = 300

_REFUSED_CHARACTERS = re.compile(r"""[!"$()*,./;?@\[\\\]^`{}~\x00-\x1f\x7f]""")
_REFUSED_PREFIXES = (
    "_table_",
    "_file_",
    "_partition",
    "_row_timestamp",
    "__root__",
    "_colidentifier",
    "_change_sequence_number",
    "_change_type",
    "_change_timestamp",
)


def is_refused(name: str) -> bool:
    """Whether BigQuery takes no column of this name."""
    return bool(
        not name.strip()
        or len(name) > MAX_CHARACTERS
        or _REFUSED_CHARACTERS.search(name)
        or name.lower().startswith(_REFUSED_PREFIXES)
    )


def legal_names(names: Iterable[str], taken: Collection[str] = ()) -> dict[str, str]:
    """A name that BigQuery takes for each of these: itself where it can be, none twice, none that is `taken` already.

    Names that differ in case alone count as one.
    """
    used = {name.lower() for name in taken}
    legal: dict[str, str] = {}
    for name in names:
        base = _legal(name)
        chosen, number = base, 2
        while chosen.lower() in used:
            chosen, number = f"{base[: MAX_CHARACTERS - 8]}_{number}", number + 1
        used.add(chosen.lower())
        legal[name] = chosen
    return legal


def _legal(name: str) -> str:
    plain = _REFUSED_CHARACTERS.sub("_", name).strip()[:MAX_CHARACTERS] or "column"
    return f"column{plain}"[:MAX_CHARACTERS] if plain.lower().startswith(_REFUSED_PREFIXES) else plain


def legal_type(kind: ArrowType) -> ArrowType:
    """The type with names that BigQuery takes for the fields inside of it; its values are laid out as before."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        names = legal_names(field.name for field in kind)
        return pa.struct([_renamed(field, names[field.name]) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(_renamed(kind.value_field, kind.value_field.name))
    if pa.types.is_large_list(kind):
        return pa.large_list(_renamed(kind.value_field, kind.value_field.name))
    return kind


def _renamed(field: ArrowType, name: str) -> ArrowType:
    return field.with_name(name).with_type(legal_type(field.type))


def refused_names(fields: Iterable[ArrowType], inside: str = "") -> Iterator[str]:
    """The names that BigQuery refuses among these fields and those inside of them, with their paths."""
    seen: set[str] = set()
    for field in fields:
        path = f"{inside}{field.name!r}"
        if is_refused(field.name) or field.name.lower() in seen:
            yield path
        seen.add(field.name.lower())
        kind = field.type
        while hasattr(kind, "value_type") and not hasattr(
            kind, "index_type"
        ):  # a list's items have no name of their own
            kind = kind.value_type
        if kind.num_fields and hasattr(kind, "get_field_index"):
            yield from refused_names(kind, f"{path}.")
