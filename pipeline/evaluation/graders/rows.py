"""Grades a given answer against the expected one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pipeline.evaluation.graders.base import Grader, Ignore, Place
from pipeline.evaluation.graders.values import ABSENT, plain
from pipeline.evaluation.graders.verdicts import Graded, Leaf, Verdict
from pipeline.faults import UsageError
from pipeline.text import nearest

ANSWER = "answer"
"""The single field of answers that are not graded field by field."""


@dataclass(frozen=True)
class Graders:
    """The grader of every field.

    With `whole` there is one, `answer`, which grades the answer as a whole. With `closed` an expected answer may have
    no other fields: a misspelt one would otherwise never be graded.
    """

    fields: Mapping[str, Grader]
    whole: bool = False
    closed: bool = False

    @cached_property
    def optional(self) -> tuple[str, ...]:
        """The paths that may be wrong in a right row."""
        return tuple(path for path, grader in self.walk() if not grader.required)

    def walk(self) -> Iterator[tuple[str, Grader]]:
        """Every grader with the path of its leaves, outer graders before inner ones."""
        for name, grader in self.fields.items():
            yield from _walk(Place().field(name).path, grader)


def _walk(path: str, grader: Grader) -> Iterator[tuple[str, Grader]]:
    yield path, grader
    for step, inner in grader.inner.items():
        yield from _walk(path + step, inner)


@dataclass(frozen=True, slots=True)
class Gold:
    """A row of the gold data: its name, the expected answer, and all its columns, for graders that are functions."""

    row: str
    expected: Any
    columns: Mapping[str, Any] = field(default_factory=dict)
    slices: Mapping[str, str] = field(default_factory=dict)
    cluster: str | None = None


@dataclass(frozen=True, slots=True)
class RowAnswer:
    """The result of a row in one repeat: the answer, or the type of its fault."""

    got: Any = None
    fault: str | None = None
    repeat: int = 0
    cost_usd: float | None = None
    latency_s: float | None = None


def grade_row(graders: Graders, gold: Gold, answer: RowAnswer) -> Graded:
    """Grades the answer. Pure. Python values (dates, decimals, models) are converted to JSON first.

    Any JSON is graded, never refused. Raises UsageError when the row has no usable expected answer.
    """
    expected = _by_field(graders, gold)
    fields = {
        name: tuple(_leaves(grader, expected.get(name, ABSENT), got, Place(row=gold.columns).field(name)))
        for name, grader, got in _answers(graders, answer)
        if not isinstance(grader, Ignore)
    }
    return Graded(
        row=gold.row,
        repeat=answer.repeat,
        correct=answer.fault is None and all_right(graders, fields),
        fields=fields,
        slices=gold.slices,
        cluster=gold.cluster,
        fault=answer.fault,
        cost_usd=answer.cost_usd,
        latency_s=answer.latency_s,
    )


def all_right(graders: Graders, fields: Mapping[str, tuple[Leaf, ...]]) -> bool:
    """Whether all leaves are right, except those of optional fields."""
    wrong = (leaf.path for leaves in fields.values() for leaf in leaves if not leaf.right)
    return all(any(_lies_in(path, optional) for optional in graders.optional) for path in wrong)


def _lies_in(path: str, outer: str) -> bool:
    return path.startswith(outer) and path[len(outer) : len(outer) + 1] in ("", ".", "[")


def _by_field(graders: Graders, gold: Gold) -> Mapping[str, Any]:
    expected = plain(gold.expected)
    if expected is None:
        raise UsageError(f"the row {gold.row} has no expected answer: add it, or leave the row out")
    if graders.whole:
        return {ANSWER: expected}
    if not isinstance(expected, Mapping):
        raise UsageError(f"the expected answer of the row {gold.row} must be an object with the fields of the schema")
    for name in expected if graders.closed else ():
        if name not in graders.fields:
            hint = nearest(name, [*graders.fields])
            raise UsageError(f"the expected answer of the row {gold.row} has the unknown field {name!r}{hint}")
    return expected


class _Failed:
    """The value of every field in a row without an answer."""


@dataclass(frozen=True, slots=True)
class _Foreign:
    """The value of every field in an answer that is not an object."""

    answer: Any


def _answers(graders: Graders, answer: RowAnswer) -> Iterator[tuple[str, Grader, Any]]:
    got = plain(answer.got)
    for name, grader in graders.fields.items():
        if answer.fault is not None:
            yield name, grader, _Failed()
        elif graders.whole or got is None:
            yield name, grader, got
        elif isinstance(got, Mapping):
            yield name, grader, got.get(name, ABSENT)
        else:
            yield name, grader, _Foreign(got)


def _leaves(grader: Grader, expected: Any, got: Any, at: Place) -> Iterator[Leaf]:
    match got:
        case _Failed() if grader.gives(expected):
            yield from grader.one_sided(expected, at, Verdict.failed)
        case _Failed():
            yield at.leaf(Verdict.failed, None, None)
        case _Foreign(answer) if grader.gives(expected):
            yield from grader.one_sided(expected, at, Verdict.wrong, answer)
        case _Foreign(answer):
            yield at.leaf(Verdict.invented, None, answer)
        case _:
            yield from grader.grade(expected, got, at)
