"""Parts sealed beside the work: what it does to the event loop, and to the way from received to durable."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from tests.benchmarks.figures import FigureTarget, Line
from tests.benchmarks.processes import cost_of, module
from tests.benchmarks.scale import Scale, write_rows

RATE = 2000
"""Rows a second."""


def measure(scale: Scale) -> list[Line]:
    """A whole run at a steady rate: journal, validation, Parquet, with an endpoint that costs nothing."""
    rows = scale.of(40_000, 3000)
    with tempfile.TemporaryDirectory() as folder:
        source = write_rows(Path(folder) / "rows.jsonl", rows)
        told = json.loads(cost_of(module("local", source, Path(folder) / "out", RATE, 0)).said)
    where = f"sealing at {RATE} rows/s"
    return [
        Line(f"{where}: reached", "rows/s", rows / told["seconds"], target=FigureTarget(">=", 0.9 * RATE)),
        Line(f"{where}: loop stall, p99", "ms", 1000 * told["stall_p99_s"], target=FigureTarget("<", 20)),
        Line(f"{where}: received to durable, p99", "ms", 1000 * told["durable_p99_s"], target=FigureTarget("<", 150)),
        Line(f"{where}: CPU a row", "us", told["cpu_s"] / rows * 1e6),
    ]
