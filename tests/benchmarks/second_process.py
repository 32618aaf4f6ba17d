"""What a second process brings: rows a second at no latency, start-up included, over those of one in the same round.

Two processes and the server share the machine's cores: where there are no more than two, less than twice can be had.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from pathlib import Path

from tests.benchmarks.canned import prompt_server
from tests.benchmarks.end_to_end import CONCURRENCY
from tests.benchmarks.figures import FigureTarget, Line
from tests.benchmarks.processes import Cost, cost_of, module
from tests.benchmarks.scale import Scale, write_rows

PROCESSES = (1, 2)


def measure(scale: Scale) -> list[Line]:
    """Whole runs by one process and by two."""
    rows = scale.of(60_000, 4000)
    one, two = interleaved(rows, 1 if scale.quick else scale.rounds)
    return [
        Line(
            "two processes: speed, to one",
            "rows/s",
            rows / statistics.median(cost.wall_s for cost in two),
            rows / statistics.median(cost.wall_s for cost in one),
            FigureTarget(">=", 1.7, of_ratio=True),
        ),
        Line(
            "two processes: CPU a row, to one",
            "us",
            1e6 / rows * statistics.median(cost.cpu_s for cost in two),
            1e6 / rows * statistics.median(cost.cpu_s for cost in one),
        ),
    ]


def interleaved(rows: int, rounds: int) -> list[list[Cost]]:
    """What each number of processes cost in each round, all processes of a run together."""
    costs: list[list[Cost]] = [[] for _ in PROCESSES]
    with tempfile.TemporaryDirectory() as folder, prompt_server() as url:
        source, output = write_rows(Path(folder) / "rows.jsonl", rows), Path(folder) / "out"
        for _ in range(rounds):
            for processes, found in zip(PROCESSES, costs, strict=True):
                shutil.rmtree(output, ignore_errors=True)
                flags = ("--no-adaptive", "--processes", processes)
                found.append(cost_of(module("contenders", "ours", url, source, CONCURRENCY, output, *flags)))
    return costs
