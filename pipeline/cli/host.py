"""Carrying runs out, once they are opened: where they are asked, who is told, what ends them."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli import emulate
from pipeline.cli.garbage import tune_gc
from pipeline.cli.tables import plain
from pipeline.endpoint.connection import Access, Connection, Start, access
from pipeline.faults import Broken

if TYPE_CHECKING:
    from pipeline.cli.progress import Progress
    from pipeline.counters import Counters
    from pipeline.execution.processes.spawn import WorkerPool
    from pipeline.execution.run import Run, Summary
    from pipeline.policy import Shutdown


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """The worker processes that carry a run out, and what each needs to begin."""

    workers: WorkerPool
    start: Start


@dataclass(frozen=True, slots=True)
class Target:
    """Where runs are carried out: an endpoint, or with arguments in `simulation` an emulator of their own.

    It is done in this process, or by a `team`.
    """

    connection: Connection
    simulation: list[str] | None
    quiet: bool = False
    team: PoolSpec | None = None

    def require_access(self) -> None:
        """Raises `UsageError` when credentials are missing, to be told before anything is removed."""
        if self.simulation is None:
            access(self.connection)

    def execute(self, runs: Sequence[Run], tally: Counters, began: float) -> tuple[list[Summary], Shutdown]:
        """Asks, side by side in time, what is left to ask in opened runs; what they came to, and what stopped them.

        `tally` has counted what was there before; `began` is when the start did, by the monotonic clock.
        """
        import anyio

        from pipeline.ledger import total
        from pipeline.policy import Shutdown

        stop = Shutdown()
        with ExitStack() as stack:
            if any(run.chunks() for run in runs):
                there = stack.enter_context(self._emulated())
                ask_all = partial(_ask_all, runs, there, access(there.connection), tally, stop)
                # uvloop, where it is installed, takes a fifth off the cost of a row.
                options = {"use_uvloop": find_spec("uvloop") is not None}
                tune_gc(sum(run.settings.bounds.concurrency for run in runs))
                anyio.run(ask_all, backend_options=options)
            seconds = time.monotonic() - began
            charged = total(run.charged for run in runs)
            return [run.finish(tally, stop, seconds, charged) for run in runs], stop

    @contextmanager
    def _emulated(self) -> Iterator[Target]:
        """Where to ask for as long as the block: this target, or the emulator that it wants."""
        if self.simulation is None:
            yield self
            return
        with ExitStack() as stack:
            with self.stage("starting the emulator"):
                address = stack.enter_context(emulate.emulator(self.simulation))
            yield _moved(self, emulated(address, self.connection.locations))

    def stage(self, text: str) -> AbstractContextManager[None]:
        """Says on a terminal what goes on before the first call, for as long as the block."""
        from pipeline.cli.progress import stage

        return stage(text, quiet=self.quiet)

    def note(self, text: str) -> None:
        """Says it on stderr."""
        print(plain(text), file=sys.stderr)


def emulated(address: dict[str, str], locations: Sequence[str]) -> Connection:
    """The way to an emulator, which serves any location: one endpoint for each, as on Vertex AI."""
    base_urls = [address["base_url"].replace("/locations/global/", f"/locations/{location}/") for location in locations]
    return Connection(base_urls=base_urls, credentials=Path(address["credentials_file"]))


def _moved(place: Target, connection: Connection) -> Target:
    team = place.team and replace(place.team, start=replace(place.team.start, connection=connection))
    return replace(place, connection=connection, team=team)


async def _ask_all(runs: Sequence[Run], place: Target, opening: Access, tally: Counters, stop: Shutdown) -> None:
    import anyio

    from pipeline.cli.progress import Progress

    await _tell_of_changed_sdk()
    progress = Progress(tally, quiet=place.quiet)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_watch_signals, runs, stop, tally, progress)
        tasks.start_soon(progress.show)
        async with anyio.create_task_group() as working:
            for run in runs:
                working.start_soon(_ask, run, place.team, opening, tally, stop)
        tasks.cancel_scope.cancel()


async def _tell_of_changed_sdk() -> None:
    """Says, once for all runs and processes, when each request takes the longer way through the SDK."""
    from pipeline.endpoint.client import Client
    from pipeline.endpoint.public_client import CHANGED_SDK, hands_on

    if not await hands_on(Client):
        print(f"note: {CHANGED_SDK}", file=sys.stderr)


async def _ask(run: Run, team: PoolSpec | None, opening: Access, tally: Counters, stop: Shutdown) -> None:
    if team is not None:
        from pipeline.execution.processes import parent

        crew = parent.PoolSpec(workers=team.workers, start=team.start, lanes=opening.lanes)
        await parent.execute(run, crew, tally, stop)
        return
    from pipeline.policy.compose import workers_for

    job, connections = run.job, workers_for(run.settings.bounds.concurrency)
    connect = opening.connecting(connections=connections, timeout_s=job.timeout_s, idle_timeout_s=job.idle_timeout_s)
    await run.execute(connect, tally, stop)


async def _watch_signals(runs: Sequence[Run], stop: Shutdown, tally: Counters, progress: Progress) -> None:
    """Ends runs on SIGINT, SIGTERM and SIGHUP: drained on the first, at once on the second, nothing received lost.

    Where SIGHUP is ignored, as under nohup, it stays so.
    """
    import anyio

    hang_up = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, *hang_up) as signals:
        told = False
        async for number in signals:
            if told:
                for run in runs:
                    with suppress(Broken):  # what cannot be kept now cannot be kept at all
                        run.journal.commit()
                progress.close()
                os._exit(128 + number)
            told = True
            name, calls, grace = signal.Signals(number).name, tally.in_flight, runs[0].settings.grace_s
            progress.say(f"{name}: finishing {calls} calls in flight, {grace:g} s at most; again to stop now")
            stop.request(signal.Signals(number))
