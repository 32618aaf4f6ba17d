"""What a nightly job leaves behind: lines of stderr that say when they were written, and one line of JSON a start."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import JOB, Shell

STAMPED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ \S.*")


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shell = Shell(tmp_path, {})
    shell.write("job.py", JOB)
    shell.rows(5)
    return shell


def sh(shell: Shell, script: str) -> int:
    command = ["sh", "-c", script, "sh", sys.executable, "-m", "pipeline", "run", "job.py", "--json"]
    return subprocess.run(command, cwd=shell.folder, env=shell.environment, check=False, timeout=60).returncode


def test_every_line_that_is_appended_to_a_log_says_when_it_was_written(shell: Shell) -> None:
    for options in ("--quiet", "--quiet", ""):
        assert sh(shell, f'"$@" --emulate {options} >> runs.jsonl 2>> runs.log') == 0
    assert sh(shell, '"$@" --base-url nowhere --quiet >> runs.jsonl 2>> runs.log') == 2
    lines = (shell.folder / "runs.log").read_text().splitlines()
    assert [line for line in lines if not STAMPED.fullmatch(line)] == []
    assert [line.partition(" ")[2].split()[0] for line in lines if "error" in line] == ["error:"]
    assert len([line for line in lines if "nothing is left to do" in line]) == 2
    results = [json.loads(line) for line in (shell.folder / "runs.jsonl").read_text().splitlines()]
    assert [(one["status"], one["start_ok"]) for one in results] == [("complete", 5), ("complete", 0), ("complete", 0)]


def test_a_line_that_begins_with_the_time_is_given_no_second_one(shell: Shell) -> None:
    script = (
        "import sys; from pipeline.cli import streams; streams.secure(); "
        "print('2026-11-28T01:00:00Z 5 of 9', file=sys.stderr); print('\\nnote: x', file=sys.stderr); "
        "print('a', end='', file=sys.stderr); print('b', file=sys.stderr)"
    )
    with (shell.folder / "log").open("ab") as log:
        subprocess.run([sys.executable, "-c", script], env=shell.environment, stderr=log, check=True, timeout=60)
    first, empty, second, third = (shell.folder / "log").read_text().splitlines()
    assert (first, empty) == ("2026-11-28T01:00:00Z 5 of 9", "")
    assert (second.partition(" ")[2], third.partition(" ")[2]) == ("note: x", "ab")


@pytest.mark.parametrize("where", ["2> errors", "2>&1 >/dev/null | cat > errors"])
def test_what_one_command_says_to_a_file_or_a_pipe_is_left_as_it_is(where: str, shell: Shell) -> None:
    sh(shell, f'"$@" --base-url nowhere {where}')
    assert (shell.folder / "errors").read_text().startswith("error: ")
