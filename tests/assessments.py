"""Assessments made of values, for the tests of reports: graded and compared for real, with no run behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel

from pipeline.evaluation.assessment import Assessment, Reference, assess, scores_of
from pipeline.evaluation.definition import Eval
from pipeline.evaluation.gates import AtLeast, AtMost, Gate, NeverBreak, NoWorse
from pipeline.evaluation.graders.rows import Gold, RowAnswer, grade_row
from pipeline.job.job import Job


class Event(BaseModel):
    """What the answers are like."""

    name: str | None
    kind: Literal["meeting", "concert"]
    people: list[str] = []


GATES: tuple[Gate, ...] = (
    AtLeast("row_correct", 0.9),
    AtLeast("f1.name", 0.1, severity="warn"),
    AtMost("cost_usd_per_row", 0.001),
    NoWorse("row_correct", tolerance=0.02),
    NeverBreak(where={"tier": "golden"}),
)

GOLD: dict[str, Any] = {"name": "Fair", "kind": "meeting", "people": ["Ada"]}
BROKEN: dict[str, Any] = {"name": "Fear", "kind": "concert", "people": ["Ada", "Eve"]}


def evaluation_of(gates: Sequence[Gate] = GATES, repeats: int = 1) -> Eval:
    job = Job(name="a_job", model="google/gemini-test", user="{{ text }}", schema=Event, key="id")
    return Eval(job=job, gates=gates, slices=["language"], repeats=repeats, least=2)


def assessed(
    answers: Sequence[Any],
    before: Sequence[Any] | None = None,
    *,
    expected: Mapping[str, Any] = GOLD,
    gates: Sequence[Gate] = GATES,
    names: Sequence[str] | None = None,
) -> Assessment:
    """The assessment of these answers, a row each (None is a refused one), compared with those `before`."""
    evaluation = evaluation_of(gates)
    gold = [_gold(names[place] if names else f"row-{place:03d}", place, expected) for place in range(len(answers))]
    graded = [grade_row(evaluation.graders, one, _answer(each)) for one, each in zip(gold, answers, strict=True)]
    asked = evaluation.job.fingerprint()
    scores = scores_of(evaluation, gold, graded, name="eval_events", job=asked, simulated=True)
    if before is None:
        return assess(evaluation, scores, graded)
    earlier = [grade_row(evaluation.graders, one, _answer(each)) for one, each in zip(gold, before, strict=True)]
    old = scores_of(evaluation, gold, earlier, name="eval_events", job=asked, simulated=True)
    return assess(evaluation, scores, graded, Reference(of="base.json", scores=old), ["one thing to know"])


def _gold(name: str, place: int, expected: Mapping[str, Any]) -> Gold:
    tier = "golden" if place % 5 == 0 else "standard"
    return Gold(name, expected, {"text": "x"}, {"language": "en" if place % 2 else "de", "tier": tier})


def _answer(got: Any) -> RowAnswer:
    return RowAnswer(got=got, fault="Refused" if got is None else None, cost_usd=0.0001, latency_s=0.5)
