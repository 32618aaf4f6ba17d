"""What grading finds: a verdict a leaf, the counts of a field in a row, the score of a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """What became of one expected or given value."""

    match = "match"
    wrong = "wrong"
    """Both were given, and differ."""
    missed = "missed"
    """Expected, and not given."""
    invented = "invented"
    """Given, and not expected."""
    empty = "empty"
    """Neither expected nor given: correctly empty."""
    failed = "failed"
    """Expected (or not), but the row has no answer: it failed or was refused."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """One graded value. `expected` and `got` are JSON values, None where there is none.

    `path` names it from the root of the answer, as in `line_items[].amount`: the same for all items of a list, whose
    places `expected_index` and `got_index` tell, outermost list first. An item that met no other has no place on the
    other side. `score` is between 0 and 1; `label` is what a grader that gives names said.
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
        """Whether nothing is to be said against it."""
        return self.verdict in (Verdict.match, Verdict.empty)


@dataclass(frozen=True, slots=True)
class Graded:
    """One answer, graded: a row of the gold data in one repeat.

    `fields` names the field of the evaluation that every leaf belongs to, with its leaves. `correct` says that all
    required fields are right. `fault` is the type of the failure, when the row failed.
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
class Counts:
    """The leaves of one field in one row, by verdict; means over the repeats, where there are several.

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
    """One row of the gold data over all its repeats: what runs are compared by.

    `correct` is 0 or 1, or between them when repeats are reduced to their mean; `flaky` says that repeats disagree.
    `failed` is the share of repeats without an answer, `cost_usd` the sum and `latency_s` the mean over the repeats.
    `repeats_right` counts the repeats that were right by themselves, before they were reduced to `correct`.
    """

    row: str
    correct: float
    fields: Mapping[str, Counts]
    slices: Mapping[str, str] = field(default_factory=dict)
    cluster: str | None = None
    failed: float = 0.0
    flaky: bool = False
    cost_usd: float | None = None
    latency_s: float | None = None
    repeats: int = 1
    repeats_right: int | None = None
