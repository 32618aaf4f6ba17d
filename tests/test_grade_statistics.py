"""Statistics agree with published examples, with scipy and statsmodels, and intervals cover what they promise."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.evaluation.stats.intervals import (
    Interval,
    bca,
    benjamini_hochberg,
    effective_size,
    mean_interval,
    pass_at_k,
    pass_hat_k,
    quantile,
    quantile_interval,
    share_interval,
    t_interval,
    wilson,
)
from pipeline.evaluation.stats.paired_tests import (
    difference_interval,
    paired_interval,
    sign_flip,
    swap_test,
    tango,
)
from pipeline.evaluation.stats.power import smallest_effect
from tests.scores import mcnemar

Numbers = NDArray[np.float64]

CHECKS = st.lists(st.sampled_from([0.0, 1.0]), max_size=40)
SCORES = st.lists(st.floats(0, 1), max_size=20)
FLIPS = st.lists(st.sampled_from([-1.0, 0.0, 1.0]), max_size=12)
GROUPED = st.lists(st.tuples(st.sampled_from([-1.0, 0.0, 1.0]), st.integers(0, 4)), max_size=12)


def mean(totals: Numbers) -> Numbers:
    """Of the first column, the second being ones."""
    found: Numbers = totals[..., 0] / totals[..., 1]
    return found


def f1(totals: Numbers) -> Numbers:
    """Of columns of matches, wrong ones and missed ones."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Numbers = 2 * totals[..., 0] / (2 * totals[..., 0] + 2 * totals[..., 1] + totals[..., 2])
    return found


def with_ones(values: Sequence[float]) -> list[tuple[float, float]]:
    return [(value, 1.0) for value in values]


def rounded(interval: Interval, digits: int = 4) -> tuple[float, float]:
    return round(interval.low, digits), round(interval.high, digits)


# One share.


@pytest.mark.parametrize(
    ("successes", "n", "published"),
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611)), (1, 29, (0.0061, 0.1718))],
)
def test_wilson_gives_the_intervals_that_newcombe_published(
    successes: int, n: int, published: tuple[float, float]
) -> None:
    """Newcombe 1998, Statistics in Medicine 17:857, table I, method 3."""
    assert rounded(wilson(successes, n)) == published


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_wilson_agrees_with_scipy(counts: tuple[int, int], level: float) -> None:
    found = scipy.stats.binomtest(*counts).proportion_ci(level, method="wilson")
    assert wilson(*counts, level) == pytest.approx((found.low, found.high), abs=1e-12)


@pytest.mark.parametrize("n", [30, 100, 300])
def test_wilson_covers_95_percent_of_the_time_on_the_average_of_all_shares(n: int) -> None:
    """Counted exactly over all outcomes: Agresti and Coull 1998 found the same."""
    intervals = [wilson(k, n) for k in range(n + 1)]

    def coverage(p: float) -> float:
        covering = [k for k, interval in enumerate(intervals) if interval.low <= p <= interval.high]
        return float(np.sum(scipy.stats.binom.pmf(covering, n, p)))

    found = [coverage(p) for p in np.linspace(0.02, 0.98, 193)]
    assert np.mean(found) == pytest.approx(0.95, abs=0.006)
    assert min(found) > 0.92


@given(CHECKS)
def test_a_share_in_which_every_row_is_its_own_cluster_has_the_interval_of_wilson(values: list[float]) -> None:
    assert share_interval(values, range(len(values))) == pytest.approx(wilson(sum(values), len(values)))
    assert share_interval(values) == mean_interval(values)


@given(SCORES, st.data())
def test_an_interval_of_a_mean_is_always_told_and_holds_the_mean(values: list[float], data: st.DataObject) -> None:
    """Whatever the sample: empty, one row, one cluster, all alike."""
    clusters = data.draw(st.none() | st.lists(st.integers(0, 3), min_size=len(values), max_size=len(values)))
    low, high = mean_interval(values, clusters)
    assert 0 <= low <= high <= 1
    if values:
        assert low - 1e-9 <= math.fsum(values) / len(values) <= high + 1e-9


def test_without_rows_or_with_one_cluster_every_share_is_possible() -> None:
    assert wilson(0, 0) == share_interval([]) == mean_interval([]) == (0, 1)
    assert share_interval([1, 0, 1], ["a", "a", "a"]) == (0, 1)


