"""Jobs run from Python: awaited, blocking, streamed; cancelled and resumed; beside whatever else the process does."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import anyio
import pyarrow as pa
import pytest
from pydantic import BaseModel

import pipeline
from pipeline.cli.options import RunOptions
from pipeline.execution.call import Call, StopSwitch
from pipeline.execution.emulation import emulator
from pipeline.execution.keywords import ELSEWHERE, RunKeywords
from pipeline.execution.options import CallOptions
from pipeline.execution.outcome_channel import WAITING
from tests.servers import Answer, Held, Script, Served, Silence, chat, error, served
from tests.servers import Call as Called

PATIENCE_S = 60.0


class Said(BaseModel):
    answer: str


JOB = pipeline.Job(
    name="said",
    model="google/gemini-test",
    user="Say {{ text }}",
    schema=Said,
    prices={"google/gemini-test": {"input": 1.0, "output": 1.0}},
)
ROWS = [{"id": number, "text": f"row {number}"} for number in range(12)]


def capitals(call: Called) -> Answer:
    return chat(json.dumps({"answer": call.prompt.upper()}))


def first_held(count: int) -> Script:
    """The first answers are held until they are released; calls that come later get none."""
    return lambda call: Held(capitals(call)) if call.number < count else Silence()


@pytest.fixture(name="server")
def server_of_capitals(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    with served(capitals) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        yield server


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {}


# The result.


@pytest.mark.anyio
async def test_awaited_in_a_running_loop_it_returns_the_rows_with_their_values(server: Served) -> None:
    result = await pipeline.run(JOB, ROWS)
    assert len(result) == len(ROWS) == len(server.calls)
    assert [value["answer"] for value in result.table()["parsed"].to_pylist()] == [f"SAY ROW {n}" for n in range(12)]
    assert result.summary.status == "complete"
    assert result.summary.cost_usd == pytest.approx(12 * 15e-6)
    assert result.failed().num_rows == 0


def test_without_a_loop_and_within_one_run_sync_returns_the_same(server: Served) -> None:
    alone = pipeline.run_sync(JOB, ROWS)

    async def within() -> pipeline.RunResult:
        return pipeline.run_sync(JOB, ROWS)

    inside = asyncio.run(within())
    assert inside.table(["id", "parsed"]).equals(alone.table(["id", "parsed"]))
    assert len(server.calls) == 2 * len(ROWS)


@pytest.mark.anyio
async def test_the_loop_of_the_caller_goes_on_while_a_run_waits_for_its_answers(server: Served) -> None:
    """As that of a web application: it serves, and both runs of it are in flight at once."""
    server.follow(lambda call: Held(capitals(call)))
    runs = [asyncio.create_task(pipeline.run(JOB, ROWS[:3])) for _ in range(2)]
    await asyncio.to_thread(server.arrived, 6)
    await asyncio.to_thread(server.release)
    assert [len(result) for result in await asyncio.gather(*runs)] == [3, 3]


def test_without_an_output_the_folder_lives_as_long_as_the_result(server: Served) -> None:
    result = pipeline.run_sync(JOB, ROWS)
    folder = Path(result.path)
    assert (folder / "_SUCCESS").exists()
    assert len(server.calls) == len(ROWS)
    del result
    gc.collect()
    assert not folder.parent.exists()


def test_a_notebook_is_shown_figures_and_first_rows_and_nothing_of_the_data_is_markup(server: Served) -> None:
    rows = [{"text": "<b>bold</b>"}]
    shown = pipeline.run_sync(JOB, rows)._repr_html_()
    assert "<td>complete</td>" in shown
    assert "&lt;b&gt;bold&lt;/b&gt;" in shown
    assert "<b>bold" not in shown
    assert len(server.calls) == 1


def test_frames_come_out_with_their_types(server: Served) -> None:
    result = pipeline.run_sync(JOB, ROWS)
    assert result.polars()["parsed"].struct.field("answer")[0] == "SAY ROW 0"
    frame = result.pandas()
    assert str(frame.dtypes["id"]) == "int64[pyarrow]"
    assert frame["parsed"].struct.field("answer")[11] == "SAY ROW 11"
    assert server.answered


# Resuming.


@pytest.mark.anyio
async def test_a_cancelled_run_drains_and_the_same_call_asks_only_what_is_left(server: Served, tmp_path: Path) -> None:
    """Rows in flight when it is cancelled are recorded: their answers come during the drain."""
    server.follow(first_held(4))
    call = partial(pipeline.run, JOB, ROWS, tmp_path / "out", concurrency=4, drain_timeout=5)
    task = asyncio.create_task(call())
    await asyncio.to_thread(server.arrived, 4)
    task.cancel()
    await asyncio.sleep(0)
    await asyncio.to_thread(server.release)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(server.answered) == 4
    server.follow(capitals)
    result = await call()
    assert result.summary.status == "complete"
    assert sorted(server.answered) == sorted(f"Say row {n}" for n in range(12))
    assert result.table()["id"].to_pylist() == list(range(12))


@pytest.mark.anyio
async def test_a_second_cancellation_does_not_wait_for_calls_in_flight(server: Served, tmp_path: Path) -> None:
    server.follow(lambda call: Held(capitals(call)))
    task = asyncio.create_task(pipeline.run(JOB, ROWS, tmp_path / "out", drain_timeout=1e9))
    await asyncio.to_thread(server.arrived, len(ROWS))
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with anyio.fail_after(PATIENCE_S), pytest.raises(asyncio.CancelledError):
        await task
    assert server.answered == []
    server.follow(capitals)
    assert (await pipeline.run(JOB, ROWS, tmp_path / "out")).summary.ok == len(ROWS)


INTERRUPTED = """
import sys
import pipeline
job = pipeline.Job(name="said", model="google/gemini-test", user="Say {{ text }}")
rows = [{"text": f"row {number}"} for number in range(12)]
try:
    pipeline.run_sync(job, rows, sys.argv[1], concurrency=4, drain_timeout=5)
