"""A worker process of `pipeline run --processes`, started by its parent; not a command for users."""

from __future__ import annotations

import gc
import io
import socket
import sys
import traceback
from importlib.util import find_spec
from typing import TYPE_CHECKING

from pipeline.cli.garbage import raise_gc_threshold, tune_gc
from pipeline.cli.options import load
from pipeline.cli.stores import reading_stores
from pipeline.cli.streams import secure
from pipeline.endpoint.connection import Start, access
from pipeline.faults import Halt, UsageError

if TYPE_CHECKING:
    from pipeline.execution.processes.messages import Assignment, Channel


async def _work(end: int, lifeline: int) -> int:
    from pipeline.execution.processes.messages import Channel, WorkerFailed

    channel = Channel(socket.socket(fileno=end))
    # This process holds the lock too: a run started after the parent was killed waits until the worker has ended.
    lock = await channel.take()
    assignment: Assignment | None = None if lock is None else await channel.receive()
    if assignment is None:
        return 1
    try:
        await _execute(assignment, channel, lifeline)
    except (UsageError, Halt) as error:
        await channel.send(WorkerFailed(error))
    except Exception:  # noqa: BLE001 - a bug is reported to the parent, with its traceback, and ends the run
        await channel.send(WorkerFailed(traceback.format_exc()))
        return 1
    return 0


async def _execute(assignment: Assignment, channel: Channel, lifeline: int) -> None:
    from pipeline.execution.processes.worker import work
    from pipeline.policy.compose import workers_for

    start: Start = assignment.start
    inputs, assignments = list(start.inputs or ()) or None, list(start.assignments or ())
    job, _ = load(start.target, inputs, start.model, assignments, start.output)
    connecting = access(start.connection).connecting
    connect = connecting(
        connections=workers_for(assignment.settings.bounds.concurrency),
        timeout_s=job.timeout_s,
        idle_timeout_s=job.idle_timeout_s,
    )
    tune_gc(assignment.settings.bounds.concurrency // assignment.of)
    with reading_stores(start.credentials):
        await work(job, assignment, connect, channel, lifeline)


def load_all() -> None:
    """Loads the modules that a worker needs, before it is forked."""
    import pipeline.endpoint.client
    import pipeline.execution.processes.worker  # noqa: F401 - imported to be loaded

    gc.freeze()


def main(end: int, lifeline: int) -> int:
    """Works for the parent that holds the other ends of the two descriptors; returns the exit code."""
    import anyio

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # output of a job appears line by line
    options = {"use_uvloop": find_spec("uvloop") is not None}
    return anyio.run(_work, end, lifeline, backend_options=options)


if __name__ == "__main__":
    secure()
    raise_gc_threshold()
    sys.exit(main(*map(int, sys.argv[1:])))
