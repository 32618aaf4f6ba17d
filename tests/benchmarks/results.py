"""Figures that are kept: with the date, the commit and the machine that they are of."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.benchmarks.figures import Line, table

FILE = Path(__file__).with_name("RESULTS.md")
_HEAD = """# Results

Figures of `make bench`, written by `python -m tests.benchmarks --record`, the latest first. A ratio is to the baseline
that was measured in the same round, and means more than a figure: other work on the machine slows both.
"""


def _commit() -> str:
    command = ["git", "-C", str(FILE.parent), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "no commit"


@dataclass(frozen=True, slots=True)
class Machine:
    """What the figures depend on besides the code; never a host's name."""

    processor: str
    cores: int
    load: float
    """Processes that ran or wanted to, a minute's mean at the end: above the number of cores the figures are rough."""
    python: str


@dataclass(frozen=True, slots=True)
class Results:
    """One session of measuring."""

    machine: Machine
    lines: tuple[Line, ...]
    quick: bool = False
    date: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))
    commit: str = field(default_factory=_commit)

    def to_json(self) -> dict[str, Any]:
        """As the file of figures holds them."""
        return {
            "date": self.date,
            "commit": self.commit,
            "quick": self.quick,
            "machine": asdict(self.machine),
            "figures": [line.to_json() for line in self.lines],
        }

    def to_markdown(self) -> str:
        """As RESULTS.md holds them."""
        on = self.machine
        size = "quick sizes, " if self.quick else ""
        return (
            f"\n## {self.date}, {self.commit}\n\n"
            f"{size}{on.cores} cores, {on.processor}, load {on.load:.1f}, Python {on.python}\n\n{table(self.lines)}\n"
        )


def record(results: Results, file: Path = FILE) -> None:
    """Puts the results before all earlier ones."""
    earlier = file.read_text().removeprefix(_HEAD) if file.exists() else ""
    file.write_text(_HEAD + results.to_markdown() + earlier)


def machine() -> Machine:
    """The machine that runs it."""
    return Machine(_processor(), os.cpu_count() or 1, round(os.getloadavg()[0], 1), platform.python_version())


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
