"""Rows of a reader, written and asked from Python: the memory of a million against that of fifty thousand.

`python -m tests.crash.frames [ROWS]` prints the peak of each in a process of its own. `make soak` runs it.
"""

from __future__ import annotations

import io
import os
import resource
import subprocess
import sys
from collections.abc import Iterator

BATCH = 5_000
FEW, MANY = 50_000, 1_000_000
MOST_GROWTH_MB = 40
"""Of twenty times the rows, of 200 bytes each: held in memory, the others would be 190 MB."""


def main() -> None:
    """Measures the writing of records and of a reader. Exits with 1 if either grows with the rows."""
    if len(sys.argv) == 3:
        _write(sys.argv[1], int(sys.argv[2]))
        return
    many = int(sys.argv[1]) if len(sys.argv) == 2 else MANY
    grown = 0.0
    for kind in ("reader", "records"):
        few_mb, many_mb = _peak_of(kind, FEW), _peak_of(kind, many)
        print(f"{kind:8} {FEW:,} rows: {few_mb:.0f} MB; {many:,} rows: {many_mb:.0f} MB at most")
        grown = max(grown, many_mb - few_mb)
    sys.exit(1 if grown > MOST_GROWTH_MB else 0)


def _peak_of(kind: str, rows: int) -> float:
    command = [sys.executable, "-m", "tests.crash.frames", kind, str(rows)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ).stdout)


def _write(kind: str, rows: int) -> None:
    import pyarrow as pa

    from pipeline.source.frames import write_rows

    def records() -> Iterator[dict[str, object]]:
        for number in range(rows):
            yield {"id": number, "text": f"{number:>0200}"}

    def batches() -> Iterator[pa.RecordBatch]:
        for first in range(0, rows, BATCH):
            numbers = range(first, first + BATCH)
            yield pa.RecordBatch.from_pydict({"id": list(numbers), "text": [f"{number:>0200}" for number in numbers]})

    schema = pa.schema({"id": pa.int64(), "text": pa.string()})
    given = records() if kind == "records" else pa.RecordBatchReader.from_batches(schema, batches())

    with io.FileIO(os.devnull, "w") as file:
        write_rows(given, file)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    main()
