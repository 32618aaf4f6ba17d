"""A bucket that follows a run folder: parts, their records, the journal's segments, the plan and the manifest.

The order of the writes is that of docs/object-stores.md. A machine that is killed between any two of them leaves
nothing that another one cannot go on with; one that is only slow changes nothing once its lease was taken over.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from pipeline.data import Part, PartFile, is_part_name
from pipeline.faults import Broken, Halt, ProviderUnusable, UsageError
from pipeline.storage.durable import PRIVATE_FILE
from pipeline.storage.kept_replies import replies_path
from pipeline.storage.remote import hydration
from pipeline.storage.remote.lease import OWNER_FILE, RunLease, acquire
from pipeline.storage.remote.objects import (
    BATCH,
    DATA,
    INTENTS,
    KEPT_REPLIES,
    LEDGER,
    LEDGERS,
    PLAN_NAME,
    RECORDS,
    SEGMENTS,
    OutputObjects,
    chunk_of,
    ended_name,
    intent_name,
    record_name,
    replies_name,
    submission_name,
)
from pipeline.storage.remote.records import (
    RemotePartCheck,
    intended,
    packed,
    stamped,
    unpacked,
)
from pipeline.storage.remote.segments import JournalPlace, Segments
from pipeline.storage.remote.shards import close_others
from pipeline.storage.run_folder import ADDRESS, MANIFEST, PAGE, PLAN, RUN, SUCCESS, RunFolder
from pipeline.storage.submissions import Submission
from pipeline.store.object_store import AlreadyThere, Changed

PROBES = f"{RUN}/probes/"
"""Where objects are created that tell whether the output may be written, and what time the store has."""

_TRIES = 5  # each lost to another writer or starter, of which one has won


class Follower:
    """The bucket of one opened run, whose lease this process holds. Methods may be called from any thread."""

    def __init__(
        self, objects: OutputObjects, folder: RunFolder, lease: RunLease, place: JournalPlace | None = None
    ) -> None:
        self.objects = objects
        self.lease = lease
        self._place = place or JournalPlace()
        self._folder = folder
        self._segments: Segments | None = None
        manifest = objects.head(MANIFEST)
        self._manifest = manifest.version if manifest else None

    @property
    def part_check(self) -> RemotePartCheck:
        """The check of the parts in the bucket."""
        return RemotePartCheck(self.objects)

    def save_plan(self) -> None:
        """Uploads the plan as the run folder has it: created, or in place of the one that was read."""
        self.lease.require()
        self.own_folder()
        content = (self._folder.run / PLAN).read_bytes()
        found = self.objects.read(PLAN_NAME)
        if found is None or found.data != content:
            self._conditional(PLAN_NAME, content, found.info.version if found else None)

    def own_folder(self) -> None:
        """Marks the run folder as the one that holds what the bucket does, and is ahead of it from now on."""
        path = self._folder.output / OWNER_FILE
        self._folder.files.write_atomic(path, self.lease.owner.encode(), mode=PRIVATE_FILE)
        self._folder.files.write_atomic(self._folder.run / ADDRESS, self.objects.address.encode(), mode=PRIVATE_FILE)

    def follow(self, chunk_of: Callable[[int], int], trouble: Callable[[str], None]) -> None:
        """Uploads the entries of the journal, and then what is new every few seconds.

        `chunk_of` says in which chunk a row is. `trouble` is called with a sentence, from another thread, when the
        store does not take them.
        """
        self._segments = self._segments_of(chunk_of)
        self._segments.begin()
        self._segments.keep(trouble)

    def upload_journal(self) -> None:
        """Uploads what is new in the journal now."""
        if self._segments is not None:
            self._segments.upload()

    def hurry(self) -> None:
        """Has what is new in the journal uploaded at once, in a thread, without waiting for it."""
        if self._segments is not None:
            self._segments.hurry()

    def publish(self, part: Part) -> Part:
        """Uploads a part that is on the local disk, and seals its chunk. Returns the part that counts.

        That is another one if another machine was first: its bytes are in the bucket. Ours are removed from this
        machine in any case, whose disk need not have room for the dataset.
        """
        with at_work():
            counted = self._published(part)
        self._forget(part)
        if self._segments is not None:
            self._segments.sealed(part.chunk)
        return counted

    def _forget(self, part: Part) -> None:
        """Removes the files of a part from this machine."""
        output = self._folder.output
        ours = [*(output / file.path for file in part.files), replies_path(output, part.chunk)]
        self._folder.files.remove(path for path in ours if path.is_file())

    def replace_part(self, part: Part, over: Part) -> Part:
        """Uploads a part that was made again of the same replies, in place of `over`. Returns it as it is recorded.

        The replies go first and the record last. A machine that is killed between two files leaves a part that is
        reported as changed; its replies are still there.
        """
        with at_work():
            counted = over if self._has(part, over) else self._replaced(part, over)
        self._forget(part)
        return counted

    def _has(self, part: Part, recorded: Part) -> bool:
        """Whether a part is in the bucket already, as it was recorded."""
        same = [(file.path, file.sha256) for file in part.files] == [(one.path, one.sha256) for one in recorded.files]
        return same and all(
            (found := self.objects.head(file.path)) is not None and found.version == file.stamp
            for file in recorded.files
        )

    def _replaced(self, part: Part, over: Part) -> Part:
        self.lease.require()
        with suppress(AlreadyThere):  # of a start that was killed, as below
            self.objects.create(intent_name(part.chunk, part.sha256), packed(stamped(part, [""] * len(part.files))))
        with suppress(AlreadyThere):
            replies = replies_path(self._folder.output, part.chunk)
            self.objects.create(replies_name(part.chunk, part.sha256), replies)
        stamps = []
        for file in part.files:
            found = self.objects.head(file.path)
            version = found.version if found else None
            stamps.append(self._conditional(file.path, self._folder.output / file.path, version))
        recorded, name = stamped(part, stamps), record_name(part.chunk)
        found = self.objects.head(name)
        self._conditional(name, packed(recorded), found.version if found else None)
        self.lease.require()
        for surplus in {file.path for file in over.files} - {file.path for file in part.files}:
            self.objects.remove(surplus)
        self.objects.remove(intent_name(part.chunk, part.sha256))
        if over.sha256 != part.sha256:
            self.objects.remove(replies_name(over.chunk, over.sha256))
        return recorded

    def require_replies(self, parts: Collection[Part]) -> None:
        """Raises `Broken` when the bucket does not have the kept replies of a part."""
        found = {info.key for info in self.objects.listing(KEPT_REPLIES)}
        for part in parts:
            if (name := replies_name(part.chunk, part.sha256)) not in found:
                raise Broken(f"{self.objects.address}/{name} is missing; restore it, or use --fresh to ask again")

    def publish_submission(self, submission: Submission) -> None:
        """Uploads the record of a batch job, before it is created: another machine then adopts the job."""
        with at_work():
            self.lease.require()
            try:
                self.objects.create(submission_name(submission.wave, submission.number), submission.to_json())
            except AlreadyThere:
                self.lease.renew()  # says who has taken over
                raise Broken(
                    f"{self.objects.address}: another run has submitted {submission.name}; run again"
                ) from None

    def publish_ended(self, submission: Submission) -> None:
        """Uploads that the answers of a batch job are recorded, after what is new in the journal."""
        with at_work():
            self.upload_journal()
            self.lease.require()
            with suppress(AlreadyThere):  # of a machine that was killed before it had told its own journal
                self.objects.create(ended_name(submission.wave, submission.number), submission.to_json())

    def withdraw(self, parts: Sequence[Part]) -> None:
        """Takes parts out of the bucket whose rows are in the journal again.

        Call it before any of them is asked. The rows are uploaded first; then the record goes, then what it sealed.
        """
        if not parts:
            return
        self._segments_of(lambda ordinal: ordinal).upload()
        for part in parts:
            self.lease.require()
            self.objects.remove(record_name(part.chunk))
            for file in part.files:
                self.objects.remove(file.path)
            self.objects.remove(replies_name(part.chunk, part.sha256))

    def fetch_replies(self, parts: Sequence[Part]) -> None:
        """Downloads the kept replies of parts that another machine sealed."""
        for part in parts:
            path = replies_path(self._folder.output, part.chunk)
            if not path.is_file() and self.objects.head(name := replies_name(part.chunk, part.sha256)) is not None:
                self._folder.files.make_private(path.parent)
                self.objects.download(name, path)

    def fetch_files(self, files: Iterable[PartFile]) -> None:
        """Downloads files of a part."""
        for file in files:
            self.objects.download(file.path, self._folder.output / file.path)

    def is_marked(self) -> bool:
        """Whether the bucket has the success marker, and the manifest beside it."""
        return self._manifest is not None and self.objects.head(SUCCESS) is not None

    def unfinish(self) -> None:
        """Removes the success marker while the dataset is being changed."""
        self.lease.require()
        self.objects.remove(SUCCESS)

    def finish(self, manifest: bytes, parts: Collection[Part], *, success: bool) -> None:
        """Uploads what is left of the journal, the manifest, and the success marker of a complete dataset.

        What killed starts left beside these parts is removed.
        """
        with at_work():
            self._end_journal(parts)
            self.objects.remove(SUCCESS)
            self._manifest = self._conditional(MANIFEST, manifest, self._manifest)
            if success:
                self.objects.create(SUCCESS, b"")

    def _end_journal(self, parts: Collection[Part]) -> None:
        """Uploads what is left of the journal, and removes what killed starts left beside these parts."""
        if self._segments is not None:
            self._segments.end()
            self._segments.upload()
        self.lease.renew()  # by a condition: nothing after this happens if another run has taken over
        self._sweep(parts)

    def _sweep(self, parts: Collection[Part]) -> None:
        """Removes the intents and the kept replies of other bytes than those that are sealed."""
        sealed = {part.chunk for part in parts}
        kept = {replies_name(part.chunk, part.sha256) for part in parts}
        for info in [*self.objects.listing(INTENTS), *self.objects.listing(KEPT_REPLIES)]:
            if chunk_of(info.key) in sealed and info.key not in kept:
                self.objects.remove(info.key)

    def clear(self) -> None:
        """Removes what runs wrote, in the order of `RunFolder.clear`; the lease stays."""
        self.lease.require()
        for name in (SUCCESS, MANIFEST, PAGE):
            self.objects.remove(name)
        for prefix in (DATA, INTENTS, RECORDS, SEGMENTS, KEPT_REPLIES, LEDGERS, BATCH):
            for info in list(self.objects.listing(prefix)):
                if prefix != DATA or is_part_name(info.key.removeprefix(DATA)):
                    self.objects.remove(info.key)
            self.lease.require()
        self.objects.remove(LEDGER)
        self.objects.remove(PLAN_NAME)
        self._manifest = None

    def end(self) -> None:
        """Ends the upload of the journal, which is about to be closed."""
        if self._segments is not None:
            self._segments.end()

    def _segments_of(self, chunk_of: Callable[[int], int]) -> Segments:
        return Segments(self.objects, self.lease, self._folder.journal, chunk_of, self._place)

    def _published(self, part: Part) -> Part:
        self.lease.require()
        bare = stamped(part, [""] * len(part.files))
        replies = replies_path(self._folder.output, part.chunk)
        with suppress(AlreadyThere):  # of another machine that had the same bytes for the part
            self.objects.create(intent_name(part.chunk, part.sha256), packed(bare))
        with suppress(AlreadyThere):
            if replies.is_file():
                self.objects.create(replies_name(part.chunk, part.sha256), replies)
        for _ in range(_TRIES):
            try:
                stamps = [self._file(part, number) for number in range(len(part.files))]
                break
            except AlreadyThere:
                if (counted := self._winner(part.chunk)) is not None:
                    return counted
                # Its writer was killed before the last file of a part of several, and no other can write the rest.
                self.lease.renew()
                if intended(self.objects, part.chunk) is None and self.objects.head(record_name(part.chunk)) is None:
                    for info in list(self.objects.listing(DATA)):
                        if chunk_of(info.key) == part.chunk:
                            self.objects.remove(info.key)
        else:
            raise Broken(f"{self.objects.address}: something else writes {part.name} again and again; run again")
        recorded = stamped(part, stamps)
        try:
            self.objects.create(record_name(part.chunk), packed(recorded))
        except AlreadyThere:
            return self._winner(part.chunk) or recorded
        self.objects.remove(intent_name(part.chunk, part.sha256))
        return recorded

    def _file(self, part: Part, number: int) -> str:
        """Uploads a file of a part. The first one decides whose part it is."""
        file = part.files[number]
        path = self._folder.output / file.path
        try:
            return self.objects.create(file.path, path)
        except AlreadyThere:
            if number == 0:
                raise
            self.objects.remove(file.path)  # of a writer that has lost the first file
            return self.objects.create(file.path, path)

    def _winner(self, chunk: int) -> Part | None:
        """The part that another machine sealed, or had uploaded whole when it was killed."""
        name = record_name(chunk)
        if (found := self.objects.read(name)) is not None:
            return unpacked(self.objects, name, found.data)
        part = intended(self.objects, chunk)
        if part is None:
            return None
        try:
            self.objects.create(name, packed(part))
        except AlreadyThere:
            return self._winner(chunk)
        return part

    def _conditional(self, name: str, content: bytes | Path, version: str | None) -> str:
        try:
            return self.objects.replace(name, content, version)
        except (Changed, AlreadyThere):
            self.lease.renew()  # says who has taken over
            message = f"{self.objects.address}/{name} was written by somebody else while this run worked on it"
            raise Broken(f"{message}; run again") from None


@contextmanager
def at_work() -> Iterator[None]:
    """A block in which a bucket that is gone, or may not be written any more, stops the run as a broken disk does."""
    try:
        yield
    except (ProviderUnusable, UsageError) as error:
        raise Broken(f"{error}; what is not uploaded stays on this machine: run again when that is repaired") from error


@contextmanager
def following(objects: OutputObjects | None, folder: RunFolder, *, fresh: bool) -> Iterator[Follower | None]:
    """The bucket that follows a locked run folder, which then holds what the bucket does; None without a bucket.

    With `fresh` nothing is taken from the bucket. Raises `UsageError` if the bucket cannot be written, or holds other
    things, and `OutputInUse` if another run works on it.
    """
    if objects is None:
        yield None
        return
    now = probed(objects)
    owner_file = folder.output / OWNER_FILE
    known = owner_file.read_text(encoding="ascii") if owner_file.is_file() else None
    lease, before = acquire(objects, known, now)
    try:
        lease.keep()
        close_others(objects, None, now)
        hydration.require_ours(objects)
        for info in list(objects.listing(PROBES)):
            objects.remove(info.key)
        follower = Follower(objects, folder, lease)
        if not fresh:
            # Was this folder the last to work on the output, it holds all that the bucket does, and the last seconds.
            if known is not None and before in (None, known):
                hydration.catch_up(objects, folder)
            else:
                hydration.fill(objects, folder)
            follower.own_folder()
        yield follower
    finally:
        with suppress(Halt, UsageError):
            lease.release()


@contextmanager
def leased(objects: OutputObjects) -> Iterator[RunLease]:
    """The lease of an output for a command that is no run. Raises as `following`."""
    lease, _ = acquire(objects, None, probed(objects))
    try:
        lease.keep()
        yield lease
    finally:
        with suppress(Halt, UsageError):
            lease.release()


def probed(objects: OutputObjects, place: str = PROBES) -> datetime:
    """The store's time, from an object that was created, read and deleted: what a run must be allowed to do."""
    try:
        for _ in range(_TRIES):  # a run that takes the lease meanwhile removes the probes of killed ones
            name = f"{place}{uuid.uuid4().hex}"
            objects.create(name, b"")
            found = objects.head(name)
            objects.remove(name)
            if found is not None:
                return found.modified
    except ProviderUnusable as fault:
        raise UsageError(f"{objects.address} cannot be written: {fault.message}; {objects.permissions}") from None
    except Broken as fault:
        raise UsageError(f"{objects.address} cannot be written: {fault.message}") from None
    raise UsageError(f"{objects.address}: an object that was created there is gone at once, {_TRIES} times in a row")
