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

from pipeline.cli.batch_options import EMULATED_BUCKET, batch_setup_of
from pipeline.cli.emulate import SIMULATED
from pipeline.cli.host import Terminal
from pipeline.cli.log_options import metrics_of
from pipeline.cli.options import (
    INPUT,
    LIMITS,
    AsJson,
    Assignments,
    JobFileArgument,
    RunOptions,
    StateFolder,
    load,
    with_options,
)
from pipeline.cli.ray_options import ClusterRunOptions, RaySetup, ray_tasks, require_ray
from pipeline.cli.remedies import remedy_for
from pipeline.cli.remote_output import put_remote_page, view_of
from pipeline.cli.shard_options import ShardOption, require_shardable, shard_of
from pipeline.cli.stores import reading_stores
from pipeline.cli.streams import one_place
from pipeline.cli.tables import json_line
from pipeline.endpoint.connection import Connection, Start
from pipeline.execution.emulation import simulation_of
from pipeline.execution.options import connection_of, settings_of
from pipeline.execution.output_place import objects_at, output_of
from pipeline.execution.target import PoolSetup, Target
from pipeline.faults import BudgetExhausted, UsageError
from pipeline.store.address import local_text, place_of
from pipeline.text import figures, printable
from pipeline.totals.failures import Failures

if TYPE_CHECKING:
    from pipeline.execution.finish import Summary
    from pipeline.execution.processes.spawn import WorkerPool
    from pipeline.execution.settings import Settings
    from pipeline.job.job import Job
    from pipeline.storage.remote.objects import OutputObjects
    from pipeline.storage.remote.shards import Shard


NOTHING_LEFT = "nothing is left to do: every row is done (--fresh starts over)"
NOTHING_NEW = "nothing new: the input has no rows that were not asked yet"


@with_options
def run(
    target: JobFileArgument,
    *,
    processes: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Processes that share the work; auto: one per core.",
            show_default="1; with --engine ray: auto",
            rich_help_panel=LIMITS,
        ),
    ] = None,
    shard: ShardOption = None,
    state_dir: StateFolder = None,
    append: Annotated[
        bool,
        typer.Option(
            "--append",
            metavar="",
            help="Take in the rows that the input has gained since the run: new files, and rows at the end of files.",
            rich_help_panel=INPUT,
        ),
    ] = False,
    options: ClusterRunOptions,
) -> int:
    """Run a job over its input; run it again to resume."""
    on_ray = options.engine == "ray"
    with _workers(1 if on_ray else _count_of(processes or "1")) as workers, reading_stores(options.credentials):
        _load_with_notice(quiet=options.quiet)
        given = options.inputs, options.model, options.assignments, options.output
        job, name = load(target, *given, **options.of_input())
        connection = connection_of(options, job)
        folder, address = output_of(job, state_dir)
        if (part := shard_of(shard)) is not None:
            require_shardable(options, address)
            folder = folder.with_name(f"{folder.name}-{part.name}")
        require_ray(options, address, shard, append=append)
        batch = batch_setup_of(options, job, connection, address)
        objects = objects_at(address) if address else None
        settings = replace(settings_of(options, name, folder, connection), append=append)
        _require_appendable(settings, part)
        if not options.emulate:
            from pipeline.execution.rate_memory import state_file

            settings = replace(settings, rates=state_file(job.name, job.model, connection.quotas))
        if part is not None:
            from pipeline.execution.shards import divided

            settings = divided(settings, part)
        start = _start(target, options, connection, job)
        cluster = RaySetup(ray_tasks(processes, _count_of), start, options, state_dir) if on_ray else None
        if cluster is not None:
            settings = replace(settings, chunks=cluster.chunks)
        pool = PoolSetup(workers, start) if workers else None
        simulation = simulation_of(options)
        if batch is not None and simulation is not None:
            simulation.append(f"--bucket={EMULATED_BUCKET}")
        terminal = Terminal(options.quiet, metrics_of(options.metrics, otel=options.otel))
        place = Target(connection, simulation, terminal, pool, batch)
        code = _run(job, settings, place, objects, part or cluster, as_json=options.as_json)
        if options.report:
            from pipeline.cli.report import put_page
            from pipeline.cli.samples import for_the_eye

            with for_the_eye("the page of the run"):
                page = put_page(folder, remote=view_of(objects) if objects else None)
                shown = put_remote_page(page, str(address)) if address else str(page)
                print(f"report   {printable(shown)}", file=sys.stderr)
    return code


def _load_with_notice(*, quiet: bool) -> None:
    """Loads what every run needs, with a notice on the terminal, as it may take a second or more on a busy machine."""
    from pipeline.cli.progress import stage

    with stage("starting", quiet=quiet):
        import pipeline.execution.start  # noqa: F401 - to have it


