"""`pipeline run` and `pipeline reparse`."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import ExitStack, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli import emulation
from pipeline.cli.connecting import Connection, access
from pipeline.cli.emulation import SIMULATED
from pipeline.cli.options import AsJson, Assignments, Inputs, Limit, Model, Target, load
from pipeline.faults import Broken, Denied, Misuse, Spent

if TYPE_CHECKING:
    from pipeline.execute import Run, Settings, Summary
    from pipeline.job import Job
    from pipeline.policy import Stop
    from pipeline.tally import Tally


def run(  # noqa: PLR0913 - one parameter an option
    target: Target,
    *,
    inputs: Inputs = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Output folder (default: out/NAME).")] = None,
    model: Model = None,
    assignments: Assignments = None,
    limit: Limit = None,
    concurrency: Annotated[int, typer.Option("--concurrency", "-c", help="Calls in flight, at most.", min=1)] = 64,
    adaptive: Annotated[bool, typer.Option(help="Find the rate that the quota grants, and keep just under it.")] = True,
    rpm: Annotated[float | None, typer.Option(help="Requests a minute, at most.", min=0.001)] = None,
    tpm: Annotated[float | None, typer.Option(help="Tokens a minute, at most.", min=1)] = None,
    budget_usd: Annotated[
        float | None, typer.Option(help="Dollars that the run may spend, all starts together.", min=1e-9)
    ] = None,
    budget_tokens: Annotated[float | None, typer.Option(help="The same in tokens.", min=1)] = None,
    prices: Annotated[
        Path | None, typer.Option(help="TOML file of prices: dollars per million tokens by model.")
    ] = None,
    give_up_after: Annotated[
        float, typer.Option(help="Seconds that the endpoint may fail before the run ends.")
    ] = 1800.0,
    hedge: Annotated[
        float, typer.Option(help="Ask a second time where the first is unusually late: share of calls.", min=0, max=0.5)
    ] = 0.0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over: what the output holds is removed.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Ask the failed rows again.")] = False,
    keep_replies: Annotated[
        bool, typer.Option(help="Keep replies as they came, for reparse and --retry-failed.")
    ] = True,
    grace: Annotated[float, typer.Option(help="Seconds to drain after SIGINT or SIGTERM.", min=0)] = 20.0,
    project: Annotated[str | None, typer.Option(envvar="GOOGLE_CLOUD_PROJECT", help="Google Cloud project.")] = None,
    location: Annotated[
        list[str] | None, typer.Option(envvar="GOOGLE_CLOUD_LOCATION", help="Vertex AI location; may be repeated.")
    ] = None,
    endpoint_id: Annotated[str | None, typer.Option(help="Id of a self-deployed endpoint.")] = None,
    base_url: Annotated[
        list[str] | None,
        typer.Option(envvar="OPENAI_BASE_URL", help="Another server's base URL; several as WEIGHT*URL."),
    ] = None,
    credentials: Annotated[Path | None, typer.Option(help="Google credentials file of any kind.")] = None,
    emulate: Annotated[bool, typer.Option("--emulate", help="Ask the built-in emulator: no account, no cost.")] = False,
    latency: Annotated[float, typer.Option(help="With --emulate: seconds an answer takes.", min=0)] = 0.0,
    quota_rps: Annotated[float | None, typer.Option(help="With --emulate: requests a second, then 429.")] = None,
    token_life: Annotated[float, typer.Option(help="With --emulate: seconds a token lives.")] = 3600.0,
    fault: Annotated[list[str] | None, typer.Option(help="With --emulate: KIND=SHARE, as in 503=0.1.")] = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> int:
    """Run a job over its input; run it again to resume."""
    from pipeline.composition import Bounds
    from pipeline.execute import Settings
    from pipeline.prices import load_prices

    job, name = load(target, inputs, model, assignments, output)
    settings = Settings(
        output=Path(job.output or Path("out") / job.name),
        target=name,
        bounds=Bounds(
            concurrency=concurrency,
            adaptive=adaptive,
            rpm=rpm,
            tpm=tpm,
            budget_usd=budget_usd,
            budget_tokens=budget_tokens,
            give_up_s=give_up_after,
            hedge=hedge,
            prices=load_prices(prices) if prices else None,
        ),
        limit=limit,
        fresh=fresh,
        retry_failed=retry_failed,
        keep_replies=keep_replies,
        grace_s=grace,
        simulated=emulate,
    )
    connection = Connection(
        project=project,
        locations=location or job.locations or ["global"],
        endpoint_id=endpoint_id,
        base_urls=base_url or (),
        credentials=credentials,
    )
    connection.check_tier(job.tier)
    simulation = _simulation(latency=latency, quota_rps=quota_rps, token_life=token_life, fault=fault or [])
    if simulation and not emulate:
        raise Misuse(f"{simulation[0]} belongs to --emulate")
    return _run(job, settings, connection, simulation, as_json=as_json, quiet=quiet)


def reparse(
    output: Annotated[Path, typer.Argument(help="The output folder of a run.")],
    *,
    job: Annotated[str, typer.Option("--job", "-j", help="The job file, with the schema as it is now.")],
    assignments: Assignments = None,
    as_json: AsJson = False,
) -> int:
    """Validate the kept replies again under a changed schema, with no call."""
    from pipeline import execute

    loaded, _ = load(job, None, None, assignments, output)
    return _told(loaded, execute.reparse(loaded, output), None, as_json=as_json)


def _simulation(*, latency: float, quota_rps: float | None, token_life: float, fault: list[str]) -> list[str]:
    from pipeline.emulator import parse_fault

    try:
        arguments = ["--fault={}={}".format(*parse_fault(text)) for text in fault]
    except ValueError as error:
        raise Misuse(str(error)) from None
    arguments += [f"--latency={latency}"] if latency else []
    arguments += [f"--quota-rps={quota_rps}"] if quota_rps else []
    return arguments + ([f"--token-life={token_life}"] if token_life != 3600.0 else [])


def _run(
    job: Job, settings: Settings, connection: Connection, simulation: list[str], *, as_json: bool, quiet: bool
) -> int:
    import anyio

    from pipeline.execute import opened
    from pipeline.policy import Stop
    from pipeline.tally import Tally

    if not (job.model or job.carries_requests):
        raise Misuse("the job names no model: give it one, or pass --model (as in google/gemini-3.5-flash-lite)")
    if settings.fresh and not settings.simulated:
        access(connection)  # what is missing is told before anything is removed
    started = time.monotonic()
    with opened(job, settings) as run, ExitStack() as stack:
        if settings.retry_failed:
            print(f"asking {run.reopen_failed()} failed rows again", file=sys.stderr)
        tally = Tally()
        run.count_before(tally)
        if not run.chunks():
            print("nothing is left to do: every row is done (--fresh starts over)", file=sys.stderr)
            stop = Stop()
        else:
            if settings.simulated:
                print(SIMULATED, file=sys.stderr)
                connection = _emulated(stack.enter_context(emulation.emulator(simulation)))
            # uvloop, where it is installed, takes a fifth off the cost of a row.
            options = {"use_uvloop": find_spec("uvloop") is not None}
            stop = anyio.run(_carry_out, run, access(connection), tally, quiet, backend_options=options)
        summary = run.conclude(tally, stop, time.monotonic() - started)
    return _told(job, summary, stop.reason, as_json=as_json)


def _emulated(address: dict[str, str]) -> Connection:
    # google-auth goes through the environment's proxies, which have no way to this machine.
    os.environ["NO_PROXY"] = ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1"]))
    return Connection(base_urls=[address["base_url"]], credentials=Path(address["credentials_file"]))


async def _carry_out(run: Run, opening: Any, tally: Tally, quiet: bool) -> Stop:  # noqa: FBT001 - anyio.run passes by position
    import anyio

    from pipeline.cli.progress import show_progress
    from pipeline.policy import Stop

    stop = Stop()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_watch_signals, run, stop, tally)
        tasks.start_soon(lambda: show_progress(tally, quiet=quiet))
        job = run.job
        connect = partial(
            opening.open,
            concurrency=run.settings.bounds.concurrency,
            timeout_s=job.timeout_s,
            idle_timeout_s=job.idle_timeout_s,
        )
        await run.carry_out(connect, tally, stop)
        tasks.cancel_scope.cancel()
    return stop


async def _watch_signals(run: Run, stop: Stop, tally: Tally) -> None:
    import anyio

    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        told = False
        async for number in signals:
            if told:
                with suppress(Broken):  # what cannot be kept now cannot be kept at all
                    run.journal.commit()
                os._exit(128 + number)
            told = True
            name, calls, grace = signal.Signals(number).name, tally.in_flight, run.settings.grace_s
            print(
                f"\n{name}: finishing {calls} calls in flight, {grace:g} s at most; again to stop now", file=sys.stderr
            )
            stop.request(signal.Signals(number))


def _told(job: Job, summary: Summary, reason: object, *, as_json: bool) -> int:
    """Prints the result and gives the exit code."""
    from dataclasses import asdict

    code = _exit_code(summary, reason)
    if as_json:
        fields = {"status": summary.status, "exit_code": code, **asdict(summary), "left": summary.left}
        print(json.dumps(fields, ensure_ascii=False))
        return code
    _print_summary(job, summary)
    if summary.status == "stopped":
        why = summary.reason or "nothing was sealed"
        print(f"error: stopped ({why}): {summary.left} rows are left; the same command resumes", file=sys.stderr)
    elif code == 3:
        print(
            f"error: {summary.failed} of {summary.rows} rows failed, more than the job allows "
            f"(max_failed={job.max_failed:g}); see `pipeline show {summary.output} --failed`",
            file=sys.stderr,
        )
    return code


def _exit_code(summary: Summary, reason: object) -> int:
    match reason:
        case _ if summary.status != "stopped":
            return 3 if summary.status == "failed" else 0
        case signal.Signals():
            return 128 + reason.value
        case Denied():
            return 7
        case Spent():
            return 6
        case Broken():
            return 1
        case _:
            return 1


def _print_summary(job: Job, summary: Summary) -> None:
    from pipeline.cli.sampling import print_sample

    if summary.simulated:
        print(SIMULATED)
    print(f"dataset  {summary.output}/")
    print(f"rows     {summary.rows}: {summary.ok} ok, {summary.failed} failed, {summary.left} left")
    print(
        f"tokens   {summary.input_tokens} in, {summary.output_tokens} out, {summary.reasoning_tokens} thinking; "
        f"{summary.requests} requests, {summary.retries} retries, {summary.throttled} throttled"
    )
    known = "unknown (give the job `prices`)" if summary.cost_usd is None else f"${summary.cost_usd:.6f}"
    print(f"cost     {known}{', were the model real' if summary.simulated else ''}")
    print(f"seconds  {summary.seconds:.1f}")
    print_sample(Path(summary.output), job.key, rows=3)
