"""Compiles a JSON schema to nodes that find their values in a text; cached by schema."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import lru_cache
from typing import Any

import orjson

from pipeline.emulator.answers.hints import KIND_OF_FORMAT, Hint
from pipeline.emulator.answers.nodes import (
    MOST_ITEMS,
    AnyNode,
    ArrayNode,
    BooleanNode,
    EnumNode,
    Node,
    ObjectNode,
    ReferenceNode,
    UnionNode,
)
from pipeline.emulator.answers.patterns import readable
from pipeline.emulator.answers.scalars import NumberNode, TextNode
from pipeline.emulator.protocol.wire import TOO_MANY_STATES, invalid

Schema = Mapping[str, Any]

_DEEPEST = 200
_VALIDATING_KEYWORDS = """
type properties required additionalProperties minProperties propertyNames items prefixItems minItems maxItems
uniqueItems minimum maximum exclusiveMinimum exclusiveMaximum multipleOf minLength maxLength pattern format enum const
anyOf oneOf allOf
"""
_VALIDATING = frozenset(_VALIDATING_KEYWORDS.split())
_TOLD = {
    "date": re.compile(r"\bYYYY-MM-DD\b"),
    "time": re.compile(r"\bHH:MM:SS\b"),
    "duration": re.compile(r"\bPT1H30M\b|\bISO 8601 duration\b"),
    "uuid": re.compile(r"\bUUID\b"),
    "email": re.compile(r"\be-?mail address\b"),
    "uri": re.compile(r"\bURL\b"),
}


@lru_cache(maxsize=256)
def compiled(schema: bytes) -> Node:
    """The node of a schema, given as JSON. Raises a 400 for a schema that cannot be read."""
    root = orjson.loads(schema)
    try:
        return _Compiler(root).node(root, Hint())
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:  # a keyword's value has another type
        raise invalid(f"Invalid schema: {error}") from None


@dataclass
class _Compiler:
    """Keeps the references of one schema. A reference met inside itself becomes a `ReferenceNode`."""

    root: Schema
    open: dict[str, ReferenceNode] = field(default_factory=dict)
    depth: int = 0

    def node(self, schema: Any, hint: Hint) -> Node:
        if self.depth >= _DEEPEST:
            raise invalid(TOO_MANY_STATES)
        self.depth += 1
        try:
            node = self._node(schema, hint) if isinstance(schema, Mapping) else AnyNode(hint)
        finally:
            self.depth -= 1
        nullable = isinstance(schema, Mapping) and schema.get("nullable") is True
        return UnionNode((node, EnumNode((None,), hint))) if nullable else node

    def _node(self, schema: Schema, hint: Hint) -> Node:
        if "$ref" in schema:
            return self._reference(schema, hint)
        if "allOf" in schema:
            return self.node(self._merged(schema), hint)
        if "const" in schema:
            return _one_of([schema["const"]], hint)
        if "enum" in schema:
            return _one_of(_list(schema["enum"], "enum"), hint)
        for union in ("anyOf", "oneOf"):
            if union in schema:
                return self._either(schema, union, hint)
        return self._typed(schema, hint)

    def _typed(self, schema: Schema, hint: Hint) -> Node:
        kind = schema.get("type", _implied_type(schema))
        if isinstance(kind, list):
            kind = _list(kind, "type")
            branches = [self._typed({**schema, "type": each}, hint) for each in kind]
            return branches[0] if len(branches) == 1 else UnionNode(tuple(branches))
        match str(kind).lower():
            case "object":
                return self._object(schema, hint)
            case "array":
                return self._array(schema, hint)
            case "string":
                return _text(schema, hint)
            case "integer" | "number" as number:
                return _number(schema, hint, whole=number == "integer")
            case "boolean":
                return BooleanNode(hint)
            case "null":
                return EnumNode((None,), hint)
            case "none":
                return AnyNode(hint)
            case other:
                raise invalid(f"Invalid schema: unknown type {other!r}.")

    def _object(self, schema: Schema, hint: Hint) -> Node:
        properties = schema.get("properties", {})
        if not isinstance(properties, Mapping):
            raise invalid("Invalid schema: properties must be an object.")
        known = {name: self.node(each, _hint_of(name, each, hint)) for name, each in properties.items()}
        more = schema.get("additionalProperties", True)
        names = schema.get("propertyNames")
        return ObjectNode(
            known=known,
            required=frozenset(_list(schema.get("required", []), "required")),
            rest=None if more is False else self.node(more, Hint()) if isinstance(more, Mapping) else None,
            names=self.node({"type": "string", **names}, Hint()) if isinstance(names, Mapping) else None,
            least=int(schema.get("minProperties", 0)),
            kind=hint.kind,
        )

    def _array(self, schema: Schema, hint: Hint) -> Node:
        first = tuple(self.node(each, hint) for each in schema.get("prefixItems", ()))
        return ArrayNode(
            item=self.node(schema.get("items", True), hint),
            least=int(schema.get("minItems", 0)),
            most=min(MOST_ITEMS, int(schema.get("maxItems", MOST_ITEMS))),
            unique=bool(schema.get("uniqueItems", False)),
            first=first,
            kind=hint.kind,
        )

    def _either(self, schema: Schema, union: str, hint: Hint) -> Node:
        beside = {name: value for name, value in schema.items() if name in _VALIDATING and name != union}
        listed = _list(schema[union], union)
        branches = tuple(self.node({"allOf": [beside, each]} if beside else each, hint) for each in listed)
        branches = _without_numerals(branches)
        return branches[0] if len(branches) == 1 else UnionNode(branches)

    def _reference(self, schema: Schema, hint: Hint) -> Node:
        beside = {name: value for name, value in schema.items() if name in _VALIDATING}
        if beside:
            return self.node({"allOf": [{"$ref": schema["$ref"]}, beside]}, hint)
        pointer = str(schema["$ref"])
        if pointer in self.open:
            self.open[pointer].recursive = True
            return self.open[pointer]
        reference = self.open[pointer] = ReferenceNode(pointer, kind=hint.kind)
        reference.target = self.node(self._resolved(pointer), hint)
        del self.open[pointer]
        return reference if reference.recursive else reference.target

    def _resolved(self, pointer: str) -> Any:
        target: Any = self.root
        for part in pointer.removeprefix("#").split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, Mapping) or key not in target:
                raise invalid(f"Invalid schema: {pointer} does not point at a definition.")
            target = target[key]
        return target

    def _merged(self, schema: Schema, depth: int = 0) -> Schema:
        if depth > _DEEPEST:
            raise invalid(TOO_MANY_STATES)
        merged: dict[str, Any] = {name: value for name, value in schema.items() if name != "allOf"}
        for each in _list(schema["allOf"], "allOf"):
            part = self._resolved(str(each["$ref"])) if isinstance(each, Mapping) and "$ref" in each else each
            if isinstance(part, Mapping):
                _merge(merged, self._merged(part, depth + 1) if "allOf" in part else part)
        return merged


def _merge(into: dict[str, Any], part: Schema) -> None:
    for name, value in part.items():
        if name == "properties":
            into[name] = {**into.get(name, {}), **value}
        elif name == "required":
            into[name] = sorted({*into.get(name, []), *value})
        elif name in {"minimum", "exclusiveMinimum", "minLength", "minItems"} and name in into:
            into[name] = max(into[name], value)
        elif name in {"maximum", "exclusiveMaximum", "maxLength", "maxItems"} and name in into:
            into[name] = min(into[name], value)
        elif name in _VALIDATING or name not in into:
            into[name] = value


def _without_numerals(branches: tuple[Node, ...]) -> tuple[Node, ...]:
    """Replaces "a number or a string", pydantic's schema of a decimal, with a number."""
    if not any(isinstance(branch, NumberNode) and not branch.whole for branch in branches):
        return branches
    pattern = next((branch.pattern for branch in branches if isinstance(branch, TextNode)), "")
    kept = [branch for branch in branches if not isinstance(branch, TextNode)]
    return tuple(replace(each, pattern=pattern) if isinstance(each, NumberNode) else each for each in kept)


