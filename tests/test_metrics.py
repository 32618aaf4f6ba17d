"""The metrics of a run: as Prometheus and OpenTelemetry read them, over one process and several."""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client.parser import text_string_to_metric_families

from pipeline.cli.log_options import metrics_of
from pipeline.cli.metrics_output import MetricsTarget
from pipeline.cli.progress_lines import log_line, second_line
from pipeline.data import Reply, Request
from pipeline.faults import Fault, InvalidRow, Refused, Throttled, Unavailable, UsageError
from pipeline.pace import RecentRate
from pipeline.policy import Dispatcher, Limits, LocalUpstream, Shutdown
from pipeline.report import genai_names
from pipeline.report.metrics import LAST_SUCCESS, METRICS, RunMetrics, exposition, last_success_in
from pipeline.report.otel import ExportTrouble, OtelMetrics, otel_name
from pipeline.totals.counters import Counters
from pipeline.totals.histogram import CallDurations
from tests import virtual
from tests.commands import JOB, Shell
from tests.servers import chat, error, served
from tests.test_documents import code_of, tables_under, text_of

anyio_backend = virtual.anyio_backend

LABELS = {"job": "a_job", "model": "google/gemini-test"}

Found = dict[str, dict[tuple[tuple[str, str], ...], float]]


def run_metrics(counters: Counters, labels: Mapping[str, str] = LABELS, success: float | None = None) -> RunMetrics:
    return RunMetrics(
        counters=counters,
        labels=labels,
        info={"run_id": "r", "version": "1"},
        is_running=True,
        started_at=1000.5,
        last_success_at=success,
    )


def parsed(text: str) -> Found:
    """The samples by name and by their labels but for `job` and `model`, as Prometheus' own parser reads them."""
    found: Found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            rest = tuple(sorted((name, value) for name, value in sample.labels.items() if name not in LABELS))
            found.setdefault(sample.name, {})[rest] = sample.value
    return found


# Histograms.


@given(st.lists(st.floats(0, 1000)), st.lists(st.floats(0, 1000)))
def test_histograms_of_processes_add_up(one: list[float], other: list[float]) -> None:
    def of(values: list[float]) -> CallDurations:
        histogram = CallDurations()
        for value in values:
            histogram.observe(value)
        return histogram

    both = of(one) + of(other)
    assert both.counts == of([*one, *other]).counts
    assert both.count == len(one) + len(other)
    assert both.sum == pytest.approx(sum(one) + sum(other))


def test_a_bound_belongs_to_its_bucket() -> None:
    histogram = CallDurations()
    for seconds in (0.0, 0.01, 0.0100001, 1000.0):
        histogram.observe(seconds)
    assert (histogram.counts[0], histogram.counts[1], histogram.counts[-1]) == (2, 1, 1)


def test_drained_histograms_and_outcomes_are_added_elsewhere() -> None:
    worker, parent = Counters(), Counters()
    worker.durations.observe(0.5)
    worker.request_outcomes["answered"] += 1
    parent.add(worker.drain())
    parent.add(worker.drain())
    assert (parent.durations.count, parent.request_outcomes) == (1, Counter(answered=1))
    assert worker.durations.count == 0


def test_a_snapshot_does_not_change_any_more() -> None:
    counters = Counters()
    before = counters.snapshot()
    counters.durations.observe(0.5)
    counters.request_outcomes["answered"] += 1
    assert (before.durations.count, before.request_outcomes) == (0, Counter())


@pytest.mark.anyio
async def test_requests_are_counted_by_how_they_end_if_they_left() -> None:
    ends: list[Fault | None] = [Throttled("429"), None, Unavailable("503"), Refused("400"), InvalidRow("no")]

    async def ask(_: Request) -> Reply:
        await anyio.sleep(0.3)
        if (fault := ends.pop(0)) is not None:
            raise fault
        return Reply(b"{}")

    counters = Counters(ok_before=1)
    lanes = [LocalUpstream("here", ask, rate=None)]
    dispatcher = Dispatcher(lanes, Limits(4), stop=Shutdown(), counters=counters, give_up_s=9.0)
    for ordinal in range(4):
        try:
            await dispatcher.ask(Request(ordinal=ordinal, payload={}))
        except Fault:
            continue
    assert counters.request_outcomes == {"throttled": 1, "answered": 1, "unavailable": 1, "refused": 1}
    assert sum(counters.request_outcomes.values()) == counters.requests
    assert counters.durations.count == 1
    assert counters.durations.sum == pytest.approx(0.3)
    assert (counters.last_throttle, counters.last_failure) == ("429", "503")


