"""`make bench`: every benchmark, as one table and one JSON file (out/bench.json)."""

from __future__ import annotations

import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.benchmarks import hedging, quota
from tests.benchmarks.canned import canned_server

ROUNDS = 3
ROWS = 5000
CONCURRENCY = 64
CONTENDERS = {
    "raw": "aiohttp and json.loads",
    "parse": "semaphore, chat.completions.parse, Parquet by hand",
    "ours": "this pipeline: journal, validation, typed Parquet",
}


@dataclass(frozen=True)
class Measured:
    """One contender's round: of the whole process, start-up included."""

    cpu_us_a_row: float
    rows_a_second: float


def write_rows(path: Path, rows: int) -> None:
    """The input: short texts, all different."""
    sentence = "the harvest supper takes place on 26 September 2026 in the Guildhall, and forty guests are expected. "
    with path.open("w") as file:
        for number in range(rows):
            file.write(json.dumps({"id": f"row-{number}", "text": f"Row {number}: {sentence * 4}"}) + "\n")


def measure(name: str, url: str, source: Path, output: Path) -> Measured:
    """Runs a contender in a process of its own and takes its CPU time from the operating system."""
    shutil.rmtree(output, ignore_errors=True)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.contenders",
        name,
        url,
        str(source),
        str(CONCURRENCY),
        str(output),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{name} failed: {done.stderr}")
    after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - started
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Measured(cpu / ROWS * 1e6, ROWS / seconds)


def end_to_end() -> dict[str, list[Measured]]:
    """Interleaved rounds of all contenders against one canned server without latency."""
    found: dict[str, list[Measured]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as folder, canned_server() as server:
        source = Path(folder) / "rows.jsonl"
        write_rows(source, ROWS)
        for _ in range(ROUNDS):
            for name in CONTENDERS:
                found[name].append(measure(name, server.url, source, Path(folder) / "out"))
    return found


def print_end_to_end(found: dict[str, list[Measured]]) -> None:
    """CPU and speed, as medians, and as ratios of the same round."""
    print(f"End to end: {ROWS} rows, {CONCURRENCY} in flight, no latency, whole process; medians of {ROUNDS} rounds")
    print(f"{'contender':10} {'CPU us/row':>10} {'rows/s':>8} {'CPU x raw':>10} {'CPU x parse':>12}")
    for name, rounds in found.items():
        cpu = statistics.median(one.cpu_us_a_row for one in rounds)
        speed = statistics.median(one.rows_a_second for one in rounds)
        ratios = [
            statistics.median(
                one.cpu_us_a_row / other.cpu_us_a_row for one, other in zip(rounds, found[base], strict=True)
            )
            for base in ("raw", "parse")
        ]
        print(f"{name:10} {cpu:10.0f} {speed:8.0f} {ratios[0]:10.2f} {ratios[1]:12.2f}   {CONTENDERS[name]}")


def print_tails(tails: list[dict[str, float | str]]) -> None:
    """The slowest rows without hedges and with them, and what the hedges cost."""
    print(
        f"Hedging: {hedging.ROWS} rows, {hedging.IN_FLIGHT} in flight, {hedging.SLOW:.0%} of the calls "
        f"{hedging.TIMES:.0f} times slower, --hedge {hedging.SHARE} (virtual time)"
    )
    for row in tails:
        figures = f"{row['p999_s']:.1f} s without, {row['hedged_p999_s']:.1f} s with {row['more_calls']:.2%} more calls"
        print(f"{row['scenario']:38} 99.9th percentile {figures}")
    print()


def main() -> None:
    """Prints the tables and writes the file."""
    limits = quota.main()
    print("A shared quota that moves, found by its answers alone (virtual time)")
    for row in limits:
        figures = f"goodput {row['goodput']:.1%}, 429s an answer {row['waste']:.3f}, back in {row['back_s']} s"
        print(f"{row['scenario']:38} {figures}")
    print()
    tails = hedging.main()
    print_tails(tails)
    found = end_to_end()
    print_end_to_end(found)
    report = {
        "quota": limits,
        "hedging": tails,
        "end_to_end": {name: [asdict(one) for one in rounds] for name, rounds in found.items()},
    }
    path = Path("out/bench.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=2))
    print(f"\nfigures in {path}")


if __name__ == "__main__":
    main()
