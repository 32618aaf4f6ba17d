"""`make bench`: every benchmark, as one table and one JSON file (out/bench.json). `--help` lists them."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from tests.benchmarks import (
    end_to_end,
    engine,
    hedge,
    in_flight,
    journal,
    memory,
    part_writes,
    quota,
    schema,
    second_process,
    source,
    start_up,
    tail,
)
from tests.benchmarks.figures import Line, table
from tests.benchmarks.results import Results, machine, record
from tests.benchmarks.scale import Scale

FILE = Path("out/bench.json")

MODULES: dict[str, ModuleType] = {
    module.__name__.rpartition(".")[2]: module
    for module in (
        end_to_end,
        engine,
        journal,
        part_writes,
        source,
        schema,
        start_up,
        memory,
        second_process,
        in_flight,
        tail,
        quota,
        hedge,
    )
}
BENCHMARKS: dict[str, Callable[[Scale], list[Line]]] = {name: module.measure for name, module in MODULES.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints the table, writes the file."""
    chosen = _parsed(arguments)
    scale = Scale(quick=chosen.quick, rows=chosen.rows, rounds=chosen.rounds)
    lines = _all_measured(chosen.names or list(BENCHMARKS), scale, chosen.within)
    print(table(lines))
    results = Results(machine(), tuple(lines), quick=chosen.quick)
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text(json.dumps(results.to_json(), indent=2) + "\n")
    print(f"\nfigures in {chosen.output}; targets missed: {sum(line.met is False for line in lines)}")
    if chosen.record:
        record(results)


def _all_measured(names: Sequence[str], scale: Scale, within: float) -> list[Line]:
    lines: list[Line] = []
    started = time.monotonic()
    for name in names:
        began = time.monotonic()
        if began - started > within:
            print(f"{name}: left out, for want of time", file=sys.stderr)
            continue
        lines += BENCHMARKS[name](scale)
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    return lines


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    told = "\n".join(f"  {name:12} {str(module.__doc__).splitlines()[0]}" for name, module in MODULES.items())
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Measures the pipeline, next to baselines of the same round where there are some.",
        epilog=f"benchmarks:\n{told}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which benchmarks (default: all)")
    parser.add_argument("--rows", type=int, help="rows, in place of each benchmark's own number")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the end-to-end benchmark (default: 3)")
    parser.add_argument("--quick", action="store_true", help="small sizes: within a minute, and rough")
    parser.add_argument("--within", type=float, default=float("inf"), help="begin none after so many seconds")
    parser.add_argument("--record", action="store_true", help="add the figures to tests/benchmarks/RESULTS.md")
    parser.add_argument("--output", type=Path, default=FILE, help=f"the JSON file (default: {FILE})")
    chosen = parser.parse_args(arguments)
    if unknown := [name for name in chosen.names if name not in BENCHMARKS]:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are: {', '.join(BENCHMARKS)}")
    return chosen


if __name__ == "__main__":
    main()
