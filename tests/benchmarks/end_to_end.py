"""The whole process at zero latency, against raw aiohttp and against what everyone writes first."""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.canned import prompt_server
from tests.benchmarks.figures import FigureTarget, Line
from tests.benchmarks.processes import Cost, cost_of, module
from tests.benchmarks.scale import Scale, write_rows

CONCURRENCY = 64
CONTENDERS = {"raw": "raw aiohttp", "parse": "parse by hand", "ours": "this pipeline"}
LONG = (20_000, 60_000)
"""Rows of the runs in which the start counts for less."""


@dataclass(frozen=True, slots=True)
class Rounds:
    """What each contender cost in each round."""

    rows: int
    costs: dict[str, list[Cost]]

    def cpu_us(self, name: str) -> float:
        """Microseconds of the processor a row: the median round."""
        return statistics.median(cost.cpu_s for cost in self.costs[name]) / self.rows * 1e6

    def rows_s(self, name: str) -> float:
        """Rows a second: the median round."""
        return statistics.median(self.rows / cost.wall_s for cost in self.costs[name])


def measure(scale: Scale) -> list[Line]:
    """CPU a row and rows a second, start-up and imports included."""
    found = interleaved(scale.of(5000, 500), 1 if scale.quick else scale.rounds)
    longer = [] if scale.quick else [_long(scale.of(rows, rows), scale.rounds) for rows in LONG]
    return [
        *longer,
        Line(
            "end to end: CPU a row, to raw aiohttp",
            "us",
            found.cpu_us("ours"),
            found.cpu_us("raw"),
            FigureTarget("<=", 3.5, of_ratio=True),
        ),
        Line(
            "end to end: CPU a row, to parse by hand",
            "us",
            found.cpu_us("ours"),
            found.cpu_us("parse"),
            FigureTarget("<=", 0.2, of_ratio=True),
        ),
        Line(
            "end to end: speed, to parse by hand",
            "rows/s",
            found.rows_s("ours"),
            found.rows_s("parse"),
            FigureTarget(">=", 3.0, of_ratio=True),
        ),
    ]


def _long(rows: int, rounds: int) -> Line:
    found = interleaved(rows, rounds, ("raw", "ours"))
    name = f"end to end: CPU a row of {rows:,}, to raw aiohttp"
    return Line(name, "us", found.cpu_us("ours"), found.cpu_us("raw"), FigureTarget("<=", 2.2, of_ratio=True))


def interleaved(rows: int, rounds: int, contenders: Iterable[str] = CONTENDERS) -> Rounds:
    """Every contender once a round, so that what disturbs one disturbs all."""
    costs: dict[str, list[Cost]] = {name: [] for name in contenders}
    with tempfile.TemporaryDirectory() as folder, prompt_server() as url:
        source, output = write_rows(Path(folder) / "rows.jsonl", rows), Path(folder) / "out"
        for _ in range(rounds):
            for name, found in costs.items():
                shutil.rmtree(output, ignore_errors=True)
                found.append(cost_of(module("contenders", name, url, source, CONCURRENCY, output)))
    return Rounds(rows, costs)
