"""The decision of each gate, and its reason.

A regression test has three results, not two: a test that detects no difference has not shown that there is none.
`NoWorse` answers `regressed` when the loss is significant and exceeds the tolerance, `not regressed` when the interval
of the difference excludes a loss of more than the tolerance (or no row changed at all), and `cannot tell` otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.evaluation.comparison import MetricChange, Pair, change, is_right, join, meets
from pipeline.evaluation.gates import AtLeast, AtMost, Gate, NeverBreak, NoWorse, nobody
from pipeline.evaluation.graders.verdicts import Scored
from pipeline.evaluation.stats.intervals import Interval, normal_quantile
from pipeline.evaluation.stats.metrics import Measure, measure, metric_of
from pipeline.evaluation.stats.power import standard_errors
from pipeline.faults import NothingToDo
from pipeline.text.figures import Unit, counted, difference, distance, figure, p_is, some

GateAnswer = Literal["passed", "failed", "regressed", "not regressed", "cannot tell", "no baseline"]
GateOutcome = Literal["ok", "warn", "fail", "info"]

_NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The result of one gate over `n` rows; `message` states it in one sentence.

    `interval` is that of `value`, or, where the gate compares, of its difference from the baseline's `before`. `limit`
    is the bound or the tolerance. `smallest_effect` is the difference that this many rows detect four times out of
    five. `rows` names the offending rows, sorted.
    """

    gate: str
    answer: GateAnswer
    outcome: GateOutcome
    message: str
    n: int
    value: float | None = None
    before: float | None = None
    interval: Interval | None = None
    limit: float | None = None
    p: float | None = None
    smallest_effect: float | None = None
    rows: tuple[str, ...] = ()
    metric: str | None = None
    """The metric of `value`; None for a gate on single rows."""


def decide(
    gate: Gate,
    scored: Sequence[Scored],
    *,
    baseline: Sequence[Scored] | None = None,
    common_only: bool = False,
    seed: int = 0,
) -> Decision:
    """Decides the gate.

    Rows of the baseline that are missing from the run count as failed, unless `common_only`. Raises `NothingToDo` when
    no row was scored, and `UsageError` when no row has the slice values of the gate: neither may pass.
    """
    if not scored:
        raise NothingToDo(f"{gate.name}: no row was scored")
    if isinstance(gate, AtLeast | AtMost):
        return _of_bound(gate, _chosen(gate, scored), seed)
    if not baseline:
        return _without_baseline(gate, _chosen(gate, scored))
    pairs = [pair for pair in join(baseline, scored, common_only=common_only) if meets(pair.slices, gate.where)]
    if not pairs:
        raise nobody(gate)
    if isinstance(gate, NeverBreak):
        return _of_golden(gate, pairs)
    earlier = {row.row for row in baseline}
    known = [pair for pair in pairs if pair.row in earlier]
    return _of_change(gate, known, seed) if known else _without_baseline(gate, [pair.after for pair in pairs])


def _chosen(gate: Gate, scored: Sequence[Scored]) -> list[Scored]:
    rows = [row for row in scored if meets(row.slices, gate.where)]
    if not rows:
        raise nobody(gate)
    return rows


def _of_bound(gate: AtLeast | AtMost, rows: Sequence[Scored], seed: int) -> Decision:
    found, unit = measure(gate.metric, rows, seed=seed), metric_of(gate.metric).unit
    limit = _render(gate.value, unit)
    if found.value is None:
        message = f"{gate.metric} cannot be computed: {found.why}."
        return Decision(
            gate=gate.name,
            answer="cannot tell",
            outcome=gate.severity,
            message=message,
            n=found.n,
            limit=gate.value,
            metric=gate.metric,
        )
    decisive = {"value": found.value, "lower": found.low, "upper": found.high}[gate.on]
    passed = decisive >= gate.value if isinstance(gate, AtLeast) else decisive <= gate.value
    bound = "at least" if isinstance(gate, AtLeast) else "at most"
    subject = "it" if gate.on == "value" else f"its {gate.on} end"
    return Decision(
        gate=gate.name,
        answer="passed" if passed else "failed",
        outcome="ok" if passed else gate.severity,
        message=f"{gate.metric} is {_spread(found, unit)}, and {subject} must be {bound} {limit}.",
        n=found.n,
        value=found.value,
        interval=Interval(found.low, found.high),
        limit=gate.value,
        smallest_effect=standard_errors() * (found.high - found.low) / (2 * normal_quantile(0.95)),
        metric=gate.metric,
    )


