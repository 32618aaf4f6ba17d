"""How far a run is: one status with one vocabulary, and figures of the whole run in words that people use."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path

import pytest

from pipeline.evaluation.assessment import require_finished
from pipeline.execution.monitor import tuning_of
from pipeline.execution.run_status import KILLED, charged_to, run_status, status_of
from pipeline.faults import UsageError
from pipeline.report.facts import run_facts
from pipeline.storage.run_folder import EVENTS, STATE, RunFolder
from pipeline.text import figures
from pipeline.totals.ledger import NOTHING
from tests.commands import JOB, Shell, ended
from tests.servers import Answer, Call, Held, chat, error, served
from tests.test_cli import error_of, script
from tests.test_show import until


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shell = Shell(tmp_path, {"OPENAI_API_KEY": "sk-canary-secret"})
    shell.write("job.py", JOB)
    shell.rows(30)
    return shell


def refusing(call: Call) -> Answer:
    """Refuses the rows that end in 7."""
    return error(400, message="refused") if call.prompt.endswith("7") else script(call)


def ran(shell: Shell, *options: str) -> dict[str, object]:
    with served(refusing) as server:
        return shell.pipeline("run", "job.py", "--base-url", server.base_url, "--json", "--quiet", *options).json


def status(shell: Shell) -> dict[str, object]:
    return shell.pipeline("status", "out/a_job", "--json").json


def state(folder: Path, at: float, **figures: object) -> None:
    """What a job at work says of itself."""
    told = {"at": at, "rows": 30, "run_ok": 20, "run_failed": 1, "failures": [], "cost_usd": 0.1, **figures}
    (folder / "_run" / STATE).write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("options", "expected"),
    [(("--set", "max_failed=3"), "complete"), ((), "complete"), (("--set", "max_failed=2"), "failed")],
)
def test_status_says_the_same_of_a_run_as_the_run_itself_and_its_page(
    options: tuple[str, ...], expected: str, shell: Shell
) -> None:
    done = ran(shell, *options, "--no-fail-fast")
    found = status(shell)
    same = ("status", "reason", "job", "run_id", "simulated", "rows", "ok", "failed", "left", "failures", "run_calls")
    assert {name: found[name] for name in same} == {name: done[name] for name in same}
    assert done["status"] == run_facts(shell.folder / "out/a_job").status == expected
    assert (shell.folder / "out/a_job/_SUCCESS").exists() == (expected == "complete")


def test_a_run_of_too_many_failed_rows_says_why_it_has_failed(shell: Shell) -> None:
    ran(shell, "--set", "max_failed=2", "--no-fail-fast")
    assert "3 of 30 rows failed, more than the job allows (max_failed=2)" in str(status(shell)["reason"])
    shown = shell.pipeline("status", "out/a_job").out
    assert "status    failed: 3 of 30 rows failed" in shown
    assert "`--retry-failed`" in shown


def test_a_run_that_stopped_on_too_many_failed_rows_says_why(shell: Shell) -> None:
    shell.rows(300)
    with served(lambda call: chat("[]") if call.number % 2 else script(call)) as server:
        done = shell.pipeline("run", "job.py", "--base-url", server.base_url, "-c", "1", "--json", "--set", "repairs=0")
    found = status(shell)
    assert (done.code, found["status"], found["reason"]) == (3, done.json["status"], done.json["reason"])
    assert found["stopped_by"] == "TooManyFailures"
    shown = shell.pipeline("status", "out/a_job").out
    assert "with `--no-fail-fast` to ask the others" in shown
    assert "run the same command again" not in shown


def test_the_result_says_which_job_run_and_start_it_is_of(shell: Shell) -> None:
    before = time.time()
    first = ran(shell, "--limit", "10", "--set", "max_failed=9")
    second = ran(shell, "--set", "max_failed=9")
    for one in (first, second):
        began, finished = (datetime.fromisoformat(str(one[name])) for name in ("started", "finished"))
        assert began.utcoffset() is not None
        assert before - 0.001 <= began.timestamp() <= finished.timestamp() <= time.time()
    assert (first["job"], second["job"], first["run_id"]) == ("a_job", "a_job", second["run_id"])
    assert [(one["ok"], one["failed"]) for one in (first, second)] == [(9, 1), (27, 3)]
    assert [(one["start_ok"], one["start_failed"], one["requests"]) for one in (first, second)] == [
        (9, 1, 10),
        (18, 2, 20),
    ]
    assert str(first["finished"]) < str(second["started"])
    assert shell.manifest()["finished"] == second["finished"]


def test_the_figures_of_a_job_at_work_are_those_of_the_whole_run(shell: Shell) -> None:
    ran(shell, "--set", "max_failed=9")
    output = shell.folder / "out/a_job"
    with RunFolder(output).locked():
        now = {"rows_per_s": 75.0, "eta_s": 250.0, "in_flight": 3, "concurrency": 64, "waiting": 52, "limit": 83.0}
        kinds = [{"type": "Refused", "http_status": 400, "count": 1, "row": 7, "example": "refused"}]
        state(output, time.time() + 1, **now, waits_for="quota", rate_change="10:00:00 UTC: cut", failures=kinds)
        found = run_status(output)
        shown = shell.pipeline("status", "out/a_job").out
    assert (found.status, found.ok, found.failed, found.done, found.left) == ("running", 20, 1, 21, 9)
    for line in (
        "progress  21 of 30 rows (70.0 %), 75/s, about 4 min left",
        "rows      ok 20, failed 1",
        "failed    1 Refused (400), as in row 7: refused",
        "calls     3 in flight (at most 64)",
        "waiting   52 rows for quota (83/s)",
        "rate      10:00:00 UTC: cut",
    ):
        assert line in shown.splitlines()


def test_what_an_earlier_start_said_of_itself_is_not_taken_for_the_present(shell: Shell) -> None:
    ran(shell, "--set", "max_failed=9")
    output = shell.folder / "out/a_job"
    state(output, time.time() - 100)
    with RunFolder(output).locked():
        found = run_status(output)
        assert "has not reported yet" in shell.pipeline("status", "out/a_job").out
    assert (found.status, found.done, found.now["rows_per_s"], found.finished) == ("running", 30, None, None)


def test_the_figures_of_a_job_that_shares_them_with_others_are_not_taken_for_its_own(shell: Shell) -> None:
    """The runs of an evaluation count together."""
    ran(shell, "--set", "max_failed=9")
    output = shell.folder / "out/a_job"
    with RunFolder(output).locked():
        state(output, time.time() + 1, rows=60, run_ok=50)
        found = run_status(output)
    assert (found.ok, found.failed) == (27, 3)


def test_a_run_that_was_killed_says_so_and_counts_what_it_has_recorded(shell: Shell) -> None:
    shell.rows(40)
    with (
        served(lambda call: Held(script(call)) if int(call.prompt.split()[-1]) >= 25 else script(call)) as server,
        shell.started("run", "job.py", "--base-url", server.base_url, "-c", "4", "--quiet") as child,
    ):
        server.arrived(29)
        until(lambda: run_status(shell.folder / "out/a_job").done == 25)
        assert status(shell)["status"] == "running"
        child.kill()
        ended(child)
        server.release()
    found = run_status(shell.folder / "out/a_job")
    assert (found.status, found.reason, found.unsealed, found.done, found.left) == ("stopped", KILLED, 25, 25, 15)
    assert "25 more are answered and not yet written to a part" in shell.pipeline("status", "out/a_job").out
    assert ran(shell, "--set", "max_failed=9")["requests"] == 15
    assert status(shell)["status"] == "complete"


def test_a_killed_retry_of_failed_rows_is_said_to_be_stopped_wherever_its_status_is_told(shell: Shell) -> None:
    """The manifest of the start before is still there, and no longer true."""
    ran(shell, "--set", "max_failed=9")
    output = shell.folder / "out/a_job"
    require_finished(output)
    with (
        served(lambda call: Held(script(call))) as server,
        shell.started("run", "job.py", "--base-url", server.base_url, "--quiet", "--retry-failed") as child,
    ):
        server.arrived(3)
        with pytest.raises(UsageError, match="still in progress"):
            require_finished(output)
        child.kill()
        ended(child)
        server.release()
    found, page = run_status(output), run_facts(output)
    assert shell.manifest()["status"] == "complete"
    assert found.status == page.status == status_of(output) == "stopped"
    assert (page.ok, page.failed, page.pending, page.left) == (found.ok, found.failed, found.unsealed, found.left)
    assert found.left == 3
    assert f"stopped: {KILLED}" in page.notes
    with pytest.raises(UsageError, match="is not finished"):
        require_finished(output)


def test_a_run_that_was_killed_before_its_first_answer_says_so(shell: Shell) -> None:
    with (
        served(lambda call: Held(script(call))) as server,
        shell.started("run", "job.py", "--base-url", server.base_url, "--quiet") as child,
    ):
        server.arrived(1)
        until((shell.folder / "out/a_job/_run" / EVENTS).exists)
        child.kill()
        ended(child)
        (shell.folder / "out/a_job/_run" / STATE).unlink(missing_ok=True)  # as in its first second
        server.release()
    assert (run_status(shell.folder / "out/a_job").done, run_status(shell.folder / "out/a_job").reason) == (0, KILLED)


def test_a_folder_without_a_run_has_rows_left_to_ask(tmp_path: Path) -> None:
    assert status_of(tmp_path) == "stopped"
    assert charged_to(tmp_path) == NOTHING


def test_a_run_that_was_killed_after_an_earlier_end_does_not_repeat_the_reason_of_that(shell: Shell) -> None:
    ran(shell, "--set", "max_failed=9", "--limit", "10")
    output = shell.folder / "out/a_job"
    (output / "_SUCCESS").unlink()
    assert run_status(output).reason is None
    state(output, time.time() + 5)
    assert (run_status(output).status, run_status(output).reason) == ("stopped", KILLED)


@pytest.mark.parametrize(
    "content",
    [
        "[]", "5", "null", "{", '{"ok": "3", "failed": 0}', '{"ok": -1}', '{"failures": 5}', '{"failures": [{"a": 1}]}',
        '{"failures": [7]}', '{"finished": 5}', '{"finished": "yesterday"}',
    ],
)  # fmt: skip
def test_a_manifest_that_cannot_be_ours_is_said_to_be_damaged(content: str, shell: Shell) -> None:
    ran(shell, "--set", "max_failed=9")
    shell.write("out/a_job/_manifest.json", content)
    for command in ("status", "report"):
        assert "_manifest.json is damaged" in error_of(shell.pipeline(command, "out/a_job"))


@pytest.mark.parametrize("content", ["[]", "5", "null", "{", '{"rows": "30"}'])
def test_a_state_that_cannot_be_ours_is_as_if_it_were_not_there(content: str, shell: Shell) -> None:
    ran(shell, "--set", "max_failed=9")
    (shell.folder / "out/a_job/_run" / STATE).write_text(content)
    with RunFolder(shell.folder / "out/a_job").locked():
        assert run_status(shell.folder / "out/a_job").done == 30
    assert run_status(shell.folder / "out/a_job").status == "complete"


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        ("rmp=3", "did you mean rpm=3?"),
        ("conc=5", "did you mean concurrency=5?"),
        ("RPM=60", "did you mean rpm=60?"),
        ("speed=3", "what can be tuned: concurrency, rpm"),
        ("rpm", "is not rpm=NUMBER"),
        ("tpm=many", "is not tpm=NUMBER"),
        ("concurrency=0", "takes a number from 1 on"),
    ],
)
def test_a_limit_that_cannot_be_tuned_is_refused_at_once_whether_or_not_anything_runs(
    wrong: str, remedy: str, shell: Shell
) -> None:
    assert remedy in error_of(shell.pipeline("tune", "out/a_job", wrong))
    ran(shell, "--set", "max_failed=9")
    assert remedy in error_of(shell.pipeline("tune", "out/a_job", wrong))
    assert "no job is running" in error_of(shell.pipeline("tune", "out/a_job", "rpm=3"))
    assert tuning_of(["rpm=3", "concurrency=5"]) == {"rpm": 3, "concurrency": 5}


def test_a_json_line_of_every_start_is_a_history_that_can_be_plotted(shell: Shell) -> None:
    lines = [ran(shell, "--limit", str(limit), "--set", "max_failed=9") for limit in (5, 10, 20)]
    assert [line["start_ok"] for line in lines] == [5, 4, 9]
    assert len({line["run_id"] for line in lines}) == 1
    assert sorted(line["finished"] for line in lines) == [line["finished"] for line in lines]  # type: ignore[type-var]
    assert [kind["count"] for kind in lines[-1]["failures"]] == [2]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("told", "text"),
    [
        (figures.count(1319), "1,319"),
        (figures.progress(1319, 20_000), "6.6 %"),
        (figures.progress(19_999, 20_000), "99.9 %"),
        (figures.progress(20_000, 20_000), "100 %"),
        (figures.progress(0, 0), "100 %"),
        (figures.dollars(0), "$0.00"),
        (figures.dollars(0.2234), "$0.22"),
        (figures.dollars(0.002234), "$0.0022"),
        (figures.dollars(0.0000001), "$0.000000"),
        (figures.dollars(1234.5), "$1,234.50"),
        (figures.rate(75), "75/s"),
        (figures.rate(1234.5), "1,234/s"),
        (figures.rate(0.5), "30 per minute"),
        (figures.seconds(0.20900000000074215), "0.21 s"),
        (figures.about(0.2), "1 s"),
        (figures.about(250), "4 min"),
        (figures.about(3 * 3600 + 59 * 60), "3 h 59 min"),
        (figures.about(30 * 3600), "30 h"),
        (figures.about(300 * 3600), "12 days"),
        (figures.moment("2026-11-28T12:00:01.250+00:00"), "2026-11-28 12:00:01 UTC"),
    ],
)
def test_figures_are_short_and_round(told: str, text: str) -> None:
    assert told == text
