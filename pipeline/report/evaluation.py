"""The evaluation part of the page, as values that a template only has to print."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.evaluation.assessment import Assessment
from pipeline.evaluation.comparison import MetricChange
from pipeline.evaluation.decisions import Decision
from pipeline.evaluation.graders.verdicts import Graded, Leaf
from pipeline.evaluation.stats.metrics import Measure, metric_of
from pipeline.evaluation.stats.tables import Confusion, FieldTable, Table
from pipeline.faults import UsageError
from pipeline.report.phrases import place, render_row, value, wrong_leaves, wrong_rows
from pipeline.text.figures import Unit, chance, difference, figure, percent_range

HEAT = 8
"""The number of shades of a cell."""

_SHORTFALLS = (0.0, 0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5)
"""Shortfalls from 100 % at which the next shade begins: useful fields are between 85 and 100 %."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A value with its interval on a scale from 0 to 100. None is off the scale or unknown."""

    low: float
    high: float
    value: float | None
    limit: float | None = None
    zero: float | None = None


@dataclass(frozen=True, slots=True)
class Figure:
    """A number as text, as a sort key, and as a bar."""

    text: str
    sort: float | None
    interval: str = ""
    bar: Bar | None = None
    short: int | None = None
    """The shade for the shortfall from 100 %."""


@dataclass(frozen=True, slots=True)
class GateRow:
    """A gate: its condition and its result."""

    decision: Decision
    found: Figure
    limit: str


@dataclass(frozen=True, slots=True)
class FieldRow:
    """A field: the share of rows in which it is right, its other figures, its leaves by verdict.

    `inside` marks a leaf inside the preceding field, named by its path.
    """

    name: str
    right: Figure
    others: tuple[Figure, ...]
    counts: tuple[float, ...]
    inside: bool = False


@dataclass(frozen=True, slots=True)
class SliceRow:
    """A slice: its rows, how many are right, and each field."""

    column: str
    value: str
    rows: int
    right: Figure
    fields: tuple[Figure, ...]


@dataclass(frozen=True, slots=True)
class ChangeRow:
    """A metric before and after."""

    name: str
    change: MetricChange
    before: str
    after: str
    difference: Figure
    p: str
    q: str
    tone: str


@dataclass(frozen=True, slots=True)
class MarkedText:
    """A text in three parts: the prefix and suffix shared with another text, and the difference between."""

    head: str
    middle: str
    tail: str


@dataclass(frozen=True, slots=True)
class Difference:
    """A wrong leaf: where, what was expected, what was given, and the verdict."""

    place: str
    expected: MarkedText
    got: MarkedText
    verdict: str
    label: str | None


@dataclass(frozen=True, slots=True)
class WrongRow:
    """A row that is not right, with the differences, the fields that are right, and the prompt if it is known."""

    graded: Graded
    summary: str
    broken: bool
    flaky: bool
    wrong_fields: tuple[int, ...]
    right_fields: tuple[str, ...]
    slices: tuple[int, ...]
    differences: tuple[Difference, ...]
    left_out: int
    prompt: str | None


FIELD_FIGURES = ("accuracy", "precision", "recall", "f1", "score")
FIELD_COUNTS = ("match", "wrong", "missed", "invented", "empty", "failed")


def unit_of(metric: str | None) -> Unit:
    """The unit of the metric with this name."""
    try:
        return metric_of(metric).unit if metric else "share"
    except UsageError:
        return "share"


def share(found: Measure) -> Figure:
    """A share with its interval, on the scale from 0 to 100 %."""
    text = figure(found.value, "share")
    if found.value is None:
        return Figure(text, None, found.why)
    interval = percent_range(found.low, found.high)
    bar = Bar(_percent(found.low), _percent(found.high), _percent(found.value))
    return Figure(text, found.value, interval, bar, short_of(found.value))


def short_of(part: float) -> int:
    """The shade for a share's shortfall: from 0 for everything displayed as 100 %, up to `HEAT`."""
    return bisect_left(_SHORTFALLS, round(1 - part, 3))


def heat_of(part: float) -> int:
    """The shade of a share."""
    return min(HEAT, max(0, math.floor(part * HEAT + 1e-9)))


def _percent(part: float) -> float:
    return round(100 * min(1.0, max(0.0, part)), 2)


