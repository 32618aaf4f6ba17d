"""A user without a home: a container that runs under a number which no user database knows, and without HOME.

In a process of its own, in which Python has no such database (as on a platform without `pwd`): for the standard library
and google-auth this is the same as a number that is not in it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.commands import JOB, ROOT, Done, Shell

HOMELESS = "import sys; sys.modules['pwd'] = None; from pipeline.cli import main; main()"


def homeless(folder: Path, *arguments: str) -> Done:
    """`pipeline ARGUMENTS` of a user without a home, in a folder with a job and one row."""
    shell = Shell(folder, {})
    shell.write("job.py", JOB)
    shell.rows(1)
    environment = {"PATH": os.devnull, "PYTHONPATH": str(ROOT), "NO_GCE_CHECK": "true", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", HOMELESS, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def test_p12_without_a_home_a_run_keeps_its_rates_in_its_own_folder_alone(tmp_path: Path) -> None:
    done = homeless(tmp_path, "run", "job.py", "--emulate", "--quiet", "--json")
    assert (done.code, done.json["ok"]) == (0, 1), done.err
    code = "import sys; sys.modules['pwd'] = None; from pipeline.execution.rate_memory import state_file; "
    said = subprocess.run(
        [sys.executable, "-c", code + "print(state_file('job', 'google/m', ['a']))"],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout == "None\n"


def test_p12_without_a_home_missing_credentials_are_refused_with_the_remedy(tmp_path: Path) -> None:
    done = homeless(tmp_path, "run", "job.py", "--quiet")
    assert done.code == 2
    assert "no usable Google credentials: " in done.err
    assert "or pass --credentials" in done.err
