"""An evaluation is checked when it is written down: what no run could decide is found before the first."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from pipeline import AtLeast, AtMost, Eval, Job, NoWorse
from pipeline.evaluation import Exact, Ignore, Text
from pipeline.faults import UsageError


class Pet(BaseModel):
    name: str
    age: int


def job(**changes: Any) -> Job:
    usual: dict[str, Any] = {"name": "a", "model": "m", "user": "x", "schema": Pet, "key": "id"}
    return Job(**usual | changes)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"job": job(key=None)}, "give the job one, as in key='id'"),
        ({"job": job(n=2)}, "use `repeats` rather than the job's `n`"),
        ({"fields": {"nmae": Text()}}, "did you mean 'name'"),
        ({"fields": {"name": Text}}, r"Text is a class, write Text\(\)"),
        ({"fields": {"name": Ignore(), "age": Ignore()}}, "grades no field"),
        ({"gates": [AtLeast("right.nmae", 0.5)]}, "there is no field 'nmae'"),
        ({"gates": [AtLeast("pass_at_3", 0.5)]}, "needs 3 repeats, and there are 1"),
        ({"gates": [AtMost("failed", 0.1), AtMost("failed", 0.1)]}, "is given 2 times"),
        ({"reduce": "median"}, "there is no reducer 'median'"),
        ({"reduce": "at_least_3", "repeats": 2}, "3 of 2 repeats"),
        ({"job": job(schema=None), "fields": {"name": Text()}}, "its one field is 'answer'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_no_run_could_decide_is_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        Eval(**({"job": job()} | fields))


@pytest.mark.parametrize(
    "fields", [{"repeats": 0}, {"least": 0}, {"gates": ["row_correct"]}, {"slices": "tier"}, {"slice": []}]
)
def test_values_of_another_kind_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises((ValidationError, UsageError)):
        Eval(**({"job": job()} | fields))


def test_fields_that_are_not_named_are_graded_by_their_type() -> None:
    graders = Eval(job=job(), fields={"name": Exact()}).graders
    assert list(graders.fields) == ["name", "age"]
    assert graders.fields["name"] == Exact()


def test_a_replaced_field_is_checked_like_a_first_one() -> None:
    evaluation = Eval(job=job(), repeats=3, gates=[NoWorse("pass_at_3")])
    with pytest.raises(UsageError, match="needs 3 repeats"):
        evaluation.replace(repeats=2)


def test_the_columns_that_are_needed_are_all_that_is_named() -> None:
    gates = [AtLeast("row_correct", 0.5, where={"tier": "golden"})]
    evaluation = Eval(job=job(), slices=["language"], cluster="document", gates=gates)
    wanted = ["expected", "id", "language", "tier", "document"]
    assert evaluation.columns_needed(wanted) == wanted
    for missing in wanted:
        with pytest.raises(UsageError, match=f"the column '{missing}'"):
            evaluation.columns_needed([name for name in wanted if name != missing])
