"""What is told while a run works is seen while it works, and once by a reader of both streams."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import JOB, Shell

SIMULATED = "SIMULATED: "
COMMAND = [sys.executable, "-P", "-m", "pipeline", "run", "job.py", "--emulate", "--fresh", "--latency", "0.2"]


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    shell = Shell(tmp_path_factory.mktemp("streams"), {})
    shell.write("job.py", JOB)
    shell.rows(5)
    return shell


def environment(shell: Shell, **more: str) -> dict[str, str]:
    return {**shell.environment, **more}


@pytest.mark.parametrize("more", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
def test_what_is_told_at_the_start_comes_before_the_result_in_one_pipe_and_once(
    shell: Shell, more: dict[str, str]
) -> None:
    """Containers set PYTHONUNBUFFERED: a buffer of ours held progress back until the end."""
    done = subprocess.run(
        COMMAND, cwd=shell.folder, env=environment(shell, **more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout
    assert lines[0].startswith(SIMULATED)
    assert done.stdout.count(SIMULATED) == 1
    assert any(line.startswith("sample   values") for line in lines)


@pytest.mark.parametrize("more", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
def test_both_streams_say_who_answered_when_they_go_to_two_places(shell: Shell, more: dict[str, str]) -> None:
    done = subprocess.run(
        COMMAND, cwd=shell.folder, env=environment(shell, **more), capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith(SIMULATED)
    assert done.stderr.startswith(SIMULATED)


def test_on_a_terminal_it_is_said_once(shell: Shell) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "--quiet"], cwd=shell.folder, env=environment(shell), stdin=subprocess.DEVNULL,
        stdout=theirs, stderr=theirs,
    ) as child:  # fmt: skip
        os.close(theirs)
        told = b""
        try:
            while some := os.read(ours, 4096):
                told += some
        except OSError:  # the last one who had it open is gone
            pass
        os.close(ours)
        assert child.wait(60) == 0
    assert told.count(SIMULATED.encode()) == 1


def test_more_than_a_pipe_holds_is_written_whole_without_a_buffer(tmp_path: Path) -> None:
    script = "from pipeline.cli.streams import secure\nsecure()\nprint('x' * 5_000_000)\nprint('end')\n"
    with subprocess.Popen([sys.executable, "-u", "-c", script], stdout=subprocess.PIPE, cwd=tmp_path) as child:
        assert child.stdout is not None
        os.set_blocking(child.stdout.fileno(), True)
        assert child.stdout.read() == b"x" * 5_000_000 + b"\nend\n"
        assert child.wait(60) == 0


def test_nothing_left_to_do_still_says_who_answered(shell: Shell) -> None:
    command = [word for word in COMMAND if word != "--fresh"]
    for _ in range(2):
        done = subprocess.run(
            command, cwd=shell.folder, env=environment(shell), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, check=False,
        )  # fmt: skip
    assert done.stdout.startswith("nothing is left to do")
    assert done.stdout.count(SIMULATED) == 1
