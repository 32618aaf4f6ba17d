"""Eval: a job whose rows carry the expected answer, with the criteria that its answers must meet."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from pipeline.evaluation.gates import AtLeast, AtMost, Gate, NeverBreak, NoWorse, check
from pipeline.evaluation.graders.defaults import graders_for
from pipeline.evaluation.graders.rows import Graders
from pipeline.evaluation.reducers import Reducer, reducer_of
from pipeline.faults import UsageError
from pipeline.job.errors import describe
from pipeline.job.job import Job
from pipeline.job.loader import load_defined
from pipeline.store.address import local_path


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", arbitrary_types_allowed=True))
class Eval:
    """An evaluation of a job on gold data.

    `job` reads the gold data: `expected` names the column with each row's expected answer, in the shape of the job's
    schema. The job's `key` identifies the rows: it is required and must be unique, because runs are joined by it.

    `fields` assigns graders to fields of the schema; the others are graded by their type. `slices` names columns by
    whose values results are broken down (values with fewer than `least` rows are not reported). `cluster` names a
    column whose equal values mark rows that belong together (the pages of a document): intervals account for it.

    Every row is asked `repeats` times; `reduce` turns the repeats into one verdict (`mean`, `majority`, `any`, `all`,
    `at_least_K`, `pass_at_K`, `pass_hat_K`). `gates` decide whether the run is good enough, also compared with the
    `baseline`, a file that `pipeline bless` writes. All random draws are seeded with `seed`.
    """

    job: Job
    expected: str = "expected"
    fields: dict[str, Any] = Field(default_factory=dict)
    slices: Sequence[str] = ()
    cluster: str | None = None
    repeats: int = Field(default=1, ge=1)
    reduce: str = "mean"
    gates: Sequence[Gate] = ()
    baseline: str | Path | None = None
    least: int = Field(default=10, ge=1)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.job.key is None:
            raise UsageError("an evaluation joins runs by their rows' key: give the job one, as in key='id'")
        if (self.job.n or 1) > 1:
            raise UsageError("an evaluation grades one answer per row: use `repeats` rather than the job's `n`")
        for gate in self.gates:
            if not isinstance(gate, AtLeast | AtMost | NoWorse | NeverBreak):
                raise UsageError(f"`gates` holds {gate!r}, not a gate: use AtLeast, AtMost, NoWorse or NeverBreak")
        local_path(self.baseline or "")  # an address is refused now, not after the calls
        # Resolved now, so that mistakes in them are found before the first call.
        check(self.gates, list(self.graders.fields), repeats=self.repeats)
        self.reducer([True] * self.repeats)

    def replace(self, **changes: Any) -> Eval:
        """The same evaluation with some fields changed, validated like a new one."""
        return dataclasses.replace(self, **changes)

    @cached_property
    def graders(self) -> Graders:
        """The grader of every field, in the order of the schema."""
        if self.job.shape is None:
            schema = {"type": "object"} if self.job.schema == "json_object" else None
        else:
            schema = dict(self.job.shape.json_schema)
        return graders_for(schema, self.fields)

    @property
    def reducer(self) -> Reducer:
        """The function that reduces a row's repeats to one verdict."""
        return reducer_of(self.reduce)

    @cached_property
    def marks(self) -> list[str]:
        """The columns that slices and gates select rows by."""
        wheres = [name for gate in self.gates for name in gate.where or {}]
        return list(dict.fromkeys([*self.slices, *wheres]))

    def columns_needed(self, available: Sequence[str]) -> list[str]:
        """The columns of the gold data that grading reads. Raises `UsageError` when one is missing."""
        wanted = {
            self.expected: "`expected`",
            str(self.job.key): "the job's `key`",
            **dict.fromkeys(self.marks, "`slices` or a gate's `where`"),
            **({self.cluster: "`cluster`"} if self.cluster else {}),
        }
        for name, who in wanted.items():
            if name not in available:
                raise UsageError(f"{who} names the column {name!r}, which the gold data lacks ({', '.join(available)})")
        return list(wanted)


describe(Eval, "an", "evaluation")


def load_evaluation(target: str) -> Eval:
    """The evaluation that a Python file defines: `FILE.py`, or `FILE.py:NAME` when it is not called `evaluation`."""
    return load_defined(target, Eval, "evaluation", "write `evaluation = Eval(...)`")
