"""Calls that were in flight when a run of several processes was killed may be billed: they count against its budget."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import Shell, ended
from tests.servers import Call, Says, Served, Silence, chat, served

JOB = """
from pipeline import Job

job = Job(name="a_job", model="m", input="rows.jsonl", user="Say {{ text }}",
          prices={"m": {"input": 1.0, "output": 1.0}})
"""
ANSWERED = 60
"""Calls that are answered before the server falls silent: enough for several to be in flight at a time."""


def silent_after(call: Call) -> Says:
    return chat("fine") if call.number < ANSWERED else Silence()


@pytest.fixture
def server() -> Iterator[Served]:
    with served(silent_after) as running:
        yield running


@pytest.mark.parametrize("processes", ["1", "2"])
def test_m1_m4_every_call_that_was_in_flight_when_the_run_was_killed_counts_as_lost(
    tmp_path: Path, server: Served, processes: str
) -> None:
    """A worker finds its parent gone before it ends: what it cuts off then must stay in the books."""
    shell = Shell(tmp_path, {"OPENAI_API_KEY": "sk-nothing"})
    shell.write("job.py", JOB)
    shell.rows(2200)
    arguments = ["run", "job.py", "--base-url", server.base_url, "--json", "--quiet", "-c", "8"]
    arguments += ["--processes", processes, "--budget-usd", "100"]
    with shell.started(*arguments) as child:
        server.arrived(ANSWERED + 8)
        child.kill()
        ended(child)
    silent = len(server.calls) - ANSWERED
    server.follow(lambda _: chat("fine"))
    done = shell.pipeline(*arguments)
    assert (done.code, done.json["ok"]) == (0, 2200)
    assert silent == 8
    assert done.json["run_lost_calls"] >= silent
    assert len(server.calls) <= done.json["run_calls"] + done.json["run_lost_calls"]
    assert json.loads(done.out)["run_cost_usd"] == pytest.approx(done.json["run_calls"] * 15e-6)
