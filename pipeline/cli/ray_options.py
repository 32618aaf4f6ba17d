"""`--engine ray`: the work of a run is given to the machines of a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.cli.batch_options import BatchRunOptions
from pipeline.cli.options import LIMITS
from pipeline.faults import UsageError

if TYPE_CHECKING:
    from pipeline.endpoint.connection import Start
    from pipeline.store.address import Address


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterRunOptions(BatchRunOptions):
    """The options of `pipeline run`, those of a cluster included."""

    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(
            "--engine",
            help="What does the work: processes of this machine, or tasks of a Ray cluster (--processes at a time).",
            rich_help_panel=LIMITS,
        ),
    ] = "local"
    ray_address: Annotated[
        str | None,
        typer.Option(
            "--ray-address",
            metavar="ADDRESS",
            help="The Ray cluster, as in 10.0.0.2:6379; auto: the one of this machine.",
            show_default="one for this run alone, here",
            rich_help_panel=LIMITS,
        ),
    ] = None


CHUNKS_FOR_ANY_CLUSTER = 64
"""Chunks of a new run, about, if it is not known yet how many tasks will share them."""


@dataclass(frozen=True, slots=True)
class RaySetup:
    """A cluster to be used, and what its tasks need to start. `workers` is None for as many as there is room for."""

    workers: int | None
    start: Start
    options: ClusterRunOptions
    state_dir: Path | None

    @property
    def chunks(self) -> int:
        """The number of chunks that a new run has at least, about."""
        here = os.cpu_count() or 1
        return max(
            8, 4 * self.workers if self.workers else CHUNKS_FOR_ANY_CLUSTER if self.options.ray_address else 4 * here
        )


def ray_tasks(processes: str | None, count: Callable[[str], int]) -> int | None:
    """How many tasks work at the same time, as --processes says; None for as many as the cluster has processors."""
    return None if processes in {None, "auto"} else count(str(processes))


def require_ray(options: ClusterRunOptions, address: Address | None, shard: str | None, *, append: bool) -> None:
    """Raises `UsageError`, with the remedy, for what `--engine ray` cannot do."""
    if options.engine != "ray":
        if options.ray_address is not None:
            raise UsageError("--ray-address belongs to --engine ray: add it, or leave --ray-address out")
        return
    if shard is not None:
        raise UsageError("--shard and --engine ray both divide the run: leave one of them out")
    if append:
        raise UsageError("--append takes in the new rows without a cluster: leave --engine ray out")
    if options.batch:
        raise UsageError("--batch leaves nothing for a cluster to do: leave --engine ray out")
    if address is None:
        raise UsageError(
            "--engine ray needs an --output that all machines reach: gs://, s3:// or az://; on one machine use "
            "--processes"
        )
    if options.emulate and options.ray_address is not None:
        raise UsageError("--emulate starts a server that only this machine reaches: leave --ray-address out")
    if find_spec("ray") is None:
        raise UsageError("--engine ray needs the extra ray: pip install 'vertex-pipeline[ray]'")
