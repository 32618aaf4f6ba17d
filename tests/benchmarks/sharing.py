"""What more processes bring: rows a second at no latency, over those of one process in the same round.

`python -m tests.benchmarks.sharing [ROWS]`. Two processes, the server and whatever else runs share the machine's
cores: the CPU time of a row says what the division costs, the speed what is left of it here.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.benchmarks.canned import prompt_server
from tests.benchmarks.scale import write_rows

ROUNDS = 3
ROWS = 20_000
PROCESSES = (1, 2)
CONCURRENCY = 64


@dataclass(frozen=True)
class Measured:
    """One run, start-up included: of all its processes together."""

    processes: int
    rows_a_second: float
    cpu_us_a_row: float


def measure(processes: int, url: str, source: Path, output: Path, rows: int) -> Measured:
    """One run from nothing to its dataset."""
    shutil.rmtree(output, ignore_errors=True)
    job = str(Path(__file__).with_name("job.py"))
    command = [sys.executable, "-m", "pipeline", "run", job, "-i", str(source), "-o", str(output), "--base-url", url]
    flags = ["-c", str(CONCURRENCY), "--no-adaptive", "-q", "--json", "--processes", str(processes)]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    environment = {**os.environ, "OPENAI_API_KEY": "none"}
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"{processes} processes failed: {done.stderr}")
    seconds, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Measured(processes, rows / seconds, cpu / rows * 1e6)


def rounds_of(rows: int) -> list[list[Measured]]:
    """Interleaved rounds, each with every number of processes."""
    with tempfile.TemporaryDirectory() as folder, prompt_server() as url:
        source = Path(folder) / "rows.jsonl"
        write_rows(source, rows)
        return [
            [measure(processes, url, source, Path(folder) / "out", rows) for processes in PROCESSES]
            for _ in range(ROUNDS)
        ]


def print_all(rounds: Sequence[Sequence[Measured]], rows: int) -> None:
    """A line for each number of processes: medians, and the ratio to one process of the same round."""
    print(f"Processes: {rows} rows, {CONCURRENCY} in flight, no latency; medians of {len(rounds)} rounds")
    print(f"{'processes':>9} {'rows/s':>8} {'x one':>6} {'CPU us/row':>11} {'x one':>6}")
    for index, processes in enumerate(PROCESSES):
        found = [one[index] for one in rounds]
        speed = statistics.median(one[index].rows_a_second / one[0].rows_a_second for one in rounds)
        cost = statistics.median(one[index].cpu_us_a_row / one[0].cpu_us_a_row for one in rounds)
        rate, cpu = (
            statistics.median(getattr(one, name) for one in found) for name in ("rows_a_second", "cpu_us_a_row")
        )
        print(f"{processes:9} {rate:8.0f} {speed:6.2f} {cpu:11.0f} {cost:6.2f}")


def main(rows: int = ROWS) -> list[dict[str, float]]:
    """Measures, prints, and gives the figures."""
    rounds = rounds_of(rows)
    print_all(rounds, rows)
    return [asdict(one) for measured in rounds for one in measured]


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
