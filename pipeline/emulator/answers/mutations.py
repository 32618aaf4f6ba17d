"""Deliberately wrong answers: replaces the value that was found with another that the schema allows."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import date, timedelta
from decimal import Decimal
from hashlib import blake2b
from typing import Any

from pipeline.emulator.answers.hints import Scene
from pipeline.emulator.answers.nodes import (
    NOTHING,
    AnyNode,
    ArrayNode,
    BooleanNode,
    EnumNode,
    Node,
    ObjectNode,
    ReferenceNode,
    UnionNode,
)
from pipeline.emulator.answers.scalars import NumberNode, TextNode
from pipeline.emulator.answers.seeded import Dice

TRIES = 8
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_CLOCK = re.compile(r"\d{2}:\d{2}")


def erred(node: Node, value: Any, errors: Mapping[str, float], key: bytes, scene: Scene) -> Any:
    """The value with wrong fields, at the shares given by `errors`; the choice depends on `key` and the field.

    What is wrong at one share is wrong in the same way at every larger share.
    """
    for field, share in sorted(errors.items()):
        seed = blake2b(field.encode(), key=key[:64], digest_size=16).digest()
        if int.from_bytes(seed[:7], "big") < share * 2**56:
            value = _wrong_at(node, value, field.split("."), _with(scene, seed))
    return value


def altered(node: Node, value: Any, scene: Scene) -> Any:
    """Another value for the node: valid, and different if the schema allows any other."""
    return _ALTERING[type(node)](node, value, scene)


def accepts(node: Node, value: Any) -> bool:
    """Whether a value produced by a schema's nodes may have been produced by this one."""
    match node:
        case EnumNode():
            return any(_same(value, each) for each in node.values)
        case NumberNode():
            return isinstance(value, int | float) and not isinstance(value, bool)
        case ObjectNode():
            names = node.known.keys() & value.keys() if isinstance(value, dict) else ()
            return isinstance(value, dict) and all(accepts(node.known[name], value[name]) for name in names)
        case UnionNode():
            return any(accepts(branch, value) for branch in node.branches)
        case ReferenceNode() if node.target is not None:
            return accepts(node.target, value)
    return isinstance(value, _TYPES.get(type(node), object))


def _wrong_at(node: Node, value: Any, path: Sequence[str], scene: Scene) -> Any:
    """The value, altered at the path; in a list, in one item. A path that does not exist changes nothing."""
    if not path:
        return altered(node, value, scene)
    node = _narrowed(node, value)
    if isinstance(node, ArrayNode) and isinstance(value, list) and value:
        at = scene.dice.below(len(value))
        return [*value[:at], _wrong_at(node.item, value[at], path, scene), *value[at + 1 :]]
    if not isinstance(node, ObjectNode) or not isinstance(value, dict):
        return value
    name, *rest = path
    inner = node.known.get(name)
    if inner is None:
        return value
    if name not in value:
        return value if rest else {**value, name: inner.invent(scene)}
    if not rest and name not in node.required and scene.dice.below(4) == 0:
        return {key: each for key, each in value.items() if key != name}
    return {**value, name: _wrong_at(inner, value[name], rest, scene)}


def _narrowed(node: Node, value: Any) -> Node:
    """The branch that produced the value, with references resolved."""
    while True:
        if isinstance(node, ReferenceNode) and node.target is not None:
            node = node.target
        elif isinstance(node, UnionNode):
            node = next((branch for branch in node.branches if accepts(branch, value)), node.branches[0])
        else:
            return node


def _one_of(node: EnumNode, value: Any, scene: Scene) -> Any:
    others = [other for other in node.values if not _same(other, value)]
    return scene.dice.pick(others) if others else value


def _boolean(_: BooleanNode, value: Any, __: Scene) -> Any:
    return not value


def _anything(_: AnyNode, value: Any, __: Scene) -> Any:
    return f"not {value}"


def _number(node: NumberNode, value: Any, scene: Scene) -> Any:
    if not isinstance(value, int | float):
        return node.invent(scene)
    right = Decimal(str(value))
    step = node.step or Decimal(1 if node.whole else "0.5")
    far = step * (1 + scene.dice.below(9))
    for candidate in (right + far, right - far, right * 10, right + step, right - step):
        if candidate != right and node.fits(format(candidate, "f")):
            return int(candidate) if candidate == candidate.to_integral_value() else float(candidate)
    return _another(node, value, scene)


