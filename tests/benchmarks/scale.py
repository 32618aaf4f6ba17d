"""How large the benchmarks are, and their input."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

SENTENCE = "the harvest supper takes place on 26 September 2026 in the Guildhall, and forty guests are expected. "


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes: `quick` ones end within a minute and say little; `rows` stands in for each benchmark's own number."""

    quick: bool = False
    rows: int | None = None
    rounds: int = 3

    def of(self, usual: int, quick: int) -> int:
        """How many rows, where so many are usual."""
        return self.rows or (quick if self.quick else usual)


def write_rows(path: Path, rows: int) -> Path:
    """Short texts, all different."""
    with path.open("w") as file:
        for number in range(rows):
            file.write(json.dumps({"id": f"row-{number}", "text": f"Row {number}: {SENTENCE * 4}"}) + "\n")
    return path
