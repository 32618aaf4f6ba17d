"""Whole runs: whatever happens in between, every row is asked until it is answered, recorded once, and in its place."""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.storage.journal_reader import read_state
from pipeline.storage.run_folder import RunFolder
from tests.commands import CHUNK, JOB, Done, Shell, ended
from tests.servers import Answer, Call, Held, Says, Served, Silence, chat, error, served

ROWS = CHUNK + 200
"""Heavy rows of two chunks, the second of them short."""


def answer(call: Call) -> Answer:
    """Says the row's text in capitals, and something that only a later schema asks for."""
    text = call.prompt.removeprefix("Say ")
    return chat(json.dumps({"answer": text.upper(), "words": len(text.split())}))


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shell = Shell(tmp_path, {"OPENAI_API_KEY": "k"})
    shell.write("job.py", JOB)
    shell.rows(20)
    return shell


@pytest.fixture
def server() -> Iterator[Served]:
    with served(answer) as server:
        yield server


def arguments(server: Served, *more: str) -> tuple[str, ...]:
    return ("run", "job.py", "--base-url", server.base_url, "--no-adaptive", "-c", "16", "--quiet", "--json", *more)


def run(shell: Shell, server: Served, *more: str) -> Done:
    return shell.pipeline(*arguments(server, *more))


def require_whole(shell: Shell, rows: int, folder: str = "out/a_job") -> None:
    """Every row is there once, in order, with its own answer."""
    found = shell.output(folder)
    assert [row["id"] for row in found] == list(range(rows))
    assert {row["status"] for row in found} == {"ok"}
    assert [row["parsed"]["answer"] for row in found] == [f"TEXT {number}" for number in range(rows)]
    assert (shell.folder / folder / "_SUCCESS").exists()


def recorded(shell: Shell) -> int:
    """How many rows are durable: sealed, or in the journal."""
    parts, entries = read_state(shell.folder / "out/a_job/_run/journal.sqlite")
    return sum(part.rows for part in parts) + entries


def refused(done: Done, *said: str) -> None:
    """Exit 2, with all of this in the error."""
    assert done.code == 2, done
    assert done.err.startswith("error: ")
    assert "Traceback" not in done.err
    for text in said:
        assert text in done.err


# From start to end


def test_a_run_over_several_chunks_is_whole_and_its_manifest_adds_up(shell: Shell, server: Served) -> None:
    shell.rows(ROWS, heavy=True)
    assert run(shell, server).json.items() >= {"status": "complete", "ok": ROWS, "requests": ROWS}.items()
    require_whole(shell, ROWS)
    assert Counter(server.answered) == Counter(f"Say text {number}" for number in range(ROWS))
    manifest = shell.manifest()
    assert [(part["first"], part["rows"]) for part in manifest["parts"]] == [(0, CHUNK), (CHUNK, ROWS - CHUNK)]
    assert (manifest["rows"], manifest["ok"], manifest["failed"]) == (ROWS, ROWS, 0)
    assert manifest["tokens"].items() >= {"input": 10 * ROWS, "output": 5 * ROWS}.items()
    assert manifest["status"] == "complete"
    left_over = [path.name for path in (shell.folder / "out").rglob("*.tmp")]
    assert left_over == []


def test_i2_duplicate_ids_are_both_kept_and_both_asked(shell: Shell, server: Served) -> None:
    shell.write("rows.jsonl", '{"id": 1, "text": "a"}\n{"id": 1, "text": "b"}\n')
    assert run(shell, server, "--set", "key=id").json["ok"] == 2
    assert [(row["id"], row["parsed"]["answer"]) for row in shell.output()] == [(1, "A"), (1, "B")]


def test_limit_takes_the_first_rows_only(shell: Shell, server: Served) -> None:
    assert run(shell, server, "--limit", "7").json["rows"] == 7
    require_whole(shell, 7)
    refused(run(shell, server, "--limit", "6"), "limit changed: 7 -> 6")
    assert len(server.calls) == 7