except KeyboardInterrupt as error:
    print(error.summary.status, error.summary.ok, error.summary.left)
"""


def test_ctrl_c_drains_a_blocking_run_and_is_raised_with_the_summary(server: Served, tmp_path: Path) -> None:
    """In a process of its own, which the signal cannot hit anywhere else."""
    server.follow(first_held(4))
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, tmp_path / "out"], stdout=subprocess.PIPE, text=True
    ) as child:
        server.arrived(4)
        child.send_signal(signal.SIGINT)
        server.release()
        printed, _ = child.communicate(timeout=PATIENCE_S)
    assert printed == "stopped 4 8\n"


def test_the_same_call_again_makes_no_call_and_other_rows_are_refused_by_column(server: Served, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pipeline.run_sync(JOB, ROWS, out)
    assert pipeline.run_sync(JOB, iter(ROWS), out).summary.requests == 0
    # The same rows in other batches, as another reader may give them.
    table = pa.Table.from_pylist(ROWS)
    assert pipeline.run_sync(JOB, table.to_reader(max_chunksize=5), out).summary.requests == 0
    changed = [{**row, "text": "other"} if row["id"] == 7 else row for row in ROWS]
    with pytest.raises(pipeline.UsageError, match=r"column 'text' changed, first in row 7: 'row 7' -> 'other'"):
        pipeline.run_sync(JOB, changed, out)
    with pytest.raises(pipeline.UsageError, match=r"(?s)column 'id' changed its type: int64 -> string.*fresh=True"):
        pipeline.run_sync(JOB, [{**row, "id": str(row["id"])} for row in ROWS], out)
    with pytest.raises(pipeline.UsageError, match=r"rows changed: 12 -> 11"):
        pipeline.run_sync(JOB, ROWS[:11], out)
    assert len(server.calls) == len(ROWS)
    kept = list((out / "_run" / "input").iterdir())
    assert len(kept) == 1
    assert len(pipeline.run_sync(JOB, ROWS[:11], out, fresh=True)) == 11
    assert list((out / "_run" / "input").iterdir()) != kept


def test_rows_that_no_run_has_are_not_kept(server: Served, tmp_path: Path) -> None:
    with pytest.raises(pipeline.UsageError, match="text"):
        pipeline.run_sync(JOB, [{"txt": "a"}], tmp_path / "out")
    assert list((tmp_path / "out" / "_run" / "input").iterdir()) == []
    assert server.calls == []


def test_a_folder_named_like_a_partition_gives_kept_rows_no_column(server: Served, tmp_path: Path) -> None:
    result = pipeline.run_sync(JOB, ROWS[:1], tmp_path / "day=1" / "out")
    assert result.table().schema.names[:3] == ["id", "text", "row"]
    assert server.calls


def test_an_output_at_an_address_is_read_and_resumed_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the same call on another machine, too, which has nothing but its frame."""
    with emulator(["--bucket=bucket-one"]) as address:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address["origin"])
        options: Any = {"base_url": address["base_url"], "credentials": address["credentials_file"]}
        call: Any = partial(pipeline.run_sync, JOB.replace(schema=None), output="gs://bucket-one/out", **options)
        result = call(ROWS, state_dir=tmp_path / "one")
        assert (result.path, len(result)) == ("gs://bucket-one/out", len(ROWS))
        assert result.table()["id"].to_pylist() == list(range(12))
        assert call(ROWS, state_dir=tmp_path / "other").summary.requests == 0
        with pytest.raises(
            pipeline.UsageError, match=r"gs://bucket-one/out already holds .*\n.*rows changed: 12 -> 11"
        ):
            call(ROWS[:11], state_dir=tmp_path / "other")


