"""The nodes of a compiled schema: each finds its value in a text, or invents one that is valid.

`find` returns NOTHING when the text has no value for the node; `every` returns all values that a list could hold;
`invent` always returns a valid value. `height` is the minimum nesting of an invented value, which ends recursion.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from pipeline.emulator.answers.hints import Hint, Scene, every, labelled
from pipeline.emulator.protocol.wire import TOO_MANY_STATES, invalid

NOTHING: Final = object()
DEEPEST = 40
MOST_ITEMS = 100
ANCHORS = ("date", "datetime", "amount", "time", "email", "phone", "person", "organisation", "place", "title")
POINT_ANCHORS = frozenset({"email", "phone", "person", "organisation", "place"})


class Node(Protocol):
    """What a schema compiles to."""

    @property
    def kind(self) -> str:
        """The kind of fact it holds; empty for no particular kind."""

    def find(self, scene: Scene) -> Any:
        """The value in the text, or NOTHING."""

    def every(self, scene: Scene) -> list[Any]:
        """All values of the node that the text contains."""

    def invent(self, scene: Scene) -> Any:
        """A valid value that does not depend on the text."""

    def height(self, path: frozenset[int]) -> float:
        """The minimum nesting of an invented value; `path` holds the references on the way to this node."""


class LeafNode:
    """A node without children."""

    @property
    def kind(self) -> str:
        """No particular kind."""
        return ""

    def find(self, scene: Scene) -> Any:
        """The value in the text, or NOTHING."""
        return next(iter(self.every(scene)), NOTHING)

    def every(self, scene: Scene) -> list[Any]:  # noqa: ARG002 - of the seam
        """All values of the node that the text contains."""
        return []

    def height(self, path: frozenset[int]) -> float:  # noqa: ARG002 - of the seam
        """Always without nesting."""
        return 0.0


@dataclass(frozen=True)
class AnyNode(LeafNode):
    """A schema that allows any value."""

    hint: Hint

    def every(self, scene: Scene) -> list[Any]:
        """The value after its label."""
        found = labelled(self.hint, scene.facts)
        return [found.value] if found else []

    def invent(self, scene: Scene) -> Any:  # noqa: ARG002 - of the seam
        """Null."""
        return None


@dataclass(frozen=True)
class EnumNode(LeafNode):
    """`enum` and `const`: the values that occur in the text as whole words, in the order of their first occurrence."""

    values: tuple[Any, ...]
    hint: Hint
    patterns: tuple[re.Pattern[str] | None, ...] = field(default=())

    def every(self, scene: Scene) -> list[Any]:
        """Its values that occur in the text."""
        text = scene.facts.lowered
        hits = [(m.start(), -len(m[0]), i) for i, p in enumerate(self.patterns) if p and (m := p.search(text))]
        return [self.values[index] for _, _, index in sorted(hits)]

    def invent(self, scene: Scene) -> Any:
        """Null when it is allowed, else any of the values."""
        return None if None in self.values else scene.dice.pick(self.values)


@dataclass(frozen=True)
class BooleanNode(LeafNode):
    """True when a word of the property's name occurs and is not negated."""

    hint: Hint

    def every(self, scene: Scene) -> list[Any]:
        """At most one value."""
        for word in self.hint.own_words:
            if hit := re.search(rf"\b{re.escape(word)}", scene.facts.lowered):
                ahead = scene.facts.lowered[max(0, hit.start() - 14) : hit.start()]
                return [not re.search(r"\b(?:no|not|non|without|sans|ohne|keine?|never|isn't)\W+(?:\w+\W+)?$", ahead)]
        return [True] if "event" in self.hint.words and scene.facts.dates else []

    def invent(self, scene: Scene) -> Any:
        """Either."""
        return scene.dice.below(2) == 1