def gate_rows(assessment: Assessment) -> list[GateRow]:
    """The gates; those that did not pass come first."""
    order = ["fail", "warn", "info", "ok"]
    ranked = sorted(assessment.decisions, key=lambda decision: order.index(decision.outcome))
    return [_gate_row(decision) for decision in ranked]


def _gate_row(decision: Decision) -> GateRow:
    if decision.metric is None:
        return GateRow(decision, Figure(f"{len(decision.rows)} broken", len(decision.rows)), "0")
    unit = unit_of(decision.metric)
    if decision.before is None:
        found = _found(decision, unit)
        limit = "-" if decision.limit is None else figure(decision.limit, unit)
    else:
        found = _moved(decision, unit)
        limit = difference(_tolerated(decision), unit)
    return GateRow(decision, found, limit)


def _found(decision: Decision, unit: Unit) -> Figure:
    """The interval and the bound on one scale; for shares it need not begin at 0."""
    text = figure(decision.value, unit)
    if decision.value is None or decision.interval is None:
        return Figure(text, decision.value)
    low, high = decision.interval
    interval = f"{figure(low, unit)} to {figure(high, unit)}"
    points = [low, high, decision.value, *([] if decision.limit is None else [decision.limit])]
    return Figure(text, decision.value, interval, _bar(points, low, high, decision.value, limit=decision.limit))


def _moved(decision: Decision, unit: Unit) -> Figure:
    """The difference from the baseline, with marks at zero and at the worst tolerated difference."""
    if decision.value is None or decision.before is None or decision.interval is None:
        return Figure(figure(decision.value, unit), decision.value)
    moved, (low, high) = decision.value - decision.before, decision.interval
    limit = _tolerated(decision)
    bar = _bar([low, high, moved, limit, 0.0], low, high, moved, limit=limit, zero=0.0)
    interval = f"{difference(low, unit)} to {difference(high, unit)}"
    return Figure(difference(moved, unit), moved, interval, bar)


def _tolerated(decision: Decision) -> float:
    """The worst tolerated difference."""
    falls = metric_of(str(decision.metric)).lower_is_better
    return (decision.limit or 0.0) * (1 if falls else -1)


def _bar(
    points: Sequence[float],
    low: float,
    high: float,
    at: float,
    *,
    limit: float | None = None,
    zero: float | None = None,
) -> Bar | None:
    known = [point for point in points if math.isfinite(point)]
    least, most = min(known), max(known)
    room = (most - least) * 0.12 or 1e-9
    start, width = least - room, most - least + 2 * room

    def scaled(point: float) -> float:
        return round(100 * min(1.0, max(0.0, (point - start) / width)), 2)

    return Bar(
        scaled(low),
        scaled(high),
        scaled(at),
        None if limit is None else scaled(limit),
        None if zero is None else scaled(zero),
    )


def field_groups(table: Table) -> list[list[FieldRow]]:
    """The fields in the order of the schema, each followed by the leaves inside it."""
    return [[_field_row(field), *(_field_row(leaf, inside=True) for leaf in field.nested)] for field in table.fields]


def _field_row(table: FieldTable, *, inside: bool = False) -> FieldRow:
    return FieldRow(
        table.field,
        share(table.measures["right"]),
        tuple(share(table.measures[name]) for name in FIELD_FIGURES),
        tuple(table.counts[name] for name in FIELD_COUNTS),
        inside,
    )


def slice_rows(tables: Sequence[Table], names: Sequence[str]) -> Iterator[SliceRow]:
    """Every slice with every named field."""
    for table in tables:
        right = {each.field: share(each.measures["right"]) for each in table.fields}
        fields = tuple(right.get(name, Figure("-", None)) for name in names)
        yield SliceRow(str(table.column), str(table.value), table.rows, share(table.measures["row_correct"]), fields)


def matrix(confusion: Confusion) -> list[tuple[str, list[tuple[int, int, bool]], int]]:
    """The rows of a confusion matrix: the expected value, its cells (count, shade, whether right) and their sum."""
    lines = []
    for expected, counts in zip(confusion.expected, confusion.counts, strict=True):
        total = sum(counts)
        cells = [
            (count, heat_of(count / total) if total else 0, expected == got)
            for got, count in zip(confusion.got, counts, strict=True)
        ]
        lines.append((expected, cells, total))
    return lines


