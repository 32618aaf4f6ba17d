"""Executes a job over its input: wires everything together, from the survey to the success marker."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import anyio
import pyarrow as pa
from anyio import to_thread

from pipeline.counters import Counters
from pipeline.data import Entry, Failure, Part, is_part_name
from pipeline.endpoint.connection import Connect
from pipeline.execution import engine
from pipeline.execution.chunks import ChunkWorker, source_of
from pipeline.execution.monitor import RunMonitor
from pipeline.failures import ALIKE, FailureKind, Failures, Tolerance
from pipeline.faults import Broken, NothingToDo, UsageError
from pipeline.job.job import Job
from pipeline.job.loader import sha256_of
from pipeline.ledger import KINDS, NOTHING, Charges
from pipeline.policy import LocalBudget, Shutdown
from pipeline.policy.compose import CacheSettings, RunLimits, budgets_for, compose, workers_for
from pipeline.source import Survey, discover, found_again, survey
from pipeline.storage.dataset import kept_replies
from pipeline.storage.durable import FILES, FileSystem
from pipeline.storage.integrity import PartCheck
from pipeline.storage.journal import Journal, read_state, worker_journals
from pipeline.storage.rate_memory import GrantedRates
from pipeline.storage.records import with_examples
from pipeline.storage.reply_cache import Cache
from pipeline.storage.run_folder import RunFolder, RunIdentity, differences

SPARE_DESCRIPTORS = 64
"""File descriptors needed besides the connections to the endpoints."""

FEW_LEFT = 64
"""The last rows, if this few and all in play, are asked however many failed: a small trial shows all it can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to run a job: nothing here affects an answer."""

    output: Path
    target: str = ""
    bounds: RunLimits = field(default_factory=RunLimits)
    limit: int | None = None
    fresh: bool = False
    supersede: bool = False
    """Whether a different run in the output is replaced, rather than refused."""
    retry_failed: bool = False
    fail_fast: Literal["job", "alike", "never"] = "job"
    """When failed rows stop the run. `job`: once the job's `max_failed` is exceeded, or all of the first rows failed
    alike; `alike`: only for the second reason; or never."""
    keep_replies: bool = True
    grace_s: float = 20.0
    simulated: bool = False
    chunk_rows: int | None = None
    """Rows per chunk; None derives it from their size."""
    files: FileSystem = FILES
    rates: Path | None = None
    """Where granted rates are kept beyond this run; None keeps them only in its folder."""
    endpoints: int = 1
    """The number of endpoints; each has its own connections."""


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


class Run:
    """A job in its output folder, locked and checked. Create it with `open_run`."""

    def __init__(self, job: Job, settings: Settings, folder: RunFolder, plan: RunIdentity) -> None:
        self.started = _now()
        self.job = job
        self.settings = settings
        self.folder = folder
        self.plan = plan
        self.work = ChunkWorker(job, plan, folder.output, settings.files)
        self._check = PartCheck(folder.output)
        self.survey, self.dataset = self.work.survey, self.work.dataset
        self.journal = Journal(folder.journal, settings.files)
        for left in worker_journals(folder.journal):  # left by the worker processes of a start that was killed
            self.journal.absorb(left)
        self.charged_before = self.journal.charged()
        self.lock: int | None = None
        """The descriptor of the lock, to be shared with worker processes; None if it is not held."""
        self.cache: Cache | None = None
        self.purses: list[LocalBudget] = []
        self.parts = {part.chunk: part for part in self.journal.parts()}

    def chunks(self) -> list[engine.Chunk]:
        """The chunks that are not sealed, in order."""
        return [self.work.chunk(index) for index in range(len(self.survey.chunks)) if index not in self.parts]

    def reopen_failed(self) -> int:
        """Reopens every failed row, to be asked again; returns how many there are."""
        if not self.plan.keep_replies and any(part.failed for part in self.parts.values()):
            raise UsageError("the run did not keep its replies, so its failed rows cannot be asked alone: use --fresh")
        reopened = 0
        for part in [part for part in self.parts.values() if part.failed]:
            entries = kept_replies(self.folder.output, part.chunk)
            good = ((ordinal, entry) for ordinal, entry in entries if not self._has_failed(ordinal, entry))
            self.journal.unseal(part.chunk, good)
            del self.parts[part.chunk]
            reopened += part.rows - len(self.journal.recorded(part.first, part.rows))
        for chunk in self.chunks():
            failed = [o for o, entry in self.journal.entries(chunk.first, chunk.rows) if self._has_failed(o, entry)]
            self.journal.forget(failed)
            reopened += len(failed)
        return reopened

    def extend(self, before: Survey) -> int:
        """Makes room for more rows: reopens parts whose chunk boundaries or columns have changed.

        Nothing is asked again. Returns how many parts were reopened. Raises `UsageError` if their replies were not
        kept.
        """
        now = self.survey
        same = (now.schema, now.json_columns, now.chunk_rows) == (before.schema, before.json_columns, before.chunk_rows)
        opened = [part for part in self.parts.values() if not same or part.rows != self.work.chunk(part.chunk).rows]
        if opened and not self.plan.keep_replies:
            raise UsageError("the run did not keep its replies, so it cannot be extended: use --fresh")
        self.dataset.unfinish()
        for part in opened:
            self.journal.unseal(part.chunk, kept_replies(self.folder.output, part.chunk))
            del self.parts[part.chunk]
        for part in opened:
            self.dataset.discard(part.chunk)
        return len(opened)

    async def execute(self, connect: Connect, tally: Counters, stop: Shutdown) -> None:
        """Asks the rows that are left, and seals them. Returns at the end, or once `stop` was requested and drained."""
        chunks = self.chunks()
        if not chunks:
            return
        self.dataset.unfinish()
        self.check(tally, stop)
        rates = self.rates()
        bounds = replace(self.settings.bounds, granted=rates.load())
        async with anyio.create_task_group() as tasks, connect() as endpoints:
            composed = compose(
                self.job,
                bounds,
                endpoints,
                self.purses,
                tally=tally,
                stop=stop,
                store=self.cache,
                books=self.journal,
            )
            tasks.start_soon(self.journal.keep_writing)
            if self.cache is not None:
                tasks.start_soon(self.cache.keep_working, tally.notices.append)
            tasks.start_soon(RunMonitor(self.folder.run, composed, tally, stop, self.settings.files, rates).keep)
            await engine.process_chunks(
                engine.in_order(chunks),
                self.work.hands(
                    composed.ask, self.journal, self.record_part, tally, self.cache, partial(self.check, tally, stop)
                ),
                workers=workers_for(bounds.concurrency),
                stop=stop,
                grace_s=self.settings.grace_s,
                open_chunks=self.work.open_chunks(bounds.concurrency),
            )
            with suppress(Broken):  # it already is the reason of the stop
                await self.journal.flush()
            tasks.cancel_scope.cancel()

    def rates(self) -> GrantedRates:
        """The store of the rates that the endpoints granted."""
        return GrantedRates(self.folder.run, self.settings.rates, self.settings.files)

    async def record_part(self, part: Part) -> None:
        """Records a written part."""
        await to_thread.run_sync(self.journal.seal, part)
        self.parts[part.chunk] = part

    def check(self, tally: Counters, stop: Shutdown) -> None:
        """Requests the stop if more rows have failed than tolerated, and stopping would save calls."""
        in_play = tally.in_flight + tally.waiting + tally.retrying
        if (tally.failed or tally.failures_before.kinds) and tally.rows - tally.done > min(in_play, FEW_LEFT):
            failures = tally.failures_before + tally.failures
            if (fault := self.tolerance.passed(tally.ok_before + tally.ok, failures, tally.rows)) is not None:
                stop.request(fault)

    @property
    def tolerance(self) -> Tolerance:
        """How many failed rows the run tolerates."""
        match self.settings.fail_fast:
            case "job":
                return Tolerance(allowed_failures(self.job, self.survey.rows), ALIKE)
            case "alike":
                return Tolerance(alike=ALIKE)
        return Tolerance()

    def finish(self, tally: Counters, stop: Shutdown, seconds: float, charged: Charges = NOTHING) -> Summary:
        """Counts the rows, writes the manifest and, if the dataset is complete, the success marker.

        `charged` covers this start, together with all runs executed concurrently.
        """
        ok, failures = self._counts()
        total, failed = self.survey.rows, failures.count
        known = tally.failures_before + tally.failures
        failures = with_examples(known.examples_for(failures), self.folder.output, self.parts.values())
        complete = len(self.parts) == len(self.survey.chunks) and ok + failed == total
        if complete and (damaged := self._unsound(stop)) is not None:
            ok, failed = ok - sum(part.ok for part in damaged), failed - sum(part.failed for part in damaged)
            complete = False
        too_many = failed > allowed_failures(self.job, total)
        status = ("failed" if too_many else "complete") if complete else "stopped"
        summary = Summary(
            job=self.plan.job_name,
            run_id=self.plan.run_id,
            started=self.started,
            finished=_now(),
            status=status,
            rows=total,
            ok=ok,
            failed=failed,
            start_ok=tally.ok,
            start_failed=tally.failed,
            requests=tally.requests,
            retries=tally.retries,
            throttled=tally.throttled,
            cache_hits=tally.cache_hits,
            **charged.figures(),
            seconds=round(seconds, 3),
            output=str(self.folder.output),
            simulated=self.plan.simulated,
            run=self.journal.charged(),
            reason=_too_many(self.job, failed, total) if status == "failed" else _reason(stop),
            failures=failures.kinds,
        )
        self.dataset.finish(self._manifest(summary, stop), success=status == "complete")
        return summary

    def restore_counts(self, tally: Counters) -> None:
        """Initialises the counters and budgets with what earlier starts have done and spent."""
        tally.rows += self.survey.rows
        tally.done_before += sum(part.rows for part in self.parts.values()) + self.journal.count()
        ok, failures = self._counts()
        tally.ok_before += ok
        tally.failures_before += failures
        tally.cost_before_usd += self.charged_before.cost_usd
        self.purses = budgets_for(self.job, self.settings.bounds, self.charged_before)

    def damage(self) -> dict[int, str]:
        """What is wrong with the files of sealed parts: one sentence per damaged chunk."""
        return self._check.damage(self.parts.values())

    def strangers(self) -> list[str]:
        """Files that readers of the complete dataset would take for parts, but are not: one sentence each."""
        whole = len(self.parts) == len(self.survey.chunks)
        # A start that was killed may have left a part that it had not recorded yet; it will be overwritten.
        found = (path for path in self._check.unrecorded(self.parts.values()) if whole or not is_part_name(path.name))
        return [f"{path} is no part of this run" for path in found]

    def remedy(self) -> str:
        """How to repair damage."""
        again = f", or `pipeline reparse {self.folder.output} --job {self.plan.target or 'JOB.py'}` makes it again"
        return f"restore the file{f'{again} at no cost' if self.plan.keep_replies else ''}; --fresh starts over"

    def _unsound(self, stop: Shutdown) -> list[Part] | None:
        """None if exactly the sealed parts are there, unchanged; otherwise the damaged ones.

        In that case the run counts as stopped, not as ended.
        """
        damage, strangers = self.damage(), self.strangers()
        if not damage and not strangers:
            return None
        report = f"{'; '.join(damage.values())}: {self.remedy()}" if damage else f"{strangers[0]}: move it elsewhere"
        stop.request(Broken(report))
        return [self.parts[chunk] for chunk in damage]

    @property
    def charged(self) -> Charges:
        """What this start has been charged so far."""
        return self.journal.charged() - self.charged_before

    def _has_failed(self, ordinal: int, entry: Entry) -> bool:
        return isinstance(self.job.outcome(ordinal, entry), Failure)

    def _counts(self) -> tuple[int, Failures]:
        """The number of rows with a value, and the failed rows by kind, sealed or not."""
        ok = sum(part.ok for part in self.parts.values())
        failures = sum((Failures.from_json(part.failures) for part in self.parts.values()), Failures())
        for chunk in self.chunks():
            for ordinal, entry in self.journal.entries(chunk.first, chunk.rows):
                outcome = self.job.outcome(ordinal, entry)
                if isinstance(outcome, Failure):
                    failures += Failures.of([outcome])
                else:
                    ok += 1
        return ok, failures

    def _manifest(self, summary: Summary, stop: Shutdown) -> dict[str, Any]:
        plan, figures = self.plan, summary.run.figures()
        return {
            "status": summary.status,
            "reason": summary.reason,
            "stopped_by": _stopped_by(stop),
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
            "rows_from_cache": sum(part.from_cache for part in self.parts.values()),
            "job": plan.job,
            "input": [asdict(file) for file in self.survey.files],
            "schema": {field.name: str(field.type) for field in self.dataset.schema},
            "parts": [_listed(self.parts[chunk]) for chunk in sorted(self.parts)],
        }


@contextmanager
def open_run(job: Job, settings: Settings) -> Iterator[Run]:
    """Opens and locks a run, new or resumed. Nothing has been asked yet; everything that can be refused has been.

    Raises `UsageError` (with the remedy), or `NothingToDo` if the input has no row.
    """
    discover(
        inputs_of(job), job.include, rows=job.input_rows, allow_partial=job.allow_partial
    )  # refused here, before an output folder is created
    prepare_process(settings)
    folder = RunFolder(settings.output, settings.files)
    folder.prepare()
    # The cache too is opened before anything is removed.
    with folder.locked() as lock, open_cache(settings.bounds.reuse) as cache:
        before = None if settings.fresh else folder.load()
        plan = _planned(job, settings, folder)
        _require_columns(job, Survey.from_json(plan.survey))
        if settings.fresh or (before is not None and settings.supersede and plan.run_id != before.run_id):
            folder.clear()
        folder.sweep()
        run = Run(job, settings, folder, plan)
        run.lock, run.cache = lock, cache
        try:
            check_parts(run)
            if before is not None and plan.run_id == before.run_id and plan.extends(before):
                run.extend(Survey.from_json(before.survey))
            folder.save(plan)
            yield run
        finally:
            run.work.close()
            run.journal.close()


def allowed_failures(job: Job, rows: int) -> float:
    """How many rows may fail: `max_failed` is a share if below 1, otherwise a number of rows."""
    return job.max_failed * rows if job.max_failed < 1 else job.max_failed


def prepare_process(settings: Settings) -> None:
    """Prepares this process for a run: for many small batches, and for many connections.

    Raises `UsageError` if it may not open enough files.
    """
    # Arrow's own pools retain memory after many small batches, so that a long run would grow.
    pa.set_memory_pool(pa.system_memory_pool())
    ensure_descriptors(settings.bounds.concurrency, settings.endpoints)


def ensure_descriptors(concurrency: int, endpoints: int = 1) -> None:
    """Raises the soft limit of open files to what the concurrency needs, now and after tuning.

    Raises `UsageError` if the hard limit is too low for the current concurrency.
    """
    needed = concurrency * endpoints + SPARE_DESCRIPTORS
    wanted = workers_for(concurrency) * endpoints + SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        calls = f"{concurrency} calls in flight" + (f" to each of {endpoints} endpoints" if endpoints > 1 else "")
        raise UsageError(f"{calls} need {needed} open files, but the limit is {hard} (ulimit -Hn): lower --concurrency")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )


@contextmanager
def open_cache(reuse: CacheSettings | None) -> Iterator[Cache | None]:
    """The cache of earlier replies; None if they may not be reused. Raises `UsageError` if it cannot be read."""
    if reuse is None:
        yield None
        return
    with closing(Cache(reuse.folder, reuse.endpoint)) as cache:
        yield cache


def _planned(job: Job, settings: Settings, folder: RunFolder) -> RunIdentity:
    before = None if settings.fresh else folder.load()
    if before is not None and read_state(folder.journal) == ([], 0):
        for part in PartCheck(folder.output).unrecorded(()):
            raise UsageError(
                f"{part} is there, but {folder.journal} knows of no part: restore the journal, or use --fresh"
            )
        before = None  # a start that recorded nothing does not commit the run to its settings
    found = Survey.from_json(before.survey) if before else _surveyed(job, settings)
    plan = RunIdentity(
        job_name=job.name,
        job=job.fingerprint(),
        target=settings.target,
        target_sha256=sha256_of(settings.target),
        survey=before.survey if before else found.to_json(),
        limit=settings.limit,
        simulated=settings.simulated,
        keep_replies=settings.keep_replies,
    )
    if before is None:
        return plan
    if before.reparsing:
        raise UsageError(f"a re-parse of {settings.output} was cut short: run `pipeline reparse` again to finish it")
    found, moved = found_again(found, inputs_of(job), job.include, rows=job.input_rows, allow_partial=job.allow_partial)
    different = [*differences(before, plan), *moved]
    if different and settings.supersede:
        return replace(plan, survey=_surveyed(job, settings).to_json())
    if different:
        only_schema = all(text.startswith("schema ") for text in different)
        remedy = (
            f"`pipeline reparse {settings.output} --job {settings.target}` applies it to the kept replies at no cost; "
            if only_schema
            else ""
        )
        listed = "".join(f"\n  - {text}" for text in different)
        raise UsageError(
            f"{settings.output} already holds a different run:{listed}\n"
            f"{remedy}--fresh starts over, or choose another --output"
        )
    here = replace(before, target=plan.target, target_sha256=plan.target_sha256)
    if plan.extends(before):
        return replace(here, limit=plan.limit, survey=_surveyed(job, settings).to_json())
    return replace(here, survey=found.to_json())


def _require_columns(job: Job, found: Survey) -> None:
    """Raises `UsageError` if the job does not fit the columns of its input."""
    source, _ = source_of(job, found)
    source.close()


def _surveyed(job: Job, settings: Settings) -> Survey:
    found = survey_of(
        job,
        chunk_rows=settings.chunk_rows,
        min_chunk_rows=min(20_000, max(1000, settings.bounds.concurrency)),
        limit=settings.limit,
    )
    if found.rows == 0:
        raise NothingToDo("the input holds no row")
    if found.bad_count and job.max_failed == 0:
        first = found.bad_lines[0]
        raise UsageError(
            f"records that cannot be read: {found.bad_count}, and the job allows no failed row; the first: "
            f"{first.path}: {first.problem}"
        )
    return found


def check_parts(run: Run) -> None:
    """Raises `UsageError` if a part is missing or was changed, or if there are files that are not parts.

    The success marker is then removed: it stands for a complete dataset.
    """
    damage, strangers = run.damage(), run.strangers()
    if damage or strangers:
        run.dataset.unfinish()
    for wrong in damage.values():
        raise UsageError(f"{wrong}: {run.remedy()}")
    for stranger in strangers:
        raise UsageError(f"{stranger}: move it elsewhere")


def _listed(part: Part) -> dict[str, Any]:
    """A part as listed in the manifest: files by relative path, and without file system metadata."""
    listed = asdict(part)
    for file, described in zip(part.files, (listed, *listed["more"]), strict=True):
        described["name"] = file.path
        del described["stamp"]
    return listed if part.more else {name: value for name, value in listed.items() if name != "more"}


def survey_of(job: Job, **bounds: Any) -> Survey:
    """The survey of a job's input; `bounds` as of `pipeline.source.survey`."""
    chosen: dict[str, Any] = {"include": job.include, "rows": job.input_rows, "allow_partial": job.allow_partial}
    return survey(inputs_of(job), **chosen, types=job.types, **bounds)


def inputs_of(job: Job) -> list[str | Path]:
    """The inputs of a job: files, folders, globs."""
    if not job.input:
        raise UsageError("the job has no input: name one with --input")
    return [job.input] if isinstance(job.input, str | Path) else list(job.input)


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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