@dataclass(frozen=True)
class ArrayNode:
    """An array: the items found, then invented items up to `least`."""

    item: Node
    least: int = 0
    most: int = MOST_ITEMS
    unique: bool = False
    first: tuple[Node, ...] = ()
    kind: str = ""

    def find(self, scene: Scene) -> Any:
        """The values found, or NOTHING."""
        if self.first:
            return self._tuple(scene)
        found = self._distinct(self.item.every(scene))[: self.most]
        return self._filled(found, scene) if found else NOTHING

    def every(self, scene: Scene) -> list[Any]:
        """At most one list."""
        found = self.find(scene)
        return [] if found is NOTHING else [found]

    def invent(self, scene: Scene) -> Any:
        """The minimum number of items."""
        head = [node.invent(scene) for node in self.first]
        return self._filled(head, scene)

    def height(self, path: frozenset[int]) -> float:
        """One more than that of its required items."""
        nodes = [*self.first, *([self.item] if self.least > len(self.first) else [])]
        return 1 + max((node.height(path) for node in nodes), default=0.0)

    def _tuple(self, scene: Scene) -> Any:
        found = [node.find(scene) for node in self.first]
        if all(value is NOTHING for value in found):
            return NOTHING
        pairs = zip(found, self.first, strict=True)
        return self._filled([node.invent(scene) if value is NOTHING else value for value, node in pairs], scene)

    def _filled(self, values: list[Any], scene: Scene) -> list[Any]:
        for _ in range(20 * self.least):
            if len(values) >= self.least:
                break
            values = self._distinct([*values, self.item.invent(scene)])
        return values

    def _distinct(self, values: list[Any]) -> list[Any]:
        if not self.unique:
            return values
        return [value for index, value in enumerate(values) if value not in values[:index]]


@dataclass(frozen=True)
class ObjectNode:
    """An object. `rest` makes the values of additional properties (None: not allowed), `names` their names."""

    known: Mapping[str, Node]
    required: frozenset[str]
    rest: Node | None = None
    names: Node | None = None
    least: int = 0
    kind: str = ""

    def find(self, scene: Scene) -> Any:
        """The object, if at least one property was found. Optional properties not found are left out."""
        found = {name: node.find(scene) for name, node in self.known.items()}
        if not self.known:
            found = self._from_labels(scene)
        if all(value is NOTHING for value in found.values()):
            return NOTHING
        return self._completed(found, scene)

    def every(self, scene: Scene) -> list[Any]:
        """One object for each part of the text that contains the object's main fact."""
        values = (self.find(scene.within(part)) for part in self._parts(scene))
        return [value for value in values if value is not NOTHING]

    def invent(self, scene: Scene) -> Any:
        """The required properties only."""
        return self._completed({}, scene)

    def height(self, path: frozenset[int]) -> float:
        """One more than that of its required properties."""
        return 1 + max((self.known[name].height(path) for name in self.required if name in self.known), default=0.0)

    def _completed(self, found: Mapping[str, Any], scene: Scene) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name, node in self.known.items():
            value = found.get(name, NOTHING)
            if value is not NOTHING:
                result[name] = value
            elif name in self.required:
                result[name] = node.invent(scene)
        result.update({name: value for name, value in found.items() if name not in self.known and value is not NOTHING})
        for name in sorted(self.required - result.keys()):
            result[name] = self.rest.invent(scene) if self.rest else None
        return self._enlarged(result, scene)

    def _enlarged(self, result: dict[str, Any], scene: Scene) -> dict[str, Any]:
        for number in range(20 * self.least):
            if len(result) >= self.least:
                break
            name = str(self.names.invent(scene)) if self.names else f"key_{number + 1}"
            result.setdefault(name, self.rest.invent(scene) if self.rest else None)
        return result

    def _from_labels(self, scene: Scene) -> dict[str, Any]:
        if self.rest is None or self.names is not None:
            return {}
        return {
            label: self.rest.find(scene.within(type(scene.facts)(found.value)))
            for label, found in scene.facts.labels[:MOST_ITEMS]
        }

    def _parts(self, scene: Scene) -> Sequence[Any]:
        kinds = {node.kind for node in self.known.values()}
        for kind in ANCHORS:
            if kind in kinds and (anchors := every(kind, scene.facts)[:MOST_ITEMS]):
                return list(scene.facts.spans(anchors) if kind in POINT_ANCHORS else scene.facts.parts(anchors))
        return []


