"""Jobs run from Python: `pipeline.run`, `pipeline.run_sync` and `pipeline.stream`."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from pipeline.execution.call import Call, CallSupervisor, StopSwitch, require_asyncio
from pipeline.execution.emulation import simulation_of
from pipeline.execution.keywords import RunKeywords, in_python, options_of
from pipeline.execution.options import CallOptions, connection_of, settings_of
from pipeline.execution.outcome_channel import OutcomeChannel, RowOutcome
from pipeline.execution.output_place import objects_at, output_of
from pipeline.execution.progress_bar import ProgressBar
from pipeline.execution.result import RunResult
from pipeline.execution.start import open_run
from pipeline.execution.target import Target
from pipeline.faults import Halt, Interrupted, TooManyFailures
from pipeline.job.job import Job
from pipeline.job.loader import is_job_file, job_of_requests, load_job, overridden
from pipeline.storage.run_folder import RunFolder

if TYPE_CHECKING:
    from pydantic import BaseModel

    from pipeline.execution.finish import Summary
    from pipeline.execution.settings import Settings
    from pipeline.storage.remote.objects import OutputObjects
    from pipeline.store.address import Address

Rows = str | Path | Sequence[str | Path] | Iterable["Mapping[str, Any] | BaseModel"] | Any
"""Paths, addresses and globs; Arrow tables and readers, frames; dicts or models. `Any` stands for the frames."""


async def run(
    job: Job | str | Path, rows: Rows = None, output: str | Path | None = None, **options: Unpack[RunKeywords]
) -> RunResult:
    """Runs a job over rows, or resumes it, and returns the result. The event loop is never blocked.

    Without `rows`, the job's own input is read. Without an `output`, its own is written or, if it names none, a
    temporary folder, which is removed with the result. Called again with the same output it resumes: rows that were
    recorded are not asked again. When the awaiting task is cancelled, the run drains, for `drain_timeout` seconds at
    most.

    Raises `UsageError` for what can be corrected, before a call is made; `NothingToDo` without a row; and, each with
    the `summary` and the `result` so far, `TooManyFailures`, `BudgetExhausted`, `ProviderUnusable` and other kinds of
    `Halt`.
    """
    require_asyncio()
    call = _call_of(_Request(job, rows, output, options))
    call.start()
    return await call.wait()


def run_sync(
    job: Job | str | Path, rows: Rows = None, output: str | Path | None = None, **options: Unpack[RunKeywords]
) -> RunResult:
    """As `run`, and returns when the run has ended; also where an event loop runs, which is blocked meanwhile.

    Ctrl-C drains, and is raised then as `KeyboardInterrupt` with the `summary`; a second one cuts off calls in flight.
    """
    call = _call_of(_Request(job, rows, output, options))
    call.start()
    return call.join()


async def stream(
    job: Job | str | Path, rows: Rows = None, output: str | Path | None = None, **options: Unpack[RunKeywords]
) -> AsyncGenerator[RowOutcome, None]:
    """Runs a job as `run` does, and yields each row as soon as it is answered and recorded, in order of completion.

    While the next row is not asked for, few more are sent. A run that is resumed yields the rows of this start, not
    those that were recorded before. Raises at the end what `run` raises. Leaving the loop early stops the run.
    """
    require_asyncio()
    channel = OutcomeChannel()
    call = _call_of(_Request(job, rows, output, options), channel)
    call.start(channel.end)
    try:
        while (outcome := await channel.take()) is not None:
            yield outcome
        await call.wait()
    finally:
        channel.close()
        call.stop(Interrupted("the stream was closed"))
        with suppress(Exception):  # what the run raised was raised above, if the loop went to its end
            await call.wait()


@dataclass(frozen=True, slots=True)
class _Request:
    """What was called for."""

    job: Job | str | Path
    rows: Rows
    output: str | Path | None
    keywords: RunKeywords


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a run is written."""

    folder: Path
    address: Address | None
    temporary: Path | None


