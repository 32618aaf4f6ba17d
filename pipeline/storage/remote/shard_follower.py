"""The bucket of one shard of a run: the common plan and parts, a journal and a lease of its own, and the common end."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime

import orjson

from pipeline.data import Part
from pipeline.faults import Broken, Halt, UsageError
from pipeline.source import Survey
from pipeline.storage.remote import hydration
from pipeline.storage.remote.follower import PROBES, Follower, at_work, probed
from pipeline.storage.remote.lease import OWNER_FILE, RunLease
from pipeline.storage.remote.objects import PLAN_NAME, RECORDS, SEGMENTS, OutputObjects, chunk_of
from pipeline.storage.remote.records import records_in
from pipeline.storage.remote.segments import JournalPlace, rows_of_segment
from pipeline.storage.remote.shards import (
    Patience,
    Shard,
    acquire_shard,
    charged_elsewhere,
    charges_in,
    close_others,
    divided_charges,
    portion_of,
    whole_ledger,
)
from pipeline.storage.run_folder import MANIFEST, PLAN, SUCCESS, RunFolder
from pipeline.store.object_store import AlreadyThere, Changed
from pipeline.totals.ledger import Charges

_TRIES = 5  # each lost to another shard that ends the run

_SAME = ("status", "run", "parts", "charged")
"""What two manifests of the same end have in common. They differ in times, and in what each machine calls its input."""


class ShardFollower(Follower):
    """The bucket of a run of which this process works on one shard, whose lease it holds."""

    def __init__(
        self, objects: OutputObjects, folder: RunFolder, lease: RunLease, shard: Shard, patience: Patience
    ) -> None:
        super().__init__(objects, folder, lease, JournalPlace(ledger=shard.ledger))
        self.shard = shard
        self.patience = patience

    def take(self, survey: Survey) -> range:
        """Takes the shard's part of the run over this input, and returns the indices of its chunks."""
        portion = portion_of(self.shard, survey)
        self._place = JournalPlace(portion.rows, self.shard.ledger)
        return portion.chunks

    def has_plan(self) -> bool:
        """Whether the run has a plan, of whichever shard."""
        return self.objects.head(PLAN_NAME) is not None

    def has_same_plan(self, run_id: str) -> bool:
        """Whether the plan is that of this run, and not of one that was begun in its place."""
        plan = self.objects.read(PLAN_NAME)
        try:
            return plan is not None and orjson.loads(plan.data)["run_id"] == run_id
        except (ValueError, KeyError, TypeError):
            return False

    def create_plan(self) -> bool:
        """Uploads the plan of the run folder; False if another shard was first, whose plan then counts."""
        self.lease.require()
        try:
            self.objects.create(PLAN_NAME, (self._folder.run / PLAN).read_bytes())
        except AlreadyThere:
            return False
        return True

    def fill(self) -> None:
        """Replaces what the run folder holds by the shard's part of the bucket."""
        hydration.fill(self.objects, self._folder, self.shard)
        self.own_folder()

    def save_plan(self) -> None:
        """Does nothing but to own the run folder: the plan is common, and is never replaced by a shard."""
        self.lease.require()
        self.own_folder()

    def charged_elsewhere(self) -> Charges:
        """What this shard bears of the cost of starts that divided the run in another way."""
        return divided_charges(charged_elsewhere(self.objects, self.shard), self.shard.count)

    def end_shard(self, parts: Collection[Part]) -> None:
        """Uploads what is left of the journal; what killed starts left beside these parts is removed."""
        with at_work():
            self._end_journal(parts)

    def sealed(self, chunks: int) -> tuple[int, list[Part]]:
        """How many chunks of the run are sealed, and their parts, in order, once all `chunks` are."""
        with at_work():
            names = [info.key for info in self.objects.listing(RECORDS)]
            if len(names) < chunks:
                return len(names), []
            return chunks, sorted(records_in(self.objects, names), key=lambda part: part.chunk)

    def charged(self) -> Charges:
        """What the whole run was charged, as far as its shards have uploaded it."""
        with at_work():
            return charges_in(whole_ledger(self.objects), ended=False)

    def conclude(self, manifest: bytes, parts: Collection[Part], survey: Survey, *, success: bool) -> None:
        """Ends the run over this input, by the parts of all its chunks. Another shard may do it at the same time.

        The one that comes last has seen what all others were charged: its manifest replaces an earlier one.
        """
        with at_work():
            self.lease.renew()
            self._put_manifest(manifest)
            if not success:
                self.objects.remove(SUCCESS)
                return
            self.objects.create(SUCCESS, b"")
            left = {chunk_of(info.key) for info in self.objects.listing(RECORDS)}
            if left != {part.chunk for part in parts}:  # meanwhile a shard has begun to ask failed rows again
                self.objects.remove(SUCCESS)
                return
            self._remove_segments(survey)

    def _put_manifest(self, manifest: bytes) -> None:
        for _ in range(_TRIES):
            found = self.objects.read(MANIFEST)
            if found is not None and _ends_the_same(found.data, manifest):
                return
            with suppress(Changed, AlreadyThere):
                self.objects.replace(MANIFEST, manifest, found.info.version if found else None)
                return
        raise Broken(f"{self.objects.address}/{MANIFEST} is written again and again by somebody else; run again")

    def _remove_segments(self, survey: Survey) -> None:
        """Removes the segments of starts that divided the run in another way, of which all rows are sealed.

        Shards of the same division remove theirs themselves.
        """
        count = self.shard.count
        current = [portion_of(Shard(index, count), survey).rows for index in range(count)]
        for info in list(self.objects.listing(SEGMENTS)):
            if rows_of_segment(info.key) not in current:
                self.objects.remove(info.key)


def _ends_the_same(one: bytes, other: bytes) -> bool:
    try:
        first, second = orjson.loads(one), orjson.loads(other)
        return all(first[name] == second[name] for name in _SAME)
    except (ValueError, KeyError, TypeError):
        return False


@contextmanager
def following_shard(
    objects: OutputObjects, folder: RunFolder, shard: Shard, patience: Patience
) -> Iterator[ShardFollower]:
    """The bucket that follows the locked run folder of a shard, which then holds the shard's part of it.

    Raises `UsageError` if the bucket cannot be written, or holds other things, and `OutputInUse` if another process
    works on the shard, or starts that divide the run in another way.
    """
    place = f"{PROBES}{shard.name}/"

    def now() -> datetime:
        return probed(objects, place)

    owner_file = folder.output / OWNER_FILE
    known = owner_file.read_text(encoding="ascii") if owner_file.is_file() else None
    lease, before = acquire_shard(objects, shard, known, now, patience)
    try:
        lease.keep()
        close_others(objects, shard, now())
        hydration.require_ours(objects)
        for info in list(objects.listing(place)):
            objects.remove(info.key)
        follower = ShardFollower(objects, folder, lease, shard, patience)
        if known is not None and before in (None, known):
            hydration.catch_up(objects, folder, shard)
            follower.own_folder()
        else:
            follower.fill()
        yield follower
    finally:
        with suppress(Halt, UsageError):
            lease.release()
