"""A run over time: its events, reduced to the points of a chart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

POINTS = 120
"""Maximum points of a chart."""

ENOUGH = 8
"""Minimum points of a useful chart."""

PAUSE_S = 30.0
"""Seconds without an event, which otherwise come every second, that count as a pause."""

STARTS = 100
"""Maximum starts drawn; all are counted."""

_COUNTED = ("ok", "failed", "requests", "retries", "throttled", "hedged", "cache_hits")


@dataclass(frozen=True, slots=True)
class Point:
    """An interval of a run: from `at`, in active seconds since the first start, for `seconds`.

    Counts cover the interval; latencies are the largest in it, other values the last. None is unknown.
    """

    at: float
    seconds: float
    counts: Mapping[str, float | None]
    limit: float | None = None
    in_flight: float | None = None
    waiting: float | None = None
    latency_p50: float | None = None
    latency_p99: float | None = None
    cost_usd: float | None = None

    def per_second(self, name: str) -> float | None:
        """A count as a rate per second."""
        count = self.counts.get(name)
        return None if count is None or self.seconds <= 0 else count / self.seconds


@dataclass(frozen=True, slots=True)
class Timeline:
    """The points in order. `resumed` lists when the run was resumed, in active seconds.

    `starts` counts all starts, including the first; 0 is unknown.
    """

    points: tuple[Point, ...]
    seconds: float | None = None
    resumed: tuple[float, ...] = ()
    starts: int = 0


EMPTY = Timeline(())


@dataclass(slots=True)
class _Sum:
    """Accumulates the values of one point."""

    at: float
    seconds: float = 0.0
    counts: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(_COUNTED, 0.0))
    last: Mapping[str, Any] = field(default_factory=dict)
    p50: float | None = None
    p99: float | None = None

    def add(self, event: Mapping[str, Any], seconds: float) -> None:
        self.seconds += seconds
        for name in _COUNTED:
            self.counts[name] = (self.counts[name] or 0.0) + event.get(name, 0)
        self.last = event
        self.p50, self.p99 = _larger(self.p50, event.get("latency_p50")), _larger(self.p99, event.get("latency_p99"))

    def point(self) -> Point:
        known = {name: _number(self.last.get(name)) for name in ("limit", "in_flight", "waiting")}
        # The cost of the run continues from the end of the previous start.
        cost_usd = _number(self.last.get("run_cost_usd", self.last.get("cost_usd")))
        return Point(
            self.at, self.seconds, self.counts, latency_p50=self.p50, latency_p99=self.p99, cost_usd=cost_usd, **known
        )


def timeline_of(events: Path) -> Timeline:
    """The timeline of a run, in two passes over its events file; empty without events."""
    began, total = [], 0.0
    for moment in _at_work(events):
        if moment.event is None:
            began.append(moment.at)
        total = moment.at
    sums: dict[int, _Sum] = {}
    width = max(total / POINTS, 1e-9)
    for moment in _at_work(events):
        if moment.event is not None:
            place = min(POINTS - 1, int(max(0.0, moment.at - moment.seconds / 2) / width))
            sums.setdefault(place, _Sum(moment.at - moment.seconds)).add(moment.event, moment.seconds)
    if not began:
        return EMPTY
    points = tuple(found.point() for _, found in sorted(sums.items()))
    return Timeline(points, total or None, tuple(began[1:STARTS]), len(began))


@dataclass(frozen=True, slots=True)
class _Moment:
    """An event, its time in active seconds, and the seconds it covers; an event of None begins a start."""

    at: float
    seconds: float = 0.0
    event: Mapping[str, Any] | None = None


def _at_work(events: Path) -> Iterator[_Moment]:
    """The events and beginnings of all starts, in order, with the pauses removed.

    Logs of earlier versions do not record starts: there, a pause counts as the beginning of one.
    """
    passed, before, marked = 0.0, None, False
    for line in _read(events):
        at = float(line["at"])
        if line.get("start"):
            marked = True
            before = at
            yield _Moment(passed)
            continue
        if before is None or at - before > PAUSE_S:
            if not marked:
                yield _Moment(passed)
            before = at - 1.0  # the first event covers the second before it
        elif before - at > PAUSE_S:  # the clock was set back
            before = at - 1.0
        seconds = max(0.0, at - before)
        passed += seconds
        before = max(at, before)
        yield _Moment(passed, seconds, line)


def _read(events: Path) -> Iterator[dict[str, Any]]:
    """Events and beginnings of starts, without notes and without an incomplete last line."""
    try:
        with events.open("rb") as lines:
            for line in lines:
                try:
                    event = orjson.loads(line)
                except orjson.JSONDecodeError:
                    continue
                if isinstance(event, dict) and ("done" in event or event.get("start")):
                    yield event
    except OSError:
        return


def _larger(one: float | None, other: Any) -> float | None:
    number = _number(other)
    return one if number is None else number if one is None else max(one, number)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
