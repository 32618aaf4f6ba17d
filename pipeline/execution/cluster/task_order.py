"""What is sent to the machines of a cluster, and back: which part of which run, and the records of its parts.

No row, reply, token or key: each machine reads the input and the job itself, and has its own credentials.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data import Part
from pipeline.endpoint.connection import Connect, Start
from pipeline.execution.cluster.limiter import bare_counters
from pipeline.execution.run import Run
from pipeline.execution.settings import Settings
from pipeline.faults import Fault, UsageError
from pipeline.job.job import Job
from pipeline.storage.remote.objects import OutputObjects
from pipeline.storage.remote.shards import Shard
from pipeline.totals.counters import Counters
from pipeline.totals.ledger import Charges


@dataclass(frozen=True, slots=True)
class OpenedTask:
    """What a task works with on its machine."""

    job: Job
    settings: Settings
    objects: OutputObjects
    connect: Connect


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOrder:
    """A task: which shard of the run, and how its job is loaded there. `folder` is that of the command."""

    shard: Shard
    settings: Settings
    start: Start
    of_input: Mapping[str, Any]
    """What the command line says of the input beside its place."""
    state_dir: Path | None
    folder: Path
    workers: int
    """How many tasks run at the same time."""
    opening: Callable[[TaskOrder], AbstractContextManager[OpenedTask]]
    """Opens it: a function of a module, which is named and not sent."""

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return f"task {self.shard.index + 1} of {self.shard.count}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LimiterOrder:
    """What the limiter is made of. `charged` is what earlier starts were charged, `lanes` are as of `Access`.

    `run_folder` is that of the driver, which the limiter's monitor writes to; `rates` as of `Settings`.
    """

    task: TaskOrder
    lanes: Sequence[tuple[str, float]]
    counters: Counters
    charged: Charges
    run_folder: Path
    rates: Path | None


def limiter_order(run: Run, task: TaskOrder, lanes: Sequence[tuple[str, float]]) -> LimiterOrder:
    """The limiter of the rest of a run."""
    context = run.context
    return LimiterOrder(
        task=task,
        lanes=lanes,
        counters=bare_counters(context.counters),
        charged=run.charged_before,
        run_folder=context.folder.run,
        rates=context.settings.rates,
    )


@dataclass(frozen=True, slots=True)
class TaskEnd:
    """The end of a task: the records of its sealed parts and, unless all are sealed, the reason."""

    parts: Sequence[Part]
    reason: Fault | UsageError | None = None
