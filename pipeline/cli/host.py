"""Executes opened runs: connects them to an endpoint, shows their progress, and ends them on signals."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli import emulate
from pipeline.cli.garbage import tune_gc
from pipeline.endpoint.connection import Access, Connection, Start, access
from pipeline.faults import Broken
from pipeline.text import printable

if TYPE_CHECKING:
    from pipeline.cli.progress import Progress
    from pipeline.execution.finish import Summary
    from pipeline.execution.processes.spawn import WorkerPool
    from pipeline.execution.run import Run
    from pipeline.source.progress import SurveyProgress


@dataclass(frozen=True, slots=True)
class PoolSetup:
    """The worker processes that execute a run, and what each needs to start."""

    workers: WorkerPool
    start: Start


@dataclass(frozen=True, slots=True)
class Target:
    """Where runs are executed: an endpoint or, if `simulation` has arguments, their own emulator.

    They are executed in this process, or by a `pool` of worker processes.
    """

    connection: Connection
    simulation: list[str] | None
    quiet: bool = False
    pool: PoolSetup | None = None

    def require_access(self) -> None:
        """Raises `UsageError` when credentials are missing, before anything is removed."""
        if self.simulation is None:
            access(self.connection)

    def execute(self, runs: Sequence[Run]) -> list[Summary]:
        """Asks the remaining rows of opened runs concurrently, which share their counters and their stop.

        Returns their summaries.
        """
        import anyio

        from pipeline.execution.finish import finish

        with ExitStack() as stack:
            if any(run.chunks() for run in runs):
                target = stack.enter_context(self.at_work())
                ask_all = partial(_ask_all, runs, target, access(target.connection))
                # uvloop, where installed, saves a fifth of the processor time of a row.
                options = {"use_uvloop": find_spec("uvloop") is not None}
                tune_gc(sum(run.context.settings.bounds.concurrency for run in runs))
                anyio.run(ask_all, backend_options=options)
            return finish(runs)

    @contextmanager
    def at_work(self) -> Iterator[Target]:
        """The target to use inside the block: this one, or its emulator."""
        if self.simulation is None:
            yield self
            return
        with ExitStack() as stack:
            with self.stage("starting the emulator"):
                address = stack.enter_context(emulate.emulator(self.simulation))
            yield _moved(self, emulated(address, self.connection.locations))

    def stage(self, text: str, reading: SurveyProgress | None = None) -> AbstractContextManager[None]:
        """Shows what is happening before the first call, or how far a survey is, while the block runs."""
        from pipeline.cli.progress import stage

        return stage(text, quiet=self.quiet, reading=reading)

    def note(self, text: str) -> None:
        """Prints a line on stderr."""
        print(printable(text), file=sys.stderr)


def emulated(address: dict[str, str], locations: Sequence[str]) -> Connection:
    """The connection to an emulator, with one endpoint per location, as on Vertex AI."""
    base_urls = [address["base_url"].replace("/locations/global/", f"/locations/{location}/") for location in locations]
    return Connection(base_urls=base_urls, credentials=Path(address["credentials_file"]))


def _moved(target: Target, connection: Connection) -> Target:
    pool = target.pool and replace(target.pool, start=replace(target.pool.start, connection=connection))
    return replace(target, connection=connection, pool=pool)


async def _ask_all(runs: Sequence[Run], target: Target, opening: Access) -> None:
    import anyio

    from pipeline.cli.progress import Progress

    await _report_changed_sdk()
    progress = Progress(runs[0].context.counters, quiet=target.quiet)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch_signals, runs, progress)
        tasks.start_soon(progress.show)
        async with anyio.create_task_group() as working:
            for run in runs:
                working.start_soon(_ask, run, target.pool, opening)
        tasks.cancel_scope.cancel()


async def _report_changed_sdk() -> None:
    """Prints a note, once for all runs and processes, if requests take the slower path through the SDK."""
    from pipeline.endpoint.client import Client
    from pipeline.endpoint.public_client import CHANGED_SDK, hands_on

    if not await hands_on(Client):
        print(f"note: {CHANGED_SDK}", file=sys.stderr)


async def _ask(run: Run, pool: PoolSetup | None, opening: Access) -> None:
    if pool is not None:
        from pipeline.execution.processes import parent

        spec = parent.PoolSpec(workers=pool.workers, start=pool.start, lanes=opening.lanes)
        await parent.execute(run, spec)
        return
    from pipeline.policy.compose import workers_for

    job, connections = run.context.job, workers_for(run.context.settings.bounds.concurrency)
    connect = opening.connecting(connections=connections, timeout_s=job.timeout_s, idle_timeout_s=job.idle_timeout_s)
    await run.execute(connect)


async def watch_signals(runs: Sequence[Run], progress: Progress) -> None:
    """Ends runs on SIGINT, SIGTERM and SIGHUP: drains on the first, exits on the second; no received reply is lost.

    SIGHUP stays ignored if it already is, as under nohup.
    """
    import anyio

    context = runs[0].context
    hang_up = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, *hang_up) as signals:
        draining = False
        async for number in signals:
            if draining:
                for run in runs:
                    with suppress(Broken):  # the process ends here, so there is no other chance to store it
                        run.context.journal.commit()
                progress.close()
                os._exit(128 + number)
            draining = True
            name, calls, grace = signal.Signals(number).name, context.counters.in_flight, context.settings.grace_s
            progress.say(f"{name}: finishing {calls} calls in flight, {grace:g} s at most; again to stop now")
            context.stop.request(signal.Signals(number))