def change_rows(changes: Sequence[MetricChange]) -> list[ChangeRow]:
    """Metrics before and after, on one scale of differences."""
    reach = max((_reach(change) for change in changes), default=0.0) or 1e-9
    return [_change_row(change, reach) for change in changes]


def _reach(change: MetricChange) -> float:
    """The largest distance of its interval from 0; capped, so that one wide interval does not flatten all others."""
    known = [abs(each) for each in (change.low, change.high, change.difference or 0.0) if math.isfinite(each)]
    return min(max(known, default=0.0), 4 * abs(change.difference or 0.0) + 0.2)


def _change_row(change: MetricChange, reach: float) -> ChangeRow:
    metric, unit = metric_of(change.metric), unit_of(change.metric)
    where = ", ".join(f"{name} = {wanted}" for name, wanted in change.where.items())
    found = Figure(difference(change.difference, unit), change.difference, change.why)
    if change.difference is not None:
        interval = f"{difference(change.low, unit)} to {difference(change.high, unit)}"
        low, high, at = (
            round(50 + 46 * max(-1.0, min(1.0, each / reach)), 2)
            for each in (change.low, change.high, change.difference)
        )
        found = Figure(difference(change.difference, unit), change.difference, interval, Bar(low, high, at, zero=50.0))
    chosen = change.q if change.q is not None else change.p
    worse = (change.difference or 0.0) * (-1 if metric.lower_is_better else 1) < 0
    significant = change.difference is not None and chosen < 0.05
    return ChangeRow(
        where or metric.field or change.metric,
        change,
        figure(change.before, unit),
        figure(change.after, unit),
        found,
        chance(change.p if change.difference is not None else None),
        chance(change.q),
        ("worse" if worse else "better") if significant else "same",
    )


def wrong_row_views(
    assessment: Assessment, prompts: Mapping[str, str], *, most: int, leaves: int, characters: int
) -> list[WrongRow]:
    """The first rows that are not right, up to the limit."""
    broken = set(assessment.comparison.broken) if assessment.comparison else set()
    flaky = {each.row for each in assessment.flaky}
    fields = [each.field for each in assessment.tables.whole.fields]
    slices = slice_values(assessment)
    return [
        WrongRow(
            graded=row,
            summary=render_row(row),
            broken=row.row in broken,
            flaky=row.row in flaky,
            wrong_fields=tuple(number for number, name in enumerate(fields) if not _right(row, name)),
            right_fields=tuple(name for name in fields if _right(row, name)),
            slices=tuple(slices.index(item) for item in row.slices.items() if item in slices),
            differences=tuple(_difference(leaf, characters) for leaf in wrong_leaves(row)[:leaves]),
            left_out=max(0, len(wrong_leaves(row)) - leaves),
            prompt=prompts.get(row.row),
        )
        for row in wrong_rows(assessment)[:most]
    ]


def slice_values(assessment: Assessment) -> list[tuple[str, str]]:
    """The slice values of all rows that are not right, sorted, up to what a list can show."""
    return sorted({item for row in assessment.graded if not row.correct for item in row.slices.items()})[:300]


def _right(row: Graded, field: str) -> bool:
    return all(leaf.right for leaf in row.fields.get(field, ()))


def _difference(leaf: Leaf, characters: int) -> Difference:
    expected, got = (_shown(each, characters) for each in (leaf.expected, leaf.got))
    both = leaf.verdict == "wrong"
    one, other = parted(expected, got) if both else (MarkedText("", expected, ""), MarkedText("", got, ""))
    return Difference(place(leaf), one, other, leaf.verdict.value, leaf.label)


def _shown(content: Any, characters: int) -> str:
    return "" if content is None else value(content, characters)


def parted(one: str, other: str) -> tuple[MarkedText, MarkedText]:
    """Splits two texts where they differ."""
    most = min(len(one), len(other))
    head = next((place for place in range(most) if one[place] != other[place]), most)
    rest = most - head
    tail = next((place for place in range(rest) if one[-1 - place] != other[-1 - place]), rest)
    return _piece(one, head, tail), _piece(other, head, tail)


def _piece(text: str, head: int, tail: int) -> MarkedText:
    end = len(text) - tail
    return MarkedText(text[:head], text[head:end], text[end:])
