"""The figures of a run: named, counted as their definitions say, with intervals, and never made up."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pipeline.evaluation.graders.verdicts import Scored, VerdictCounts
from pipeline.evaluation.stats.intervals import wilson
from pipeline.evaluation.stats.metrics import measure, metric_of
from pipeline.faults import UsageError


def scored(row: int, correct: float = 1.0, **more: Any) -> Scored:
    right = VerdictCounts(right=correct, score=correct, match=correct, wrong=1 - correct)
    return Scored(row=f"{row:03}", correct=correct, **{"fields": {"name": right}, **more})


def of_counts(*counts: VerdictCounts) -> list[Scored]:
    return [scored(i, fields={"name": each}) for i, each in enumerate(counts)]


LEAVES = of_counts(
    VerdictCounts(right=0, score=0.5, match=3, wrong=1, missed=1, invented=2),
    VerdictCounts(right=1, score=1, match=2, empty=4),
    VerdictCounts(right=0, score=0, failed=3),
)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accuracy", 9 / 16),
        ("precision", 5 / 8),
        ("recall", 5 / 10),
        ("f1", 10 / 18),
        ("f1_macro", 10 / 18),
        ("precision.name", 5 / 8),
        ("missed.name", 1 / 10),
        ("invented.name", 2 / 8),
        ("right.name", 1 / 3),
        ("score.name", 0.5),
    ],
)
def test_every_rate_is_counted_over_the_leaves_as_its_definition_says(name: str, value: float) -> None:
    found = measure(name, LEAVES)
    assert found.value == pytest.approx(value)
    assert 0 <= found.low <= value <= found.high <= 1
    assert found.n == 3


def test_the_macro_f1_is_the_mean_over_the_fields_that_have_one() -> None:
    fields = {
        "a": VerdictCounts(right=1, score=1, match=2),
        "b": VerdictCounts(right=0, score=0, match=1, wrong=1),
        "c": VerdictCounts(right=1, score=1, empty=1),
    }
    rows = [scored(i, fields=fields) for i in range(4)]
    assert measure("f1_macro", rows).value == pytest.approx((1 + 0.5) / 2)
    assert measure("f1", rows).value == pytest.approx(6 / 8)


def test_a_share_of_rows_has_the_interval_of_wilson() -> None:
    rows = [scored(i, float(i >= 30)) for i in range(300)]
    found = measure("row_correct", rows)
    assert (found.value, found.low, found.high) == (0.9, *wilson(270, 300))
    assert measure("right.name", rows).low == found.low


def test_rows_without_an_answer_lower_the_share_of_valid_ones() -> None:
    rows = [scored(i, 0.0, failed=float(i < 5)) for i in range(20)]
    assert measure("failed", rows).value == 0.25
    assert measure("schema_valid", rows).value == 0.75


def test_rows_of_a_cluster_make_every_interval_wider() -> None:
    alone = [scored(i, float(i % 40 >= 10)) for i in range(400)]
    together = [scored(i, float(i % 40 >= 10), cluster=str(i % 40)) for i in range(400)]
    for name in ("row_correct", "f1", "precision.name"):
        plain, wide = measure(name, alone), measure(name, together)
        assert wide.high - wide.low > 2 * (plain.high - plain.low)
        assert wide.value == plain.value


def test_a_row_without_a_cluster_is_one_of_its_own() -> None:
    rows = [scored(i, float(i % 4 > 0), cluster="first" if i < 2 else None) for i in range(100)]
    assert measure("row_correct", rows).low == pytest.approx(measure("row_correct", rows[:0] + rows).low)
    assert measure("row_correct", rows).low > 0.6


@pytest.mark.parametrize("name", ["row_correct", "f1", "f1_macro", "score.name", "precision"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_few_perfect_rows_prove_little(name: str, count: int) -> None:
    """An interval without spread is that of a share, not a point."""
    found = measure(name, [scored(i) for i in range(count)])
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(wilson(count, count).low)


def test_costs_are_means_and_sums_with_students_interval() -> None:
    rows = [scored(i, cost_usd=0.001 * (1 + i % 3)) for i in range(30)]
    a_row, whole = measure("cost_usd_per_row", rows), measure("cost_usd", rows)
    assert a_row.value == pytest.approx(0.002)
    assert (whole.value, whole.low, whole.high) == pytest.approx((0.06, 30 * a_row.low, 30 * a_row.high))
    assert measure("cost_usd_per_row", rows[:1]).high == math.inf


@pytest.mark.parametrize("name", ["cost_usd", "cost_usd_per_row"])
def test_an_unknown_price_makes_the_cost_unknown_and_not_zero(name: str) -> None:
    rows = [scored(i, cost_usd=None if i == 3 else 0.001) for i in range(10)]
    found = measure(name, rows)
    assert found.value is None
    assert found.why == "1 of 10 rows are without a known price"


def test_latencies_are_quantiles_of_the_rows_that_have_one() -> None:
    rows = [scored(i, latency_s=float(i + 1) if i < 100 else None) for i in range(110)]
    assert [measure(f"latency_p{q}", rows).value for q in (50, 95, 99)] == [50, 95, 99]
    found = measure("latency_p50", rows)
    assert 35 < found.low < 50 < found.high < 65
    assert measure("latency_p95", [scored(1)]).why == "no latency is known"


def test_pass_at_k_and_pass_hat_k_are_told_from_the_repeats() -> None:
    rows = [scored(i, 0.5, repeats=4, repeats_right=2) for i in range(8)]
    assert measure("pass_at_2", rows).value == pytest.approx(1 - 1 / 6)
    assert measure("pass_hat_2", rows).value == pytest.approx(1 / 6)
    assert measure("pass_at_5", rows).why == "8 of 8 rows are without 5 repeats"
    assert measure("pass_at_1", [scored(1), scored(2, 0.0)]).value == 0.5


def test_a_share_of_nothing_is_not_told() -> None:
    found = measure("precision", of_counts(VerdictCounts(right=0, score=0, missed=1)))
    assert (found.value, found.why) == (None, "there is nothing to count")
    assert measure("row_correct", []).why == "there are no rows"


def test_the_same_rows_give_the_same_figures_in_any_order() -> None:
    assert measure("f1", LEAVES) == measure("f1", LEAVES[::-1])


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("row_corect", "row_correct"),
        ("f2", "f1"),
        ("rihgt.name", "right.name"),
        ("right", "write right.FIELD"),
        ("latency_p95s", "latency_p95"),
        ("pass_at_0", "pass_at"),
        ("f1.", "f1"),
    ],
)
def test_a_metric_that_is_not_known_is_a_mistake_and_the_nearest_is_named(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        metric_of(name)


def test_a_field_that_no_row_has_is_a_mistake() -> None:
    with pytest.raises(UsageError, match=r"no field 'nam'.*name"):
        measure("right.nam", LEAVES)


def test_lower_is_better_for_what_costs_and_what_fails() -> None:
    names = ["failed", "missed.a", "invented.a", "cost_usd", "cost_usd_per_row", "latency_p95"]
    assert all(metric_of(name).lower_is_better for name in names)
    assert not any(metric_of(name).lower_is_better for name in ("row_correct", "f1.a", "schema_valid", "pass_at_2"))
