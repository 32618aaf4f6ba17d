"""`make profile`: where the time of a run goes. cProfile, of the standard library, on the thread of the event loop.

Run as `python -m tests.benchmarks.profile [ROWS]`; it prints the 25 most expensive functions and leaves a file that
`python -m pstats` and viewers of its format open.
"""

from __future__ import annotations

import pstats
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.canned import canned_server
from tests.benchmarks.end_to_end import CONCURRENCY
from tests.benchmarks.processes import cost_of, module
from tests.benchmarks.scale import write_rows

FILE = Path("out/profile.pstats")
TOP = 25


def main(rows: int = 3000) -> None:
    """Profiles one whole run at zero latency, in a process of its own."""
    FILE.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, canned_server() as server:
        source = write_rows(Path(folder) / "rows.jsonl", rows)
        run = module("contenders", "ours", server.url, source, CONCURRENCY, Path(folder) / "out")
        cost_of([run[0], "-m", "cProfile", "-o", str(FILE), *run[1:]])
    pstats.Stats(str(FILE)).strip_dirs().sort_stats("tottime").print_stats(TOP)
    print(f"the whole profile: {FILE} (python -m pstats {FILE})")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
