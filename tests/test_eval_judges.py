"""Judges in an evaluation: asked only what is open, paid from the same budget, and never twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.commands import Shell
from tests.evaluations import answering, evaluated, number_of, said, summary_in, write_evaluation, write_gold
from tests.servers import Answer, Call, Served, chat, error, served

ROWS = 8
FIELDS = 'fields={"answer": Judge("The same thing is meant.")},'


def is_judged(call: Call) -> bool:
    return "Rubric: " in call.prompt


def judging(approvals: Sequence[bool] = (True,)) -> Callable[[Call], Answer]:
    """Answers row 0 in other words, and the judge's calls with `approvals`, the last one for all later calls."""
    seen: list[int] = []

    def answer(call: Call) -> Answer:
        if not is_judged(call):
            number = number_of(call)
            return said(f"{number} in other words" if number == 0 else f"TEXT {number}")
        seen.append(call.number)
        approved = approvals[min(len(seen), len(approvals)) - 1]
        return chat(json.dumps({"reason": "so", "approved": approved}))

    return answer


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shell = Shell(tmp_path, {"OPENAI_API_KEY": "k"})
    write_evaluation(shell, fields=FIELDS, gates='AtLeast("row_correct", 1)')
    write_gold(shell, ROWS)
    return shell


@pytest.fixture
def server() -> Iterator[Served]:
    with served(answering()) as server:
        yield server


def judged(server: Served) -> int:
    return sum(map(is_judged, server.calls))


@pytest.mark.parametrize(
    ("approvals", "calls", "code"),
    [((True,), 1, 0), ((False, False), 2, 4), ((False, True, False), 3, 4), ((False, True, True), 3, 0)],
    ids=["approved", "rejected twice", "rejected in the end", "approved in the end"],
)
def test_an_approval_costs_one_call_and_a_rejection_is_confirmed(
    shell: Shell, server: Served, approvals: tuple[bool, ...], calls: int, code: int
) -> None:
    server.follow(judging(approvals))
    done = evaluated(shell, server, "--json")
    assert (done.code, judged(server)) == (code, calls), done
    assert done.json["requests"] == ROWS + calls
    for verb in ("grade", "gate"):
        assert shell.pipeline(verb, "out/eval").code == code
    assert evaluated(shell, server).code == code
    assert len(server.calls) == ROWS + calls


def test_what_agrees_needs_no_judge(shell: Shell, server: Served) -> None:
    assert evaluated(shell, server).code == 0
    assert judged(server) == 0


def test_the_same_question_is_asked_once_for_all_repeats(shell: Shell, server: Served) -> None:
    server.follow(judging())
    assert evaluated(shell, server, "--repeats", "3").code == 0
    assert (len(server.calls), judged(server)) == (3 * ROWS + 1, 1)


def test_a_question_that_the_judge_does_not_answer_is_open_told_and_wrong(shell: Shell, server: Served) -> None:
    def answer(call: Call) -> Answer:
        blocked = chat(None, finish_reason="content_filter")
        return blocked if is_judged(call) else judging()(call)

    server.follow(answer)
    done = evaluated(shell, server, "--json")
    assert (done.code, done.json["measures"]["row_correct"]) == (4, 1 - 1 / ROWS), done
    assert any(note.startswith("1 questions to judges are open") for note in done.json["notes"])
    bless = shell.pipeline("bless", "out/eval")
    assert (bless.code, "questions to judges are open" in bless.err) == (2, True)
    server.follow(judging())
    again = evaluated(shell, server, "--json")
    assert (again.code, again.json["notes"], again.json["requests"]) == (
        0,
        ["there is no baseline.json to compare with: `pipeline bless out/eval` writes it"],
        1,
    )


def test_judges_pay_from_the_budget_of_the_run(shell: Shell, server: Served) -> None:
    """Eight rows cost 120 tokens; the answer of a call of which nothing is known yet is taken for 500."""
    server.follow(judging())
    done = evaluated(shell, server, "--budget-tokens", "600")
    assert (done.code, judged(server)) == (6, 0), done
    assert "nothing is graded" in done.err
    assert evaluated(shell, server, "--budget-tokens", "2000").code == 0
    assert judged(server) == 1


def test_a_judge_without_a_price_is_2_before_any_call_where_dollars_are_counted(shell: Shell, server: Served) -> None:
    write_evaluation(shell, fields=FIELDS.replace('")', '", model="a/judge")'))
    done = evaluated(shell, server, "--budget-usd", "1")
    assert (done.code, "needs the price of a/judge" in done.err, len(server.calls)) == (2, True, 0), done


def test_a_judge_that_is_denied_ends_the_evaluation_and_is_asked_again_later(shell: Shell, server: Served) -> None:
    def answer(call: Call) -> Answer:
        return error(403) if is_judged(call) else judging()(call)

    server.follow(answer)
    assert evaluated(shell, server).code == 7
    server.follow(judging())
    assert evaluated(shell, server, "--json").json["requests"] == 1
    assert summary_in(shell)["measures"]["row_correct"] == 1.0
