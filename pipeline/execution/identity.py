"""Decides which run is opened: a new one, or the one in the folder, resumed or over more rows; another is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.execution.settings import Settings
from pipeline.faults import NothingToDo, UsageError
from pipeline.job.job import Job
from pipeline.job.loader import sha256_of
from pipeline.source import (
    Growth,
    Survey,
    SurveyProgress,
    found_again,
    growth_of,
    survey,
    survey_files,
    without_latest,
)
from pipeline.storage.integrity import PartCheck
from pipeline.storage.journal_reader import charged_in, read_state, recorded_in, worker_journals
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


def growth_in(job: Job, known: Survey) -> Growth:
    """What a job's input has gained since its survey, and what has changed otherwise."""
    return growth_of(known, inputs_of(job), job.include, rows=job.input_rows, allow_partial=job.allow_partial)


def identity_of(
    job: Job,
    settings: Settings,
    folder: RunFolder,
    before: RunIdentity | None,
    started: str,
    reading: SurveyProgress | None = None,
    *,
    committed: bool = False,
) -> RunIdentity:
    """The identity of the run to open, where the folder holds `before`; `reading` is told how far its survey is.

    With `committed`, the run is that of `before` even if nothing is recorded yet. `started` is the time, in UTC.

    Raises `UsageError` if that is a different run, unless the settings say that it is replaced; `NothingToDo` if the
    input has no row.
    """
    unused = before is not None and read_state(folder.journal) == ([], 0) and not submissions_in(folder.journal)
    if unused and not committed:
        for part in PartCheck(folder.output).unrecorded(()):
            raise UsageError(
                f"{part} is there, but {folder.journal} knows of no part: restore the journal, or use --fresh"
            )
        before = None  # a start that recorded nothing does not commit the run to its settings
    found = Survey.from_json(before.survey) if before else _surveyed(job, settings, reading)
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
    if settings.append and before.limit is None:  # one with a limit goes on with the rest of its own input first
        return _appended(job, settings, folder, before, plan, started, reading)
    return _resumed(job, settings, folder, before, plan, reading)


def _require_not_reparsing(folder: RunFolder, before: RunIdentity) -> None:
    if before.reparsing:
        raise UsageError(f"a re-parse of {folder.name} was cut short: run `pipeline reparse` again to finish it")


def _resumed(
    job: Job,
    settings: Settings,
    folder: RunFolder,
    before: RunIdentity,
    plan: RunIdentity,
    reading: SurveyProgress | None,
) -> RunIdentity:
    _require_not_reparsing(folder, before)
    found, moved = found_input(job, Survey.from_json(before.survey))
    different = [*differences(before, plan), *moved]
    if different and settings.supersede:
        return replace(plan, survey=_surveyed(job, settings, reading).to_json())
    if different:
        raise _different(settings, folder, different)
    here = replace(before, target=plan.target, target_sha256=plan.target_sha256)
    if plan.extends(before):
        return replace(here, limit=plan.limit, survey=_surveyed(job, settings, reading).to_json())
    return replace(here, survey=found.to_json())


def _appended(
    job: Job,
    settings: Settings,
    folder: RunFolder,
    before: RunIdentity,
    plan: RunIdentity,
    started: str,
    reading: SurveyProgress | None,
) -> RunIdentity:
    """The run with what its input has gained, if anything. Raises `UsageError` if the run or the input has changed."""
    _require_not_reparsing(folder, before)
    known = Survey.from_json(before.survey)
    growth = growth_in(job, known)
    if different := differences(before, plan):
        raise _different(settings, folder, [*different, *growth.differences])
    if growth.differences:
        listed = "".join(f"\n  - {text}" for text in growth.differences)
        raise UsageError(
            f"the input of {folder.name} has changed where it was read already, and --append only adds rows:{listed}\n"
            f"put it back as it was; or start over with --fresh, or choose another --output"
        )
    here = replace(before, target=plan.target, target_sha256=plan.target_sha256)
    if not growth.files:
        return replace(here, survey=growth.known.to_json())
    new = survey_files(growth.discovery, **_chunk_bounds(settings), types=job.types, progress=reading)
    _require_allowed(job, new)
    used = job.projection(known.columns)
    names = [*used.kept, *(used.needed if new.format == "parquet" else ())]  # of text, prompts take any value
    joined = growth.joined(new, dict.fromkeys(names), started)
    if not new.rows:
        return replace(here, survey=joined.to_json())
    return replace(here, survey=joined.to_json(), charged_before=charged_in(folder.journal, ended=True).to_json())


def begun(folder: RunFolder, plan: RunIdentity) -> RunIdentity:
    """The plan without the rows that were appended last, if none of them was answered.

    Then a start that came to nothing, such as one without credentials, does not fix its new files for ever.
    """
    survey = Survey.from_json(plan.survey)
    earlier = without_latest(survey)
    if earlier is None:
        return plan
    first = earlier.rows
    parts, _ = read_state(folder.journal)
    journals = (path for path in [folder.journal, *worker_journals(folder.journal)] if path.exists())
    if any(part.first >= first for part in parts) or any(recorded_in(path, first, survey.rows) for path in journals):
        return plan
    return replace(plan, survey=earlier.to_json())


def _different(settings: Settings, folder: RunFolder, different: Sequence[str]) -> UsageError:
    remedy, target = "", settings.target or "JOB.py"
    if all(text.startswith("schema ") for text in different):
        remedy = f"`pipeline reparse {folder.name} --job {target}` applies it to the kept replies at no cost; "
    elif all(_may_be_more(text) for text in different) and not settings.append:
        remedy = "--append takes in rows that are new in the input; "
    listed = "".join(f"\n  - {text}" for text in different)
    return UsageError(
        f"{folder.name} already holds a different run:{listed}\n{remedy}--fresh starts over, or choose another --output"
    )


def _may_be_more(difference: str) -> bool:
    return difference.endswith(" is new in the input") or " bytes and now has " in difference


def _surveyed(job: Job, settings: Settings, reading: SurveyProgress | None) -> Survey:
    found = survey_of(job, progress=reading, **_chunk_bounds(settings), limit=settings.limit)
    if found.rows == 0:
        raise NothingToDo("the input holds no row")
    _require_allowed(job, found)
    return found


def _chunk_bounds(settings: Settings) -> dict[str, Any]:
    least = min(20_000, max(1000, settings.bounds.concurrency))
    return {"chunk_rows": settings.chunk_rows, "chunks": settings.chunks, "min_chunk_rows": least}


def _require_allowed(job: Job, found: Survey) -> None:
    """Raises `UsageError` if the input has records that cannot be read, and the job allows no failed row."""
    if found.bad_count and job.max_failed == 0:
        first = found.bad_lines[0]
        raise UsageError(
            f"records that cannot be read: {found.bad_count}, and the job allows no failed row; the first: "
            f"{first.path}: {first.problem}"
        )
