"""Compares two runs over the same rows: exact tests of whether they differ, and intervals of the difference.

Pure and seeded, like `intervals`. Under the null hypothesis the two answers to a row (or to all rows of a cluster) are
exchangeable: the tests count how many swaps give a difference at least as large as the observed one. The formulas,
with their sources, are in docs/statistics.md.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from pipeline.evaluation.stats.intervals import (
    Clusters,
    Interval,
    cluster_totals,
    effective_size,
    normal_quantile,
    t_interval,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from pipeline.evaluation.stats.intervals import Numbers, Statistic

SWAPS = 9_999
"""Random swaps drawn when there are too many to enumerate; with the observed one, p is a multiple of 1/10,000."""

_MOST_REPEATS = 12
_ALIKE = 1e-9  # relative: sums in another order differ by rounding, and must count as equally extreme
_ROUNDED = 1e-4  # baselines round the means of repeats to 6 digits
_CELLS = 2_000_000  # of a matrix of signs: 16 MB of float64


def sign_flip(differences: Sequence[float], clusters: Clusters = None, *, seed: int = 0) -> float:
    """The two-sided p of the sign-flip test of a mean difference of zero; the sum of a cluster is flipped as one.

    Exact, by convolution, for whole differences and for means of up to 12 repeats; where every cluster is one row and
    every difference 1, 0 or -1, it is McNemar's test. Other differences are tested by `swap_test`.
    """
    import numpy as np

    sums = cluster_totals(
        np.reshape(np.asarray(differences, dtype=np.float64), (-1, 1)), _labels(differences, clusters)
    )
    whole = _whole(sums[:, 0])
    if whole is not None:
        return _exact_flip(whole)
    return swap_test(np.zeros_like(sums), sums, lambda totals: totals[..., 0], seed=seed)


def swap_test(
    before: ArrayLike,
    after: ArrayLike,
    statistic: Statistic,
    clusters: Clusters = None,
    *,
    draws: int = SWAPS,
    seed: int = 0,
) -> float:
    """The two-sided p of the paired permutation test of a function of column totals, as `bca` takes it.

    All swaps of the changed clusters are enumerated if there are at most `draws`; otherwise `draws` random ones are
    drawn, and p counts the observed one among them, so that it is valid and never 0 (Phipson and Smyth 2010).
    """
    import numpy as np

    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if not len(first):
        return 1.0
    # With the totals of both runs as middle +- half the difference, swapping a cluster is a change of its sign, and all
    # swaps are one matrix product. Clusters without a difference change nothing and are dropped.
    halves = cluster_totals((second - first) / 2, _labels(first, clusters))
    halves, middle = halves[np.any(halves != 0, axis=1)], (first.sum(axis=0) + second.sum(axis=0)) / 2
    observed = np.abs(statistic(middle + halves.sum(axis=0)) - statistic(middle - halves.sum(axis=0)))
    if not len(halves) or not np.isfinite(observed):
        return 1.0
    extreme = 0
    for signs in _signs(len(halves), draws, seed):
        shift = signs @ halves
        found = np.abs(statistic(middle + shift) - statistic(middle - shift))
        # Not less, rather than greater or equal: a swap without a value (NaN) counts as extreme, which is conservative.
        extreme += int(np.count_nonzero(~(found < observed * (1 - _ALIKE))))
    return extreme / 2 ** len(halves) if _all_tried(len(halves), draws) else (1 + extreme) / (1 + draws)


def paired_interval(differences: Sequence[float], clusters: Clusters = None, level: float = 0.95) -> Interval:
    """The interval of the mean of differences between -1 and 1, most of which are 0.

    For differences of 1, 0 and -1, and without spread, it is Tango's score interval (1998) at the effective size of the
    sample (Rao and Scott 1992); otherwise Student's.
    """
    if not differences:
        return Interval(-1.0, 1.0)
    if not set(differences) <= {-1.0, 0.0, 1.0} and max(differences) != min(differences):
        low, high = t_interval(differences, clusters, level)
        return Interval(max(-1.0, low), min(1.0, high))
    # The observed counts scaled down to the effective size: same mean, honest width.
    n = effective_size(differences, clusters, level)
    share = n / len(differences)
    fixed = math.fsum(each for each in differences if each > 0) * share
    broken = math.fsum(-each for each in differences if each < 0) * share
    return tango(broken, fixed, n, level)


def tango(broken: float, fixed: float, n: float, level: float = 0.95) -> Interval:
    """The score interval of `(fixed - broken) / n`, defined even when nothing changed (Tango 1998)."""
    if n <= 0:
        return Interval(-1.0, 1.0)
    z, estimate = normal_quantile(level), (fixed - broken) / n

    def score(delta: float) -> float:
        return _tango_score(delta, broken, fixed, n)

    # The score falls in delta and is 0 at the estimate: each end is where it reaches z on its side.
    low = _crossing(lambda delta: score(delta) - z, -1.0, estimate)
    high = _crossing(lambda delta: score(delta) + z, estimate, 1.0)
    return Interval(low, high)


def difference_interval(before: float, first: Interval, after: float, second: Interval) -> Interval:
    """The interval of `after - before` from the intervals of both (MOVER: Zou and Donner 2008).

    It assumes independence, so it is too wide, never too narrow, when both runs are positively correlated.
    """
    low = math.hypot(after - second.low, first.high - before)
    high = math.hypot(second.high - after, before - first.low)
    return Interval(after - before - low, after - before + high)


def _tango_score(delta: float, broken: float, fixed: float, n: float) -> float:
    # `lost` is the maximum-likelihood share of broken rows if the true difference is delta: the larger root of
    # a x^2 + b x + c. Rounding can make the discriminant or the variance slightly negative.
    a = 2 * n
    b = -fixed - broken + (2 * n - fixed + broken) * delta
    c = -broken * delta * (1 - delta)
    lost = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = n * (2 * lost + delta * (1 - delta))
    distance = fixed - broken - n * delta
    if abs(distance) < _ALIKE:
        return 0.0
    return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)


def _crossing(function: Callable[[float], float], low: float, high: float) -> float:
    """The zero of a falling function, by bisection."""
    for _ in range(60):  # halves an interval of at most 2 to below the resolution of a double
        middle = (low + high) / 2
        if function(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _labels(rows: Sequence[float] | Numbers, clusters: Clusters) -> Sequence[object]:
    return range(len(rows)) if clusters is None else clusters


def _whole(sums: Numbers) -> list[int] | None:
    """The sums scaled by the smallest number of repeats that makes all of them whole, if there is one."""
    import numpy as np

    for repeats in range(1, _MOST_REPEATS + 1):
        scaled = sums * repeats
        if np.allclose(scaled, np.rint(scaled), rtol=0, atol=_ROUNDED):
            return [int(each) for each in np.rint(scaled)]
    return None


def _exact_flip(sums: Sequence[int]) -> float:
    """The share of sign patterns whose sum is at least as far from 0, from the distribution of the positive part."""
    import numpy as np

    # chances[k]: the probability that the sums with a positive sign add up to k. Sums of equal size are k heads of
    # `count` coin flips, `size` apart, so there is one convolution per size and not per row.
    chances = np.ones(1)
    for size, count in sorted(Counter(abs(each) for each in sums if each).items()):
        flipped = np.zeros(size * count + 1)
        flipped[::size] = _coin_flips(count)
        chances = np.convolve(chances, flipped)
    # A total of all sums T and a positive part k make a signed sum of 2k - T: the lower tail ends at (T - |sum|) / 2.
    smaller = (len(chances) - 1 - abs(sum(sums))) // 2
    return min(1.0, 2.0 * float(chances[: smaller + 1].sum()))


def _coin_flips(count: int) -> Numbers:
    """The probabilities of 0 to `count` heads."""
    import numpy as np
    from scipy.special import gammaln

    # In logarithms: the binomial coefficients overflow a double from about 1,030 flips on.
    heads = np.arange(count + 1, dtype=np.float64)
    chances: Numbers = np.exp(
        gammaln(count + 1) - gammaln(heads + 1) - gammaln(count - heads + 1) - count * math.log(2)
    )
    return chances


def _all_tried(count: int, draws: int) -> bool:
    return 2.0 ** min(count, 1000) <= draws  # capped: 2.0 ** 1024 overflows


def _signs(count: int, draws: int, seed: int) -> Iterator[Numbers]:
    """Every pattern of signs, or random ones, in blocks of bounded memory."""
    import numpy as np

    if _all_tried(count, draws):
        # The bits of 0 to 2^count - 1 are all the patterns.
        bits = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
        yield bits.astype(np.float64) * 2 - 1
        return
    dice, at_once = np.random.default_rng(seed), max(1, _CELLS // count)
    for start in range(0, draws, at_once):
        coins = dice.integers(0, 2, (min(at_once, draws - start), count))
        yield coins.astype(np.float64) * 2 - 1
