"""Figures for people: counts, shares, dollars, durations, moments."""

from __future__ import annotations

import math
from datetime import datetime

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_PROMPT_S = 1.5
"""Below it a duration is counted in tenths."""


def count(number: float) -> str:
    """A whole number with separators."""
    return f"{number:,.0f}"


def share(part: float, whole: float) -> str:
    """A part of a whole in percent; 100 % only when nothing is missing."""
    if not whole or part >= whole:
        return "100 %"
    return f"{min(100 * part / whole, 99.9):.1f} %"


def dollars(usd: float) -> str:
    """Cents from a dollar on, two digits that count below."""
    if usd >= 1 or usd == 0:
        return f"${usd:,.2f}"
    digits = max(2, 1 - math.floor(math.log10(abs(usd))))
    return f"${usd:.{min(digits, 6)}f}"


def rate(per_s: float) -> str:
    """A rate in three digits, per second, or per minute where that is a larger number."""
    if per_s < 1:
        return f"{per_s * _MINUTE:.2g} per minute"
    return f"{per_s:,.0f}/s" if per_s >= 100 else f"{per_s:.3g}/s"


def seconds(duration: float) -> str:
    """A duration that was measured, to three digits."""
    return f"{duration:.2f} s" if duration < 10 else f"{duration:,.1f} s"


def about(duration: float) -> str:
    """A duration that is guessed, in its largest unit or two."""
    if duration < _PROMPT_S * _MINUTE:
        return f"{max(1, round(duration))} s"
    if duration < _PROMPT_S * _HOUR:
        return f"{round(duration / _MINUTE)} min"
    if duration < 2 * _DAY:
        minutes = round(duration / _MINUTE)
        return f"{minutes // 60} h {minutes % 60} min" if minutes < 10 * 60 else f"{round(duration / _HOUR)} h"
    return f"{round(duration / _DAY)} days"


def moment(iso: str) -> str:
    """A moment in UTC, to the second."""
    return f"{datetime.fromisoformat(iso):%Y-%m-%d %H:%M:%S} UTC"
