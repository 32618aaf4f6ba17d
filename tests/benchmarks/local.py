"""A whole run in this process, over an ask that costs nothing: what the pipeline does besides HTTP.

Run as `python -m tests.benchmarks.local ROWS OUTPUT RATE STOP_AFTER` in a process of its own; it prints a JSON object.
RATE is in requests a second, and STOP_AFTER in rows; 0 is neither.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import anyio

import pipeline.endpoint.client  # noqa: F401 - a real run has it in memory, too
from pipeline import Job
from pipeline.cli.garbage import raise_gc_threshold, tune_gc
from pipeline.data import Reply, Request
from pipeline.endpoint.connection import OpenEndpoint
from pipeline.endpoint.wire import read_completion
from pipeline.execution.finish import finish
from pipeline.execution.run import Run
from pipeline.execution.settings import Settings
from pipeline.execution.start import open_run
from pipeline.policy import Shutdown
from pipeline.policy.compose import RunLimits
from tests.benchmarks.canned import BODY
from tests.benchmarks.contenders import MODEL, SYSTEM, Event
from tests.benchmarks.figures import percentile, stalls

LOOK_S = 0.002
LATENCY_S = 0.05
"""Of an answer, where a rate is asked for."""


@dataclass(slots=True)
class Local:
    """The synthetic endpoint: when it was asked first, and when it wants the run to stop."""

    stop: Shutdown
    stop_after: int
    latency_s: float
    first_asked: float | None = None
    asked: int = 0

    async def ask(self, _: Request) -> Reply:
        """An answer as the endpoint hands it on."""
        if self.first_asked is None:
            self.first_asked = time.time()
        self.asked += 1
        if self.asked == self.stop_after:
            self.stop.request(signal.SIGTERM)
        await anyio.sleep(self.latency_s)
        completion = read_completion(BODY)
        finished_at = time.time_ns() // 1000
        return Reply(BODY, completion.usage, finished_at=finished_at, completion=completion, model=completion.model)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Sequence[OpenEndpoint]]:
        """As an endpoint is opened."""
        yield [OpenEndpoint("local", 1.0, self.ask)]


@dataclass(slots=True)
class Watched:
    """What was seen of the event loop and of the journal, in seconds."""

    gaps: list[float] = field(default_factory=list)
    durable: list[float] = field(default_factory=list)

    async def loop(self) -> None:
        """How late a task is that wants to run every 2 ms."""
        while True:
            before = time.monotonic()
            await anyio.sleep(LOOK_S)
            self.gaps.append(max(0.0, time.monotonic() - before - LOOK_S))

    async def journal(self, run: Run) -> None:
        """How long it is, from now and then, until all that was put before is durable."""
        while True:
            await anyio.sleep(0.02)
            before = time.monotonic()
            await run.context.journal.flush()
            self.durable.append(time.monotonic() - before)


@dataclass(frozen=True, slots=True)
class Told:
    """What a run came to."""

    first_asked: float | None
    seconds: float
    cpu_s: float
    ok: int
    stall_p99_s: float
    durable_p99_s: float


def job(source: Path) -> Job:
    """The job of the end-to-end benchmark."""
    return Job(name="bench", model=MODEL, system=SYSTEM, user="{{ text }}", schema=Event, key="id", input=str(source))


def carried_out(source: Path, output: Path, *, rate: float, stop_after: int) -> Told:
    """Runs it, to its end or until so many rows were asked."""
    stop, watched = Shutdown(), Watched()
    local = Local(stop, stop_after, latency_s=LATENCY_S if rate else 0.0)
    # By Little's law, so many calls in flight make the rate.
    bounds = RunLimits(concurrency=round(rate * LATENCY_S) or 256, adaptive=False)
    cpu = time.process_time()

    async def main(run: Run) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watched.loop)
            tasks.start_soon(watched.journal, run)
            await run.execute(local.connect)
            tasks.cancel_scope.cancel()

    with open_run(job(source), Settings(output=output, bounds=bounds), stop=stop) as run:
        anyio.run(main, run, backend_options={"use_uvloop": True})
        [summary] = finish([run])
    return Told(
        local.first_asked,
        summary.seconds,
        time.process_time() - cpu,
        summary.ok,
        stalls(watched.gaps, 0.99) if watched.gaps else 0.0,
        percentile(watched.durable, 0.99) if watched.durable else 0.0,
    )


if __name__ == "__main__":
    given, output, rate, stop_after = sys.argv[1:]
    # As the command line does.
    raise_gc_threshold()
    tune_gc(256)
    told = carried_out(Path(given), Path(output), rate=float(rate), stop_after=int(stop_after))
    print(json.dumps(asdict(told)))