def _hint_of(name: str, schema: Any, parent: Hint) -> Hint:
    description = schema.get("description", "") if isinstance(schema, Mapping) else ""
    return parent.inside(name, str(description))


def _implied_type(schema: Schema) -> str | None:
    if "properties" in schema or "additionalProperties" in schema or "required" in schema:
        return "object"
    if "items" in schema or "prefixItems" in schema:
        return "array"
    if "pattern" in schema or "format" in schema or "maxLength" in schema:
        return "string"
    return "number" if "minimum" in schema or "maximum" in schema or "multipleOf" in schema else None


def _one_of(values: list[Any], hint: Hint) -> EnumNode:
    return EnumNode(tuple(values), hint, tuple(_mention(value) for value in values))


def _mention(value: Any) -> re.Pattern[str] | None:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        return None
    words = re.escape(str(value).lower()).replace("_", r"[\s_-]").replace(r"\-", r"[\s_-]")
    return re.compile(rf"(?<!\w){words}(?!\w)")


def _text(schema: Schema, hint: Hint) -> TextNode:
    form, pattern = str(schema.get("format", "")), str(schema.get("pattern", ""))
    form = form or _described_form(str(schema.get("description", "")))
    return TextNode(
        hint=Hint(hint.words, KIND_OF_FORMAT.get(form, "")) if form else hint,
        form=form,
        pattern=pattern if readable(pattern) else "",
        shortest=int(schema.get("minLength", 0)),
        longest=int(schema.get("maxLength", 1_000_000)),
    )


def _described_form(description: str) -> str:
    """The format named in a description, because function parameters cannot have a `format`."""
    return next((form for form, words in _TOLD.items() if words.search(description)), "")


def _number(schema: Schema, hint: Hint, *, whole: bool) -> NumberNode:
    low, low_open = _bound(schema, "minimum", "exclusiveMinimum", max)
    high, high_open = _bound(schema, "maximum", "exclusiveMaximum", min)
    step = schema.get("multipleOf")
    return NumberNode(
        hint=hint if hint.kind in {"amount", "year", "month", "judgement"} else Hint(hint.words),
        whole=whole,
        low=low,
        high=high,
        low_open=low_open,
        high_open=high_open,
        step=None if step is None else Decimal(str(step)),
    )


def _bound(schema: Schema, closed: str, opened: str, tighter: Any) -> tuple[Decimal | None, bool]:
    bounds = [(Decimal(str(schema[name])), name == opened) for name in (closed, opened) if name in schema]
    if not bounds:
        return None, False
    value = tighter(bound for bound, _ in bounds)
    return value, any(is_open for bound, is_open in bounds if bound == value)


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list) or (name != "required" and not value):
        raise invalid(f"Invalid schema: {name} must be a list.")
    return value
