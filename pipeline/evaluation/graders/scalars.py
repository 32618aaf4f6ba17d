"""Graders of one value: exact, text, pattern, enum, boolean, number."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from functools import lru_cache
from typing import Any

from pipeline.evaluation.extra import needs_eval
from pipeline.evaluation.graders.base import Finding, Scalar
from pipeline.evaluation.graders.values import same
from pipeline.faults import UsageError


@dataclass(frozen=True)
class Exact(Scalar):
    """Equal as JSON: 1 is 1.0 but neither true nor "1"; object keys in any order, list items in order."""

    def find(self, expected: Any, got: Any, row: Mapping[str, Any]) -> Finding:  # noqa: ARG002 - of the seam
        """Right when both are the same."""
        return Finding.check(same(expected, got))


@dataclass(frozen=True)
class Text(Scalar):
    """Text in its normal form. Unicode form (NFKC), case, space and punctuation are ignored unless set.

    `at_least` is the similarity from which the text is right: 1 requires equal normal forms. The similarity is
    Levenshtein's (one minus edits per character of the longer text), and is always the score.
    """

    at_least: float = 1.0
    form: bool = False
    case: bool = False
    space: bool = False
    punctuation: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(0 < self.at_least <= 1, f"`at_least` is above 0 and at most 1, not {self.at_least}")

    def normal(self, text: str) -> str:
        """The normal form that is compared."""
        return _normal(text, self.form, self.case, self.space, self.punctuation)

    def repeats(self, one: Any, other: Any) -> bool:
        """Whether the normal forms are the same."""
        if isinstance(one, str) and isinstance(other, str):
            return self.normal(one) == self.normal(other)
        return same(one, other)

    def find(self, expected: Any, got: Any, row: Mapping[str, Any]) -> Finding:  # noqa: ARG002 - of the seam
        """Right if the similarity is at least `at_least`."""
        if not (isinstance(expected, str) and isinstance(got, str)):
            return Finding.check(same(expected, got))
        score = similarity(self.normal(expected), self.normal(got))
        return Finding(score >= self.at_least, score)


def similarity(one: str, other: str) -> float:
    """Normalised Levenshtein similarity: 1 for equal texts, 0 when no character can be kept."""
    if one == other:
        return 1.0
    with needs_eval("similarity of texts"):
        from rapidfuzz.distance import Levenshtein
    return Levenshtein.normalized_similarity(one, other)


@lru_cache(maxsize=65536)
def _normal(text: str, form: bool, case: bool, space: bool, punctuation: bool) -> str:  # noqa: FBT001 - the arguments are a cache key
    if not form:
        text = unicodedata.normalize("NFKC", text)
    if not case:
        text = text.casefold()
    if not form:
        text = unicodedata.normalize("NFKC", text)  # case folding may decompose a letter
    if not punctuation:
        text = _without_punctuation(text)
    return text if space else " ".join(text.split())


_SIGN_OR_POINT = re.compile(r"(?<=\d)[.,](?=\d)|(?<![\w.,])[-\u2212](?=\d)")
_APOSTROPHES = "'\u2019\u02bc"


def _without_punctuation(text: str) -> str:
    """Replaces punctuation with spaces, drops apostrophes; keeps signs and points of numbers, and bare punctuation."""
    if text.isalnum():
        return text
    kept = {found.start() for found in _SIGN_OR_POINT.finditer(text)}
    spaced = "".join(
        char if at in kept or not unicodedata.category(char).startswith("P") else "" if char in _APOSTROPHES else " "
        for at, char in enumerate(text)
    )
    return spaced if spaced.strip() else text


@dataclass(frozen=True)
class Regex(Scalar):
    """Text in which a pattern is found (anchor it with ^ and $ to match the whole text).

    With `group`, the captures of that group from both texts must be equal; an expected text without the group matches
    only an equal text.
    """

    pattern: str
    group: str | int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            compiled = re.compile(self.pattern)
        except (re.error, TypeError) as error:
            raise UsageError(f"Regex: the pattern {self.pattern!r} is not valid: {error}") from None
        known = self.group in (None, *compiled.groupindex, *range(compiled.groups + 1))
        self._require(known, f"the pattern {self.pattern!r} has no group {self.group!r}")

    def find(self, expected: Any, got: Any, row: Mapping[str, Any]) -> Finding:  # noqa: ARG002 - of the seam
        """Right if the pattern is found, or captures the same."""
        if self.group is None:
            return Finding.check(isinstance(got, str) and re.search(self.pattern, got) is not None)
        wanted, given = self._captured(expected), self._captured(got)
        return Finding.check(same(expected, got) if wanted is None else wanted == given)

    def _captured(self, value: Any) -> str | None:
        found = re.search(self.pattern, value) if isinstance(value, str) else None
        return None if found is None or self.group is None else found[self.group]


@dataclass(frozen=True)
class Enum(Scalar):
    """One of a fixed set of values, equal as JSON. Its field gets a confusion matrix, in the order of `values`."""

    values: Collection[Any] = ()

    def find(self, expected: Any, got: Any, row: Mapping[str, Any]) -> Finding:  # noqa: ARG002 - of the seam
        """Right when both are the same."""
        return Finding.check(same(expected, got))


@dataclass(frozen=True)
class Bool(Scalar):
    """True or false: the JSON booleans, not 1, not "true"."""

    def find(self, expected: Any, got: Any, row: Mapping[str, Any]) -> Finding:  # noqa: ARG002 - of the seam
        """Right when both are the same."""
        return Finding.check(same(expected, got))


_NUMERAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,9})?", re.ASCII)
_ARITHMETIC = Context(prec=60, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])


@dataclass(frozen=True)
class Number(Scalar):
    """Numbers that differ by at most `absolute`, or `relative` times the expected one, whichever is larger.

    Computed in decimals, so that 1.1 is within 0.1 of 1.0. Integers and floats compare by value. Text that is a bare
    numeral ("12.50") counts as its number; with `text=True` it does not, and "1,000" never does. NaN equals only NaN.
    """

    absolute: float | Decimal = 0
    relative: float | Decimal = 0
    text: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("absolute", "relative"):
            tolerance = getattr(self, name)
            self._require(0 <= tolerance < float("inf"), f"`{name}` is a tolerance from 0 on, not {tolerance}")

    def find(self, expected: Any, got: Any, row: Mapping[str, Any]) -> Finding:  # noqa: ARG002 - of the seam
        """Right within the tolerance."""
        if same(expected, got):
            return Finding.check(right=True)
        wanted, given = self._number(expected), self._number(got)
        if wanted is None or given is None:
            return Finding.check(right=False)
        difference = _ARITHMETIC.abs(_ARITHMETIC.subtract(wanted, given))
        allowed = _ARITHMETIC.multiply(_decimal(self.relative), _ARITHMETIC.abs(wanted))
        return Finding.check(difference <= _ARITHMETIC.max(allowed, _decimal(self.absolute)))

    def _number(self, value: Any) -> Decimal | None:
        if isinstance(value, str) and not self.text:
            value = value.strip()
            return Decimal(value) if _NUMERAL.fullmatch(value) else None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        number = _decimal(value)
        return number if number.is_finite() else None


def _decimal(number: float | Decimal) -> Decimal:
    """The decimal with the number's shortest representation: 0.1 for 0.1, not its binary fraction."""
    return Decimal(repr(number)) if isinstance(number, float) else Decimal(number)
