"""The shards of a run: starts on several machines that each work on an equal part of its chunks, over one address.

A shard has objects of its own: a lease, a ledger, and segments of the journal that are named by the rows that they may
hold. Plan, parts and records are common, and named as those of a run in one piece. The number of shards may change from
start to start, since the records say what is done.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import orjson

from pipeline.faults import Broken, OutputInUse
from pipeline.source import ChunkSpans, Survey
from pipeline.storage.remote.lease import (
    RENEW_S,
    TAKEOVER_S,
    Holder,
    RunLease,
    acquire,
    holder_in,
    packed_holder,
)
from pipeline.storage.remote.objects import LEASE, LEDGER, LEDGERS, SHARDS, OutputObjects
from pipeline.storage.remote.records import contents_of
from pipeline.storage.run_folder import RUN
from pipeline.store.object_store import AlreadyThere, Changed
from pipeline.totals.ledger import NOTHING, Charges, total

POLL_S = 5.0
"""How often a shard that waits looks again, in seconds."""

_NOBODY = ""
"""The owner of a lease that was closed, since the run went on in other parts: its state folder is out of date."""

Ledger = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` equal parts of a run. `index` counts from 0, as platforms do."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def name(self) -> str:
        """What its objects and its state folder are named by."""
        return f"{self.index}-of-{self.count}"

    @property
    def lease(self) -> str:
        """The object that says who works on it."""
        return f"{SHARDS}{self.name}.json"

    @property
    def ledger(self) -> str:
        """The object with what it was charged."""
        return f"{LEDGERS}{self.name}.json"

    def chunks(self, of: int) -> range:
        """The indices of its chunks, of a run that has so many: contiguous, since a compressed file is read in order.

        Empty if there are more shards than chunks, and this is one of those without any.
        """
        return range(self.index * of // self.count, (self.index + 1) * of // self.count)


@dataclass(frozen=True, slots=True)
class Portion:
    """What a shard works on: the indices of its chunks, and the ordinals of their rows."""

    shard: Shard
    chunks: range
    rows: range


def portion_of(shard: Shard, survey: Survey) -> Portion:
    """The chunks and rows of a shard of the run over this input."""
    chunks = shard.chunks(len(survey.chunks))
    return Portion(shard, chunks, ChunkSpans(survey.generations).rows_of(chunks))


def shard_named(name: str) -> Shard | None:
    """The shard that an object in `SHARDS` or `LEDGERS` belongs to; None for any other."""
    index, of, count = name.rpartition("/")[2].removesuffix(".json").partition("-of-")
    return Shard(int(index), int(count)) if of and index.isdecimal() and count.isdecimal() else None


# Leases.


@dataclass(frozen=True, slots=True)
class Patience:
    """How a shard waits: `pause` sleeps for so many seconds, `say` tells the user why."""

    pause: Callable[[float], None] = time.sleep
    say: Callable[[str], None] = lambda _: None


def acquire_shard(
    objects: OutputObjects, shard: Shard, known: str | None, now: Callable[[], datetime], patience: Patience
) -> tuple[RunLease, str | None]:
    """Takes the lease of a shard: see `acquire`. `now` asks the store for its time.

    Platforms start a dead task again at once. So a lease that is not renewed is waited for until it has run out. Raises
    `OutputInUse` as soon as it is seen that its holder is alive.
    """
    seen: str | None = None
    while True:
        try:
            return acquire(objects, known, now(), name=shard.lease, what=f"shard {shard} of {objects.address}")
        except OutputInUse as error:
            found = objects.head(shard.lease)
            version = found.version if found else None
            if seen is None:
                patience.say(f"waiting until it is known whether an earlier start of this shard is alive: {error}")
            elif version != seen:
                raise
            seen = version
            patience.pause(POLL_S)


def close_others(objects: OutputObjects, shard: Shard | None, now: datetime) -> None:
    """Closes the leases of starts that divided the run in another way, so that none of them can go on later.

    Call it while holding the own lease, that of `shard` or of the whole run: of two that start at the same time each
    then sees the other. Raises `OutputInUse` if one of them works.
    """
    names = [] if shard is None else [LEASE]
    for info in objects.listing(SHARDS):
        other = shard_named(info.key)
        if other is not None and (shard is None or other.count != shard.count):
            names.append(info.key)
    for name in names:
        _close(objects, name, now)


def _close(objects: OutputObjects, name: str, now: datetime) -> None:
    while (found := objects.read(name)) is not None:
        holder = holder_in(found.data)
        if holder is None or holder.owner == _NOBODY:
            return
        left = RENEW_S + TAKEOVER_S - (now - found.info.modified).total_seconds()
        if left > 0 and not (holder.released or holder.has_ended()):
            other = shard_named(name)
            who = "a run that is not divided" if other is None else f"shard {other}"
            raise OutputInUse(
                f"{who} still works on {objects.address}: {holder}. Stop it first; if that machine is gone, the output "
                f"is free in {left:.0f} s"
            )
        closed = replace(holder, owner=_NOBODY, released=True, nonce=uuid.uuid4().hex)
        try:
            objects.replace(name, packed_holder(closed), found.info.version)
        except (Changed, AlreadyThere):
            continue
        return


@dataclass(frozen=True, slots=True)
class SignOfLife:
    """Who held or holds the lease of a shard, and when it was last written, by the clock of the store."""

    holder: Holder
    at: datetime
    alive: bool
    """Whether it is renewed. That compares `at` with the clock of this machine, which may be wrong by minutes."""


def signs_of_life(objects: OutputObjects) -> dict[Shard, SignOfLife]:
    """Those of the shards that ever started, of the division that was started last."""
    names = {shard: info.key for info in objects.listing(SHARDS) if (shard := shard_named(info.key)) is not None}
    now, known = datetime.now(UTC), dict[Shard, SignOfLife]()
    for shard, content in zip(names, contents_of(objects, list(names.values())), strict=True):
        holder = holder_in(content.data) if content else None
        if content is not None and holder is not None and holder.owner != _NOBODY:
            at = content.info.modified
            fresh = (now - at).total_seconds() < RENEW_S + TAKEOVER_S
            known[shard] = SignOfLife(holder, at, fresh and not (holder.released or holder.has_ended()))
    newest = max(known, key=lambda shard: known[shard].at, default=None)
    return {shard: sign for shard, sign in known.items() if newest is not None and shard.count == newest.count}


# Ledgers.


def ledger_at(objects: OutputObjects, name: str) -> Ledger:
    """What one start after the other was charged, by writer; empty if nothing is known. Raises `Broken`."""
    content = objects.read(name)
    try:
        found = orjson.loads(content.data) if content else {}
        return {str(writer): dict(row) for writer, row in found.items()}
    except (ValueError, TypeError, AttributeError) as error:
        remedy = "restore it, or delete it: the run then forgets what it was charged"
        raise Broken(f"{objects.address}/{name} cannot be read ({error}): {remedy}") from error


def whole_ledger(objects: OutputObjects) -> dict[str, Mapping[str, Any]]:
    """What the run was charged in all its starts, divided or not. A writer that several ledgers have counts once."""
    names = [info.key for info in objects.listing(LEDGERS)]
    return _merged(ledger_at(objects, name) for name in [LEDGER, *names])


def charged_elsewhere(objects: OutputObjects, shard: Shard) -> Charges:
    """What starts that divided the run in another way were charged: all shards bear an equal part of it.

    Those have ended, so what they had in flight counts as lost.
    """
    names = [info.key for info in objects.listing(LEDGERS)]
    same = [name for name in names if (one := shard_named(name)) is not None and one.count == shard.count]
    others = _merged(ledger_at(objects, name) for name in [LEDGER, *names] if name not in same)
    if not others:
        return NOTHING
    ours = _merged(ledger_at(objects, name) for name in same)
    return charges_in({writer: row for writer, row in others.items() if writer not in ours}, ended=True)


def charges_in(ledger: Ledger, *, ended: bool) -> Charges:
    """The sum of a ledger; with `ended`, calls that were in flight count as lost. Raises `Broken`."""
    try:
        charged = [Charges.from_json(dict(row["charged"])) for row in ledger.values()]
        held = [Charges.from_json(dict(row["held"])) for row in ledger.values() if ended]
        return total([*charged, *held])
    except (KeyError, TypeError, ValueError) as error:
        raise Broken(f"a ledger in {RUN} cannot be read ({error!r}): restore it, or delete it") from error


def divided_charges(charges: Charges, by: int) -> Charges:
    """An equal part, rounded up."""
    figures = charges.to_json()
    return Charges.from_json(
        {n: math.ceil(one / by) if isinstance(one, int) else one / by for n, one in figures.items()}
    )


def _merged(ledgers: Iterable[Ledger]) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for ledger in ledgers:
        found |= ledger
    return found