def _text(node: TextNode, value: Any, scene: Scene) -> Any:
    if not isinstance(value, str):
        return node.invent(scene)
    for candidate in (*_moved(value, scene.dice), *([] if node.form or node.pattern else _garbled(value, scene.dice))):
        if candidate != value and node.fitted(candidate) == candidate:
            return candidate
    return _another(node, value, scene)


def _moved(value: str, dice: Dice) -> list[str]:
    """A date some days away; a time some hours away."""
    found = []
    days, hours = 1 + dice.below(60), 1 + dice.below(11)
    if _DAY.match(value):
        with suppress(ValueError, OverflowError):  # no such day, or one after the year 9999
            found.append((date.fromisoformat(value[:10]) + timedelta(days=days)).isoformat() + value[10:])
    elif _CLOCK.match(value):
        found.append(f"{(int(value[:2]) + hours) % 24:02}{value[2:]}")
    return found


def _garbled(value: str, dice: Dice) -> list[str]:
    """The parts of the text in another order; other letters if that makes no difference."""
    at = 1 + dice.below(max(1, len(value) - 1))
    return [f"{value[at:]}{value[:at]}".strip(), f"{value[:-1]}x", f"{value[:-1]}y", f"x{value}"]


def _listing(node: ArrayNode, value: Any, scene: Scene) -> Any:
    """The list with an item removed, else one changed, else one added."""
    if not isinstance(value, list):
        return node.invent(scene)
    at = scene.dice.below(max(1, len(value)))
    if len(value) > max(node.least, len(node.first)):
        return [*value[:at], *value[at + 1 :]]
    if value:
        inner = node.first[at] if at < len(node.first) else node.item
        changed = altered(inner, value[at], scene)
        if not node.unique or not any(_same(changed, each) for each in value):
            return [*value[:at], changed, *value[at + 1 :]]
    return [*value, node.item.invent(scene)] if len(value) < node.most and not node.unique else value


def _fields(node: ObjectNode, value: Any, scene: Scene) -> Any:
    """The object with one property changed: the first that can be, from a random one on."""
    if not isinstance(value, dict):
        return node.invent(scene)
    names = [name for name in node.known if name in value]
    start = scene.dice.below(max(1, len(names)))
    for name in (*names[start:], *names[:start]):
        other = altered(node.known[name], value[name], scene)
        if not _same(other, value[name]):
            return {**value, name: other}
    return value


def _either(node: UnionNode, value: Any, scene: Scene) -> Any:
    nullable = any(isinstance(branch, EnumNode) and branch.values == (None,) for branch in node.branches)
    others = [branch for branch in node.branches if not (isinstance(branch, EnumNode) and branch.values == (None,))]
    if value is None:
        return _another(scene.dice.pick(others), None, scene) if others else None
    if nullable and scene.dice.below(4) == 0:
        return None
    other = altered(_narrowed(node, value), value, scene)
    return None if nullable and _same(other, value) else other


def _reference(node: ReferenceNode, value: Any, scene: Scene) -> Any:
    return value if node.target is None else altered(node.target, value, scene)


def _another(node: Node, value: Any, scene: Scene) -> Any:
    """An invented value: the first of several tries that is different."""
    tries = (node.invent(scene) for _ in range(TRIES))
    return next((each for each in tries if each is not NOTHING and not _same(each, value)), value)


def _same(one: Any, other: Any) -> bool:
    """Equal, and of one type: `True` is not 1 here."""
    return type(one) is type(other) and bool(one == other)


def _with(scene: Scene, seed: bytes) -> Scene:
    return Scene(scene.facts, Dice(seed), set(), {}, scene.quotes)


_TYPES: Mapping[type, type] = {BooleanNode: bool, TextNode: str, ArrayNode: list}
_ALTERING: Mapping[type, Callable[[Any, Any, Scene], Any]] = {
    AnyNode: _anything,
    EnumNode: _one_of,
    BooleanNode: _boolean,
    NumberNode: _number,
    TextNode: _text,
    ArrayNode: _listing,
    ObjectNode: _fields,
    UnionNode: _either,
    ReferenceNode: _reference,
}
