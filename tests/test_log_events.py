"""The log: which events there are, what a record has and never has, and how it looks on stderr."""

from __future__ import annotations

import ast
import io
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline.cli.log_format import JsonFormatter, JsonLines, TextFormatter, logged
from pipeline.cli.log_options import CONTAINERS, chosen_format
from pipeline.data import Reply, Request
from pipeline.endpoint.log_events import EVENTS, log
from pipeline.execution.processes.relayed_records import RelayedRecords, log_relayed
from pipeline.faults import Throttled, Unavailable
from pipeline.pace import QUIET_S, AdaptiveRate, CircuitBreaker, FailureRate, RetryBudget, ThrottleEpisode
from pipeline.policy import LocalUpstream, Shutdown, retrying
from pipeline.totals.counters import Counters
from tests import virtual
from tests.commands import JOB, Shell
from tests.servers import Call, Says, chat, error, served
from tests.test_documents import cells_of, code_of, tables_under, text_of

anyio_backend = virtual.anyio_backend

ROOT = Path(pipeline.__file__).parent
LOGGER = logging.getLogger("pipeline.test_log_events")
KEY = "Zq7-a-key-of-no-known-form-Zq7"
TOKEN = "ya29.a0AfB_byC-canary-token-0123456789"
ROW = "the patient is Zebulon Quux-7731"
RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


@pytest.fixture
def records(caplog: pytest.LogCaptureFixture) -> Callable[..., list[dict[str, Any]]]:
    """The events logged so far as dictionaries of their name and their fields."""
    caplog.set_level(logging.DEBUG, logger="pipeline")

    def found() -> list[dict[str, Any]]:
        return [{"event": one.event, **one.fields} for one in caplog.records if hasattr(one, "event")]  # type: ignore[attr-defined]

    return found


# The events.


def logged_in_code() -> Iterator[tuple[str, set[str]]]:
    """Every event that the code logs, with the fields that are named there."""
    for path in ROOT.rglob("*.py"):
        source = path.read_text()
        for node in ast.walk(ast.parse(source)) if "log_events import log" in source else ():
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "log" and ast.unparse(node.args[0]) == "_LOG":
                name = node.args[1]
                assert isinstance(name, ast.Constant)
                yield str(name.value), {one.arg for one in node.keywords if one.arg}


def test_every_event_is_logged_and_has_the_fields_that_it_is_given() -> None:
    found = list(logged_in_code())
    assert {name for name, _ in found} == set(EVENTS)
    assert [(name, fields) for name, fields in found if not fields <= set(EVENTS[name].fields)] == []


def test_the_table_of_the_events_is_that_of_the_code() -> None:
    rows = tables_under(text_of("docs/logs.md"), "### Events")[0]
    listed = {code_of(name): (level, tuple(re.findall(r"`(\w+)`", names)), text) for name, level, names, text in rows}
    assert listed == {
        name: (logging.getLevelName(one.level).lower(), one.fields, one.meaning) for name, one in EVENTS.items()
    }
    assert cells_of("| a | b |") == ["a", "b"]


@pytest.mark.parametrize("event", EVENTS)
def test_a_message_is_made_of_the_fields_of_its_event(event: str, records: Callable[..., Any]) -> None:
    figures = re.findall(r"\{(\w+):", EVENTS[event].message)
    log(LOGGER, event, **{name: 1.5 if name in figures else f"the {name}" for name in EVENTS[event].fields})
    [record] = records()
    assert set(record) == {"event", *EVENTS[event].fields}


def test_an_event_below_the_level_costs_nothing_but_the_question() -> None:
    class Untouched:
        def __str__(self) -> str:
            raise AssertionError

    logger = logging.getLogger("pipeline.test_log_events.off")
    logger.setLevel(logging.ERROR)
    log(logger, "token.failed", wait_s=1.0, reason=Untouched())


def test_every_text_of_a_record_is_redacted_and_on_one_line(records: Callable[..., Any]) -> None:
    log(LOGGER, "token.failed", wait_s=1.0, reason=f"401\nfor Bearer {TOKEN}\x1b[2J")
    log(LOGGER, "row.retry", row=1, wait_s=1.0, attempt=2, reason=Unavailable(f"api_key={TOKEN} " + "x" * 5000))
    [first, second] = records()
    assert first["reason"].startswith("401 for [redacted]")
    assert TOKEN not in str((first, second))
    assert len(second["reason"]) == 500
    assert "http_status" not in second


# The places.


