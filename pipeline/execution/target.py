"""Where runs are executed: an endpoint or an emulator, in this process or in a pool; and who supervises them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

from pipeline.endpoint.connection import Access, Connection, Start, access
from pipeline.execution.emulation import connection_to, emulator

if TYPE_CHECKING:
    from pipeline.execution.batch.setup import BatchSetup
    from pipeline.execution.finish import Summary
    from pipeline.execution.processes.spawn import WorkerPool
    from pipeline.execution.run import Run
    from pipeline.source.progress import SurveyProgress


class Supervisor(Protocol):
    """Shows runs while they are executed, and requests their stop."""

    def stage(self, text: str, reading: SurveyProgress | None = None) -> AbstractContextManager[None]:
        """Shows what is happening before the first call, or how far a survey is, while the block runs."""

    def note(self, text: str) -> None:
        """Shows a message."""

    def prepare(self, concurrency: int) -> None:
        """Called before the event loop starts, with the calls in flight of all runs."""

    async def supervise(self, runs: Sequence[Run], cut_off: Callable[[], None]) -> None:
        """Runs beside the runs until it is cancelled at their end. `cut_off` ends them without a drain."""

    def ended(self, runs: Sequence[Run], summaries: Sequence[Summary]) -> None:
        """Called once all are finished."""


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
    supervisor: Supervisor
    pool: PoolSetup | None = None
    batch: BatchSetup | None = None
    """How rows are asked by batch, if they are."""

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
                self.supervisor.prepare(sum(run.context.settings.bounds.concurrency for run in runs))
                anyio.run(ask_all, backend_options=options)
            summaries = finish(runs)
        self.supervisor.ended(runs, summaries)
        return summaries

    @contextmanager
    def at_work(self) -> Iterator[Target]:
        """The target to use inside the block: this one, or its emulator."""
        if self.simulation is None:
            yield self
            return
        with ExitStack() as stack:
            with self.stage("starting the emulator"):
                address = stack.enter_context(emulator(self.simulation))
            yield _moved(self, connection_to(address, self.connection.locations), address["origin"])

    def stage(self, text: str, reading: SurveyProgress | None = None) -> AbstractContextManager[None]:
        """Shows what is happening before the first call, or how far a survey is, while the block runs."""
        return self.supervisor.stage(text, reading)

    def note(self, text: str) -> None:
        """Shows a message."""
        self.supervisor.note(text)


def _moved(target: Target, connection: Connection, origin: str) -> Target:
    pool = target.pool and replace(target.pool, start=replace(target.pool.start, connection=connection))
    batch = target.batch and replace(target.batch, credentials=connection.credentials, store_origin=origin)
    return replace(target, connection=connection, pool=pool, batch=batch)


async def _ask_all(runs: Sequence[Run], target: Target, opening: Access) -> None:
    import anyio
    from anyio import lowlevel

    await report_changed_sdk(target)
    context = runs[0].context
    async with anyio.create_task_group() as tasks:
        if (deadline := context.settings.deadline) is not None:
            tasks.start_soon(deadline.keep, context.stop, context.counters, context.settings.grace_s)
            await lowlevel.checkpoint()  # one that has passed already stops the runs before their first call
        async with anyio.create_task_group() as working:
            tasks.start_soon(target.supervisor.supervise, runs, working.cancel_scope.cancel)
            for run in runs:
                working.start_soon(_ask, run, target, opening)
        tasks.cancel_scope.cancel()


async def report_changed_sdk(target: Target) -> None:
    """Shows a note, once for all runs and processes, if requests take the slower path through the SDK."""
    from pipeline.endpoint.client import Client
    from pipeline.endpoint.public_client import CHANGED_SDK, hands_on

    if not await hands_on(Client):
        target.note(f"note: {CHANGED_SDK}")


async def _ask(run: Run, target: Target, opening: Access) -> None:
    if target.batch is not None and not await _ask_by_batch(run, target.batch, opening):
        return
    if (pool := target.pool) is not None:
        from pipeline.execution.processes import parent

        spec = parent.PoolSpec(workers=pool.workers, start=pool.start, lanes=opening.lanes)
        await parent.execute(run, spec)
        return
    from pipeline.policy.compose import workers_for

    job, connections = run.context.job, workers_for(run.context.settings.bounds.concurrency)
    connect = opening.connecting(connections=connections, timeout_s=job.timeout_s, idle_timeout_s=job.idle_timeout_s)
    await run.execute(connect)


async def _ask_by_batch(run: Run, batch: BatchSetup, opening: Access) -> bool:
    """Has the rows asked by batch; returns whether what is left is to be asked online."""
    from pipeline.execution.batch.setup import opened_backend
    from pipeline.execution.batch.stage import BatchStage

    async with opened_backend(opening, run.context.job.model, batch, run.context.plan.run_id) as backend:
        return await BatchStage(run, backend, batch.settings).carry_out()
