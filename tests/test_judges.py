"""Questions to a judge: asked by what they are, once, and no vote that could not matter."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.evaluation import Judge
from pipeline.evaluation.graders.judge import Question
from pipeline.evaluation.judge_job import by_address, load_votes, question_id, save_votes, still_open

MODEL = "m"


def question(row: str = "r", got: str = "other", judge: Judge | None = None, repeat: int = 0) -> Question:
    return Question(row, repeat, "name", (), (), "wanted", got, judge or Judge("the same"))


def test_a_question_is_known_by_what_it_asks_not_by_its_row() -> None:
    same = {question_id(question(row, repeat=repeat), MODEL) for row in "ab" for repeat in (0, 1)}
    others = [question(got="x"), question(judge=Judge("else")), question(judge=Judge("the same", model="n"))]
    assert len(same) == 1
    assert len(same | {question_id(one, MODEL) for one in others}) == 4


def test_the_jobs_own_model_judges_where_none_is_named() -> None:
    named = question(judge=Judge("the same", model=MODEL))
    assert question_id(named, "another") == question_id(question(), MODEL)


@pytest.mark.parametrize(
    ("votes", "jurors"),
    [([], [1]), ([True], []), ([False], [2]), ([False, True], [3]), ([False, False], []), ([False, True, True], [])],
)
def test_only_jurors_whose_vote_may_matter_are_asked(votes: list[bool], jurors: list[int]) -> None:
    cast = {question_id(question(), MODEL): votes}
    rows = still_open([question("a"), question("b")], cast, MODEL).get(MODEL, [])
    assert [row["juror"] for row in rows] == jurors


def test_questions_are_sorted_by_their_judge() -> None:
    asked = still_open([question(), question(judge=Judge("the same", model="n"))], {}, MODEL)
    assert {judge: len(rows) for judge, rows in asked.items()} == {MODEL: 1, "n": 1}


def test_votes_are_read_back_as_they_were_saved(tmp_path: Path) -> None:
    assert load_votes(tmp_path) == {}
    save_votes(tmp_path, cast := {"q": [False, True]})
    assert load_votes(tmp_path) == cast


def test_a_vote_counts_for_every_row_that_asks_the_same() -> None:
    asked = [question("a"), question("b", repeat=1), question("c", got="x")]
    votes = by_address(asked, {question_id(asked[0], MODEL): [True]}, MODEL)
    assert [list(votes[one.address]) for one in asked] == [[True], [True], []]