def test_i1_bad_lines_are_failed_rows_in_their_place_and_are_not_asked(shell: Shell, server: Served) -> None:
    shell.write("rows.jsonl", '{"id": 0, "text": "text 0"}\n{"id": oops}\n\n{"id": 2, "text": "text 2"}\n')
    done = run(shell, server, "--set", "max_failed=2")
    rows = shell.output()
    assert [row["status"] for row in rows if row["status"] == "ok"] == ["ok", "ok"]
    bad = [row for row in rows if row["status"] == "failed"]
    assert {row["error"]["type"] for row in bad} == {"InvalidRow"}
    assert done.json["failed"] == len(bad) >= 1
    assert rows[0]["id"] == 0
    assert rows[-1]["parsed"] == {"answer": "TEXT 2"}
    assert len(server.calls) == 2


def test_i1_bad_lines_stop_a_job_that_allows_none_before_the_first_call(shell: Shell, server: Served) -> None:
    shell.write("rows.jsonl", '{"id": 0, "text": "text 0"}\n{"id": oops}\n')
    refused(run(shell, server, "--set", "max_failed=0"), "cannot be read", "rows.jsonl", "line 2")
    assert server.calls == []


def test_i6_a_null_value_fails_its_row_only(shell: Shell, server: Served) -> None:
    shell.write("rows.jsonl", '{"id": 0, "text": "text 0"}\n{"id": 1, "text": null}\n{"id": 2, "text": "text 2"}\n')
    assert run(shell, server, "--set", "max_failed=1").code == 0
    assert [row["status"] for row in shell.output()] == ["ok", "failed", "ok"]
    assert len(server.calls) == 2


VALIDATOR = """
    @field_validator("answer")
    def check(cls, value):
        if value == "TEXT 15" and Path("bug").exists():
            raise LookupError("a mistake of mine")
        return value
"""


def test_a_validator_of_the_jobs_own_that_raises_anything_fails_its_row(shell: Shell, server: Served) -> None:
    source = JOB.replace("    answer: str\n", f"    answer: str\n{VALIDATOR}").replace("import BaseModel", "import *")
    shell.write("job.py", f"from pathlib import Path\n{source}")
    shell.write("bug", "")
    done = run(shell, server, "--set", "repairs=0")
    assert (done.code, done.json["ok"], done.json["failed"]) == (0, 19, 1)
    assert [row["status"] for row in shell.output()].index("failed") == 15


# Again


def test_a_resume_asks_only_what_is_missing(shell: Shell, server: Served) -> None:
    server.follow(lambda call: answer(call) if call.number < 8 else error(403))
    first = run(shell, server, "-c", "1")
    assert (first.code, first.json["ok"], first.json["left"]) == (7, 8, 12)
    server.follow(answer)
    before = len(server.calls)
    assert run(shell, server).json.items() >= {"status": "complete", "ok": 20, "requests": 12}.items()
    assert len(server.calls) == before + 12
    require_whole(shell, 20)
    assert set(Counter(server.answered).values()) == {1}


def test_what_was_drained_is_counted_and_not_asked_again(shell: Shell, server: Served) -> None:
    server.follow(lambda call: Held(answer(call)))
    with shell.started(*arguments(server, "-c", "5")) as child:
        server.arrived(5)
        child.terminate()
        _read_until(child.stderr, "SIGTERM")
        server.release()
        done = ended(child)
    assert done.code == 143
    assert (done.json["ok"], done.json["left"]) == (5, 15)
    assert shell.manifest().items() >= {"status": "stopped", "ok": 5}.items()
    assert not (shell.folder / "out/a_job/_SUCCESS").exists()
    server.follow(answer)
    assert run(shell, server).json["requests"] == 15
    require_whole(shell, 20)


def _read_until(stream: Any, text: str) -> None:
    while text not in stream.readline():
        pass


