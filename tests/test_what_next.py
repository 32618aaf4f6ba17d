"""What a run that stopped, or cannot start, says to do next is what helps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import Job
from pipeline.faults import UsageError
from tests.commands import JOB, Shell
from tests.servers import Answer, Call, chat, served


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shell = Shell(tmp_path, {"OPENAI_API_KEY": "k"})
    shell.write("job.py", JOB)
    shell.rows(30)
    return shell


def test_after_the_budget_a_larger_one_is_named_and_with_it_the_run_goes_on(shell: Shell) -> None:
    """The same command would stop again, so nothing may say that it resumes."""
    with served(lambda call: chat(json.dumps({"answer": call.prompt}))) as server:
        command = ("run", "job.py", "--base-url", server.base_url, "-c", "1", "--budget-tokens")
        stopped = shell.pipeline(*command, "200")
        status = shell.pipeline("status", "out/a_job")
        resumed = shell.pipeline(*command, "1000000", "--json")
    assert stopped.code == 6
    assert "run the same command again with a larger budget to resume" in stopped.err
    assert "next      run the same command again with a larger budget to resume" in status.out
    assert (resumed.code, resumed.json["ok"]) == (0, 30)


def test_p7_after_an_input_that_changed_during_the_run_it_is_put_right_first(shell: Shell) -> None:
    """The same command would be refused, so nothing may say that it resumes as it is."""
    shell.rows(5000)
    before = (shell.folder / "rows.jsonl").read_bytes()
    changed = before + before.splitlines(keepends=True)[0]

    def changing(call: Call) -> Answer:
        if call.number == 100:
            (shell.folder / "rows.jsonl").write_bytes(changed)
        return chat(json.dumps({"answer": call.prompt}))

    with served(changing) as server:
        command = ("run", "job.py", "--base-url", server.base_url, "-c", "8")
        stopped = shell.pipeline(*command)
        status = shell.pipeline("status", "out/a_job")
        refused = shell.pipeline(*command)
        (shell.folder / "rows.jsonl").write_bytes(before)
        resumed = shell.pipeline(*command, "--json")
    assert (stopped.code, refused.code) == (1, 2)
    assert "the input changed during the run" in stopped.err
    assert "put that right, then run the same command again to resume" in stopped.err
    assert "next      put that right, then run the same command again to resume" in status.out
    assert (resumed.code, resumed.json["ok"]) == (0, 5000)


@pytest.mark.parametrize(
    ("name", "content"), [("empty.jsonl", ""), ("empty.jsonl", "\n \n"), ("empty.csv", "id,text\n")]
)
def test_plan_and_run_say_of_an_empty_input_that_it_holds_no_row(shell: Shell, name: str, content: str) -> None:
    """With the same exit code, although the prompt names a column: an empty input may have none."""
    shell.write(name, content)
    for command in ("plan", "run"):
        done = shell.pipeline(command, "job.py", "--input", name, *(["--emulate"] if command == "run" else []))
        assert (done.code, done.err) == (5, "error: the input holds no row\n")


def test_only_the_columns_whose_names_clash_are_named() -> None:
    """And how to tell them apart."""
    job = Job(name="a", user="x")
    with pytest.raises(UsageError) as refused:
        job.columns_kept({"text": "string", "c": "int64", "Text": "string"})
    assert "'text', 'Text'; leave some of them out with `keep`" in str(refused.value)
