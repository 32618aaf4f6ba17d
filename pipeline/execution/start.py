"""Opens a run, new or resumed. Everything that can be refused is refused here, before a row is asked."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from pathlib import Path

from pipeline.execution.chunks import ChunkWorker, RowObserver
from pipeline.execution.context import RunContext, open_cache, prepare_process
from pipeline.execution.identity import begun, identity_of, inputs_of
from pipeline.execution.run import Run, now
from pipeline.execution.settings import Settings
from pipeline.execution.shards import ShardStart, common_plan
from pipeline.faults import UsageError
from pipeline.job.job import Job
from pipeline.policy import LocalBudget, Shutdown
from pipeline.policy.compose import budgets_for
from pipeline.source import Survey, SurveyProgress, discover
from pipeline.storage.durable import FILES, FileSystem
from pipeline.storage.integrity import PartCheck
from pipeline.storage.journal import Journal
from pipeline.storage.journal_reader import worker_journals
from pipeline.storage.kept_replies import kept_replies
from pipeline.storage.remote.follower import Follower, following
from pipeline.storage.remote.objects import OutputObjects
from pipeline.storage.remote.shard_follower import ShardFollower, following_shard
from pipeline.storage.run_folder import RunFolder, RunIdentity
from pipeline.totals.counters import Counters
from pipeline.totals.ledger import NOTHING, Charges


@contextmanager
def open_run(  # noqa: PLR0913 - what a run is given when it starts
    job: Job,
    settings: Settings,
    *,
    files: FileSystem = FILES,
    counters: Counters | None = None,
    stop: Shutdown | None = None,
    objects: OutputObjects | None = None,
    reading: SurveyProgress | None = None,
    shard: ShardStart | None = None,
    observer: RowObserver | None = None,
) -> Iterator[Run]:
    """Opens and locks a run. What earlier starts did is added to the counters; failed rows are reopened if asked for.

    Runs that are executed together are given the same `counters` and `stop`. With `objects` the output is in a bucket,
    and the settings' folder is only its state; with `shard`, only the chunks of that shard are worked on, and the
    settings are its own (see `divided`). `reading` is told how far the survey is, if one is needed. Worker processes
    must have been forked before. An `observer` is given each outcome that this start records.

    Raises `UsageError` (with the remedy), or `NothingToDo` if the input has no row.
    """
    began, started = time.monotonic(), now()
    # Refused here, before an output folder is created.
    found = discover(inputs_of(job), job.include, rows=job.input_rows, allow_partial=job.allow_partial, versions=False)
    folder = RunFolder(settings.output, files, objects.address if objects else None)
    _require_apart([file.path for file in found.files if isinstance(file.path, Path)], folder)
    prepare_process(settings)
    folder.prepare()
    # The cache too is opened before anything is removed.
    with (
        folder.locked() as lock,
        _following(objects, folder, settings, shard) as follower,
        open_cache(settings.bounds.reuse) as cache,
    ):
        if isinstance(follower, ShardFollower):
            plan = common_plan(job, settings, folder, follower, started, reading)
            before: RunIdentity | None = plan
            portion, elsewhere = follower.take(Survey.from_json(plan.survey)), follower.charged_elsewhere()
        else:
            before = None if settings.fresh else folder.load()
            before = begun(folder, before) if before is not None and settings.append else before
            plan = identity_of(job, settings, folder, before, started, reading)
            portion, elsewhere = None, NOTHING
        replaced = None if before is None or before.run_id == plan.run_id else before
        budgets_for(job, settings.bounds)  # refused here if the price is unknown
        with closing(ChunkWorker(job, plan, folder.output, files, whole_rows=observer is not None)) as chunks:
            if settings.fresh or (replaced is not None and settings.supersede):
                folder.clear()
                if follower is not None:
                    follower.clear()
            folder.sweep()
            with open_journal(folder) as journal:
                context = RunContext(
                    settings=settings,
                    folder=folder,
                    chunks=chunks,
                    journal=journal,
                    cache=cache,
                    budgets=budgets_for(job, settings.bounds, _charged_since(plan, journal.charged() + elsewhere)),
                    counters=Counters() if counters is None else counters,
                    stop=Shutdown() if stop is None else stop,
                    observer=observer,
                )
                run = run_in(context, lock=lock, began=began, started=started, follower=follower)
                run = replace(run, portion=portion)
                extended = before if before is not None and replaced is None and plan.extends(before) else None
                added = context.survey.rows - Survey.from_json(extended.survey).rows if extended else 0
                try:
                    reopened = _prepare(run, extended)
                    opened = replace(run, reopened=reopened, replaced=replaced, added=added)
                    yield replace(opened, allowed=opened.failures_allowed())
                finally:
                    if follower is not None:
                        follower.end()  # it reads the journal


def _following(
    objects: OutputObjects | None, folder: RunFolder, settings: Settings, shard: ShardStart | None
) -> AbstractContextManager[Follower | None]:
    if shard is None:
        return following(objects, folder, fresh=settings.fresh)
    if objects is None or settings.fresh:
        raise UsageError("shards need an output in an object store, and cannot start it over: see --shard")
    return following_shard(objects, folder, shard.shard, shard.patience)


def _charged_since(plan: RunIdentity, charged: Charges) -> Charges:
    """What counts against a budget: all that the run was charged, or what it was since rows were last appended."""
    return charged - Charges.from_json(plan.charged_before)


def _require_apart(inputs: Sequence[Path], folder: RunFolder) -> None:
    """Raises `UsageError` if an input is among the files that a run in this folder writes, and removes with `fresh`."""
    written = [folder.parts.resolve(), folder.run.resolve()]
    for path in inputs:
        if path.resolve().parent == folder.inputs.resolve():
            continue  # rows that were given in memory, which stay there
        if any(path.resolve().is_relative_to(place) for place in written):
            raise UsageError(
                f"the input {path} is in the output {folder.output}, which would be written over: "
                "choose another --output, or another --input"
            )


def _prepare(run: Run, extended: RunIdentity | None) -> int:
    """Makes the folder ready for this start; returns how many failed rows were reopened.

    `extended` is the plan of the same run over fewer rows, if it now has more. Raises `UsageError` if a part was
    damaged.
    """
    _require_whole(run)
    if extended is not None:
        _extend(run, Survey.from_json(extended.survey))
    run.context.folder.save(run.context.plan)
    run.context.folder.discard_inputs(but={Path(file.path).name for file in run.context.survey.files})
    reopened = _reopen_failed(run) if run.context.settings.retry_failed else 0
    if run.follower is not None:
        run.follower.save_plan()
        run.follower.follow(run.context.chunks.chunk_of, run.context.counters.notices.append)
    _restore_counts(run)
    return reopened


def run_in(
    context: RunContext[LocalBudget], *, lock: int, began: float, started: str, follower: Follower | None = None
) -> Run:
    """The run of a context, as its journal has it."""
    return Run(
        context=context,
        parts={part.chunk: part for part in context.journal.parts()},
        part_check=follower.part_check if follower else PartCheck(context.folder.output),
        follower=follower,
        lock=lock,
        started=started,
        began=began,
        charged_before=context.journal.charged(),
    )


@contextmanager
def open_journal(folder: RunFolder) -> Iterator[Journal]:
    """The run's journal, with the entries that worker processes of a killed start left in their own."""
    with closing(Journal(folder.journal, folder.files)) as journal:
        for left in worker_journals(folder.journal):
            journal.absorb(left)
        yield journal


