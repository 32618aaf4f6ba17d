"""Units of measurement in a text: the known units that occur, and the number before the first."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.emulator.answers.numerals import read_number

_WORDS = {
    "km": "kilometres kilometers kilometre kilometer kilomètres",
    "m": "metres meters metre meter mètres metros",
    "cm": "centimetres centimeters centimetre centimeter",
    "mm": "millimetres millimeters millimetre millimeter",
    "mile": "miles mi meilen",
    "mi": "miles mile meilen",
    "yd": "yards yard",
    "ft": "feet foot",
    "in": "inches inch",
    "kg": "kilograms kilogram kilos kilo",
    "g": "grams gram grammes",
    "lb": "pounds pound lbs",
    "oz": "ounces ounce",
    "l": "litres liters litre liter",
    "ml": "millilitres milliliters",
    "c": "celsius °c",
    "f": "fahrenheit °f",
    "k": "kelvin",
    "celsius": "°c",
    "fahrenheit": "°f",
    "h": "hours hour",
    "min": "minutes minute",
    "s": "seconds second",
}
_NAMES = frozenset(_WORDS) | {name for names in _WORDS.values() for name in names.split()}
_NUMBER = r"(\d[\d.,\u00a0\u202f]*)\s*"


@dataclass(frozen=True, slots=True)
class TextUnits:
    """The units in a text, each once, those after a number first; `amount` is the number of the first, in digits."""

    units: tuple[str, ...]
    amount: str | None

    @classmethod
    def read(cls, text: str, known: Sequence[str]) -> TextUnits:
        """The units of `known` that occur, as signs or as words. A one-letter sign counts only after a number."""
        hits = sorted(hit for unit in known if (hit := _hit(text.lower(), unit)) is not None)
        amount = next((number for loose, _, _, number in hits if not loose), None)
        return cls(tuple(unit for _, _, unit, _ in hits), amount)


def _hit(text: str, unit: str) -> tuple[bool, int, str, str] | None:
    """Whether a unit lacks a number, its position, the unit, and its number."""
    words = [unit.lower(), f"{unit.lower()}s", *_WORDS.get(unit.lower(), "").split()]
    spelt = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
    if match := re.search(rf"{_NUMBER}(?:{spelt})(?!\w)", text):
        return False, match.start(), unit, read_number(match[1].rstrip(".,"))
    alone = "|".join(re.escape(word) for word in words if len(word) > 1 and word != "in")
    match = re.search(rf"(?<!\w)(?:{alone})(?!\w)", text) if alone else None
    return (True, match.start(), unit, "") if match else None


def is_unit(word: str) -> bool:
    """Whether a word is a unit's sign or name."""
    return word.lower() in _NAMES
