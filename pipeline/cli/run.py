"""`pipeline run` and `pipeline reparse`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.batch_options import EMULATED_BUCKET, BatchRunOptions, batch_setup_of
from pipeline.cli.emulate import SIMULATED
from pipeline.cli.host import PoolSetup, Target
from pipeline.cli.options import (
    LIMITS,
    AsJson,
    Assignments,
    JobFileArgument,
    RunOptions,
    StateFolder,
    load,
    output_of,
    with_options,
)
from pipeline.cli.remedies import remedy_for
from pipeline.cli.remote_output import objects_at, put_remote_page
from pipeline.cli.stores import reading_stores
from pipeline.cli.streams import one_place
from pipeline.cli.tables import json_line
from pipeline.endpoint.connection import Connection, Start
from pipeline.faults import UsageError
from pipeline.store.address import local_path, local_text
from pipeline.text import printable
from pipeline.totals.failures import Failures

if TYPE_CHECKING:
    from pipeline.execution.finish import Summary
    from pipeline.execution.processes.spawn import WorkerPool
    from pipeline.execution.settings import Settings
    from pipeline.job.job import Job
    from pipeline.policy.compose import CacheSettings
    from pipeline.storage.remote.objects import OutputObjects


@with_options
def run(
    target: JobFileArgument,
    *,
    processes: Annotated[
        str,
        typer.Option(metavar="N", help="Processes that share the work; auto: one per core.", rich_help_panel=LIMITS),
    ] = "1",
    state_dir: StateFolder = None,
    options: BatchRunOptions,
) -> int:
    """Run a job over its input; run it again to resume."""
    with _workers(_count_of(processes)) as workers, reading_stores(options.credentials):
        _load_with_notice(quiet=options.quiet)
        given = options.inputs, options.model, options.assignments, options.output
        job, name = load(target, *given, **options.of_input())
        connection = connection_of(options, job)
        folder, address = output_of(job, state_dir)
        batch = batch_setup_of(options, job, connection, address)
        objects = objects_at(address) if address else None
        settings = settings_of(options, name, folder, connection)
        if not options.emulate:
            from pipeline.execution.rate_memory import state_file

            settings = replace(settings, rates=state_file(job.name, job.model, connection.quotas))
        pool = PoolSetup(workers, _start(target, options, connection)) if workers else None
        simulation = simulation_of(options)
        if batch is not None and simulation is not None:
            simulation.append(f"--bucket={EMULATED_BUCKET}")
        place = Target(connection, simulation, options.quiet, pool, batch)
        code = _run(job, settings, place, objects, as_json=options.as_json)
        if options.report:
            from pipeline.cli.report import put_page
            from pipeline.cli.samples import for_the_eye

            with for_the_eye("the page of the run"):
                if objects is not None:
                    from pipeline.storage.remote.hydration import fetch_parts

                    fetch_parts(objects, folder)
                page = put_page(folder)
                shown = put_remote_page(page, str(address)) if address else str(page)
                print(f"report   {printable(shown)}", file=sys.stderr)
    return code


def _load_with_notice(*, quiet: bool) -> None:
    """Loads what every run needs, with a notice on the terminal, as it may take a second or more on a busy machine."""
    from pipeline.cli.progress import stage

    with stage("starting", quiet=quiet):
        import pipeline.execution.start  # noqa: F401 - to have it


def reparse(
    output: Annotated[Path, typer.Argument(help="The output folder of a run.", parser=local_path)],
    *,
    job: Annotated[
        str,
        typer.Option(
            "--job", "-j", metavar="FILE.py", help="The job file, with the changed schema.", parser=local_text
        ),
    ],
    assignments: Assignments = None,
    as_json: AsJson = False,
) -> int:
    """Parse the stored replies again with a changed schema, without a call."""
    from pipeline.execution.reparse import reparse as parse_again

    loaded, _ = load(job, None, None, assignments, output)
    with reading_stores():
        return _report(loaded, parse_again(loaded, output), output, None, as_json=as_json)


def settings_of(options: RunOptions, target: str, output: Path, connection: Connection, *, repeat: int = 0) -> Settings:
    """The settings of a run, from the command line."""
    from pipeline.endpoint.prices import load_prices, parse_price
    from pipeline.execution.settings import Settings
    from pipeline.policy.compose import RunLimits

    if options.fresh and options.retry_failed:
        raise UsageError("--fresh asks every row again, so there is nothing for --retry-failed: leave one of them out")
    return Settings(
        output=output,
        target=target,
        bounds=RunLimits(
            concurrency=options.concurrency,
            adaptive=options.adaptive,
            rpm=options.rpm,
            tpm=options.tpm,
            budget_usd=options.budget_usd,
            budget_tokens=options.budget_tokens,
            give_up_s=options.give_up_after,
            hedge=options.hedge_share,
            prices=load_prices(options.prices) if options.prices else None,
            assumed_price=parse_price(options.assume_price) if options.assume_price else None,
            reuse=_cache_settings_of(options, connection, repeat) if options.cache else None,
        ),
        limit=options.limit,
        fresh=options.fresh,
        retry_failed=options.retry_failed,
        fail_fast="job" if options.fail_fast else "never",
        keep_replies=options.keep_replies,
        grace_s=options.drain_timeout,
        simulated=options.emulate,
        endpoints=len(connection.locations) if options.emulate else connection.endpoints,
    )


def _cache_settings_of(options: RunOptions, connection: Connection, repeat: int) -> CacheSettings:
    """The settings of the reply cache, from the command line.

    The emulator is keyed by a name, since its address differs at each start, and by its `--field-error` options.
    """
    from pipeline.policy.compose import CacheSettings

    emulated = " ".join(["emulated", *sorted(options.field_error or ())])
    endpoint = emulated if options.emulate else connection.provider
    return CacheSettings(folder=options.cache_dir, endpoint=endpoint, repeat=repeat)


def connection_of(options: RunOptions, job: Job) -> Connection:
    """The endpoint, from the command line. Raises `UsageError` when the job cannot be run there."""
    connection = Connection(
        project=options.project,
        locations=options.location or job.locations or ["global"],
        endpoint_id=options.endpoint_id,
        base_urls=options.base_url or (),
        credentials=options.credentials,
    )
    connection.check_tier(job.tier)
    connection.check_model(job.model)
    if not (job.model or job.carries_requests):
        raise UsageError("the job names no model: give it one, or pass --model (as in google/gemini-3.5-flash-lite)")
    return connection


def simulation_of(options: RunOptions) -> list[str] | None:
    """The emulator's arguments; None without `--emulate`. Raises `UsageError` if they are invalid or without it."""
    from pipeline.emulator import parse_fault, parse_field_error

    try:
        arguments = ["--fault={}={}".format(*parse_fault(text)) for text in options.fault or ()]
        arguments += ["--field-error={}={}".format(*parse_field_error(text)) for text in options.field_error or ()]
    except ValueError as error:
        raise UsageError(str(error)) from None
    arguments += [f"--latency={options.latency}"] if options.latency else []
    arguments += [f"--quota-rps={options.quota_rps}"] if options.quota_rps else []
    arguments += [f"--token-lifetime={options.token_lifetime}"] if options.token_lifetime != 3600.0 else []
    if arguments and not options.emulate:
        raise UsageError(f"{arguments[0]} belongs to --emulate")
    # The variable stands for all runs, and --emulate overrides it; the option is given for this one.
    if options.emulate and options.base_url and options.base_url != os.environ.get("OPENAI_BASE_URL", "").split():
        raise UsageError("--emulate starts a server of its own, and --base-url names another: leave one of them out")
    return arguments if options.emulate else None


