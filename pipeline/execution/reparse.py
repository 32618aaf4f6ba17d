"""Rebuilds every part from the kept replies, under a changed schema."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from pipeline.counters import Counters
from pipeline.data import Part
from pipeline.execution.run import Run, Settings, Summary
from pipeline.faults import UsageError
from pipeline.job.job import Job
from pipeline.policy import Shutdown
from pipeline.source import changed
from pipeline.storage.batches import bounded_batches, parquet_at
from pipeline.storage.durable import FILES, FileSystem
from pipeline.storage.kept_replies import kept_replies, require_replies
from pipeline.storage.run_folder import RunFolder, differences


def reparse(job: Job, output: Path, files: FileSystem = FILES) -> Summary:
    """Rebuilds every part from the kept replies, under the job's current schema. No call is made.

    Only the schema (and the columns it determines) may differ from the run's job; otherwise raises `UsageError`. If
    interrupted, the run stays marked as being re-parsed, and calling this again finishes it.
    """
    started = time.monotonic()
    folder = RunFolder(output, files)
    before = folder.require()
    with folder.locked():
        plan = replace(before, job=job.fingerprint(), reparsing=True)
        other = [text for text in differences(before, plan) if not text.startswith("schema ")]
        if other:
            raise UsageError(
                f"only the schema may change in a re-parse, but {'; '.join(other)}: use --fresh to ask again"
            )
        if not before.keep_replies:
            raise UsageError("the run did not keep its replies: use --fresh to ask again")
        run = Run(job, Settings(output=output, files=files), folder, plan)
        try:
            damage = run.damage()
            _require_input(run, damage)
            for chunk in run.parts:  # before the first of them is touched: what cannot be finished is not begun
                require_replies(output, chunk)
            folder.save(plan)
            run.dataset.unfinish()
            for part in list(run.parts.values()):
                kept = run.work.kept_again(part.chunk) if part.chunk in damage else _kept_by_part(run, part)
                run.parts[part.chunk] = _parsed_again(run, part, kept)
            run.plan = replace(plan, reparsing=False)
            folder.save(run.plan)
            return run.finish(Counters(), Shutdown(), time.monotonic() - started)
        finally:
            run.work.close()
            run.journal.close()


def _parsed_again(run: Run, part: Part, kept: Iterable[pa.RecordBatch]) -> Part:
    again = run.dataset.seal(part.chunk, part.first, kept, kept_replies(run.folder.output, part.chunk), replies=False)
    run.journal.seal(again)
    return again


def _kept_by_part(run: Run, part: Part) -> Iterator[pa.RecordBatch]:
    """The kept columns of a part, from its own files, which are replaced only after all have been read."""
    names = run.dataset.kept.names
    for name, _, rows in part.spans():
        if not names:
            yield _empty(rows)
            continue
        with parquet_at(run.folder.output / name) as file:
            yield from bounded_batches(file, names)


def _require_input(run: Run, damage: Mapping[int, str]) -> None:
    """Raises `UsageError` if parts are damaged and the input, which also has their kept columns, has changed."""
    for wrong in damage.values():
        if different := changed(run.survey):
            raise UsageError(
                f"{wrong}, and the input is no longer what it was read from ({different[0]}): restore either"
            )


def _empty(rows: int) -> pa.RecordBatch:
    """A batch without columns that still has a number of rows."""
    return pa.RecordBatch.from_struct_array(pa.array([{}] * rows, type=pa.struct([])))