def test_rows_that_are_copies_of_one_another_count_as_one() -> None:
    """Whole clusters right or wrong: a design effect of their size, and Student's distribution of the clusters."""
    values, clusters = (
        [float(i % 4 > 0) for i in range(40) for _ in range(10)],
        [i for i in range(40) for _ in range(10)],
    )
    assert 36 < effective_size(values, clusters) < 40
    assert 36 < effective_size([1.0] * 400, clusters) < 40
    assert effective_size(values) == 400


def clustered(dice: random.Random, share: float, alike: float, clusters: int, size: int) -> list[float]:
    """Rows of clusters whose own shares are beta-distributed, with this intra-cluster correlation."""
    a = share * (1 - alike) / alike
    b = (1 - share) * (1 - alike) / alike
    shares = [dice.betavariate(a, b) for _ in range(clusters)]
    return [float(dice.random() < own) for own in shares for _ in range(size)]


@pytest.mark.parametrize(("share", "alike"), [(0.9, 0.1), (0.9, 0.5), (0.7, 0.3)])
def test_the_clustered_interval_of_a_share_covers_it_and_the_plain_one_does_not(share: float, alike: float) -> None:
    dice, labels = random.Random(7), [i for i in range(40) for _ in range(8)]
    samples = [clustered(dice, share, alike, 40, 8) for _ in range(500)]
    assert covered(share, [share_interval(sample, labels) for sample in samples]) > 0.92
    assert covered(share, [share_interval(sample) for sample in samples]) < 0.90


def covered(truth: float, intervals: Sequence[Interval]) -> float:
    return sum(low <= truth <= high for low, high in intervals) / len(intervals)


# One mean, one quantile.


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=20))
def test_students_interval_agrees_with_scipy(values: list[float]) -> None:
    assume(np.ptp(values) > 1e-6)
    found = scipy.stats.t.interval(0.95, len(values) - 1, np.mean(values), scipy.stats.sem(values))
    assert t_interval(values) == pytest.approx(found, rel=1e-6, abs=1e-9)


def test_students_interval_agrees_with_statsmodels() -> None:
    """DescrStatsW(values).tconfint_mean() of statsmodels 0.14; OLS(...).fit(cov_type="cluster") for the clusters."""
    assert t_interval([3.1, 2.4, 5.0, 4.2, 3.3, 2.8]) == pytest.approx((2.456442904135278, 4.476890429198056))
    checks, clusters = [1, 0, 1, 1, 0, 1, 1, 1, 0, 0, 1, 1], [0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 4]
    assert rounded(t_interval(checks, clusters), 5) == (0.49421, 0.83912)


def test_a_mean_of_fewer_than_two_units_may_be_anything() -> None:
    assert t_interval([]) == t_interval([3.0]) == t_interval([1, 2, 3], ["a"] * 3) == (-math.inf, math.inf)
    assert t_interval([2.0, 2.0]) == (2.0, 2.0)


def test_a_quantile_is_a_value_of_the_sample() -> None:
    values = [float(i) for i in range(1, 101)]
    assert [quantile(values, q) for q in (0.5, 0.95, 0.99)] == [50, 95, 99]
    assert quantile([7.0], 0.95) == 7.0


def test_the_interval_of_a_quantile_covers_it_whether_rows_come_in_clusters_or_not() -> None:
    dice, labels = random.Random(3), [i for i in range(60) for _ in range(5)]
    truth = math.exp(scipy.stats.norm.ppf(0.9) * math.sqrt(2))
    alone = [[math.exp(math.sqrt(2) * dice.gauss(0, 1)) for _ in range(300)] for _ in range(300)]
    both = [[math.exp(own + dice.gauss(0, 1)) for own in own_of(dice) for _ in range(5)] for _ in range(300)]
    assert covered(truth, [quantile_interval(sample, 0.9) for sample in alone]) > 0.92
    assert covered(truth, [quantile_interval(sample, 0.9, labels) for sample in both]) > 0.92
    assert covered(truth, [quantile_interval(sample, 0.9) for sample in both]) < 0.92


def own_of(dice: random.Random) -> list[float]:
    return [dice.gauss(0, 1) for _ in range(60)]


def test_the_ends_of_a_quantile_beyond_the_sample_are_infinite() -> None:
    assert quantile_interval([], 0.5) == (-math.inf, math.inf)
    assert quantile_interval([1.0, 2.0, 3.0], 0.95).high == math.inf


# The bootstrap.

