"""What a sample says of the process behind it: intervals, the correction for many tests, the estimates of repeats.

Pure and seeded: the same rows give the same numbers, in whatever order they come. Rows that share a cluster (the pages
of one document) are not independent: where `clusters` is given, one label for each value, clusters and not rows are the
units. Every answer is defined: no sample is too small or too uniform for one. The formulas, with their sources, are in
docs/statistics.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    Numbers = NDArray[np.float64]
    Statistic = Callable[[Numbers], Numbers]

Clusters = Sequence[Hashable] | None

DRAWS = 5_000
"""How many samples a bootstrap draws: the ends of a 95 % interval then move by about a hundredth of its width."""

_CELLS = 2_000_000
_FEW = 16


class Interval(NamedTuple):
    """From `low` to `high`, both included."""

    low: float
    high: float


UNIT = Interval(0.0, 1.0)
"""What is known of a share without a single row."""

ANYTHING = Interval(-math.inf, math.inf)


def wilson(successes: float, n: float, level: float = 0.95) -> Interval:
    """The score interval of a share (Wilson 1927); both numbers may be fractions, as effective sizes are."""
    if n <= 0:
        return UNIT
    z = normal_quantile(level)
    p = successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(max(0.0, p * (1 - p)) / n + z * z / (4 * n * n))
    low = 0.0 if successes <= 0 else max(0.0, middle - half)
    return Interval(low, 1.0 if successes >= n else min(1.0, middle + half))


def share_interval(values: Sequence[float], clusters: Clusters = None, level: float = 0.95) -> Interval:
    """The interval of a mean of values between 0 and 1: Wilson's at the effective size of the sample.

    For values of 0 and 1 alone it is exactly Wilson's when no two rows share a cluster (Dean and Pagano 2015). It holds
    for fractions as well, which vary less than a share does.
    """
    if not values:
        return UNIT
    n = effective_size(values, clusters, level)
    return wilson(math.fsum(values) / len(values) * n, n, level)


def t_interval(values: Sequence[float], clusters: Clusters = None, level: float = 0.95) -> Interval:
    """Student's interval of a mean, with the cluster-robust variance; infinite after fewer than two units.

    Values that are all equal give an interval without width: where they are bounded, `mean_interval` says more.
    """
    sums = _cluster_sums(_deviations(values), clusters)
    if len(sums) < 2:
        return ANYTHING
    mean = math.fsum(values) / len(values)
    half = t_quantile(level, len(sums) - 1) * _standard_error(sums, len(values))
    return Interval(mean - half, mean + half)


def mean_interval(values: Sequence[float], clusters: Clusters = None, level: float = 0.95) -> Interval:
    """The interval of a mean of values between 0 and 1: Wilson's for checks and without any spread, else Student's."""
    if set(values) <= {0.0, 1.0} or max(values) == min(values):
        return share_interval(values, clusters, level)
    low, high = t_interval(values, clusters, level)
    return Interval(max(0.0, low), min(1.0, high))


def effective_size(values: Sequence[float], clusters: Clusters = None, level: float = 0.95) -> float:
    """How many independent rows say as much as these: their number over the design effect (Kish 1965), at most all.

    It is lessened by what Student's distribution of the few clusters adds (Korn and Graubard 1998). Where no spread is
    seen, nothing tells how alike the rows of a cluster are: a cluster then counts as one row.
    """
    n, deviations = len(values), _deviations(values)
    sums = _cluster_sums(deviations, clusters)
    if len(sums) == n:
        return float(n)
    if len(sums) < 2:
        return 0.0
    alone = _standard_error(deviations, n)
    effect = n / len(sums) if alone == 0 else max(1.0, (_standard_error(sums, n) / alone) ** 2)
    return n / effect * (t_quantile(level, n - 1) / t_quantile(level, len(sums) - 1)) ** 2


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest value that at least a share `q` of them does not exceed (Hyndman and Fan 1996, type 1)."""
    return sorted(values)[max(0, math.ceil(q * len(values) - 1e-9) - 1)]


def quantile_interval(values: Sequence[float], q: float, clusters: Clusters = None, level: float = 0.95) -> Interval:
    """The interval of a quantile: the quantiles at the ends of the interval of the share below it (Woodruff 1952).

    An end that lies beyond the smallest or the largest value is not known: infinite.
    """
    if not values:
        return ANYTHING
    ordered, n = sorted(values), len(values)
    at = quantile(values, q)
    size = effective_size([float(value <= at) for value in values], clusters, level)
    low, high = wilson(q * size, size, level)
    first, last = math.floor(low * n), math.ceil(high * n) + 1
    return Interval(ordered[first - 1] if first >= 1 else -math.inf, ordered[last - 1] if last <= n else math.inf)


