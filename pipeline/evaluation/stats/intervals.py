"""Inference from a sample: confidence intervals, the correction for multiple tests, estimates from repeats.

Pure and seeded: the same rows give the same numbers, in any order. Rows that share a cluster (the pages of one
document) are not independent: where `clusters` is given, one label for each value, clusters rather than rows are the
units. Every result is defined: no sample is too small or too uniform. The formulas, with their sources, are in
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
"""Bootstrap samples: the ends of a 95 % interval then vary by about a hundredth of its width between seeds."""

_CELLS = 2_000_000  # of a matrix of samples: 16 MB of float64
_FEW = 16  # rows per distinct unit, from which on a multinomial draw is faster than drawing row by row


class Interval(NamedTuple):
    """From `low` to `high`, both included."""

    low: float
    high: float


UNIT = Interval(0.0, 1.0)
"""The interval of a share without any rows."""

ANYTHING = Interval(-math.inf, math.inf)


def wilson(successes: float, n: float, level: float = 0.95) -> Interval:
    """The score interval of a share (Wilson 1927); both numbers may be fractional, as effective sizes are."""
    if n <= 0:
        return UNIT
    z = normal_quantile(level)
    p = successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(max(0.0, p * (1 - p)) / n + z * z / (4 * n * n))
    # At the edges the formula gives exactly 0 or 1; rounding would miss it by an ulp.
    low = 0.0 if successes <= 0 else max(0.0, middle - half)
    return Interval(low, 1.0 if successes >= n else min(1.0, middle + half))


def share_interval(values: Sequence[float], clusters: Clusters = None, level: float = 0.95) -> Interval:
    """The interval of a mean of values between 0 and 1: Wilson's at the effective size of the sample.

    For values of 0 and 1 it is exactly Wilson's when no two rows share a cluster (Dean and Pagano 2015). For fractions
    it is conservative, because they vary less than a share does.
    """
    if not values:
        return UNIT
    n = effective_size(values, clusters, level)
    return wilson(math.fsum(values) / len(values) * n, n, level)


def t_interval(values: Sequence[float], clusters: Clusters = None, level: float = 0.95) -> Interval:
    """Student's interval of a mean, with the cluster-robust variance; infinite with fewer than two units.

    Equal values give an interval of width 0; for bounded values `mean_interval` is more informative.
    """
    sums = _cluster_sums(_deviations(values), clusters)
    if len(sums) < 2:
        return ANYTHING
    mean = math.fsum(values) / len(values)
    half = t_quantile(level, len(sums) - 1) * _standard_error(sums, len(values))
    return Interval(mean - half, mean + half)


def mean_interval(values: Sequence[float], clusters: Clusters = None, level: float = 0.95) -> Interval:
    """The interval of a mean of values between 0 and 1: Wilson's for checks or without spread, else Student's."""
    if set(values) <= {0.0, 1.0} or max(values) == min(values):
        return share_interval(values, clusters, level)
    low, high = t_interval(values, clusters, level)
    return Interval(max(0.0, low), min(1.0, high))


def effective_size(values: Sequence[float], clusters: Clusters = None, level: float = 0.95) -> float:
    """The number of independent rows with the same information: rows over the design effect (Kish 1965), at most all.

    Reduced by the ratio of Student's quantiles, because few clusters give few degrees of freedom (Korn and Graubard
    1998). Without spread the correlation within clusters is unknown: a cluster then counts as one row.
    """
    n, deviations = len(values), _deviations(values)
    sums = _cluster_sums(deviations, clusters)
    if len(sums) == n:
        return float(n)
    if len(sums) < 2:
        return 0.0
    # The design effect: the variance with clusters over the variance as if all rows were independent.
    alone = _standard_error(deviations, n)
    effect = n / len(sums) if alone == 0 else max(1.0, (_standard_error(sums, n) / alone) ** 2)
    return n / effect * (t_quantile(level, n - 1) / t_quantile(level, len(sums) - 1)) ** 2


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest value that at least a share `q` of the values does not exceed (Hyndman and Fan 1996, type 1)."""
    # 1e-9: q * n may come out just above a whole number, as 0.07 * 100 does, and ceil would then skip a value.
    return sorted(values)[max(0, math.ceil(q * len(values) - 1e-9) - 1)]


def quantile_interval(values: Sequence[float], q: float, clusters: Clusters = None, level: float = 0.95) -> Interval:
    """The interval of a quantile: the quantiles at the ends of the interval of the share below it (Woodruff 1952).

    An end beyond the smallest or the largest value is unknown: infinite.
    """
    if not values:
        return ANYTHING
    ordered, n = sorted(values), len(values)
    at = quantile(values, q)
    size = effective_size([float(value <= at) for value in values], clusters, level)
    low, high = wilson(q * size, size, level)
    # Ranks counted from 1, rounded outwards; those outside of 1 to n are beyond the sample.
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

    `rows` is a matrix, one line per row; `statistic` maps totals along the last axis, for any number of samples, to
    values: `totals[..., 0] / totals[..., 1]` is a mean, and precision, recall and F1 have this form. Samples without a
    value (NaN) are left out. With fewer than two units, or without a value, the interval is infinite.
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
    left_out = statistic(units.T @ repeats - units)  # the jackknife: the totals without one unit each
    ends = _bca_shares(drawn, float(value), left_out, repeats, level)
    low, high = np.quantile(drawn, ends)
    return Interval(float(low), float(high))


