"""Executes an opened run on a Ray cluster, and opens the job of a task on the machine that works on it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli.garbage import tune_gc
from pipeline.cli.options import load
from pipeline.cli.ray_options import RaySetup
from pipeline.cli.stores import reading_stores
from pipeline.endpoint.connection import access
from pipeline.execution.output_place import objects_at, output_of
from pipeline.execution.target import Target, report_changed_sdk

if TYPE_CHECKING:
    from pipeline.execution.cluster.task_order import OpenedTask, TaskOrder
    from pipeline.execution.finish import Summary
    from pipeline.execution.run import Run
    from pipeline.storage.remote.objects import OutputObjects


def execute(run: Run, target: Target, setup: RaySetup, objects: OutputObjects) -> Summary:
    """Asks the rows that are left of a run that was opened and closed again, and ends it. Returns its summary."""
    import anyio

    with target.at_work() as here:
        opening = access(here.connection)
        with target.stage("starting Ray"):
            _set_environment(setup)
            from pipeline.execution import ray_engine
        # Ray prints what its machines say of lost workers, and stdout is for the result.
        with redirect_stdout(sys.stderr), ray_engine.cluster(setup.options.ray_address, setup.workers) as workers:
            order = _order(run, here, setup, workers)
            anyio.run(_drive, run, here, order, opening.lanes)
    return _ended(run, objects)


def _set_environment(setup: RaySetup) -> None:
    """Sets what Ray reads as it is loaded: it reports nothing, and a cluster for one run is on loopback only."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if setup.options.ray_address is None:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # on any system: processes bind to 127.0.0.1 only


def _order(run: Run, target: Target, setup: RaySetup, workers: int) -> TaskOrder:
    from pipeline.execution.cluster.task_order import TaskOrder
    from pipeline.storage.remote.shards import Shard

    # What was removed or reopened once must not be again by each task.
    settings = replace(run.context.settings, fresh=False, retry_failed=False, rates=None)
    return TaskOrder(
        shard=Shard(0, 1),
        settings=settings,
        start=replace(setup.start, connection=target.connection),
        of_input=setup.options.of_input(),
        state_dir=setup.state_dir,
        folder=Path.cwd(),
        workers=workers,
        opening=opened_task,
    )


async def _drive(run: Run, target: Target, order: TaskOrder, lanes: Sequence[tuple[str, float]]) -> None:
    import anyio

    from pipeline.execution import ray_engine

    await report_changed_sdk(target)
    async with anyio.create_task_group() as tasks:
        async with anyio.create_task_group() as working:
            tasks.start_soon(target.supervisor.supervise, [run], working.cancel_scope.cancel)
            working.start_soon(ray_engine.execute, run, order, lanes)
        tasks.cancel_scope.cancel()


def _ended(run: Run, objects: OutputObjects) -> Summary:
    """Opens the run again, in one piece, and ends it."""
    from pipeline.execution.finish import finish
    from pipeline.execution.start import open_run

    settings = replace(run.context.settings, fresh=False, retry_failed=False)
    with open_run(run.context.job, settings, objects=objects) as found:
        context = replace(found.context, counters=run.context.counters, stop=run.context.stop)
        ended = replace(found, context=context, charged_before=run.charged_before, started=run.started, began=run.began)
        return finish([ended])[0]


@contextmanager
def opened_task(order: TaskOrder) -> Iterator[OpenedTask]:
    """The job of a task, its bucket and its endpoints, with the credentials of this machine.

    Raises `UsageError` if something is missing here.
    """
    from pipeline.execution.cluster.task_order import OpenedTask
    from pipeline.policy.compose import workers_for

    start, settings = order.start, order.settings
    inputs, assignments = list(start.inputs or ()) or None, list(start.assignments or ())
    job, _ = load(start.target, inputs, start.model, assignments, start.output, **order.of_input)
    folder, address = output_of(job, order.state_dir)
    if address is None:
        raise ValueError("a task has no address to write to")
    connect = access(start.connection).connecting(
        connections=workers_for(settings.bounds.concurrency),
        timeout_s=job.timeout_s,
        idle_timeout_s=job.idle_timeout_s,
    )
    tune_gc(settings.bounds.concurrency // order.workers)
    with reading_stores(start.credentials):
        own = folder.with_name(f"{folder.name}-{order.shard.name}")
        yield OpenedTask(job, replace(settings, output=own), objects_at(address), connect)
