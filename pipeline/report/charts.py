"""Charts as geometry that a template draws as SVG. Pure; lengths are in the units of the drawing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.report.timeline import Point, Timeline
from pipeline.text.figures import short_number, time_span

WIDTH, HEIGHT = 420.0, 165.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 8.0, 10.0, 26.0

CLIPPED_AT = 2.0
"""The top of a clipped line, as a multiple of the other lines' maximum."""

_UNITS = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


BRIDGED = 3
"""Missing points that a line bridges: nothing was answered in them, as happens in short runs."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis: its position and label."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class ChartLine:
    """A line of a chart: `path` is SVG path data, `area` the same closed to the bottom. `style` is its class.

    `note` gives the maximum of a line that exceeds the chart.
    """

    name: str
    style: str
    path: str
    area: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class HoverArea:
    """An area of a chart with the text shown when the pointer is over it."""

    x: float
    width: float
    text: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart: its lines, the ticks of both axes, and the positions where the run was resumed."""

    title: str
    unit: str
    lines: tuple[ChartLine, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    hits: tuple[HoverArea, ...]
    resumed: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class _Series:
    name: str
    style: str
    value: Callable[[Point], float | None]
    clipped: bool = False
    """Whether the line may exceed the chart, whose height is set by the other lines."""


@dataclass(frozen=True, slots=True)
class _ChartSpec:
    title: str
    unit: str
    series: tuple[_Series, ...]


def _rate(name: str) -> Callable[[Point], float | None]:
    return lambda point: point.per_second(name)


def _done(point: Point) -> float | None:
    ok, failed = point.per_second("ok"), point.per_second("failed")
    return None if ok is None or failed is None else ok + failed


_CHARTS = (
    _ChartSpec("Throughput", "rows/s", (_Series("done", "a", _done),)),
    _ChartSpec(
        "Requests and limit",
        "1/s",
        (_Series("requests", "a", _rate("requests")), _Series("limit", "b", lambda point: point.limit, clipped=True)),
    ),
    _ChartSpec(
        "Latency",
        "s",
        (
            _Series("median", "a", lambda point: point.latency_p50),
            _Series("99th percentile", "b", lambda point: point.latency_p99),
        ),
    ),
    _ChartSpec(
        "Errors",
        "1/s",
        (
            _Series("failed rows", "bad", _rate("failed")),
            _Series("retries", "b", _rate("retries")),
            _Series("throttled", "warn", _rate("throttled")),
        ),
    ),
    _ChartSpec(
        "Calls",
        "",
        (
            _Series("in flight", "a", lambda point: point.in_flight),
            _Series("rows waiting", "b", lambda point: point.waiting),
        ),
    ),
    _ChartSpec("Spent", "$", (_Series("dollars", "a", lambda point: point.cost_usd),)),
)


def charts_of(timeline: Timeline) -> list[Chart]:
    """The charts for which the timeline has values; empty with fewer than two points."""
    if len(timeline.points) < 2:
        return []
    return [chart for wanted in _CHARTS if (chart := _chart(wanted, timeline)) is not None]


def _chart(wanted: _ChartSpec, timeline: Timeline) -> Chart | None:
    points = timeline.points
    values = {series: [series.value(point) for point in points] for series in wanted.series}
    known = {series: each for series, each in values.items() if any(value is not None for value in each)}
    if not known:
        return None
    end = max(timeline.seconds or 0.0, points[-1].at + points[-1].seconds)
    top = _height(known)
    xs = [_x(point.at + point.seconds / 2, end) for point in points]
    lines = [_line(series, xs, each, top) for series, each in known.items()]
    return Chart(
        wanted.title,
        wanted.unit,
        tuple(lines),
        tuple(Tick(_x(at, end), text) for at, text in time_ticks(end)),
        tuple(Tick(_y(value, top) or 0.0, short_number(value)) for value in _steps(known, top)),
        tuple(_hits(timeline, end, wanted.unit, known)),
        tuple(_x(at, end) for at in timeline.resumed),
    )


def _height(known: dict[_Series, list[float | None]]) -> float:
    """The top of the value axis: the largest value; clipped lines count up to `CLIPPED_AT` times the others."""
    largest = {series: max(value for value in each if value is not None) for series, each in known.items()}
    own = max((value for series, value in largest.items() if not series.clipped), default=None)
    if own is None:
        return _top(max(largest.values()))
    return _top(max(own, min(max(largest.values()), CLIPPED_AT * own)))


def _x(seconds: float, end: float) -> float:
    return round(LEFT + (WIDTH - LEFT - RIGHT) * seconds / max(end, 1e-9), 1)


def _y(value: float | None, top: float) -> float | None:
    return None if value is None else round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top, 1)


