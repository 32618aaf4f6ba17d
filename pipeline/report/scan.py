"""One pass over the parts of a dataset in bounded memory, so that 10 million rows can be scanned."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.data import Part
from pipeline.job.columns import OURS
from pipeline.report.timeline import EMPTY, ENOUGH, POINTS, Point, Timeline
from pipeline.storage.batches import part_file, rows_of
from pipeline.text import in_words

EXAMPLES = 3
"""Rows shown for each kind of failure."""

KINDS = 40
"""Maximum distinct kinds of failure, finish reasons and models."""

_BATCH = 65_536
_ROWS_A_POINT = 10
_STEP = math.log(1.005)
"""Latencies are counted in bins half a percent wide, which is the precision of their quantiles."""

_SHIFT, _CLASSES = 4_000, 8_000
_COLUMNS = (
    "status",
    "error.type",
    "error.http_status",
    "response.latency_s",
    "response.finished_at",
    "response.finish_reason",
    "response.model",
    "response.from_cache",
)


@dataclass(frozen=True, slots=True)
class Example:
    """A failed row: its inputs as JSON, the error message, and the endpoint's answer if there was one."""

    ordinal: int
    key: str | None
    message: str
    reply: str | None
    inputs: str


@dataclass(frozen=True, slots=True)
class FailureExamples:
    """Rows that failed with this fault, and this HTTP status if the endpoint sent one."""

    fault: str
    http_status: int | None
    rows: int
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True, slots=True)
class RunFindings:
    """The findings of a scan. Latencies are those of rows that were asked, in seconds, by quantile."""

    failures: tuple[FailureExamples, ...] = ()
    latencies: Mapping[float, float] | None = None
    finish_reasons: Mapping[str, int] | None = None
    models: Mapping[str, int] | None = None
    seconds: float | None = None
    timeline: Timeline = EMPTY


NOT_SCANNED = RunFindings()

QUANTILES = (0.5, 0.9, 0.95, 0.99)


