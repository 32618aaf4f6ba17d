"""The face of the pipeline: exit codes, one line of JSON, errors of one sentence with the remedy."""

from __future__ import annotations

import json
import signal
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from pipeline import __version__
from tests.commands import JOB, Done, Shell, ended
from tests.servers import Answer, Call, Held, chat, error, served


def script(call: Call) -> Answer:
    """Answers every prompt of the job with its schema."""
    return chat(json.dumps({"answer": call.prompt.removeprefix("Say ")}))


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A folder with a job and three rows."""
    shell = Shell(tmp_path, {"OPENAI_API_KEY": "sk-canary-secret"})
    shell.write("job.py", JOB)
    shell.rows(3)
    return shell


def error_of(done: Done, code: int = 2) -> str:
    """The one line that tells what went wrong; fails when there is anything else."""
    assert done.code == code, done
    assert done.out == ""
    lines = done.err.splitlines()
    assert len(lines) == 1, done.err
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


# Exit codes and results


def test_a_run_that_is_done_exits_0_and_prints_its_result_on_stdout(shell: Shell) -> None:
    with served(script) as server:
        done = shell.pipeline("run", "job.py", "--base-url", server.base_url, "--quiet")
    assert done.code == 0
    assert "rows     3: 3 ok, 0 failed, 0 left" in done.out
    assert "text 2" in done.out
    assert done.err == ""


def test_json_is_exactly_one_line_and_nothing_else(shell: Shell) -> None:
    with served(script) as server:
        done = shell.pipeline("run", "job.py", "--base-url", server.base_url, "--json")
    result = done.json
    assert done.out == json.dumps(result, ensure_ascii=False) + "\n"
    expected = {"status": "complete", "exit_code": 0, "rows": 3, "ok": 3, "failed": 0, "left": 0, "requests": 3}
    assert result.items() >= expected.items()
    assert (result["input_tokens"], result["output_tokens"]) == (30, 15)
    assert (result["output"], result["simulated"]) == ("out/a_job", False)


def test_a_finished_run_that_is_run_again_says_so_and_asks_nothing(shell: Shell) -> None:
    with served(script) as server:
        shell.pipeline("run", "job.py", "--base-url", server.base_url)
        again = shell.pipeline("run", "job.py", "--base-url", server.base_url, "--json")
        assert len(server.calls) == 3
    assert again.code == 0
    assert again.json["requests"] == 0
    assert again.err.startswith("nothing is left to do")


def test_progress_goes_to_stderr_as_lines_when_nobody_watches(shell: Shell) -> None:
    with served(script) as server:
        done = shell.pipeline("run", "job.py", "--base-url", server.base_url, "--json")
    assert "\r" not in done.err
    assert "\x1b" not in done.err + done.out


def test_more_failures_than_allowed_exit_3_without_a_success_marker(shell: Shell) -> None:
    with served(lambda call: error(400, "INVALID_ARGUMENT") if "text 1" in call.prompt else script(call)) as server:
        done = shell.pipeline("run", "job.py", "--base-url", server.base_url, "--json", "--quiet")
    assert done.code == 3
    assert done.json.items() >= {"status": "failed", "exit_code": 3, "ok": 2, "failed": 1}.items()
    assert not (shell.folder / "out/a_job/_SUCCESS").exists()


def test_failures_within_the_allowance_exit_0(shell: Shell) -> None:
    with served(lambda call: error(400) if "text 1" in call.prompt else script(call)) as server:
        done = shell.pipeline("run", "job.py", "--base-url", server.base_url, "--json", "--set", "max_failed=1")
    assert done.code == 0
    assert done.json["failed"] == 1
    assert (shell.folder / "out/a_job/_SUCCESS").exists()


def test_an_input_without_rows_exits_5(shell: Shell) -> None:
    shell.rows(0)
    assert "no row" in error_of(shell.pipeline("run", "job.py", "--base-url", "http://127.0.0.1:1"), code=5)


@pytest.mark.parametrize(("status", "said"), [(401, "OPENAI_API_KEY"), (403, "403"), (404, "404"), (302, "base URL")])
def test_t6_a_provider_that_refuses_us_exits_7_with_the_reason_and_no_row_failed(
    status: int, said: str, shell: Shell
) -> None:
    shell.rows(200)
    with served(lambda _: error(status, "SOME_CODE", "in its own words")) as server:
        done = shell.pipeline("run", "job.py", "--base-url", server.base_url, "--json", "--quiet", "-c", "4")
        assert len(server.calls) <= 4
        assert done.code == 7
        assert done.json.items() >= {"status": "stopped", "exit_code": 7, "failed": 0, "left": 200}.items()
        assert said in str(done.json["reason"])
        server.follow(script)
        assert shell.pipeline("run", "job.py", "--base-url", server.base_url, "--json").json["ok"] == 200


def test_t6_the_reason_is_told_to_people_too(shell: Shell) -> None:
    with served(lambda _: error(403, "PERMISSION_DENIED", "Permission denied on resource project P.")) as server:
        done = shell.pipeline("run", "job.py", "--base-url", server.base_url, "--quiet")
    assert done.code == 7
    assert done.err.startswith("error: stopped (403 PERMISSION_DENIED: Permission denied on resource project P. (every")
    assert "3 rows are left" in done.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_p2_an_interrupted_run_drains_and_exits_130_or_143(number: signal.Signals, code: int, shell: Shell) -> None:
    shell.rows(50)
    with (
        served(lambda call: Held(script(call))) as server,
        shell.started("run", "job.py", "--base-url", server.base_url, "--json", "-c", "5") as child,
    ):
        server.arrived(5)
        child.send_signal(number)
        assert child.stderr is not None
        while number.name not in child.stderr.readline():
            pass
        server.release()
        done = ended(child)
        assert len(server.calls) == 5
    assert done.code == code
    assert done.json.items() >= {"status": "stopped", "exit_code": code, "ok": 5, "left": 45}.items()
    assert done.json["reason"] == number.name


def test_p2_ctrl_c_before_the_run_has_begun_exits_130_without_a_traceback(shell: Shell) -> None:
    shell.write("job.py", "import sys\nprint('ready', file=sys.stderr, flush=True)\nsys.stdin.read()\n")
    with shell.started("run", "job.py") as child:
        assert child.stderr is not None
        assert child.stderr.readline() == "ready\n"
        child.send_signal(signal.SIGINT)
        done = ended(child)
    assert done.code == 130
    assert "Traceback" not in done.err


def test_p4_a_full_disk_exits_1_with_a_clear_message_and_is_resumed_exactly(shell: Shell) -> None:
    rows = 300
    shell.rows(rows)
    long = "x" * 2000
    with served(lambda call: chat(json.dumps({"answer": call.prompt + long}))) as server:
        run = ("run", "job.py", "--base-url", server.base_url, "--quiet", "-c", "8")
        steadily = (*run, "--rpm", "12000")  # so that a slow disk does not decide how much a commit holds
        with shell.started(*steadily, prefix=["sh", "-c", 'ulimit -f 500; exec "$@"', "sh"]) as child:
            done = ended(child)
        assert done.code == 1
        assert "cannot be used" in done.err
        assert "Traceback" not in done.err
        asked = len(server.calls)
        assert asked < rows
        assert shell.pipeline(*run, "--json").json.items() >= {"ok": rows, "failed": 0}.items()
        assert len(server.calls) <= rows + 100  # what was answered after the last commit is asked again
    assert [row["id"] for row in shell.output()] == list(range(rows))


# Errors


def test_a_missing_job_file_is_named(shell: Shell) -> None:
    assert "there is no job file 'jbo.py'" in error_of(shell.pipeline("run", "jbo.py"))


def test_an_unknown_flag_is_named_with_the_way_to_help(shell: Shell) -> None:
    told = error_of(shell.pipeline("run", "job.py", "--concurency", "5"))
    assert "--concurency" in told
    assert "pipeline run --help" in told


def test_an_unknown_command_is_named(shell: Shell) -> None:
    assert "rnu" in error_of(shell.pipeline("rnu", "job.py"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--set", "temprature=0"), "a job has no field 'temprature'; did you mean 'temperature'?"),
        (("--set", "temperature"), "--set takes FIELD=VALUE, not 'temperature'"),
        (("--set", "temperature=hot"), "`temperature`"),
        (("--set", "temperature=9"), "`temperature`"),
        (("--set", "user={{ txet }}"), "names the column 'txet', which is not in the input; did you mean 'text'?"),
        (("--set", "user={{ text"), "template of `user` is broken at line 1"),
        (("--set", "key=nmae"), "'nmae'"),
        (("--set", 'rename={"text": "status"}'), "'text' has the name of an output column"),
        (("--input", "nowhere.jsonl"), "no input file matches 'nowhere.jsonl'"),
        (("--input", "job.py"), "unknown kind of file"),
        (("--model", ""), "names no model: give it one, or pass --model"),
        (("--base-url", "localhost:8000"), "--base-url must begin with https:// or http://"),
        (("--base-url", "http://"), "--base-url"),
        (("--base-url", "http://user:hunter2@localhost:8000/v1"), "--base-url"),
        (("--base-url", "http://localhost:port/v1"), "--base-url"),
        (("--concurrency", "0"), "--concurrency"),
        (("--concurrency", "100000000"), "100000000 calls in flight need 100000064 open files, but the limit is"),
        (("--limit", "0"), "--limit"),
        (("--latency", "1"), "--latency"),
        (("--credentials", "nowhere.json"), "there is no credentials file 'nowhere.json'"),
        (("--output", "job.py"), "the output folder job.py cannot be written"),
        (("--output", "."), "holds other files"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence_and_exit_2(arguments: tuple[str, ...], said: str, shell: Shell) -> None:
    told = error_of(shell.pipeline("run", "job.py", *arguments))
    assert said in told
    assert "hunter2" not in told


def test_a_reserved_column_is_an_error_with_the_remedy(shell: Shell) -> None:
    shell.write("rows.jsonl", '{"text": "a", "status": "new"}\n')
    told = error_of(shell.pipeline("run", "job.py", "--set", "keep=null"))
    assert "the input column 'status' has the name of an output column" in told
    assert 'rename={"status": "input_status"}' in told


def test_without_credentials_the_ways_to_give_some_are_told(shell: Shell) -> None:
    without = Shell(shell.folder, {})
    told = error_of(without.pipeline("run", "job.py"))
    assert "no usable Google credentials" in told
    assert "gcloud auth application-default login" in told
    assert "GOOGLE_APPLICATION_CREDENTIALS" in told
    elsewhere = error_of(without.pipeline("run", "job.py", "--base-url", "https://models.example/v1"))
    assert "set OPENAI_API_KEY" in elsewhere


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("job = 7", "defines no job called 'job'"),
        ("oops(", "job.py:1: SyntaxError"),
        ("\nraise RuntimeError('my own mistake')", "job.py:2: RuntimeError: my own mistake"),
        ("import no_such_module", "job.py:1: ModuleNotFoundError"),
        ("from pipeline import Job\njob = Job(name='a', modle='m')", "did you mean 'model'?"),
        ("from pipeline import Job\njob = Job(model='m')", "name"),
        ("from pipeline import Job\na = Job(name='a')\nb = Job(name='b')", "job.py:a"),
    ],
)
def test_a_mistake_in_the_job_file_is_told_with_its_place(source: str, said: str, shell: Shell) -> None:
    shell.write("job.py", source)
    assert said in error_of(shell.pipeline("run", "job.py"))


def test_s4_the_api_key_is_nowhere_in_what_is_printed_or_written(shell: Shell) -> None:
    with served(lambda call: error(400, message=f"bad key {call.headers['Authorization']}")) as server:
        done = shell.pipeline("run", "job.py", "--base-url", server.base_url)
    files = [path for path in (shell.folder / "out").rglob("*") if path.is_file()]
    assert len(files) >= 4
    for text in (done.out.encode(), done.err.encode(), *(path.read_bytes() for path in files)):
        assert b"canary" not in text


def test_p6_a_second_run_at_the_same_time_is_told_the_pid_of_the_first(shell: Shell) -> None:
    with (
        served(lambda call: Held(script(call))) as server,
        shell.started("run", "job.py", "--base-url", server.base_url, "--json") as first,
    ):
        server.arrived(3)
        second = shell.pipeline("run", "job.py", "--base-url", server.base_url)
        assert f"another run works on out/a_job: pid {first.pid} on " in error_of(second, 8)
        assert shell.pipeline("status", "out/a_job", "--json").json["status"] == "running"
        server.release()
        assert ended(first).code == 0
        assert len(server.calls) == 3


# Looking


def test_plan_tells_what_a_run_would_do_and_asks_nothing(shell: Shell) -> None:
    facts = shell.pipeline("plan", "job.py", "--json").json
    assert (
        facts.items() >= {"job": "a_job", "model": "google/gemini-test", "rows": 3, "files": 1, "bad_rows": 0}.items()
    )
    assert list(facts["columns"]) == ["id", "text", "row", "status", "parsed", "response", "error"]
    shown = shell.pipeline("plan", "job.py", "-n", "1").out
    assert "Say text 0" in shown
    assert "Say text 1" not in shown
    assert not (shell.folder / "out").exists()


def test_plan_needs_no_credentials_and_finds_mistakes(shell: Shell) -> None:
    without = Shell(shell.folder, {})
    assert without.pipeline("plan", "job.py").code == 0
    assert "'txet'" in error_of(without.pipeline("plan", "job.py", "--set", "user={{ txet }}"))


@pytest.fixture
def finished(shell: Shell) -> Shell:
    """A finished run with a failed row, its second."""
    with served(lambda call: error(400, message="refused") if "text 1" in call.prompt else script(call)) as server:
        shell.pipeline("run", "job.py", "--base-url", server.base_url, "--set", "max_failed=1")
    return shell


def test_status_tells_how_far_a_run_is(finished: Shell) -> None:
    facts = finished.pipeline("status", "out/a_job", "--json").json
    expected = {"status": "complete", "holder": None, "rows": 3, "done": 3, "left": 0, "ok": 2, "failed": 1}
    assert facts.items() >= expected.items()
    assert "complete" in finished.pipeline("status", "out/a_job").out


def test_status_of_a_folder_without_a_run_is_an_error(shell: Shell) -> None:
    assert "there is no run in nowhere" in error_of(shell.pipeline("status", "nowhere"))
    assert "there is no run in nowhere" in error_of(shell.pipeline("show", "nowhere"))


def lines_of(done: Done) -> list[dict[str, Any]]:
    assert done.code == 0, done
    return [json.loads(line) for line in done.out.splitlines()]


def test_show_prints_rows_and_their_request_side_by_side(finished: Shell) -> None:
    assert [row["ordinal"] for row in lines_of(finished.pipeline("show", "out/a_job", "--json"))] == [0, 1, 2]
    assert len(lines_of(finished.pipeline("show", "out/a_job", "--json", "-n", "2"))) == 2
    shown = finished.pipeline("show", "out/a_job", "--row", "2").out
    assert "Say text 2" in shown
    assert '"answer": "text 2"' in shown


def test_show_failed_prints_only_failed_rows_with_their_error(finished: Shell) -> None:
    (row,) = lines_of(finished.pipeline("show", "out/a_job", "--failed", "--json"))
    assert (row["ordinal"], row["status"], row["error"]["type"]) == (1, "failed", "Refused")
    assert "refused" in finished.pipeline("show", "out/a_job", "--failed").out


def test_show_row_prints_that_row(finished: Shell) -> None:
    (row,) = lines_of(finished.pipeline("show", "out/a_job", "--row", "2", "--json"))
    assert row["parsed"] == {"answer": "text 2"}
    assert "no row 3" in error_of(finished.pipeline("show", "out/a_job", "--row", "3"))


def test_s7_what_a_model_wrote_cannot_steer_the_terminal(shell: Shell) -> None:
    hostile = "\x1b[2J\x1b]0;owned\x07 [bold red]markup[/] \u202e right to left"
    with served(lambda _: chat(json.dumps({"answer": hostile}))) as server:
        done = shell.pipeline("run", "job.py", "--base-url", server.base_url)
    shown = shell.pipeline("show", "out/a_job")
    for text in (done.out, shown.out):
        assert not set(text) & {"\x1b", "\x07", "\u202e"}
        assert "[bold red]" in text


# The rest of the face


@pytest.mark.parametrize(
    "command", [(), ("run",), ("plan",), ("status",), ("show",), ("tune",), ("reparse",), ("emulate",)]
)
def test_help_of_every_command_exits_0(command: tuple[str, ...], shell: Shell) -> None:
    done = shell.pipeline(*command, "--help")
    assert done.code == 0
    assert "Usage: " in done.out
    assert done.err == ""


def test_no_argument_shows_help_and_version_shows_the_version(shell: Shell) -> None:
    assert "Usage: " in "".join((shown := shell.pipeline()).out + shown.err)
    assert shell.pipeline("--version").out == f"pipeline {__version__}\n"


def test_a_reader_of_our_output_that_leaves_is_no_error(finished: Shell) -> None:
    with finished.started("show", "out/a_job", "--json") as child:
        assert child.stdout is not None
        child.stdout.close()
        assert child.stderr is not None
        assert child.stderr.read() == ""
        assert child.wait(60) == 0


# The emulator


def test_emulate_serves_the_buckets_that_it_is_told_to(shell: Shell) -> None:
    with shell.started("emulate", "--json", "--bucket", "bucket", "--bucket-fault", "403=1") as child:
        assert child.stdout is not None
        origin = json.loads(child.stdout.readline())["origin"]
        with pytest.raises(urllib.error.HTTPError, match="403") as refused:
            urllib.request.urlopen(f"{origin}/bucket/a")  # noqa: S310 - our own emulator
        assert b"<Code>AccessDenied</Code>" in refused.value.read()
        refused.value.close()


def test_emulate_prints_its_address_and_ends_on_sigterm(shell: Shell) -> None:
    with shell.started("emulate", "--json") as child:
        assert child.stdout is not None
        address = json.loads(child.stdout.readline())
        with urllib.request.urlopen(address["stats_url"]) as answer:  # noqa: S310 - our own emulator
            assert json.load(answer)["simulated"] is True
        assert Path(address["credentials_file"]).is_file()
        child.terminate()
        done = ended(child)
    assert (done.code, done.err) == (0, "")
    assert not Path(address["credentials_file"]).exists()


def test_emulate_ends_when_stdin_closes_where_it_is_told_to(shell: Shell) -> None:
    with shell.started("emulate", "--json", "--until-stdin-closes") as child:
        assert child.stdout is not None
        json.loads(child.stdout.readline())
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(60) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--fault", "999=0.1"), "unknown fault kind '999'"),
        (("--fault", "503=2"), "between 0 and 1"),
        (("--poison", "503"), "TEXT=KIND"),
    ],
)
def test_emulate_refuses_what_it_does_not_know(arguments: tuple[str, ...], said: str, shell: Shell) -> None:
    assert said in error_of(shell.pipeline("emulate", *arguments))


def test_a_run_with_the_emulator_needs_no_credentials_and_says_that_it_is_simulated(shell: Shell) -> None:
    without = Shell(shell.folder, {})
    done = without.pipeline("run", "job.py", "--emulate", "--json", "--quiet")
    assert done.code == 0
    assert done.json.items() >= {"ok": 3, "simulated": True}.items()
    assert done.err.startswith("SIMULATED: ")
    assert without.pipeline("status", "out/a_job", "--json").json["simulated"] is True


def test_emulate_goes_before_a_server_that_the_environment_names(shell: Shell) -> None:
    """A variable stands for every run of a shell; an option, which is refused, for this one."""
    named = Shell(shell.folder, {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1 http://127.0.0.1:2/v1"})
    assert named.pipeline("run", "job.py", "--emulate", "--json", "--quiet", "--limit", "1").json["ok"] == 1