# Errors.


def test_what_stopped_a_run_is_raised_with_its_summary_and_result(server: Served, tmp_path: Path) -> None:
    server.follow(lambda call: error(400, "INVALID_ARGUMENT") if "row 3" in call.prompt else capitals(call))
    with pytest.raises(pipeline.TooManyFailures) as caught:
        pipeline.run_sync(JOB.replace(max_failed=0), ROWS, tmp_path / "out", fail_fast=False)
    assert caught.value.summary.failed == 1
    assert caught.value.result.failed()["id"].to_pylist() == [3]
    server.follow(lambda _: error(403, "PERMISSION_DENIED"))
    with pytest.raises(pipeline.ProviderUnusable) as denied:
        pipeline.run_sync(JOB, ROWS)
    assert denied.value.summary.left == len(ROWS)


def test_a_used_up_budget_is_raised_and_a_larger_one_resumes(server: Served, tmp_path: Path) -> None:
    out, rows = tmp_path / "out", [{"text": str(number)} for number in range(60)]  # of 15 tokens each
    with pytest.raises(pipeline.BudgetExhausted) as caught:
        pipeline.run_sync(JOB, rows, out, budget_tokens=650, concurrency=1)
    assert 0 < caught.value.summary.left < len(rows)
    assert pipeline.run_sync(JOB, rows, out, budget_tokens=4000).summary.status == "complete"
    assert len(server.answered) == len(rows)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"processes": 4}, "pipeline run JOB.py --processes N"),
        ({"concurency": 4}, "did you mean 'concurrency'"),
        ({"concurrency": 0}, "concurrency takes a whole number from 1 on, not 0"),
        ({"rpm": "many"}, "rpm takes a number from 0.001 on, not 'many'"),
        ({"location": ["global", 3]}, "location takes a text or a list of texts, not ['global', 3]"),
        ({"fault": 3}, "fault takes a text or a list of texts, not 3"),
        ({"state_dir": 3}, "state_dir takes a path, not 3"),
        ({"fresh": 1}, "fresh is True or False, not 1"),
        (
            {"fresh": True, "retry_failed": True},
            "fresh=True asks every row again, so there is nothing for retry_failed",
        ),
        ({"fault": "503=0.1"}, "fault=503=0.1 belongs to emulate=True"),
    ],
)
def test_options_are_refused_in_the_words_of_python(server: Served, options: Any, said: str) -> None:
    with pytest.raises(pipeline.UsageError) as caught:
        pipeline.run_sync(JOB, ROWS, **options)
    assert said in str(caught.value)
    assert server.calls == []


