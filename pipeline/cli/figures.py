"""Formats figures for people: counts, shares, dollars, durations, times."""

from __future__ import annotations

import math
from datetime import datetime

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_SWITCH = 1.5
"""A larger unit is used from one and a half of it: 89 s, then 2 min."""


def count(number: float) -> str:
    """A whole number with separators."""
    return f"{number:,.0f}"


def share(part: float, whole: float) -> str:
    """A part of a whole in percent; 100 % only if complete."""
    if not whole or part >= whole:
        return "100 %"
    return f"{min(100 * part / whole, 99.9):.1f} %"


def dollars(usd: float) -> str:
    """Cents from one dollar up; below it, two significant digits."""
    if usd >= 1 or usd == 0:
        return f"${usd:,.2f}"
    digits = max(2, 1 - math.floor(math.log10(abs(usd))))
    return f"${usd:.{min(digits, 6)}f}"


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


def moment(iso: str) -> str:
    """A time in UTC, to the second."""
    return f"{datetime.fromisoformat(iso):%Y-%m-%d %H:%M:%S} UTC"
