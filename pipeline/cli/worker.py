"""A worker process of `pipeline run --processes`, begun by its parent: nothing for people to call."""

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
from pipeline.cli.streams import secure
from pipeline.endpoint.connection import Start, access
from pipeline.faults import Halt, UsageError

if TYPE_CHECKING:
    from pipeline.execution.processes.messages import Assignment, Channel


async def _work(end: int, lifeline: int) -> int:
    from pipeline.execution.processes.messages import Channel, Failed

    link = await Channel.over(socket.socket(fileno=end))
    # The lock is ours, too, as long as we live: who starts after a parent that was killed waits for us.
    lock = await link.take()
    order: Assignment | None = None if lock is None else await link.receive()
    if order is None:
        return 1
    try:
        await _carry_out(order, link, lifeline)
    except (UsageError, Halt) as error:
        await link.send(Failed(error))
    except Exception:  # noqa: BLE001 - a bug is told to the parent, with its traceback, and ends the run
        await link.send(Failed(traceback.format_exc()))
        return 1
    return 0


async def _carry_out(order: Assignment, link: Channel, lifeline: int) -> None:
    from pipeline.execution.processes.worker import work
    from pipeline.policy.compose import workers_for

    start: Start = order.start
    inputs, assignments = list(start.inputs or ()) or None, list(start.assignments or ())
    job, _ = load(start.target, inputs, start.model, assignments, start.output)
    connecting = access(start.connection).connecting
    connect = connecting(
        connections=workers_for(order.settings.bounds.concurrency),
        timeout_s=job.timeout_s,
        idle_timeout_s=job.idle_timeout_s,
    )
    tune_gc(order.settings.bounds.concurrency // order.of)
    await work(job, order, connect, link, lifeline)


def load_all() -> None:
    """Loads what a worker needs, before it is forked."""
    import pipeline.endpoint.client
    import pipeline.execution.processes.worker  # noqa: F401 - to have them

    gc.freeze()


def main(end: int, lifeline: int) -> int:
    """Works for the parent that holds the other ends."""
    import anyio

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what a job prints is seen as it comes
    options = {"use_uvloop": find_spec("uvloop") is not None}
    return anyio.run(_work, end, lifeline, backend_options=options)


if __name__ == "__main__":
    secure()
    raise_gc_threshold()
    sys.exit(main(*map(int, sys.argv[1:])))
