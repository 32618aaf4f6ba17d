"""The grader of objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.evaluation.graders.base import ROOT, Grader, InnerValue, Place, mistyped, require_grader, step
from pipeline.evaluation.graders.values import ABSENT, same
from pipeline.evaluation.graders.verdicts import Leaf, Verdict


@dataclass(frozen=True)
class Object(Grader):
    """An object, each of its `fields` graded by its own grader; other fields by the schema's default.

    Without a schema, keys without a grader are ignored; without any grader the object must be equal as JSON.
    """

    fields: Mapping[str, Grader] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, grader in self.fields.items():
            require_grader(grader, f"{name!r}")

    @property
    def inner(self) -> Mapping[str, Grader]:
        """The graders of the fields."""
        return {step(name): grader for name, grader in self.fields.items()}

    def gives(self, value: Any) -> bool:
        """An object counts as a value if one of its fields does; unless `nothing` is `any`, so does an empty one."""
        if self.nothing == "any" and self.fields and isinstance(value, Mapping):
            return any(grader.gives(value.get(name, ABSENT)) for name, grader in self.fields.items())
        return super().gives(value)

    def parts(self, value: Any) -> Iterator[InnerValue]:
        """The leaves of all fields that count as values."""
        if not self.fields or not isinstance(value, Mapping):
            yield "", (), value
            return
        for name, grader in self.fields.items():
            inside = value.get(name, ABSENT)
            if grader.gives(inside):
                yield from ((step(name) + path, index, leaf) for path, index, leaf in grader.parts(inside))

    def compare(self, expected: Any, got: Any, at: Place) -> Iterator[Leaf]:
        """The leaves of all fields."""
        if not self.fields and not same(expected, got):
            yield at.leaf(Verdict.wrong, expected, got)
        elif not (self.fields and isinstance(expected, Mapping) and isinstance(got, Mapping)):
            yield from mistyped(self, expected, got, at)
        else:
            for name, grader in self.fields.items():
                yield from grader.grade(expected.get(name, ABSENT), got.get(name, ABSENT), at.field(name))

    def alike(self, expected: Any, got: Any, at: Place = ROOT) -> float | None:
        """The mean over the fields that either side has, each field counting once."""
        if not (self.fields and isinstance(expected, Mapping) and isinstance(got, Mapping)):
            return super().alike(expected, got, at)
        each = [
            grader.alike(expected.get(name, ABSENT), got.get(name, ABSENT), at) for name, grader in self.fields.items()
        ]
        known = [likeness for likeness in each if likeness is not None]
        return sum(known) / len(known) if known else None