SPATIAL = [48, 36, 20, 29, 42, 42, 20, 42, 22, 41, 45, 14, 6, 0, 33, 28, 34, 4, 32, 24, 47, 41, 24, 26, 30, 41]
LSAT = [576, 635, 558, 578, 666, 580, 555, 661, 651, 605, 653, 575, 545, 572, 594]
GPA = [3.39, 3.30, 2.81, 3.03, 3.44, 3.07, 3.00, 3.43, 3.36, 3.13, 3.12, 2.74, 2.76, 2.88, 2.96]


def variance(totals: Numbers) -> Numbers:
    found: Numbers = totals[..., 2] / totals[..., 0] - (totals[..., 1] / totals[..., 0]) ** 2
    return found


def correlation(totals: Numbers) -> Numbers:
    n, x, y, xx, yy, xy = (totals[..., i] for i in range(6))
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Numbers = (n * xy - x * y) / np.sqrt((n * xx - x * x) * (n * yy - y * y))
    return found


def test_bca_gives_the_interval_that_efron_and_tibshirani_published_for_a_variance() -> None:
    """An Introduction to the Bootstrap (1993), table 14.2: the spatial test data, 2000 draws: (115.8, 259.6)."""
    low, high = bca([(1, a, a * a) for a in SPATIAL], variance, level=0.90, draws=20_000)
    assert low == pytest.approx(115.8, abs=2)
    assert high == pytest.approx(259.6, abs=3)


def test_bca_agrees_with_scipy_on_the_law_schools() -> None:
    rows = [(1, x, y, x * x, y * y, x * y) for x, y in zip(LSAT, GPA, strict=True)]
    ours = bca(rows, correlation, draws=20_000)
    with np.errstate(divide="ignore", invalid="ignore"):
        theirs = scipy.stats.bootstrap(
            (LSAT, GPA),
            lambda x, y, axis: correlation(
                np.stack(
                    [np.full(x.shape[:-1], float(x.shape[-1])), *(v.sum(axis) for v in (x, y, x * x, y * y, x * y))],
                    axis=-1,
                )
            ),
            paired=True,
            n_resamples=20_000,
            rng=np.random.default_rng(1),
        ).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.02)


@pytest.mark.parametrize("count", [30, 400])
def test_bca_of_a_mean_agrees_with_scipy(count: int) -> None:
    """Few different rows among many are drawn in another way than rows that all differ."""
    dice = random.Random(2)
    values = [float(dice.choice([0, 0, 1, 2, 9])) for _ in range(count)]
    theirs = scipy.stats.bootstrap((values,), np.mean, n_resamples=9_999, rng=np.random.default_rng(3))
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    found = bca(with_ones(values), mean, draws=9_999)
    assert found == pytest.approx((theirs.confidence_interval.low, theirs.confidence_interval.high), abs=0.04 * width)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), max_size=8), st.data())