def test_under_trio_it_is_refused_in_one_sentence_whose_remedy_works(server: Served) -> None:
    trio = pytest.importorskip("trio")
    with pytest.raises(pipeline.UsageError, match=r"trio\.to_thread\.run_sync"):
        trio.run(pipeline.run, JOB, ROWS)
    assert len(trio.run(trio.to_thread.run_sync, partial(pipeline.run_sync, JOB, ROWS))) == len(ROWS)
    assert server.answered


def test_it_works_in_a_loop_that_anyio_started(server: Served) -> None:
    assert len(anyio.run(pipeline.run, JOB, ROWS)) == len(server.calls)


# Streaming.


@pytest.mark.anyio
async def test_a_stream_yields_each_row_with_its_instance_when_it_is_recorded(server: Served, tmp_path: Path) -> None:
    server.follow(lambda call: error(400, "INVALID_ARGUMENT") if "row 3" in call.prompt else capitals(call))
    out = tmp_path / "out"
    seen = {outcome.ordinal: outcome async for outcome in pipeline.stream(JOB.replace(max_failed=1), ROWS, out)}
    assert sorted(seen) == list(range(12))
    assert seen[5].value == Said(answer="SAY ROW 5")
    assert dict(seen[5].row) == {"id": 5, "text": "row 5"}
    assert seen[5].cost_usd == pytest.approx(15e-6)
    assert (seen[3].status, seen[3].value, type(seen[3].error).__name__) == ("failed", None, "Refused")
    assert [one async for one in pipeline.stream(JOB.replace(max_failed=1), ROWS, out)] == []


@pytest.mark.anyio
async def test_rows_are_not_asked_while_the_consumer_takes_nothing(server: Served) -> None:
    """At most those in flight, and those that wait for it."""
    rows = [{"text": str(number)} for number in range(400)]
    outcomes = pipeline.stream(JOB, rows, concurrency=1)
    await anext(outcomes)
    bound = WAITING + 1 + 2 * 64  # workers that have a row each, which waits to be taken; see `workers_for`
    await asyncio.to_thread(server.arrived, WAITING)
    for _ in range(2000):  # the run goes on, in its own loop, while this one takes nothing
        await asyncio.sleep(0)
    assert WAITING <= len(server.calls) <= bound < len(rows)
    assert len([one async for one in outcomes]) == len(rows) - 1


@pytest.mark.anyio
async def test_leaving_a_stream_early_stops_the_run_and_keeps_what_was_answered(server: Served, tmp_path: Path) -> None:
    rows = [{"text": str(number)} for number in range(400)]
    outcomes = pipeline.stream(JOB, rows, tmp_path / "out", concurrency=2)
    async for _ in outcomes:
        break
    await outcomes.aclose()
    answered = len(server.answered)
    assert 0 < answered < len(rows)
    result = await pipeline.run(JOB, rows, tmp_path / "out")
    assert result.summary.start_ok == len(rows) - result.summary.ok + result.summary.start_ok
    assert len(server.answered) <= len(rows) + 2


@pytest.mark.anyio
async def test_what_stops_a_stream_is_raised_after_its_last_row(server: Served) -> None:
    server.follow(lambda call: error(400, "INVALID_ARGUMENT") if "row 3" in call.prompt else capitals(call))
    seen: list[int] = []

    async def consume() -> None:
        outcomes = pipeline.stream(JOB.replace(max_failed=0), ROWS, fail_fast=False)
        async for outcome in outcomes:
            seen.append(outcome.ordinal)  # noqa: PERF401 - a comprehension would be lost with the exception

    with pytest.raises(pipeline.TooManyFailures):
        await consume()
    assert sorted(seen) == list(range(12))


