"""The results of grading: a verdict per leaf, counts per field and row, a score per row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """The verdict on one expected or given value."""

    match = "match"
    wrong = "wrong"
    """Both sides have a value, and they differ."""
    missed = "missed"
    """Expected but not given."""
    invented = "invented"
    """Given but not expected."""
    empty = "empty"
    """Neither expected nor given: correctly empty."""
    failed = "failed"
    """The row has no answer: it failed or was refused, whatever was expected."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """One graded value. `expected` and `got` are JSON values, None where there is none.

    `path` is its path from the root of the answer, such as `line_items[].amount`: the same for all items of a list,
    whose positions are `expected_index` and `got_index`, outermost list first. An unmatched item has no position on the
    other side. `score` is between 0 and 1; `label` is set by graders that return labels.
    """

    path: str
    verdict: Verdict
    expected: Any = None
    got: Any = None
    score: float = 0.0
    label: str | None = None
    expected_index: tuple[int, ...] = ()
    got_index: tuple[int, ...] = ()

    @property
    def right(self) -> bool:
        """Whether the leaf counts as right."""
        return self.verdict in (Verdict.match, Verdict.empty)


@dataclass(frozen=True, slots=True)
class Graded:
    """One answer, graded: a row of the gold data in one repeat.

    `fields` maps every field of the evaluation to its leaves. `correct` means that all required fields are right.
    `fault` is the type of the failure if the row failed.
    """

    row: str
    repeat: int
    correct: bool
    fields: Mapping[str, tuple[Leaf, ...]]
    slices: Mapping[str, str] = field(default_factory=dict)
    cluster: str | None = None
    fault: str | None = None
    cost_usd: float | None = None
    latency_s: float | None = None


@dataclass(frozen=True, slots=True)
class VerdictCounts:
    """The leaves of one field in one row, by verdict; means over the repeats if there are several.

    `right` is the share of repeats in which all leaves of the field are right, `score` the mean score of its leaves.
    """

    right: float
    score: float
    match: float = 0.0
    wrong: float = 0.0
    missed: float = 0.0
    invented: float = 0.0
    empty: float = 0.0
    failed: float = 0.0


@dataclass(frozen=True, slots=True)
class Scored:
    """One row of the gold data over all its repeats: the unit of comparison between runs.

    `correct` is 0 or 1, or between them when repeats are reduced to their mean; `flaky` means that repeats disagree.
    `failed` is the share of repeats without an answer, `cost_usd` the sum and `latency_s` the mean over the repeats.
    `repeats_right` counts the right repeats, before they are reduced to `correct`.
    """

    row: str
    correct: float
    fields: Mapping[str, VerdictCounts]
    slices: Mapping[str, str] = field(default_factory=dict)
    cluster: str | None = None
    failed: float = 0.0
    flaky: bool = False
    cost_usd: float | None = None
    latency_s: float | None = None
    repeats: int = 1
    repeats_right: int | None = None
