"""Two runs over the same rows: nothing is dropped, every change is named, and noise is not reported as change."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.comparison import MetricChange, change, compare, join
from pipeline.evaluation.graders.verdicts import Scored, VerdictCounts
from pipeline.evaluation.stats.paired_tests import sign_flip, tango
from pipeline.evaluation.stats.power import smallest_effect
from pipeline.faults import NothingToDo, UsageError
from tests.scores import mcnemar, runs, scored


def changed(metric: str, before: Sequence[Scored], after: Sequence[Scored], **more: Any) -> MetricChange:
    return change(metric, join(before, after), **more)


def test_nine_broken_and_one_fixed_of_three_hundred_are_significant() -> None:
    before, after = runs(9, 1, 300)
    found = compare(before, after)
    assert round(found.overall.p, 4) == 0.0215
    assert found.overall.difference == pytest.approx(-8 / 300)
    assert (found.overall.low, found.overall.high) == tango(9, 1, 300)
    assert found.overall.smallest_effect == pytest.approx(smallest_effect(300, 10 / 300))
    assert found.broken == tuple(f"{i:03}" for i in range(9))
    assert found.fixed == ("009",)
    assert (found.overall.worse, found.overall.better, found.overall.changed) == (9, 1, 10)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 12), st.integers(0, 12), st.integers(1, 30))
def test_every_change_is_named_once_and_tested_exactly(broken: int, fixed: int, same: int) -> None:
    before, after = runs(broken, fixed, broken + fixed + same)
    found = compare(before, after)
    assert (len(found.broken), len(found.fixed)) == (broken, fixed)
    assert found.overall.p == found.fields[0].p == pytest.approx(mcnemar(broken, fixed))
    turned = compare(after, before)
    assert (turned.broken, turned.fixed) == (found.fixed, found.broken)
    assert turned.overall.p == pytest.approx(found.overall.p)


def test_the_order_of_rows_does_not_matter() -> None:
    before, after = runs(5, 2, 60, slices={"language": "de"})
    shuffled = random.Random(1).sample(after, len(after))
    assert compare(before[::-1], shuffled) == compare(before, after)


def test_a_row_that_one_run_lacks_has_failed_there() -> None:
    before, after = runs(0, 0, 30)
    found = compare(before, after[3:])
    assert found.missing_after == found.broken == ("000", "001", "002")
    assert (found.rows, found.overall.difference) == pytest.approx((30, -0.1))
    assert found.rates[0].difference is not None
    assert found.rates[0].difference < 0
    assert compare(before[3:], after).fixed == compare(before[3:], after).missing_before == found.broken


def test_only_common_rows_are_compared_when_that_is_asked() -> None:
    before, after = runs(0, 0, 30)
    found = compare(before, after[3:], common_only=True)
    assert (found.rows, found.broken, found.overall.changed) == (27, (), 0)
    assert found.missing_after == ("000", "001", "002")


def test_nothing_is_never_compared() -> None:
    with pytest.raises(NothingToDo):
        compare([], [])
    with pytest.raises(NothingToDo, match="in common"):
        compare([scored(1)], [scored(2)], common_only=True)


def test_a_row_that_is_there_twice_is_a_mistake() -> None:
    with pytest.raises(UsageError, match="the later run has the row '001' more than once"):
        compare([scored(1)], [scored(1), scored(1)])


def test_slices_are_compared_apart_and_those_too_small_are_named() -> None:
    before, after = runs(8, 0, 60)
    languages = ["de" if i < 20 else "fr" if i < 55 else "it" for i in range(60)]
    before, after = (
        [dataclasses.replace(row, slices={"language": name}) for row, name in zip(rows, languages, strict=True)]
        for rows in (before, after)
    )
    found = compare(before, after)
    assert [(one.where["language"], one.rows, one.worse) for one in found.slices] == [("de", 20, 8), ("fr", 35, 0)]
    assert [(one.name, one.value, one.rows) for one in found.too_small] == [("language", "it", 5)]
    assert found.slices[0].p == pytest.approx(mcnemar(8, 0))


def test_the_q_values_allow_for_all_fields_and_slices() -> None:
    """The field and one slice of three tests have p = 0.0078: each is adjusted to 3/2 of it."""
    before, after = runs(8, 0, 60, slices={"language": "de"})
    before = [dataclasses.replace(row, slices={"language": "de" if i < 30 else "fr"}) for i, row in enumerate(before)]
    after = [dataclasses.replace(row, slices={"language": "de" if i < 30 else "fr"}) for i, row in enumerate(after)]
    found = compare(before, after)
    assert [one.q for one in (*found.fields, *found.slices)] == pytest.approx([3 / 256, 3 / 256, 1.0])
    assert found.overall.q is None


def test_clusters_make_a_difference_less_sure() -> None:
    before, after = runs(10, 0, 100)
    labels = [str(i // 10) for i in range(100)]
    grouped = [
        [dataclasses.replace(row, cluster=label) for row, label in zip(rows, labels, strict=True)]
        for rows in (before, after)
    ]
    found = compare(*grouped)
    assert found.clusters == 10
    assert found.overall.p == sign_flip([-1.0] * 10 + [0.0] * 90, labels) == 1.0
    assert found.overall.high > 0 > compare(before, after).overall.high
    assert found.overall.smallest_effect > compare(before, after).overall.smallest_effect


def test_the_difference_of_an_f1_has_a_paired_interval_and_a_test() -> None:
    before, after = runs(30, 5, 200)
    found = compare(before, after).rates[0]
    assert found.metric == "f1.name"
    assert found.difference == pytest.approx(-25 / 200)
    assert found.low < -25 / 200 < found.high < 0
    assert found.p < 0.001
    assert (found.worse, found.better, found.changed) == (30, 5, 35)


def test_an_f1_that_did_not_change_is_as_sure_as_its_rows() -> None:
    before, after = runs(0, 0, 200)
    found = compare(before, after).rates[0]
    assert (found.difference, found.p, found.changed) == (0.0, 1.0, 0)
    assert (found.low, found.high) == tango(0, 0, 200)


def test_fewer_missed_values_are_better() -> None:
    missed, given_ = VerdictCounts(right=0, score=0, missed=1), VerdictCounts(right=1, score=1, match=1)
    before = [scored(i, fields={"name": missed if i < 12 else given_}) for i in range(40)]
    after = [scored(i, fields={"name": given_}) for i in range(40)]
    found = changed("missed.name", before, after)
    assert (found.difference, found.better, found.worse) == pytest.approx((-0.3, 12, 0))
    assert found.p < 0.01


def test_costs_and_latencies_are_compared_over_the_rows_that_both_runs_have() -> None:
    dice = random.Random(3)
    before = [scored(i, cost_usd=0.001 * dice.uniform(1, 2), latency_s=dice.lognormvariate(0, 1)) for i in range(200)]
    after = [
        dataclasses.replace(row, cost_usd=(row.cost_usd or 0) + 0.0005, latency_s=3 * (row.latency_s or 0))
        for row in before[20:]
    ]
    cost, latency = changed("cost_usd_per_row", before, after), changed("latency_p50", before, after)
    assert (cost.rows, cost.worse, cost.difference) == pytest.approx((180, 180, 0.0005))
    assert cost.low == pytest.approx(0.0005)
    assert latency.worse == latency.rows == 180
    assert latency.p < 0.001
    assert latency.low < (latency.difference or 0) < latency.high
    assert changed("cost_usd", before, after).difference == pytest.approx(180 * 0.0005)


def test_an_unknown_price_leaves_a_cost_uncompared() -> None:
    before, after = [scored(i, cost_usd=0.1) for i in range(9)], [scored(i) for i in range(9)]
    found = changed("cost_usd", before, after)
    assert (found.difference, found.why) == (None, "9 of 9 rows are without a known price")


def test_a_field_that_the_earlier_run_lacks_is_told_and_left_out() -> None:
    before, after = runs(1, 1, 20)
    later = [dataclasses.replace(row, fields={**row.fields, "date": row.fields["name"]}) for row in after]
    assert compare(before, later).one_sided == ("date",)
    assert [one.metric for one in compare(before, later).fields] == ["right.name"]
    assert changed("right.date", before, later).why == "the earlier run has no field 'date'"
    with pytest.raises(UsageError, match="no field 'dat'"):
        changed("right.dat", before, later)


def test_rows_whose_repeats_disagree_are_named() -> None:
    before, after = runs(0, 0, 12)
    after[4] = dataclasses.replace(after[4], correct=2 / 3, flaky=True)
    found = compare(before, after)
    assert found.flaky == ("004",)
    assert (found.broken, found.overall.changed) == ((), 1)


def test_what_a_baseline_rounds_is_not_a_change() -> None:
    before = [scored(i, round(i % 4 / 3, 6), cost_usd=round(i / 7e6, 8)) for i in range(40)]
    after = [scored(i, i % 4 / 3, cost_usd=i / 7e6) for i in range(40)]
    assert changed("row_correct", before, after).changed == 0
    assert changed("cost_usd", before, after).changed == 0
    assert changed("f1", before, after).changed == 0