def scan(output: Path, parts: Sequence[Part], key: str | None, *, by_time: bool) -> RunFindings:
    """Scans the rows of these parts; with `by_time` also for a timeline, in place of missing events."""
    span = _span(output, parts) if by_time else None
    rows = sum(part.rows for part in parts)
    counts = _RowCounts(span, min(POINTS, max(ENOUGH, rows // _ROWS_A_POINT)))
    for part in parts:
        for name, first, _ in part.spans():
            with part_file(output / name) as file:
                for batch in file.iter_batches(batch_size=_BATCH, columns=list(_COLUMNS)):
                    counts.add(batch, first, failed=bool(part.failed))
                    first += batch.num_rows  # noqa: PLW2901 - counts on through the file
    return RunFindings(
        failures=tuple(_kinds(output, parts, key, counts)),
        latencies=_quantiles(counts.latencies) if counts.latencies else None,
        finish_reasons=dict(counts.reasons.most_common(KINDS)),
        models=dict(counts.models.most_common(KINDS)),
        seconds=None if span is None else span[1] - span[0],
        timeline=EMPTY if span is None else counts.timeline(span),
    )


class _RowCounts:
    """Counters over all rows, bounded in number."""

    def __init__(self, span: tuple[float, float] | None, points: int) -> None:
        self.latencies: Counter[int] = Counter()
        self.reasons: Counter[str] = Counter()
        self.models: Counter[str] = Counter()
        self.faults: Counter[tuple[str, int | None]] = Counter()
        self.seen: dict[tuple[str, int | None], list[int]] = {}
        self.done: Counter[int] = Counter()
        self.by_time: dict[int, Counter[int]] = {}
        self._span, self._points = span, points

    def add(self, batch: pa.RecordBatch, first: int, *, failed: bool) -> None:
        response = batch.column("response")
        classes = _classes(response)
        self.latencies.update(_counted(classes))
        _count_names(self.reasons, pc.struct_field(response, "finish_reason"))
        _count_names(self.models, pc.struct_field(response, "model"))
        if failed:
            self._add_faults(batch.column("error"), first)
        if self._span is not None:
            self._add_times(batch, classes, self._span)

    def _add_faults(self, error: pa.Array, first: int) -> None:
        bad = pc.indices_nonzero(error.is_valid())
        types = pc.struct_field(error, "type").take(bad).to_pylist()
        statuses = pc.struct_field(error, "http_status").take(bad).to_pylist()
        for place, fault, http_status in zip(bad.to_pylist(), types, statuses, strict=True):
            kind = (fault or "unknown", http_status)
            if kind not in self.faults and len(self.faults) >= KINDS:
                kind = ("others", None)
            self.faults[kind] += 1
            seen = self.seen.setdefault(kind, [])
            if len(seen) < EXAMPLES:
                seen.append(first + place)

    def _add_times(self, batch: pa.RecordBatch, classes: pa.Array, span: tuple[float, float]) -> None:
        low, high = span
        seconds = pc.divide(pc.struct_field(batch.column("response"), "finished_at").cast(pa.int64()), 1e6)
        scaled = pc.multiply(pc.subtract(seconds, low), self._points / max(high - low, 1e-9))
        places = pc.min_element_wise(pc.floor(scaled).cast(pa.int64(), safe=False), self._points - 1, skip_nulls=False)
        # A row without a reply has no time of its own: it takes that of its neighbours.
        times = pc.fill_null_backward(pc.fill_null_forward(places))
        bad = pc.equal(batch.column("status").dictionary_decode(), "failed").cast(pa.int64())
        self.done.update(_counted(pc.add(pc.multiply(times, 2), bad)))
        for number, count in _counted(pc.add(pc.multiply(times, _CLASSES), pc.add(classes, _SHIFT))).items():
            self.by_time.setdefault(number // _CLASSES, Counter())[number % _CLASSES - _SHIFT] += count

    def timeline(self, span: tuple[float, float]) -> Timeline:
        """The timeline of when the rows were answered."""
        width = (span[1] - span[0]) / self._points
        return Timeline(tuple(self._point(number, width) for number in range(self._points)), span[1] - span[0])

    def _point(self, number: int, width: float) -> Point:
        quantiles = _quantiles(self.by_time[number]) if number in self.by_time else {}
        return Point(
            number * width,
            width,
            {"ok": self.done[2 * number], "failed": self.done[2 * number + 1]},
            latency_p50=quantiles.get(0.5),
            latency_p99=quantiles.get(0.99),
        )


def _classes(response: pa.Array) -> pa.Array:
    """The bin of each latency; null for rows not asked, or answered by the reply cache."""
    latency = pc.struct_field(response, "latency_s")
    cached = pc.fill_null(pc.struct_field(response, "from_cache"), fill_value=False)
    asked = pc.and_(pc.greater(latency, 0), pc.invert(cached))
    known = pc.if_else(asked, latency, None)
    return pc.floor(pc.divide(pc.ln(known), _STEP)).cast(pa.int64())


def _counted(values: pa.Array) -> dict[int, int]:
    found = pc.value_counts(values)
    pairs = zip(found.field("values").to_pylist(), found.field("counts").to_pylist(), strict=True)
    return {value: count for value, count in pairs if value is not None}


def _count_names(counter: Counter[str], values: pa.Array) -> None:
    for each in pc.value_counts(values):
        name, count = each["values"].as_py(), each["counts"].as_py()
        if name is not None:
            counter[name if name in counter or len(counter) < KINDS else "others"] += count


def _quantiles(classes: Mapping[int, int]) -> dict[float, float]:
    """The midpoints of the bins that contain the quantiles."""
    ordered, total = sorted(classes.items()), sum(classes.values())
    found, passed, wanted = {}, 0, list(QUANTILES)
    for number, count in ordered:
        passed += count
        while wanted and passed >= math.ceil(wanted[0] * total - 1e-9):
            found[wanted.pop(0)] = math.exp((number + 0.5) * _STEP)
    return found


def _span(output: Path, parts: Sequence[Part]) -> tuple[float, float] | None:
    """The Unix times of the first and the last answer, from the Parquet statistics of the parts."""
    ends = [end for part in parts for name, _, _ in part.spans() for end in _ends(output / name)]
    return (min(ends), max(ends)) if ends and max(ends) > min(ends) else None


def _ends(path: Path) -> Iterator[float]:
    with part_file(path) as file:
        names = [file.schema.column(number).path for number in range(len(file.schema))]
        column = names.index("response.finished_at")
        for group in range(file.num_row_groups):
            statistics = file.metadata.row_group(group).column(column).statistics
            if statistics is not None and statistics.has_min_max:
                yield from (statistics.min.timestamp(), statistics.max.timestamp())


def _kinds(output: Path, parts: Sequence[Part], key: str | None, counts: _RowCounts) -> Iterator[FailureExamples]:
    """The failures by kind, most frequent first, each with its first rows."""
    wanted = sorted({ordinal for ordinals in counts.seen.values() for ordinal in ordinals})
    examples = {example.ordinal: example for example in _examples(output, parts, key, wanted)}
    for (fault, http_status), rows in counts.faults.most_common():
        shown = tuple(examples[ordinal] for ordinal in counts.seen[fault, http_status])
        yield FailureExamples(fault, http_status, rows, shown)


def _examples(output: Path, parts: Sequence[Part], key: str | None, wanted: Sequence[int]) -> Iterator[Example]:
    for name, first, rows in (span for part in parts for span in part.spans()):
        own = [ordinal for ordinal in wanted if first <= ordinal < first + rows]
        if own:
            with part_file(output / name) as file:
                for ordinal, record in _records(file, first, own):
                    yield _example(ordinal, record, key)


def _records(file: pq.ParquetFile, first: int, wanted: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Single rows; only their row groups are read."""
    names = [name for name in file.schema_arrow.names if name not in OURS]
    columns = [*names, "response.text", "error"]
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        own = [ordinal for ordinal in wanted if first <= ordinal < first + rows]
        if own:
            taken = file.read_row_group(group, columns=columns).take([ordinal - first for ordinal in own])
            found = (row for batch in taken.to_batches() for row in rows_of(batch))
            yield from zip(own, found, strict=True)
        first += rows


def _example(ordinal: int, record: Mapping[str, Any], key: str | None) -> Example:
    inputs = {name: value for name, value in record.items() if name not in OURS}
    name = inputs.get(key) if key else None
    return Example(
        ordinal=ordinal,
        key=None if name is None else str(name),
        message=(record["error"] or {}).get("message") or "",
        reply=(record["response"] or {}).get("text"),
        inputs=json.dumps(inputs, ensure_ascii=False, indent=1, default=in_words),
    )