def _require_whole(run: Run) -> None:
    """Raises `UsageError` if a part is missing or was changed, or if there are files that are not parts.

    The success marker is then removed: it stands for a complete dataset.
    """
    damage, strangers = run.damage(), run.strangers()
    if damage or strangers:
        run.unfinish()
    for wrong in damage.values():
        raise UsageError(f"{wrong}: {run.remedy()}")
    for stranger in strangers:
        raise UsageError(f"{stranger}: move it elsewhere")


def _extend(run: Run, before: Survey) -> None:
    """Makes room for more rows: reopens parts whose chunk boundaries or columns have changed. Nothing is asked again.

    Appended rows are in chunks of their own, so they change no part.

    Raises `UsageError` if their replies were not kept.
    """
    context, now = run.context, run.context.survey
    same = (now.schema, now.json_columns, now.chunk_rows) == (before.schema, before.json_columns, before.chunk_rows)
    opened = [part for part in run.parts.values() if not same or part.rows != context.chunks.chunk(part.chunk).rows]
    if opened and not context.plan.keep_replies:
        raise UsageError("the run did not keep its replies, so it cannot be extended: use --fresh")
    run.unfinish()
    if run.follower is not None:
        run.follower.fetch_replies(opened)
    for part in opened:
        context.journal.unseal(part.chunk, kept_replies(context.folder.output, part.chunk))
        del run.parts[part.chunk]
    if run.follower is not None:
        run.follower.withdraw(opened)
    for part in opened:
        context.dataset.discard(part.chunk)


def _reopen_failed(run: Run) -> int:
    """Reopens every failed row, to be asked again; returns how many there are."""
    context, journal = run.context, run.context.journal
    with_failures = [part for part in run.parts.values() if part.failed]
    if with_failures and not context.plan.keep_replies:
        raise UsageError("the run did not keep its replies, so its failed rows cannot be asked alone: use --fresh")
    reopened = 0
    if run.follower is not None and with_failures:
        run.unfinish()
        run.follower.fetch_replies(with_failures)
    for part in with_failures:
        entries = kept_replies(context.folder.output, part.chunk)
        good = ((ordinal, entry) for ordinal, entry in entries if not run.has_failed(ordinal, entry))
        journal.unseal(part.chunk, good)
        del run.parts[part.chunk]
        reopened += part.rows - len(journal.recorded(part.first, part.rows))
    if run.follower is not None:
        run.follower.withdraw(with_failures)
    for chunk in run.chunks():
        failed = [o for o, entry in journal.entries(chunk.first, chunk.rows) if run.has_failed(o, entry)]
        journal.forget(failed)
        reopened += len(failed)
    return reopened


def _restore_counts(run: Run) -> None:
    """Adds what earlier starts did and spent to the counters."""
    counters = run.context.counters
    ok, failures = run.counts()
    counters.rows += run.rows
    counters.done_before += sum(part.rows for part in run.parts.values()) + run.context.journal.count()
    counters.ok_before += ok
    counters.failures_before += failures
    counters.cost_before_usd += run.charged_before.cost_usd