def reparse(
    output: Annotated[str, typer.Argument(help="The output folder of a run, or its address.")],
    *,
    job: Annotated[
        str,
        typer.Option(
            "--job", "-j", metavar="FILE.py", help="The job file, with the changed schema.", parser=local_text
        ),
    ],
    assignments: Assignments = None,
    state_dir: StateFolder = None,
    as_json: AsJson = False,
) -> int:
    """Parse the stored replies again with a changed schema, without a call."""
    from pipeline.execution.reparse import reparse as parse_again

    place_of(output)  # refused before the job is loaded
    loaded, _ = load(job, None, None, assignments, output)
    folder, address = output_of(loaded, state_dir)
    with reading_stores():
        summary = parse_again(loaded, folder, objects=objects_at(address) if address else None)
        return _report(loaded, summary, folder, None, as_json=as_json)


def _require_appendable(settings: Settings, shard: Shard | None) -> None:
    """Raises `UsageError` for options that --append cannot be combined with."""
    if settings.append and shard is not None:
        raise UsageError("--append takes in the new rows, which shards cannot divide: leave one of them out")
    if settings.append and settings.fresh:
        raise UsageError("--fresh starts over, so there is nothing to append to: leave one of them out")
    if settings.append and settings.limit is not None:
        raise UsageError(
            "--append takes in all new rows, and --limit takes only the first of all: leave one of them out; "
            "to try a few rows, use another --output"
        )


def _run(
    job: Job,
    settings: Settings,
    place: Target,
    objects: OutputObjects | None,
    divided: Shard | RaySetup | None,
    *,
    as_json: bool,
) -> int:
    """Executes a run: all of it here, one shard of it, or all of it on a cluster."""
    from pipeline.execution.shards import ShardStart
    from pipeline.execution.start import open_run
    from pipeline.source.progress import SurveyProgress
    from pipeline.storage.remote.shards import Patience

    cluster = divided if isinstance(divided, RaySetup) else None
    shard = None if isinstance(divided, RaySetup) else divided
    start = None if shard is None else ShardStart(shard, Patience(say=place.note))
    if settings.fresh:
        from pipeline.execution.batch.open_jobs import require_cancelled

        require_cancelled(settings.output)
        place.require_access()
    with ExitStack() as stack:
        reading = SurveyProgress()
        with place.stage("reading the input", reading):
            run = stack.enter_context(open_run(job, settings, objects=objects, shard=start, reading=reading))
        if run.added and settings.append:
            earlier = run.context.survey.rows - run.added
            print(f"appending {run.added} row{'s' if run.added > 1 else ''} to {earlier}", file=sys.stderr)
        if place.batch is None or settings.simulated:
            from pipeline.execution.batch.open_jobs import require_collected

            require_collected(run, simulated=settings.simulated)
        if run.reopened:
            print(f"asking {run.reopened} failed row{'s' if run.reopened > 1 else ''} again", file=sys.stderr)
        for note in run.context.survey.notes:
            print(printable(f"note: {note}"), file=sys.stderr)
        if shard is not None and not run.chunks():
            print(f"nothing is left to do in shard {shard}: its rows are done", file=sys.stderr)
        elif not run.chunks():
            print(NOTHING_NEW if settings.append else NOTHING_LEFT, file=sys.stderr)
        elif settings.simulated:
            print(SIMULATED, file=sys.stderr)
        said = bool(run.chunks()) and one_place()
        on_cluster = cluster is not None and bool(run.chunks())
        if not on_cluster:
            [summary] = place.execute([run])
    if cluster is not None and objects is not None and on_cluster:  # closed: the tasks hold leases of their own
        from pipeline.cli import ray_run

        summary = ray_run.execute(run, place, cluster, objects)
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


def _start(target: str, options: RunOptions, connection: Connection, job: Job) -> Start:
    return Start(
        target=target,
        inputs=options.inputs,
        model=job.model or None,  # also when it is neither the job file's nor an option's
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
        if summary.shard is not None and isinstance(reason, BudgetExhausted):
            remedy += f" (shard {summary.shard} has its part of the budget; with fewer shards each part is larger)"
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
    if summary.shard is not None:
        text = "the run is complete" if summary.status == "complete" else summary.reason or summary.status
        print(f"shard    {summary.shard}: {printable(text)}")
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
    cost = "unknown (give the job `prices`)" if summary.cost_usd is None else figures.cost(summary.cost_usd)
    run = summary.run
    if run.calls == summary.calls:
        return cost
    unknown = f" and {run.unpriced_calls} calls of unknown price" if run.unpriced_calls else ""
    return f"{cost}; {figures.cost(run.cost_usd)}{unknown} for the whole run"