def test_p1_kill_9_at_any_moment_loses_nothing_and_doubles_nothing(shell: Shell, server: Served) -> None:
    shell.rows(ROWS, heavy=True)
    dice = random.Random(11)
    done = lost = 0
    for kill in range(5):
        answered = len(server.answered)
        with shell.started(*arguments(server)) as child:
            server.arrived(len(server.calls) + dice.randrange(1, ROWS // 6))
            child.kill()
            child.wait(60)
            assert child.returncode == -signal.SIGKILL, f"kill {kill} came too late"
        before, done = done, recorded(shell)
        lost += len(server.answered) - answered - (done - before)
        assert done >= before
    assert run(shell, server).json.items() >= {"status": "complete", "failed": 0, "requests": ROWS - done}.items()
    require_whole(shell, ROWS)
    assert len(server.answered) == ROWS + lost
    assert [path.name for path in (shell.folder / "out").rglob(".*.tmp")] == []


def test_p1_what_was_answered_becomes_durable_by_itself_and_is_never_asked_again(shell: Shell, server: Served) -> None:
    server.follow(lambda call: answer(call) if call.number < 12 else Silence())
    with shell.started(*arguments(server, "-c", "4")) as child:
        server.arrived(16)
        while recorded(shell) < 12:
            assert child.poll() is None
        child.kill()
    server.follow(answer)
    assert run(shell, server).json["requests"] == 8
    assert set(Counter(server.answered).values()) == {1}
    require_whole(shell, 20)


def test_p1_a_kill_while_the_last_chunk_is_sealed_costs_no_call(shell: Shell, server: Served) -> None:
    shell.rows(CHUNK, heavy=True)
    with shell.started(*arguments(server)) as child:
        server.arrived(CHUNK)
        while recorded(shell) < CHUNK:
            assert child.poll() is None
        child.kill()
    assert run(shell, server).json["requests"] == 0
    assert len(server.calls) == CHUNK
    require_whole(shell, CHUNK)


def test_p2_a_second_signal_ends_the_run_at_once(shell: Shell, server: Served) -> None:
    server.follow(lambda call: answer(call) if call.number < 3 else Silence())
    with shell.started(*arguments(server, "-c", "4", "--drain-timeout", "1000")) as child:
        server.arrived(7)
        child.send_signal(signal.SIGINT)
        _read_until(child.stderr, "SIGINT")
        child.send_signal(signal.SIGTERM)
        assert ended(child, within_s=10).code == 143
    server.follow(answer)
    assert run(shell, server).json["requests"] == 17
    require_whole(shell, 20)


def test_p2_signals_end_a_run_that_is_stopping_by_itself(shell: Shell, server: Served) -> None:
    server.follow(lambda call: error(403) if call.number == 3 else Silence())
    with shell.started(*arguments(server, "-c", "4", "--drain-timeout", "1000")) as child:
        server.arrived(4)
        child.terminate()
        _read_until(child.stderr, "SIGTERM")
        child.terminate()
        assert ended(child, within_s=10).code == 143


def test_p2_calls_that_outlive_the_grace_period_are_cut_and_asked_again(shell: Shell, server: Served) -> None:
    server.follow(lambda call: Silence() if "text 3" in call.prompt else answer(call))
    with shell.started(*arguments(server, "-c", "20", "--drain-timeout", "0.2")) as child:
        server.arrived(20)
        child.terminate()
        done = ended(child)
    assert (done.code, done.json["left"]) == (143, done.json["rows"] - done.json["ok"])
    server.follow(answer)
    assert run(shell, server).json["requests"] == done.json["left"] >= 1
    require_whole(shell, 20)


# Another run than the one begun


@pytest.fixture
def begun(shell: Shell, server: Served) -> Shell:
    """A run of which 8 of 20 rows are answered."""
    server.follow(lambda call: answer(call) if call.number < 8 else error(403))
    assert run(shell, server, "-c", "1").json["ok"] == 8
    server.follow(answer)
    return shell


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows.replace("text 3", "TEXT 3"), "rows.jsonl"),
        (lambda rows: rows + '{"id": 20, "text": "text 20"}\n', "rows.jsonl"),
        (lambda rows: rows.rpartition("{")[0], "rows.jsonl"),
    ],
    ids=["another value", "a row more", "a row less"],
)
def test_p7_a_changed_input_is_refused_with_no_call(change: Any, said: str, begun: Shell, server: Served) -> None:
    path = begun.folder / "rows.jsonl"
    path.write_text(change(path.read_text()))
    before = len(server.calls)
    refused(run(begun, server), "out/a_job already holds a different run", said, "--fresh starts over")
    assert len(server.calls) == before


