"""Ends runs: counts their rows, and writes the manifest and the success marker."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from pipeline.data import Part
from pipeline.execution.run import Run, now
from pipeline.faults import Broken, Halt
from pipeline.policy import Shutdown
from pipeline.source import Survey
from pipeline.storage.dataset import manifest_bytes
from pipeline.storage.records import with_examples
from pipeline.storage.remote.shard_follower import ShardFollower
from pipeline.storage.submissions import charged_by_batch
from pipeline.totals.failures import FailureKind, Failures
from pipeline.totals.ledger import KINDS, Charges, total


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The result of a start: its calls, `seconds`, and when it `started` and `finished`, in UTC.

    `rows`, `ok`, `failed`, `failures` and `run` cover the whole run.
    """

    job: str
    run_id: str
    started: str
    finished: str
    status: str
    rows: int
    ok: int
    failed: int
    start_ok: int
    """Rows that got a value in this start, and those that failed in it."""
    start_failed: int
    requests: int
    retries: int
    throttled: int
    hedged: int
    """Calls that were sent a second time because they were late."""
    cache_hits: int
    """Calls of this start that the reply cache answered."""
    calls: int
    """Calls that were answered, and are billed."""
    input_tokens: int | None
    """Tokens of the answered calls of this start; None if one came without usage."""
    output_tokens: int | None
    reasoning_tokens: int | None
    cached_tokens: int | None
    cost_usd: float | None
    """Their cost; None if the price of any call is unknown."""
    unpriced_calls: int
    unmetered_calls: int
    seconds: float
    output: str
    simulated: bool
    run: Charges
    """What the whole run was charged, over all its starts."""
    batch_jobs: int = 0
    """Batch jobs of the whole run, over all its starts."""
    batch_jobs_open: int = 0
    """Those of them whose answers are not recorded yet."""
    batch_calls: int = 0
    """Rows of the whole run that were answered by batch."""
    batch_cost_usd: float | None = 0.0
    """Their cost; None if a price is unknown."""
    reason: str | None = None
    failures: Sequence[FailureKind] = ()
    """The failed rows of the whole run by kind, the most frequent first."""
    shard: str | None = None
    """The shard that this start worked on, as in `3/10`."""

    @property
    def left(self) -> int:
        """Rows still to be asked."""
        return self.rows - self.ok - self.failed

    def facts(self) -> dict[str, Any]:
        """All fields under plain names; the charges of the whole run begin with `run_`."""
        start = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "run"}
        run = {**self.run.figures("run_"), "run_lost_calls": self.run.lost_calls}
        return {**start, "left": self.left, **run}


def finish(runs: Sequence[Run]) -> list[Summary]:
    """Ends runs that were executed together: writes each manifest and, for a complete dataset, the success marker.

    The seconds, calls, tokens and cost in each summary are those of all of them.
    """
    seconds = time.monotonic() - min(run.began for run in runs)
    charged = total(run.charged for run in runs)
    return [_finished(run, seconds, charged) for run in runs]


def _finished(run: Run, seconds: float, charged: Charges) -> Summary:
    context, counters = run.context, run.context.counters
    ok, failures = run.counts()
    rows, failed = run.rows, failures.count
    known = counters.failures_before + counters.failures
    failures = with_examples(known.examples_for(failures), context.folder.output, run.parts.values())
    complete = len(run.parts) == len(run.assigned) and ok + failed == rows
    if complete and (damaged := _unsound(run)) is not None:
        ok, failed = ok - sum(part.ok for part in damaged), failed - sum(part.failed for part in damaged)
        complete = False
    shard = run.follower.shard if isinstance(run.follower, ShardFollower) else None
    too_many = run.too_many_failed() if complete and shard is None else None
    jobs, by_batch = context.journal.submissions.all(), charged_by_batch(context.folder.journal)
    waiting = sum(job.progress == "submitted" for job in jobs)
    stopped = "submitted" if waiting and context.stop.reason is None else "stopped"
    status = ("done" if shard else "failed" if too_many else "complete") if complete else stopped
    summary = Summary(
        job=context.plan.job_name,
        run_id=context.plan.run_id,
        started=run.started,
        finished=now(),
        status=status,
        rows=rows,
        ok=ok,
        failed=failed,
        start_ok=counters.ok,
        start_failed=counters.failed,
        requests=counters.requests,
        retries=counters.retries,
        throttled=counters.throttled,
        hedged=counters.hedged,
        cache_hits=counters.cache_hits,
        **charged.figures(),
        seconds=round(seconds, 3),
        output=run.output,
        simulated=context.plan.simulated,
        run=context.journal.charged(),
        reason=too_many or _reason(context.stop),
        failures=failures.kinds,
        shard=str(shard) if shard else None,
        batch_jobs=len(jobs),
        batch_jobs_open=waiting,
        batch_calls=by_batch.calls,
        batch_cost_usd=by_batch.figures()["cost_usd"],
    )
    return _published(run, summary)


