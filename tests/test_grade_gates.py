"""Gates: what is decided from which rows, that noise raises no alarm, and that nothing empty is ever green."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.decisions import Decision, decide
from pipeline.evaluation.gates import AtLeast, AtMost, Gate, NeverBreak, NoWorse, check
from pipeline.evaluation.graders.verdicts import Scored, VerdictCounts
from pipeline.evaluation.stats.intervals import wilson
from pipeline.faults import NothingToDo, UsageError
from tests.scores import runs, scored

GATES: list[Gate] = [AtLeast("row_correct", 0.5), AtMost("failed", 0.5), NoWorse("row_correct"), NeverBreak()]


def decided(gate: Gate, before: Sequence[Scored], after: Sequence[Scored]) -> tuple[str, str]:
    found = decide(gate, after, baseline=before)
    return found.answer, found.outcome


# Bounds.


def test_a_bound_is_on_the_value_or_on_the_end_of_its_interval() -> None:
    rows = [scored(i, float(i >= 24)) for i in range(300)]
    low, high = wilson(276, 300)
    assert low < 0.90
    assert high > 0.92
    on_value, on_lower = (
        decide(AtLeast("row_correct", 0.90), rows),
        decide(AtLeast("row_correct", 0.90, on="lower"), rows),
    )
    assert (on_value.answer, on_value.outcome) == ("passed", "ok")
    assert (on_lower.answer, on_lower.outcome) == ("failed", "fail")
    assert (on_lower.value, on_lower.interval, on_lower.limit, on_lower.n) == (0.92, (low, high), 0.90, 300)
    assert on_lower.message == (
        "row_correct is 92.0 % (95 % interval 88.4 % to 94.6 %, 300 rows), and its lower end must be at least 90.0 %."
    )


def test_a_bound_from_above_turns_the_direction() -> None:
    rows = [scored(i, failed=float(i < 3), cost_usd=0.004) for i in range(100)]
    assert decide(AtMost("failed", 0.03), rows).answer == "passed"
    assert decide(AtMost("failed", 0.03, on="upper"), rows).answer == "failed"
    assert decide(AtMost("cost_usd_per_row", 0.003), rows).outcome == "fail"
    assert decide(AtLeast("schema_valid", 0.97), rows).answer == "passed"


@pytest.mark.parametrize("severity", ["fail", "warn", "info"])
def test_the_severity_says_what_becomes_of_a_failure(severity: Any) -> None:
    before, after = runs(20, 0, 40)
    gates: list[Gate] = [
        AtLeast("row_correct", 0.9, severity=severity),
        AtMost("cost_usd", 1.0, severity=severity),
        NoWorse("row_correct", severity=severity),
        NeverBreak(severity=severity),
    ]
    assert [decided(gate, before, after) for gate in gates] == [
        ("failed", severity),
        ("cannot tell", severity),
        ("regressed", severity),
        ("failed", severity),
    ]
    assert decided(gates[0], after, before) == ("passed", "ok")


@pytest.mark.parametrize(
    "gate", [AtMost("cost_usd", 99.0), AtMost("cost_usd_per_row", 99.0), NoWorse("cost_usd", on_inconclusive="pass")]
)
def test_an_unknown_price_fails_every_gate_on_costs(gate: Gate) -> None:
    rows = [scored(i, cost_usd=None if i == 7 else 0.0) for i in range(20)]
    found = decide(gate, rows, baseline=rows)
    assert (found.answer, found.outcome, found.value) == ("cannot tell", "fail", None)
    assert "1 of 20 rows are without a known price" in found.message


def test_a_gate_looks_only_at_the_rows_that_it_names() -> None:
    rows = [scored(i, float(i % 2), slices={"language": "de" if i % 2 else "fr"}) for i in range(40)]
    assert decide(AtLeast("row_correct", 1.0, where={"language": "de"}), rows).answer == "passed"
    found = decide(AtLeast("row_correct", 0.1, where={"language": "fr"}), rows)
    assert (found.answer, found.n) == ("failed", 20)
    assert found.gate == "row_correct at least 0.1 where language is fr"


# Regressions.


def test_nine_broken_and_one_fixed_of_three_hundred_is_a_regression() -> None:
    before, after = runs(9, 1, 300)
    found = decide(NoWorse("row_correct", tolerance=0.02), after, baseline=before)
    assert (found.answer, found.outcome) == ("regressed", "fail")
    assert round(found.p or 0, 4) == 0.0215
    assert found.rows == tuple(f"{i:03}" for i in range(9))
    assert (found.before, found.value, found.limit) == pytest.approx((299 / 300, 291 / 300, 0.02))
    assert found.message == (
        "Worse beyond noise and beyond the tolerance: row_correct went from 99.7 % to 97.0 % (-2.7 points, "
        "95 % interval -5.3 points to -0.8 points; 9 rows worse, 1 better, p = 0.0215); 300 rows show a difference of "
        "3.0 points four times out of five, so that a tolerance of 2.0 points is finer than they can see."
    )


@pytest.mark.parametrize(
    ("broken", "fixed", "tolerance", "answer"),
    [
        (0, 0, 0.0, "not regressed"),
        (9, 1, 0.03, "cannot tell"),
        (9, 1, 0.06, "not regressed"),
        (5, 0, 0.0, "cannot tell"),
        (6, 0, 0.0, "regressed"),
        (6, 0, 0.02, "cannot tell"),
        (3, 3, 0.03, "not regressed"),
        (3, 3, 0.0, "cannot tell"),
        (0, 9, 0.0, "not regressed"),
    ],
)
def test_the_three_answers(broken: int, fixed: int, tolerance: float, answer: str) -> None:
    """Of 300 rows: significant and beyond the tolerance, surely within it, or neither."""
    before, after = runs(broken, fixed, 300)
    assert decided(NoWorse("row_correct", tolerance=tolerance), before, after)[0] == answer


@pytest.mark.parametrize(("choice", "outcome"), [("warn", "warn"), ("fail", "fail"), ("pass", "ok")])
def test_what_cannot_be_told_is_what_the_user_says(choice: Any, outcome: str) -> None:
    before, after = runs(3, 1, 50)
    assert decided(NoWorse("row_correct", on_inconclusive=choice), before, after) == ("cannot tell", outcome)
    lenient = NoWorse("row_correct", on_inconclusive=choice, severity="info")
    assert decided(lenient, before, after)[1] in ("info", "ok")


def test_nothing_changed_is_not_regressed_and_says_what_could_have_been_seen() -> None:
    rows, _ = runs(0, 0, 100)
    found = decide(NoWorse("row_correct"), rows, baseline=rows)
    assert (found.answer, found.p) == ("not regressed", 1.0)
    assert found.smallest_effect == pytest.approx(0.0785, abs=1e-4)
    assert "no row changed; 100 rows show a difference of 7.8 points" in found.message
    assert "finer than they can see" in found.message


def test_a_tolerance_that_so_many_rows_can_see_is_not_complained_of() -> None:
    before, after = runs(3, 3, 300)
    found = decide(NoWorse("row_correct", tolerance=0.05), after, baseline=before)
    assert "show a difference" in found.message
    assert "finer" not in found.message


@pytest.mark.parametrize("metric", ["failed", "cost_usd_per_row", "cost_usd", "latency_p50", "missed.name"])
def test_for_what_should_be_low_worse_is_more(metric: str) -> None:
    cheap = [costly(i, 1.0) for i in range(120)]
    dear = [costly(i, 2.0) for i in range(120)]
    assert decided(NoWorse(metric), cheap, dear)[0] == "regressed"
    assert decided(NoWorse(metric), dear, cheap)[0] == "not regressed"
    assert decided(NoWorse(metric), cheap, cheap)[0] == "not regressed"


def costly(row: int, times: float) -> Scored:
    """A row that costs, lasts, fails and misses more or less; rows differ."""
    fate = float(row % 4 < times)
    counts = VerdictCounts(right=1 - fate, score=1 - fate, match=1 - fate, missed=fate)
    own = times * (1 + row / 120)
    return scored(row, fields={"name": counts}, failed=fate, cost_usd=own, latency_s=own)


@pytest.mark.parametrize("metric", ["f1", "f1_macro", "precision.name", "right.name", "score.name", "accuracy"])
def test_rates_of_leaves_are_compared_too(metric: str) -> None:
    before, after = runs(40, 2, 300)
    assert decided(NoWorse(metric, tolerance=0.02), before, after)[0] == "regressed"
    assert decided(NoWorse(metric, tolerance=0.02), after, before)[0] == "not regressed"


def test_latencies_that_no_baseline_keeps_cannot_be_compared() -> None:
    rows = [scored(i, latency_s=1.0) for i in range(20)]
    kept = [dataclasses.replace(row, latency_s=None) for row in rows]
    assert decided(NoWorse("latency_p95"), kept, rows) == ("cannot tell", "warn")


def test_rows_missing_now_are_failures() -> None:
    before, after = runs(0, 0, 100)
    assert decided(NoWorse("row_correct"), before, after[9:]) == ("regressed", "fail")
    common = decide(NoWorse("row_correct"), after[9:], baseline=before, common_only=True)
    assert (common.answer, common.n) == ("not regressed", 91)


def test_rows_that_the_baseline_lacks_do_not_hide_those_that_broke() -> None:
    before, after = runs(9, 0, 300)
    new = [scored(i) for i in range(300, 330)]
    found = decide(NoWorse("row_correct"), [*after, *new], baseline=before)
    assert (found.answer, found.n) == ("regressed", 300)
    assert decide(NoWorse("row_correct"), new, baseline=[]).answer == "no baseline"


def shaky(dice: random.Random, rows: int, size: int) -> list[Scored]:
    """A run of rows of which some are always right, some are not, and some now and then; in clusters of this size."""
    fates = random.Random(99)
    right = []
    for _ in range(rows // size):
        moods = dice.random() if size > 1 else 0.5
        for _ in range(size):
            chance = fates.choice([1.0, 1.0, 1.0, 0.9, 0.6, 0.0])
            sure = chance if size == 1 else 1 - (1 - chance) * 2 * moods
            right.append(float(dice.random() < sure))
    return [scored(i, value, cluster=str(i // size) if size > 1 else None) for i, value in enumerate(right)]


@pytest.mark.parametrize(("count", "size"), [(1000, 1), (300, 5)])
def test_comparisons_of_a_process_with_itself_seldom_raise_an_alarm(count: int, size: int) -> None:
    """At most one in twenty and noise; without a tolerance, so that significance alone decides."""
    dice, gate = random.Random(20), NoWorse("row_correct")
    pairs = ((shaky(dice, 80, size), shaky(dice, 80, size)) for _ in range(count))
    answers = [decide(gate, after, baseline=before).answer for before, after in pairs]
    alarms = answers.count("regressed") / count
    assert alarms < 0.05 + 2 * math.sqrt(0.05 * 0.95 / count)
    assert answers.count("cannot tell") > count / 2


def test_comparisons_of_an_f1_with_itself_seldom_raise_an_alarm() -> None:
    dice, gate = random.Random(21), NoWorse("f1")
    answers = [decide(gate, shaky(dice, 60, 1), baseline=shaky(dice, 60, 1)).answer for _ in range(60)]
    assert answers.count("regressed") <= 5


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 15), st.integers(0, 15), st.integers(1, 60), st.floats(0, 0.2))
def test_more_tolerance_never_makes_an_answer_worse(broken: int, fixed: int, same: int, tolerance: float) -> None:
    before, after = runs(broken, fixed, broken + fixed + same)
    order = ["regressed", "cannot tell", "not regressed"]
    strict = decided(NoWorse("row_correct", tolerance=tolerance), before, after)[0]
    lenient = decided(NoWorse("row_correct", tolerance=tolerance + 0.1), before, after)[0]
    assert order.index(lenient) >= order.index(strict)


# Golden rows.


def golden(rows: Sequence[Scored], count: int) -> list[Scored]:
    return [dataclasses.replace(row, slices={"tier": "golden" if i < count else "rest"}) for i, row in enumerate(rows)]


def test_a_golden_row_that_broke_fails_the_gate_and_is_named() -> None:
    before, after = (golden(rows, 10) for rows in runs(2, 1, 40))
    found = decide(NeverBreak(where={"tier": "golden"}), after, baseline=before)
    assert (found.answer, found.outcome, found.rows, found.n) == ("failed", "fail", ("000", "001"), 10)
    assert found.message == "2 of 9 rows that were right in the baseline broke: 000, 001."
    rest = decide(NeverBreak(where={"tier": "rest"}), after, baseline=before)
    assert (rest.answer, rest.rows, rest.n) == ("passed", (), 30)


def test_a_golden_row_that_is_missing_now_is_broken() -> None:
    before, after = (golden(rows, 10) for rows in runs(0, 0, 40))
    found = decide(NeverBreak(where={"tier": "golden"}), after[1:], baseline=before)
    assert (found.answer, found.rows) == ("failed", ("000",))


def test_a_golden_row_that_was_wrong_before_may_stay_so() -> None:
    rows = golden([scored(i, 0.0) for i in range(5)], 5)
    assert decided(NeverBreak(where={"tier": "golden"}), rows, rows) == ("passed", "ok")


def test_many_broken_rows_are_all_told_but_not_all_in_the_sentence() -> None:
    before, after = runs(30, 0, 40)
    found = decide(NeverBreak(), after, baseline=before)
    assert len(found.rows) == 30
    assert found.message.endswith("000, 001, 002, 003, 004 and 25 more.")


@pytest.mark.parametrize("baseline", [None, []])
def test_without_a_baseline_the_gates_that_need_one_warn(baseline: list[Scored] | None) -> None:
    _, after = runs(2, 0, 20)
    worse, broken = (decide(gate, after, baseline=baseline) for gate in (NoWorse("row_correct"), NeverBreak()))
    assert (worse.answer, worse.outcome, worse.value) == ("no baseline", "warn", 0.9)
    assert (broken.answer, broken.outcome, broken.rows) == ("no baseline", "warn", ("000", "001"))
    assert broken.message == "There is no baseline to compare with; 2 of 20 rows wrong now: 000, 001."


# Never green.


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate.name)
def test_no_gate_passes_without_rows(gate: Gate) -> None:
    with pytest.raises(NothingToDo, match="no row was scored"):
        decide(gate, [], baseline=[scored(1)])


@pytest.mark.parametrize("baseline", [True, False])
@pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate.name)
def test_no_gate_passes_when_no_row_meets_it(gate: Gate, baseline: bool) -> None:  # noqa: FBT001 - a parameter of the test
    rows = [scored(i, slices={"tier": "silver"}) for i in range(9)]
    with pytest.raises(UsageError, match=r"where tier is golden.*no row meets it"):
        decide(dataclasses.replace(gate, where={"tier": "golden"}), rows, baseline=rows if baseline else None)


# Gates as they are written.


@pytest.mark.parametrize(
    ("write", "complaint"),
    [
        (lambda: AtLeast("row_correct", 90), "between 0 and 1 .write 0.9"),
        (lambda: AtLeast("row_corect", 0.9), "did you mean 'row_correct'"),
        (lambda: AtLeast("row_correct", math.nan), "between 0 and 1"),
        (lambda: AtMost("cost_usd", -1.0), "finite number of at least 0"),
        (lambda: AtMost("cost_usd", math.inf), "finite number of at least 0"),
        (lambda: AtLeast("f1", 0.9, on="upper"), "on is one of value, lower, not 'upper'"),  # type: ignore[arg-type] # wrong on purpose
        (lambda: AtMost("failed", 0.1, severity="error"), "severity is one of fail, warn, info"),  # type: ignore[arg-type] # wrong on purpose
        (lambda: NoWorse("row_correct", tolerance=2.0), "below 1 for a share .0.02 is two points"),
        (lambda: NoWorse("row_correct", tolerance=-0.1), "0 or more"),
        (lambda: NoWorse("row_correct", alpha=5.0), "alpha is a chance"),
        (lambda: NoWorse("f1", on_inconclusive="more"), "on_inconclusive is one of"),  # type: ignore[arg-type] # wrong on purpose
        (lambda: NeverBreak(where={}), "`where` maps slices"),
        (lambda: NeverBreak(where={"tier": 1}), "as text"),  # type: ignore[dict-item] # the same
    ],
)
def test_a_gate_that_makes_no_sense_is_refused_when_it_is_written(write: Callable[[], Gate], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        write()


def test_what_no_run_could_decide_is_found_before_any_call() -> None:
    check([*GATES, AtLeast("right.name", 0.9), AtLeast("pass_hat_3", 0.5)], ["name"], repeats=3)
    with pytest.raises(UsageError, match="no field 'nmae'; did you mean 'name'"):
        check([NoWorse("f1.nmae")], ["name", "date"])
    with pytest.raises(UsageError, match="needs 3 repeats, and there are 2"):
        check([AtLeast("pass_at_3", 0.5)], ["name"], repeats=2)
    with pytest.raises(UsageError, match="is given 2 times"):
        check([NeverBreak(), NeverBreak()], ["name"])


def test_gates_have_names_of_one_line() -> None:
    assert [gate.name for gate in GATES] == [
        "row_correct at least 0.5",
        "failed at most 0.5",
        "row_correct no worse (tolerance 0)",
        "no broken row",
    ]
    assert AtMost("cost_usd_per_row", 0.004, on="upper").name == "cost_usd_per_row at most 0.004 (upper end)"
    assert (
        NeverBreak({"tier": "golden", "language": "de"}).name == "no broken row where tier is golden and language is de"
    )


def test_a_decision_is_the_same_every_time() -> None:
    before, after = runs(9, 4, 80)
    found: list[Decision] = [decide(NoWorse("f1"), rows, baseline=before) for rows in (after, after[::-1])]
    assert found[0] == found[1]