def test_p7_a_missing_or_a_new_input_file_is_refused_with_no_call(shell: Shell, server: Served) -> None:
    (shell.folder / "in").mkdir()
    shell.rows(5, "in/a.jsonl")
    shell.rows(5, "in/b.jsonl")
    assert run(shell, server, "--input", "in").json["ok"] == 10
    shell.rows(5, "in/c.jsonl")
    refused(run(shell, server, "--input", "in"), "c.jsonl is new")
    (shell.folder / "in/c.jsonl").unlink()
    (shell.folder / "in/b.jsonl").unlink()
    refused(run(shell, server, "--input", "in"), "b.jsonl is gone")
    assert len(server.calls) == 10


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("--set", "user=Sing {{ text }}"), "prompt changed: "),
        (("--set", "system=You sing."), "prompt changed"),
        (("--model", "google/other"), "model changed: 'google/gemini-test' -> 'google/other'"),
        (("--set", "temperature=1"), "parameters changed"),
        (("--set", 'keep=["id"]'), "columns changed"),
        (("--emulate",), "it was answered by a real endpoint"),
    ],
)
def test_p8_a_changed_job_is_refused_field_by_field_with_no_call(
    change: tuple[str, ...], said: str, begun: Shell, server: Served
) -> None:
    before = len(server.calls)
    done = begun.pipeline("run", "job.py", *change) if change == ("--emulate",) else run(begun, server, *change)
    refused(done, "out/a_job already holds a different run", said)
    assert len(server.calls) == before
    assert run(begun, server).json["requests"] == 12


WIDER = JOB.replace("answer: str", "answer: str\n    words: int")


def test_p8_a_changed_schema_is_refused_and_reparsing_is_offered(begun: Shell, server: Served) -> None:
    begun.write("job.py", WIDER)
    before = len(server.calls)
    refused(run(begun, server), "schema changed", "`pipeline reparse out/a_job --job job.py`", "at no cost")
    assert len(server.calls) == before


def test_fresh_starts_over(begun: Shell, server: Served) -> None:
    begun.write("job.py", WIDER)
    assert run(begun, server, "--fresh").json.items() >= {"status": "complete", "ok": 20, "requests": 20}.items()
    assert begun.output()[7]["parsed"] == {"answer": "TEXT 7", "words": 2}


@pytest.mark.parametrize("mistake", [("--set", "user={{ txet }}"), ("--set", "key=nmae"), ("--input", "job.py")])
def test_fresh_removes_nothing_when_the_new_run_cannot_begin(
    mistake: tuple[str, ...], shell: Shell, server: Served
) -> None:
    assert run(shell, server).json["ok"] == 20
    refused(run(shell, server, "--fresh", *mistake))
    without_credentials = Shell(shell.folder, {})
    refused(without_credentials.pipeline("run", "job.py", "--fresh"), "no usable Google credentials")
    require_whole(shell, 20)
    assert run(shell, server).json["requests"] == 0


def test_a_part_that_was_changed_since_is_noticed(shell: Shell, server: Served) -> None:
    assert run(shell, server).code == 0
    part = shell.folder / "out/a_job/data/part-000000.parquet"
    part.write_bytes(part.read_bytes() + b"x")
    refused(run(shell, server), "was changed since it was sealed", "pipeline reparse out/a_job --job job.py")
    part.unlink()
    refused(run(shell, server), "is missing", "pipeline reparse out/a_job --job job.py")


# The failed rows again


