"""What `pipeline plan` expects a run to take: of what is left, within a range, learned from what was asked."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from tests.commands import JOB, Shell
from tests.servers import Answer, Call, chat, error, served
from tests.test_cli import error_of, script

PRICED = JOB.replace('name="a_job",', 'name="a_job", prices={"google/gemini-test": {"input": 1.0, "output": 2.0}},')


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shell = Shell(tmp_path, {"OPENAI_API_KEY": "sk-canary-secret"})
    shell.write("job.py", PRICED)
    shell.rows(100)
    return shell


def half(call: Call) -> Answer:
    """Every second row fails, after an answer that was paid."""
    return chat("[]") if int(call.prompt.split()[-1]) % 2 else script(call)


def run(shell: Shell, answers: Any = script, *options: str) -> dict[str, Any]:
    settings = ("--set", "max_failed=100", "--set", "repairs=0", "--no-fail-fast", "--quiet")
    with served(answers) as server:
        return shell.pipeline("run", "job.py", "--base-url", server.base_url, "--json", *settings, *options).json


def plan(shell: Shell, *options: str) -> dict[str, Any]:
    return shell.pipeline("plan", "job.py", "--json", *options).json


def test_without_a_run_the_estimate_is_a_wide_range_around_a_guess(shell: Shell) -> None:
    facts = plan(shell)
    assert (facts["requests"], facts["rows_done"], facts["estimated_from"]) == (100, 0, "the first rows")
    assert facts["output_tokens_low"] == 50 * 100 < facts["output_tokens"] == 200 * 100 < facts["output_tokens_high"]
    assert facts["cost_usd_low"] < facts["cost_usd"] < facts["cost_usd_high"]
    assert run(shell)["run_output_tokens"] < facts["output_tokens_low"]  # which is why the next one is measured


@pytest.mark.parametrize("most", [1, 40, 100, 1000])
def test_no_answer_is_expected_to_be_longer_than_its_job_allows(most: int, shell: Shell) -> None:
    facts = plan(shell, "--set", f"max_tokens={most}")
    assert facts["output_tokens_high"] == min(most, 600) * 100
    assert facts["output_tokens_low"] <= facts["output_tokens"] <= facts["output_tokens_high"]


def test_only_what_is_left_is_counted_and_by_what_was_measured(shell: Shell) -> None:
    done = run(shell, script, "--limit", "40")
    facts = plan(shell)
    assert (facts["rows"], facts["rows_done"], facts["requests"]) == (100, 40, 60)
    assert (facts["input_tokens"], facts["output_tokens"]) == (600, 300)
    assert facts["estimated_from"].startswith("the run in ")
    assert facts["cost_usd"] == pytest.approx(done["cost_usd"] * 60 / 40)
    assert run(shell)["input_tokens"] == facts["input_tokens"]


def test_failed_rows_that_were_paid_count_like_the_others(shell: Shell) -> None:
    """Not twice over: the tokens of all rows were once divided by the rows that were ok."""
    run(shell, half, "--limit", "40")
    facts = plan(shell)
    assert (facts["input_tokens"], facts["output_tokens"]) == (600, 300)


def test_rows_that_cost_nothing_lower_what_is_expected(shell: Shell) -> None:
    run(shell, lambda call: error(400) if call.prompt.endswith("1") else script(call), "--limit", "40")
    facts = plan(shell)
    assert facts["input_tokens"] == 60 * 10 * 36 // 40
    assert facts["input_tokens_low"] < facts["input_tokens"] < facts["input_tokens_high"]


def test_failed_rows_are_counted_where_they_would_be_asked_again(shell: Shell) -> None:
    run(shell, half)
    assert (plan(shell)["requests"], plan(shell)["cost_usd"]) == (0, 0)
    facts = plan(shell, "--retry-failed")
    assert (facts["requests"], facts["rows_retried"], facts["rows_done"]) == (50, 50, 50)
    assert run(shell, script, "--retry-failed")["input_tokens"] == facts["input_tokens"] == 500


def test_a_run_of_which_nothing_is_sealed_teaches_by_its_journal(shell: Shell) -> None:
    """One that was stopped in its first chunk."""
    with served(lambda call: error(403, "PERMISSION_DENIED") if call.number >= 30 else script(call)) as server:
        options = ("--base-url", server.base_url, "--json", "--quiet", "-c", "1")
        stopped = shell.pipeline("run", "job.py", *options).json
    assert stopped["status"] == "stopped"
    facts = plan(shell)
    assert facts["requests"] == stopped["left"]
    assert facts["output_tokens"] == pytest.approx(5 * facts["requests"])
    assert facts["output_tokens_low"] < facts["output_tokens"] < facts["output_tokens_high"]


def test_the_range_holds_what_a_run_of_uneven_rows_takes(shell: Shell) -> None:
    lengths = [3, 400, 10, 90, 55, 230, 7, 31, 160, 12]

    def uneven(call: Call) -> Answer:
        answer = json.loads(script(call).body)
        answer["usage"]["completion_tokens"] = lengths[zlib.crc32(call.prompt.encode()) % 10]
        return Answer(json.dumps(answer).encode())

    shell.rows(600)
    run(shell, uneven, "--limit", "100")
    facts = plan(shell)
    used = run(shell, uneven)["output_tokens"]
    spread = facts["output_tokens_high"] - facts["output_tokens"]
    assert facts["output_tokens_low"] - spread < used < facts["output_tokens_high"] + spread  # within 4 standard errors
    assert facts["output_tokens"] / 3 < facts["output_tokens_low"]


def test_rows_that_cannot_be_read_are_no_requests(shell: Shell) -> None:
    shell.write("rows.jsonl", '{"id": 1, "text": "a"}\n{\n{"id": 2, "text": "b"}\n')
    facts = plan(shell, "--set", "max_failed=2")
    assert (facts["rows"], facts["bad_rows"], facts["requests"]) == (3, 1, 2)


def test_a_run_that_this_plan_would_not_resume_is_said_so(shell: Shell) -> None:
    run(shell)
    done = shell.pipeline("plan", "job.py", "--json", "--set", "user=Tell {{ text }}")
    assert done.json["requests"] == 100
    assert "holds a different run (prompt changed" in done.err
    shell.rows(99)
    done = shell.pipeline("plan", "job.py", "--json")
    assert (done.json["requests"], "rows.jsonl had" in done.err) == (99, True)


def test_the_requests_that_plan_shows_are_in_its_json_too(shell: Shell) -> None:
    facts = plan(shell, "--rows", "3")
    assert [one["row"] for one in facts["first_requests"]] == [0, 1, 2]
    assert facts["first_requests"][1]["payload"]["messages"] == [{"role": "user", "content": "Say text 1"}]
    assert facts["first_requests"][1]["payload"]["model"] == "google/gemini-test"
    assert plan(shell, "--rows", "0")["first_requests"] == []


def test_media_of_a_request_are_named_in_json(shell: Shell) -> None:
    shell.write("rows.jsonl", '{"id": 1, "text": "gs://bucket/a.png"}\n')
    shell.write(
        "job.py", PRICED.replace('"Say {{ text }}"', '["Look", image("text")]').replace("Job\n", "Job, image\n")
    )
    done = shell.pipeline("plan", "job.py", "--json")
    assert "<image: gs://bucket/a.png>" in json.dumps(done.json["first_requests"])


def test_people_see_the_range_beside_the_figure(shell: Shell) -> None:
    shown = shell.pipeline("plan", "job.py").out
    assert "output tokens            20,000 (5,000 to 60,000)" in shown
    assert "cost usd                 $0.0" in shown
    assert "_low" not in shown


def test_fresh_and_retry_failed_exclude_each_other(shell: Shell) -> None:
    run(shell, half)
    told = error_of(shell.pipeline("run", "job.py", "--fresh", "--retry-failed", "--base-url", "http://127.0.0.1:9/v1"))
    assert told.startswith("--fresh asks every row again, so there is nothing for --retry-failed")
    assert plan(shell, "--retry-failed")["requests"] == 50
