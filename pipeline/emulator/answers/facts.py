"""Facts in a text: dates, times, amounts, names, titles. Found by patterns, in order of appearance."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise

from pipeline.emulator.answers.numerals import MONTHS, FoundFact, Numerals, currencies, scan

_EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_URL = re.compile(r"https?://[^\s<>\"')\]]*[^\s<>\"')\].,;:!?]")
_QUOTED = re.compile(
    r"[“„]([^“”„\n]{2,120})[”“]|«\s?([^«»\n]{2,120}?)\s?»|\"([^\"\n]{2,120})\"|[「『]([^「」『』\n]{1,80})[」』]"
)
_LABEL = re.compile(r"^[ \t>*•-]*([^\W\d_][\w /&-]{0,39}?)\**[ \t]*[:\uff1a][ \t]*(\S[^\n]*?)[ \t]*$", re.MULTILINE)
_CAPITALISED = r"[A-ZÀ-ÖØ-Þ][\w\u2019'-]*\w"
_NAME = re.compile(rf"{_CAPITALISED}(?:[ ](?:(?:de|du|da|van|von|der|den|la|le|of|di|del)[ ]){{0,2}}{_CAPITALISED})*")
_PLACE = re.compile(
    rf"\b(?:in|at|à|im|am|bei|en|chez|venue|room|salle|Raum)[ ]+(?:(?:the|der|dem|la|le)[ ]+)?"
    rf"({_CAPITALISED}(?:[ ,]+(?:\d+[ ]?|(?:de|du|la|of)[ ])?{_CAPITALISED})*(?:[ ]\d+\b)?)"
)
_BREAK = re.compile(r"[.!?](?<=[^\d\s].)\s+|[。\uff01\uff1f]|\n+")
_WORD = re.compile(r"[^\W\d_]{2,}")
_BLOCK = re.compile(r"<(\w+)>\s*(.+?)\s*</\1>|```\w*\n(.+?)```|\"\"\"\s*(.+?)\s*\"\"\"", re.DOTALL)
_OPENING = re.compile(r"(?:^|[.!?:;\n*#\u2022-])\s*$")
_COMPANY = re.compile(r"\b(?:Inc|Ltd|LLC|GmbH|AG|SA|SARL|SAS|Corp|PLC|BV|Oy|AB|KG|Group|University|Institute|Bank)\b")
_WORDS_BETWEEN_NAMES = """
the a an on in at we our you your it this that these those there when where who what how if and or but for from
to with by please all each every some any no not yes monday tuesday wednesday thursday friday saturday sunday le
la les un une des nous vous il elle ce cette der die das ein eine wir sie es ist mit am im lundi mardi mercredi
jeudi vendredi samedi dimanche montag dienstag mittwoch donnerstag freitag samstag sonntag dear hello hi subject
date time location place uhr pm total amount invoice meeting extract return find give write summarize translate
list answer question text document i he she they his her their as is are was were will be has have had
"""
_NOT_NAMES = frozenset(_WORDS_BETWEEN_NAMES.split()) | frozenset(MONTHS)


class Facts:
    """The facts of one text. Each kind is searched once, on first use."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def lowered(self) -> str:
        """The text in lower case, for case-insensitive comparison."""
        return self.text.lower()

    @cached_property
    def numerals(self) -> Numerals:
        """Dates, times, amounts and numbers."""
        return scan(self.text)

    @property
    def dates(self) -> Sequence[FoundFact]:
        """Dates, as `YYYY-MM-DD`."""
        return self.numerals.dates

    @property
    def times(self) -> Sequence[FoundFact]:
        """Times of day, as `HH:MM:SS`."""
        return self.numerals.times

    @property
    def amounts(self) -> Sequence[FoundFact]:
        """Amounts of money, as plain decimal numbers."""
        return self.numerals.amounts

    @property
    def numbers(self) -> Sequence[FoundFact]:
        """Numbers that are not part of any of the above."""
        return self.numerals.numbers

    @property
    def phones(self) -> Sequence[FoundFact]:
        """Telephone numbers, as written."""
        return self.numerals.phones

    @cached_property
    def currencies(self) -> Sequence[FoundFact]:
        """Currencies, as ISO codes."""
        return currencies(self.text)

    @cached_property
    def emails(self) -> Sequence[FoundFact]:
        """E-mail addresses."""
        return self._all(_EMAIL) if "@" in self.text else ()

    @cached_property
    def urls(self) -> Sequence[FoundFact]:
        """Web addresses."""
        return self._all(_URL) if "://" in self.text else ()

    @cached_property
    def quoted(self) -> Sequence[FoundFact]:
        """Text in quotation marks."""
        return tuple(FoundFact(each.start(), next(filter(None, each.groups()))) for each in _QUOTED.finditer(self.text))

    @cached_property
    def names(self) -> Sequence[FoundFact]:
        """Sequences of capitalised words, each once; single words only if there are no longer ones."""
        taken = " / ".join(found.value for found in (*self.places, *self.quoted))
        several: dict[str, FoundFact] = {}
        single: dict[str, FoundFact] = {}
        for match in _NAME.finditer(self.text):
            name = _trim_name(match[0])
            at = match.start() + match[0].find(name)
            if not name or name in taken or self.text[match.end() : match.end() + 1] in {":", "@", "\uff1a"}:
                continue
            if " " in name:
                several.setdefault(name, FoundFact(at, name))
            elif not _OPENING.search(self.text, max(0, at - 3), at):
                single.setdefault(name, FoundFact(at, name))
        return tuple((several or single).values())

    @cached_property
    def organisations(self) -> Sequence[FoundFact]:
        """Names that look like a company's; if there are none, all names."""
        return tuple(name for name in self.names if _COMPANY.search(name.value)) or self.names

    @cached_property
    def places(self) -> Sequence[FoundFact]:
        """Capitalised words after a preposition of place."""
        return tuple(
            FoundFact(match.start(1), match[1])
            for match in _PLACE.finditer(self.text)
            if match[1].partition(" ")[0].lower() not in _NOT_NAMES
        )

    @cached_property
    def labels(self) -> Sequence[tuple[str, FoundFact]]:
        """The lines `Label: value`, with the label in lower case."""
        lines = _LABEL.finditer(self.text)
        return tuple((line[1].strip().lower(), FoundFact(line.start(2), line[2])) for line in lines)

    @cached_property
    def sentences(self) -> Sequence[FoundFact]:
        """Sentences and lines."""
        ends = [0, *(match.end() for match in _BREAK.finditer(self.text)), len(self.text)]
        pieces = (FoundFact(a, self.text[a:b].strip()) for a, b in pairwise(ends))
        return tuple(piece for piece in pieces if piece.value)

    @cached_property
    def titles(self) -> Sequence[FoundFact]:
        """Quoted text; else a first line without a full stop; else the first name."""
        if self.quoted:
            return self.quoted
        first = self.text.lstrip().partition("\n")[0].strip(" #*\t")
        if 0 < len(first) <= 100 and first[-1] not in ".!?:;,。" and "\n" in self.text.strip():
            return (FoundFact(0, first),)
        return self.names[:1]

    @cached_property
    def words(self) -> Sequence[str]:
        """The longer words, lower-cased, the most frequent first; ties in order of appearance."""
        counts: dict[str, int] = {}
        for word in _WORD.findall(self.lowered):
            if len(word) > 3:
                counts[word] = counts.get(word, 0) + 1
        return sorted(counts, key=lambda word: -counts[word])

    def parts(self, anchors: Sequence[FoundFact]) -> Iterator[Facts]:
        """The text in parts of whole sentences, each from a sentence with an anchor up to the next such sentence."""
        starts = [sentence.at for sentence in self.sentences]
        holders = sorted({max((at for at in starts if at <= anchor.at), default=0) for anchor in anchors})
        for index, start in enumerate(holders):
            end = holders[index + 1] if index + 1 < len(holders) else len(self.text)
            yield Facts(self.text[start:end])

    def spans(self, anchors: Sequence[FoundFact]) -> Iterator[Facts]:
        """The text in parts, each from an anchor up to the next one."""
        starts = sorted({anchor.at for anchor in anchors})
        for start, end in zip(starts, [*starts[1:], len(self.text)], strict=True):
            yield Facts(self.text[start:end])

    def _all(self, pattern: re.Pattern[str]) -> Sequence[FoundFact]:
        unique: dict[str, FoundFact] = {}
        for match in pattern.finditer(self.text):
            unique.setdefault(match[0], FoundFact(match.start(), match[0]))
        return tuple(unique.values())


def subject_of(prompt: str) -> str:
    """The subject of a prompt: its longest block in tags, fences or triple quotes, else the whole prompt."""
    blocks = [match[2] or match[3] or match[4] for match in _BLOCK.finditer(prompt)]
    return max(blocks, key=len, default=prompt)


def _trim_name(name: str) -> str:
    words = name.split()
    while words and words[0].lower().rstrip("'\u2019") in _NOT_NAMES:
        words.pop(0)
    while words and words[-1].lower() in _NOT_NAMES:
        words.pop()
    return " ".join(words)
