"""Graders of dates, date-times and times, to a granularity."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Literal, get_args

from pipeline.evaluation.graders.base import Finding, Scalar
from pipeline.evaluation.graders.values import same

DateGranularity = Literal["year", "month", "day", "hour", "minute", "second", "microsecond"]
TimeGranularity = Literal["hour", "minute", "second", "microsecond"]

_PARTIAL = re.compile(r"(\d{4})(?:-(\d\d))?", re.ASCII)
_MIDNIGHT = time(0)


@dataclass(frozen=True)
class Date(Scalar):
    """Dates and date-times in ISO 8601, equal down to `by`.

    The given time is first converted to the expected one's offset, so that the same instant always matches; a
    date-time without an offset is in UTC. A date alone has no offset: it is midnight of the day as written. "2026-05"
    and "2026" are valid where the granularity needs no more.
    """

    by: DateGranularity = "day"

    def __post_init__(self) -> None:
        super().__post_init__()
        known = get_args(DateGranularity)
        self._require(self.by in known, f"`by` is one of {', '.join(known)}, not {self.by!r}")

    def find(self, expected: Any, got: Any, row: Mapping[str, Any]) -> Finding:  # noqa: ARG002 - of the seam
        """Right when both are the same down to the granularity."""
        if same(expected, got):
            return Finding.check(right=True)
        wanted, given = _moment(expected, self.by), _moment(got, self.by)
        if wanted is None or given is None:
            return Finding.check(right=False)
        return Finding.check(_down_to(self.by, wanted) == _down_to(self.by, _seen_from(wanted, given)))


def _moment(value: Any, by: str) -> datetime | None:
    """The date-time in a text; without an offset if it is only a date."""
    text = value.strip() if isinstance(value, str) else ""
    partial = _PARTIAL.fullmatch(text)
    try:
        if partial is not None:
            year, month = partial.groups()
            enough = by == "year" or (by == "month" and month is not None)
            return datetime(int(year), int(month or 1), 1) if enough else None  # noqa: DTZ001 - only a date
        if _is_date(text):
            return datetime.combine(date.fromisoformat(text), _MIDNIGHT)
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _is_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _seen_from(wanted: datetime, given: datetime) -> datetime:
    if wanted.tzinfo is None or given.tzinfo is None:
        return given
    try:
        return given.astimezone(wanted.tzinfo)
    except OverflowError:  # outside the years 1 to 9999
        return given


@dataclass(frozen=True)
class Time(Scalar):
    """Times of day in ISO 8601, equal down to `by`.

    If both have an offset they are compared in UTC, otherwise as written.
    """

    by: TimeGranularity = "second"

    def __post_init__(self) -> None:
        super().__post_init__()
        known = get_args(TimeGranularity)
        self._require(self.by in known, f"`by` is one of {', '.join(known)}, not {self.by!r}")

    def find(self, expected: Any, got: Any, row: Mapping[str, Any]) -> Finding:  # noqa: ARG002 - of the seam
        """Right when both are the same down to the granularity."""
        if same(expected, got):
            return Finding.check(right=True)
        wanted, given = _clock(expected), _clock(got)
        if wanted is None or given is None:
            return Finding.check(right=False)
        if wanted.tzinfo is not None and given.tzinfo is not None:
            wanted, given = _in_utc(wanted), _in_utc(given)
        return Finding.check(_down_to(self.by, wanted) == _down_to(self.by, given))


def _down_to(by: str, moment: datetime | time) -> list[int]:
    """The parts of a date-time, or of a time of day, from the largest to this one."""
    known = get_args(DateGranularity if isinstance(moment, datetime) else TimeGranularity)
    return [getattr(moment, name) for name in known[: known.index(by) + 1]]


def _clock(value: Any) -> time | None:
    try:
        return time.fromisoformat(value.strip()) if isinstance(value, str) else None
    except ValueError:
        return None


def _in_utc(clock: time) -> time:
    """The time of day in UTC, modulo 24 hours."""
    somewhen = datetime.combine(date(2000, 1, 1), clock)
    offset = somewhen.utcoffset() or timedelta(0)
    return (somewhen.replace(tzinfo=None) - offset).time()
