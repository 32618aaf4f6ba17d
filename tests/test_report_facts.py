"""What the folder of a run tells: totals, kinds of failure, latencies, the course of it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.faults import UsageError
from pipeline.report.charts import charts_of, step_of, time_ticks
from pipeline.report.facts import RunFacts, run_facts
from pipeline.report.timeline import PAUSE_S, POINTS, STARTS, timeline_of
from pipeline.storage.run_folder import EVENTS, RunFolder
from pipeline.text.figures import short_number, time_span
from tests.commands import JOB, Shell


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A folder with a finished run of 60 rows, some of which failed."""
    shell = Shell(tmp_path_factory.mktemp("report"), {})
    shell.write("job.py", JOB.replace('keep=["id", "text"]', 'key="id"'))
    shell.rows(60)
    done = shell.pipeline("run", "job.py", "--emulate", "--fault", "400=0.2", "--fault", "blocked=0.1", "--report")
    assert done.code == 3
    assert done.err.splitlines()[-1] == "report   out/a_job/_report.html"
    return shell


@pytest.fixture(scope="module")
def output(shell: Shell) -> Path:
    return shell.folder / "out" / "a_job"


@pytest.fixture(scope="module")
def facts(output: Path) -> RunFacts:
    return run_facts(output)


def rows_of(shell: Shell) -> list[dict[str, Any]]:
    return shell.output()


def test_the_totals_are_those_of_the_manifest(shell: Shell, facts: RunFacts) -> None:
    manifest = shell.manifest()
    assert (facts.rows, facts.ok, facts.failed) == (60, manifest["ok"], manifest["failed"])
    assert facts.tokens == manifest["tokens"]
    assert (facts.cost_usd, facts.unpriced) == (0.0, manifest["charged"]["unpriced_calls"])
    assert manifest["cost_usd"] is None
    assert (facts.status, facts.simulated, facts.left) == ("failed", True, 0)
    assert facts.run_id == manifest["run"]["id"]


def test_failures_are_counted_by_fault_and_status_with_the_first_rows_as_examples(
    shell: Shell, facts: RunFacts
) -> None:
    failed = [(number, row) for number, row in enumerate(rows_of(shell)) if row["status"] == "failed"]
    kinds = {(kind.fault, kind.http_status): kind for kind in facts.findings.failures}
    assert sum(kind.rows for kind in kinds.values()) == len(failed) == facts.failed > 0
    for (fault, http_status), kind in kinds.items():
        own = [n for n, row in failed if (row["error"]["type"], row["error"]["http_status"]) == (fault, http_status)]
        assert kind.rows == len(own)
        assert [example.ordinal for example in kind.examples] == own[:3]
        assert [example.key for example in kind.examples] == [str(number) for number in own[:3]]
        assert json.loads(kind.examples[0].inputs)["text"] == f"text {own[0]}"


def test_latency_quantiles_are_the_rows_own_to_half_a_percent(shell: Shell, facts: RunFacts) -> None:
    latencies = sorted(row["response"]["latency_s"] for row in rows_of(shell) if row["response"])
    assert facts.findings.latencies is not None
    for quantile, found in facts.findings.latencies.items():
        exact = latencies[math.ceil(quantile * len(latencies)) - 1]
        assert found == pytest.approx(exact, rel=0.005)


