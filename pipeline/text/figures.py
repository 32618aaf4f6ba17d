"""Figures for people: counts, shares, dollars, p-values, durations, sizes, times, lists of names.

Everything that is printed, written to a report or said in a message is formatted here, so that one figure looks the
same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Literal

Unit = Literal["share", "usd", "s"]
"""What a metric of an evaluation is measured in: a share from 0 to 1, US dollars, or seconds."""

UNKNOWN = "-"
"""A figure that is not known, in a table."""

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_SWITCH = 1.5
"""A larger unit is used from one and a half of it: 89 s, then 2 min."""

_MILLIONTH = Decimal("0.000001")

_SMALLEST_P = 0.0001
"""Smaller p-values are not told apart."""


def count(number: float) -> str:
    """A whole number with separators."""
    return f"{number:,.0f}"


def counted(number: int, noun: str) -> str:
    """A count with its noun, singular or plural."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def some(names: Sequence[str], most: int) -> str:
    """The first `most` names, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def progress(part: float, whole: float) -> str:
    """How much of a whole is done, in percent; 100 % only if complete."""
    if not whole or part >= whole:
        return "100 %"
    return f"{min(100 * part / whole, 99.9):.1f} %"


def percent(share: float | None) -> str:
    """A share in percent."""
    return UNKNOWN if share is None else f"{100 * share:.1f} %"


def percent_range(low: float, high: float) -> str:
    """The ends of an interval of shares, in percent; without the sign, as after a value that has it."""
    return f"{100 * max(0.0, low):.1f} to {100 * min(1.0, high):.1f}"


def dollars(usd: float) -> str:
    """An amount at a glance: cents from one dollar up; below it, two significant digits."""
    if usd >= 1 or usd == 0:
        return f"${usd:,.2f}"
    digits = max(2, 1 - math.floor(math.log10(abs(usd))))
    return f"${usd:.{min(digits, 6)}f}"


def cost(usd: float) -> str:
    """A cost as it is accounted for: to the millionth of a dollar."""
    # Rounded twice: sums of the same costs in another order differ beyond the fifteenth digit, which shows at a half.
    return f"${Decimal(f'{usd:.12f}').quantize(_MILLIONTH, ROUND_HALF_UP)}"


def figure(number: float | None, unit: Unit, unknown: str = UNKNOWN) -> str:
    """A metric's value; `unknown` if there is none, or if it is the end of an interval without one."""
    if number is None or not math.isfinite(number):
        return unknown
    return {"share": percent(number), "usd": f"${number:.4g}", "s": f"{number:.3g} s"}[unit]


def distance(number: float, unit: Unit, unknown: str = UNKNOWN) -> str:
    """The size of a difference between two values of a metric; shares in percentage points."""
    if unit == "share" and math.isfinite(number):
        return f"{100 * number:.1f} points"
    return figure(number, unit, unknown)


def difference(number: float | None, unit: Unit, unknown: str = UNKNOWN) -> str:
    """A difference between two values of a metric, with its sign."""
    if number is None or not math.isfinite(number):
        return unknown
    return f"{'-' if number < 0 else '+' if number > 0 else ''}{distance(abs(number), unit)}"


def points_range(low: float, high: float) -> str:
    """The ends of an interval of a difference of shares, in points; without the unit, as after a value that has it."""
    return f"{100 * low:+.1f} to {100 * high:+.1f}"


def chance(p: float | None) -> str:
    """A p-value."""
    if p is None:
        return UNKNOWN
    return f"{p:.4f}" if p >= _SMALLEST_P else f"< {_SMALLEST_P}"


def p_is(p: float) -> str:
    """A p-value in a sentence: p = 0.0312, or p < 0.0001."""
    return f"p = {chance(p)}" if p >= _SMALLEST_P else f"p {chance(p)}"


def rate(per_s: float) -> str:
    """A rate to three digits, per second; below 1 per second, per minute."""
    if per_s < 1:
        return f"{per_s * _MINUTE:.2g} per minute"
    return f"{per_s:,.0f}/s" if per_s >= 100 else f"{per_s:.3g}/s"


def seconds(duration: float) -> str:
    """A measured duration, to three digits."""
    return f"{duration:.2f} s" if duration < 10 else f"{duration:,.1f} s"


def about(duration: float) -> str:
    """An estimated duration, in its largest unit or two."""
    if duration < _SWITCH * _MINUTE:
        return f"{max(1, round(duration))} s"
    if duration < _SWITCH * _HOUR:
        return f"{round(duration / _MINUTE)} min"
    if duration < 2 * _DAY:
        minutes = round(duration / _MINUTE)
        return f"{minutes // 60} h {minutes % 60} min" if minutes < 10 * 60 else f"{round(duration / _HOUR)} h"
    return f"{round(duration / _DAY)} days"


def time_span(duration: float) -> str:
    """A past duration in its two largest units."""
    if duration < _MINUTE:
        return f"{duration:.3g} s" if duration < 10 else f"{duration:.0f} s"
    whole = round(duration)
    if whole < _HOUR:
        return f"{whole // 60} min {whole % 60} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // 60} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR} h"


def clock(duration: float | None) -> str:
    """Hours, minutes and seconds, as in 1:02:03 or 0:07; days and hours from two days on."""
    if duration is None:
        return "?"
    minutes, rest = divmod(round(duration), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24}d{hours % 24}h"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def moment(iso: str) -> str:
    """A time in UTC, to the second."""
    return f"{datetime.fromisoformat(iso).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def short_number(value: float) -> str:
    """A number of three digits for an axis or a tile: with k, M or G if large, and an exponent if larger."""
    if abs(value) >= 1e12:
        return f"{value:.2g}".replace("e+", "e")
    for scale, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= (1e4 if suffix == "k" else scale):
            return f"{value / scale:.3g}{suffix}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def size(count_of_bytes: int) -> str:
    """A number of bytes, in units of 1000."""
    text = short_number(count_of_bytes)
    return f"{text[:-1]} {text[-1]}B" if text[-1].isalpha() else f"{text} bytes"
