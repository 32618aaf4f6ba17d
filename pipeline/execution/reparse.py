"""Rebuilds every part from the kept replies, under a changed schema."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from pipeline.data import Part
from pipeline.execution.chunks import ChunkWorker
from pipeline.execution.context import RunContext
from pipeline.execution.finish import Summary, finish
from pipeline.execution.run import Run, now
from pipeline.execution.settings import Settings
from pipeline.execution.start import open_journal, run_in
from pipeline.faults import UsageError
from pipeline.job.job import Job
from pipeline.policy import LocalBudget, Shutdown
from pipeline.source import Survey, changed
from pipeline.storage.batches import bounded_batches, parquet_at
from pipeline.storage.durable import FILES, FileSystem
from pipeline.storage.kept_replies import kept_replies, require_replies
from pipeline.storage.remote.follower import following
from pipeline.storage.remote.hydration import require_plan
from pipeline.storage.remote.objects import OutputObjects
from pipeline.storage.run_folder import RunFolder, RunIdentity, differences
from pipeline.totals.counters import Counters


def reparse(job: Job, output: Path, files: FileSystem = FILES, objects: OutputObjects | None = None) -> Summary:
    """Rebuilds every part from the kept replies, under the job's current schema. No call is made.

    Only the schema (and the columns it determines) may differ from the run's job; otherwise raises `UsageError`. If
    interrupted, the run stays marked as being re-parsed, and calling this again finishes it. With `objects` the output
    is in a bucket, and the folder is only its state.
    """
    began, started = time.monotonic(), now()
    folder = RunFolder(output, files, objects.address if objects else None)
    if objects is None:
        folder.require()  # no lock is made where there is no run
    else:
        require_plan(objects)
        folder.prepare()
    with folder.locked() as lock, following(objects, folder, fresh=False) as follower:
        before = folder.require()
        plan = replace(before, job=job.fingerprint(), reparsing=False)
        other = [text for text in differences(before, plan) if not text.startswith("schema ")]
        if other:
            raise UsageError(
                f"only the schema may change in a re-parse, but {'; '.join(other)}: use --fresh to ask again"
            )
        if not before.keep_replies:
            raise UsageError("the run did not keep its replies: use --fresh to ask again")
        with open_journal(folder) as journal, closing(ChunkWorker(job, plan, output, files)) as chunks:
            # Not RunContext[LocalBudget](...): before 3.13 that fails for a frozen class with slots.
            context: RunContext[LocalBudget] = RunContext(
                settings=Settings(output=output),
                folder=folder,
                chunks=chunks,
                journal=journal,
                cache=None,
                budgets=(),
                counters=Counters(),
                stop=Shutdown(),
            )
            run = run_in(context, lock=lock, began=began, started=started, follower=follower)
            _rebuild(run)
            return finish([run])[0]


def _rebuild(run: Run) -> None:
    """Rebuilds every part; while that is under way, the plan says so."""
    context, output = run.context, run.context.folder.output
    damage = run.damage()
    _require_input(context.survey, damage)
    # Before the first part is touched: what cannot be finished is not begun.
    if run.follower is not None:
        run.follower.require_replies(run.parts.values())
    else:
        for chunk in run.parts:
            require_replies(output, chunk)
    _save_plan(run, replace(context.plan, reparsing=True))
    run.unfinish()
    for part in list(run.parts.values()):
        if run.follower is not None:
            run.follower.fetch_replies([part])
            run.follower.fetch_files([] if part.chunk in damage else part.files)
        kept = context.chunks.kept_again(part.chunk) if part.chunk in damage else _kept_by_part(run, part)
        replies = kept_replies(output, part.chunk)
        run.seal(context.dataset.seal(part.chunk, part.first, kept, replies, replies=False), over=part)
    _save_plan(run, context.plan)


def _save_plan(run: Run, plan: RunIdentity) -> None:
    run.context.folder.save(plan)
    if run.follower is not None:
        run.follower.save_plan()


def _kept_by_part(run: Run, part: Part) -> Iterator[pa.RecordBatch]:
    """The kept columns of a part, from its own files, which are replaced only after all have been read."""
    names = run.context.dataset.kept.names
    for name, _, rows in part.spans():
        if not names:
            yield _empty(rows)
            continue
        with parquet_at(run.context.folder.output / name) as file:
            yield from bounded_batches(file, names)


def _require_input(survey: Survey, damage: Mapping[int, str]) -> None:
    """Raises `UsageError` if parts are damaged and the input, which also has their kept columns, has changed."""
    for wrong in damage.values():
        if different := changed(survey):
            raise UsageError(
                f"{wrong}, and the input is no longer what it was read from ({different[0]}): restore either"
            )


def _empty(rows: int) -> pa.RecordBatch:
    """A batch without columns that still has a number of rows."""
    return pa.RecordBatch.from_struct_array(pa.array([{}] * rows, type=pa.struct([])))
