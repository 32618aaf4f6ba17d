"""Runs in several processes: the same dataset whatever dies, and the limits of one run."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands import CHUNK, JOB, Done, Shell, ended
from tests.servers import Answer, Call, Held, Says, Served, Silence, error, served
from tests.test_execute import answer, recorded, require_whole

ROWS = 2 * CHUNK + 200
"""Rows of three chunks, the last of them short."""

BOTH = ("2", "3")

BUT_FIRST = """
import os
try:
    open("loaded", "x").close()
except FileExistsError:
"""
"""The end of a job that does something else in whoever loads it after the parent."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A job and its rows, of which every test takes a copy by name."""
    shell = Shell(tmp_path_factory.mktemp("base"), {"OPENAI_API_KEY": "k"})
    shell.write("job.py", JOB)
    shell.rows(ROWS)
    shell.rows(20, "few.jsonl")
    return shell


@pytest.fixture
def shell(base: Shell, tmp_path: Path) -> Shell:
    for name in ("job.py", "rows.jsonl", "few.jsonl"):
        (tmp_path / name).symlink_to(base.folder / name)
    return Shell(tmp_path, base.variables)


@pytest.fixture
def server() -> Iterator[Served]:
    with served(answer) as server:
        yield server


def arguments(server: Served, processes: str, *more: str) -> tuple[str, ...]:
    common = ("--base-url", server.base_url, "--no-adaptive", "-c", "16", "--quiet", "--json")
    return ("run", "job.py", "--processes", processes, *common, *more)


def run(shell: Shell, server: Served, processes: str, *more: str) -> Done:
    return shell.pipeline(*arguments(server, processes, *more))


