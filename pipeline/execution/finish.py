"""Ends runs: counts their rows, and writes the manifest and the success marker."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from pipeline.data import Part
from pipeline.execution.run import Run, allowed_failures, now
from pipeline.faults import Broken, Halt
from pipeline.job.job import Job
from pipeline.policy import Shutdown
from pipeline.storage.dataset import manifest_bytes
from pipeline.storage.records import with_examples
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
    rows, failed = context.survey.rows, failures.count
    known = counters.failures_before + counters.failures
    failures = with_examples(known.examples_for(failures), context.folder.output, run.parts.values())
    complete = len(run.parts) == len(context.survey.chunks) and ok + failed == rows
    if complete and (damaged := _unsound(run)) is not None:
        ok, failed = ok - sum(part.ok for part in damaged), failed - sum(part.failed for part in damaged)
        complete = False
    too_many = failed > allowed_failures(context.job, rows)
    jobs, by_batch = context.journal.submissions.all(), charged_by_batch(context.folder.journal)
    waiting = sum(job.progress == "submitted" for job in jobs)
    stopped = "submitted" if waiting and context.stop.reason is None else "stopped"
    status = ("failed" if too_many else "complete") if complete else stopped
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
        reason=_too_many(context.job, failed, rows) if status == "failed" else _reason(context.stop),
        failures=failures.kinds,
        batch_jobs=len(jobs),
        batch_jobs_open=waiting,
        batch_calls=by_batch.calls,
        batch_cost_usd=by_batch.figures()["cost_usd"],
    )
    return _published(run, summary)


def _published(run: Run, summary: Summary) -> Summary:
    """Writes the manifest and the marker, and returns the summary; a dataset whose bucket fails is not complete."""
    if run.follower is not None:
        try:
            content = manifest_bytes(_manifest(run, summary))
            run.follower.finish(content, run.parts.values(), success=summary.status == "complete")
        except Halt as fault:
            run.context.stop.request(fault)
            summary = replace(summary, status="stopped", reason=_reason(run.context.stop))
    run.context.dataset.finish(_manifest(run, summary), success=summary.status == "complete")
    return summary


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
        "schema": {field.name: str(field.type) for field in context.dataset.schema},
        "parts": [_listed(run.parts[chunk]) for chunk in sorted(run.parts)],
    }


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


def _too_many(job: Job, failed: int, rows: int) -> str:
    return f"{failed} of {rows} rows failed, more than the job allows (max_failed={job.max_failed:g})"