def test_retry_failed_asks_just_the_failed_rows(shell: Shell, server: Served) -> None:
    rows = CHUNK + 10
    shell.rows(rows, heavy=True)
    bad = {f"Say text {number}" for number in (0, 7, CHUNK - 1, CHUNK, rows - 1)}
    server.follow(lambda call: error(400) if call.prompt in bad else answer(call))
    assert run(shell, server).json["failed"] == 5
    server.follow(answer)
    before = len(server.calls)
    done = run(shell, server, "--retry-failed")
    assert done.json.items() >= {"status": "complete", "ok": rows, "failed": 0, "requests": 5}.items()
    assert {call.prompt for call in server.calls[before:]} == bad
    require_whole(shell, rows)
    assert run(shell, server, "--retry-failed").json["requests"] == 0


def test_retry_failed_goes_for_rows_of_a_run_that_was_not_finished_too(shell: Shell, server: Served) -> None:
    def says(call: Call) -> Says:
        if call.number >= 10:
            return error(403)
        return error(400) if call.number == 4 else answer(call)

    server.follow(says)
    assert run(shell, server, "-c", "1").json.items() >= {"ok": 9, "failed": 1, "left": 10}.items()
    server.follow(answer)
    assert run(shell, server, "--retry-failed").json.items() >= {"ok": 20, "requests": 11}.items()
    require_whole(shell, 20)


def test_retry_failed_that_is_stopped_at_once_has_lost_nothing(shell: Shell, server: Served) -> None:
    server.follow(lambda call: error(400) if "text 3" in call.prompt else answer(call))
    assert run(shell, server).json["failed"] == 1
    server.follow(lambda _: error(401))
    assert run(shell, server, "--retry-failed").json.items() >= {"ok": 19, "failed": 0, "left": 1}.items()
    server.follow(answer)
    assert run(shell, server).json.items() >= {"status": "complete", "ok": 20, "requests": 1}.items()
    require_whole(shell, 20)


def test_the_success_marker_is_away_while_a_finished_run_is_worked_on_again(shell: Shell, server: Served) -> None:
    marker = shell.folder / "out/a_job/_SUCCESS"
    server.follow(lambda call: error(400) if "text 3" in call.prompt else answer(call))
    assert run(shell, server, "--set", "max_failed=1").code == 0
    assert marker.exists()
    server.follow(lambda call: Held(answer(call)))
    with shell.started(*arguments(server, "--retry-failed")) as child:
        server.arrived(21)
        assert not marker.exists()
        server.release()
        assert ended(child).code == 0
    assert marker.exists()


def test_retry_failed_without_kept_replies_is_refused(shell: Shell, server: Served) -> None:
    server.follow(lambda call: error(400) if "text 3" in call.prompt else answer(call))
    assert run(shell, server, "--no-keep-replies").json["failed"] == 1
    refused(run(shell, server, "--retry-failed"), "did not keep its replies", "--fresh")


# Another schema


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A finished run over several chunks, to be copied."""
    shell = Shell(tmp_path_factory.mktemp("base"), {"OPENAI_API_KEY": "k"})
    shell.write("job.py", JOB)
    shell.write("wider.py", WIDER)
    shell.rows(ROWS, heavy=True)
    with served(answer) as server:
        assert run(shell, server).code == 0
    return shell


@pytest.fixture
def copy(base: Shell, tmp_path: Path) -> str:
    """A copy of the finished run's output: its folder."""
    shutil.copytree(base.folder / "out/a_job", tmp_path / "copy")
    return str(tmp_path / "copy")


def require_wider(base: Shell, copy: str) -> None:
    """Every row has what the wider schema asks for."""
    rows = base.output(copy)
    assert [row["parsed"] for row in rows] == [{"answer": f"TEXT {n}", "words": 2} for n in range(ROWS)]
    assert [row["id"] for row in rows] == list(range(ROWS))
    assert (Path(copy) / "_SUCCESS").exists()


def test_reparse_reads_the_kept_replies_under_another_schema_with_no_call(
    base: Shell, copy: str, server: Served
) -> None:
    done = base.pipeline("reparse", copy, "--job", "wider.py", "--json")
    assert done.json.items() >= {"status": "complete", "exit_code": 0, "ok": ROWS, "requests": 0}.items()
    require_wider(base, copy)
    again = base.pipeline(*arguments(server), "--output", copy)
    refused(again, "schema changed")
    resumed = base.pipeline("run", "wider.py", "--base-url", server.base_url, "--json", "--output", copy)
    assert resumed.json.items() >= {"status": "complete", "requests": 0}.items()
    assert server.calls == []


