"""Graders of lists: as sets, in order, or item by item through the best assignment."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pipeline.evaluation.graders.alignment import Pairs, assigned, in_order
from pipeline.evaluation.graders.base import Grader, InnerValue, Place, mistyped, require_grader, step
from pipeline.evaluation.graders.objects import Object
from pipeline.evaluation.graders.scalars import Text
from pipeline.evaluation.graders.verdicts import Leaf, Verdict

Places = list[tuple[int, Any]]
"""The items of a list that count as values, with their positions in it."""


@dataclass(frozen=True)
class Listed(Grader):
    """A list, each item graded by `of`: the grader that the schema suggests, or `Text` without one.

    Items that do not count as values are skipped, wherever they are.
    """

    of: Grader | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.of is not None:
            require_grader(self.of, f"{type(self).__name__}(of=...)")

    @cached_property
    def item(self) -> Grader:
        """The grader of an item."""
        return self.of or Text()

    @property
    def inner(self) -> Mapping[str, Grader]:
        """The grader of the items."""
        return {"[]": self.item}

    def gives(self, value: Any) -> bool:
        """A list counts as a value if one of its items does; unless `nothing` is `any`, so does an empty one."""
        if self.nothing == "any" and isinstance(value, list):
            return any(map(self.item.gives, value))
        return super().gives(value)

    def parts(self, value: Any) -> Iterator[InnerValue]:
        """The leaves of all items."""
        if not isinstance(value, list):
            yield "", (), value
            return
        for place, item in self._places(value):
            for path, index, leaf in self.item.parts(item):
                yield f"[]{path}", (place, *index), leaf

    def compare(self, expected: Any, got: Any, at: Place) -> Iterator[Leaf]:
        """The leaves of all items of both lists: in the expected order, then the invented ones."""
        if not (isinstance(expected, list) and isinstance(got, list)):
            yield from mistyped(self, expected, got, at)
            return
        wanted, given = self._places(expected), self._places(got)
        if not wanted and not given:
            yield at.leaf(Verdict.match, expected, got, 1.0)
            return
        partner = dict(self.pairs([item for _, item in wanted], [item for _, item in given], at))
        for position, (i, item) in enumerate(wanted):
            if position in partner:
                j, other = given[partner[position]]
                yield from self.item.grade(item, other, at.item(i, j))
            else:
                yield from self.item.one_sided(item, at.item(i, None), Verdict.missed)
        met = set(partner.values())
        for position, (j, item) in enumerate(given):
            if position not in met:
                yield from self.item.one_sided(item, at.item(None, j), Verdict.invented)

    def _places(self, items: list[Any]) -> Places:
        return [(place, item) for place, item in enumerate(items) if self.item.gives(item)]

    @abstractmethod
    def pairs(self, expected: Sequence[Any], got: Sequence[Any], at: Place) -> Pairs:
        """Pairs expected items with given ones."""


@dataclass(frozen=True)
class Set(Listed):
    """A list whose order and duplicates do not matter: an item matches, is missed or is invented, never wrong."""

    def _places(self, items: list[Any]) -> Places:
        kept: Places = []
        for place, item in super()._places(items):
            if not any(self.item.repeats(known, item) for _, known in kept):
                kept.append((place, item))
        return kept

    def pairs(self, expected: Sequence[Any], got: Sequence[Any], at: Place) -> Pairs:
        """As many agreeing pairs as possible."""
        return assigned([[1.0 if self.item.agree(one, other, at) else None for other in got] for one in expected])


@dataclass(frozen=True)
class Ordered(Listed):
    """A list in order, aligned along a longest common subsequence, so that an extra item does not shift the rest."""

    def pairs(self, expected: Sequence[Any], got: Sequence[Any], at: Place) -> Pairs:
        """Pairs along a longest common subsequence."""
        return in_order(len(expected), len(got), lambda i, j: self.item.agree(expected[i], got[j], at))


@dataclass(frozen=True)
class Items(Listed):
    """A list whose order does not matter; each expected item is paired with the most similar given one.

    Items are scalars or lists, graded by `of`, or objects with `fields`. Items less similar than `at_least` are not
    paired: one is missed, the other invented. With `key`, items are paired if they agree in these fields, however
    different otherwise; items that both lack a key, as without one. The similarity of objects is the mean over the
    fields that either of them has.
    """

    fields: Mapping[str, Grader] = field(default_factory=dict)
    key: str | Sequence[str] | None = None
    at_least: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(not (self.of and self.fields), "`of` and `fields` exclude each other: fields are of objects")
        self._require(0 <= self.at_least <= 1, f"`at_least` is a similarity from 0 to 1, not {self.at_least}")
        self._require(self.key is None or all(self.keys or [""]), "`key` names the field that items are known by")
        self._require(not (self.of and self.key), "a `key` is a field of objects: give their graders in `fields`")
        for name, grader in self.fields.items():
            require_grader(grader, f"{name!r}")

    @cached_property
    def item(self) -> Grader:
        """The grader of an item."""
        fields = {name: Text() for name in self.keys} | dict(self.fields)
        return Object(fields) if fields else super().item

    @property
    def keys(self) -> tuple[str, ...]:
        """The fields that identify items."""
        return (self.key,) if isinstance(self.key, str) else tuple(self.key or ())

    def pairs(self, expected: Sequence[Any], got: Sequence[Any], at: Place) -> Pairs:
        """The pairs of the greatest total similarity."""
        return assigned([[self._likeness(one, other, at) for other in got] for one in expected])

    def _likeness(self, expected: Any, got: Any, at: Place) -> float | None:
        by_key = self.keys and (self._known_by.gives(expected) or self._known_by.gives(got))
        if by_key and not self._known_by.agree(expected, got, at):
            return None
        likeness = self.item.alike(expected, got, at) or 0.0
        if by_key:  # 1 more than any similarity: as many pairs with equal keys as possible, then the most similar
            return 1.0 + likeness
        return likeness if likeness >= self.at_least else None

    @cached_property
    def _known_by(self) -> Object:
        """The grader of only the key fields."""
        return Object({name: self.item.inner[step(name)] for name in self.keys})