def test_bca_is_always_told_and_does_not_mind_the_order_of_rows(
    rows: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    clusters = data.draw(st.none() | st.lists(st.integers(0, 2), min_size=len(rows), max_size=len(rows)))
    found = bca(rows, f1, clusters, draws=200)
    assert found.low <= found.high
    backwards = None if clusters is None else clusters[::-1]
    assert bca(rows[::-1], f1, backwards, draws=200) == found


def test_bca_of_rows_that_are_all_alike_has_no_width_and_of_fewer_than_two_says_nothing() -> None:
    assert bca(with_ones([2.0] * 5), mean) == (2.0, 2.0)
    nothing = (-math.inf, math.inf)
    assert bca([], mean) == bca(with_ones([2.0]), mean) == bca(with_ones([1, 2]), mean, ["a", "a"]) == nothing
    assert bca([(0, 0, 0)] * 3, f1) == nothing


def test_bca_covers_an_f1_whether_rows_come_in_clusters_or_not() -> None:
    """Matches are drawn with a chance of 0.8 that clusters share, so that f1 is 0.8 in the long run."""
    dice, labels = random.Random(11), [i for i in range(40) for _ in range(4)]
    samples = [extractions(dice) for _ in range(250)]
    truth = 2 * 0.8 / (2 * 0.8 + 2 * 0.1 + 0.1)
    assert covered(truth, [bca(sample, f1, labels, draws=499) for sample in samples]) > 0.91
    assert covered(truth, [bca(sample, f1, draws=499) for sample in samples]) < 0.91


def extractions(dice: random.Random) -> list[tuple[int, int, int]]:
    rows = []
    for _ in range(40):
        own = dice.betavariate(1.6, 0.4)
        for _ in range(4):
            wrong = dice.random() < 0.5
            right = dice.random() < own
            rows.append((int(right), int(not right and wrong), int(not right and not wrong)))
    return rows


# Pairs.


@pytest.mark.parametrize(
    ("broken", "fixed", "p"),
    [(9, 1, 0.021484375), (7, 1, 0.0703125), (16, 6, 0.052478790283203125), (121, 59, 4.4344492637551645e-06)],
)
def test_single_rows_make_the_sign_flip_test_mcnemars_as_statsmodels_and_published_tables_have_it(
    broken: int, fixed: int, p: float
) -> None:
    """mcnemar(table, exact=True).pvalue of statsmodels 0.14; 7 and 1 are Bentur's airways (Fagerland et al. 2013)."""
    worse, better = [-1.0] * broken, [1.0] * fixed
    assert sign_flip(worse + better) == sign_flip(better + worse) == pytest.approx(p, rel=1e-12)


@given(st.integers(0, 60), st.integers(0, 60))
def test_single_rows_make_the_sign_flip_test_mcnemars_as_scipy_has_it(broken: int, fixed: int) -> None:
    p = mcnemar(broken, fixed)
    differences = [-1.0] * broken + [0.0] * 5 + [1.0] * fixed
    assert sign_flip(differences) == pytest.approx(p)
    assert sign_flip(differences, range(len(differences))) == pytest.approx(p)


@given(GROUPED)
def test_the_clustered_test_counts_every_flip_of_whole_clusters(rows: list[tuple[float, int]]) -> None:
    differences, clusters = [row[0] for row in rows], [row[1] for row in rows]
    sums = [sum(d for d, c in rows if c == cluster) for cluster in set(clusters)]
    flips = [abs(sum(s * x for s, x in zip(signs, sums, strict=True))) for signs in product((-1, 1), repeat=len(sums))]
    expected = sum(flip >= abs(sum(sums)) for flip in flips) / len(flips)
    assert sign_flip(differences, clusters) == pytest.approx(expected)


def test_means_of_repeats_are_tested_exactly_too() -> None:
    thirds = [-1 / 3, -2 / 3, 1 / 3, -1, 0, -1 / 3, 2 / 3, -1, -1, -1 / 3]
    theirs = scipy.stats.permutation_test(
        (thirds, np.zeros(10)), lambda x, y, axis: np.mean(x - y, axis), permutation_type="samples", n_resamples=2**11
    )
    assert sign_flip(thirds) == pytest.approx(theirs.pvalue)


def test_any_other_differences_are_tested_by_every_flip_or_by_many() -> None:
    dice = random.Random(4)
    few, many = [dice.gauss(0.5, 1) for _ in range(10)], [dice.gauss(0.2, 1) for _ in range(40)]
    exact = scipy.stats.permutation_test(
        (few, np.zeros(10)), lambda x, y, axis: np.mean(x - y, axis), permutation_type="samples", n_resamples=2**11
    )
    assert sign_flip(few) == pytest.approx(exact.pvalue)
    near = scipy.stats.permutation_test(
        (many, np.zeros(40)), lambda x, y, axis: np.mean(x - y, axis), permutation_type="samples", rng=5
    )
    assert sign_flip(many) == pytest.approx(near.pvalue, abs=0.02)
    assert sign_flip(many) == sign_flip(many, seed=0) != sign_flip(many, seed=1)


def test_rows_that_answer_alike_in_both_runs_are_no_evidence() -> None:
    assert sign_flip([]) == sign_flip([0.0] * 9) == swap_test([], [], f1) == 1.0
    assert swap_test([(1, 0, 0)] * 4, [(1, 0, 0)] * 4, f1) == 1.0


@settings(deadline=None, max_examples=30)
@given(FLIPS)
def test_swapping_answers_is_flipping_signs_where_the_statistic_is_a_mean(differences: list[float]) -> None:
    before, after = [(max(-d, 0.0), 1.0) for d in differences], [(max(d, 0.0), 1.0) for d in differences]
    assert swap_test(before, after, mean) == pytest.approx(sign_flip(differences))


def test_the_swap_test_of_an_f1_raises_a_false_alarm_in_one_of_twenty() -> None:
    dice = random.Random(5)
    ps = [swap_test(extractions(dice)[::4], extractions(dice)[::4], f1, draws=199, seed=i) for i in range(400)]
    assert sum(p < 0.05 for p in ps) / len(ps) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
    assert sum(p < 0.50 for p in ps) / len(ps) > 0.40


@pytest.mark.parametrize(
    ("broken", "fixed", "n", "level", "published"),
    [
        (7, 1, 21, 0.95, (-0.517, -0.026)),
        (16, 6, 161, 0.95, (-0.124, -0.005)),
        (28, 25, 618, 0.90, (-0.025, 0.015)),
    ],
)
def test_tango_gives_published_intervals(
    broken: int, fixed: int, n: int, level: float, published: tuple[float, float]
) -> None:
    """Fagerland et al. 2014 (Bentur 2009, Cavo 2012); the last is PropCIs::scoreci.mp(28, 25, 618, 0.90) of R."""
    assert rounded(tango(broken, fixed, n, level), 3) == published


@pytest.mark.parametrize("n", [1, 20, 300])
def test_tango_is_well_defined_when_nothing_changed_and_when_everything_did(n: int) -> None:
    z2 = scipy.stats.norm.ppf(0.975) ** 2
    assert tango(0, 0, n) == pytest.approx((-z2 / (n + z2), z2 / (n + z2)))
    assert tango(n, 0, n).low == pytest.approx(-1)
    assert tango(0, n, n).high == pytest.approx(1)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 60))
