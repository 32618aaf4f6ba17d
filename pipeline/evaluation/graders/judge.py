"""A grader that asks a model: the questions it leaves open, and how later votes decide them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.evaluation.graders.base import Finding, Scalar
from pipeline.evaluation.graders.rows import Graders, all_right
from pipeline.evaluation.graders.scalars import Text, similarity
from pipeline.evaluation.graders.values import same
from pipeline.evaluation.graders.verdicts import Graded, Leaf, Verdict

PENDING = "pending"
"""The label of a leaf that a judge has not decided yet. Until then it counts as wrong."""

APPROVED, REJECTED = "approved", "rejected"

LeafAddress = tuple[str, int, str, tuple[int, ...], tuple[int, ...]]
"""Identifies a leaf of a run: row, repeat, path, positions in the expected lists and in the given ones."""


@dataclass(frozen=True)
class Judge(Scalar):
    """Right when a model approves, by a rubric; values with equal normal forms are right without a question.

    `model` is the judge; None means the job's own model. The first vote decides if it approves; if it rejects, more are
    asked, and the majority of `votes` decides: one wrong rejection does no harm, and a good answer costs one call. A
    value on only one side is missed or invented without a question.
    """

    rubric: str
    model: str | None = None
    votes: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(bool(self.rubric.strip()), "the rubric says what is right, and it is empty")
        self._require(self.votes >= 1 and self.votes % 2 == 1, f"`votes` is an odd number, not {self.votes}")

    def find(self, expected: Any, got: Any, row: Mapping[str, Any]) -> Finding:  # noqa: ARG002 - of the seam
        """Right if the normal forms are equal; otherwise pending, with the similarity of the texts as its score."""
        if not (isinstance(expected, str) and isinstance(got, str)):
            return Finding.check(right=True) if same(expected, got) else Finding(right=False, score=0.0, label=PENDING)
        wanted, given = Text().normal(expected), Text().normal(got)
        if wanted == given:
            return Finding.check(right=True)
        return Finding(right=False, score=similarity(wanted, given), label=PENDING)

    def ruling(self, votes: Sequence[bool]) -> bool | None:
        """The decision of the votes, in the order they were cast; None while more are needed."""
        if votes[:1] == [True] or 2 * sum(votes) > self.votes:
            return True
        if 2 * (len(votes) - sum(votes)) > self.votes:
            return False
        return None

    def needed(self, votes: Sequence[bool]) -> int:
        """How many more votes to ask for at once: only votes that certainly matter. 0 when decided."""
        if self.ruling(votes) is not None:
            return 0
        approved = sum(votes)
        majority = self.votes // 2 + 1
        return min(majority - approved, majority - (len(votes) - approved)) if votes else 1


@dataclass(frozen=True, slots=True)
class Question:
    """A question to a judge, and the leaf that its answer decides."""

    row: str
    repeat: int
    path: str
    expected_index: tuple[int, ...]
    got_index: tuple[int, ...]
    expected: Any
    got: Any
    judge: Judge

    @property
    def address(self) -> LeafAddress:
        """The key under which its votes are looked up."""
        return (self.row, self.repeat, self.path, self.expected_index, self.got_index)


def questions(graders: Graders, graded: Iterable[Graded]) -> Iterator[Question]:
    """All pending leaves as questions, in the order of rows and leaves."""
    judges = {path: grader for path, grader in graders.walk() if isinstance(grader, Judge)}
    for row in graded:
        for leaf in (leaf for leaves in row.fields.values() for leaf in leaves):
            if leaf.path in judges and leaf.label == PENDING:
                address = (row.row, row.repeat, leaf.path, leaf.expected_index, leaf.got_index)
                yield Question(*address, leaf.expected, leaf.got, judges[leaf.path])


def ruled(graders: Graders, graded: Graded, votes: Mapping[LeafAddress, Sequence[bool]]) -> Graded:
    """The row with the decisions of the votes; undecided leaves stay pending, and wrong.

    A decided leaf is labelled `approved` or `rejected`, and its score is the share of approving votes. The alignment of
    lists does not change.
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
