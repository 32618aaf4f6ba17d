"""The base of all graders: frozen values that compare an expected value with a given one, leaf by leaf."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from pipeline.evaluation.graders.values import ABSENT, Nothing, is_nothing, same
from pipeline.evaluation.graders.verdicts import Leaf, Verdict
from pipeline.faults import UsageError

InnerValue = tuple[str, tuple[int, ...], Any]
"""A value inside another one: its path from there, its positions in the lists on the way, and the value."""

_BARE_NAME = re.compile(r"[^.\[\]\"]+")


def step(name: str) -> str:
    """A field's name as a step of a path; names that would make the path ambiguous are put in brackets."""
    return f".{name}" if _BARE_NAME.fullmatch(name) else f"[{json.dumps(name)}]"


@dataclass(frozen=True, slots=True)
class Place:
    """The position of a value in both answers, and the input row they belong to."""

    path: str = ""
    expected_index: tuple[int, ...] = ()
    got_index: tuple[int, ...] = ()
    row: Mapping[str, Any] = field(default_factory=dict)

    def field(self, name: str) -> Place:
        """The place of a field of this object."""
        return replace(self, path=(self.path + step(name)).removeprefix("."))

    def item(self, expected: int | None, got: int | None) -> Place:
        """The place of an item of these lists; None on the side that lacks it."""
        return replace(
            self,
            path=f"{self.path}[]",
            expected_index=self.expected_index if expected is None else (*self.expected_index, expected),
            got_index=self.got_index if got is None else (*self.got_index, got),
        )

    def leaf(self, verdict: Verdict, expected: Any, got: Any, score: float = 0.0, label: str | None = None) -> Leaf:
        """The leaf at this place."""
        expected = None if expected is ABSENT else expected
        got = None if got is ABSENT else got
        return Leaf(self.path, verdict, expected, got, score, label, self.expected_index, self.got_index)

    def part(self, part: InnerValue, verdict: Verdict, got: Any = None) -> Leaf:
        """The leaf of a part of the expected value, or of the given one if the verdict is `invented`."""
        path, index, value = part
        path = (self.path + path).removeprefix(".")
        if verdict is Verdict.invented:
            inside = replace(self, path=path, got_index=self.got_index + index)
            return inside.leaf(verdict, None, value)
        return replace(self, path=path, expected_index=self.expected_index + index).leaf(verdict, value, got)


ROOT = Place()


