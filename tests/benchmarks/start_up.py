"""What it costs to begin: `pipeline --help`, and a run of ten rows."""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.canned import canned_server
from tests.benchmarks.figures import FigureTarget, Line
from tests.benchmarks.processes import cost_of, module
from tests.benchmarks.scale import Scale, write_rows

HELP = [sys.executable, "-m", "pipeline", "--help"]
NOTHING = [sys.executable, "-c", "import asyncio, argparse"]


def measure(scale: Scale) -> list[Line]:
    """Medians of CPU, interleaved."""
    helps, nothings, tens = [], [], []
    with tempfile.TemporaryDirectory() as folder, canned_server() as server:
        source = write_rows(Path(folder) / "ten.jsonl", 10)
        for number in range(3 if scale.quick else 9):
            helps.append(cost_of(HELP).cpu_s)
            nothings.append(cost_of(NOTHING).cpu_s)
            if number < 3:
                run = module("contenders", "ours", server.url, source, 8, Path(folder) / f"out-{number}")
                tens.append(cost_of(run).cpu_s)
    return [
        Line(
            "start-up: --help, to import asyncio, argparse",
            "ms CPU",
            1000 * statistics.median(helps),
            1000 * statistics.median(nothings),
            FigureTarget("<=", 2.0, of_ratio=True),
        ),
        Line("start-up: a run of 10 rows", "s CPU", statistics.median(tens), target=FigureTarget("<", 0.7)),
    ]