def _call_of(request: _Request, channel: OutcomeChannel | None = None) -> Call[RunResult]:
    switch = StopSwitch()
    supervisor = CallSupervisor(switch, ProgressBar(request.keywords.get("progress")))

    def work() -> RunResult:
        with in_python():
            return _carry_out(request, supervisor, channel)

    return Call(work, switch)


def _carry_out(request: _Request, supervisor: CallSupervisor, channel: OutcomeChannel | None) -> RunResult:
    from pipeline.endpoint.store_access import store_access
    from pipeline.store.stores import opened_stores

    options, state_dir = options_of(request.keywords)
    with store_access(options.credentials) as access, opened_stores(access):
        job, target = _job_of(request, options)
        connection = connection_of(options, job)
        place = _place_of(job, state_dir)
        objects = objects_at(place.address) if place.address else None
        settings = replace(settings_of(options, target, place.folder, connection), in_host=True)
        if not options.emulate:
            from pipeline.execution.rate_memory import state_file

            settings = replace(settings, rates=state_file(job.name, job.model, connection.quotas))
        where = Target(connection, simulation_of(options), supervisor)
        if channel is not None:
            channel.job = job
        try:
            return _run(job, request.rows, settings, where, place, objects, channel)
        except BaseException as error:
            if not isinstance(error, Halt) or error.result is None:
                _discard(place)
            raise


def _run(
    job: Job,
    rows: Rows,
    settings: Settings,
    where: Target,
    place: _Place,
    objects: OutputObjects | None,
    channel: OutcomeChannel | None,
) -> RunResult:
    """Opens the run, executes it and ends it. Raises the `Halt` that stopped it, with its summary and result."""
    if settings.fresh:
        where.require_access()
    folder = RunFolder(settings.output, name=objects.address if objects else None)
    with ExitStack() as stack:
        with _with_rows(job, rows, folder, replaces=settings.fresh) as ready:
            run = stack.enter_context(open_run(ready, settings, objects=objects, observer=channel))
        [summary] = where.execute([run])
        reason = run.context.stop.reason
        result = RunResult(
            summary,
            rows=sum(part.rows for part in run.parts.values()),
            temporary=place.temporary,
            credentials=where.connection.credentials,
            notes=run.context.survey.notes,
        )
    if summary.status == "complete":
        return result
    raise _halt_of(summary, reason, result)


def _halt_of(summary: Summary, reason: object, result: RunResult) -> Halt:
    halt: Halt
    if summary.status == "failed":
        halt = TooManyFailures(f"{summary.reason}; `failed()` of its `result` has them")
    elif isinstance(reason, Halt):
        halt = reason
    else:
        halt = Interrupted(str(summary.reason or "nothing was sealed"))
    halt.summary, halt.result = summary, result
    if summary.left:
        halt.add_note(f"{summary.left} rows are left: the same call with the same `output` resumes")
    return halt


def _job_of(request: _Request, options: CallOptions) -> tuple[Job, str]:
    """The job with its overrides, and the file that it is from."""
    target, job = "", request.job
    if not isinstance(job, Job):
        target = str(job)
        job = load_job(target) if is_job_file(target) else job_of_requests([target])
    from pipeline.source.frames import are_places

    changes: dict[str, Any] = {"model": options.model, "output": request.output, **options.of_input()}
    if are_places(request.rows):
        changes["input"] = request.rows
    return overridden(job, changes), target


@contextmanager
def _with_rows(job: Job, rows: Rows, folder: RunFolder, *, replaces: bool) -> Iterator[Job]:
    """The job over the rows that were given, within the block that opens its run."""
    from pipeline.execution.kept_rows import kept_rows
    from pipeline.source.frames import are_places

    if rows is None or are_places(rows):
        yield job
        return
    with kept_rows(rows, folder, replaces=replaces) as path:
        yield job.replace(input=path, include=())


def _place_of(job: Job, state_dir: Path | None) -> _Place:
    if job.output:
        return _Place(*output_of(job, state_dir), None)
    folder = Path(tempfile.mkdtemp(prefix="pipeline-"))
    return _Place(folder / "out", None, folder)


def _discard(place: _Place) -> None:
    if place.temporary is not None:
        import shutil

        shutil.rmtree(place.temporary, ignore_errors=True)
