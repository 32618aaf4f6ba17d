"""Metrics inside a field: one table for each path of its leaves, such as `lines[].quantity`.

A field of lists or objects is right or wrong as a whole; these tables show where its errors are. They count the leaves
that `leaves.parquet` has under the same path, as means over the repeats.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from pipeline.evaluation.graders.base import Place
from pipeline.evaluation.graders.rows import Graders
from pipeline.evaluation.graders.verdicts import Graded, Leaf, Scored, Verdict, VerdictCounts
from pipeline.evaluation.reducers import by_row, counts
from pipeline.evaluation.stats.tables import FieldTable, Tables, field_table


def with_nested(found: Tables, graded: Iterable[Graded], graders: Graders, *, seed: int = 0) -> Tables:
    """The same tables, with the nested tables added to the fields of all rows, in the order of the schema."""
    repeats = list(by_row(graded).values())
    order = {path: place for place, (path, _) in enumerate(graders.walk())}
    fields = tuple(
        replace(field, nested=tuple(_nested(field.field, repeats, order, seed))) for field in found.whole.fields
    )
    return replace(found, whole=replace(found.whole, fields=fields))


def _nested(
    field: str, repeats: Sequence[Sequence[Graded]], order: Mapping[str, int], seed: int
) -> Iterator[FieldTable]:
    """A table for every path of the field's leaves except its own; `n` counts the rows that have the path."""
    rows: dict[str, list[Scored]] = {}
    for each in repeats:
        by_path = [_by_path(one.fields.get(field, ())) for one in each]
        for path in dict.fromkeys(path for leaves in by_path for path in leaves):
            rows.setdefault(path, []).append(_scored(each[0], path, [leaves.get(path, []) for leaves in by_path]))
    for path in sorted(rows.keys() - {Place().field(field).path}, key=lambda path: (order.get(path, len(order)), path)):
        yield field_table(path, rows[path], seed)


def _by_path(leaves: Sequence[Leaf]) -> dict[str, list[Leaf]]:
    found: dict[str, list[Leaf]] = {}
    for leaf in leaves:
        found.setdefault(leaf.path, []).append(leaf)
    return found


def _scored(row: Graded, path: str, repeats: Sequence[Sequence[Leaf]]) -> Scored:
    """The row, reduced to this path as its only field."""
    return Scored(row=row.row, correct=0.0, fields={path: _counts(repeats)}, cluster=row.cluster)


def _counts(repeats: Sequence[Sequence[Leaf]]) -> VerdictCounts:
    """The leaves by verdict, over all repeats; `right` over the repeats that have any."""
    present = [leaves for leaves in repeats if leaves]
    found, part = counts(present), len(present) / len(repeats)
    return replace(found, **{verdict.value: getattr(found, verdict.value) * part for verdict in Verdict})
