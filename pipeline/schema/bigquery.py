"""The column names that BigQuery accepts and rejects.

Its rules for flexible column names, which apply when loading Parquet: https://cloud.google.com/bigquery/docs/schemas
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

from pipeline.schema.columns import ArrowType

"""A pyarrow type or field. pyarrow is loaded only when one is used."""

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
    """Whether BigQuery rejects this column name."""
    return bool(
        not name.strip()
        or len(name) > MAX_CHARACTERS
        or _REFUSED_CHARACTERS.search(name)
        or name.lower().startswith(_REFUSED_PREFIXES)
    )


def legal_names(names: Iterable[str], taken: Collection[str] = ()) -> dict[str, str]:
    """A name that BigQuery accepts for each of these: unchanged where possible, unique, and none that is `taken`.

    Names that differ only in case count as equal.
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
    """The type with its inner fields renamed so that BigQuery accepts them; the memory layout does not change."""
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
    """The names that BigQuery rejects, among these fields and the fields inside them, as paths."""
    seen: set[str] = set()
    for field in fields:
        path = f"{inside}{field.name!r}"
        if is_refused(field.name) or field.name.lower() in seen:
            yield path
        seen.add(field.name.lower())
        kind = field.type
        while hasattr(kind, "value_type") and not hasattr(kind, "index_type"):  # list items have no name
            kind = kind.value_type
        if kind.num_fields and hasattr(kind, "get_field_index"):
            yield from refused_names(kind, f"{path}.")
