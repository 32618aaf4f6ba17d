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
    """Equal as JSON: 1 is 1.0 and is neither true nor "1"; keys of objects in any order, items of lists in theirs."""

    def find(self, expected: Any, got: Any, row: Mapping[str, Any]) -> Finding:  # noqa: ARG002 - of the seam
        """Right when both are the same."""
        return Finding.check(same(expected, got))


@dataclass(frozen=True)
class Text(Scalar):
    """Text in its normal form. What does not matter unless it is set: Unicode form (NFKC), case, space, punctuation.

    `at_least` is the similarity from which it is right: 1 is equality of the normal forms, less is Levenshtein's
    (one minus the edits for each character of the longer one), which is the score in any case.
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
        """The text as it is compared."""
        return _normal(text, self.form, self.case, self.space, self.punctuation)

    def repeats(self, one: Any, other: Any) -> bool:
        """Whether the normal forms are the same."""
        if isinstance(one, str) and isinstance(other, str):
            return self.normal(one) == self.normal(other)
        return same(one, other)

    def find(self, expected: Any, got: Any, row: Mapping[str, Any]) -> Finding:  # noqa: ARG002 - of the seam
        """Right from `at_least` on."""
        if not (isinstance(expected, str) and isinstance(got, str)):
            return Finding.check(same(expected, got))
        score = similarity(self.normal(expected), self.normal(got))
        return Finding(score >= self.at_least, score)


def similarity(one: str, other: str) -> float:
    """Levenshtein's normalised similarity: 1 for equal texts, 0 when no character can stay."""
    if one == other:
        return 1.0
    with needs_eval("similarity of texts"):
        from rapidfuzz.distance import Levenshtein
    return Levenshtein.normalized_similarity(one, other)


@lru_cache(maxsize=65536)
def _normal(text: str, form: bool, case: bool, space: bool, punctuation: bool) -> str:  # noqa: FBT001 - a cache's key
    if not form:
        text = unicodedata.normalize("NFKC", text)
    if not case:
        text = text.casefold()
    if not form:
        text = unicodedata.normalize("NFKC", text)  # folding may take a letter apart
    if not punctuation:
        text = _without_punctuation(text)
    return text if space else " ".join(text.split())


_SIGN_OR_POINT = re.compile(r"(?<=\d)[.,](?=\d)|(?<![\w.,])[-\u2212](?=\d)")
_APOSTROPHES = "'\u2019\u02bc"


def _without_punctuation(text: str) -> str:
    """Punctuation is space, and an apostrophe is nothing; signs and points of numbers stay, and so does a bare sign."""
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
    """Text that a pattern is found in (anchor it with ^ and $ where it must be the whole).

    With `group`, what that group captures from the expected and from the given text must be equal; an expected text
    without the group is matched by itself only.
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
        """Right where the pattern is found, or captures the same."""
        if self.group is None:
            return Finding.check(isinstance(got, str) and re.search(self.pattern, got) is not None)
        wanted, given = self._captured(expected), self._captured(got)
        return Finding.check(same(expected, got) if wanted is None else wanted == given)

    def _captured(self, value: Any) -> str | None:
        found = re.search(self.pattern, value) if isinstance(value, str) else None
        return None if found is None or self.group is None else found[self.group]


@dataclass(frozen=True)
class Enum(Scalar):
    """One of a few values, equal as JSON. Its field has a confusion matrix, in the order of `values`."""

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
    """Numbers that differ by no more than `absolute`, or than `relative` times the expected one: the larger allows.

    Reckoned in decimals, so that 1.1 is within 0.1 of 1.0. Integers and floats compare by value. Text that is a bare
    numeral ("12.50") is its number; with `text=True` it is not, and "1,000" never is. NaN equals only NaN.
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
    """The decimal that reads as the number does: of 0.1 it is 0.1, not the binary fraction beside it."""
    return Decimal(repr(number)) if isinstance(number, float) else Decimal(number)