def test_reparse_back_gives_the_same_bytes(base: Shell, copy: str) -> None:
    before = [part["sha256"] for part in base.manifest(copy)["parts"]]
    assert base.pipeline("reparse", copy, "--job", "wider.py", "--json").code == 0
    assert [part["sha256"] for part in base.manifest(copy)["parts"]] != before
    assert base.pipeline("reparse", copy, "--job", "job.py", "--json").code == 0
    assert [part["sha256"] for part in base.manifest(copy)["parts"]] == before


def test_rows_that_do_not_fit_the_other_schema_fail_and_come_back(base: Shell, copy: str) -> None:
    base.write("strict.py", JOB.replace("answer: str", "answer: str\n    unheard_of: int"))
    done = base.pipeline("reparse", copy, "--job", "strict.py", "--json")
    assert (done.code, done.json["failed"]) == (3, ROWS)
    assert not (Path(copy) / "_SUCCESS").exists()
    assert base.pipeline("reparse", copy, "--job", "wider.py", "--json").code == 0
    require_wider(base, copy)


def test_reparse_of_an_unfinished_run_leaves_the_rest_to_be_asked(begun: Shell, server: Served) -> None:
    begun.write("job.py", WIDER)
    before = len(server.calls)
    assert begun.pipeline("reparse", "out/a_job", "--job", "job.py", "--json").json["ok"] == 8
    assert len(server.calls) == before
    assert run(begun, server).json.items() >= {"status": "complete", "ok": 20, "requests": 12}.items()
    assert {row["parsed"]["words"] for row in begun.output()} == {2}


@pytest.mark.parametrize(
    ("change", "said"), [("user=Sing {{ text }}", "prompt changed"), ("model=google/other", "model changed")]
)
def test_reparse_is_refused_when_more_than_the_schema_changed(change: str, said: str, base: Shell, copy: str) -> None:
    refused(base.pipeline("reparse", copy, "--job", "wider.py", "--set", change), said, "--fresh")
    assert len(base.output(copy)) == ROWS


def test_reparse_without_kept_replies_or_without_a_run_is_refused(shell: Shell, server: Served) -> None:
    refused(shell.pipeline("reparse", "out/a_job", "--job", "job.py"), "there is no run in out/a_job")
    assert run(shell, server, "--no-keep-replies").code == 0
    refused(shell.pipeline("reparse", "out/a_job", "--job", "job.py"), "did not keep its replies")


def test_p1_a_reparse_that_was_cut_short_is_finished_by_a_second_one(base: Shell, copy: str, server: Served) -> None:
    marker = Path(copy) / "_SUCCESS"
    with base.started("reparse", copy, "--job", "wider.py", "--json") as child:
        while marker.exists():
            assert child.poll() is None
        child.kill()
        child.wait(60)
    assert not marker.exists()
    refused(base.pipeline(*arguments(server), "--output", copy), "a re-parse", "was cut short", "pipeline reparse")
    assert base.pipeline("reparse", copy, "--job", "wider.py", "--json").code == 0
    require_wider(base, copy)


def test_p1_a_reparse_killed_between_the_rename_of_a_part_and_its_record_can_be_finished(
    base: Shell, copy: str, tmp_path: Path
) -> None:
    further = str(tmp_path / "further")
    shutil.copytree(copy, further)
    assert base.pipeline("reparse", further, "--job", "wider.py", "--json").code == 0
    # As the kill leaves it: the run is marked, the part is the new one, and the journal tells of the old one.
    folder, done = RunFolder(Path(copy)), RunFolder(Path(further)).load()
    assert done is not None
    folder.save(replace(done, reparsing=True))
    shutil.copy(Path(further) / "data/part-000001.parquet", Path(copy) / "data")
    assert base.pipeline("reparse", copy, "--job", "wider.py", "--json").code == 0
    require_wider(base, copy)
