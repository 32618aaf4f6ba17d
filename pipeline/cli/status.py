"""`pipeline status` and `pipeline tune`: shows the progress of a run, and changes its limits."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import AsJson
from pipeline.cli.remedies import remedy_for
from pipeline.cli.remote_output import output_to_read
from pipeline.cli.tables import json_line, short
from pipeline.faults import UsageError
from pipeline.store.address import local_path
from pipeline.text import figures, printable

if TYPE_CHECKING:
    from pipeline.execution.run_status import RunStatus

_WIDTH = 10
_MANY_SHARDS = 50
_QUIET_S = 10.0
"""A job writes its state every second. After this many seconds without one it is busy with something else, or hangs."""

_ENDED = {
    "complete": "complete: every row is accounted for",
    "failed": "failed",
    "stopped": "stopped",
}


def status(
    output: Annotated[str, typer.Argument(help="The output folder of a run, or its address.")],
    *,
    as_json: AsJson = False,
) -> int:
    """Show the progress of a run, also from another terminal while it works."""
    from pipeline.execution.run_status import run_status

    with output_to_read(output) as (folder, remote):
        found = run_status(folder, remote)
    output = output if remote else str(folder)
    if as_json:
        print(json_line(found.facts()))
        return 0
    for name, text in _lines(found, output):
        print(printable(f"{name:{_WIDTH}}{text}"))
    return 0


def tune(
    output: Annotated[Path, typer.Argument(help="The output folder of a running job.", parser=local_path)],
    changes: Annotated[list[str], typer.Argument(help="NAME=NUMBER: concurrency, rpm, tpm.")],
) -> int:
    """Change the limits of a running job."""
    from pipeline.execution.monitor import ask_to_tune, tuning_of
    from pipeline.execution.run_status import require_run

    tuning_of(changes)  # an invalid limit is reported whether or not a job is running
    folder, _ = require_run(output)
    if folder.running() is None:
        raise UsageError(f"no job is running in {output}: give the limits to `pipeline run`, which resumes it")
    asked = ask_to_tune(folder.run, changes)
    requested = ", ".join(f"{name}={value:g}" for name, value in asked.items())
    print(f"requested: {requested}; the job applies it within a second, and `pipeline status {output}` shows it")
    return 0


def _lines(found: RunStatus, output: str) -> Iterator[tuple[str, str]]:
    simulated = ", SIMULATED: answered by the emulator" if found.simulated else ""
    yield "run", f"{found.job} in {output}, created {figures.moment(found.created)}, id {found.run_id}{simulated}"
    yield "status", _status(found)
    yield "progress", _progress(found)
    yield "rows", _rows(found)
    for kind in found.failures.kinds:
        yield "failed", f"{figures.count(kind.count)} {kind.name}, {kind.said}"
    yield from _batch_jobs(found)
    yield "spent", _spent(found)
    yield from _shards(found)
    if found.status == "running" and not found.shards:
        yield from _now(found)
    elif found.status != "running":
        yield from _next_steps(found, output)


def _status(found: RunStatus) -> str:
    if found.status == "running":
        since = f" since {figures.moment(found.started)}" if found.started else ""
        return f"running{since} ({found.holder})"
    waiting = sum(job.progress == "submitted" for job in found.batch_jobs)
    submitted = f": waits for {waiting} batch job{'s' if waiting > 1 else ''}" if waiting else ""
    reason = f": {found.reason}" if found.reason else submitted
    when = f" ({figures.moment(found.finished)})" if found.finished else ""
    return f"{_ENDED[found.status]}{reason}{when}"


def _progress(found: RunStatus) -> str:
    share = figures.progress(found.done, found.rows)
    text = f"{figures.count(found.done)} of {figures.count(found.rows)} rows ({share})"
    if found.now.get("rows_per_s"):
        text += f", {figures.rate(found.now['rows_per_s'])}"
    if found.now.get("eta_s") is not None:
        text += f", about {figures.about(found.now['eta_s'])} left"
    elif found.left:
        text += f", {figures.count(found.left)} left"
    return text


def _rows(found: RunStatus) -> str:
    text = f"ok {figures.count(found.ok)}, failed {figures.count(found.failed)}"
    if found.unsealed:
        text += f"; {figures.count(found.unsealed)} more are answered and not yet written to a part"
    return text


_MOST_JOBS = 8


def _batch_jobs(found: RunStatus) -> Iterator[tuple[str, str]]:
    """A line for each batch job whose answers are not recorded yet, and one for the others."""
    waiting = [job for job in found.batch_jobs if job.progress == "submitted"]
    for job in waiting[:_MOST_JOBS]:
        state = "recorded, and not created yet" if job.handle is None else f"{job.state} when last looked at"
        yield "batch", f"{job.name}: {figures.count(job.rows)} rows, {state}"
    if len(waiting) > _MOST_JOBS:
        yield "batch", f"{figures.count(len(waiting) - _MOST_JOBS)} more jobs"
    if ended := [job for job in found.batch_jobs if job.progress == "collected"]:
        answered, rows = sum(job.answered for job in ended), sum(job.rows for job in ended)
        jobs = f"{figures.count(len(ended))} job{'s' if len(ended) > 1 else ''} collected"
        yield "batch", f"{jobs}: {figures.count(answered)} of {figures.count(rows)} rows answered"


def _spent(found: RunStatus) -> str:
    charged = found.charged
    text = figures.dollars(charged.cost_usd)
    if found.start_cost_usd is not None and found.resumed:
        text += f" ({figures.dollars(found.start_cost_usd)} of it since the last resume)"
    if found.simulated:
        text += " at the model's prices; the emulator costs nothing"
    calls = f"{figures.count(charged.calls)} calls"
    tokens = charged.input_tokens, charged.output_tokens + charged.reasoning_tokens
    text += f"; {calls}, {figures.count(tokens[0])} tokens in, {figures.count(tokens[1])} out"
    if charged.unpriced_calls:
        text += f"; without {figures.count(charged.unpriced_calls)} calls of unknown price"
    if charged.lost_calls:
        text += f"; {figures.count(charged.lost_calls)} calls were in flight when a start was killed: maybe billed"
    return text


def _shards(found: RunStatus) -> Iterator[tuple[str, str]]:
    """How many shards are in which state, and each of them; of very many, those that are not done."""
    if not found.shards:
        return
    states = Counter(one.state for one in found.shards)
    yield "shards", f"{len(found.shards)}: {', '.join(f'{count} {state}' for state, count in states.items())}"
    for one in found.shards:
        if one.state != "done" or len(found.shards) <= _MANY_SHARDS:
            who = f"; {one.host}, last sign of life {figures.moment(one.seen)}" if one.host and one.seen else ""
            yield "shard", f"{one.shard} {one.state}, {figures.count(one.done)} of {figures.count(one.rows)} rows{who}"


def _now(found: RunStatus) -> Iterator[tuple[str, str]]:
    """What a running job is doing and waiting for."""
    now = found.now
    if now.get("at") is None and any(job.progress == "submitted" for job in found.batch_jobs):
        return  # it waits for them, and asks nothing
    if now.get("at") is None:
        yield "now", "the job has not reported yet"
        return
    if (silent := time.time() - now["at"]) > _QUIET_S:
        yield "now", f"the job last reported {figures.about(silent)} ago: the figures are of then"
    text = f"{figures.count(now['in_flight'])} in flight (at most {figures.count(now['concurrency'])})"
    if now.get("retrying"):
        text += f", {figures.count(now['retrying'])} waiting to be tried again"
    if now.get("latency_p50") is not None:
        text += f"; half the answers take {figures.seconds(now['latency_p50'])} or less"
        text += f", 99 % {figures.seconds(now['latency_p99'])}" if now.get("latency_p99") is not None else ""
    yield "calls", text
    if now.get("waits_for"):
        limit = f" ({figures.rate(now['limit'])})" if now["waits_for"] == "quota" and now.get("limit") else ""
        yield "waiting", f"{figures.count(now['waiting'])} rows for {now['waits_for']}{limit}"
    if now.get("rate_change"):
        yield "rate", str(now["rate_change"])
    if now.get("trouble"):
        yield "trouble", f"nothing is answered: {short(now['trouble'], 500)}"


def _next_steps(found: RunStatus, output: str) -> Iterator[tuple[str, str]]:
    if found.status == "stopped":
        if any(job.progress == "submitted" for job in found.batch_jobs):
            yield "next", f"the same command, with --batch, collects the answers; `pipeline cancel {output}` cancels"
        else:
            yield "next", remedy_for(found.stopped_by)
    elif found.failed:
        yield "next", "run it again with `--retry-failed` to ask the failed rows again"
    if found.failed:
        yield "see", f"`pipeline show {output} --failed`"
