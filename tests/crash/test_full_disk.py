"""A disk that fails, at whichever call: the run stops at once and says so, and is resumed exactly."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.data import PARTS
from pipeline.faults import Broken, UsageError
from pipeline.storage.journal_reader import read_state
from pipeline.storage.run_folder import EVENTS
from tests.commands import JOB, Done, Shell, ended
from tests.crash.calls import FailingCalls, SystemCall, tapped
from tests.crash.lives import calls_of_a_start
from tests.crash.small import RunPlace, recorded, require_whole, start
from tests.servers import Answer, Served, chat, served
from tests.servers import Call as Asked

ERRORS = (errno.EIO, errno.ENOSPC)


def failed_start(place: RunPlace, failing: FailingCalls) -> str:
    """What a start says whose disk fails."""
    try:
        summary = start(place, tapped(failing))
    except (Broken, UsageError) as stopped:
        return str(stopped)
    assert summary.status == "stopped"
    assert summary.reason is not None
    return summary.reason


def require_no_sync_again(made: Sequence[SystemCall], failed: SystemCall) -> None:
    """A sync that has failed is not tried again: a second one may succeed and mean nothing."""
    if failed.name == "sync" and failed.path.suffix == ".tmp":
        assert [call for call in made if call.name == "sync" and call.path == failed.path] == [failed]


def require_resumed_exactly(place: RunPlace, failing: FailingCalls) -> None:
    """The start stops with the reason, the next one asks just what was not recorded, and all is as it should be."""
    told = failed_start(place, failing)
    assert os.strerror(failing.errno) in told, f"call {failing.at}: {told}"
    require_no_sync_again(failing.made, failing.made[failing.at])
    before = recorded(place.output) if place.output.exists() else {}
    assert start(place).status == "complete"
    require_whole(place)
    assert before.items() <= recorded(place.output).items()
    answers = sum(len(nonces) for nonces in place.said().values())
    assert answers <= place.shape.rows + place.shape.concurrency


def test_p4_whichever_call_fails_the_run_stops_with_the_reason_and_is_resumed_exactly(scratch: Path) -> None:
    calls = calls_of_a_start(RunPlace(scratch / "whole").prepare())
    for at, call in enumerate(calls):
        place, failing = RunPlace(scratch / f"failing at {at}").prepare(), FailingCalls(at, ERRORS[at % 2])
        if is_last_of_history(call, calls):
            assert start(place, tapped(failing)).status == "complete"
            require_whole(place)
        else:
            require_resumed_exactly(place, failing)
    assert len(calls) > 80


def is_last_of_history(call: SystemCall, calls: Sequence[SystemCall]) -> bool:
    """Whether it adds the last part of a second to the run's history, when all parts are there: no run fails for it."""
    last_part = max(other.number for other in calls if other.path.name == PARTS)
    return call.path.name == EVENTS and call.number > last_part


# For real: a file system of a few hundred kilobytes, and a kernel that fails syncs.

ROWS = 300
ISOLATED = ("unshare", "--user", "--map-root-user", "--mount")


def wordy(call: Asked) -> Answer:
    """An answer that cannot be compressed."""
    noise = random.Random(call.prompt).randbytes(1000).hex()
    return chat(json.dumps({"answer": call.prompt + noise}))


def works(*command: str) -> bool:
    """Whether this machine has the command and lets us run it."""
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shell = Shell(tmp_path, {"OPENAI_API_KEY": "k"})
    shell.write("job.py", JOB)
    shell.rows(ROWS)
    return shell


def command(server: Served, *more: str) -> tuple[str, ...]:
    return ("run", "job.py", "--base-url", server.base_url, "-c", "8", "--no-adaptive", "--quiet", "--json", *more)


def started(shell: Shell, server: Served, *prefix: str) -> Done:
    with shell.started(*command(server), prefix=prefix) as child:
        return ended(child)


def require_stopped(done: Done) -> None:
    assert done.code == 1, done
    assert "Traceback" not in done.err
    told = done.err + (str(done.json["reason"]) if done.out else "")
    assert "cannot be" in told, done


def require_rest(done: Done, journal: Path) -> None:
    """All is done, and just the rows were asked that the journal of the start before did not have."""
    parts, entries = read_state(journal)
    left = ROWS - entries - sum(part.rows for part in parts)
    assert done.json.items() >= {"status": "complete", "ok": ROWS, "failed": 0, "requests": left}.items()


IN_A_TINY_FILE_SYSTEM = """
mkdir -p out/a_job && mount -t tmpfs -o size=$1k tmpfs out/a_job; shift
"$@" >first.out 2>first.err; echo $? >first.code
cp -r out/a_job first
mount -o remount,size=64m out/a_job
"$@"
"""


@pytest.mark.parametrize("kilobytes", [60, 300, 900])
def test_p4_a_tiny_file_system_stops_the_run_and_after_it_has_grown_the_run_is_resumed(
    kilobytes: int, shell: Shell
) -> None:
    if not works(*ISOLATED, "mount", "-t", "tmpfs", "tmpfs", str(shell.folder)):
        pytest.skip("this machine lets nobody mount a file system")
    with served(wordy) as server:
        done = started(shell, server, *ISOLATED, "sh", "-c", IN_A_TINY_FILE_SYSTEM, "sh", str(kilobytes))
    code, out, err = ((shell.folder / f"first.{name}").read_text() for name in ("code", "out", "err"))
    require_stopped(Done(int(code), out, err))
    require_rest(done, shell.folder / "first/_run/journal.sqlite")


@pytest.mark.parametrize(
    ("path", "nth"),
    [
        ("_run/journal.sqlite-wal", 1),
        ("_run/journal.sqlite-wal", 5),
        ("_run/.part-000000.parquet.tmp", 1),
        ("_run/replies", 1),
    ],
)
def test_p4_a_sync_that_the_kernel_fails_stops_the_run_and_it_is_resumed_exactly(
    path: str, nth: int, shell: Shell
) -> None:
    trace = ("strace", "-f", "-qq", "-e", "trace=fsync,fdatasync", "-o", str(shell.folder / "calls"))
    output = shell.folder / "out/a_job"
    fail = ("-P", str(output / path), "-e", f"inject=fsync,fdatasync:error=EIO:when={nth}")
    if not works(*trace, *fail, "true"):
        pytest.skip("this machine has no strace, or lets nobody trace")
    with served(wordy) as server:
        spoilt = started(shell, server, *trace, *fail)
        require_stopped(spoilt)
        assert (shell.folder / "calls").read_text().count("INJECTED") == 1
        shutil.copytree(output / "_run", shell.folder / "first")
        require_rest(started(shell, server), shell.folder / "first/journal.sqlite")
    assert [row["id"] for row in shell.output()] == list(range(ROWS))
