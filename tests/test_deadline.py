"""`--deadline`: a start that stops by itself in time, and goes on with the same command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import pipeline
from pipeline import Job
from pipeline.execution.deadline import Deadline, deadline_of, duration_s
from pipeline.faults import DeadlineReached, UsageError
from pipeline.policy import Shutdown
from pipeline.totals.counters import Counters
from tests import virtual
from tests.commands import JOB, Shell
from tests.evaluations import evaluated, write_evaluation, write_gold
from tests.servers import Served, chat, served

anyio_backend = virtual.anyio_backend

LATE = "0.001s"
"""A deadline that has passed before any command can make a call."""


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shell = Shell(tmp_path, {"OPENAI_API_KEY": "k"})
    shell.write("job.py", JOB)
    shell.rows(20)
    return shell


@pytest.fixture
def server() -> Iterator[Served]:
    with served(lambda call: chat(json.dumps({"answer": call.prompt}))) as server:
        yield server


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("6h", 21_600), ("1h30m", 5400), ("1.5h", 5400), ("2d", 172_800)]
)
def test_a_deadline_is_a_number_of_units_of_time(text: str, seconds: float) -> None:
    assert duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "6", "6 h", "-1h", "0s", "h", "06:00", "6hours", "nan"])
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="--deadline takes a duration, as in 90s, 30m, 6h"):
        duration_s(text)


def test_calls_in_flight_have_the_drain_timeout_but_at_most_half_of_the_time() -> None:
    assert Deadline(21_600, at=0).drain_s(20) == 20
    assert Deadline(10, at=0).drain_s(20) == 5


@pytest.mark.anyio
async def test_the_stop_is_requested_so_early_that_calls_in_flight_end_by_the_deadline() -> None:
    stop, counters = Shutdown(), Counters()
    deadline = deadline_of(3600, clock=anyio.current_time)
    assert deadline is not None
    await deadline.keep(stop, counters, 20, clock=anyio.current_time)
    assert anyio.current_time() == 3580
    assert isinstance(stop.reason, DeadlineReached)
    assert str(stop.reason) == "the deadline of 60 min (--deadline) is reached"
    assert counters.notices == ["the deadline is near: finishing 0 calls in flight, 20 s at most"]


@pytest.mark.anyio
async def test_a_run_that_is_stopping_already_keeps_its_reason() -> None:
    stop, counters = Shutdown(), Counters()
    stop.request(earlier := DeadlineReached("earlier"))
    await Deadline(10, at=10).keep(stop, counters, 5, clock=anyio.current_time)
    assert stop.reason is earlier
    assert not counters.notices


@pytest.mark.parametrize("processes", ["1", "2"])
def test_p17_a_run_ends_with_6_and_the_same_command_resumes(shell: Shell, server: Served, processes: str) -> None:
    command = ("run", "job.py", "--base-url", server.base_url, "--json", "--processes", processes, "--deadline")
    stopped = shell.pipeline(*command, LATE)
    assert (stopped.code, stopped.json["status"], stopped.json["left"]) == (6, "stopped", 20)
    assert "the deadline of 1 s (--deadline) is reached" in stopped.json["reason"]
    assert not server.calls
    status = shell.pipeline("status", "out/a_job").out
    assert "the deadline of 1 s (--deadline) is reached" in status
    assert "next      run the same command again to resume" in status
    done = shell.pipeline(*command, "6h")
    assert (done.code, done.json["ok"]) == (0, 20)


def test_p17_an_evaluation_ends_with_6_and_nothing_is_graded(shell: Shell, server: Served) -> None:
    write_evaluation(shell, gates='AtLeast("row_correct", 0.5)')
    write_gold(shell, 5)
    stopped = evaluated(shell, server, "--deadline", LATE)
    assert (stopped.code, server.calls) == (6, [])
    assert "is reached" in stopped.err
    assert "nothing is graded; run the same command again to resume" in stopped.err


def test_p17_python_raises_it_with_the_summary_and_takes_seconds_or_a_text(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    job = Job(name="a_job", model="google/gemini-3.5-flash-lite", user="Say {{ text }}")
    call: dict[str, Any] = {"base_url": server.base_url, "progress": False}
    for deadline in (0.001, LATE):
        with pytest.raises(pipeline.DeadlineReached) as stopped:
            pipeline.run_sync(job, [{"text": "a"}], tmp_path / "out", deadline=deadline, **call)
        assert stopped.value.summary.left == 1
    assert pipeline.run_sync(job, [{"text": "a"}], tmp_path / "out", deadline="6h", **call).summary.ok == 1
    with pytest.raises(UsageError, match=r"deadline takes a number from 0\.001 on, not 0"):
        pipeline.run_sync(job, [{"text": "a"}], deadline=0, **call)
