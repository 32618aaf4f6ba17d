"""Compares two runs over the same rows: which rows broke, which were fixed, and what changed beyond noise."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.evaluation.extra import needs_eval
from pipeline.evaluation.graders.verdicts import Scored, VerdictCounts
from pipeline.evaluation.stats.intervals import (
    ANYTHING,
    Clusters,
    Interval,
    bca,
    benjamini_hochberg,
    effective_size,
    normal_quantile,
    quantile,
    quantile_interval,
    t_interval,
)
from pipeline.evaluation.stats.metrics import (
    Means,
    Metric,
    Quantile,
    Sample,
    Totals,
    bad_leaves,
    clusters_of,
    metric_of,
    sample_of,
    value_of,
)
from pipeline.evaluation.stats.paired_tests import difference_interval, paired_interval, sign_flip, swap_test
from pipeline.evaluation.stats.power import smallest_effect, standard_errors
from pipeline.faults import NothingToDo, UsageError

if TYPE_CHECKING:
    from pipeline.evaluation.stats.intervals import Numbers

LEAST = 10
"""A slice with fewer rows is only named, not compared."""

_SAME = {"share": 1e-5, "usd": 1e-8, "s": 0.0}
"""Baselines round their values: smaller differences count as equal."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One row in both runs. A row missing from a run counts as failed there, with unknown cost and latency."""

    row: str
    before: Scored
    after: Scored
    missing: bool = False

    @property
    def slices(self) -> Mapping[str, str]:
        """The slice values, as in the later run."""
        return self.after.slices

    @property
    def broken(self) -> bool:
        """Whether it was right and no longer is."""
        return is_right(self.before) and not is_right(self.after)

    @property
    def fixed(self) -> bool:
        """Whether it was not right and now is."""
        return is_right(self.after) and not is_right(self.before)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricChange:
    """One metric before and after, over the same rows: those with these slice values, or all.

    `difference` is after minus before, with its interval from `low` to `high`; `p` is the two-sided test of no
    difference, `q` is p adjusted for all tests of its family. `changed` counts the rows that differ, `worse` and
    `better` by direction. `smallest_effect` is the difference that such a comparison detects four times out of five.
    Without a difference, `why` gives the reason.
    """

    metric: str
    where: Mapping[str, str] = dataclasses.field(default_factory=dict)
    rows: int = 0
    before: float | None = None
    after: float | None = None
    difference: float | None = None
    low: float = -math.inf
    high: float = math.inf
    p: float = 1.0
    q: float | None = None
    changed: int = 0
    worse: int = 0
    better: int = 0
    smallest_effect: float = math.inf
    why: str = ""

    def torn(self, alpha: float = 0.05) -> bool:
        """Whether interval and test disagree: one excludes a difference of zero, the other does not.

        The interval is an approximation and the test is exact, or nearly so: the test decides.
        """
        return self.difference is not None and (self.low > 0 or self.high < 0) != (self.p < alpha)


