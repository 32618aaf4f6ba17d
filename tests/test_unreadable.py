"""A run that cannot be read, another user's or a damaged one, is refused by every command, with the reason."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import JOB, Shell

COMMANDS = (
    ("status", "out/a_job"),
    ("show", "out/a_job"),
    ("report", "out/a_job"),
    ("reparse", "out/a_job", "--job", "job.py"),
    ("tune", "out/a_job", "rpm=3"),
    ("run", "job.py", "--emulate"),
)


def a_folder(run: Path) -> None:
    (run / "plan.json").unlink()
    (run / "plan.json").mkdir()


def a_loop(run: Path) -> None:
    (run / "plan.json").unlink()
    (run / "plan.json").symlink_to("plan.json")


def a_file(run: Path) -> None:
    run.rename(run.with_name("_moved"))
    run.write_text("")


def of_another(run: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    run.chmod(0)


@pytest.mark.parametrize("made", [a_folder, a_loop, a_file, of_another])
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: str(command[0]))
def test_a_run_that_cannot_be_read_is_refused_with_the_reason(
    made: Callable[[Path], None], command: tuple[str, ...], tmp_path: Path
) -> None:
    shell = Shell(tmp_path, {})
    shell.write("job.py", JOB)
    shell.rows(3)
    assert shell.pipeline("run", "job.py", "--emulate", "--quiet").code == 0
    run = tmp_path / "out/a_job/_run"
    made(run)
    try:
        done = shell.pipeline(*command)
    finally:
        run.chmod(0o700)
    assert done.code in {1, 2}
    assert "error: " in done.err
    assert "_run" in done.err
    assert "Traceback" not in done.err
