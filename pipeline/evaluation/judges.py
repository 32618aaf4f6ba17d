"""Asks the judges of an evaluation: rounds of a separate job, until every question is decided."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.evaluation.graders.judge import Judge, Question, questions, ruled
from pipeline.evaluation.judge_job import (
    JUDGE,
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
from pipeline.execution.group import Host, RunGroup, execute_group
from pipeline.execution.run_status import charged_to
from pipeline.storage.durable import FILES
from pipeline.totals.ledger import Charges, total

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.evaluation.graders.verdicts import Graded
    from pipeline.evaluation.workspace import EvalWorkspace
    from pipeline.execution.settings import Settings

Judged = tuple[tuple["Graded", ...], list[str]]
"""Graded rows, and notes about them."""


def judged(subject: EvalWorkspace, graded: Sequence[Graded]) -> Judged:
    """The rows, with the votes cast in earlier runs applied."""
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


def require_prices(subject: EvalWorkspace, settings: Settings) -> None:
    """Raises `UsageError`, before any call, when a budget in dollars needs a judge's price that is not known."""
    from pipeline.policy.compose import budgets_for

    for _, judge in _judges(subject):
        job = judge_job(judge.model or subject.evaluation.job.model, subject.folder, subject.folder)
        budgets_for(job, settings.bounds)


def ask_all(subjects: Sequence[EvalWorkspace], settings: Settings, host: Host, paid: Charges) -> list[RunGroup]:
    """Asks the judges of each subject in turn, as `ask_judges` does, until a round is stopped; returns all rounds."""
    rounds: list[RunGroup] = []
    for subject in subjects:
        rounds += ask_judges(subject, subject.graded(), settings, host, paid)
        if rounds and rounds[-1].stopped:
            break
        paid += paid_to_judges(subject)
    return rounds


def ask_judges(
    subject: EvalWorkspace, graded: Sequence[Graded], settings: Settings, host: Host, paid: Charges
) -> list[RunGroup]:
    """Asks the open questions and saves the votes; returns the rounds. Ends early when one of them is stopped.

    A round has its own folder and resumes in it. `paid` is what was already spent from its budget.
    """
    model = subject.evaluation.job.model
    asked = list(questions(subject.evaluation.graders, graded))
    rounds: list[RunGroup] = []
    for _ in range(max((judge.votes for _, judge in _judges(subject)), default=0)):
        cast = load_votes(subject.folder)
        if not (by_model := still_open(asked, cast, model)):
            break
        for judge, rows in by_model.items():
            together = _round(subject, judge, rows, settings, host, paid)
            rounds.append(together)
            if together.stopped:
                return rounds
            _cast(cast, _folder(subject, judge, rows))
            save_votes(subject.folder, cast)
    return rounds


def _round(
    subject: EvalWorkspace,
    judge: str,
    rows: Sequence[Mapping[str, Any]],
    settings: Settings,
    host: Host,
    paid: Charges,
) -> RunGroup:
    folder = _folder(subject, judge, rows)
    FILES.make_folder(subject.folder)
    write_questions(file := folder.with_suffix(".jsonl"), rows)
    own = replace(settings, output=folder, fresh=False, limit=None, retry_failed=True, keep_replies=True)
    before = paid + paid_to_judges(subject, but=folder)
    with execute_group([(judge_job(judge, file, folder), own)], host, paid=before) as together:
        return together


def paid_to_judges(subject: EvalWorkspace, *, but: Path | None = None) -> Charges:
    """The cost of a run's rounds, over all its starts, except the round in the folder `but`."""
    return total(charged_to(path) for path in subject.folder.glob(f"{JUDGE}*/") if path != but)


def _folder(subject: EvalWorkspace, judge: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    content = json.dumps([judge, [(row["question"], row["juror"]) for row in rows]])
    return subject.folder / f"{JUDGE}{subject.run_id}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def _judges(subject: EvalWorkspace) -> list[tuple[str, Judge]]:
    graders = subject.evaluation.graders
    return [(path, grader) for path, grader in graders.walk() if isinstance(grader, Judge)]


def _cast(cast: Cast, folder: Path) -> None:
    for question, approved in read_votes(folder):
        cast.setdefault(question, []).append(approved)


def _is_open(question: Question, cast: Cast, model: str) -> bool:
    return question.judge.needed(cast.get(question_id(question, model), ())) > 0