@dataclass(frozen=True, slots=True)
class TooSmall:
    """A slice with too few rows to compare."""

    name: str
    value: str
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The changes of rows and metrics from one run to another; rows are named in sorted order.

    `overall` is `row_correct`; `fields` are the `right.FIELD` and `slices` the `row_correct` of slice values, with `q`
    adjusted as one family; `rates` are the `f1.FIELD`, another family. `missing_before` and `missing_after` are rows
    missing from one run: counted as failed there, or left out when `common_only`. `one_sided` are fields that one run
    lacks.
    """

    rows: int
    clusters: int | None
    common_only: bool
    broken: tuple[str, ...]
    fixed: tuple[str, ...]
    flaky: tuple[str, ...]
    missing_before: tuple[str, ...]
    missing_after: tuple[str, ...]
    one_sided: tuple[str, ...]
    overall: MetricChange
    fields: tuple[MetricChange, ...]
    slices: tuple[MetricChange, ...]
    rates: tuple[MetricChange, ...]
    too_small: tuple[TooSmall, ...]


def compare(
    before: Sequence[Scored],
    after: Sequence[Scored],
    *,
    common_only: bool = False,
    least: int = LEAST,
    seed: int = 0,
) -> Comparison:
    """Joins the rows and compares every field and slice.

    Raises `UsageError` when a run has a row twice, `NothingToDo` when there is no row to compare.
    """
    pairs = join(before, after, common_only=common_only)
    shared, one_sided = _fields(before, after)
    values = _slice_values(pairs)
    overall = change("row_correct", pairs, seed=seed)
    fields = [change(f"right.{name}", pairs, seed=seed) for name in shared]
    slices = [
        change("row_correct", pairs, where={name: value}, seed=seed)
        for (name, value), rows in values.items()
        if rows >= least
    ]
    rates = [change(f"f1.{name}", pairs, seed=seed) for name in shared]
    family = _adjusted([*fields, *slices])
    earlier, later = {row.row for row in before}, {row.row for row in after}
    clusters = clusters_of([pair.after for pair in pairs])
    return Comparison(
        rows=len(pairs),
        clusters=None if clusters is None else len(set(clusters)),
        common_only=common_only,
        broken=tuple(pair.row for pair in pairs if pair.broken),
        fixed=tuple(pair.row for pair in pairs if pair.fixed),
        flaky=tuple(pair.row for pair in pairs if pair.before.flaky or pair.after.flaky),
        missing_before=tuple(sorted(later - earlier)),
        missing_after=tuple(sorted(earlier - later)),
        one_sided=one_sided,
        overall=overall,
        fields=family[: len(fields)],
        slices=family[len(fields) :],
        rates=_adjusted(rates),
        too_small=tuple(TooSmall(*key, rows) for key, rows in values.items() if rows < least),
    )


def join(before: Sequence[Scored], after: Sequence[Scored], *, common_only: bool = False) -> list[Pair]:
    """The rows of both runs joined by id, sorted; rows of either run, or with `common_only` of both.

    Raises `UsageError` when a run has a row twice, `NothingToDo` when there is no row to compare.
    """
    earlier, later = _by_id(before, "earlier"), _by_id(after, "later")
    names = sorted(earlier.keys() & later.keys() if common_only else earlier.keys() | later.keys())
    if not names:
        raise NothingToDo("the two runs have no row in common" if common_only else "there is no row to compare")
    return [_pair(name, earlier.get(name), later.get(name)) for name in names]


def change(
    metric: str,
    pairs: Sequence[Pair],
    *,
    where: Mapping[str, str] | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> MetricChange:
    """The change of one metric between the runs, over rows with these slice values. Raises what `measure` raises."""
    with needs_eval("a comparison"):
        import scipy.special  # noqa: F401 - fails before anything is computed
    named, chosen = metric_of(metric), [pair for pair in pairs if meets(pair.slices, where)]
    known = [pair for pair in chosen if _comparable(named, pair)]
    unknown = MetricChange(metric=metric, where=dict(where or {}), rows=len(known))
    second = sample_of(named, [pair.after for pair in known])
    if named.field and known and not any(named.field in pair.before.fields for pair in known):
        return dataclasses.replace(unknown, why=f"the earlier run has no field {named.field!r}")
    first = sample_of(named, [pair.before for pair in known])
    if isinstance(first, str) or isinstance(second, str):
        return dataclasses.replace(unknown, why=first if isinstance(first, str) else str(second))
    old, new = value_of(first), value_of(second)
    if old is None or new is None:
        return dataclasses.replace(unknown, before=old, after=new, why="there is nothing to count")
    found = dataclasses.replace(unknown, before=old, after=new, difference=new - old)
    clusters = clusters_of([pair.after for pair in known])
    return _tested(found, named, first, second, clusters, level, seed)


def meets(slices: Mapping[str, str], where: Mapping[str, str] | None) -> bool:
    """Whether a row has all of these slice values."""
    return all(slices.get(name) == value for name, value in (where or {}).items())


def is_right(row: Scored) -> bool:
    """Whether at least half of its repeats are right."""
    return row.correct >= 0.5


def _by_id(rows: Sequence[Scored], which: str) -> dict[str, Scored]:
    found = {row.row: row for row in rows}
    if len(found) < len(rows):
        twice = min(name for name, count in Counter(row.row for row in rows).items() if count > 1)
        raise UsageError(f"the {which} run has the row {twice!r} more than once: row ids must be unique")
    return found


def _pair(name: str, before: Scored | None, after: Scored | None) -> Pair:
    if before is None or after is None:
        present = before or after
        assert present is not None  # noqa: S101 - every name is from one of the runs
        absent = _failed(present)
        return Pair(name, before or absent, after or absent, missing=True)
    return Pair(name, before, after)


def _failed(row: Scored) -> Scored:
    """The row as if it had no answer: every leaf has failed."""
    fields = {
        name: VerdictCounts(right=0.0, score=0.0, failed=own.match + own.wrong + own.missed + own.empty + own.failed)
        for name, own in row.fields.items()
    }
    return dataclasses.replace(
        row, correct=0.0, fields=fields, failed=1.0, flaky=False, cost_usd=None, latency_s=None, repeats_right=0
    )


def _comparable(metric: Metric, pair: Pair) -> bool:
    """Whether a pair counts: cost and latency need the row in both runs. Unpriced rows stay, so that they are noted."""
    if metric.unit == "usd":
        return not pair.missing
    return metric.unit == "share" or None not in (pair.before.latency_s, pair.after.latency_s)


def _fields(before: Iterable[Scored], after: Iterable[Scored]) -> tuple[list[str], tuple[str, ...]]:
    earlier, later = ({name for row in rows for name in row.fields} for rows in (before, after))
    shared = earlier & later if earlier and later else earlier | later
    return sorted(shared), tuple(sorted((earlier | later) - shared))


def _slice_values(pairs: Iterable[Pair]) -> dict[tuple[str, str], int]:
    counts = Counter(item for pair in pairs for item in pair.slices.items())
    return dict(sorted(counts.items()))


def _adjusted(changes: Sequence[MetricChange]) -> tuple[MetricChange, ...]:
    """Adds q to the changes that could be tested."""
    tested = [each for each in changes if each.difference is not None]
    qs = iter(benjamini_hochberg([each.p for each in tested]))
    return tuple(dataclasses.replace(each, q=next(qs)) if each.difference is not None else each for each in changes)


def _tested(
    found: MetricChange, metric: Metric, first: Sample, second: Sample, clusters: Clusters, level: float, seed: int
) -> MetricChange:
    match first, second:
        case Totals(), Totals():
            return _of_totals(found, first, second, clusters, level, seed)
        case Means(), Means():
            ours = _of_means(found, first, second, clusters, level, seed)
        case Quantile(), Quantile():
            ours = _of_quantiles(found, first, second, clusters, level)
        case _:
            raise TypeError("two samples of one metric are of one kind")
    return dataclasses.replace(ours, worse=ours.better, better=ours.worse) if metric.lower_is_better else ours


def _of_means(
    found: MetricChange, first: Means, second: Means, clusters: Clusters, level: float, seed: int
) -> MetricChange:
    differences = _differences(first.values, second.values, _SAME[first.unit])
    times = found.rows if first.times > 1 else 1
    share = first.unit == "share"
    low, high = (paired_interval if share else t_interval)(differences, clusters, level)
    checks = share and set(differences) <= {-1.0, 0.0, 1.0}
    changed = _counted(found, differences)
    seen = _seen(differences, clusters, level) if checks else _seen_by(Interval(low, high), level)
    return dataclasses.replace(
        changed,
        low=low * times,
        high=high * times,
        p=sign_flip(differences, clusters, seed=seed),
        smallest_effect=seen * times,
    )


def _of_quantiles(
    found: MetricChange, first: Quantile, second: Quantile, clusters: Clusters, level: float
) -> MetricChange:
    """Compares how many rows exceed the quantile of both runs pooled, which no swap of a row's answers changes."""
    line = quantile([*first.values, *second.values], first.q)
    above = _differences([float(v > line) for v in first.values], [float(v > line) for v in second.values])
    changed = _counted(found, _differences(first.values, second.values))
    ends = [quantile_interval(sample.values, sample.q, clusters, level) for sample in (first, second)]
    interval = difference_interval(found.before or 0.0, ends[0], found.after or 0.0, ends[1])
    return dataclasses.replace(
        changed,
        low=interval.low,
        high=interval.high,
        p=sign_flip(above, clusters),
        smallest_effect=_seen_by(interval, level),
    )


