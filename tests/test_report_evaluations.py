"""Reports of an evaluation that was really run: the page, the summary, GitHub's files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands import JOB, Done, Shell
from tests.test_report_page import Reader

EVALUATION = """
from pipeline import AtLeast, Eval

evaluation = Eval(job=job, expected="expected", slices=["language"], gates=[AtLeast("row_correct", 0.95)])
"""


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A folder with gold data of 30 rows and an evaluation of them."""
    folder = tmp_path_factory.mktemp("evaluated")
    shell = Shell(folder, {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(folder / "step.md")})
    job = JOB.replace('keep=["id", "text"]', 'key="id"').replace("rows.jsonl", "gold.jsonl")
    shell.write("eval_it.py", job + EVALUATION)
    gold = [
        {"id": f"g{n}", "text": f"text {n}", "language": "en", "expected": {"answer": f"the answer {n}"}}
        for n in range(30)
    ]
    shell.write("gold.jsonl", "".join(json.dumps(row) + "\n" for row in gold))
    return shell


@pytest.fixture(scope="module")
def evaluated(shell: Shell) -> Done:
    return shell.pipeline("eval", "eval_it.py", "--emulate", "--field-error", "answer=0.3", "--report", "--quiet")


@pytest.fixture(scope="module")
def output(shell: Shell, evaluated: Done) -> Path:
    assert evaluated.code == 4, evaluated.err
    return shell.folder / "out" / "eval_it"


def test_eval_writes_the_page_also_when_a_gate_fails(evaluated: Done, output: Path) -> None:
    assert evaluated.err.splitlines()[-1] == "report      out/eval_it/_report.html"
    read = Reader((output / "_report.html").read_text("utf-8"))
    assert "Failed 1 of 1 gate" in read.text
    wrong = [one for one in read.all("tbody") if "data-status" in one]
    right = json.loads((output / "_eval" / "summary.json").read_bytes())["tables"]["whole"]["measures"]["row_correct"]
    assert len(wrong) == round(30 * (1 - right["value"])) > 0
    assert read.text.count("[user] Say text") == len(wrong)


def test_the_summary_is_a_file_and_goes_to_the_step_that_runs_it(shell: Shell, evaluated: Done, output: Path) -> None:
    text = (output / "_eval" / "summary.md").read_text("utf-8")
    assert text.startswith("## \N{CROSS MARK} eval_it")
    assert (shell.folder / "step.md").read_text("utf-8") == text + "\n"
    assert "::error title=eval_it%3A row_correct at least 0.95::" in evaluated.err


def test_report_decides_again_and_shows_the_same(shell: Shell, output: Path) -> None:
    before = Reader((output / "_report.html").read_text("utf-8"))
    assert shell.pipeline("report", "out/eval_it", "--to", "again.html").code == 0
    again = Reader((shell.folder / "again.html").read_text("utf-8"))
    sections = [one["id"] for one in before.all("section")]
    assert sections == [one["id"] for one in again.all("section")]
    assert {"gates", "fields", "slices", "rows", "run"} <= set(sections)
    assert before.text.partition("As of")[0] == again.text.partition("As of")[0]


def test_without_its_job_file_the_run_is_shown_alone_and_the_reason_told(shell: Shell, output: Path) -> None:
    file = shell.folder / "eval_it.py"
    content = file.read_text("utf-8")
    file.unlink()
    try:
        done = shell.pipeline("report", str(output), "--to", "alone.html")
    finally:
        file.write_text(content, "utf-8")
    assert done.code == 0
    assert done.err.startswith("the evaluation is not shown: ")
    sections = Reader((shell.folder / "alone.html").read_text("utf-8")).all("section")
    assert sections[0]["id"] == "run"