@dataclass(frozen=True)
class UnionNode:
    """`anyOf` and `oneOf`: the first branch that finds a value; one whose constant is in the text goes first."""

    branches: tuple[Node, ...]

    @property
    def kind(self) -> str:
        """That of the first branch that has one."""
        return next((branch.kind for branch in self.branches if branch.kind), "")

    def find(self, scene: Scene) -> Any:
        """The first value found."""
        return next((value for b in self._ordered(scene) if (value := b.find(scene)) is not NOTHING), NOTHING)

    def every(self, scene: Scene) -> list[Any]:
        """The first list of values found."""
        return next((values for branch in self._ordered(scene) if (values := branch.every(scene))), [])

    def invent(self, scene: Scene) -> Any:
        """Null when it is allowed; inside a recursive definition the branch with the least nesting."""
        if any(isinstance(branch, EnumNode) and branch.values == (None,) for branch in self.branches):
            return None
        if scene.open:
            return min(self.branches, key=lambda branch: branch.height(frozenset())).invent(scene)
        return scene.dice.pick(self.branches).invent(scene)

    def height(self, path: frozenset[int]) -> float:
        """The minimum over the branches."""
        return min(branch.height(path) for branch in self.branches)

    def _ordered(self, scene: Scene) -> Sequence[Node]:
        return sorted(self.branches, key=lambda branch: not _marked(branch, scene))


@dataclass
class ReferenceNode:
    """A `$ref` to a definition that contains itself: entered at most twice while finding."""

    name: str
    target: Node | None = None
    kind: str = ""
    recursive: bool = False

    def find(self, scene: Scene) -> Any:
        """The target's value, or NOTHING from the second recursion on."""
        if scene.open.get(self.name, 0) >= 2:
            return NOTHING
        with _Opened(self.name, scene):
            return self._node.find(scene)

    def every(self, scene: Scene) -> list[Any]:
        """The target's values, or none from the first recursion on."""
        if scene.open.get(self.name, 0) >= 1:
            return []
        with _Opened(self.name, scene):
            return self._node.every(scene)

    def invent(self, scene: Scene) -> Any:
        """The target's value; a definition that never ends is refused as Vertex does."""
        if scene.open.get(self.name, 0) >= DEEPEST:
            raise invalid(TOO_MANY_STATES)
        with _Opened(self.name, scene):
            return self._node.invent(scene)

    def height(self, path: frozenset[int]) -> float:
        """Infinite inside itself."""
        return math.inf if id(self) in path else 1 + self._node.height(path | {id(self)})

    @property
    def _node(self) -> Node:
        if self.target is None:
            raise RuntimeError(f"the definition {self.name} was not compiled")
        return self.target


class _Opened:
    """A block in which the scene is one level deeper in a definition."""

    def __init__(self, name: str, scene: Scene) -> None:
        self.name = name
        self.open = scene.open

    def __enter__(self) -> None:
        self.open[self.name] = self.open.get(self.name, 0) + 1

    def __exit__(self, *_: object) -> None:
        self.open[self.name] -= 1
        if not self.open[self.name]:
            del self.open[self.name]


def _marked(branch: Node, scene: Scene) -> bool:
    node = branch.target if isinstance(branch, ReferenceNode) else branch
    if not isinstance(node, ObjectNode):
        return False
    marks = [each for each in node.known.values() if isinstance(each, EnumNode) and len(each.values) == 1]
    return any(mark.find(scene) is not NOTHING for mark in marks)
