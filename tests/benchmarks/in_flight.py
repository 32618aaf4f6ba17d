"""Many calls in flight: what the client keeps of what the latency allows."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.canned import CannedLatency, Counts, canned_server
from tests.benchmarks.figures import FigureTarget, Line
from tests.benchmarks.processes import Cost, cost_of, module
from tests.benchmarks.scale import Scale, write_rows


@dataclass(frozen=True, slots=True)
class Load:
    """So many rows, so many of them in flight at once."""

    rows: int
    concurrency: int
    latency: CannedLatency

    @property
    def ideal_s(self) -> float:
        """Little's law: how long the rows take when every place in flight is always taken."""
        return self.rows * self.latency.mean / self.concurrency


@dataclass(frozen=True, slots=True)
class Seen:
    """One contender under a load."""

    cost: Cost
    counts: Counts

    def share(self, load: Load) -> float:
        """What was kept of the ideal, from the first request's arrival to the last answer."""
        return load.ideal_s / (self.counts.last_answer - self.counts.first_request)

    def rows_s(self, load: Load) -> float:
        """Rows a second of the same time."""
        return load.rows / (self.counts.last_answer - self.counts.first_request)


def measure(scale: Scale) -> list[Line]:
    """A thousand calls of a second, five thousand of ten, and ten thousand of ten by two processes."""
    if scale.quick:
        return [*_thousand(Load(600, 200, CannedLatency(0.5, sigma=0.5)))]
    return [
        *_thousand(Load(scale.rows or 10_000, 1000, CannedLatency(1.0, sigma=0.5))),
        *_five_thousand(Load(scale.rows or 15_000, 5000, CannedLatency(10.0))),
        *_ten_thousand(Load(scale.rows or 30_000, 10_000, CannedLatency(10.0))),
    ]


def under(load: Load, name: str, *flags: str) -> Seen:
    """One contender, in a process of its own, with a server of its own."""
    with tempfile.TemporaryDirectory() as folder, canned_server(load.latency) as server:
        source = write_rows(Path(folder) / "rows.jsonl", load.rows)
        cost = cost_of(module("contenders", name, server.url, source, load.concurrency, Path(folder) / "out", *flags))
        return Seen(cost, server.counts())


def _thousand(load: Load) -> list[Line]:
    raw, ours = under(load, "raw"), under(load, "ours")
    where = f"in flight {load.concurrency} at {load.latency.mean:g} s"
    return [
        Line(
            f"{where}: speed, to raw",
            "rows/s",
            ours.rows_s(load),
            raw.rows_s(load),
            FigureTarget(">=", 0.75, of_ratio=True),
        ),
        Line(
            f"{where}: connections for {ours.counts.requests} requests",
            "opened",
            ours.counts.connections,
            raw.counts.connections,
            FigureTarget("<=", load.concurrency),
        ),
    ]


def _five_thousand(load: Load) -> list[Line]:
    raw, ours = under(load, "raw"), under(load, "ours")
    where = f"in flight {load.concurrency} at {load.latency.mean:g} s"
    return [
        Line(f"{where}: share of Little's law", "of 1", ours.share(load), raw.share(load), FigureTarget(">=", 0.95)),
        Line(
            f"{where}: requests beyond one a row",
            "requests",
            ours.counts.requests - load.rows,
            target=FigureTarget("<=", 0),
        ),
        Line(f"{where}: most in flight", "calls", ours.counts.most_in_flight, raw.counts.most_in_flight),
        Line(f"{where}: peak memory", "MB", ours.cost.peak_mb, raw.cost.peak_mb, FigureTarget("<", 400)),
    ]


def _ten_thousand(load: Load) -> list[Line]:
    """Without a baseline: raw aiohttp in one process has no time for so many."""
    ours = under(load, "ours", "--processes", "2")
    where = f"in flight {load.concurrency} at {load.latency.mean:g} s, two processes"
    return [
        Line(f"{where}: share of Little's law", "of 1", ours.share(load)),
        Line(
            f"{where}: requests beyond one a row",
            "requests",
            ours.counts.requests - load.rows,
            target=FigureTarget("<=", 0),
        ),
        Line(
            f"{where}: most in flight", "calls", ours.counts.most_in_flight, target=FigureTarget(">=", load.concurrency)
        ),
        Line(f"{where}: peak memory of a process", "MB", ours.cost.peak_mb, target=FigureTarget("<", 400)),
    ]
