"""Decides which run is opened: a new one, or the one in the folder, resumed or extended; another one is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.execution.settings import Settings
from pipeline.faults import NothingToDo, UsageError
from pipeline.job.job import Job
from pipeline.job.loader import sha256_of
from pipeline.source import Survey, found_again, survey
from pipeline.storage.integrity import PartCheck
from pipeline.storage.journal_reader import read_state
from pipeline.storage.run_folder import RunFolder, RunIdentity, differences
from pipeline.storage.submissions import submissions_in


def inputs_of(job: Job) -> Sequence[str | Path]:
    """The inputs of a job: files, folders, globs. Raises `UsageError` if it has none."""
    if not job.input:
        raise UsageError("the job has no input: name one with --input")
    return [job.input] if isinstance(job.input, str | Path) else list(job.input)


def survey_of(job: Job, **bounds: Any) -> Survey:
    """The survey of a job's input; `bounds` as of `pipeline.source.survey`."""
    chosen: dict[str, Any] = {"include": job.include, "rows": job.input_rows, "allow_partial": job.allow_partial}
    return survey(inputs_of(job), **chosen, types=job.types, **bounds)


def found_input(job: Job, known: Survey) -> tuple[Survey, list[str]]:
    """A job's input found again: the survey with its present places, and what has changed, one sentence each."""
    return found_again(known, inputs_of(job), job.include, rows=job.input_rows, allow_partial=job.allow_partial)


def identity_of(job: Job, settings: Settings, folder: RunFolder, before: RunIdentity | None) -> RunIdentity:
    """The identity of the run to open, where the folder holds `before`.

    Raises `UsageError` if that is a different run, unless the settings say that it is replaced; `NothingToDo` if the
    input has no row.
    """
    if before is not None and read_state(folder.journal) == ([], 0) and not submissions_in(folder.journal):
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
    return plan if before is None else _resumed(job, settings, folder, before, plan)


def _resumed(job: Job, settings: Settings, folder: RunFolder, before: RunIdentity, plan: RunIdentity) -> RunIdentity:
    if before.reparsing:
        raise UsageError(f"a re-parse of {folder.name} was cut short: run `pipeline reparse` again to finish it")
    found, moved = found_input(job, Survey.from_json(before.survey))
    different = [*differences(before, plan), *moved]
    if different and settings.supersede:
        return replace(plan, survey=_surveyed(job, settings).to_json())
    if different:
        raise _different(settings, folder, different)
    here = replace(before, target=plan.target, target_sha256=plan.target_sha256)
    if plan.extends(before):
        return replace(here, limit=plan.limit, survey=_surveyed(job, settings).to_json())
    return replace(here, survey=found.to_json())


def _different(settings: Settings, folder: RunFolder, different: Sequence[str]) -> UsageError:
    only_schema = all(text.startswith("schema ") for text in different)
    remedy = (
        f"`pipeline reparse {settings.output} --job {settings.target}` applies it to the kept replies at no cost; "
        if only_schema and folder.name == str(folder.output)  # not in a bucket
        else ""
    )
    listed = "".join(f"\n  - {text}" for text in different)
    return UsageError(
        f"{folder.name} already holds a different run:{listed}\n{remedy}--fresh starts over, or choose another --output"
    )


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
