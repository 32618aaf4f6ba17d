"""The progress of the shards of a run, from a copy of what is in its bucket."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.data import Part
from pipeline.source import Survey
from pipeline.storage.journal_reader import recorded_in
from pipeline.storage.remote.hydration import RemoteView
from pipeline.storage.remote.shards import Shard, SignOfLife, portion_of

ShardState = Literal["done", "running", "stopped", "lost", "not started"]
"""`done`: all its rows are in sealed parts. `lost`: its lease was neither renewed nor released."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardStatus:
    """One shard of a run. `done` rows need no further call, as far as the bucket knows."""

    shard: str
    """As in `3/10`."""
    state: ShardState
    rows: int
    done: int
    host: str | None
    """The machine that works on it, or did last, with the id of its process; None if none ever has."""
    seen: str | None
    """Its last sign of life, in UTC, by the clock of the store."""

    def facts(self) -> dict[str, Any]:
        """All fields under plain names, for JSON."""
        return asdict(self)


def shard_statuses(
    remote: RemoteView | None, survey: Survey, parts: Sequence[Part], journal: Path
) -> tuple[ShardStatus, ...]:
    """Every shard of the division that was started last, in order; none if the run never was divided.

    Parts and journal are those of the copy.
    """
    if remote is None or not remote.shards:
        return ()
    count = next(iter(remote.shards)).count
    return tuple(_status(Shard(index, count), remote.shards, survey, parts, journal) for index in range(count))


def _status(
    shard: Shard, known: Mapping[Shard, SignOfLife], survey: Survey, parts: Sequence[Part], journal: Path
) -> ShardStatus:
    portion, sign = portion_of(shard, survey), known.get(shard)
    sealed = [part for part in parts if part.chunk in portion.chunks]
    waiting = len(recorded_in(journal, portion.rows.start, len(portion.rows))) if portion.rows else 0
    return ShardStatus(
        shard=str(shard),
        state="done" if len(sealed) == len(portion.chunks) else _state(sign),
        rows=len(portion.rows),
        done=sum(part.rows for part in sealed) + waiting,
        host=str(sign.holder) if sign else None,
        seen=sign.at.isoformat(timespec="seconds") if sign else None,
    )


def _state(sign: SignOfLife | None) -> ShardState:
    if sign is None:
        return "not started"
    return "running" if sign.alive else "stopped" if sign.holder.released else "lost"


def missing_shards(shards: Sequence[ShardStatus]) -> str | None:
    """Which shards have rows left and do not work, by state and number; None if there are none."""
    states: tuple[ShardState, ...] = ("not started", "lost", "stopped")
    named = {state: [one.shard for one in shards if one.state == state] for state in states}
    texts = [f"{state}: {_listed(names)}" for state, names in named.items() if names]
    return f"shards {'; '.join(texts)}" if texts else None


def _listed(names: Sequence[str], most: int = 20) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
