"""One execution of a job over its input: the parts wired together, from the survey to the success marker."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import pyarrow as pa
from anyio import to_thread

from pipeline import run as engine
from pipeline.cache import Cache
from pipeline.composition import Bounds, Opened, Reuse, compose, purses_for, workers_for
from pipeline.data import Entry, Failure, Part, Reply
from pipeline.dataset import kept_replies
from pipeline.disk import FILES, Files
from pipeline.faults import Broken, Misuse, NothingToDo
from pipeline.granted import GrantedRates
from pipeline.job import Job
from pipeline.journal import Journal, beside, look
from pipeline.plan import Plan, RunFolder, differences
from pipeline.policy import Purse, Stop
from pipeline.source import Source, Survey, changed, find_files, survey
from pipeline.tally import Tally
from pipeline.watching import Watch
from pipeline.working import Work

SPARE_DESCRIPTORS = 64
"""Files and sockets that are open besides the connections to the endpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to run a job: nothing in here shapes an answer."""

    output: Path
    target: str = ""
    bounds: Bounds = field(default_factory=Bounds)
    limit: int | None = None
    fresh: bool = False
    supersede: bool = False
    """Whether another run in the output gives way, rather than being in the way."""
    retry_failed: bool = False
    keep_replies: bool = True
    grace_s: float = 20.0
    simulated: bool = False
    chunk_rows: int | None = None
    """Rows of a chunk; None lets their size decide."""
    files: Files = FILES
    rates: Path | None = None
    """Where the rates that were granted are kept beyond this run; None keeps them in its folder only."""
    endpoints: int = 1
    """How many are asked; each keeps connections of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a start of a run came to. `rows`, `ok` and `failed` are of the whole run, the calls of this start."""

    status: str
    rows: int
    ok: int
    failed: int
    requests: int
    retries: int
    throttled: int
    cache_hits: int
    """Calls that the reply cache answered, of this start."""
    input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost_usd: float | None
    """None when some reply has no known price."""
    seconds: float
    output: str
    simulated: bool
    reason: str | None = None

    @property
    def left(self) -> int:
        """Rows that still have to be asked."""
        return self.rows - self.ok - self.failed


Connect = Callable[[], AbstractAsyncContextManager[Sequence[Opened]]]
"""Opens the endpoints, and closes them at the end of the block."""


class Run:
    """A job in its output folder, locked and checked. Make one with `opened`."""

    def __init__(self, job: Job, settings: Settings, folder: RunFolder, plan: Plan) -> None:
        self.job = job
        self.settings = settings
        self.folder = folder
        self.plan = plan
        self.work = Work(job, plan, folder.output, settings.files)
        self.survey, self.dataset = self.work.survey, self.work.dataset
        self.journal = Journal(folder.journal, settings.files)
        for left in beside(folder.journal):  # by the worker processes of a start that was killed
            self.journal.absorb(left)
        self.lock: int | None = None
        """The lock that worker processes share, when it is held."""
        self.cache: Cache | None = None
        self.purses: list[Purse] = []
        self.parts = {part.chunk: part for part in self.journal.parts()}

    def chunks(self) -> list[engine.Chunk]:
        """The chunks that are not sealed, in order."""
        return [self.work.chunk(index) for index in range(len(self.survey.chunks)) if index not in self.parts]

    def reopen_failed(self) -> int:
        """Makes every failed row a row to ask again; how many there are."""
        if not self.plan.keep_replies and any(part.failed for part in self.parts.values()):
            raise Misuse("the run did not keep its replies, so its failed rows cannot be asked alone: use --fresh")
        reopened = 0
        for part in [part for part in self.parts.values() if part.failed]:
            entries = list(kept_replies(self.folder.output, part.chunk))
            good = [(ordinal, entry) for ordinal, entry in entries if not self._has_failed(ordinal, entry)]
            self.journal.unseal(part.chunk, good)
            del self.parts[part.chunk]
            reopened += len(entries) - len(good)
        for chunk in self.chunks():
            failed = [o for o, entry in self.journal.entries(chunk.first, chunk.rows) if self._has_failed(o, entry)]
            self.journal.forget(failed)
            reopened += len(failed)
        return reopened

    async def carry_out(self, connect: Connect, tally: Tally, stop: Stop) -> None:
        """Asks what is left to ask, and seals it. Returns at the end, or when `stop` was requested and drained."""
        chunks = self.chunks()
        if not chunks:
            return
        self.dataset.unfinish()
        rates = self.rates()
        bounds = replace(self.settings.bounds, granted=rates.load())
        async with anyio.create_task_group() as tasks, connect() as endpoints:
            composed = compose(self.job, bounds, endpoints, self.purses, tally=tally, stop=stop, store=self.cache)
            tasks.start_soon(self.journal.keep_writing)
            if self.cache is not None:
                tasks.start_soon(self.cache.keep_working, tally.notes.append)
            tasks.start_soon(Watch(self.folder.run, composed, tally, stop, self.settings.files, rates).keep)
            await engine.work_through(
                engine.in_order(chunks),
                self.work.hands(composed.ask, self.journal, self.keep, tally, self.cache),
                workers=workers_for(bounds.concurrency),
                stop=stop,
                grace_s=self.settings.grace_s,
                open_chunks=self.work.open_chunks(bounds.concurrency),
            )
            with suppress(Broken):  # it is the reason of the stop already
                await self.journal.flush()
            tasks.cancel_scope.cancel()

    def rates(self) -> GrantedRates:
        """Where the rates that the endpoints granted are kept."""
        return GrantedRates(self.folder.run, self.settings.rates, self.settings.files)

    async def keep(self, part: Part) -> None:
        """Records a written part."""
        await to_thread.run_sync(self.journal.seal, part)
        self.parts[part.chunk] = part

    def conclude(self, tally: Tally, stop: Stop, seconds: float) -> Summary:
        """Counts what there is, writes the manifest and, when every row is accounted for, the success marker."""
        ok, failed = self._counts()
        total = self.survey.rows
        complete = len(self.parts) == len(self.survey.chunks) and ok + failed == total
        too_many = failed > allowed_failures(self.job, total)
        status = ("failed" if too_many else "complete") if complete else "stopped"
        summary = Summary(
            status=status,
            rows=total,
            ok=ok,
            failed=failed,
            requests=tally.requests,
            retries=tally.retries,
            throttled=tally.throttled,
            cache_hits=tally.cache_hits,
            input_tokens=tally.usage.input,
            output_tokens=tally.usage.output,
            reasoning_tokens=tally.usage.reasoning,
            cost_usd=None if tally.unpriced else round(tally.cost_usd, 6),
            seconds=round(seconds, 3),
            output=str(self.folder.output),
            simulated=self.plan.simulated,
            reason=_reason(stop),
        )
        self.dataset.finish(self._manifest(summary), success=status == "complete")
        return summary

    def count_before(self, tally: Tally) -> None:
        """Tells the tally and the budgets what earlier starts have done and spent."""
        tally.rows += self.survey.rows
        tally.done_before += sum(part.rows for part in self.parts.values()) + self.journal.count()
        bounds = self.settings.bounds
        if bounds.budget_usd is not None or bounds.budget_tokens is not None:
            usd, tokens = self.spent()
            self.purses = purses_for(self.job, bounds, spent_usd=usd, spent_tokens=tokens)

    def spent(self) -> tuple[float, float]:
        """Dollars and tokens that were paid for every reply that is kept, sealed or not."""
        usd = sum(part.cost_usd for part in self.parts.values())
        tokens = float(sum(p.input_tokens + p.output_tokens + p.reasoning_tokens for p in self.parts.values()))
        for _, entry in self.journal.entries(0, self.survey.rows):
            if isinstance(entry, Reply):
                usd += entry.paid_usd or 0.0
                tokens += entry.paid.input + entry.paid.output + entry.paid.reasoning
        return usd, tokens

    def _has_failed(self, ordinal: int, entry: Entry) -> bool:
        return isinstance(self.job.outcome(ordinal, entry), Failure)

    def _counts(self) -> tuple[int, int]:
        ok = sum(part.ok for part in self.parts.values())
        failed = sum(part.failed for part in self.parts.values())
        for chunk in self.chunks():
            for ordinal, entry in self.journal.entries(chunk.first, chunk.rows):
                bad = self._has_failed(ordinal, entry)
                ok, failed = ok + (not bad), failed + bad
        return ok, failed

    def _manifest(self, summary: Summary) -> dict[str, Any]:
        plan = self.plan
        return {
            "status": summary.status,
            "simulated": plan.simulated,
            "run": {"id": plan.run_id, "job": plan.job_name, "created": plan.created, "version": plan.version},
            "rows": summary.rows,
            "ok": summary.ok,
            "failed": summary.failed,
            "tokens": {
                kind: sum(getattr(part, f"{kind}_tokens") for part in self.parts.values())
                for kind in ("input", "output", "reasoning", "cached")
            },
            "cost_usd": sum(part.cost_usd for part in self.parts.values()),
            "unpriced_replies": sum(part.unpriced for part in self.parts.values()),
            "rows_from_cache": sum(part.from_cache for part in self.parts.values()),
            "job": plan.job,
            "input": [asdict(file) for file in self.survey.files],
            "schema": {field.name: str(field.type) for field in self.dataset.schema},
            "parts": [asdict(self.parts[chunk]) for chunk in sorted(self.parts)],
        }


@contextmanager
def opened(job: Job, settings: Settings) -> Iterator[Run]:
    """A run, new or resumed, for us alone. Nothing was asked yet; everything that can be refused has been.

    Raises `Misuse` (with the remedy), or `NothingToDo` when the input has no row.
    """
    files = find_files(inputs_of(job))
    equip(settings)
    folder = RunFolder(settings.output, settings.files)
    folder.prepare()
    # The cache, too, is opened before anything is removed.
    with folder.locked() as lock, reusing(settings.bounds.reuse) as cache:
        before = folder.load()
        plan = _planned(job, settings, folder, [str(path) for path in files])
        _require_columns(job, Survey.from_json(plan.survey))
        if settings.fresh or (before is not None and settings.supersede and plan.run_id != before.run_id):
            folder.clear()
        folder.sweep()
        run = Run(job, settings, folder, plan)
        run.lock, run.cache = lock, cache
        try:
            check_parts(run)
            folder.save(plan)
            yield run
        finally:
            run.work.close()
            run.journal.close()


def allowed_failures(job: Job, rows: int) -> float:
    """How many rows may fail: `max_failed` is a share below 1, a number of rows from 1 on."""
    return job.max_failed * rows if job.max_failed < 1 else job.max_failed


def equip(settings: Settings) -> None:
    """Makes this process fit for a run: for its many small batches, and for its many connections. Raises `Misuse`."""
    # Arrow's own pools keep what many small batches leave behind, and a long run grows by it.
    pa.set_memory_pool(pa.system_memory_pool())
    ensure_descriptors(settings.bounds.concurrency, settings.endpoints)


def ensure_descriptors(concurrency: int, endpoints: int = 1) -> None:
    """Raises the soft limit of open files to what the concurrency needs, as it is and as it may be tuned to.

    Raises `Misuse` when the hard limit is below what it needs as it is.
    """
    needed = concurrency * endpoints + SPARE_DESCRIPTORS
    wanted = workers_for(concurrency) * endpoints + SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        told = f"{concurrency} calls in flight" + (f" to each of {endpoints} endpoints" if endpoints > 1 else "")
        raise Misuse(f"{told} need {needed} open files, but the limit is {hard} (ulimit -Hn): lower --concurrency")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )


@contextmanager
def reusing(reuse: Reuse | None) -> Iterator[Cache | None]:
    """The replies of earlier runs, where they may be used. Raises `Misuse` when they cannot be read."""
    if reuse is None:
        yield None
        return
    with closing(Cache(reuse.folder, reuse.endpoint)) as cache:
        yield cache


def _planned(job: Job, settings: Settings, folder: RunFolder, files: Sequence[str]) -> Plan:
    before = None if settings.fresh else folder.load()
    if before is not None and look(folder.journal) == ([], 0):
        before = None  # a start that recorded nothing binds nobody to its settings
    found = Survey.from_json(before.survey) if before else _surveyed(job, settings)
    plan = Plan(
        job_name=job.name,
        job=job.fingerprint(),
        target=settings.target,
        survey=before.survey if before else found.to_json(),
        limit=settings.limit,
        simulated=settings.simulated,
        keep_replies=settings.keep_replies,
    )
    if before is None:
        return plan
    if before.reparsing:
        raise Misuse(f"a re-parse of {settings.output} was cut short: run `pipeline reparse` again to finish it")
    different = [*differences(before, plan), *changed(found, files)]
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
        raise Misuse(
            f"{settings.output} holds another run:{listed}\n{remedy}--fresh starts over, or choose another --output"
        )
    return before


def _require_columns(job: Job, found: Survey) -> None:
    """Raises `Misuse` when the job does not fit the columns of its input."""
    kept = job.columns_kept(found.columns)
    Source(found, needed=job.columns_needed(list(found.columns)), kept=list(kept)).close()


def _surveyed(job: Job, settings: Settings) -> Survey:
    found = survey(
        inputs_of(job),
        chunk_rows=settings.chunk_rows,
        min_chunk_rows=min(20_000, max(1000, settings.bounds.concurrency)),
        limit=settings.limit,
    )
    if found.rows == 0:
        raise NothingToDo("the input holds no row")
    if found.bad_count and job.max_failed == 0:
        first = found.bad_lines[0]
        raise Misuse(
            f"records that cannot be read: {found.bad_count}, and the job allows no failed row; the first: "
            f"{first.path}: {first.problem}"
        )
    return found


def check_parts(run: Run, *, whole: bool = True) -> None:
    """Raises `Misuse` when a part is not there; or, with `whole`, not as large as it was."""
    for part in run.parts.values():
        path = run.folder.output / part.name
        if not path.is_file() or (whole and path.stat().st_size != part.bytes):
            raise Misuse(f"{path} is missing or was changed since it was sealed: use --fresh, or restore the file")


def inputs_of(job: Job) -> list[str | Path]:
    """What the job reads: files, folders, globs."""
    if not job.input:
        raise Misuse("the job has no input: name one with --input")
    return [job.input] if isinstance(job.input, str | Path) else list(job.input)


def _reason(stop: Stop) -> str | None:
    if isinstance(stop.reason, signal.Signals):
        return stop.reason.name
    return str(stop.reason) if stop.reason else None
