"""The page of a run that was taken up again: how often, where, and what it has cost in all."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.facts import run_facts
from pipeline.report.page import page_of
from pipeline.report.timeline import PAUSE_S, STARTS, timeline_of
from pipeline.storage.run_folder import EVENTS
from tests import virtual
from tests.commands import JOB, Shell
from tests.test_monitor import MonitoredRun, NotedFiles
from tests.test_report_page import Reader

anyio_backend = virtual.anyio_backend


def log(path: Path, lines: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def start(at: float) -> dict[str, Any]:
    return {"at": at, "start": True}


def second(at: float, **more: Any) -> dict[str, Any]:
    return {"at": at, "done": 1, "ok": 1, "failed": 0, "requests": 1, **more}


@given(st.lists(st.tuples(st.floats(0.0, 2 * PAUSE_S), st.integers(0, 5)), min_size=1, max_size=8))
def test_every_start_is_counted_and_begins_where_the_work_before_it_ended_however_short_the_pause(
    tmp_path_factory: pytest.TempPathFactory, starts: list[tuple[float, int]]
) -> None:
    at, lines, ends = 1e9, [], []
    for pause, seconds in starts:
        at += pause
        lines.append(start(at))
        lines += [second(at + passed + 1) for passed in range(seconds)]
        at += seconds
        ends.append(seconds)
    found = timeline_of(log(tmp_path_factory.mktemp("starts") / EVENTS, lines))
    assert found.starts == len(starts)
    assert list(found.resumed) == pytest.approx([sum(ends[:n]) for n in range(1, len(ends))])
    assert (found.seconds or 0) == pytest.approx(sum(ends))


def test_a_process_that_was_suspended_is_no_further_start_and_its_pause_no_work(tmp_path: Path) -> None:
    found = timeline_of(log(tmp_path / EVENTS, [start(100), second(101), second(102), second(9000), second(9001)]))
    assert (found.starts, found.resumed, found.seconds) == (1, (), 4.0)


def test_a_clock_that_is_set_back_stops_no_chart(tmp_path: Path) -> None:
    found = timeline_of(log(tmp_path / EVENTS, [start(9000), second(9001), second(5000), second(5001)]))
    assert (found.starts, found.seconds) == (1, 3.0)


def test_more_starts_than_are_drawn_are_counted(tmp_path: Path) -> None:
    lines = [line for n in range(2 * STARTS) for line in (start(10 * n), second(10 * n + 1))]
    found = timeline_of(log(tmp_path / EVENTS, lines))
    assert (found.starts, len(found.resumed)) == (2 * STARTS, STARTS - 1)


@pytest.mark.anyio
async def test_a_start_is_told_on_a_line_of_its_own_after_a_line_that_a_crash_cut(tmp_path: Path) -> None:
    (tmp_path / EVENTS).write_text('{"at": 17, "do')
    files = NotedFiles(until=1)
    await files.watched(MonitoredRun(tmp_path, files=files))
    found = timeline_of(tmp_path / EVENTS)
    assert found.starts == 1
    assert len((tmp_path / EVENTS).read_bytes().splitlines()) == 3


@pytest.mark.anyio
async def test_what_happened_in_the_last_part_of_a_second_is_told_at_the_end(tmp_path: Path) -> None:
    run = MonitoredRun(tmp_path)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run.watch.keep)
        await anyio.sleep(0.5)
        run.counters.requests = 7
        tasks.cancel_scope.cancel()
    assert [event.get("requests") for event in run.events()] == [None, 7]


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A run of 40 rows in three starts, a second or two each: two samples, and then all."""
    shell = Shell(tmp_path_factory.mktemp("resumed"), {})
    shell.write("job.py", JOB.replace("google/gemini-test", "google/gemini-3.5-flash-lite"))
    shell.rows(40)
    for limit in (["--limit", "5"], ["--limit", "12"], []):
        done = shell.pipeline("run", "job.py", "--emulate", "--latency", "0.2", "--concurrency", "4", "--quiet", *limit)
        assert done.code == 0, done.err
    return shell


def test_a_run_taken_up_twice_says_three_starts_and_has_two_dashed_lines_in_every_chart(resumed: Shell) -> None:
    facts = run_facts(resumed.folder / "out" / "a_job")
    assert (facts.starts, len(facts.timeline.resumed)) == (3, 2)
    page = page_of(facts)
    assert "3 starts" in Reader(page).text
    assert page.count('<line class="resumed"') == 2 * page.count('<figure class="chart">') > 0


def test_the_dollars_of_the_chart_never_fall_and_end_at_what_the_whole_run_has_cost(resumed: Shell) -> None:
    facts = run_facts(resumed.folder / "out" / "a_job")
    spent = [point.cost_usd for point in facts.timeline.points if point.cost_usd is not None]
    assert spent == sorted(spent)
    assert spent[-1] == pytest.approx(facts.cost_usd, abs=1e-6)
    assert sum(point.counts["requests"] or 0 for point in facts.timeline.points) == 40


def test_requests_that_were_sent_twice_are_on_the_page(resumed: Shell, tmp_path: Path) -> None:
    facts = run_facts(resumed.folder / "out" / "a_job")
    lines = [start(100), *(second(100 + number, hedged=2) for number in range(1, 11))]
    page = Reader(page_of(replace(facts, timeline=timeline_of(log(tmp_path / EVENTS, lines))))).text
    assert "Sent twice (hedged) 20" in page
    assert "hedged" not in Reader(page_of(facts)).text