def test_without_the_run_folder_the_manifest_and_the_parts_tell_the_same(
    output: Path, facts: RunFacts, tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(output, alone, ignore=shutil.ignore_patterns("_run"))
    found = run_facts(alone)
    same = ("job", "model", "rows", "ok", "failed", "tokens", "cost_usd", "inputs", "status", "parts", "fingerprint")
    assert [getattr(found, name) for name in same] == [getattr(facts, name) for name in same]
    assert found.findings.failures == facts.findings.failures
    points = found.timeline.points
    assert sum(point.counts["ok"] or 0 for point in points) == found.ok
    assert sum(point.counts["failed"] or 0 for point in points) == found.failed


def test_without_a_manifest_the_sealed_parts_are_counted_and_the_run_is_stopped(output: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    shutil.copytree(output, killed)
    (killed / "_manifest.json").unlink()
    found = run_facts(killed)
    assert (found.status, found.rows, found.ok + found.failed) == ("stopped", 60, 60)


def test_a_run_that_is_locked_is_running(output: Path, tmp_path: Path) -> None:
    working = tmp_path / "working"
    shutil.copytree(output, working)
    with RunFolder(working).locked():
        assert run_facts(working).status == "running"


def test_a_part_that_is_gone_is_told_of(output: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn"
    shutil.copytree(output, torn)
    (torn / "data/part-000000.parquet").unlink()
    found = run_facts(torn)
    assert found.notes == ("1 parts are not in the folder: their rows are counted, and not shown",)
    assert found.ok + found.failed == 60


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds neither the plan nor the manifest of a run"):
        run_facts(tmp_path)


# Events, brought down to points.


def events(path: Path, times: Sequence[float]) -> Path:
    """A line for each time, each with one row done and one request."""
    lines = [
        json.dumps({"at": at, "done": number, "ok": 1, "failed": 0, "requests": 2, "latency_p99": 0.1, "limit": None})
        for number, at in enumerate(times)
    ]
    path.write_text("\n".join([*lines, '{"at": 1, "note": "tuned"}', '{"at": 17, "do']))
    return path


@given(st.lists(st.floats(0.0, 3 * PAUSE_S), max_size=300))
def test_no_event_is_lost_and_no_more_points_are_made_than_a_chart_shows(
    tmp_path_factory: pytest.TempPathFactory, gaps: list[float]
) -> None:
    at = 1e9
    times: list[float] = []
    for gap in gaps:
        at += gap
        times.append(round(at, 3))
    found = timeline_of(events(tmp_path_factory.mktemp("events") / EVENTS, times))
    assert len(found.points) <= POINTS
    assert sum(point.counts["ok"] or 0 for point in found.points) == len(times)
    assert len(found.resumed) < STARTS
    for point in found.points:
        assert point.at <= (found.seconds or 0.0)


def test_the_time_at_work_leaves_out_the_pauses(tmp_path: Path) -> None:
    times = [*range(100, 110), *range(500, 520)]
    found = timeline_of(events(tmp_path / EVENTS, times))
    assert found.seconds == 10 + 20
    assert list(found.resumed) == [10.0]
    assert {round(point.per_second("requests") or 0, 6) for point in found.points} == {2.0}


def test_a_run_without_events_has_no_timeline_and_no_chart(tmp_path: Path) -> None:
    assert timeline_of(tmp_path / EVENTS).points == ()
    assert charts_of(timeline_of(tmp_path / EVENTS)) == []


def test_charts_are_of_what_the_timeline_knows(tmp_path: Path) -> None:
    charts = charts_of(timeline_of(events(tmp_path / EVENTS, range(100, 400))))
    assert [chart.title for chart in charts] == ["Throughput", "Requests and limit", "Latency", "Errors"]
    requests = charts[1]
    assert [line.name for line in requests.lines] == ["requests"]
    assert requests.hits[0].text.endswith("requests 2 1/s")


# The axes.


@given(st.floats(1e-6, 1e9))
def test_a_step_is_1_2_or_5_times_a_power_of_ten_and_few_of_them_reach_the_value(largest: float) -> None:
    step = step_of(largest)
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(mantissa - each) for each in (1, 2, 5)) < 1e-6
    assert 1.6 - 1e-6 <= largest / step <= 4 + 1e-6


@given(st.floats(0.01, 1e7))
def test_a_time_axis_has_a_few_marks_within_it(end: float) -> None:
    marks = time_ticks(end)
    assert 2 <= len(marks) <= 9
    assert all(0 <= at <= end * (1 + 1e-6) for at, _ in marks)


def test_numbers_and_times_are_short() -> None:
    assert [short_number(each) for each in (0, 0.12345, 12.345, 123.4, 9999, 12_345, 999_499, 1_234_567, 2e9)] == [
        "0", "0.123", "12.3", "123", "9999", "12.3k", "999k", "1.23M", "2G",
    ]  # fmt: skip
    assert [time_span(each) for each in (0.5, 42.4, 61, 3661, 90_000)] == [
        "0.5 s", "42 s", "1 min 1 s", "1 h 1 min", "1 d 1 h",
    ]  # fmt: skip
