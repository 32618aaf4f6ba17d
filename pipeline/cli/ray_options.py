"""`--engine ray`: the work of a run is given to the machines of a Ray cluster."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.cli.options import LIMITS
from pipeline.faults import UsageError

if TYPE_CHECKING:
    from pipeline.cli.options import RunOptions
    from pipeline.endpoint.connection import Start
    from pipeline.store.address import Address

EngineOption = Annotated[
    Literal["local", "ray"],
    typer.Option(
        "--engine",
        help="What does the work: processes of this machine, or tasks of a Ray cluster (of --processes at a time).",
        rich_help_panel=LIMITS,
    ),
]
RayAddressOption = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        metavar="ADDRESS",
        help="The Ray cluster, as in 10.0.0.2:6379; auto: the one of this machine.",
        show_default="one for this run, on this machine",
        rich_help_panel=LIMITS,
    ),
]

CHUNKS_FOR_ANY_CLUSTER = 64
"""Chunks of a new run, about, if it is not known yet how many tasks will share them."""


@dataclass(frozen=True, slots=True)
class RaySetup:
    """A cluster to be used, and what its tasks need to start. `workers` is None for as many as there is room for."""

    address: str | None
    workers: int | None
    start: Start
    options: RunOptions
    state_dir: Path | None

    @property
    def chunks(self) -> int:
        """The number of chunks that a new run has at least, about."""
        here = os.cpu_count() or 1
        return max(8, 4 * self.workers if self.workers else CHUNKS_FOR_ANY_CLUSTER if self.address else 4 * here)


def require_ray(options: RunOptions, address: Address | None, ray_address: str | None, shard: str | None) -> None:
    """Raises `UsageError`, with the remedy, for what `--engine ray` cannot do."""
    if address is None:
        raise UsageError(
            "--engine ray needs an --output that all machines reach: gs://, s3:// or az://; on one machine use "
            "--processes"
        )
    if shard is not None:
        raise UsageError("--shard and --engine ray both divide the run: leave one of them out")
    if options.emulate and ray_address is not None:
        raise UsageError("--emulate starts a server that only this machine reaches: leave --ray-address out")
    if find_spec("ray") is None:
        raise UsageError("--engine ray needs the extra ray: pip install 'vertex-pipeline[ray]'")