def bca(
    rows: ArrayLike,
    statistic: Statistic,
    clusters: Clusters = None,
    *,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """The bias-corrected and accelerated bootstrap interval (Efron 1987) of a function of column totals.

    `rows` has a line for each row; `statistic` takes totals along the last axis, of any number of samples, to values:
    `totals[..., 0] / totals[..., 1]` is a mean, and precision, recall and F1 are of that kind. Samples for which it has
    no value (NaN) are left out. With no or one unit, or no value, nothing is known: an infinite interval.
    """
    import numpy as np

    units, repeats = _units(rows, clusters)
    size = int(repeats.sum())
    value = statistic(units.T @ repeats) if size else np.float64(math.nan)
    if size < 2 or not np.isfinite(value):
        return ANYTHING
    drawn = statistic(_resampled(units, repeats, draws, seed))
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return ANYTHING
    left_out = statistic(units.T @ repeats - units)
    ends = _bca_shares(drawn, float(value), left_out, repeats, level)
    low, high = np.quantile(drawn, ends)
    return Interval(float(low), float(high))


def benjamini_hochberg(ps: Sequence[float]) -> list[float]:
    """The p-values, adjusted: those at most `a` hold a false discovery rate of `a` (Benjamini and Hochberg 1995)."""
    order = sorted(range(len(ps)), key=ps.__getitem__, reverse=True)
    adjusted, least = [1.0] * len(ps), 1.0
    for rank, place in zip(range(len(ps), 0, -1), order, strict=True):
        least = min(least, ps[place] * len(ps) / rank)
        adjusted[place] = least
    return adjusted


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The chance that at least one of `k` repeats is right, unbiased from `correct` of `n` (Chen et al. 2021)."""
    _check_repeats(n, correct, k)
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def pass_hat_k(n: int, correct: int, k: int) -> float:
    """The chance that all of `k` repeats are right (pass^k), unbiased from `correct` of `n` (Yao et al. 2024)."""
    _check_repeats(n, correct, k)
    return math.comb(correct, k) / math.comb(n, k)


def normal_quantile(level: float) -> float:
    """How many standard errors a two-sided interval of this level reaches."""
    return NormalDist().inv_cdf((1 + level) / 2)


def t_quantile(level: float, freedom: float) -> float:
    """The same for Student's distribution with so many degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + level) / 2))


def _check_repeats(n: int, correct: int, k: int) -> None:
    if not (0 <= correct <= n and 1 <= k <= n):
        raise ValueError(f"no {k} of {n} repeats, {correct} of them right")


def _deviations(values: Sequence[float]) -> list[float]:
    if not values or max(values) == min(values):
        return [0.0] * len(values)
    mean = math.fsum(values) / len(values)
    return [value - mean for value in values]


def _cluster_sums(values: Sequence[float], clusters: Clusters) -> list[float]:
    if clusters is None:
        return list(values)
    members: dict[Hashable, list[float]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        members.setdefault(cluster, []).append(value)
    return [math.fsum(group) for group in members.values()]


def _standard_error(sums: Sequence[float], n: int) -> float:
    """Of a mean of `n` values, from the sums of their deviations in each cluster (Liang and Zeger 1986)."""
    if len(sums) < 2:
        return 0.0
    return math.sqrt(len(sums) / (len(sums) - 1) * math.fsum(each * each for each in sums)) / n


def _units(rows: ArrayLike, clusters: Clusters) -> tuple[Numbers, Numbers]:
    """The different rows (or sums of clusters) with how often each comes: as good to draw from, and far fewer."""
    import numpy as np

    table = np.asarray(rows, dtype=np.float64)
    if table.size == 0:
        return table.reshape(0, 1), np.zeros(0)
    if clusters is not None:
        table = cluster_totals(table, clusters)
    units, repeats = np.unique(table, axis=0, return_counts=True)
    return units, repeats.astype(np.float64)


def cluster_totals(table: Numbers, clusters: Sequence[Hashable]) -> Numbers:
    """The sum of the rows of each cluster, a line for each."""
    import numpy as np

    places: dict[Hashable, int] = {}
    index = [places.setdefault(cluster, len(places)) for cluster in clusters]
    totals = np.zeros((len(places), table.shape[1]))
    np.add.at(totals, index, table)
    return totals


def _resampled(units: Numbers, repeats: Numbers, draws: int, seed: int) -> Numbers:
    """The totals of so many samples with replacement; a few at a time, so that memory is bounded."""
    import numpy as np

    dice, size = np.random.default_rng(seed), int(repeats.sum())
    count = _shared_out if len(units) * _FEW < size else _picked
    at_once = max(1, _CELLS // size)
    parts = [min(at_once, draws - start) for start in range(0, draws, at_once)]
    return np.concatenate([count(dice, repeats, part) @ units for part in parts])


def _shared_out(dice: np.random.Generator, repeats: Numbers, draws: int) -> Numbers:
    """How often each unit is in each sample: quick where units are few."""
    return dice.multinomial(int(repeats.sum()), repeats / repeats.sum(), size=draws).astype(float)


def _picked(dice: np.random.Generator, repeats: Numbers, draws: int) -> Numbers:
    """The same where units are many."""
    import numpy as np

    size, count = int(repeats.sum()), len(repeats)
    units = np.repeat(np.arange(count), repeats.astype(int))
    picks = units[dice.integers(0, size, (draws, size))] + np.arange(draws)[:, None] * count
    return np.bincount(picks.ravel(), minlength=draws * count).reshape(draws, count).astype(float)


def _bca_shares(drawn: Numbers, value: float, left_out: Numbers, repeats: Numbers, level: float) -> list[float]:
    """Which quantiles of the drawn values are the interval's ends."""
    normal, edge = NormalDist(), 0.5 / len(drawn)
    below = (float((drawn < value).mean()) + float((drawn <= value).mean())) / 2
    bias = normal.inv_cdf(min(1 - edge, max(edge, below)))
    acceleration = _acceleration(left_out, repeats)
    ends = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        reach = bias + normal.inv_cdf(tail)
        ends.append(normal.cdf(bias + reach / max(1e-9, 1 - acceleration * reach)))
    return ends


def _acceleration(left_out: Numbers, repeats: Numbers) -> float:
    """From the values with one unit left out (the jackknife), each as often as it comes."""
    import numpy as np

    known = np.isfinite(left_out)
    values, weights = left_out[known], repeats[known]
    if not len(values):
        return 0.0
    apart = np.average(values, weights=weights) - values
    spread = float(weights @ apart**2)
    return float(weights @ apart**3) / (6 * spread**1.5) if spread > 0 else 0.0
