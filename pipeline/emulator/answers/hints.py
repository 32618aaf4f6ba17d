"""Guesses from a property's name what it holds, and finds matching facts in the text."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.emulator.answers.facts import Facts
from pipeline.emulator.answers.numerals import FoundFact
from pipeline.emulator.answers.seeded import Dice

_WORDS_OF_KIND = {
    "date": "date dates day deadline due birthday birthdate when datum jour start end begin until from",
    "time": "time times hour uhrzeit heure",
    "datetime": "datetime timestamp",
    "email": "email emails mail",
    "url": "url urls link links website uri homepage",
    "phone": "phone telephone tel mobile fax",
    "currency": "currency currencies devise",
    "amount": "amount amounts price prices cost costs total fee fees budget revenue salary tax vat subtotal payment "
    "balance prix betrag montant",
    "person": "participants participant attendees attendee people person persons author authors speaker speakers "
    "organizer organiser organizers host hosts guests guest members member contact contacts customer sender recipient "
    "recipients speaker names owner patient teacher student who",
    "organisation": "company companies organization organisation organizations employer vendor supplier seller buyer "
    "institution",
    "place": "location locations place places city cities venue address addresses country countries where room lieu "
    "ort",
    "title": "title titles subject headline name event topic",
    "summary": "summary description abstract notes note text content body gist overview quote evidence",
    "keyword": "tags tag keywords keyword topics labels themes terms",
    "language": "language lang locale",
    "year": "year",
    "month": "month",
    "judgement": "confidence score probability rating likelihood certainty weight",
}
KIND_OF_WORD = {word: kind for kind, words in _WORDS_OF_KIND.items() for word in words.split()}
KIND_OF_FORMAT = {
    "date": "date",
    "time": "time",
    "date-time": "datetime",
    "email": "email",
    "idn-email": "email",
    "uri": "url",
    "url": "url",
    "iri": "url",
}
_ENDS = frozenset({"end", "ends", "ending", "until", "to", "finish", "stop", "last", "closing", "fin", "ende"})
_IDLE = frozenset({"is", "has", "are", "was", "can", "the", "and", "for", "does", "should"})
_TITLES_AND_PLACES = frozenset({"title", "place"})
_QUOTES = ' "\u201c\u201d\u201e\u00ab\u00bb*'
_LANGUAGES = {
    "en": "the and of with is",
    "fr": "le les des est avec",
    "de": "der die und ist mit",
    "es": "el los con una para",
    "it": "il gli della con per",
}


@dataclass(frozen=True, slots=True)
class Hint:
    """The words of a property's name, and the kind of fact that they suggest (empty when they suggest none)."""

    words: tuple[str, ...] = ()
    kind: str = ""

    def inside(self, name: str, description: str = "") -> Hint:
        """The hint of an inner property of this value: a person's `name` is a person."""
        words, kind = words_of(name), _kind_of(name)
        if kind == "title" and "name" in words and self.kind in {"person", "organisation", "place"}:
            kind = self.kind
        if not kind and re.search(r"\bISO 8601\b|YYYY-MM-DD", description):
            kind = "date"
        return Hint(words, kind)

    @property
    def own_words(self) -> tuple[str, ...]:
        """The words that distinguish it from others of its kind."""
        return tuple(word for word in self.words if len(word) > 2 and word not in _IDLE)


@dataclass(slots=True)
class Scene:
    """The input of a value: facts, dice, the facts already used, and the depth in each recursive definition.

    `quotes` maps words to texts for properties whose names contain them: attached files, results of tools.
    """

    facts: Facts
    dice: Dice
    taken: set[tuple[str, int, str]] = field(default_factory=set)
    open: dict[str, int] = field(default_factory=dict)
    quotes: Mapping[str, str] = field(default_factory=dict)

    def within(self, facts: Facts) -> Scene:
        """The same with the facts of a part of the text, none of them used."""
        return Scene(facts, self.dice, set(), self.open, self.quotes)

    def quote(self, hint: Hint) -> str | None:
        """The quoted text for a property, if there is one."""
        return next((self.quotes[word] for word in hint.words if word in self.quotes), None) if self.quotes else None


