"""`kill -9` of `pipeline run --batch` at any moment, against the emulator's jobs with all their faults.

`python -m tests.crash.emulated_batches --seed 7` prints its figures.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.commands import ended
from tests.crash import SEED
from tests.test_batch_command import Batched, batched

ROWS = 5_000
KILLS = 20
OUTPUT = "gs://bucket/nightly/out"
ROW_FAULTS = ("failed", "missing", "doubled", "unknown_key", "no_candidates", "cut")
FAULTS = {**{f"row_{kind}": 0.015 for kind in ROW_FAULTS}, "create_lost": 0.3, "job_partial": 1.0}


def soak(folder: Path, dice: random.Random, rows: int = ROWS, kills: int = KILLS) -> str:
    """One run to its end on machines that come and go; what it came to. Raises `AssertionError`."""
    began, killed, machines = time.monotonic(), 0, 1
    with batched(folder, batch_delay=20.0, latency=0.2, batch_echo="labels", batch_faults=FAULTS) as found:
        found.shell.rows(rows)
        while killed < kills:
            if not _is_killed(found, dice, f"machine-{machines}"):
                break
            killed += 1
            if dice.random() < 0.3:
                shutil.rmtree(folder / f"machine-{machines}", ignore_errors=True)
                machines += 1
        done = _to_the_end(found, f"machine-{machines}")
        taken = found.shell.pipeline("export", OUTPUT, "--to", "all.jsonl", "--json")
        assert taken.code in (0, 2), taken
        assert (done["ok"], done["status"]) == (rows, "complete"), done
        jobs = Counter(job["displayName"] for job in found.jobs())
        assert set(jobs.values()) == {1}, f"a job was created twice: {jobs}"
        asked = found.stats().get("requests")
    return (
        f"{rows} rows, {killed} kills, {machines} machines, {len(jobs)} batch jobs: {done['batch_calls']} rows "
        f"answered by batch, every row once, no job twice, {asked} requests online; {time.monotonic() - began:.0f} s"
    )


def _is_killed(found: Batched, dice: random.Random, state: str) -> bool:
    """A start that is killed at some moment, unless it ends before."""
    with found.shell.started(*_arguments(found, state)) as child:
        try:
            child.wait(dice.uniform(0.4, 3.0))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            return True
        done = ended(child)
        assert done.code in (0, 8), done
        return done.code == 8


def _to_the_end(found: Batched, state: str) -> dict[str, object]:
    """The last start; while the lease of a killed one counts, it is tried again."""
    until = time.monotonic() + 300.0
    while time.monotonic() < until:
        with found.shell.started(*_arguments(found, state)) as child:
            done = ended(child, within_s=300.0)
        if done.code != 8:
            assert done.code == 0, done
            return done.json
        time.sleep(2.0)
    raise AssertionError("the lease was never free")


def _arguments(found: Batched, state: str) -> tuple[str, ...]:
    return found.arguments("--state-dir", state, "--set", "max_tokens=500", output=OUTPUT)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--kills", type=int, default=KILLS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(soak(Path(folder), random.Random(given.seed), given.rows, given.kills))


if __name__ == "__main__":
    main()