# What rows wait for, and why.


def test_the_progress_says_why_rows_wait_and_for_how_long() -> None:
    counters = Counters(rows=9, waiting=4, waits_for="quota", limit=5.0, wait_s=12.0)
    counters.last_throttle, counters.last_failure = "429 RESOURCE_EXHAUSTED: later", "503 UNAVAILABLE"
    said = "4 waiting for quota (5/s), 12 s: 429 RESOURCE_EXHAUSTED: later"
    assert said in log_line(counters, RecentRate(0.0, 0))
    assert said in second_line(counters, 160)
    counters.waits_for, counters.retrying = None, 2
    assert "2 retrying, the last one failed: 503 UNAVAILABLE" in log_line(counters, RecentRate(0.0, 0))
    counters.retrying = 0
    assert "503" not in log_line(counters, RecentRate(0.0, 0))


# Prometheus.


def test_the_table_of_the_metrics_is_that_of_the_code() -> None:
    listed = [tuple(row) for row in tables_under(text_of("docs/logs.md"), "## Metrics for Prometheus")[0]]
    assert [(code_of(name), kind, text) for name, kind, text in listed] == [(m.name, m.kind, m.help) for m in METRICS]


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r\x85\u2028\u2029\x0b\x0c\x1c\x1d\x1e")))
def test_labels_are_read_back_as_they_were(name: str) -> None:
    labels = {"job": name, "model": 'a "b"\\n\n'}
    text = exposition(run_metrics(Counters(), labels, success=12.5))
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert all({**sample.labels, **labels} == sample.labels for sample in samples)
    assert last_success_in(text, labels) == 12.5
    assert last_success_in(text, {**labels, "job": f"{name}x"}) is None


def test_metrics_have_help_type_and_unit_and_the_right_values() -> None:
    counters = Counters(rows=10, ok=5, ok_before=1, failed=1, requests=9, retries=2, cost_usd=0.25, limit=4.5)
    counters.concurrency, counters.in_flight = 64, 3
    counters.request_outcomes.update(answered=6, throttled=3)
    counters.input_tokens.observe(100)
    counters.output_tokens.observe(7)
    for seconds in (0.005, 0.3, 200.0):
        counters.durations.observe(seconds)
    text = exposition(run_metrics(counters))
    families = list(text_string_to_metric_families(text))
    assert all(family.documentation and family.type != "unknown" for family in families)
    assert text.count("# HELP ") == text.count("# TYPE ") == len(METRICS) - 1  # no success yet
    found = parsed(text)
    assert found["pipeline_rows"] == {(("status", "ok"),): 6, (("status", "failed"),): 1, (("status", "left"),): 3}
    assert found["pipeline_requests_total"][("outcome", "throttled"),] == 3
    assert found["pipeline_tokens_total"][("kind", "input"),] == 100
    assert found["pipeline_cost_usd_total"] == {(): 0.25}
    assert found["pipeline_rate_limit_requests_per_second"] == {(): 4.5}
    buckets = found["pipeline_call_duration_seconds_bucket"]
    assert (buckets[("le", "0.01"),], buckets[("le", "0.32"),], buckets[("le", "+Inf"),]) == (1, 2, 3)
    assert found["pipeline_call_duration_seconds_sum"] == {(): 200.305}
    assert LAST_SUCCESS not in found


