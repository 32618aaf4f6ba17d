"""Tables for people: the results of an evaluation by field, by slice and, for enums, by value.

Every figure is a metric of `pipeline.evaluation.stats.metrics`, with its interval; this module only chooses which
appear in a table.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.evaluation.graders.rows import Graders
from pipeline.evaluation.graders.scalars import Enum
from pipeline.evaluation.graders.verdicts import Graded, Leaf, Scored, Verdict
from pipeline.evaluation.stats.intervals import DRAWS as MOST_DRAWS
from pipeline.evaluation.stats.metrics import BOTH, OF_A_FIELD, Measure, measure

OF_ROWS = ("row_correct", "schema_valid", "failed", *BOTH, "f1_macro")
NOTHING, FAILED = "(none)", "(failed)"
LEAST = 10
"""Rows that a slice must have for its figures to be reported."""
DRAWS = 1_000
"""Bootstrap samples for each of the hundreds of figures of fields and slices: the ends of an interval then vary by
about a fortieth of its width. Figures of all rows, and of gates, use more (`intervals.DRAWS`)."""


@dataclass(frozen=True, slots=True)
class FieldTable:
    """The metrics of one field, by name without the field; `counts` are its leaves by verdict.

    `null` is the share of answered leaves without a value, rightly or not. `invented_where_empty` is how often a value
    was given where none was expected. `nested` has the tables of the paths inside the field, as added by
    `pipeline.evaluation.nested`.
    """

    field: str
    counts: Mapping[str, float]
    measures: Mapping[str, Measure]
    null: float | None
    invented_where_empty: float | None
    nested: tuple[FieldTable, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """The metrics of all rows, or of the slice `column` = `value`. `accuracy_macro` is the mean over the fields."""

    rows: int
    measures: Mapping[str, Measure]
    accuracy_macro: float | None
    fields: tuple[FieldTable, ...]
    column: str | None = None
    value: str | None = None


def unfolded(fields: Iterable[FieldTable]) -> Iterator[tuple[FieldTable, bool]]:
    """Every field followed by its nested tables; the flag marks a nested one."""
    for field in fields:
        yield field, False
        yield from ((inner, True) for inner in field.nested)


@dataclass(frozen=True, slots=True)
class Suppressed:
    """A slice with too few rows to report."""

    column: str
    value: str
    rows: int


@dataclass(frozen=True, slots=True)
class Tables:
    """All rows, and every slice of them, in the order of columns and values."""

    whole: Table
    slices: tuple[Table, ...]
    suppressed: tuple[Suppressed, ...]


def tables(rows: Sequence[Scored], *, least: int = LEAST, seed: int = 0) -> Tables:
    """The tables of scored rows. Slices with fewer than `least` rows are only named."""
    reported, suppressed = [], []
    for (column, value), some in _slices(rows):
        if len(some) < least:
            suppressed.append(Suppressed(column, value, len(some)))
        else:
            reported.append(_table(some, seed, column, value))
    return Tables(_table(rows, seed), tuple(reported), tuple(suppressed))


def _slices(rows: Sequence[Scored]) -> list[tuple[tuple[str, str], list[Scored]]]:
    found: dict[tuple[str, str], list[Scored]] = {}
    for row in rows:
        for key in row.slices.items():
            found.setdefault(key, []).append(row)
    columns = list(dict.fromkeys(column for column, _ in found))
    return sorted(found.items(), key=lambda each: (columns.index(each[0][0]), each[0][1]))


def _table(rows: Sequence[Scored], seed: int, column: str | None = None, value: str | None = None) -> Table:
    draws = MOST_DRAWS if column is None else DRAWS
    measures = {name: measure(name, rows, seed=seed, draws=draws) for name in OF_ROWS}
    names = dict.fromkeys(name for row in rows for name in row.fields)
    fields = tuple(field_table(name, rows, seed) for name in names)
    known = [each for field in fields if (each := field.measures["accuracy"].value) is not None]
    return Table(len(rows), measures, sum(known) / len(known) if known else None, fields, column, value)


def field_table(name: str, rows: Sequence[Scored], seed: int) -> FieldTable:
    """The metrics of a field, over the rows that have it."""
    each = [row.fields[name] for row in rows if name in row.fields]
    total = {verdict.value: sum(getattr(counts, verdict.value) for counts in each) for verdict in Verdict}
    answered = sum(total.values()) - total["failed"]
    return FieldTable(
        name,
        total,
        {family: measure(f"{family}.{name}", rows, seed=seed, draws=DRAWS) for family in OF_A_FIELD},
        null=_share(total["missed"] + total["empty"], answered),
        invented_where_empty=_share(total["invented"], total["invented"] + total["empty"]),
    )


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


@dataclass(frozen=True, slots=True)
class Confusion:
    """How often each expected value of an enum (a row) was answered with each value (a column), over all repeats.

    `(none)` stands for no expected or no given value; `(failed)` for rows without an answer.
    """

    path: str
    expected: tuple[str, ...]
    got: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


def confusions(graders: Graders, graded: Iterable[Graded]) -> list[Confusion]:
    """The confusion matrix of every enum, including those inside objects and lists."""
    enums = {path: grader for path, grader in graders.walk() if isinstance(grader, Enum)}
    found: dict[str, Counter[tuple[str, str]]] = {path: Counter() for path in enums}
    for leaf in _leaves(graded):
        if leaf.path in found:
            answer = FAILED if leaf.verdict is Verdict.failed else _label(leaf.got)
            found[leaf.path][_label(leaf.expected), answer] += 1
    return [_confusion(path, grader, found[path]) for path, grader in enums.items()]


def _leaves(graded: Iterable[Graded]) -> Iterator[Leaf]:
    return (leaf for row in graded for leaves in row.fields.values() for leaf in leaves)


def _confusion(path: str, grader: Enum, found: Counter[tuple[str, str]]) -> Confusion:
    named = [_label(value) for value in grader.values]
    expected = _ordered(named, {one for one, _ in found})
    got = _ordered(named, {other for _, other in found})
    return Confusion(path, expected, got, tuple(tuple(found[one, other] for other in got) for one in expected))


def _ordered(named: Sequence[str], seen: set[str]) -> tuple[str, ...]:
    """The named values, then other values that occurred, then the placeholders that occurred."""
    last = [label for label in (NOTHING, FAILED) if label in seen]
    return (*named, *sorted(seen - {*named, NOTHING, FAILED}), *last)


def _label(value: Any) -> str:
    if value is None:
        return NOTHING
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
