"""A run in shards: starts on several machines, each over its own range of the chunks of one plan.

The unit is the same as everywhere: a range of chunks goes in, the records of their parts come out. `open_run` with a
`ShardFollower`'s place opens it, `parts_of` asks its rows, and `finish` ends the run once all parts are there.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from pipeline.data import Part
from pipeline.endpoint.connection import Connect
from pipeline.execution.identity import identity_of
from pipeline.execution.run import Run
from pipeline.execution.settings import Settings
from pipeline.faults import UsageError
from pipeline.job.job import Job
from pipeline.source.progress import SurveyProgress
from pipeline.storage.remote.shard_follower import ShardFollower
from pipeline.storage.remote.shards import POLL_S, Patience, Shard
from pipeline.storage.run_folder import RunFolder, RunIdentity

PLAN_WAIT_S = 600.0
"""How long shards wait for the first one to survey the input, in seconds; then each surveys it itself."""

_FIRST_POLL_S = 0.2
_CHUNKS = 8
_CHUNKS_A_SHARD = 4


@dataclass(frozen=True, slots=True)
class ShardStart:
    """Which shard a start works on, and how it waits for others."""

    shard: Shard
    patience: Patience = field(default_factory=Patience)


async def parts_of(run: Run, connect: Connect) -> list[Part]:
    """Asks the rows of an opened shard, and seals them: its chunks go in, the records of its parts come out, in order.

    They are in the bucket then. Those of chunks that were not finished, since the stop was requested, are not there.
    """
    await run.execute(connect)
    return [run.parts[chunk] for chunk in run.assigned if chunk in run.parts]


def divided(settings: Settings, shard: Shard) -> Settings:
    """The settings of one shard, given those of the run: its part of the declared limits, and of the first rate.

    At least one call may be in flight, whatever the number of shards. A new run gets chunks for all of them.
    """
    bounds, count = settings.bounds, shard.count
    part = replace(
        bounds,
        concurrency=max(1, bounds.concurrency // count + (shard.index < bounds.concurrency % count)),
        shards=count,
        rpm=bounds.rpm and bounds.rpm / count,
        tpm=bounds.tpm and bounds.tpm / count,
        budget_usd=bounds.budget_usd and bounds.budget_usd / count,
        budget_tokens=bounds.budget_tokens and bounds.budget_tokens / count,
    )
    # A rate that was granted to all together, or to another number of shards, is not what one of them may begin with.
    return replace(settings, bounds=part, rates=None, chunks=max(_CHUNKS, _CHUNKS_A_SHARD * count))


def common_plan(
    job: Job,
    settings: Settings,
    folder: RunFolder,
    follower: ShardFollower,
    started: str,
    reading: SurveyProgress | None = None,
) -> RunIdentity:
    """The plan of the run, the same for all shards: the first one makes it, the others wait for it and compare.

    Raises `UsageError` if the run at the address is a different one, or has fewer rows.
    """
    if not follower.has_plan():
        if folder.load() is None:  # else the bucket was emptied, and this machine knows the run
            _await_plan(follower)
            if not follower.has_plan():
                folder.save(identity_of(job, settings, folder, None, started, reading))
        if not follower.has_plan():
            follower.create_plan()
    before = folder.load()
    if before is None or not follower.has_same_plan(before.run_id):
        follower.fill()
        before = folder.require()
    if before.limit is not None and (settings.limit is None or settings.limit > before.limit):
        raise UsageError(
            f"{folder.name} holds the run of the first {before.limit} rows, and shards cannot extend it: give the same "
            f"--limit, or start it once without --shard"
        )
    return identity_of(job, settings, folder, before, started, reading, committed=True)


def _await_plan(follower: ShardFollower) -> None:
    """Returns when there is a plan, or when this shard has to make it."""
    waited = 0.0
    if follower.shard.index == 0:
        return
    follower.patience.say(f"waiting until shard {Shard(0, follower.shard.count)} has read the input")
    while waited < PLAN_WAIT_S and not follower.has_plan():
        pause = min(POLL_S, max(_FIRST_POLL_S, waited))  # most inputs are read in a second
        follower.patience.pause(pause)
        waited += pause
    if not follower.has_plan():
        follower.patience.say(f"it has not in {PLAN_WAIT_S:.0f} s: this shard reads the input itself")