def _of_totals(
    found: MetricChange, first: Totals, second: Totals, clusters: Clusters, level: float, seed: int
) -> MetricChange:
    import numpy as np

    width, statistic = first.table.shape[1], first.statistic
    both = np.hstack([first.table, second.table])

    def gain(totals: Numbers) -> Numbers:
        after: Numbers = statistic(totals[..., width:])
        return after - statistic(totals[..., :width])

    low, high = bca(both, gain, clusters, level=level, seed=seed)
    changed = _counted(found, _differences(bad_leaves(second), bad_leaves(first), _SAME["share"]))
    unequal = int(np.any(np.abs(first.table - second.table) > _SAME["share"], axis=1).sum())
    if not low < high < math.inf:
        alike = [found.difference or 0.0] * found.rows
        interval, seen = paired_interval(alike, clusters, level), _seen([0.0] * found.rows, clusters, level)
    else:
        interval = Interval(low, high)
        seen = _seen_by(interval, level)
    p = swap_test(first.table, second.table, statistic, clusters, seed=seed) if unequal else 1.0
    return dataclasses.replace(
        changed, changed=unequal, low=interval.low, high=interval.high, p=p, smallest_effect=seen
    )


def _differences(before: Sequence[float], after: Sequence[float], same: float = 0.0) -> list[float]:
    differences = [float(new - old) for old, new in zip(before, after, strict=True)]
    return [0.0 if abs(each) <= same else each for each in differences]


def _counted(found: MetricChange, differences: Sequence[float]) -> MetricChange:
    """Adds the counts of rows that differ; a negative difference counts as worse."""
    worse, better = sum(each < 0 for each in differences), sum(each > 0 for each in differences)
    return dataclasses.replace(found, changed=worse + better, worse=worse, better=better)


def _seen(differences: Sequence[float], clusters: Clusters, level: float) -> float:
    churn = sum(each != 0 for each in differences) / len(differences)
    return smallest_effect(effective_size(differences, clusters, level), churn, alpha=1 - level)


def _seen_by(interval: Interval, level: float) -> float:
    """The smallest effect detectable with an interval of this width, from its standard error."""
    error = (interval.high - interval.low) / (2 * normal_quantile(level))
    return standard_errors(alpha=1 - level) * error if interval != ANYTHING else math.inf
