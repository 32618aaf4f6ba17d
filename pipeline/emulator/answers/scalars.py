"""Strings and numbers: found by the property's hint, within the schema's bounds."""

from __future__ import annotations

import base64
import math
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

from pipeline.emulator.answers.hints import Hint, Scene, best, every, labelled, nearest
from pipeline.emulator.answers.nodes import NOTHING, LeafNode
from pipeline.emulator.answers.patterns import fitting

MOST_TOKENS = 400
MOST_DIGITS = 15
MOST_SPAN = 1000
NOT_LABELLED = frozenset({"date", "datetime", "time", "email", "url", "currency", "language", "year", "month"})

_CLOCK = re.compile(r"\d\d:\d\d:\d\d(\.\d+)?")
_SEPARATOR = re.compile(r"\s*[,;\u3001]\s*(?:and\s+)?|\s+(?:and|et|und)\s+")


@dataclass(frozen=True)
class TextNode(LeafNode):
    """A string, with its format, pattern and length limits in characters."""

    hint: Hint
    form: str = ""
    pattern: str = ""
    shortest: int = 0
    longest: int = 1_000_000

    @property
    def kind(self) -> str:
        """The kind of fact that it holds."""
        return self.hint.kind

    def find(self, scene: Scene) -> Any:
        """The fact in the text that fits this property."""
        return next((text for text in map(self.fitted, self._candidates(scene)) if text is not None), NOTHING)

    def every(self, scene: Scene) -> list[Any]:
        """The comma-separated values after its label; else all facts of its kind."""
        found = None if self.hint.kind in NOT_LABELLED else labelled(self.hint, scene.facts)
        if found:
            values = _SEPARATOR.split(found.value)
        else:
            values = [self._written(fact.value, scene) for fact in every(self.hint.kind, scene.facts)]
        return [fitted for value in values if value and (fitted := self.fitted(value)) is not None]

    def invent(self, scene: Scene) -> Any:
        """A text of words from the prompt, or one in the required format or pattern."""
        formed = invented(self.form, scene)
        if self.pattern and not (formed and re.search(self.pattern, formed)):
            made = fitting(self.pattern, scene.dice)
            return made if made is not None else "0"
        made = formed or _words(scene)
        while len(made) < self.shortest:
            made += " " + _words(scene)
        return made[: self.longest]

    def _candidates(self, scene: Scene) -> Iterator[str]:
        if not self.form and (quote := scene.quote(self.hint)):
            yield quote
        if self.hint.kind not in NOT_LABELLED and not self.form and (found := labelled(self.hint, scene.facts)):
            yield found.value
        if found := best(self.hint, scene):
            yield self._written(found.value, scene)
        if self.pattern:
            yield from (found.value for found in (*scene.facts.amounts, *scene.facts.numbers))
            yield from re.findall(r"[^\s,;()\"“”]*[^\s,;()\"“”.:!?]", scene.facts.text)[:MOST_TOKENS]

    def _written(self, value: str, scene: Scene) -> str:
        if self.hint.kind != "datetime":
            return value
        time = next((found.value for found in scene.facts.times), "00:00:00")
        return f"{value}T{time}" + ("Z" if self.form == "date-time" else "")

    def fitted(self, value: str) -> str | None:
        """The value, truncated to the maximum length if it has no format; None when it is not allowed."""
        if self.form == "time":  # RFC 3339, section 5.6: with an offset
            value = f"{value}Z" if _CLOCK.fullmatch(value) else value
        cut = value[: self.longest]
        if len(cut) < self.shortest or (self.pattern and not re.search(self.pattern, cut)):
            return None
        if self.form and cut != value:
            return None
        return cut