def benjamini_hochberg(ps: Sequence[float]) -> list[float]:
    """Adjusted p-values: rejecting those up to `a` has a false discovery rate of `a` (Benjamini and Hochberg 1995)."""
    order = sorted(range(len(ps)), key=ps.__getitem__, reverse=True)
    adjusted, least = [1.0] * len(ps), 1.0
    # From the largest p down: an adjusted value may not exceed that of a larger p.
    for rank, place in zip(range(len(ps), 0, -1), order, strict=True):
        least = min(least, ps[place] * len(ps) / rank)
        adjusted[place] = least
    return adjusted


def pass_at_k(n: int, correct: int, k: int) -> float:
    """An unbiased estimate from `correct` of `n` that at least one of `k` repeats is right (Chen et al. 2021)."""
    _check_repeats(n, correct, k)
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def pass_hat_k(n: int, correct: int, k: int) -> float:
    """An unbiased estimate from `correct` of `n` that all of `k` repeats are right: pass^k (Yao et al. 2024)."""
    _check_repeats(n, correct, k)
    return math.comb(correct, k) / math.comb(n, k)


def normal_quantile(level: float) -> float:
    """Half the width of a two-sided normal interval of this level, in standard errors."""
    return NormalDist().inv_cdf((1 + level) / 2)


def t_quantile(level: float, freedom: float) -> float:
    """The same for Student's distribution with `freedom` degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + level) / 2))


def _check_repeats(n: int, correct: int, k: int) -> None:
    if not (0 <= correct <= n and 1 <= k <= n):
        raise ValueError(f"no {k} of {n} repeats, {correct} of them right")


def _deviations(values: Sequence[float]) -> list[float]:
    if not values or max(values) == min(values):
        return [0.0] * len(values)
    # Equal values were handled above: their mean may be off by an ulp, which would look like spread.
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
    """The standard error of a mean of `n` values, from each cluster's sum of deviations (Liang and Zeger 1986)."""
    if len(sums) < 2:
        return 0.0
    return math.sqrt(len(sums) / (len(sums) - 1) * math.fsum(each * each for each in sums)) / n


def _units(rows: ArrayLike, clusters: Clusters) -> tuple[Numbers, Numbers]:
    """The distinct rows (or cluster sums) with their counts: equivalent for resampling, and far fewer."""
    import numpy as np

    table = np.asarray(rows, dtype=np.float64)
    if table.size == 0:
        return table.reshape(0, 1), np.zeros(0)
    if clusters is not None:
        table = cluster_totals(table, clusters)
    units, repeats = np.unique(table, axis=0, return_counts=True)
    return units, repeats.astype(np.float64)


def cluster_totals(table: Numbers, clusters: Sequence[Hashable]) -> Numbers:
    """The sum of the rows of each cluster, one line per cluster."""
    import numpy as np

    places: dict[Hashable, int] = {}
    index = [places.setdefault(cluster, len(places)) for cluster in clusters]
    totals = np.zeros((len(places), table.shape[1]))
    np.add.at(totals, index, table)
    return totals


def _resampled(units: Numbers, repeats: Numbers, draws: int, seed: int) -> Numbers:
    """The totals of `draws` samples with replacement, a few at a time to bound memory."""
    import numpy as np

    dice, size = np.random.default_rng(seed), int(repeats.sum())
    count = _shared_out if len(units) * _FEW < size else _picked
    at_once = max(1, _CELLS // size)
    parts = [min(at_once, draws - start) for start in range(0, draws, at_once)]
    return np.concatenate([count(dice, repeats, part) @ units for part in parts])


def _shared_out(dice: np.random.Generator, repeats: Numbers, draws: int) -> Numbers:
    """How often each unit is in each sample; fast for few distinct units."""
    return dice.multinomial(int(repeats.sum()), repeats / repeats.sum(), size=draws).astype(float)


def _picked(dice: np.random.Generator, repeats: Numbers, draws: int) -> Numbers:
    """The same, for many distinct units."""
    import numpy as np

    size, count = int(repeats.sum()), len(repeats)
    units = np.repeat(np.arange(count), repeats.astype(int))
    # Every sample has its own range of numbers, so that one bincount counts the units of all samples.
    picks = units[dice.integers(0, size, (draws, size))] + np.arange(draws)[:, None] * count
    return np.bincount(picks.ravel(), minlength=draws * count).reshape(draws, count).astype(float)


def _bca_shares(drawn: Numbers, value: float, left_out: Numbers, repeats: Numbers, level: float) -> list[float]:
    """The quantiles of the drawn values that are the interval's ends (Efron 1987)."""
    normal, edge = NormalDist(), 0.5 / len(drawn)
    # Ties count half: counts are discrete, and all ties on one side would look like bias.
    below = (float((drawn < value).mean()) + float((drawn <= value).mean())) / 2
    # `edge` keeps the share off 0 and 1, where the normal quantile is infinite.
    bias = normal.inv_cdf(min(1 - edge, max(edge, below)))
    acceleration = _acceleration(left_out, repeats)
    ends = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        reach = bias + normal.inv_cdf(tail)
        # Beyond a denominator of 0 the formula turns around; the end then stays at the outermost quantile.
        ends.append(normal.cdf(bias + reach / max(1e-9, 1 - acceleration * reach)))
    return ends


def _acceleration(left_out: Numbers, repeats: Numbers) -> float:
    """The acceleration, from the values with one unit left out (the jackknife), weighted by the unit's count."""
    import numpy as np

    known = np.isfinite(left_out)
    values, weights = left_out[known], repeats[known]
    if not len(values):
        return 0.0
    apart = np.average(values, weights=weights) - values
    spread = float(weights @ apart**2)
    return float(weights @ apart**3) / (6 * spread**1.5) if spread > 0 else 0.0
