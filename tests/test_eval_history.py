"""Every evaluation of a folder leaves a line in its history, also when it starts over."""

from __future__ import annotations

import json
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.evaluation.at_commit import present_commit
from tests.commands import Shell
from tests.evaluations import answering, evaluated, summary_in, write_evaluation, write_gold
from tests.servers import served


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shell = Shell(tmp_path, {"OPENAI_API_KEY": "k"})
    write_evaluation(shell)
    write_gold(shell, 20)
    return shell


def lines_in(shell: Shell) -> list[dict[str, Any]]:
    text = (shell.folder / "out" / "eval" / "_eval" / "history.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def commit(folder: Path) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for arguments in (["init", "--quiet"], ["add", "eval.py"], ["commit", "--quiet", "--message", "a"]):
        subprocess.run(["git", *who, *arguments], cwd=folder, check=True)
    return subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_a_second_evaluation_with_another_prompt_adds_a_line_with_its_figures_and_gates(shell: Shell) -> None:
    with served(answering(wrong={1})) as server:
        assert evaluated(shell, server).code == 0
    write_evaluation(shell, SYSTEM="ANOTHER")
    with served(answering(wrong=range(15))) as server:
        assert evaluated(shell, server).code == 4
    first, second = lines_in(shell)
    assert (first["passed"], second["passed"], second["exit_code"]) == (True, False, 4)
    assert first["measures"]["row_correct"] == first["right"]["answer"] == 0.95
    assert second["measures"]["row_correct"] == summary_in(shell)["measures"]["row_correct"] == 0.25
    assert second["gates"]["row_correct at least 0.5"] == "fail"
    assert datetime.fromisoformat(first["at"]) <= datetime.fromisoformat(second["at"])
    assert (first["rows"], first["commit"]) == (20, None)


def test_grading_and_deciding_again_is_no_further_evaluation(shell: Shell) -> None:
    with served(answering()) as server:
        evaluated(shell, server)
    for command in ("grade", "gate"):
        assert shell.pipeline(command, "out/eval", "--job", "eval.py").code == 0
    assert len(lines_in(shell)) == 1


def test_the_commit_is_told_and_whether_files_differ_from_it(shell: Shell) -> None:
    known = commit(shell.folder)
    with served(answering()) as server:
        evaluated(shell, server)
        shell.write("eval.py", (shell.folder / "eval.py").read_text() + "\n# changed\n")
        evaluated(shell, server)
    assert [line["commit"] for line in lines_in(shell)] == [known, f"{known}+"]


def test_a_repository_without_a_commit_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    assert present_commit() is None