@pytest.mark.anyio
async def test_every_retry_is_logged_with_its_row_and_why(records: Callable[..., Any]) -> None:
    faults = [Unavailable("503 overloaded", http_status=503), Unavailable("timeout")]

    async def ask(_: Request) -> Reply:
        if faults:
            raise faults.pop(0)
        return Reply(b"{}")

    tried = retrying(
        ask, attempts=5, failure_rate=FailureRate(), budget=RetryBudget(), stop=Shutdown(), counters=Counters()
    )
    await tried(Request(ordinal=7, payload={}))
    [first, second] = records()
    assert {**first, "wait_s": 0} == {
        "event": "row.retry", "row": 7, "attempt": 2, "wait_s": 0, "fault": "Unavailable", "http_status": 503,
        "reason": "503 overloaded",
    }  # fmt: skip
    assert first["wait_s"] >= 1.0
    assert (second["attempt"], second["reason"]) == (3, "timeout")


async def never(_: Request) -> Reply:
    raise AssertionError


def test_an_episode_of_refusals_is_two_lines(records: Callable[..., Any]) -> None:
    lane = LocalUpstream("here", never, rate=AdaptiveRate(100.0))
    lane.trouble = Throttled("429 exhausted")
    for second in range(5):
        lane.throttled(float(second), float(second), None)
        lane.answered(second + 0.5, float(second))
    lane.answered(4.0 + QUIET_S, 4.0)
    lane.answered(5.0 + QUIET_S, 4.0)
    begun, over = records()
    assert begun == {"event": "throttle.begin", "lane": "here", "reason": "429 exhausted"}
    assert over == {"event": "throttle.end", "lane": "here", "refusals": 5, "seconds": 4.0, "quiet_s": QUIET_S}


def test_an_episode_ends_once_nothing_is_refused_for_a_while() -> None:
    episode = ThrottleEpisode()
    assert episode.answered(0.0) is None
    assert [episode.refused(at) for at in (1.0, 2.0)] == [True, False]
    assert episode.answered(2.0 + QUIET_S - 0.1) is None
    assert episode.answered(2.0 + QUIET_S) is not None
    assert episode.refused(30.0)


def test_a_breaker_that_opens_and_closes_is_logged(records: Callable[..., Any]) -> None:
    lane = LocalUpstream("here", never, rate=None, breaker=CircuitBreaker(0.0))
    lane.trouble = Unavailable("connection refused")
    for row in range(10):
        lane.failed(float(row), row)
    lane.answered(30.0, 29.0)
    opened, closed = records()
    assert opened == {"event": "breaker.open", "lane": "here", "reason": "connection refused"}
    assert closed == {"event": "breaker.close", "lane": "here", "seconds": 21.0}


def test_records_of_a_worker_are_logged_by_its_parent_with_its_number() -> None:
    tree = logging.getLogger("pipeline")
    before = tree.handlers[:], tree.level, tree.propagate
    try:
        relayed = RelayedRecords.attached(logging.INFO, 3)
        log(LOGGER, "breaker.close", lane="here", seconds=2.0)
        log(LOGGER, "row.throttled", row=1, lane="here", wait_s=1.0, reason="429")  # below the level
        [taken] = relayed.take()
        assert relayed.take() == []
    finally:
        tree.handlers[:], tree.propagate = before[0], before[2]
        tree.setLevel(before[1])
    out = io.StringIO()
    with redirect_stderr(out), logged("info", "json"):
        log_relayed([taken])
    [record] = map(json.loads, out.getvalue().splitlines())
    assert (record["event"], record["lane"], record["worker"]) == ("breaker.close", "here", 3)
    assert record["message"] == "here works again after 2 s"
    assert (
        record["logging.googleapis.com/sourceLocation"]["function"]
        == test_records_of_a_worker_are_logged_by_its_parent_with_its_number.__name__
    )


# What is on stderr.


@pytest.mark.parametrize(
    ("given", "variables", "form"),
    [
        ("text", {"K_SERVICE": "x"}, "text"),
        ("json", {}, "json"),
        ("auto", {}, "text"),
        (None, {}, "text"),
        *((given, {name: "x"}, "json") for given in ("auto", None) for name in CONTAINERS),
    ],
)
def test_the_format_is_that_of_the_place_unless_it_is_given(
    given: str | None, variables: dict[str, str], form: str
) -> None:
    assert chosen_format(given, variables) == form


def test_a_line_of_json_has_the_fields_of_cloud_logging() -> None:
    out = io.StringIO()
    with redirect_stderr(out), logged("debug", "json"):
        log(LOGGER, "run.start", job="j", run_id="r1", output="out", rows=5, left=3, concurrency=2, simulated=True)
        log(LOGGER, "breaker.open", lane="here", reason='a "quote"')
    first, second = map(json.loads, out.getvalue().splitlines())
    assert RFC3339.fullmatch(first["time"])
    assert first["logging.googleapis.com/sourceLocation"]["line"].isdecimal()
    assert {**second, "time": "", "logging.googleapis.com/sourceLocation": {}} == {
        "severity": "WARNING",
        "time": "",
        "message": 'here counts as failed, only probes are sent: a "quote"',
        "event": "breaker.open",
        "lane": "here",
        "reason": 'a "quote"',
        "logger": LOGGER.name,
        "logging.googleapis.com/labels": {"job": "j", "run_id": "r1"},
        "logging.googleapis.com/sourceLocation": {},
    }
    assert second["logging.googleapis.com/sourceLocation"]["file"] == "tests/test_log_events.py"