def workers_of(pid: int) -> list[int]:
    """The processes that a process has started."""
    tasks = Path(f"/proc/{pid}/task")
    return [int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def gone(pids: list[int], *, within_s: float = 20.0) -> bool:
    """Whether all of them have ended by then."""
    until = time.monotonic() + within_s
    while alive := [pid for pid in pids if is_alive(pid)]:
        if time.monotonic() > until:
            return not alive
        os.sched_yield()
    return True


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, without what another call would have made different."""
    changing = ("latency_s", "finished_at")
    return [{**row, "response": {k: v for k, v in row["response"].items() if k not in changing}} for row in rows]


def left_over(shell: Shell) -> list[str]:
    """Journals of workers, and files that were not written to their end."""
    run_folder = shell.folder / "out/a_job"
    return [path.name for path in run_folder.rglob("*") if path.name.startswith("journal-") or path.suffix == ".tmp"]


def test_the_dataset_is_the_same_with_one_two_and_three_processes(shell: Shell, server: Served) -> None:
    found = []
    for processes in ("1", *BOTH):
        done = run(shell, server, processes, "-o", processes)
        assert done.json.items() >= {"status": "complete", "ok": ROWS, "requests": ROWS, "retries": 0}.items()
        require_whole(shell, ROWS, processes)
        manifest = shell.manifest(processes)
        parts = [{k: part[k] for k in ("name", "first", "rows", "ok", "input_tokens")} for part in manifest["parts"]]
        found.append((without_times(shell.output(processes)), parts, manifest["tokens"], done.json["cost_usd"]))
    assert found[0] == found[1] == found[2]
    assert len(server.answered) == 3 * ROWS


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5"])
def test_a_wrong_number_of_processes_is_refused(text: str, shell: Shell, server: Served) -> None:
    done = run(shell, server, text)
    assert (done.code, server.calls) == (2, [])
    assert "--processes takes a number from 1 on, or auto" in done.err


# Deaths.


def test_p1_workers_that_are_killed_are_replaced_and_nothing_is_lost_or_doubled(shell: Shell, server: Served) -> None:
    dice = random.Random(5)
    with shell.started(*arguments(server, "2")) as child:
        for kill in range(3):
            server.arrived(len(server.calls) + dice.randrange(200, 500))
            os.kill(dice.choice(workers_of(child.pid)), signal.SIGKILL)
            assert child.poll() is None, f"kill {kill} came too late"
        done = ended(child)
    assert done.json.items() >= {"status": "complete", "ok": ROWS, "failed": 0}.items()
    require_whole(shell, ROWS)
    assert len(server.answered) - ROWS <= 3 * 200
    assert left_over(shell) == []


@pytest.mark.parametrize(("first", "second"), [("2", "1"), ("1", "2"), ("3", "2")])
def test_p1_a_killed_run_is_resumed_by_another_number_of_processes(
    first: str, second: str, shell: Shell, server: Served
) -> None:
    dice, done = random.Random(7), 0
    for number, processes in enumerate((first, second, first)):
        with shell.started(*arguments(server, processes)) as child:
            server.arrived(len(server.calls) + dice.randrange(200, 500))
            workers = workers_of(child.pid)
            child.kill()
            child.wait(60)
            assert child.returncode == -signal.SIGKILL, f"kill {number} came too late"
        assert gone(workers)
        before, done = done, recorded(shell)
        assert done > before
    assert run(shell, server, second).json.items() >= {"status": "complete", "requests": ROWS - done}.items()
    require_whole(shell, ROWS)
    assert left_over(shell) == []


def test_p1_a_start_right_after_a_kill_waits_for_the_workers_of_the_one_before(shell: Shell, server: Served) -> None:
    with shell.started(*arguments(server, "2")) as child:
        server.arrived(500)
        child.kill()
        child.wait(60)
    assert run(shell, server, "2").json.items() >= {"status": "complete", "ok": ROWS}.items()
    require_whole(shell, ROWS)


def test_p1_the_whole_group_killed_is_resumed(shell: Shell, server: Served) -> None:
    with shell.started(*arguments(server, "2"), prefix=("setsid",)) as child:
        server.arrived(900)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait(60)
    done = recorded(shell)
    assert done > 0
    assert run(shell, server, "2").json["requests"] == ROWS - done
    require_whole(shell, ROWS)


def test_a_worker_that_dies_before_it_has_done_anything_ends_the_run_in_the_end(shell: Shell, server: Served) -> None:
    (shell.folder / "job.py").unlink()
    shell.write("job.py", JOB + BUT_FIRST + "    os._exit(9)\n")
    done = run(shell, server, "2", "-i", "few.jsonl")
    assert done.code == 1
    assert "worker processes in a row ended before they recorded a row (exit 9)" in done.json["reason"]
    assert server.calls == []


# Ends.


def _read_until(stream: Any, text: str) -> None:
    for line in stream:
        if text in line:
            return
    pytest.fail(f"it ended without saying {text!r}")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_whole_group_drains_all(
    number: signal.Signals, code: int, shell: Shell, server: Served
) -> None:
    server.follow(lambda call: Held(answer(call)))
    with shell.started(*arguments(server, "2"), prefix=("setsid",)) as child:
        server.arrived(16)
        os.killpg(child.pid, number)
        _read_until(child.stderr, number.name)
        server.release()
        done = ended(child)
    # What is in flight is drained; a worker may take a row more before it is told.
    answered = done.json["ok"]
    assert (done.code, done.json["left"]) == (code, ROWS - answered)
    assert 16 <= answered <= 48
    assert left_over(shell) == []
    server.follow(answer)
    assert run(shell, server, "2").json["requests"] == ROWS - answered
    require_whole(shell, ROWS)


def test_a_second_signal_ends_all_at_once(shell: Shell, server: Served) -> None:
    server.follow(lambda call: answer(call) if call.number < 100 else Silence())
    with shell.started(*arguments(server, "2", "--drain-timeout", "1000")) as child:
        server.arrived(116)
        workers = workers_of(child.pid)
        child.terminate()
        _read_until(child.stderr, "SIGTERM")
        child.terminate()
        assert ended(child, within_s=10).code == 143
    assert gone(workers)
    server.follow(answer)
    assert run(shell, server, "2").json["requests"] == ROWS - 100
    require_whole(shell, ROWS)


def test_a_provider_that_refuses_ends_all_and_is_told_as_with_one_process(shell: Shell, server: Served) -> None:
    server.follow(lambda call: answer(call) if call.number < 500 else error(403))
    done = run(shell, server, "2")
    assert (done.code, done.json["ok"]) == (7, 500)
    server.follow(answer)
    assert run(shell, server, "2").json["requests"] == ROWS - 500
    require_whole(shell, ROWS)


@pytest.mark.parametrize("is_revoked", [False, True])
def test_h11_for_a_last_row_that_is_told_of_the_account_one_worker_asks_again_what_was_answered(
    is_revoked: bool,  # noqa: FBT001 - a parameter
    shell: Shell,
    server: Served,
) -> None:
    """Where that is answered, the row fails alone; where it is refused too, the run stops with the row undone."""
    last = f"Say text {ROWS - 1}"
    invalid = Answer(b'[{"error": "API_KEY_INVALID"}]', 400, {"Content-Type": "application/json"})

    def script(call: Call) -> Says:
        if call.prompt == last:
            return Held(invalid)
        return invalid if is_revoked and call.number >= ROWS else answer(call)

    server.follow(script)
    with shell.started(*arguments(server, "2")) as child:
        server.arrived(ROWS)
        server.release()
        done = ended(child)
    status, code, failed = ("stopped", 7, 0) if is_revoked else ("complete", 0, 1)
    assert (done.code, done.json["status"], done.json["ok"], done.json["failed"]) == (code, status, ROWS - 1, failed)
    assert done.json["requests"] == ROWS + 1


def test_the_concurrency_is_that_of_the_run(shell: Shell, server: Served) -> None:
    server.follow(lambda call: Held(answer(call)))
    with shell.started(*arguments(server, "2", "-c", "7")) as child:
        server.arrived(7)
        assert len(workers_of(child.pid)) == 2
        child.terminate()
        _read_until(child.stderr, "SIGTERM: finishing")
        assert len(server.calls) == 7
        server.release()
        assert ended(child).json["ok"] >= 7


def test_the_budget_is_that_of_the_run(shell: Shell, server: Served) -> None:
    done = run(shell, server, "2", "--budget-tokens", "15000")
    assert done.code == 6
    assert "the budget is used up" in done.json["reason"]
    spent = 15 * done.json["ok"]
    assert 14_000 < spent <= 15_000
    again = run(shell, server, "2", "--budget-tokens", "30000")
    assert again.code == 6
    assert 29_000 < 15 * again.json["ok"] <= 30_000


def test_a_job_that_is_another_in_a_worker_is_not_carried_out(shell: Shell, server: Served) -> None:
    (shell.folder / "job.py").unlink()
    shell.write("job.py", JOB + BUT_FIRST + "    job = job.replace(temperature=1.0)\n")
    done = run(shell, server, "2", "-i", "few.jsonl")
    assert (done.code, server.calls) == (1, [])
    assert "a worker process cannot begin: the job was changed" in done.json["reason"]