def test_the_interval_of_a_difference_holds_it_and_turns_with_the_sides(broken: int, fixed: int, same: int) -> None:
    n = broken + fixed + same
    low, high = paired_interval([-1.0] * broken + [1.0] * fixed + [0.0] * same)
    assert -1 <= low <= high <= 1
    if n:
        assert low - 1e-9 <= (fixed - broken) / n <= high + 1e-9
        assert tango(fixed, broken, n) == pytest.approx((-high, -low), abs=1e-9)


@pytest.mark.parametrize(("broken", "fixed"), [(0.05, 0.05), (0.10, 0.04), (0.30, 0.15)])
def test_tango_covers_95_percent_of_the_time(broken: float, fixed: float) -> None:
    """Counted exactly over all outcomes of 60 rows."""
    n, same, found = 60, 1 - broken - fixed, 0.0
    for b in range(n // 2):
        for f in range(n // 2):
            chance = float(scipy.stats.multinomial.pmf([b, f, n - b - f], n, [broken, fixed, same]))
            if chance > 1e-7:
                low, high = tango(b, f, n)
                found += chance * (low <= fixed - broken <= high)
    assert found == pytest.approx(0.95, abs=0.015)


def test_the_clustered_interval_of_a_difference_covers_it_and_the_plain_one_does_not() -> None:
    dice, labels = random.Random(8), [i for i in range(40) for _ in range(8)]
    samples = [changes(dice) for _ in range(400)]
    assert covered(-0.1, [paired_interval(sample, labels) for sample in samples]) > 0.92
    assert covered(-0.1, [paired_interval(sample) for sample in samples]) < 0.92


def changes(dice: random.Random) -> list[float]:
    """A fifth of the rows may change; of those three quarters break, mostly in the same clusters."""
    rows = []
    for _ in range(40):
        touched = dice.betavariate(0.4, 1.6)
        rows += [float(dice.choice([-1, -1, -1, 1])) if dice.random() < touched else 0.0 for _ in range(8)]
    return rows


@given(SCORES, st.data())
def test_an_interval_of_differences_is_always_told(values: list[float], data: st.DataObject) -> None:
    clusters = data.draw(st.none() | st.lists(st.integers(0, 3), min_size=len(values), max_size=len(values)))
    low, high = paired_interval([2 * value - 1 for value in values], clusters)
    assert -1 <= low <= high <= 1


def test_the_difference_of_two_quantiles_is_no_surer_than_both() -> None:
    assert difference_interval(1.0, Interval(0.7, 1.4), 2.0, Interval(1.7, 2.3)) == pytest.approx(
        (0.5, 1 + math.hypot(0.3, 0.3))
    )
    assert difference_interval(1.0, Interval(0.7, math.inf), 2.0, Interval(1.7, 2.3)).low == -math.inf


# Many tests, power, repeats.


def test_benjamini_and_hochberg_reject_the_four_hypotheses_of_their_paper() -> None:
    """Their 15 p-values (1995, section 3.2): four are rejected at 5 %; statsmodels' multipletests gives the values."""
    ps = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459]
    ps += [0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0]
    found = benjamini_hochberg(ps)
    assert sum(q <= 0.05 for q in found) == 4
    assert found[:6] == pytest.approx([0.0015, 0.003, 0.0095, 0.035625, 0.0603, 0.06385714285714286])


@given(st.lists(st.floats(0, 1), max_size=30))
def test_the_adjustment_agrees_with_scipy(ps: list[float]) -> None:
    expected = list(scipy.stats.false_discovery_control(ps)) if ps else []
    assert benjamini_hochberg(ps) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("rows", "churn", "points"),
    [(200, 0.05, 4.4), (200, 0.10, 6.3), (200, 0.20, 8.9), (500, 0.05, 2.8), (1000, 0.10, 2.8), (2000, 0.20, 2.8)],
)
def test_the_smallest_effect_is_the_usual_normal_one(rows: int, churn: float, points: float) -> None:
    assert round(100 * smallest_effect(rows, churn), 1) == points


