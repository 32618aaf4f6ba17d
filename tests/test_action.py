"""The action for GitHub: its scripts run here, with a `gh` that keeps comments in a folder instead of on GitHub."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))
STEPS = {step["name"]: step for step in ACTION["runs"]["steps"]}
PATIENCE_S = 60

GH = """#!{python}
import json, os, sys
from pathlib import Path

asked = sys.argv[1:]
with open("asked.jsonl", "a") as log:
    log.write(json.dumps(asked) + "\\n")
if os.environ.get("DENIED"):
    sys.exit("HTTP 403: Resource not accessible by integration")
comments = Path("comments")
comments.mkdir(exist_ok=True)
path = next(word for word in asked[1:] if word.startswith("repos/"))
if "--method" not in asked:
    assert asked[asked.index("--jq") + 1] == ".[] | select(.body | startswith(env.MARKER)) | .id"
    for each in sorted(comments.iterdir()):
        if each.read_text().startswith(os.environ["MARKER"]):
            print(each.name)
    sys.exit()
body = next(word for word in asked if word.startswith("body=@")).removeprefix("body=@")
new = path.endswith("/comments")
number = str(len(list(comments.iterdir())) + 1) if new else path.rpartition("/")[2]
(comments / number).write_text(Path(body).read_text())
print("https://github.example/comment/" + number)
"""

PIPELINE = """#!{python}
import json, os, sys
json.dump(sys.argv[1:], open("arguments.json", "w"))
sys.stdout.write(os.environ["PRINTED"])
sys.exit(int(os.environ["CODE"]))
"""

RESULT = {
    "exit_code": 4,
    "gates": [],
    "passed": False,
    "measures": {"row_correct": 0.843},
    "cost_usd": 0.0274,
    "output": "out/eval_events",
}


@dataclass(frozen=True, slots=True)
class Runner:
    """A step's surroundings: the workspace is also where the stand-ins keep what they were told."""

    folder: Path

    def run(self, step: str, **given: str) -> subprocess.CompletedProcess[str]:
        """Runs the shell line of a step, with its variables as `given`."""
        assert set(STEPS[step]["env"]) <= {*given, "GH_TOKEN"}, step
        files = {"GITHUB_OUTPUT": "outputs", "GITHUB_EVENT_PATH": "event.json", "RUNNER_TEMP": "."}
        environment = {
            **os.environ,
            "PATH": f"{self.folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "GITHUB_ACTION_PATH": str(ROOT),
            "GITHUB_REPOSITORY": "owner/repository",
            "GITHUB_SERVER_URL": "https://github.example",
            "GITHUB_RUN_ID": "77",
            **{name: str(self.folder / path) for name, path in files.items()},
            **given,
        }
        line = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", STEPS[step]["run"]]
        return subprocess.run(
            line, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )

    def evaluate(self, code: int, printed: str, arguments: str = "") -> dict[str, str]:
        """The outputs of the step, where the command ends with a code and has printed a text."""
        done = self.run("Evaluate", EVALUATION="jobs/e.py", ARGUMENTS=arguments, CODE=str(code), PRINTED=printed)
        assert done.returncode == 0, done.stderr
        return dict(line.split("=", 1) for line in (self.folder / "outputs").read_text().splitlines())

    def comment(self, output: str = "out", **given: str) -> str:
        done = self.run("Comment", EVALUATION="jobs/e.py", EXIT_CODE="4", OUTPUT=output, **given)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def comments(self) -> list[str]:
        return [path.read_text() for path in sorted((self.folder / "comments").glob("*"))]


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    for name, text in (("gh", GH), ("pipeline", PIPELINE)):
        (tmp_path / name).write_text(text.replace("{python}", sys.executable), "utf-8")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "event.json").write_text(json.dumps({"pull_request": {"number": 12}}))
    (tmp_path / "out" / "_eval").mkdir(parents=True)
    (tmp_path / "out" / "_eval" / "summary.md").write_text("## 84.3 % of the rows\n")
    return Runner(tmp_path)


def test_a_finished_evaluation_gives_every_output(runner: Runner) -> None:
    outputs = runner.evaluate(4, json.dumps(RESULT) + "\n")
    assert outputs == {
        "exit-code": "4",
        "passed": "false",
        "row-correct": "0.843",
        "cost-usd": "0.0274",
        "output": "out/eval_events",
    }
    assert {f"${{{{ steps.evaluate.outputs.{name} }}}}" for name in outputs} == {
        output["value"] for output in ACTION["outputs"].values()
    }


