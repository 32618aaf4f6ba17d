"""The arithmetic of the benchmarks: figures with their targets, percentiles, and the table."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

_SIGNS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
_HEADINGS = ("name", "ours", "baseline", "ratio", "target", "met")


@dataclass(frozen=True, slots=True)
class FigureTarget:
    """What a figure should be: a bound on it, or on its ratio to the baseline's."""

    sign: str
    bound: float
    of_ratio: bool = False

    def __str__(self) -> str:
        return f"{'ratio ' if self.of_ratio else ''}{self.sign} {self.bound:g}"


@dataclass(frozen=True, slots=True)
class Line:
    """One figure of ours, and the baseline's of the same round where there is one."""

    name: str
    unit: str
    ours: float
    baseline: float | None = None
    target: FigureTarget | None = None

    @property
    def ratio(self) -> float | None:
        """Ours to the baseline's."""
        return self.ours / self.baseline if self.baseline else None

    @property
    def met(self) -> bool | None:
        """Whether the target was met; None when there is none."""
        if self.target is None:
            return None
        judged = self.ratio if self.target.of_ratio else self.ours
        return judged is not None and _SIGNS[self.target.sign](judged, self.target.bound)

    def cells(self) -> tuple[str, ...]:
        """As the table shows it."""
        baseline = "-" if self.baseline is None else short(self.baseline)
        ratio = "-" if self.ratio is None else f"{self.ratio:.2f}"
        met = {None: "-", True: "yes", False: "NO"}[self.met]
        return (f"{self.name}, {self.unit}", short(self.ours), baseline, ratio, str(self.target or "-"), met)

    def to_json(self) -> dict[str, Any]:
        """As the file of figures holds it."""
        return {**asdict(self), "ratio": self.ratio, "target": str(self.target or ""), "met": self.met}


def short(value: float) -> str:
    """Three digits that count, and no exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that this share of the values does not exceed (nearest rank)."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def stalls(gaps: Sequence[float], share: float) -> float:
    """The length that the stall around a moment drawn at random exceeds with probability `1 - share` only, in seconds.

    `gaps` are the times between two looks at the clock. A long stall is one gap among thousands, yet whoever arrives
    in it waits: so each gap weighs as much as it lasts.
    """
    left = (1.0 - share) * sum(gaps)
    for gap in sorted(gaps, reverse=True):
        left -= gap
        if left <= 0:
            return gap
    return 0.0


def table(lines: Sequence[Line]) -> str:
    """The figures under their headings, as text that is a Markdown table, too."""
    rows = [_HEADINGS, *(line.cells() for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    written = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([written[0], rule, *written[1:]])
