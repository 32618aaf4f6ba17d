"""The metrics of a run in Prometheus' text format, for the textfile collector of its node exporter.

The format: https://prometheus.io/docs/instrumenting/exposition_formats/. Names carry their unit. Counts are those of
one start, as Prometheus expects of counters, which begin at 0 with each process; `pipeline_rows` covers the whole run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.totals.counters import Counters
from pipeline.totals.histogram import Histogram

LAST_SUCCESS = "pipeline_last_success_timestamp_seconds"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMetrics:
    """What the metrics of a start are made of. Times are seconds since 1970.

    `labels` are on every sample, and `info` beside them on `pipeline_run_info`.
    """

    counters: Counters
    labels: Mapping[str, str]
    info: Mapping[str, str]
    is_running: bool
    started_at: float
    last_success_at: float | None
    """When a start of this job, with these labels, last ended with a complete dataset; None if none is known to."""


Samples = Iterable[tuple[Mapping[str, str], float]]


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric: its name, its kind, what it means, and how its samples, or its histogram, are read."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    read: Callable[[RunMetrics], Samples | Histogram]


def _one(value: float | None) -> Samples:
    return [] if value is None else [({}, value)]


def _rows(run: RunMetrics) -> Samples:
    counters = run.counters
    ok, failed = counters.ok_before + counters.ok, counters.failures_before.count + counters.failed
    rows = {"ok": ok, "failed": failed, "left": max(0, counters.rows - ok - failed)}
    return [({"status": status}, count) for status, count in rows.items()]


def _tokens(run: RunMetrics) -> Samples:
    counters = run.counters
    tokens = {
        "input": counters.input_tokens.sum,
        "output": counters.output_tokens.sum,
        "reasoning": counters.reasoning_tokens,
        "cached": counters.cached_tokens,
    }
    return [({"kind": kind}, count) for kind, count in tokens.items()]


def _requests(run: RunMetrics) -> Samples:
    outcomes = {"answered": 0, "throttled": 0, "unavailable": 0} | run.counters.request_outcomes
    return [({"outcome": outcome}, count) for outcome, count in sorted(outcomes.items())]


METRICS = (
    Metric("pipeline_run_info", "gauge", "The run that these metrics are of.", lambda run: [(run.info, 1)]),
    Metric("pipeline_run_active", "gauge", "Whether a start is working.", lambda run: _one(float(run.is_running))),
    Metric("pipeline_start_timestamp_seconds", "gauge", "When the start began.", lambda run: _one(run.started_at)),
    Metric(
        LAST_SUCCESS,
        "gauge",
        "When a start last ended with a complete dataset; kept by later starts that write the same file.",
        lambda run: _one(run.last_success_at),
    ),
    Metric("pipeline_rows", "gauge", "Rows of the whole run by status: ok, failed, left.", _rows),
    Metric("pipeline_requests_total", "counter", "Requests of this start by how they ended.", _requests),
    Metric("pipeline_retries_total", "counter", "Calls made again.", lambda run: _one(run.counters.retries)),
    Metric(
        "pipeline_hedged_requests_total", "counter", "Late calls sent twice.", lambda run: _one(run.counters.hedged)
    ),
    Metric(
        "pipeline_cache_hits_total",
        "counter",
        "Calls that the reply cache answered.",
        lambda run: _one(run.counters.cache_hits),
    ),
    Metric(
        "pipeline_tokens_total",
        "counter",
        "Tokens of answered calls by kind: input, output, reasoning, and cached among the input.",
        _tokens,
    ),
    Metric(
        "pipeline_cost_usd_total",
        "counter",
        "Cost of the answered calls whose price is known, in US dollars.",
        lambda run: _one(run.counters.cost_usd),
    ),
    Metric(
        "pipeline_unpriced_calls_total",
        "counter",
        "Answered calls of unknown price.",
        lambda run: _one(run.counters.unpriced),
    ),
    Metric(
        "pipeline_call_duration_seconds",
        "histogram",
        "Time from sending a call to its answer, of answered calls.",
        lambda run: run.counters.durations,
    ),
    Metric(
        "pipeline_rate_limit_requests_per_second",
        "gauge",
        "The rate that the quota was found to allow.",
        lambda run: _one(run.counters.limit),
    ),
    Metric(
        "pipeline_concurrency_limit", "gauge", "Maximum calls in flight.", lambda run: _one(run.counters.concurrency)
    ),
    Metric("pipeline_in_flight_requests", "gauge", "Calls in flight.", lambda run: _one(run.counters.in_flight)),
    Metric(
        "pipeline_waiting_rows",
        "gauge",
        "Rows that wait for a call or before another try.",
        lambda run: _one(run.counters.waiting + run.counters.retrying),
    ),
)
"""Every metric, in the order of the file. Names and labels are an interface."""


def exposition(run: RunMetrics) -> str:
    """The metrics as text."""
    return "".join(line for metric in METRICS for line in _lines(metric, run))


def last_success_in(text: str, labels: Mapping[str, str]) -> float | None:
    """The last success that metrics written earlier name for the same labels."""
    start = f"{LAST_SUCCESS}{_labels(labels)} "
    for line in text.splitlines():
        if line.startswith(start):
            try:
                return float(line.removeprefix(start))
            except ValueError:
                return None
    return None


def _lines(metric: Metric, run: RunMetrics) -> Iterator[str]:
    found = metric.read(run)
    samples = _buckets(metric.name, found) if isinstance(found, Histogram) else [(metric.name, *one) for one in found]
    if not samples:
        return
    yield f"# HELP {metric.name} {_escaped(metric.help)}\n# TYPE {metric.name} {metric.kind}\n"
    for name, labels, value in samples:
        yield f"{name}{_labels({**run.labels, **labels})} {_number(value)}\n"


def _buckets(name: str, histogram: Histogram) -> list[tuple[str, Mapping[str, str], float]]:
    total, lines = 0, []
    for bound, count in zip((*map(_number, histogram.BOUNDS), "+Inf"), histogram.counts, strict=True):
        total += count
        lines.append((f"{name}_bucket", {"le": bound}, float(total)))
    return [*lines, (f"{name}_sum", {}, histogram.sum), (f"{name}_count", {}, float(total))]


def _labels(labels: Mapping[str, str]) -> str:
    inside = ",".join(f'{name}="{_escaped(value, quotes=True)}"' for name, value in labels.items())
    return f"{{{inside}}}" if inside else ""


def _escaped(text: str, *, quotes: bool = False) -> str:
    escaped = text.replace("\\", "\\\\").replace("\n", "\\n")
    return escaped.replace('"', '\\"') if quotes else escaped


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))
