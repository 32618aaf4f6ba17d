"""Runs every job of jobs/ against the emulator, and prints a line for each: `make jobs`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FOLDER = Path("out/jobs")


def run_job(job: Path) -> bool:
    """Runs one job from the beginning; says how it went."""
    output = FOLDER / job.stem
    command = [sys.executable, "-m", "pipeline", "run", str(job), "--emulate", "--fresh", "--quiet", "--json"]
    done = subprocess.run([*command, "--output", str(output)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(f"{job.stem:24} FAILED, exit {done.returncode}\n{done.stderr}{done.stdout}")
        return False
    result = json.loads(done.stdout)
    counts = "{status}: {rows} rows, {ok} ok, {failed} failed, {requests} requests".format(**result)
    print(f"{job.stem:24} {counts}", flush=True)
    return True


def main() -> int:
    """0 when every job went well, and there was one."""
    jobs = sorted(path for path in Path("jobs").glob("*.py") if not path.name.startswith("eval_"))
    went_well = [run_job(job) for job in jobs]
    return 0 if went_well and all(went_well) else 1


if __name__ == "__main__":
    sys.exit(main())
