"""The verbs of an evaluation as CI calls them: exit codes, files, and what is paid for."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from tests.commands import Done, Shell, ended
from tests.evaluations import (
    COST,
    answering,
    denied,
    evaluated,
    gold_row,
    number_of,
    said,
    summary_in,
    write_evaluation,
    write_gold,
)
from tests.servers import Answer, Call, Held, Served, served

ROWS = 40
FILES = {"scores.json", "summary.json", "summary.md", "junit.xml", "leaves.parquet", "rows.parquet"}


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shell = Shell(tmp_path, {"OPENAI_API_KEY": "k"})
    write_evaluation(shell)
    write_gold(shell, ROWS)
    return shell


@pytest.fixture
def server() -> Iterator[Served]:
    with served(answering()) as server:
        yield server


def refused(done: Done, words: str, code: int = 2) -> None:
    """It ended with one sentence on stderr, which has these words."""
    assert done.code == code, done
    assert words in done.err, done.err
    assert "Traceback" not in done.err
    assert done.err.splitlines()[-1].startswith("error: ")


def files_in(shell: Shell, output: str = "out/eval") -> set[str]:
    return {path.name for path in (shell.folder / output / "_eval").glob("*")}


def blessed(shell: Shell, server: Served, *more: str) -> None:
    """A baseline of what the server answers now."""
    assert evaluated(shell, server, *more).code in (0, 4)
    done = shell.pipeline("bless", "out/eval")
    assert (done.code, done.out) == (0, "baseline.json\n"), done


# Exit codes


def test_all_gates_passed_is_0(shell: Shell, server: Served) -> None:
    done = evaluated(shell, server)
    assert done.code == 0, done
    assert "row_correct 100.0 %" in done.out
    assert "there is no baseline.json to compare with" in done.out


def test_a_gate_failed_is_4_and_every_file_is_there_all_the_same(shell: Shell, server: Served) -> None:
    server.follow(answering(wrong=range(30)))
    done = evaluated(shell, server, "--json")
    assert done.code == 4
    assert files_in(shell) >= FILES
    facts = done.json
    assert (facts["exit_code"], facts["passed"], facts["requests"]) == (4, False, ROWS)
    gate = facts["gates"][0]
    assert (gate["answer"], gate["outcome"], gate["value"]) == ("failed", "fail", 0.25)
    document = (shell.folder / "out/eval/_eval/junit.xml").read_bytes()
    cases = ET.fromstring(document).findall("testsuite/testcase")  # noqa: S314 - our own
    assert sum(case.get("classname") == "rows" and case.find("failure") is not None for case in cases) == 30


def test_fresh_removes_no_answer_when_the_way_to_new_ones_is_missing(shell: Shell, server: Served) -> None:
    assert evaluated(shell, server).code == 0
    before = files_in(shell)
    nobody = Shell(shell.folder, {})
    refused(nobody.pipeline("eval", "eval.py", "--fresh", "--no-cache"), "no usable Google credentials")
    assert files_in(shell) == before
    assert evaluated(shell, server, "--no-cache").code == 0
    assert len(server.calls) == ROWS


@pytest.mark.parametrize(
    ("evaluation", "words"),
    [
        ({"fields": 'fields={"anwser": Text()},'}, "did you mean 'answer'"),
        ({"fields": 'fields={"answer": "Text"},'}, "is not a grader"),
        ({"gates": 'AtLeast("right.anwser", 0.5)'}, "there is no field 'anwser'"),
        ({"gates": 'AtLeast("row_corect", 0.5)'}, "there is no metric 'row_corect'"),
        ({"gates": 'NeverBreak(where={"tier": "gold"})'}, "no row meets it"),
        ({"gates": 'AtLeast("pass_at_3", 0.5)'}, "needs 3 repeats"),
        ({"slices=": "slicess="}, "an evaluation has no field 'slicess'"),
        ({'"tier"]': '"teir"]'}, "the gold data lacks"),
        ({'key="id",': ""}, "an evaluation joins runs by their rows' key"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_in_the_file_is_2_before_any_call(
    shell: Shell, server: Served, evaluation: dict[str, str], words: str
) -> None:
    write_evaluation(shell, **evaluation)
    refused(evaluated(shell, server), words)
    assert not server.calls


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({3: {"id": "r001"}}, "two rows of the gold data have the id 'r001'"),
        ({3: {"expected": None}}, "expects nothing"),
        ({3: {"expected": {"anwser": "x"}}}, "which the schema lacks"),
        ({3: {"id": None}}, "has no id"),
    ],
    ids=["duplicate", "missing", "unknown", "nameless"],
)
def test_wrong_gold_data_is_2_before_any_call(
    shell: Shell, server: Served, changed: dict[int, dict[str, Any]], words: str
) -> None:
    write_gold(shell, 8, changed)
    refused(evaluated(shell, server), words)
    assert not server.calls


def test_no_row_of_gold_data_is_5(shell: Shell, server: Served) -> None:
    shell.write("gold.jsonl", "")
    refused(evaluated(shell, server), "the gold data holds no row", 5)


def test_too_many_failed_rows_are_3_where_the_gates_are_green(shell: Shell, server: Served) -> None:
    server.follow(answering(failing=range(5)))
    done = evaluated(shell, server, "--json")
    assert done.code == 3, done
    assert done.json["passed"]
    assert done.json["measures"]["failed"] == 0.125
    assert done.json["status"] == "failed"


def test_an_endpoint_that_denies_is_7_and_leaves_no_scores(shell: Shell, server: Served) -> None:
    server.follow(denied)
    refused(evaluated(shell, server), "nothing is graded", 7)
    assert not files_in(shell) & FILES


@pytest.mark.parametrize("budget", ["--budget-usd=0.0012", "--budget-tokens=1200"])
def test_a_spent_budget_is_6_and_a_larger_one_resumes(shell: Shell, server: Served, budget: str) -> None:
    write_gold(shell, rows := 120)
    refused(stopped := evaluated(shell, server, budget), "the budget is used up", 6)
    assert stopped.err.endswith("nothing is graded; run the same command again with a larger budget to resume\n")
    assert 0 < len(server.calls) <= 80
    assert evaluated(shell, server).code == 0
    assert len(server.calls) == rows


def test_an_interrupted_evaluation_is_130_and_what_it_was_paid_is_kept(shell: Shell, server: Served) -> None:
    server.follow(lambda call: Held(answering()(call)) if number_of(call) >= 8 else answering()(call))
    command = ("eval", "eval.py", "--no-adaptive", "-c", "4", "--drain-timeout", "0.1", "--base-url", server.base_url)
    with shell.started(*command) as child:
        server.arrived(12)
        child.send_signal(signal.SIGINT)
        done = ended(child)
    assert done.code == 130, done
    assert "nothing is graded" in done.err
    server.follow(answering())
    before = len(server.calls)
    assert evaluated(shell, server).code == 0
    assert len(server.calls) - before == ROWS - 8


# What is told


def test_json_is_one_line_of_strict_json(shell: Shell, server: Served) -> None:
    write_evaluation(shell, gates='AtLeast("row_correct", 0.5), AtMost("latency_p99", 100)')
    done = evaluated(shell, server, "--json")
    (line,) = done.out.splitlines()
    facts = json.loads(line, parse_constant=pytest.fail)
    assert len(line) < 10_000
    assert facts["fields"]["answer"]["right"] == 1.0
    json.loads((shell.folder / "out/eval/_eval/summary.json").read_bytes(), parse_constant=pytest.fail)


def test_github_is_told_of_gates_that_did_not_pass_and_of_no_row(tmp_path: Path, server: Served) -> None:
    summary = tmp_path / "step.md"
    variables = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}
    shell = Shell(tmp_path, {"OPENAI_API_KEY": "k", **variables})
    write_evaluation(shell)
    write_gold(shell, ROWS)
    server.follow(answering(wrong=range(30)))
    told = [line for line in evaluated(shell, server, "--json").err.splitlines() if line.startswith("::")]
    assert [line.partition(" ")[0] for line in told] == ["::error", "::warning", "::warning"]
    assert "title=eval%3A row_correct at least 0.5::row_correct is 25.0 %25" in told[0]
    assert summary.read_text().strip() == (tmp_path / "out/eval/_eval/summary.md").read_text().strip()


# What is paid


def test_a_rerun_makes_no_call_and_finds_the_same(shell: Shell, server: Served) -> None:
    first = evaluated(shell, server, "--json").json
    again = evaluated(shell, server, "--json").json
    elsewhere = evaluated(shell, server, "--json", "-o", "out/elsewhere").json
    assert len(server.calls) == ROWS
    assert (again["requests"], elsewhere["requests"], elsewhere["cache_hits"]) == (0, 0, ROWS)
    assert first["measures"] == again["measures"] == elsewhere["measures"]


def test_a_word_of_the_prompt_that_half_of_the_rows_have_calls_that_half(shell: Shell, server: Served) -> None:
    write_evaluation(shell, **{"Say {{ text }}": "{% if tier == 'golden' %}Oh, {% endif %}say {{ text }}"})
    evaluated(shell, server)
    write_evaluation(shell, **{"Say {{ text }}": "{% if tier == 'golden' %}Ah, {% endif %}say {{ text }}"})
    done = evaluated(shell, server, "--json")
    assert (done.json["requests"], done.json["cache_hits"]) == (ROWS // 4, ROWS - ROWS // 4)
    assert len(server.calls) == ROWS + ROWS // 4
    assert "prompt changed" in done.err
    assert "starting over" in done.err


def test_grade_and_gate_make_no_call_and_heed_what_the_file_says_now(shell: Shell, server: Served) -> None:
    server.follow(lambda call: said(f"text {number_of(call)}!"))
    write_evaluation(shell, fields='fields={"answer": Exact()},', **{"Judge, Text": "Exact, Text"})
    assert evaluated(shell, server).code == 4
    write_evaluation(shell)  # Text() forgives case and punctuation
    refused(shell.pipeline("gate", "out/eval"), "eval.py has changed since the run")
    refused(shell.pipeline("gate", "out/eval", "--job", "eval.py"), "the graders of answer changed")
    regraded = shell.pipeline("grade", "out/eval", "--job", "eval.py")
    assert (regraded.code, "row_correct 100.0 %" in regraded.out) == (0, True), regraded
    write_evaluation(shell, gates='AtMost("row_correct", 0.9)')
    assert shell.pipeline("gate", "out/eval", "--job", "eval.py").code == 4
    assert len(server.calls) == ROWS


def test_failed_rows_are_asked_again_on_demand_and_scores_of_before_are_gone(shell: Shell, server: Served) -> None:
    server.follow(answering(failing=range(5)))
    evaluated(shell, server)
    server.follow(answering())
    done = evaluated(shell, server, "--retry-failed", "--json")
    assert (done.code, done.json["requests"], done.json["measures"]["failed"]) == (0, 5, 0.0)


# Baselines


def test_9_rows_newly_broken_and_1_fixed_of_300_are_told_with_their_p_and_fail(shell: Shell, server: Served) -> None:
    write_gold(shell, 300)
    write_evaluation(shell, gates='NoWorse("row_correct", tolerance=0.02)')
    server.follow(answering(wrong=[0]))
    blessed(shell, server)
    server.follow(answering(wrong=range(1, 10)))
    done = evaluated(shell, server, "--no-cache", "--fresh", "-o", "out/later")
    assert done.code == 4
    assert "p = 0.0215" in done.out
    assert "broken      9: r001, r002" in done.out
    assert "fixed       1: r000" in done.out
    decision = summary_in(shell, "out/later")["gates"][0]
    assert decision["answer"] == "regressed"
    assert decision["p"] == pytest.approx(0.021484, abs=1e-6)


def test_a_golden_row_that_breaks_fails_however_few_rows_it_is(shell: Shell, server: Served) -> None:
    blessed(shell, server)
    server.follow(answering(wrong=[4]))
    done = evaluated(shell, server, "--no-cache", "-o", "out/later", "--json")
    assert done.code == 4
    assert [gate["outcome"] for gate in done.json["gates"]] == ["ok", "warn", "fail"]
    assert done.json["broken"] == ["r004"]


def test_a_baseline_is_the_same_text_when_it_is_blessed_again(shell: Shell, server: Served) -> None:
    blessed(shell, server)
    first = (shell.folder / "baseline.json").read_bytes()
    (shell.folder / "baseline.json").unlink()
    blessed(shell, server, "--no-cache", "--fresh")
    assert (shell.folder / "baseline.json").read_bytes() == first


@pytest.mark.parametrize("change", [{"expected": {"answer": "other"}}, {"text": "text 33"}], ids=["expected", "asked"])
def test_changed_gold_data_is_2_before_any_call_and_compared_on_demand(
    shell: Shell, server: Served, change: dict[str, Any]
) -> None:
    blessed(shell, server)
    write_gold(shell, ROWS, {3: change})
    before = len(server.calls)
    refused(evaluated(shell, server), "1 rows of the gold data were changed (r003)")
    assert len(server.calls) == before
    done = evaluated(shell, server, "--common-rows", "--json")
    assert done.code == 0
    assert any("on the common rows only" in note for note in done.json["notes"])
    assert summary_in(shell)["comparison"]["rows"] == ROWS - 1


def test_a_prompt_that_reads_another_column_is_comparable(shell: Shell, server: Served) -> None:
    blessed(shell, server)
    write_evaluation(shell, **{"Say {{ text }}": "{{ tier }}: say {{ text }}"})
    done = evaluated(shell, server, "--json")
    assert done.code == 0, done
    assert done.json["notes"] == ["changed in the job since baseline.json: prompt"]


def test_changed_graders_are_2_before_any_call(shell: Shell, server: Served) -> None:
    blessed(shell, server)
    write_evaluation(shell, fields='fields={"answer": Text(at_least=0.5)},')
    refused(evaluated(shell, server), "graded differently: answer")


def test_answers_of_the_emulator_are_not_compared_with_real_ones(shell: Shell, server: Served) -> None:
    blessed(shell, server)
    refused(shell.pipeline("eval", "eval.py", "--emulate", "--quiet"), "a real endpoint's answers")


def test_a_sample_is_compared_with_the_same_rows_of_the_baseline(shell: Shell, server: Served) -> None:
    blessed(shell, server)
    done = evaluated(shell, server, "--limit", "10", "-o", "out/sample", "--json")
    assert done.code == 0, done
    assert done.json["broken"] == []
    assert summary_in(shell, "out/sample")["comparison"]["rows"] == 10
    assert done.json["notes"] == ["only the first 10 rows were asked (--limit): nothing final"]
    refused(shell.pipeline("bless", "out/sample"), "only the first 10 rows were asked")


def test_rows_that_are_gone_count_as_failed(shell: Shell, server: Served) -> None:
    blessed(shell, server)
    write_gold(shell, ROWS - 1)
    done = evaluated(shell, server, "--json")
    assert done.json["broken"] == [f"r{ROWS - 1:03d}"]
    assert any("1 rows of baseline.json are missing: they count as failed" in note for note in done.json["notes"])


def test_an_evaluation_that_was_stopped_can_be_neither_blessed_nor_gated(shell: Shell, server: Served) -> None:
    """The scores of the run before it are not taken for its own."""
    blessed(shell, server)
    write_evaluation(shell, SYSTEM="Another prompt")
    assert evaluated(shell, server, "--budget-usd", str(10 * COST)).code == 6
    for verb in ("bless", "gate", "grade"):
        refused(shell.pipeline(verb, "out/eval"), "is not finished")
    refused(shell.pipeline("compare", "baseline.json", "out/eval"), "is not finished")


def test_a_run_with_too_many_failed_rows_is_not_blessed(shell: Shell, server: Served) -> None:
    server.follow(answering(failing=range(5)))
    evaluated(shell, server)
    refused(shell.pipeline("bless", "out/eval"), "too many rows of out/eval failed")


def test_the_emulators_answers_are_blessed_on_demand_only(shell: Shell) -> None:
    done = shell.pipeline("eval", "eval.py", "--emulate", "--quiet", "--field-error", "answer=0.2")
    assert done.code == 0, done
    assert done.out.startswith("SIMULATED")
    refused(shell.pipeline("bless", "out/eval"), "--allow-emulated")
    assert shell.pipeline("bless", "out/eval", "--allow-emulated").code == 0
    again = shell.pipeline("eval", "eval.py", "--emulate", "--quiet", "--field-error", "answer=0.2", "--json")
    assert (again.json["simulated"], again.json["p"], again.json["requests"]) == (True, 1.0, 0)


def test_two_runs_and_a_baseline_file_are_compared(shell: Shell, server: Served) -> None:
    blessed(shell, server)
    server.follow(answering(wrong=[1, 2]))
    evaluated(shell, server, "--no-cache", "-o", "out/later")
    for before in ("baseline.json", "out/eval"):
        done = shell.pipeline("compare", before, "out/later", "--json")
        assert (done.code, done.json["comparison"]["broken"]) == (0, ["r001", "r002"]), done
    told = shell.pipeline("compare", "out/eval", "out/later")
    assert "broken      2: r001, r002" in told.out
    refused(shell.pipeline("compare", "nowhere.json", "out/later"), "there is no nowhere.json")


# Repeats


class Flipping:
    """Answers these rows right and wrong in turn."""

    def __init__(self, *rows: int) -> None:
        self.rows = rows
        self.seen: Counter[int] = Counter()

    def __call__(self, call: Call) -> Answer:
        number = number_of(call)
        self.seen[number] += 1
        return answering(wrong=self.rows if self.seen[number] % 2 == 0 else ())(call)


def test_repeats_are_asked_apart_kept_apart_and_their_flaky_rows_named(shell: Shell, server: Served) -> None:
    server.follow(Flipping(2, 5))
    done = evaluated(shell, server, "--repeats", "2", "--json")
    assert (done.json["requests"], done.json["repeats"], done.json["flaky_rows"]) == (2 * ROWS, 2, ["r002", "r005"])
    assert summary_in(shell)["consistency"] == {"answer": 1 - 2 / ROWS}
    assert done.json["measures"]["row_correct"] == pytest.approx(39 / 40)
    again = evaluated(shell, server, "--repeats", "2", "--json", "-o", "out/again")
    assert (again.json["requests"], again.json["flaky_rows"]) == (0, ["r002", "r005"])
    graded = shell.pipeline("grade", "out/eval", "--json")
    assert (graded.json["repeats"], graded.json["flaky_rows"]) == (2, ["r002", "r005"])


def test_fewer_repeats_leave_nothing_of_the_others(shell: Shell, server: Served) -> None:
    evaluated(shell, server, "--repeats", "3")
    evaluated(shell, server, "--repeats", "2")
    assert [path.name for path in (shell.folder / "out/eval/_repeats").iterdir()] == ["001"]
    assert len(server.calls) == 3 * ROWS


def test_the_noise_floor_is_what_flips_by_itself_and_later_scores_know_it(shell: Shell, server: Served) -> None:
    server.follow(Flipping(2, 5, 7, 9))
    done = evaluated(shell, server, "--noise-floor", "--json")
    assert (done.code, done.json["rows"], done.json["share"]) == (0, ROWS, 0.1)
    assert done.json["flips"] == ["r002", "r005", "r007", "r009"]
    evaluated(shell, server)
    assert summary_in(shell)["noise"] == 0.1
    write_evaluation(shell, SYSTEM="Another prompt")
    evaluated(shell, server)
    assert summary_in(shell)["noise"] is None
    refused(evaluated(shell, server, "--noise-floor", "--vs-ref", "HEAD"), "cannot be combined")


# Overrides


def test_what_the_command_line_changed_holds_for_grade_and_gate(shell: Shell, server: Served) -> None:
    shell.write("few.jsonl", "".join(json.dumps(gold_row(number)) + "\n" for number in range(12)))
    evaluated(shell, server, "-i", "few.jsonl", "-m", "google/other")
    for verb in ("grade", "gate"):
        done = shell.pipeline(verb, "out/eval", "--json")
        assert (done.code, done.json["rows"], done.json["model"]) == (0, 12, "google/other"), done
    shell.write("few.jsonl", json.dumps(gold_row(0)))
    refused(shell.pipeline("grade", "out/eval"), "the gold data has changed since the run")