# The process.


def state_of_process() -> dict[str, Any]:
    return {
        "pool": pa.default_memory_pool().backend_name,
        "files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "gc": (gc.get_threshold(), gc.isenabled()),  # what is frozen becomes less as it is freed
        "signals": [signal.getsignal(number) for number in sorted(signal.valid_signals())],
        "warnings": list(warnings.filters),
        "logging": (logging.root.level, list(logging.root.handlers)),
        "path": list(sys.path),
        "environment": dict(os.environ),
        "streams": (sys.stdout, sys.stderr),
        "folder": Path.cwd(),
        "hooks": (sys.excepthook, threading.excepthook),
        "threads": threading.active_count(),
    }


def test_the_process_is_left_as_it_was_found(server: Served, capfd: pytest.CaptureFixture[str]) -> None:
    pipeline.run_sync(JOB, ROWS[:1])  # what is loaded the first time, such as the filters of a library, counts as found
    before = state_of_process()
    pipeline.run_sync(JOB, ROWS)
    assert state_of_process() == before
    assert server.answered
    assert capfd.readouterr() == ("", "")


FIRST = """
import gc, resource, signal, sys
import pyarrow as pa
import pipeline
def state():
    signals = [signal.getsignal(number) for number in sorted(signal.valid_signals())]
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    return pa.default_memory_pool().backend_name, limit, gc.get_threshold(), gc.get_freeze_count(), signals
before = state()
job = pipeline.Job(name="said", model="google/gemini-test", user="Say {{ text }}")
pipeline.run_sync(job, [{"text": "a"}])
print(state() == before)
"""


def test_the_first_run_of_a_process_changes_neither_its_memory_pool_nor_its_limits(server: Served) -> None:
    done = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
    assert len(server.calls) == 1


def test_a_limit_of_open_files_is_not_raised_but_named(server: Served) -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    with pytest.raises(pipeline.UsageError, match=r"resource\.setrlimit, or lower concurrency"):
        pipeline.run_sync(JOB, ROWS, concurrency=soft)
    assert server.calls == []


def test_progress_is_shown_if_it_is_asked_for(server: Served, capfd: pytest.CaptureFixture[str]) -> None:
    pipeline.run_sync(JOB, ROWS, progress=True)
    assert "12/12" in capfd.readouterr().err
    assert server.answered


# The call itself, and its options.


def test_a_bug_is_raised_where_the_result_is_waited_for() -> None:
    def work() -> None:
        raise ZeroDivisionError

    call = Call(work, StopSwitch())
    call.start()
    with pytest.raises(ZeroDivisionError):
        call.join()


def test_a_stop_that_is_requested_before_the_run_is_open_ends_it_before_a_call(server: Served, tmp_path: Path) -> None:
    """A task that is cancelled as soon as it begins."""

    async def cancelled() -> None:
        task = asyncio.create_task(pipeline.run(JOB, ROWS, tmp_path / "out"))
        await asyncio.sleep(0)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())
    assert server.calls == []


SHOWN = {"as_json", "log_format", "log_level", "metrics", "otel", "quiet", "report"}
ON_THE_COMMAND_LINE_ONLY = {"inputs", "output", "assignments", *SHOWN}


def test_every_option_of_the_command_line_is_one_of_python() -> None:
    """Or it is refused with what does the same."""
    options = {one.name for one in fields(CallOptions)}
    assert {one.name for one in fields(RunOptions)} - ON_THE_COMMAND_LINE_ONLY == options
    assert set(get_type_hints(RunKeywords)) == options | {"state_dir", "progress"}
    assert ON_THE_COMMAND_LINE_ONLY - {"output"} <= set(ELSEWHERE)


def test_python_and_the_command_line_have_the_same_defaults() -> None:
    assert all(getattr(RunOptions(), one.name) == getattr(CallOptions(), one.name) for one in fields(CallOptions))
