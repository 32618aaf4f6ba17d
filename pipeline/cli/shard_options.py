"""`--shard`: which part of a run this process works on, as its user says, or the platform that started it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import LIMITS
from pipeline.execution.drain_timeout import AUTO
from pipeline.faults import UsageError

if TYPE_CHECKING:
    from pipeline.cli.batch_options import BatchRunOptions
    from pipeline.storage.remote.shards import Shard
    from pipeline.store.address import Address

COUNT = "PIPELINE_SHARD_COUNT"
"""The variable that says how many shards there are, where the platform does not."""

PLATFORMS: Mapping[str, tuple[str, str]] = {
    "Cloud Run": ("CLOUD_RUN_TASK_INDEX", "CLOUD_RUN_TASK_COUNT"),
    "Google Batch": ("BATCH_TASK_INDEX", "BATCH_TASK_COUNT"),
    "AWS Batch": ("AWS_BATCH_JOB_ARRAY_INDEX", "AWS_BATCH_JOB_ARRAY_SIZE"),
    "Slurm": ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"),
    "Kubernetes": ("JOB_COMPLETION_INDEX", COUNT),
}
"""The variables by which each tells a task its number and how many there are. The first that is set counts."""

ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Only part I of N of a run at an address, counted from 0; auto, auto/N: as the platform says.",
        rich_help_panel=LIMITS,
    ),
]


def shard_of(text: str | None, environment: Mapping[str, str] = os.environ) -> Shard | None:
    """The shard that an option names; None if it was not given. Raises `UsageError`, with the remedy."""
    if text is None:
        return None
    from pipeline.storage.remote.shards import Shard

    first, slash, last = text.partition("/")
    if first == AUTO:
        index, count = _from(environment, _number(last, text) if slash else None)
    else:
        index, count = _number(first, text), _number(last, text)
    if count == 0:
        raise UsageError(f"--shard {text}: a run has at least one shard, 0/1")
    if index >= count:
        told = f"this task is number {index} of {count}" if first == AUTO else f"--shard {text}"
        remedy = "array tasks begin at 0, as in --array=0-9; --shard auto/N gives their number" if first == AUTO else ""
        last_one = f"the last of {count} is {count - 1}/{count}"
        raise UsageError(f"{told}: shards are counted from 0, so {last_one}{f'; {remedy}' if remedy else ''}")
    return Shard(index, count)


def require_shardable(options: BatchRunOptions, address: Address | None) -> None:
    """Raises `UsageError`, with the remedy, for what shards cannot do."""
    if address is None:
        raise UsageError(
            "--shard needs an --output that all machines reach: gs://, s3:// or az://; on one machine use --processes"
        )
    if options.fresh:
        raise UsageError(
            "--fresh would remove what other shards write: choose another --output, or give --fresh to one start "
            "without --shard"
        )
    if options.batch:
        raise UsageError("--batch submits the whole run from one machine: leave out --batch, or --shard")
    if options.report:
        raise UsageError(f"--report is about the whole run: `pipeline report {address}` when all shards are done")


def _from(environment: Mapping[str, str], given: int | None) -> tuple[int, int]:
    """The number of this task, and how many there are: as given, or as the platform says."""
    for platform, (index, count) in PLATFORMS.items():
        if (number := environment.get(index)) is None:
            continue
        told = environment.get(COUNT) or environment.get(count)
        if given is None and told is None:
            raise UsageError(f"{platform} does not say how many tasks there are: give --shard auto/N, or set {COUNT}")
        return _told(index, number), given if given is not None else _told(count, str(told))
    names = ", ".join(f"{index} ({platform})" for platform, (index, _) in PLATFORMS.items())
    raise UsageError(f"--shard auto finds none of the variables that number a task, {names}: give --shard I/N")


def _told(name: str, text: str) -> int:
    if not text.isdecimal():
        raise UsageError(f"{name} is {text!r}, which is not a number from 0 on: give --shard I/N")
    return int(text)


def _number(text: str, whole: str) -> int:
    if not text.isdecimal():
        raise UsageError(f"--shard takes I/N, as in 3/10, or auto, or auto/N, not {whole!r}")
    return int(text)
