"""Chooses the functions to call and their arguments by words that prompt and function share."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import Any

from pipeline.emulator.answers.compiler import compiled
from pipeline.emulator.answers.facts import Facts
from pipeline.emulator.answers.hints import Scene, every, words_of
from pipeline.emulator.answers.nodes import NOTHING, POINT_ANCHORS, BooleanNode, EnumNode, Node, ObjectNode, UnionNode
from pipeline.emulator.answers.scalars import NumberNode, TextNode
from pipeline.emulator.answers.seeded import Dice
from pipeline.emulator.answers.units import TextUnits, is_unit
from pipeline.emulator.protocol.request import ChatRequest
from pipeline.emulator.protocol.tools import FunctionCall, FunctionDeclaration

MOST_CALLS = 4
MOST_TURNS = 4
SECOND_TURN = 3
"""One in this many prompts takes two turns of calls."""

_TOPICS = {
    "weather": "weather forecast temperature degrees umbrella rain rainy snow sunny sun warm warmer cold colder "
    "hot hotter wetter kalt regnet regen schnee temps météo pluie pleut clima tiempo lluvia tempo °c 天気 気温",
    "convert": "convert conversion umrechnen rechne convertir converti",
    "stock": "stock inventory warehouse lager",
    "price": "price cost costs quote preis prix precio",
    "search": "search find look google suche cherche busca",
    "time": "time clock uhr heure hora",
    "calendar": "calendar meeting appointment termin schedule",
    "email": "email mail send",
    "translate": "translate translation übersetze traduis traduce",
    "calculate": "calculate compute sum plus minus times divided",
}
_IDLE_WORDS = """
the a an of in on at to for and or is are was be it its this that with from by as how what which who do does can you
get find returns return given name value one any all made small table now not
"""
_IDLE = frozenset(_IDLE_WORDS.split())
_WHOLE_PROMPT_WORDS = "query text question phrase input sentence message prompt expression search content"
_WHOLE_PROMPT = frozenset(_WHOLE_PROMPT_WORDS.split())
_CODES = frozenset({"symbol", "ticker", "code", "sku", "isbn", "iata"})
_CODE = re.compile(r"\b(?:[A-Z]{2,6}|[A-Z]+-?\d[A-Z\d-]*)\b")
_CAPITALISED = r"[A-ZÀ-ÖØ-Þ][\w\u2019'-]+(?: [A-ZÀ-ÖØ-Þ][\w\u2019'-]+)*"
_SEPARATOR = r"\s*(?:,|\b(?:and|or|und|oder|et|ou|y|o|e)\b)\s*(?:\b(?:in|à|en)\b\s*)?"
_LISTED = re.compile(rf"(?:{_SEPARATOR})+({_CAPITALISED})")
_PLACE_OF_WEATHER = re.compile(r"([\u4e00-\u9fff]{2,4}?)(?=の(?:天気|気温))")
_THING = re.compile(
    r"\b(?:many|much|of|for|about|any|the|a|an)\s+((?:[^\W\d_]+\s){0,2}?[^\W\d_]+)"
    r"(?=\s+(?:do|does|are|is|have|has|in|left|we|you|and|or|on|cost|costs)\b|\s*[?.,!;]|\s*$)"
)


@dataclass(frozen=True)
class _Prompt:
    """A prompt, prepared for matching."""

    text: str
    dice: Dice = field(compare=False)

    @cached_property
    def facts(self) -> Facts:
        return Facts(self.text)

    @cached_property
    def stems(self) -> frozenset[str]:
        return frozenset(map(_stem, re.findall(r"[^\W\d_]+", self.facts.lowered)))

    def scene(self) -> Scene:
        return Scene(self.facts, self.dice)

    def mentions(self, topic: str) -> bool:
        """Whether a word of the topic occurs, in any of its languages."""
        words = _TOPICS.get(topic, topic).split()
        return any(
            _stem(word) in self.stems if word.isalpha() and word.isascii() else word in self.facts.lowered
            for word in words
        )


def next_calls(request: ChatRequest, seed: int) -> tuple[FunctionCall, ...]:
    """The calls that answer a request; empty when it is answered with text.

    The calls are planned from the prompt alone; calls already made correctly are not repeated. One prompt in three
    takes a second turn. If a function must be called, one always is.
    """
    if not request.functions:
        return ()
    turns = _planned(request, seed)
    if len(request.turns) < MOST_TURNS:
        done = Counter(each.call.key for turn in request.turns for each in turn)
        for planned in turns:
            left = tuple(_without(planned, done))
            if left:
                return left
    return turns[0] if request.must_call else ()


def _without(planned: Sequence[FunctionCall], done: Counter[tuple[str, bytes]]) -> Iterator[FunctionCall]:
    """The planned calls that are not done yet; counts down those that are."""
    for call in planned:
        if done[call.key]:
            done[call.key] -= 1
        else:
            yield call


def _planned(request: ChatRequest, seed: int) -> list[tuple[FunctionCall, ...]]:
    key = blake2b(request.prompt.encode(), key=seed.to_bytes(8, "big", signed=True), digest_size=16).digest()
    prompt = _Prompt(request.prompt, Dice(key))
    wanted = [call for function in request.functions for call in _calls(function, prompt)][:MOST_CALLS]
    if not wanted and request.must_call:
        wanted = [_forced(_most_fitting(request.functions, prompt), prompt)]
    if not wanted:
        return []
    if key[0] % SECOND_TURN:
        return [tuple(wanted)]
    if len(wanted) > 1:
        return [tuple(wanted[:1]), tuple(wanted[1:])]
    return [tuple(wanted), tuple(wanted)]


def _calls(function: FunctionDeclaration, prompt: _Prompt) -> list[FunctionCall]:
    """The calls of a function that the prompt asks for: one for each place, person and so on that it names."""
    node = compiled(function.parameters)
    known = node.known if isinstance(node, ObjectNode) else {}
    required = node.required if isinstance(node, ObjectNode) else frozenset()
    values = _Arguments(known, required, prompt).found()
    if not _asked_for(function, known, values, prompt) or not required <= values.keys():
        return []
    many = next((name for name in known if name in required and _is_list_of_points(known[name], values[name])), None)
    first = {name: each[0] for name, each in values.items()}
    if many is None:
        return [FunctionCall(function.name, first)]
    return [FunctionCall(function.name, {**first, many: value}) for value in values[many][:MOST_CALLS]]


def _forced(function: FunctionDeclaration, prompt: _Prompt) -> FunctionCall:
    """A call that the prompt does not ask for: arguments that are not found are invented."""
    node = compiled(function.parameters)
    made = node.find(prompt.scene())
    made = node.invent(prompt.scene()) if made is NOTHING else made
    if not isinstance(made, dict) or not isinstance(node, ObjectNode):
        return FunctionCall(function.name, {})
    found = _Arguments(node.known, node.required, prompt).found()
    return FunctionCall(function.name, {**made, **{name: values[0] for name, values in found.items()}})


def _most_fitting(functions: Sequence[FunctionDeclaration], prompt: _Prompt) -> FunctionDeclaration:
    scores = [len(prompt.stems & _stems(f"{' '.join(words_of(each.name))} {each.description}")) for each in functions]
    best = max(scores)
    return prompt.dice.pick([each for each, score in zip(functions, scores, strict=True) if score == best])


def _asked_for(
    function: FunctionDeclaration, known: Mapping[str, Node], values: Mapping[str, Any], prompt: _Prompt
) -> bool:
    """Whether the prompt has all words of the name, half of them and a word of the description, or two enum values."""
    name = [word for word in words_of(function.name) if word not in _IDLE] or [function.name]
    topics = [topic for topic in _TOPICS if _stem(topic) in _stems(" ".join((*name, function.description)))]
    hits = sum(prompt.mentions(word) for word in name)
    if hits == len(name) or (len(name) == 1 and any(map(prompt.mentions, topics))):
        return True
    if sum(name in values and isinstance(_core(node), EnumNode) for name, node in known.items()) >= 2:
        return True
    return 2 * hits >= len(name) and bool(hits) and bool(known)


@dataclass(frozen=True)
class _Arguments:
    """The values in a prompt for each parameter of a function."""

    known: Mapping[str, Node]
    required: frozenset[str]
    prompt: _Prompt

    def found(self) -> dict[str, list[Any]]:
        """Non-empty lists of values, by parameter."""
        measures = self._measures()
        found = {name: self._values(name, node) for name, node in self.known.items() if name not in measures}
        return {name: values for name, values in {**found, **measures}.items() if values}

    def _measures(self) -> dict[str, list[Any]]:
        """Parameters that are units of measurement, and the number before the first unit."""
        cores = {name: _core(node) for name, node in self.known.items()}
        enums = {name: core.values for name, core in cores.items() if isinstance(core, EnumNode)}
        units = next((values for values in enums.values() if list(enums.values()).count(values) > 1), None)
        if units is None:
            return {}
        same = [name for name, values in enums.items() if values == units]
        measures = TextUnits.read(self.prompt.text, [unit for unit in units if isinstance(unit, str)])
        found: dict[str, list[Any]] = {name: [] for name in same}
        for name, unit in zip(_source_first(same), measures.units, strict=False):
            found[name] = [unit]
        numbers = [name for name, core in cores.items() if isinstance(core, NumberNode) and name in self.required]
        if numbers and measures.amount is not None:
            core = cores[numbers[0]]
            fits = isinstance(core, NumberNode) and core.fits(measures.amount)
            found[numbers[0]] = [_number(measures.amount)] if fits else []
        return found

    def _values(self, name: str, node: Node) -> list[Any]:
        core, required = _core(node), name in self.required
        match core:
            case EnumNode() if len(core.values) == 1:
                return list(core.values)
            case EnumNode():
                return core.every(self.prompt.scene())
            case TextNode():
                return self._texts(core, required=required)
            case BooleanNode():
                return core.every(self.prompt.scene()) or ([False] if required else [])
        value = node.find(self.prompt.scene()) if required else NOTHING
        return [] if value is NOTHING else [value]

    def _texts(self, node: TextNode, *, required: bool) -> list[Any]:
        scene, hint = self.prompt.scene(), node.hint
        if node.kind in POINT_ANCHORS:
            values = _listed(every(node.kind, self.prompt.facts), self.prompt)
        elif node.kind or node.form or node.pattern:
            values = node.every(scene)
        elif not required:
            return []
        elif _CODES.intersection(hint.words):
            values = _CODE.findall(self.prompt.text)
        elif _WHOLE_PROMPT.intersection(hint.words):
            values = [self.prompt.text[:500]]
        else:
            things = [*(each.value for each in self.prompt.facts.quoted), *_THING.findall(self.prompt.text)]
            values = things[:1]
        return [value for value in values if value and node.fitted(value) == value]


def _listed(found: Sequence[Any], prompt: _Prompt) -> list[str]:
    """The names found, and those listed after them: "in Graz, Kiel and Gouda"."""
    values: list[str] = []
    for each in found:
        values += re.split(_SEPARATOR, each.value)
        after = each.at + len(each.value)
        while match := _LISTED.match(prompt.text, after):
            values.append(match[1])
            after = match.end()
    values += _PLACE_OF_WEATHER.findall(re.sub(r"今日の|明日の|昨日の", "", prompt.text))
    return list(dict.fromkeys(value.strip() for value in values if value.strip() and not is_unit(value.strip())))


def _source_first(names: Sequence[str]) -> list[str]:
    """Parameters ordered "from" before "to"."""
    return sorted(
        names, key=lambda name: bool({"to", "target", "into", "wanted", "dest", "output"}.intersection(words_of(name)))
    )


def _is_list_of_points(node: Node, values: Sequence[Any]) -> bool:
    core = _core(node)
    return isinstance(core, TextNode) and core.kind in POINT_ANCHORS and len(values) > 1


def _core(node: Node) -> Node:
    """The node without its null branch."""
    while isinstance(node, UnionNode):
        node = next(
            (each for each in node.branches if not isinstance(each, EnumNode) or each.values != (None,)),
            node.branches[0],
        )
    return node


def _stems(text: str) -> frozenset[str]:
    return frozenset(_stem(word) for word in re.findall(r"[^\W\d_]+", text.lower()) if word not in _IDLE)


def _stem(word: str) -> str:
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


def _number(numeral: str) -> int | float:
    value = float(numeral)
    return int(value) if value.is_integer() else value