def _run(job: Job, settings: Settings, place: Target, objects: OutputObjects | None, *, as_json: bool) -> int:
    from pipeline.execution.start import open_run

    if settings.fresh:
        from pipeline.execution.batch.open_jobs import require_cancelled

        require_cancelled(settings.output)
        place.require_access()
    with ExitStack() as stack:
        with place.stage("reading the input"):
            run = stack.enter_context(open_run(job, settings, objects=objects))
        if place.batch is None or settings.simulated:
            from pipeline.execution.batch.open_jobs import require_collected

            require_collected(run, simulated=settings.simulated)
        if run.reopened:
            print(f"asking {run.reopened} failed row{'s' if run.reopened > 1 else ''} again", file=sys.stderr)
        for note in run.context.survey.notes:
            print(printable(f"note: {note}"), file=sys.stderr)
        if not run.chunks():
            print("nothing is left to do: every row is done (--fresh starts over)", file=sys.stderr)
        elif settings.simulated:
            print(SIMULATED, file=sys.stderr)
        said = bool(run.chunks()) and one_place()
        [summary] = place.execute([run])
    return _report(job, summary, settings.output, run.context.stop.reason, as_json=as_json, said=said)


def _count_of(processes: str) -> int:
    """The number of processes; `auto` is the number of processors available to this process."""
    if processes == "auto":
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not processes.isdecimal() or int(processes) < 1:
        raise UsageError(f"--processes takes a number from 1 on, or auto, not {processes!r}")
    return int(processes)


@contextmanager
def _workers(count: int) -> Iterator[WorkerPool | None]:
    """A pool of waiting worker processes if `count` is above 1; it is shut down at the end of the block."""
    if count == 1:
        yield None
        return
    from pipeline.cli.worker import load_all, main
    from pipeline.execution.processes.spawn import WorkerPool

    load_all()
    workers = WorkerPool((sys.executable, "-P", "-m", "pipeline.cli.worker"), count)
    try:
        workers.fork(main)
        yield workers
    finally:
        workers.reduce(0)