def words_of(name: str) -> tuple[str, ...]:
    """`startDate` and `start_date` as `("start", "date")`."""
    return tuple(word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+|\d+", name))


def every(kind: str, facts: Facts) -> Sequence[FoundFact]:
    """All the facts of a kind."""
    finder = _FINDERS.get(kind)
    return finder(facts) if finder else ()


def labelled(hint: Hint, facts: Facts) -> FoundFact | None:
    """The value after a label with the property's name; for titles and places after any label for one."""
    if not hint.words:
        return None
    names = {" ".join(hint.words), hint.words[-1]}
    exact = (found for label, found in facts.labels if label in names)
    alike = (found for label, found in facts.labels if hint.kind in _TITLES_AND_PLACES and _kind_of(label) == hint.kind)
    found = next(exact, None) or next(alike, None)
    return found and FoundFact(found.at, found.value.strip(_QUOTES) or found.value)


def best(hint: Hint, scene: Scene) -> FoundFact | None:
    """The fact for a property: the one that follows its words, else the first not used by another property."""
    kind = hint.kind
    candidates = every(kind, scene.facts)
    if kind in {"date", "datetime", "time"} and _ENDS.intersection(hint.words):
        return candidates[1] if len(candidates) > 1 else None
    free = [found for found in candidates if (kind, found.at, found.value) not in scene.taken]
    chosen = nearest(hint, free, scene.facts) or next(iter(free), None)
    if chosen is not None:
        scene.taken.add((kind, chosen.at, chosen.value))
    return chosen


def nearest(hint: Hint, candidates: Sequence[FoundFact], facts: Facts, *, before: int = 0) -> FoundFact | None:
    """The candidate next to a word of the property's name: `before` characters ahead to 60 characters after it."""
    if len(candidates) > 1 or before:
        for word in hint.own_words:
            at = facts.lowered.find(word)
            near = [found for found in candidates if at - before <= found.at <= at + 60 + len(word)] if at >= 0 else []
            if near:
                return min(near, key=lambda found: abs(found.at - at))
    return None


def _kind_of(name: str) -> str:
    return next((KIND_OF_WORD[word] for word in reversed(words_of(name)) if word in KIND_OF_WORD), "")


def _language(facts: Facts) -> Sequence[FoundFact]:
    if re.search(r"[\u3040-\u30ff]", facts.text):
        return (FoundFact(0, "ja"),)
    if re.search(r"[\u4e00-\u9fff]", facts.text):
        return (FoundFact(0, "zh"),)
    present = set(re.findall(r"\w+", facts.lowered))
    scores = {code: len(present.intersection(words.split())) for code, words in _LANGUAGES.items()}
    code = max(scores, key=scores.__getitem__)
    return (FoundFact(0, code),) if scores[code] else ()


_FINDERS: Mapping[str, Callable[[Facts], Sequence[FoundFact]]] = {
    "date": lambda facts: facts.dates,
    "datetime": lambda facts: facts.dates,
    "time": lambda facts: facts.times,
    "amount": lambda facts: facts.amounts,
    "currency": lambda facts: facts.currencies,
    "email": lambda facts: facts.emails,
    "url": lambda facts: facts.urls,
    "phone": lambda facts: facts.phones,
    "person": lambda facts: facts.names,
    "organisation": lambda facts: facts.organisations,
    "place": lambda facts: facts.places,
    "title": lambda facts: facts.titles,
    "summary": lambda facts: facts.sentences[:1],
    "keyword": lambda facts: [FoundFact(at, word) for at, word in enumerate(facts.words[:5])],
    "language": _language,
    "year": lambda facts: [FoundFact(date.at, date.value[:4]) for date in facts.dates],
    "month": lambda facts: [FoundFact(date.at, str(int(date.value[5:7]))) for date in facts.dates],
}
