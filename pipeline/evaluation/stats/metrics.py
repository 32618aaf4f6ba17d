"""The metrics of a run by name, each with its interval, computed from the scored rows alone.

========================================== =====================================================================
`row_correct`                              mean of `Scored.correct`
`schema_valid`, `failed`                   share of rows with, and without, an answer
`accuracy`, `precision`, `recall`, `f1`    over the leaves of all fields (micro)
`f1_macro`                                 mean of the fields' `f1`
`right.FIELD`, `score.FIELD`               share of rows in which the field is right; mean score of its leaves
`accuracy.FIELD`, ... `f1.FIELD`           over the leaves of the field
`missed.FIELD`                             share of the expected values that were not given
`invented.FIELD`                           share of the given values that were not expected
`pass_at_K`, `pass_hat_K`                  chance that one of K repeats is right, and that all of them are
`cost_usd`, `cost_usd_per_row`             dollars of the run, and of a row with all its repeats
`latency_p50`, `latency_p95`, ...          percentile of the rows' latencies, in seconds
========================================== =====================================================================
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.evaluation.extra import needs_eval
from pipeline.evaluation.graders.verdicts import Scored, VerdictCounts
from pipeline.evaluation.stats.intervals import (
    ANYTHING,
    DRAWS,
    Clusters,
    Interval,
    bca,
    mean_interval,
    pass_at_k,
    pass_hat_k,
    quantile,
    quantile_interval,
    share_interval,
    t_interval,
)
from pipeline.faults import UsageError
from pipeline.text import nearest
from pipeline.text.figures import Unit

if TYPE_CHECKING:
    from pipeline.evaluation.stats.intervals import Numbers, Statistic


LEVEL = 0.95
"""The confidence of the intervals."""

WHOLE = ("row_correct", "schema_valid", "failed", "f1_macro", "cost_usd", "cost_usd_per_row")
BOTH = ("accuracy", "precision", "recall", "f1")
OF_A_FIELD = ("right", "score", *BOTH, "missed", "invented")

_COUNTED = re.compile(r"(latency_p|pass_at_|pass_hat_)([1-9]\d?)")
_EXAMPLES = ("latency_p50", "latency_p95", "latency_p99", "pass_at_3", "pass_hat_3")
_LOWER = ("failed", "missed", "invented", "cost_usd", "cost_usd_per_row", "latency_p")
_COLUMNS = ("match", "wrong", "missed", "invented", "empty", "failed")
_BAD = [_COLUMNS.index(column) for column in ("wrong", "missed", "invented", "failed")]


@dataclass(frozen=True, slots=True)
class Metric:
    """A parsed name: a family of metrics, for a field or for whole rows; `k` is the K of `pass_at_K`, or percent."""

    name: str
    family: str
    field: str = ""
    k: int = 0

    @property
    def lower_is_better(self) -> bool:
        """Whether an increase is worse."""
        return self.family in _LOWER

    @property
    def unit(self) -> Unit:
        """Shares are between 0 and 1; `usd` and `s` have no upper bound."""
        if self.family.startswith("cost_usd"):
            return "usd"
        return "s" if self.family == "latency_p" else "share"


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure with its interval over `n` rows; an infinite end is unknown. Without a value, `why` says why."""

    name: str
    value: float | None
    low: float
    high: float
    n: int
    why: str = ""


@dataclass(frozen=True, slots=True)
class Means:
    """A value for each row; the metric is their mean, times `times` (the number of rows for a sum)."""

    values: tuple[float, ...]
    clusters: Clusters
    unit: Unit
    times: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Totals:
    """Columns of counts; the metric is a function of their totals."""

    table: Numbers
    clusters: Clusters
    statistic: Statistic


@dataclass(frozen=True, slots=True)
class Quantile:
    """A value for each row; the metric is their quantile at `q`."""

    values: tuple[float, ...]
    clusters: Clusters
    q: float


Sample = Means | Totals | Quantile


def metric_of(name: str) -> Metric:
    """The metric with this name. Raises `UsageError`, with the nearest name, when there is none."""
    family, dot, field = name.partition(".")
    if dot and family in OF_A_FIELD and field:
        return Metric(name, family, field)
    if not dot and name in (*WHOLE, *BOTH):
        return Metric(name, name)
    if counted := _COUNTED.fullmatch(name):
        return Metric(
            name, counted[1].removesuffix("_") if counted[1] != "latency_p" else counted[1], k=int(counted[2])
        )
    if not dot and name in OF_A_FIELD:
        raise UsageError(f"the metric {name!r} is of a field: write {name}.FIELD")
    known = [*WHOLE, *BOTH, *_EXAMPLES, *(f"{each}.{field or 'FIELD'}" for each in OF_A_FIELD)]
    raise UsageError(f"there is no metric {name!r}{nearest(name, known)}")


def measure(name: str, rows: Sequence[Scored], *, seed: int = 0, draws: int = DRAWS) -> Measure:
    """The metric and its interval. An undefined one has no value: a cost with an unknown price, a share of nothing.

    Raises `UsageError` when there is no such metric, or no such field in the rows.
    """
    with needs_eval("an evaluation"):
        import scipy.special  # noqa: F401 - fails before anything is computed
    metric = metric_of(name)
    sample = sample_of(metric, rows)
    value = None if isinstance(sample, str) else value_of(sample)
    if isinstance(sample, str) or value is None:
        why = sample if isinstance(sample, str) else "there is nothing to count"
        return Measure(name, None, *(Interval(0.0, 1.0) if metric.unit == "share" else ANYTHING), len(rows), why)
    low, high = _interval(sample, value, seed, draws)
    return Measure(name, value, low, high, len(rows))