@pytest.mark.parametrize("printed", ["", '{"status": "stopped", "passed": null}\n'])
def test_an_evaluation_that_did_not_finish_gives_its_exit_code_alone(runner: Runner, printed: str) -> None:
    outputs = runner.evaluate(7, printed)
    assert {name for name, value in outputs.items() if value} == {"exit-code"}
    assert outputs["exit-code"] == "7"


def test_arguments_are_lines_that_no_shell_reads(runner: Runner) -> None:
    runner.evaluate(0, json.dumps(RESULT), "--budget-usd=2\n\n--set=system=a $(touch broken) 'b'\r\n")
    arguments = json.loads((runner.folder / "arguments.json").read_text())
    assert arguments == [
        "eval",
        "jobs/e.py",
        "--quiet",
        "--json",
        "--budget-usd=2",
        "--set=system=a $(touch broken) 'b'",
    ]
    assert not (runner.folder / "broken").exists()


def test_a_value_with_a_line_end_adds_no_output(runner: Runner) -> None:
    outputs = runner.evaluate(0, json.dumps({**RESULT, "output": "out\npassed=true"}))
    assert outputs["output"] == "out passed=true"
    assert outputs["passed"] == "false"


def test_the_second_run_replaces_the_text_of_the_first_ones_comment(runner: Runner) -> None:
    (runner.folder / "comments").mkdir()
    (runner.folder / "comments" / "1").write_text("a comment of somebody")
    assert "https://github.example/comment/2" in runner.comment()
    (runner.folder / "out" / "_eval" / "summary.md").write_text("## 98.1 % of the rows\n")
    assert "https://github.example/comment/2" in runner.comment()
    first, ours = runner.comments()
    assert first == "a comment of somebody"
    assert "98.1 %" in ours
    assert "84.3 %" not in ours
    assert "https://github.example/owner/repository/actions/runs/77" in ours


def test_two_evaluations_have_a_comment_each(runner: Runner) -> None:
    runner.comment()
    runner.run("Comment", EVALUATION="jobs/other.py", EXIT_CODE="0", OUTPUT="out")
    assert len(runner.comments()) == 2


def test_a_long_summary_is_cut_between_characters(runner: Runner) -> None:
    (runner.folder / "out" / "_eval" / "summary.md").write_text("é€" * 60_000, "utf-8")
    runner.comment()
    assert 60_000 < len(runner.comments()[0]) < 65_536


def test_an_evaluation_that_did_not_finish_says_so_in_the_comment(runner: Runner) -> None:
    runner.comment(output="")
    assert "did not finish: exit code 4" in runner.comments()[0]


def test_a_token_that_may_not_write_is_a_warning(runner: Runner) -> None:
    assert runner.comment(DENIED="1").startswith("::warning::")


def test_a_run_of_no_pull_request_makes_no_comment(runner: Runner) -> None:
    (runner.folder / "event.json").write_text("{}")
    runner.comment()
    assert not (runner.folder / "asked.jsonl").exists()


@pytest.mark.parametrize("code", [0, 4])
def test_the_last_step_ends_with_the_code_of_the_evaluation(runner: Runner, code: int) -> None:
    assert list(STEPS)[-1] == "Result"
    assert runner.run("Result", EXIT_CODE=str(code)).returncode == code


def test_answers_are_kept_where_they_were_restored_and_also_after_a_failed_gate() -> None:
    restored, kept = STEPS["Restore the answers"], STEPS["Keep the answers"]
    assert kept["with"] == {name: restored["with"][name] for name in ("path", "key")}
    assert restored["with"]["key"].startswith(restored["with"]["restore-keys"])
    assert kept["if"].startswith("always()")


def test_nothing_that_a_pull_request_names_is_pasted_into_a_shell_line() -> None:
    """GitHub puts `${{ }}` into the text of a script before the shell reads it: values come as variables only."""
    assert [name for name, step in STEPS.items() if "${{" in step.get("run", "")] == []


def test_the_page_of_the_action_lists_its_inputs_and_outputs() -> None:
    page = (ROOT / "docs" / "howto" / "github-actions.md").read_text("utf-8")
    tables = [re.findall(r"^\| `([\w-]+)` \|", part, re.MULTILINE) for part in page.split("| output | meaning |")]
    assert tables == [list(ACTION["inputs"]), list(ACTION["outputs"])]


def test_the_workflow_of_the_page_gives_inputs_that_exist() -> None:
    page = (ROOT / "docs" / "howto" / "github-actions.md").read_text("utf-8")
    workflow: Any = yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0])
    (ours,) = [step for step in workflow["jobs"]["events"]["steps"] if step.get("uses") == "./"]
    assert set(ours["with"]) <= set(ACTION["inputs"])
    assert {name for name, each in ACTION["inputs"].items() if each.get("required")} <= set(ours["with"])