def test_a_line_of_text_has_the_time_the_level_the_event_and_a_sentence() -> None:
    out = io.StringIO()
    with redirect_stderr(out), logged("info", "text"):
        log(LOGGER, "breaker.open", lane="here", reason="it is down")
        LOGGER.info("another record with Bearer %s", TOKEN)
    first, second = out.getvalue().splitlines()
    moment, _, rest = first.partition(" ")
    assert RFC3339.fullmatch(moment)
    assert rest == "WARNING breaker.open: here counts as failed, only probes are sent: it is down"
    assert TOKEN not in second
    assert isinstance(TextFormatter(), logging.Formatter)


def test_printed_lines_become_records_too() -> None:
    out = io.StringIO()
    lines = JsonLines(out, JsonFormatter())
    for text in ("note: a", "b\n\n", "2026-11-28T01:00:00Z 5 of 9\nerror: no\n", '{"severity": "INFO"}\n'):
        print(text, end="", file=lines)
    found = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [(one["severity"], one.get("message")) for one in found] == [
        ("NOTICE", "note: ab"),
        ("INFO", "5 of 9"),
        ("ERROR", "error: no"),
        ("INFO", None),
    ]
    assert not lines.isatty()


def test_nothing_is_logged_unless_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    tree = logging.getLogger("pipeline")
    assert any(isinstance(one, logging.NullHandler) for one in tree.handlers)
    before = tree.propagate
    tree.propagate = False  # pytest's own handlers
    try:
        log(LOGGER, "lease.lost", output="x", reason="y")
    finally:
        tree.propagate = before
    assert capsys.readouterr() == ("", "")


def leaking(call: Call) -> Says:
    """Tells the caller's own key and text back in every way, then answers."""
    leak = f"you sent {call.headers['Authorization']} and api_key={KEY}: {call.prompt}"
    mistakes: list[Says] = [
        error(503, "UNAVAILABLE", leak),
        error(429, "RESOURCE_EXHAUSTED", leak),
        error(500, "INTERNAL", leak),
        error(400, "INVALID_ARGUMENT", leak),
        replace(error(503), body=f"<html>{leak}</html>".encode(), headers={"Content-Type": "text/html"}),
        chat(leak),
        chat(json.dumps({"answer": ROW})[:-2], finish_reason="length"),
    ]
    return mistakes[call.number] if call.number < len(mistakes) else chat(json.dumps({"answer": ROW}))


def test_no_record_of_a_run_has_the_text_of_a_row_or_a_secret(tmp_path: Path) -> None:
    """At DEBUG, while the server tells everything back."""
    shell = Shell(tmp_path, {"OPENAI_API_KEY": KEY})
    shell.write(
        "job.py",
        JOB.replace("Say {{ text }}", f"Prompt {TOKEN} {{{{ text }}}}").replace("keep=", "max_failed=0.9, keep="),
    )
    shell.write("rows.jsonl", "".join(json.dumps({"id": n, "text": f"{ROW} {n}"}) + "\n" for n in range(12)))
    with served(leaking) as server:
        options = ("--log-level", "debug", "--log-format", "json", "-c", "4")
        done = shell.pipeline("run", "job.py", "--base-url", server.base_url, *options)
    assert done.code == 0, done
    records = [json.loads(line) for line in done.err.splitlines()]
    assert {"run.start", "row.retry", "row.throttled", "throttle.begin", "row.failed", "part.sealed", "run.end"} <= {
        record["event"] for record in records
    }
    for canary in (KEY, TOKEN, "Zebulon", "Quux"):
        assert canary not in done.err
    end = next(record for record in records if record["event"] == "run.end")
    failed = sum(record["event"] == "row.failed" for record in records)
    assert (end["status"], end["rows"], end["failed"]) == ("complete", 12, failed)


def test_the_error_that_a_command_ends_in_is_a_record_too(tmp_path: Path) -> None:
    shell = Shell(tmp_path, {})
    shell.write("job.py", JOB)
    done = shell.pipeline("run", "job.py", "--emulate", "--log-format", "json")
    assert done.code == 2
    assert [json.loads(line)["severity"] for line in done.err.splitlines()] == ["ERROR"]
    assert not isinstance(sys.stderr, JsonLines)