def _published(run: Run, summary: Summary) -> Summary:
    """Writes the manifest and the marker, and returns the summary; a dataset whose bucket fails is not complete.

    If there was nothing to append to a complete dataset, both stay as they are.
    """
    if isinstance(run.follower, ShardFollower):
        return _shard_published(run, run.follower, summary)
    if run.context.settings.append and summary.status == "complete" and run.is_marked:
        return summary
    if run.follower is not None:
        try:
            content = manifest_bytes(_manifest(run, summary))
            run.follower.finish(content, run.parts.values(), success=summary.status == "complete")
        except Halt as fault:
            run.context.stop.request(fault)
            summary = replace(summary, status="stopped", reason=_reason(run.context.stop))
    run.context.dataset.finish(_manifest(run, summary), success=summary.status == "complete")
    return summary


def _shard_published(run: Run, follower: ShardFollower, summary: Summary) -> Summary:
    """Ends a shard and, if it finds the parts of all others, the run: then the summary is about the whole run."""
    try:
        follower.end_shard(run.parts.values())
        if summary.status != "done":
            return summary
        chunks = len(run.context.survey.chunks)
        sealed, parts = follower.sealed(chunks)
        if sealed < chunks:
            return replace(
                summary, reason=f"{sealed} of {chunks} parts of the run are sealed; other shards have the rest"
            )
        whole = replace(run, portion=None, parts={part.chunk: part for part in parts})
        if _unsound(whole) is not None:
            return replace(summary, status="stopped", reason=_reason(run.context.stop))
        ended = _of_whole(whole, summary, follower.charged())
        success = ended.status == "complete"
        follower.conclude(manifest_bytes(_manifest(whole, ended)), parts, run.context.survey, success=success)
    except Halt as fault:
        run.context.stop.request(fault)
        return replace(summary, status="stopped", reason=_reason(run.context.stop))
    return ended


def _of_whole(run: Run, summary: Summary, charged: Charges) -> Summary:
    """The summary of a shard, extended to the whole run, whose parts are all there."""
    parts = run.parts.values()
    ok, failed, rows = sum(part.ok for part in parts), sum(part.failed for part in parts), run.rows
    failures = sum((Failures.from_json(part.failures) for part in parts), Failures())
    reason = run.too_many_failed()
    status = "complete" if reason is None else "failed"
    return replace(
        summary, rows=rows, ok=ok, failed=failed, failures=failures.kinds, run=charged, status=status, reason=reason
    )


def _unsound(run: Run) -> list[Part] | None:
    """None if exactly the sealed parts are there, unchanged; otherwise the damaged ones.

    In that case the run counts as stopped, not as ended.
    """
    damage, strangers = run.damage(), run.strangers()
    if not damage and not strangers:
        return None
    report = f"{'; '.join(damage.values())}: {run.remedy()}" if damage else f"{strangers[0]}: move it elsewhere"
    run.context.stop.request(Broken(report))
    return [run.parts[chunk] for chunk in damage]


def _manifest(run: Run, summary: Summary) -> dict[str, Any]:
    context, plan, figures = run.context, run.context.plan, summary.run.figures()
    return {
        "status": summary.status,
        "reason": summary.reason,
        "stopped_by": _stopped_by(context.stop),
        "started": summary.started,
        "finished": summary.finished,
        "simulated": plan.simulated,
        "run": {"id": plan.run_id, "job": plan.job_name, "created": plan.created, "version": plan.version},
        "rows": summary.rows,
        "ok": summary.ok,
        "failed": summary.failed,
        "failures": Failures(tuple(summary.failures)).bare().to_json(),
        "tokens": {kind: figures[f"{kind}_tokens"] for kind in KINDS},
        "cost_usd": figures["cost_usd"],
        "charged": summary.run.to_json(),
        "rows_from_cache": sum(part.from_cache for part in run.parts.values()),
        "job": plan.job,
        "input": [asdict(file) for file in context.survey.files],
        "generations": _generations(plan.created, context.survey),
        "schema": {field.name: str(field.type) for field in context.dataset.schema},
        "parts": [_listed(run.parts[chunk]) for chunk in sorted(run.parts)],
    }


def _generations(created: str, survey: Survey) -> list[dict[str, Any]]:
    """The rows that were taken in together: when, from which entries of `input`, and which chunks they are."""
    listed: list[dict[str, Any]] = []
    first_row = first_chunk = first_file = 0
    for one in survey.generations:
        rows = {"first_row": first_row, "rows": one.rows}
        chunks = {"first_chunk": first_chunk, "chunks": one.chunks}
        files = {"first_file": first_file, "files": one.files}
        listed.append({"added": one.added or created, **rows, **chunks, **files})
        first_row, first_chunk, first_file = first_row + one.rows, first_chunk + one.chunks, first_file + one.files
    return listed


def _listed(part: Part) -> dict[str, Any]:
    """A part as listed in the manifest: files by relative path, and without file system metadata."""
    listed = asdict(part)
    for file, described in zip(part.files, (listed, *listed["more"]), strict=True):
        described["name"] = file.path
        del described["stamp"]
    return listed if part.more else {name: value for name, value in listed.items() if name != "more"}


def _reason(stop: Shutdown) -> str | None:
    if isinstance(stop.reason, signal.Signals):
        return stop.reason.name
    return str(stop.reason) if stop.reason else None


def _stopped_by(stop: Shutdown) -> str | None:
    """The name of the signal, or the class of the error, that stopped a start."""
    return (
        stop.reason.name
        if isinstance(stop.reason, signal.Signals)
        else type(stop.reason).__name__
        if stop.reason
        else None
    )
