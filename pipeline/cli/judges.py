"""Asking the judges of an evaluation: rounds of a job of their own, until every question is decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.cli.together import Place, Together, carried_out
from pipeline.disk import FILES
from pipeline.grade.judge import Judge, Question, questions, ruled
from pipeline.judging import (
    Cast,
    by_address,
    judge_job,
    load_votes,
    question_id,
    read_votes,
    save_votes,
    still_open,
    write_questions,
)

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.cli.assessing import Subject
    from pipeline.execute import Settings
    from pipeline.grade.verdicts import Graded

Judged = tuple[tuple["Graded", ...], list[str]]
"""Graded rows, and what is to be said of them."""


def judged(subject: Subject, graded: Sequence[Graded]) -> Judged:
    """The rows with the votes that were cast in earlier runs."""
    graders, model = subject.evaluation.graders, subject.evaluation.job.model
    asked = list(questions(graders, graded))
    if not asked:
        return tuple(graded), []
    cast = load_votes(subject.folder)
    votes = by_address(asked, cast, model)
    rows = tuple(ruled(graders, row, votes) for row in graded)
    left = sum(_is_open(question, cast, model) for question in asked)
    note = f"{left} questions to judges are open, and count as wrong: `pipeline eval` asks them"
    return rows, [note] if left else []


def ask_judges(subject: Subject, graded: Sequence[Graded], settings: Settings, place: Place) -> list[Together]:
    """Asks what is open and keeps the votes; what the rounds came to. Ends early when one of them is stopped."""
    graders, model = subject.evaluation.graders, subject.evaluation.job.model
    asked = list(questions(graders, graded))
    rounds: list[Together] = []
    most = max((grader.votes for _, grader in graders.walk() if isinstance(grader, Judge)), default=0)
    for number in range(most):
        cast = load_votes(subject.folder)
        if not (by_model := still_open(asked, cast, model)):
            break
        for judge, rows in by_model.items():
            folder = subject.folder / f"judge-{number}-{len(rounds)}"
            FILES.make_folder(subject.folder)
            write_questions(file := folder.with_suffix(".jsonl"), rows)
            job = judge_job(judge, file, folder)
            with carried_out([(job, replace(settings, output=folder, fresh=True, limit=None))], place) as together:
                rounds.append(together)
                if together.stopped:
                    return rounds
            _cast(cast, folder)
            save_votes(subject.folder, cast)
    return rounds


def _cast(cast: Cast, folder: Path) -> None:
    for question, approved in read_votes(folder):
        cast.setdefault(question, []).append(approved)


def _is_open(question: Question, cast: Cast, model: str) -> bool:
    return question.judge.needed(cast.get(question_id(question, model), ())) > 0
