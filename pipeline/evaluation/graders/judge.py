"""A grader that asks a model: what it leaves open, and how the votes that are cast later close it. All pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.evaluation.graders.base import Finding, Scalar
from pipeline.evaluation.graders.grading import Graders, all_right
from pipeline.evaluation.graders.scalars import Text, similarity
from pipeline.evaluation.graders.values import same
from pipeline.evaluation.graders.verdicts import Graded, Leaf, Verdict

PENDING = "pending"
"""The label of a leaf that a judge has still to decide. Until then it is wrong."""

APPROVED, REJECTED = "approved", "rejected"

Address = tuple[str, int, str, tuple[int, ...], tuple[int, ...]]
"""Row, repeat, path, place in the expected lists, place in the given ones: which leaf of a run it is."""


@dataclass(frozen=True)
class Judge(Scalar):
    """Right when a model says so, by a rubric, of two values that differ in more than their normal form.

    `model` is the judge, the job's own when None. The first vote decides when it approves; when it rejects, more are
    asked, and the majority of `votes` decides: so one bad vote breaks nothing, and a good answer costs one call.
    What only one side gives is missed or invented without a question.
    """

    rubric: str
    model: str | None = None
    votes: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(bool(self.rubric.strip()), "the rubric says what is right, and it is empty")
        self._require(self.votes >= 1 and self.votes % 2 == 1, f"`votes` is an odd number, not {self.votes}")

    def find(self, expected: Any, got: Any, row: Mapping[str, Any]) -> Finding:  # noqa: ARG002 - of the seam
        """Right where no question is open; otherwise pending, with the similarity of the texts as its score."""
        if not (isinstance(expected, str) and isinstance(got, str)):
            return Finding.check(right=True) if same(expected, got) else Finding(right=False, score=0.0, label=PENDING)
        wanted, given = Text().normal(expected), Text().normal(got)
        if wanted == given:
            return Finding.check(right=True)
        return Finding(right=False, score=similarity(wanted, given), label=PENDING)

    def ruling(self, votes: Sequence[bool]) -> bool | None:
        """What the votes come to, in the order they were cast; None while more are needed."""
        if votes[:1] == [True] or 2 * sum(votes) > self.votes:
            return True
        if 2 * (len(votes) - sum(votes)) > self.votes:
            return False
        return None

    def needed(self, votes: Sequence[bool]) -> int:
        """How many more votes to ask for at once: never one that could turn out not to matter. 0 when decided."""
        if self.ruling(votes) is not None:
            return 0
        approved = sum(votes)
        majority = self.votes // 2 + 1
        return min(majority - approved, majority - (len(votes) - approved)) if votes else 1


@dataclass(frozen=True, slots=True)
class Question:
    """What a judge is to decide, and where the decision belongs."""

    row: str
    repeat: int
    path: str
    expected_index: tuple[int, ...]
    got_index: tuple[int, ...]
    expected: Any
    got: Any
    judge: Judge

    @property
    def address(self) -> Address:
        """Where the votes on it are looked up."""
        return (self.row, self.repeat, self.path, self.expected_index, self.got_index)


def questions(graders: Graders, graded: Iterable[Graded]) -> Iterator[Question]:
    """Everything that is pending, in the order of rows and leaves."""
    judges = {path: grader for path, grader in graders.walk() if isinstance(grader, Judge)}
    for row in graded:
        for leaf in (leaf for leaves in row.fields.values() for leaf in leaves):
            if leaf.path in judges and leaf.label == PENDING:
                address = (row.row, row.repeat, leaf.path, leaf.expected_index, leaf.got_index)
                yield Question(*address, leaf.expected, leaf.got, judges[leaf.path])


def ruled(graders: Graders, graded: Graded, votes: Mapping[Address, Sequence[bool]]) -> Graded:
    """The row with what the votes decide; what they leave open stays pending, and wrong.

    A ruled leaf is labelled `approved` or `rejected`, and its score is the share of votes that approved. Lists stay
    aligned as they were.
    """
    judges = {path: grader for path, grader in graders.walk() if isinstance(grader, Judge)}

    def closed(leaf: Leaf) -> Leaf:
        cast = votes.get((graded.row, graded.repeat, leaf.path, leaf.expected_index, leaf.got_index), ())
        ruling = judges[leaf.path].ruling(cast) if leaf.label == PENDING and leaf.path in judges else None
        if ruling is None:
            return leaf
        verdict, label = (Verdict.match, APPROVED) if ruling else (Verdict.wrong, REJECTED)
        return replace(leaf, verdict=verdict, label=label, score=sum(cast) / len(cast))

    fields = {name: tuple(map(closed, leaves)) for name, leaves in graded.fields.items()}
    return replace(graded, fields=fields, correct=graded.fault is None and all_right(graders, fields))