def _line(series: _Series, xs: Sequence[float], values: Sequence[float | None], top: float) -> ChartLine:
    """The line, broken at longer gaps, and drawn along the edge where a value exceeds the chart."""
    ys = [None if value is None else _y(min(value, top), top) for value in values]
    largest = max((value for value in values if value is not None), default=0.0)
    note = f"up to {short_number(largest)}" if largest > top * (1 + 1e-9) else ""
    pieces = _pieces(xs, ys)
    drawn = ["M" + " L".join(f"{x:g},{y:g}" for x, y in piece) for piece in pieces]
    bottom = HEIGHT - BOTTOM
    areas = [
        f"M{piece[0][0]:g},{bottom:g} L"
        + " L".join(f"{x:g},{y:g}" for x, y in piece)
        + f" L{piece[-1][0]:g},{bottom:g}Z"
        for piece in pieces
        if len(piece) > 1
    ]
    return ChartLine(series.name, series.style, " ".join(drawn), " ".join(areas), note)


def _pieces(xs: Sequence[float], ys: Sequence[float | None]) -> list[list[tuple[float, float]]]:
    """The runs of joined points; more than `BRIDGED` missing points start a new one."""
    pieces: list[list[tuple[float, float]]] = []
    missing = BRIDGED + 1
    for x, y in zip(xs, ys, strict=True):
        if y is None:
            missing += 1
            continue
        if missing > BRIDGED:
            pieces.append([])
        pieces[-1].append((x, y))
        missing = 0
    return pieces


def _hits(timeline: Timeline, end: float, unit: str, known: dict[_Series, list[float | None]]) -> list[HoverArea]:
    hits = []
    for place, point in enumerate(timeline.points):
        left, right = _x(point.at, end), _x(point.at + max(point.seconds, end / 500), end)
        values = [
            f"{series.name} {short_number(value)}"
            for series, each in known.items()
            if (value := each[place]) is not None
        ]
        said = f"{', '.join(values)} {unit}".strip() if values else "not known"
        text = f"{time_span(point.at + point.seconds / 2)}: {said}"
        hits.append(HoverArea(left, round(max(1.0, right - left), 1), text))
    return hits


def _top(largest: float) -> float:
    """The end of an axis that contains the largest value: a whole number of steps, or 1 if all values are 0."""
    if largest <= 0:
        return 1.0
    step = step_of(largest)
    return step * max(1, math.ceil(largest / step - 1e-9))


def step_of(largest: float, ticks: int = 4) -> float:
    """The step of an axis from 0: 1, 2 or 5 times a power of ten, with at most `ticks` steps."""
    rough = max(largest, 1e-9) / ticks
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * each for each in (1, 2, 5, 10) if power * each >= rough * (1 - 1e-9))


def _steps(known: dict[_Series, list[float | None]], top: float) -> list[float]:
    """The ticks of the value axis: 0 and 1 if all values are 0."""
    step = step_of(top) if any(value for each in known.values() for value in each) else top
    return [step * place for place in range(round(top / step) + 1)]


def time_ticks(end: float) -> list[tuple[float, str]]:
    """The ticks of a time axis from 0, in the largest unit that gives any."""
    size, name = next((unit for unit in _UNITS if end >= 2 * unit[0]), _UNITS[-1])
    step = step_of(end / size, 5)
    count = math.floor(end / size / step + 1e-9)
    return [
        (step * size * place, f"{short_number(step * place)} {name}" if place else "0") for place in range(count + 1)
    ]