def _start(target: str, options: RunOptions, connection: Connection) -> Start:
    return Start(
        target=target,
        inputs=options.inputs,
        model=options.model,
        assignments=options.assignments,
        output=options.output,
        connection=connection,
        credentials=options.credentials,
    )


def _report(job: Job, summary: Summary, folder: Path, reason: object, *, as_json: bool, said: bool = False) -> int:
    """Prints the result and returns the exit code; `said` means that SIMULATED has already been printed there.

    A sample of the rows is read from the run folder.
    """
    from pipeline.execution.exit_codes import exit_code

    code = exit_code(summary, reason)
    if as_json:
        # Lines of JSON are kept in logs, and messages may quote rows.
        failures = Failures(tuple(summary.failures)).bare().to_json()
        facts = {**summary.facts(), "failures": failures}
        print(json_line({"status": summary.status, "exit_code": code, **facts}))
        return code
    _print_summary(job, summary, folder, said=said)
    if summary.status == "submitted":
        jobs = (
            f"{summary.batch_jobs_open} batch jobs are submitted"
            if summary.batch_jobs_open > 1
            else "a batch job is submitted"
        )
        print(f"{jobs}: the same command later collects the answers", file=sys.stderr)
    elif summary.status == "stopped":
        why = summary.reason or "nothing was sealed"
        remedy = remedy_for(type(reason).__name__)
        print(f"error: stopped ({printable(why)}): {summary.left} rows are left; {remedy}", file=sys.stderr)
        for name in _open_jobs(folder) if summary.batch_jobs_open else ():
            print(f"note: batch job {name} goes on; the same command collects it", file=sys.stderr)
    elif code == 3:
        print(f"error: {summary.reason}; see `pipeline show {summary.output} --failed`", file=sys.stderr)
    return code


def _print_summary(job: Job, summary: Summary, folder: Path, *, said: bool) -> None:
    from pipeline.cli.samples import for_the_eye, print_sample
    from pipeline.data import PARTS

    if summary.simulated and not said:
        print(SIMULATED)
    print(f"dataset  {summary.output}/{PARTS}/")
    print(f"rows     {summary.rows}: {summary.ok} ok, {summary.failed} failed, {summary.left} left")
    for kind in summary.failures:
        print(printable(f"failed   {kind.count} {kind.name}, {kind.said}"))
    tokens = (
        f"unknown ({summary.unmetered_calls} of {summary.calls} calls came without usage)"
        if summary.unmetered_calls
        else f"{summary.input_tokens} in, {summary.output_tokens} out, {summary.reasoning_tokens} thinking"
    )
    calls = f"{summary.requests} requests, {summary.retries} retries, {summary.throttled} throttled"
    calls += f", {summary.hedged} hedged" if summary.hedged else ""
    print(f"tokens   {tokens}; {calls}")
    if summary.cache_hits:
        print(f"cache    {summary.cache_hits} answers that were paid before")
    if summary.batch_jobs:
        print(f"batch    {_batch(summary)}")
    print(f"cost     {_cost(summary)}{' if the model were real' if summary.simulated else ''}")
    print(f"seconds  {summary.seconds:.1f}")
    if summary.simulated and summary.ok:
        print("sample   values found by patterns, or invented, by the emulator")
    if summary.output != str(folder) and not any((folder / PARTS).glob("part-000000*")):
        return  # it is in a bucket, and another machine wrote it
    with for_the_eye("a sample of the rows"):
        print_sample(folder, job.key, rows=3)


def _open_jobs(folder: Path) -> list[str]:
    """The names of the batch jobs whose answers are not recorded yet."""
    from pipeline.storage.run_folder import RunFolder
    from pipeline.storage.submissions import submissions_in

    return [one.name for one in submissions_in(RunFolder(folder).journal) if one.progress == "submitted"]


def _batch(summary: Summary) -> str:
    """What the whole run asked by batch, and online."""
    run, cost = summary.run, summary.batch_cost_usd
    jobs = f"{summary.batch_jobs} job{'s' if summary.batch_jobs > 1 else ''}"
    jobs += f" ({summary.batch_jobs_open} not ended)" if summary.batch_jobs_open else ""
    shown = "unknown cost" if cost is None else f"${cost:.6f}"
    online = "" if cost is None or run.unpriced_calls else f", ${max(0.0, run.cost_usd - cost):.6f}"
    calls = run.calls - summary.batch_calls
    return f"{summary.batch_calls} answers of {jobs}, {shown}; online {calls} answers{online}"


def _cost(summary: Summary) -> str:
    """The cost of this command and, if it resumed a run, of the whole run."""
    cost = "unknown (give the job `prices`)" if summary.cost_usd is None else f"${summary.cost_usd:.6f}"
    run = summary.run
    if run.calls == summary.calls:
        return cost
    unknown = f" and {run.unpriced_calls} calls of unknown price" if run.unpriced_calls else ""
    return f"{cost}; ${run.cost_usd:.6f}{unknown} for the whole run"