@dataclass(frozen=True, kw_only=True)
class Grader(ABC):
    """How a field is graded.

    `required` means that the field must be right for its row to be right. `nothing` sets which values count as no
    value: `any` (null, absent, empty text, white space, empty lists and objects), `null` (null and absent) or
    `absent`. If one side has no value, the field is missed or invented; if both have none, it is correctly empty.
    """

    required: bool = True
    nothing: Nothing = "any"

    def __post_init__(self) -> None:
        self._require(self.nothing in get_args(Nothing), f"`nothing` is one of {', '.join(get_args(Nothing))}")

    def _require(self, true: bool, remedy: str) -> None:  # noqa: FBT001 - an assertion
        if not true:
            raise UsageError(f"{type(self).__name__}: {remedy}")

    @property
    def inner(self) -> Mapping[str, Grader]:
        """The graders of inner values, by the step of the path that leads there."""
        return {}

    def gives(self, value: Any) -> bool:
        """Whether this counts as a value."""
        return not is_nothing(value, self.nothing)

    def parts(self, value: Any) -> Iterator[InnerValue]:
        """The leaves of a value that counts as one: missed or invented when the other side has none."""
        yield "", (), value

    def grade(self, expected: Any, got: Any, at: Place = ROOT) -> Iterator[Leaf]:
        """The leaves of both values, at least one. Accepts any JSON on either side without raising."""
        match self.gives(expected), self.gives(got):
            case True, True:
                yield from self.compare(expected, got, at)
            case True, False:
                yield from self.one_sided(expected, at, Verdict.missed)
            case False, True:
                yield from self.one_sided(got, at, Verdict.invented)
            case _:
                yield at.leaf(Verdict.empty, None, None, 1.0)

    def one_sided(self, value: Any, at: Place, verdict: Verdict, got: Any = None) -> Iterator[Leaf]:
        """The leaves of a value without a counterpart, or with one of another type; at least one."""
        parts = list(self.parts(value)) or [("", (), value)]
        yield from (at.part(part, verdict, got) for part in parts)

    def alike(self, expected: Any, got: Any, at: Place = ROOT) -> float | None:
        """The similarity of two values, from 0 to 1; None when neither side has one."""
        scores = [leaf.score for leaf in self.grade(expected, got, at) if leaf.verdict is not Verdict.empty]
        return sum(scores) / len(scores) if scores else None

    def agree(self, expected: Any, got: Any, at: Place = ROOT) -> bool:
        """Whether all leaves of two values are right."""
        return all(leaf.right for leaf in self.grade(expected, got, at))

    def repeats(self, one: Any, other: Any) -> bool:
        """Whether two values of one answer are duplicates."""
        return same(one, other)

    @abstractmethod
    def compare(self, expected: Any, got: Any, at: Place) -> Iterator[Leaf]:
        """The leaves of two values, both of which count as one."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of comparing two values: whether they match, a score from 0 to 1, and an optional label."""

    right: bool
    score: float
    label: str | None = None

    @classmethod
    def check(cls, right: bool) -> Finding:  # noqa: FBT001 - the check's whole result
        """The finding of a yes-or-no comparison."""
        return cls(right, float(right))


@dataclass(frozen=True, kw_only=True)
class Scalar(Grader):
    """A grader of one leaf."""

    def compare(self, expected: Any, got: Any, at: Place) -> Iterator[Leaf]:
        """The one leaf."""
        found = self.find(expected, got, at.row)
        yield at.leaf(Verdict.match if found.right else Verdict.wrong, expected, got, found.score, found.label)

    def alike(self, expected: Any, got: Any, at: Place = ROOT) -> float | None:
        """The score; 0 if only one side has a value."""
        match self.gives(expected), self.gives(got):
            case True, True:
                return self.find(expected, got, at.row).score
            case False, False:
                return None
            case _:
                return 0.0

    @abstractmethod
    def find(self, expected: Any, got: Any, row: Mapping[str, Any]) -> Finding:
        """Compares two values. An expected value of a type the grader does not handle matches only an equal one."""


@dataclass(frozen=True)
class Ignore(Grader):
    """Not graded: the field has no leaves."""

    def gives(self, value: Any) -> bool:  # noqa: ARG002 - independent of the value
        """No value counts."""
        return False

    def grade(self, expected: Any, got: Any, at: Place = ROOT) -> Iterator[Leaf]:  # noqa: ARG002 - not looked at
        """No leaves."""
        yield from ()

    def compare(self, expected: Any, got: Any, at: Place) -> Iterator[Leaf]:  # noqa: ARG002 - not looked at
        """No leaves."""
        yield from ()


def require_grader(value: object, where: str) -> None:
    """Raises UsageError when the value is not a grader, or is a class instead of an instance."""
    if isinstance(value, type) and issubclass(value, Grader):
        raise UsageError(f"{where}: {value.__name__} is a class, write {value.__name__}()")
    if not isinstance(value, Grader):
        raise UsageError(f"{where}: {value!r} is not a grader; use one of pipeline.evaluation, such as Text()")


def mistyped(grader: Grader, expected: Any, got: Any, at: Place) -> Iterator[Leaf]:
    """The leaves of an object or a list whose counterpart, expected or given, has another type."""
    if same(expected, got):
        yield at.leaf(Verdict.match, expected, got, 1.0)
    else:
        yield from grader.one_sided(expected, at, Verdict.wrong, got)
