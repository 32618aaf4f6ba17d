"""Runs that fail too many rows stop early, say which failures were the commonest, and go on when they are told to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import Failure
from pipeline.faults import Fault, InvalidRow, Refused, TooManyFailures, Unparsable
from pipeline.totals.failures import ALIKE, Failures, Tolerance
from tests.commands import JOB, ROOT, Done, Shell
from tests.servers import Answer, Call, Served, chat, error, served

ROWS = 600


def number_of(call: Call) -> int:
    return int(call.prompt.rpartition(" ")[2])


def answer(_: Call) -> Answer:
    return chat('{"answer": "a"}')


def thirds(call: Call) -> Answer:
    """Every third row is refused, every ninth of them for another reason."""
    number = number_of(call)
    return answer(call) if number % 3 else error(400 if number % 9 else 422, "INVALID_ARGUMENT", "no such thing")


def unfit(_: Call) -> Answer:
    return chat("not JSON at all")


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shell = Shell(tmp_path, {"OPENAI_API_KEY": "k"})
    shell.write("job.py", JOB)
    shell.rows(ROWS)
    return shell


@pytest.fixture
def server() -> Iterator[Served]:
    with served(thirds) as server:
        yield server


def run(shell: Shell, server: Served, *more: str, json: bool = True) -> Done:
    common = ("--base-url", server.base_url, "--no-adaptive", "-c", "8", "--quiet")
    return shell.pipeline("run", "job.py", *common, *(["--json"] if json else []), *more)


def test_m5_a_run_stops_once_more_rows_have_failed_than_the_job_allows(shell: Shell, server: Served) -> None:
    done = run(shell, server)
    assert done.json.items() >= {"status": "stopped", "exit_code": 3, "rows": ROWS}.items()
    assert 60 < done.json["failed"] <= 60 + 8 + 1
    assert len(server.calls) <= 3 * 61 + 16
    assert "of 600 rows failed, more than the job allows (at most 60): Refused (400)" in done.json["reason"]
    first, second = done.json["failures"]
    assert (first["type"], first["http_status"], first["row"] % 3) == ("Refused", 400, 0)
    assert first["example"] == "400 INVALID_ARGUMENT: no such thing"
    assert (second["type"], second["http_status"]) == ("Refused", 422)
    assert first["count"] + second["count"] == done.json["failed"]
    assert not (shell.folder / "out/a_job/_SUCCESS").exists()


def test_m5_the_same_command_asks_nothing_more_and_no_fail_fast_asks_the_rest(shell: Shell, server: Served) -> None:
    first = run(shell, server)
    calls = len(server.calls)
    again = run(shell, server)
    assert again.json.items() >= {"exit_code": 3, "requests": 0, "failed": first.json["failed"]}.items()
    assert len(server.calls) == calls
    rest = run(shell, server, "--no-fail-fast")
    assert rest.json.items() >= {"status": "failed", "exit_code": 3, "failed": 200, "left": 0}.items()
    assert len(server.calls) == ROWS
    assert [kind["count"] for kind in rest.json["failures"]] == [133, 67]


def test_m5_retry_failed_takes_what_it_asks_again_off_the_count(shell: Shell, server: Served) -> None:
    run(shell, server)
    server.follow(answer)
    done = run(shell, server, "--retry-failed")
    assert done.json.items() >= {"status": "complete", "failed": 0, "failures": []}.items()


def test_m5_the_failures_of_earlier_starts_count(shell: Shell, server: Served) -> None:
    refused: set[int] = set()
    denied: set[int] = set()

    def then_denied(call: Call) -> Answer:
        if denied or number_of(call) >= 150:  # from the 150th row on nobody is answered, whoever asks again
            denied.add(number_of(call))
            return error(401)
        if number_of(call) % 3 == 0:
            refused.add(number_of(call))
        return thirds(call)

    server.follow(then_denied)
    first = run(shell, server)
    # Rows leave nearly in their order: one or two before the 150th may be left for the next start.
    assert (first.code, first.json["failed"]) == (7, len(refused)), first
    server.follow(thirds)
    second = run(shell, server)
    assert (second.code, second.json["status"]) == (3, "stopped")
    assert second.json["requests"] <= 3 * (61 - len(refused)) + 16


@pytest.mark.parametrize("processes", ["1", "2"])
def test_m5_when_the_first_100_rows_all_fail_alike_the_run_stops_whatever_is_allowed(
    processes: str, shell: Shell, server: Served
) -> None:
    server.follow(unfit)
    shell.rows(2200, heavy=True)
    done = run(shell, server, "--set", "max_failed=0.99", "--set", "repairs=0", "--processes", processes)
    assert done.json.items() >= {"status": "stopped", "exit_code": 3, "ok": 0}.items()
    assert done.json["reason"].startswith("the first 1")
    assert "rows all failed alike: Unparsable" in done.json["reason"]
    assert ALIKE <= done.json["failed"] < 1000


def test_m5_in_several_processes_the_run_counts_as_a_whole(shell: Shell, server: Served) -> None:
    shell.rows(2200, heavy=True)
    done = run(shell, server, "--processes", "2")
    assert done.json.items() >= {"status": "stopped", "exit_code": 3}.items()
    assert 220 < done.json["failed"] < 600
    assert sum(kind["count"] for kind in done.json["failures"]) == done.json["failed"]


def test_failures_are_told_in_full_by_summary_status_manifest_and_page(shell: Shell, server: Served) -> None:
    done = run(shell, server, json=False)
    assert done.code == 3
    failed = [line for line in done.out.splitlines() if line.startswith("failed ")]
    assert len(failed) == 2
    assert failed[0].endswith(": 400 INVALID_ARGUMENT: no such thing")
    assert "with `--no-fail-fast` to ask the others" in done.err
    told = json.loads(shell.pipeline("status", "out/a_job", "--json").out)
    assert told["failures"] == shell.manifest()["failures"]
    assert told["failures"][0]["example"] == "400 INVALID_ARGUMENT: no such thing"
    assert "more than the job allows" in told["reason"]
    assert "no such thing" in shell.pipeline("status", "out/a_job").out
    shell.pipeline("report", "out/a_job")
    assert (
        "more than the job allows (at most 60): Refused (400)" in (shell.folder / "out/a_job/_report.html").read_text()
    )


def test_the_example_of_sealed_failures_comes_out_of_the_dataset(shell: Shell, server: Served) -> None:
    shell.write("rows.jsonl", '{"id": 1, "text": "text 1"}\n{"id": 2, "te\n{"id": 3, "text": "text 5"}\n')
    done = run(shell, server, "--set", "max_failed=1", json=False)
    assert done.code == 0
    (line,) = [line for line in done.out.splitlines() if line.startswith("failed ")]
    assert line.startswith("failed   1 InvalidRow, as in row 1: ")
    assert "line 2" in line
    status = shell.pipeline("status", "out/a_job")
    assert "line 2" in status.out
    assert shell.manifest()["failures"][0]["example"] == ""


def test_an_evaluation_asks_all_of_its_rows_however_many_fail(tmp_path: Path) -> None:
    shell = Shell(ROOT, {})
    done = shell.pipeline(
        "eval", "jobs/eval_events.py", "--emulate", "--fault", "400=0.4", "--quiet", "-o", str(tmp_path / "out"),
        "--cache-dir", str(tmp_path / "cache"),
    )  # fmt: skip
    assert done.code == 4
    manifest = json.loads((tmp_path / "out/_manifest.json").read_bytes())
    assert manifest["ok"] + manifest["failed"] == manifest["rows"] == 210
    assert manifest["failed"] > 21


# The arithmetic.

FAULTS: list[Fault] = [
    Refused("no", http_status=400),
    Refused("never", http_status=403),
    Unparsable("city: Field required"),
    InvalidRow("line 7 is broken: 'secret'"),
]
failures = st.lists(st.tuples(st.integers(0, 99), st.sampled_from(FAULTS)), max_size=30).map(
    lambda rows: [Failure(row, fault) for row, fault in rows]
)


@given(failures, failures)
def test_failures_add_up_whatever_their_order(some: list[Failure], others: list[Failure]) -> None:
    both = Failures.of(some) + Failures.of(others)
    assert both == Failures.of(others) + Failures.of(some) == Failures.of([*some, *others])
    assert both.count == len(some) + len(others)
    counts = [kind.count for kind in both.kinds]
    assert counts == sorted(counts, reverse=True)
    assert Failures.from_json(both.to_json()) == both


@given(failures)
def test_what_an_unusable_row_said_is_in_no_message(some: list[Failure]) -> None:
    found = Failures.of(some)
    assert "secret" not in found.in_words() + str(found.bare().to_json())


@given(st.integers(0, 50), st.integers(0, 200), st.integers(0, 20))
def test_a_run_goes_on_with_as_many_failures_as_are_allowed(ok: int, alike: int, allowed: int) -> None:
    found = Failures.of([Failure(row, FAULTS[0]) for row in range(alike)])
    stops = Tolerance(allowed, ALIKE).passed(ok, found, 1000)
    assert (stops is not None) is (alike > allowed or (not ok and alike >= ALIKE))
    assert stops is None or isinstance(stops, TooManyFailures)
    assert Tolerance().passed(ok, found, 1000) is None