def _without_baseline(gate: NoWorse | NeverBreak, rows: Sequence[Scored]) -> Decision:
    outcome: GateOutcome = "info" if gate.severity == "info" else "warn"
    if isinstance(gate, NoWorse):
        found = measure(gate.metric, rows)
        now = found.why if found.value is None else f"{gate.metric} is {_spread(found, metric_of(gate.metric).unit)}"
        message = f"There is no baseline to compare with; {now}."
        return Decision(
            gate=gate.name,
            answer="no baseline",
            outcome=outcome,
            message=message,
            n=len(rows),
            value=found.value,
            metric=gate.metric,
        )
    wrong = tuple(sorted(row.row for row in rows if not is_right(row)))
    state = f"{len(wrong)} of {counted(len(rows), 'row')} wrong now{_named(wrong)}"
    return Decision(
        gate=gate.name,
        answer="no baseline",
        outcome=outcome,
        message=f"There is no baseline to compare with; {state}.",
        n=len(rows),
        rows=wrong,
    )


def _of_golden(gate: NeverBreak, pairs: Sequence[Pair]) -> Decision:
    broken = tuple(pair.row for pair in pairs if pair.broken)
    held = sum(is_right(pair.before) for pair in pairs)
    message = f"{len(broken)} of {counted(held, 'row')} that were right in the baseline broke{_named(broken)}."
    return Decision(
        gate=gate.name,
        answer="failed" if broken else "passed",
        outcome=gate.severity if broken else "ok",
        message=message,
        n=len(pairs),
        rows=broken,
    )


def _of_change(gate: NoWorse, pairs: Sequence[Pair], seed: int) -> Decision:
    found = change(gate.metric, pairs, level=1 - gate.alpha, seed=seed)
    answer = _answer(gate, found)
    return Decision(
        gate=gate.name,
        answer=answer,
        outcome=_outcome(gate, answer, found),
        message=_explained(gate, found, answer),
        n=found.rows,
        value=found.after,
        before=found.before,
        interval=None if found.difference is None else Interval(found.low, found.high),
        limit=gate.tolerance,
        p=None if found.difference is None else found.p,
        smallest_effect=None if found.difference is None else found.smallest_effect,
        rows=tuple(pair.row for pair in pairs if pair.broken) if gate.metric == "row_correct" else (),
        metric=gate.metric,
    )


def _answer(gate: NoWorse, found: MetricChange) -> GateAnswer:
    if found.difference is None:
        return "cannot tell"
    lower = metric_of(gate.metric).lower_is_better
    loss, most = (found.difference, found.high) if lower else (-found.difference, -found.low)
    if found.p < gate.alpha and loss > gate.tolerance + 1e-12:
        return "regressed"
    if not found.changed or most < gate.tolerance:
        return "not regressed"
    return "cannot tell"


def _outcome(gate: NoWorse, answer: GateAnswer, found: MetricChange) -> GateOutcome:
    if answer == "not regressed":
        return "ok"
    unpriced = found.difference is None and metric_of(gate.metric).unit == "usd"
    if answer == "regressed" or unpriced or gate.on_inconclusive == "fail":
        return gate.severity
    if gate.on_inconclusive == "pass":
        return "ok"
    return "info" if gate.severity == "info" else "warn"


def _explained(gate: NoWorse, found: MetricChange, answer: GateAnswer) -> str:
    unit = metric_of(gate.metric).unit
    if found.difference is None or found.before is None or found.after is None:
        return f"{gate.metric} cannot be compared: {found.why}."
    effect = distance(found.smallest_effect, unit, "unknown")
    seen = f"{counted(found.rows, 'row')} show a difference of {effect} four times out of five"
    if gate.tolerance < found.smallest_effect:
        seen += f", so that a tolerance of {distance(gate.tolerance, unit)} is finer than they can see"
    if not found.changed:
        return f"{gate.metric} is {_render(found.after, unit)} as in the baseline, and no row changed; {seen}."
    moved = f"{gate.metric} went from {_render(found.before, unit)} to {_render(found.after, unit)}"
    interval = f"{100 * (1 - gate.alpha):g} % interval {_signed(found.low, unit)} to {_signed(found.high, unit)}"
    decides = ", which decides whether it is noise" if found.torn(gate.alpha) else ""
    rows = f"{counted(found.worse, 'row')} worse, {found.better} better, {p_is(found.p)}{decides}"
    return f"{_CONCLUSIONS[answer]}: {moved} ({_signed(found.difference, unit)}, {interval}; {rows}); {seen}."


_CONCLUSIONS: Mapping[GateAnswer, str] = {
    "regressed": "Worse beyond noise and beyond the tolerance",
    "not regressed": "No worse than the tolerance allows",
    "cannot tell": "It is not clear whether a loss exceeds the tolerance",
}


def _spread(found: Measure, unit: Unit) -> str:
    interval = f"95 % interval {_render(found.low, unit)} to {_render(found.high, unit)}"
    return f"{_render(found.value or 0.0, unit)} ({interval}, {counted(found.n, 'row')})"


def _render(number: float, unit: Unit) -> str:
    return figure(number, unit, "unknown")


def _signed(number: float, unit: Unit) -> str:
    return difference(number, unit, "unknown")


def _named(rows: Sequence[str]) -> str:
    return f": {some(rows, _NAMED)}" if rows else ""