def sample_of(metric: Metric, rows: Sequence[Scored]) -> Sample | str:
    """The data the metric is computed from, or the reason why it cannot be computed."""
    if not rows:
        return "there are no rows"
    if metric.field and not any(metric.field in row.fields for row in rows):
        known = sorted({field for row in rows for field in row.fields})
        raise UsageError(f"{metric.name}: there is no field {metric.field!r}{nearest(metric.field, known)}")
    if metric.family == "latency_p":
        timed = [row for row in rows if row.latency_s is not None]
        latencies = tuple(row.latency_s for row in timed if row.latency_s is not None)
        return Quantile(latencies, clusters_of(timed), metric.k / 100) if timed else "no latency is known"
    if metric.family in (*BOTH, "missed", "invented", "f1_macro"):
        return _totals(metric, rows)
    return _means(metric, rows)


def clusters_of(rows: Sequence[Scored]) -> Clusters:
    """A label for each row, or None when no row has a cluster; a row without one is its own cluster."""
    if all(row.cluster is None for row in rows):
        return None
    labels: list[Hashable] = [row.cluster if row.cluster is not None else (row.row,) for row in rows]
    return labels


def value_of(sample: Sample) -> float | None:
    """The metric's value; None for a share of nothing."""
    match sample:
        case Means(values=values, times=times):
            return math.fsum(values) / len(values) * times
        case Quantile(values=values, q=q):
            return quantile(values, q)
        case Totals(table=table, statistic=statistic):
            value = float(statistic(table.sum(axis=0)))
            return value if math.isfinite(value) else None


def bad_leaves(sample: Totals) -> list[float]:
    """The number of leaves of each row that are not right."""
    counts = sample.table.reshape(len(sample.table), -1, len(_COLUMNS))
    return [float(each) for each in counts[..., _BAD].sum(axis=(1, 2))]


def _interval(sample: Sample, value: float, seed: int, draws: int) -> Interval:
    match sample:
        case Quantile(values=values, q=q, clusters=clusters):
            low, high = quantile_interval(values, q, clusters, LEVEL)
            return Interval(max(0.0, low), high)
        case Means(values=values, clusters=clusters, unit="share"):
            return mean_interval(values, clusters, LEVEL)
        case Means(values=values, clusters=clusters, times=times):
            low, high = t_interval(values, clusters, LEVEL)
            return Interval(max(0.0, low * times), high * times)
        case Totals(table=table, statistic=statistic, clusters=clusters):
            low, high = bca(table, statistic, clusters, level=LEVEL, draws=draws, seed=seed)
            if low < high < math.inf:
                return Interval(low, high)
            return share_interval([value] * len(table), clusters, LEVEL)


def _means(metric: Metric, rows: Sequence[Scored]) -> Means | str:
    values = tuple(value for row in rows if (value := _of_row(metric, row)) is not None)
    unknown = len(rows) - len(values)
    if unknown:
        what = "a known price" if metric.unit == "usd" else f"{metric.k} repeats" if metric.k else repr(metric.field)
        return f"{unknown} of {len(rows)} rows are without {what}"
    return Means(values, clusters_of(rows), metric.unit, len(rows) if metric.family == "cost_usd" else 1)


def _of_row(metric: Metric, row: Scored) -> float | None:
    match metric.family:
        case "row_correct":
            return float(row.correct)
        case "failed":
            return float(row.failed)
        case "schema_valid":
            return 1.0 - row.failed
        case "cost_usd" | "cost_usd_per_row":
            return row.cost_usd
        case "right" | "score":
            counts = row.fields.get(metric.field)
            return None if counts is None else float(getattr(counts, metric.family))
        case _:
            return _of_repeats(metric, row)


def _of_repeats(metric: Metric, row: Scored) -> float | None:
    right = row.repeats_right
    if right is None and row.repeats == 1 and row.correct in (0, 1):
        right = int(row.correct)
    if right is None or metric.k > row.repeats:
        return None
    return (pass_at_k if metric.family == "pass_at" else pass_hat_k)(row.repeats, right, metric.k)


def _totals(metric: Metric, rows: Sequence[Scored]) -> Totals:
    import numpy as np

    named = [metric.field] if metric.field else sorted({field for row in rows for field in row.fields})
    nothing = VerdictCounts(right=0.0, score=0.0)
    table = np.array(
        [[[getattr(row.fields.get(name, nothing), column) for column in _COLUMNS] for name in named] for row in rows],
        dtype=np.float64,
    )
    if metric.family == "f1_macro":
        return Totals(table.reshape(len(rows), -1), clusters_of(rows), _f1_macro)
    ratio = metric.family
    return Totals(table.sum(axis=1), clusters_of(rows), lambda totals: _ratio(ratio, totals))


def _f1_macro(totals: Numbers) -> Numbers:
    """The mean over the fields that have an F1."""
    import numpy as np

    each = _ratio("f1", totals.reshape(*totals.shape[:-1], -1, len(_COLUMNS)))
    known = np.isfinite(each)
    with np.errstate(invalid="ignore"):
        mean: Numbers = np.where(known, each, 0.0).sum(axis=-1) / known.sum(axis=-1)
    return mean


def _ratio(family: str, totals: Numbers) -> Numbers:
    """The family's ratio, from columns as in `VerdictCounts`; NaN where the denominator is 0."""
    import numpy as np

    match, wrong, missed, invented, empty, failed = (totals[..., i] for i in range(len(_COLUMNS)))
    expected, given = match + wrong + missed + failed, match + wrong + invented
    parts = {
        "accuracy": (match + empty, expected + invented + empty),
        "precision": (match, given),
        "recall": (match, expected),
        "f1": (2 * match, expected + given),
        "missed": (missed, expected),
        "invented": (invented, given),
    }
    counted, of = parts[family]
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Numbers = counted / of
    return found