def test_the_table_of_smallest_effects_in_the_documents_is_that_of_the_code() -> None:
    page = (Path(__file__).parent.parent / "docs" / "statistics.md").read_text("utf-8")
    table = re.findall(
        r"^\| ([\d,]+) \| ([\d.]+) (?:points )?\| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", page, re.MULTILINE
    )
    assert len(table) == 6
    for rows, *points in table:
        effects = [smallest_effect(int(rows.replace(",", "")), churn) for churn in (0.0, 0.05, 0.10, 0.20)]
        assert [float(each) for each in points] == [round(100 * effect, 1) for effect in effects]


@pytest.mark.parametrize(("rows", "churn"), [(200, 0.10), (500, 0.05), (300, 0.0), (100, 0.02)])
def test_the_exact_test_sees_the_smallest_effect_about_four_times_out_of_five(rows: int, churn: float) -> None:
    effect = smallest_effect(rows, churn)
    churn = max(churn, effect)
    dice, seen = np.random.default_rng(6), 0
    for changed in dice.binomial(rows, churn, 2000):
        broken = int(dice.binomial(changed, (churn + effect) / (2 * churn)))
        seen += mcnemar(broken, int(changed) - broken) < 0.05
    assert 0.70 < seen / 2000 < 0.88


def test_an_effect_is_no_larger_than_the_share_of_rows_that_change() -> None:
    """With 100 rows and nothing changed yet, 8 rows must break: 6 are the fewest that can be significant."""
    assert smallest_effect(100, 0.0) == smallest_effect(100, 0.05) == pytest.approx(0.0785, abs=1e-4)
    assert smallest_effect(0, 0.1) == smallest_effect(1, 0.0) == 1.0


def test_two_points_at_ten_percent_churn_need_two_thousand_rows() -> None:
    assert smallest_effect(1963, 0.10) <= 0.02 < smallest_effect(1962, 0.10)


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_and_pass_hat_k_count_the_choices_of_k_repeats(numbers: tuple[int, int, int]) -> None:
    """The unbiased estimate is the mean over all choices of k among the n repeats."""
    n, correct, k = numbers
    answers = [i < correct for i in range(n)]
    picks = [pick for pick in product((0, 1), repeat=n) if sum(pick) == k]
    chosen = [[answer for answer, taken in zip(answers, pick, strict=True) if taken] for pick in picks]
    assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, chosen)) / len(chosen))
    assert pass_hat_k(n, correct, k) == pytest.approx(sum(map(all, chosen)) / len(chosen))


@pytest.mark.parametrize(("n", "correct", "k"), [(5, 1, 3), (10, 3, 5), (200, 20, 100)])
def test_pass_at_k_is_the_formula_of_its_paper(n: int, correct: int, k: int) -> None:
    """Chen et al. 2021, figure 3: the product form that is numerically stable."""
    product_form = 1.0 - float(np.prod(1.0 - k / np.arange(n - correct + 1, n + 1)))
    assert pass_at_k(n, correct, k) == pytest.approx(product_form)


@pytest.mark.parametrize("numbers", [(3, 4, 1), (3, 1, 4), (3, 1, 0)])
@pytest.mark.parametrize("estimate", [pytest.param(pass_at_k, id="at"), pytest.param(pass_hat_k, id="hat")])
def test_more_repeats_than_there_are_is_a_mistake(
    estimate: Callable[[int, int, int], float], numbers: tuple[int, int, int]
) -> None:
    with pytest.raises(ValueError, match="repeats"):
        partial(estimate, *numbers)()
