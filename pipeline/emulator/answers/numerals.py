"""Finds everything written with digits, in one pass: dates, times of day, amounts of money, plain numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

_MONTH_NAMES = (
    "january jan janvier januar jänner enero gennaio janeiro januari",
    "february feb février fevrier februar febrero febbraio fevereiro februari",
    "march mar mars märz maerz marzo março maart",
    "april apr avril abril aprile",
    "may mai mayo maggio maio mei",
    "june jun juin juni junio giugno junho",
    "july jul juillet juli julio luglio julho",
    "august aug août aout agosto augustus",
    "september sep sept septembre septiembre settembre setembro",
    "october oct octobre oktober okt octubre ottobre outubro",
    "november nov novembre noviembre novembro",
    "december dec décembre decembre dezember dez diciembre dicembre dezembro",
)
MONTHS = {name: number for number, names in enumerate(_MONTH_NAMES, start=1) for name in names.split()}
_SIGNS = {"€": "EUR", "$": "USD", "£": "GBP", "¥": "JPY", "円": "JPY", "₩": "KRW", "₹": "INR"}
_NAMES = "euro=EUR euros=EUR dollar=USD dollars=USD pounds=GBP yen=JPY francs=CHF"
_CODES = "EUR|USD|GBP|JPY|CHF|CAD|AUD|CNY|SEK|NOK|DKK|PLN|INR|KRW|BRL|MXN"
_CODE_OF = {**_SIGNS, **dict(each.split("=") for each in _NAMES.split())}
_MONEY = rf"[€$£¥円₩₹]|\b(?:{_CODES})\b|\b(?:{'|'.join(each.partition('=')[0] for each in _NAMES.split())})\b"

_DIGITS = re.compile(r"\d+")
_ADDRESS = re.compile(r"[\w.+-]+@[\w.-]+|https?://\S+")
_PLAIN_DATE = re.compile(
    r"(\d{4})-(\d{2})-(\d{2})(?!\d)|(\d{4})[/.](\d{1,2})[/.](\d{1,2})(?!\d)"
    r"|(\d{4})\s*[年년]\s*(\d{1,2})\s*[月월]\s*(\d{1,2})\s*[日일]?"
)
_DAY_FIRST = re.compile(r"(\d{1,2})([./])(\d{1,2})\2(\d{4})(?!\d)")
_ORDINAL = r"(?:st|nd|rd|th|er|\.|º)?"
_DAYS = rf"(\d{{1,2}}){_ORDINAL}(?:\s*(?:-|\u2013|to|bis|au)\s*(\d{{1,2}}){_ORDINAL})?"
_DAY_MONTH = re.compile(rf"{_DAYS}\s+(?:of\s+|de\s+)?([^\W\d_]{{3,10}})\.?,?\s+(?:de\s+)?(\d{{4}})(?!\d)")
_MONTH_DAY = re.compile(rf"{_DAYS},?\s+(\d{{4}})(?!\d)")
_MONTH_BEFORE = re.compile(r"([^\W\d_]{3,10})\.?\s+$")
_TIME = re.compile(
    r"([01]?\d|2[0-3])(?:(?::|h|\s*Uhr\b\s*|時)([0-5]\d)?(?:分|:([0-5]\d))?(?![\d:])\s*([ap]\.?m\b\.?)?|\s*([ap]\.?m\b\.?))",
    re.IGNORECASE,
)
_NUMERAL = re.compile(r"\d{1,3}(?:[.,'\u00a0\u202f ]\d{3})+(?:[.,]\d{1,2})?(?![\d])|\d+(?:[.,]\d+)?")
_PHONE = re.compile(r"\d[\d ()/-]{6,}\d")
_MONEY_BEFORE = re.compile(rf"(?:{_MONEY})\s?$")
_MONEY_AFTER = re.compile(rf"\s?({_MONEY})")
_CURRENCY = re.compile(_MONEY)


@dataclass(frozen=True, slots=True)
class FoundFact:
    """A fact and its position in the text."""

    at: int
    value: str


@dataclass(frozen=True, slots=True)
class Numerals:
    """The numerals of a text, in order of appearance.

    Dates are valid and in the form `YYYY-MM-DD`; `12-14 March 2026` gives both ends. Times have the form `HH:MM:SS`;
    amounts and numbers have a decimal point and no separators; telephone numbers are as written.
    """

    dates: list[FoundFact] = field(default_factory=list)
    times: list[FoundFact] = field(default_factory=list)
    amounts: list[FoundFact] = field(default_factory=list)
    phones: list[FoundFact] = field(default_factory=list)
    numbers: list[FoundFact] = field(default_factory=list)


def scan(text: str) -> Numerals:
    """Classifies every sequence of digits; those in e-mail and web addresses are left out."""
    if "@" in text or "://" in text:
        text = _ADDRESS.sub(lambda address: "x" * len(address[0]), text)
    found, done = Numerals(), 0
    for run in _DIGITS.finditer(text):
        at = run.start()
        if at >= done:
            readers = (_read_date, _read_time, _read_phone, _read_amount, _read_number)
            done = next((end for read in readers if (end := read(text, at, found))), run.end())
    return found


def currencies(text: str) -> Sequence[FoundFact]:
    """Currencies, as ISO codes."""
    return tuple(FoundFact(each.start(), _CODE_OF.get(each[0], each[0])) for each in _CURRENCY.finditer(text))


def read_number(numeral: str) -> str:
    """Converts a numeral in any common notation to digits with a decimal point: `1.250,50` is `1250.50`."""
    digits = re.sub(r"[\s']", "", numeral)
    if "," in digits and "." in digits:
        thousands = "," if digits.rindex(".") > digits.rindex(",") else "."
        return digits.replace(thousands, "").replace(",", ".")
    mark = "," if "," in digits else "."
    if digits.count(mark) > 1 or re.search(rf"{re.escape(mark)}\d{{3}}$", digits):
        return digits.replace(mark, "")
    return digits.replace(",", ".")


def _read_date(text: str, at: int, found: Numerals) -> int:
    if match := _PLAIN_DATE.match(text, at):
        year, month, day = (int(part) for part in match.groups() if part)
        return match.end() * _add_dates(found, at, year, month, [day])
    if match := _DAY_FIRST.match(text, at):
        day, month, year = int(match[1]), int(match[3]), int(match[4])
        day, month = (month, day) if month > 12 >= day else (day, month)
        return match.end() * _add_dates(found, at, year, month, [day])
    if match := _DAY_MONTH.match(text, at):
        days = [int(part) for part in match.group(1, 2) if part]
        return match.end() * _add_dates(found, at, int(match[4]), MONTHS.get(match[3].lower(), 0), days)
    before = _MONTH_BEFORE.search(text, max(0, at - 14), at)
    if before and (match := _MONTH_DAY.match(text, at)):
        days = [int(part) for part in match.group(1, 2) if part]
        month = MONTHS.get(before[1].lower(), 0)
        return match.end() * _add_dates(found, before.start(1), int(match[3]), month, days)
    return 0


def _add_dates(found: Numerals, at: int, year: int, month: int, days: list[int]) -> bool:
    real = [day for day in days if year >= 1 and 1 <= month <= 12 and 1 <= day <= _length_of_month(year, month)]
    found.dates.extend(FoundFact(at, f"{year:04}-{month:02}-{day:02}") for day in real)
    return bool(real)


def _length_of_month(year: int, month: int) -> int:
    if month == 2:
        return 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
    return 30 if month in {4, 6, 9, 11} else 31


def _read_time(text: str, at: int, found: Numerals) -> int:
    match = _TIME.match(text, at)
    if not match or _inside_word(text, at):
        return 0
    hour, half = int(match[1]), (match[4] or match[5] or "").lower()
    if half and hour <= 12:
        hour = hour % 12 + (12 if half.startswith("p") else 0)
    found.times.append(FoundFact(at, f"{hour:02}:{int(match[2] or 0):02}:{int(match[3] or 0):02}"))
    return match.end()


def _read_phone(text: str, at: int, found: Numerals) -> int:
    if text[at - 1 : at] != "+" and (text[at] != "0" or _inside_word(text, at)):
        return 0
    match = _PHONE.match(text, at)
    if not match:
        return 0
    start = at - (text[at - 1 : at] == "+")
    found.phones.append(FoundFact(start, text[start : match.end()]))
    return match.end()


def _read_amount(text: str, at: int, found: Numerals) -> int:
    numeral = _NUMERAL.match(text, at)
    if not numeral:
        return 0
    after = _MONEY_AFTER.match(text, numeral.end())
    before = None if after else _MONEY_BEFORE.search(text, max(0, at - 8), at)
    if not after and not before:
        return 0
    found.amounts.append(FoundFact(before.start() if before else at, read_number(numeral[0])))
    return after.end() if after else numeral.end()


def _read_number(text: str, at: int, found: Numerals) -> int:
    numeral = _NUMERAL.match(text, at)
    if not numeral or _inside_word(text, at) or text[numeral.end() : numeral.end() + 1].isalpha():
        return 0
    negative = text[at - 1 : at] == "-" and not text[at - 2 : at - 1].strip()
    found.numbers.append(FoundFact(at, ("-" if negative else "") + read_number(numeral[0])))
    return numeral.end()


def _inside_word(text: str, at: int) -> bool:
    before, earlier = text[at - 1 : at], text[at - 2 : at - 1]
    return before == "_" or (before.isalpha() and before.isascii()) or (before in {".", ",", ":"} and earlier.isdigit())
