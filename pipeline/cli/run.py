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

from pipeline.cli.drain_timeout import platform_s
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
from pipeline.cli.ray_options import EngineOption, RayAddressOption, RaySetup, require_ray
from pipeline.cli.remedies import remedy_for
from pipeline.cli.remote_output import objects_at, put_remote_page, view_of
from pipeline.cli.shard_options import ShardOption, require_shardable, shard_of
from pipeline.cli.stores import reading_stores
from pipeline.cli.streams import one_place
from pipeline.cli.tables import json_line
from pipeline.endpoint.connection import Connection, Start
from pipeline.faults import BudgetExhausted, UsageError
from pipeline.store.address import local_text, place_of
from pipeline.text import figures, printable
from pipeline.totals.failures import Failures

if TYPE_CHECKING:
    from pipeline.execution.finish import Summary
    from pipeline.execution.processes.spawn import WorkerPool
    from pipeline.execution.settings import Settings
    from pipeline.job.job import Job
    from pipeline.policy.compose import CacheSettings
    from pipeline.storage.remote.objects import OutputObjects
    from pipeline.storage.remote.shards import Shard


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
    engine: EngineOption = "local",
    ray_address: RayAddressOption = None,
    state_dir: StateFolder = None,
    options: RunOptions,
) -> int:
    """Run a job over its input; run it again to resume."""
    if ray_address is not None and engine != "ray":
        raise UsageError("--ray-address belongs to --engine ray")
    count = 1 if engine == "ray" else _count_of(processes or "1")
    with _workers(count) as workers, reading_stores(options.credentials):
        _load_with_notice(quiet=options.quiet)
        given = options.inputs, options.model, options.assignments, options.output
        job, name = load(target, *given, **options.of_input())
        connection = connection_of(options, job)
        folder, address = output_of(job, state_dir)
        if (part := shard_of(shard)) is not None:
            require_shardable(options, address)
            folder = folder.with_name(f"{folder.name}-{part.name}")
        if engine == "ray":
            require_ray(options, address, ray_address, shard)
        objects = objects_at(address) if address else None
        settings = settings_of(options, name, folder, connection)
        if not options.emulate:
            from pipeline.execution.rate_memory import state_file

            settings = replace(settings, rates=state_file(job.name, job.model, connection.quotas))
        if part is not None:
            from pipeline.execution.shards import divided

            settings = divided(settings, part)
        start = _start(target, options, connection, job)
        cluster = None
        if engine == "ray":
            tasks = None if processes in {None, "auto"} else _count_of(str(processes))
            cluster = RaySetup(ray_address, tasks, start, options, state_dir)
            settings = replace(settings, chunks=cluster.chunks)
        pool = PoolSetup(workers, start) if workers else None
        place = Target(connection, simulation_of(options), options.quiet, pool)
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
        grace_s=platform_s() if options.drain_timeout is None else options.drain_timeout,
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
        place.require_access()
    with ExitStack() as stack:
        reading = SurveyProgress()
        with place.stage("reading the input", reading):
            run = stack.enter_context(open_run(job, settings, objects=objects, shard=start, reading=reading))
        if run.reopened:
            print(f"asking {run.reopened} failed row{'s' if run.reopened > 1 else ''} again", file=sys.stderr)
        for note in run.context.survey.notes:
            print(printable(f"note: {note}"), file=sys.stderr)
        if shard is not None and not run.chunks():
            print(f"nothing is left to do in shard {shard}: its rows are done", file=sys.stderr)
        elif not run.chunks():
            print("nothing is left to do: every row is done (--fresh starts over)", file=sys.stderr)
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
    if summary.status == "stopped":
        why = summary.reason or "nothing was sealed"
        remedy = remedy_for(type(reason).__name__)
        if summary.shard is not None and isinstance(reason, BudgetExhausted):
            remedy += f" (shard {summary.shard} has its part of the budget; with fewer shards each part is larger)"
        print(f"error: stopped ({printable(why)}): {summary.left} rows are left; {remedy}", file=sys.stderr)
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
    print(f"cost     {_cost(summary)}{' if the model were real' if summary.simulated else ''}")
    print(f"seconds  {summary.seconds:.1f}")
    if summary.simulated and summary.ok:
        print("sample   values found by patterns, or invented, by the emulator")
    with for_the_eye("a sample of the rows"):
        print_sample(folder, job.key, rows=3)


def _cost(summary: Summary) -> str:
    """The cost of this command and, if it resumed a run, of the whole run."""
    cost = "unknown (give the job `prices`)" if summary.cost_usd is None else figures.cost(summary.cost_usd)
    run = summary.run
    if run.calls == summary.calls:
        return cost
    unknown = f" and {run.unpriced_calls} calls of unknown price" if run.unpriced_calls else ""
    return f"{cost}; {figures.cost(run.cost_usd)}{unknown} for the whole run"
