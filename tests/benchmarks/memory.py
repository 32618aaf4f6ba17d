"""Peak memory at two sizes of the input, and how soon a resume over finished rows asks."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from tests.benchmarks.figures import FigureTarget, Line
from tests.benchmarks.processes import cost_of, module
from tests.benchmarks.scale import Scale, write_rows

LEFT = 1000
"""Rows that the interrupted run has not asked."""


def measure(scale: Scale) -> list[Line]:
    """A run of many rows that is stopped shortly before its end, the same resumed, and a run of a tenth of the rows."""
    rows = scale.of(200_000, 6000)
    with tempfile.TemporaryDirectory() as folder:
        many = write_rows(Path(folder) / "many.jsonl", rows)
        few = write_rows(Path(folder) / "few.jsonl", rows // 10)
        stopped = cost_of(module("local", many, Path(folder) / "many", 0, rows - LEFT))
        resumed = cost_of(module("local", many, Path(folder) / "many", 0, 0))
        small = cost_of(module("local", few, Path(folder) / "few", 0, 0))
    told = json.loads(resumed.said)
    if told["ok"] != rows:
        raise RuntimeError(f"{told['ok']} of {rows} rows after the resume")
    of = f"{rows:,} rows"
    return [
        Line(f"memory: peak of {of}, to {rows // 10:,}", "MB", stopped.peak_mb, small.peak_mb, _at_most(1.1)),
        Line(f"memory: peak of {of}", "MB", stopped.peak_mb, target=FigureTarget("<", 300)),
        Line(f"resume of {of}: peak", "MB", resumed.peak_mb, target=FigureTarget("<", 300)),
        Line(
            f"resume of {of}: to the first question",
            "s",
            told["first_asked"] - resumed.started,
            target=FigureTarget("<", 3),
        ),
    ]


def _at_most(ratio: float) -> FigureTarget:
    return FigureTarget("<=", ratio, of_ratio=True)