@dataclass(frozen=True)
class NumberNode(LeafNode):
    """A number, with its bounds; `step` is `multipleOf`, `pattern` what it must look like in decimal notation."""

    hint: Hint
    whole: bool = False
    low: Decimal | None = None
    high: Decimal | None = None
    low_open: bool = False
    high_open: bool = False
    step: Decimal | None = None
    pattern: str = ""

    @property
    def kind(self) -> str:
        """An amount of money, if the name suggests one."""
        return self.hint.kind

    def find(self, scene: Scene) -> Any:
        """The number nearest to a word of the name; else the first of its kind that fits and is not used yet."""
        kind = self.hint.kind or "number"
        if kind == "judgement":
            return NOTHING
        facts = every(kind, scene.facts) or scene.facts.numbers
        free = [found for found in facts if (kind, found.at, found.value) not in scene.taken and self.fits(found.value)]
        chosen = nearest(self.hint, free, scene.facts, before=30) or next(iter(free), None)
        if chosen is None:
            return NOTHING
        scene.taken.add((kind, chosen.at, chosen.value))
        return self._number(Decimal(chosen.value))

    def every(self, scene: Scene) -> list[Any]:
        """All numbers that fit."""
        facts = every(self.hint.kind, scene.facts) or scene.facts.numbers or scene.facts.amounts
        return [self._number(Decimal(found.value)) for found in facts if self.fits(found.value)]

    def invent(self, scene: Scene) -> Any:
        """One of the allowed numbers: small, and with two decimals, where the bounds allow it."""
        cents = Decimal(1 if self.whole else "0.01")
        made = self._stepped(cents if self.step is None or cents % self.step == 0 else self.step, scene)
        if self.pattern and not re.search(self.pattern, str(made)):
            made = self._stepped(Decimal(1), scene)
        return self._number(made)

    def fits(self, numeral: str) -> bool:
        """Whether the number is allowed; one that a double cannot represent exactly is not."""
        if len(numeral) > MOST_DIGITS or (self.pattern and not re.search(self.pattern, numeral)):
            return False
        value = Decimal(numeral)
        above = self.low is None or (value > self.low if self.low_open else value >= self.low)
        below = self.high is None or (value < self.high if self.high_open else value <= self.high)
        step = Decimal(1) if self.whole and self.step is None else self.step
        return above and below and (step is None or value % step == 0)

    def _stepped(self, step: Decimal, scene: Scene) -> Decimal:
        low, high = self._range(step)
        first, last = math.ceil(low / step), math.floor(high / step)
        first += self.low_open and self.low == first * step
        last -= self.high_open and self.high == last * step
        if first > last:
            return low + (high - low) / 2
        return (first + scene.dice.below(last - first + 1)) * step

    def _range(self, step: Decimal) -> tuple[Decimal, Decimal]:
        span = Decimal(1 if self.hint.kind == "judgement" else 100)
        span = max(span, step * 100) if self.whole or self.step else span
        if self.low is not None and self.high is not None:
            if self.low < 0 < self.high and self.high - self.low > MOST_SPAN:  # bounds of the data type
                return Decimal(0), min(self.high, span)
            return self.low, self.high
        if self.low is not None:
            return self.low, self.low + span
        if self.high is not None:
            return self.high - span, self.high
        return Decimal(0), span

    def _number(self, value: Decimal) -> int | float:
        return int(value) if self.whole or value == value.to_integral_value() else float(value)


def invented(form: str, scene: Scene) -> str | None:
    """A text of a JSON-schema format; None for a format without requirements."""
    make = _FORMATS.get(form)
    return make(scene) if make else None


def _date(scene: Scene) -> str:
    if dates := scene.facts.dates:
        return dates[-1].value
    return (date(2026, 1, 1) + timedelta(days=scene.dice.below(365))).isoformat()


def _words(scene: Scene) -> str:
    words = scene.facts.text.split()
    if not words:
        return "simulated"
    start = scene.dice.below(len(words))
    return " ".join(words[start : start + 2 + scene.dice.below(4)])[:200]


def _uuid(version: int) -> Callable[[Scene], str]:
    return lambda scene: str(uuid.UUID(int=scene.dice.below(2**128), version=version))


def _email(scene: Scene) -> str:
    return f"person{scene.dice.below(1000)}@example.com"


def _url(scene: Scene) -> str:
    return f"https://example.com/{scene.dice.below(10_000)}"


_FORMATS: Mapping[str, Callable[[Scene], str]] = {
    "date": _date,
    "time": lambda scene: f"{8 + scene.dice.below(12):02}:{15 * scene.dice.below(4):02}:00Z",
    "date-time": lambda scene: f"{_date(scene)}T{8 + scene.dice.below(12):02}:00:00Z",
    "duration": lambda scene: f"PT{1 + scene.dice.below(8)}H",
    "email": _email,
    "idn-email": _email,
    "uri": _url,
    "url": _url,
    "iri": _url,
    "uuid": _uuid(4),
    **{f"uuid{version}": _uuid(version) for version in range(1, 6)},
    "ipv4": lambda scene: f"192.0.2.{scene.dice.below(256)}",
    "ipvanyaddress": lambda scene: f"192.0.2.{scene.dice.below(256)}",
    "ipv6": lambda scene: f"2001:db8::{1 + scene.dice.below(9999):x}",
    "hostname": lambda scene: f"host{scene.dice.below(1000)}.example.com",
    "base64": lambda scene: base64.b64encode(_words(scene).encode()).decode(),
    "base64url": lambda scene: base64.urlsafe_b64encode(_words(scene).encode()).decode(),
}