def test_a_file_that_cannot_be_written_is_refused_before_anything(tmp_path: Path) -> None:
    shell = Shell(tmp_path, {})
    shell.write("job.py", JOB)
    shell.rows(3)
    for wrong in ("nowhere/m.prom", "."):
        done = shell.pipeline("run", "job.py", "--emulate", "--metrics", wrong)
        assert (done.code, done.err) == (2, f"error: --metrics {wrong}: name a file in a folder that exists\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("processes", ["1", "2"])
def test_the_metrics_of_a_run_are_in_the_file(processes: str, tmp_path: Path) -> None:
    """Over two starts: the second fails and keeps the time of the first one's success."""
    shell, file = Shell(tmp_path, {"OPENAI_API_KEY": "k"}), tmp_path / "m.prom"
    shell.write("job.py", JOB)
    shell.rows(40)
    answers = [error(503, "UNAVAILABLE", "overloaded")]
    with served(lambda _: answers.pop() if answers else chat(json.dumps({"answer": "x"}))) as server:
        options = ("--base-url", server.base_url, "--metrics", "m.prom", "--processes", processes, "--quiet")
        assert shell.pipeline("run", "job.py", *options).code == 0
        first = parsed(file.read_text())
        shell.rows(45)
        assert shell.pipeline("run", "job.py", *options, "--fresh", "--budget-tokens", "1").code == 6
        second = parsed(file.read_text())
    assert first["pipeline_rows"][("status", "ok"),] == 40
    requests = {outcome: int(count) for ((_, outcome),), count in first["pipeline_requests_total"].items()}
    assert requests == {"answered": 40, "throttled": 0, "unavailable": 1}
    assert first["pipeline_call_duration_seconds_count"] == {(): 40}
    assert first["pipeline_retries_total"] == {(): 1}
    assert first["pipeline_run_active"] == {(): 0}
    assert first[LAST_SUCCESS] == second[LAST_SUCCESS]
    assert second["pipeline_rows"][("status", "left"),] == 45
    assert list(tmp_path.glob(".m.prom*")) == []


# OpenTelemetry.


def points(reader: InMemoryMetricReader) -> dict[str, list[Any]]:
    data: Any = reader.get_metrics_data()
    metrics = [metric for one in data.resource_metrics for scope in one.scope_metrics for metric in scope.metrics]
    return {metric.name: list(metric.data.data_points) for metric in metrics}


def test_opentelemetry_gets_the_histograms_exactly_and_the_figures() -> None:
    counters, reader = Counters(rows=5, ok=3, retries=2), InMemoryMetricReader()
    metrics = OtelMetrics(MeterProvider([reader], shutdown_on_exit=False), run_metrics(counters))
    for seconds in (0.005, 0.3, 0.31, 200.0):
        counters.durations.observe(seconds)
        counters.input_tokens.observe(10)
        counters.output_tokens.observe(3)
        metrics.update(run_metrics(counters.snapshot()))
    found = points(reader)
    [duration] = found[genai_names.OPERATION_DURATION]
    assert tuple(duration.explicit_bounds) == CallDurations.BOUNDS
    assert list(duration.bucket_counts) == counters.durations.counts
    assert duration.sum == pytest.approx(counters.durations.sum)
    assert duration.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "gcp.vertex_ai",
        "gen_ai.request.model": "google/gemini-test",
    }
    tokens = {one.attributes["gen_ai.token.type"]: one.sum for one in found[genai_names.TOKEN_USAGE]}
    assert tokens == {"input": 40, "output": 12}
    assert {one.attributes["status"]: one.value for one in found["pipeline.rows"]} == {"ok": 3, "failed": 0, "left": 2}
    assert [one.value for one in found["pipeline.retries"]] == [2]
    metrics.close()


def test_every_metric_has_a_name_of_its_own_there() -> None:
    names = [otel_name(metric) for metric in METRICS]
    assert len(set(names)) == len(names)
    assert "pipeline.cost_usd" in names


def test_opentelemetry_that_is_not_installed_is_refused_only_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    assert metrics_of(None, otel=None) is None
    assert metrics_of(None, otel=True) == MetricsTarget(None, otel=True)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(UsageError, match="install the extra"):
        metrics_of(None, otel=True)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    assert metrics_of(None, otel=None) == MetricsTarget()
    assert metrics_of(None, otel=False) is None


def test_an_export_that_fails_is_one_note_at_the_end_without_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    tree = logging.getLogger("opentelemetry.exporter")
    before = tree.parent.handlers[:] if tree.parent else []
    trouble = ExportTrouble()
    trouble.attach()
    try:
        tree.warning("no answer from http://user:hunter2@collector, retrying")
        tree.warning("again")
    finally:
        root = logging.getLogger("opentelemetry")
        root.handlers[:], root.propagate = before, True
    assert trouble.first == "no answer from http://[redacted]@collector, retrying"
    assert caplog.records == []
