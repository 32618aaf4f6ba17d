"""Makes every reply durable before anything else happens to it.

SQLite in WAL mode with `synchronous=FULL`: one transaction per tick, from one thread at a time. A reply is durable one
tick and one sync after it was put; `kill -9` loses at most the replies of one tick, and a power cut loses no more.
Entries stay here until their chunk is sealed as a Parquet part; then the part is recorded and its entries are deleted,
in small transactions, and SQLite reuses their space.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Any

import anyio
import orjson
from anyio import to_thread

from pipeline.data import Entry, Part
from pipeline.faults import Broken
from pipeline.job.turns import Turn
from pipeline.storage import unfinished_rows
from pipeline.storage.codec import encode
from pipeline.storage.durable import FILES, FileSystem
from pipeline.storage.journal_database import JournalDatabase, Stored, broken, insert
from pipeline.storage.journal_reader import entries_in, opened, parts_in, recorded_in, turns_in
from pipeline.storage.submissions import SubmissionBook
from pipeline.totals import ledger
from pipeline.totals.ledger import NOTHING, Charges

TICK_S = 0.01
"""How long replies are collected before they are committed together, in seconds: a sync costs milliseconds."""

MAX_PENDING = 20_000
"""Uncommitted replies beyond which `put` makes its callers wait."""

MAX_PENDING_BYTES = 64 << 20
"""Bytes of uncommitted replies beyond which `room` makes its callers wait."""

_FORGET = "DELETE FROM entries WHERE ordinal >= ? AND ordinal < ?"
_FORGET_ROWS = 1000  # per transaction: commits of new replies wait for the lock no longer than this takes


class Journal:
    """The journal of one run, opened by one process at a time.

    `put`, `flush` and `keep_writing` belong to the event loop; the rest may be called from any thread.
    A disk error is raised as `Broken` and never retried: every later write raises it again.
    """

    def __init__(self, path: Path, files: FileSystem = FILES) -> None:
        self._path = path
        self._files = files
        # Two locks, so that the event loop never waits for a sync: `_committing` is held for a commit, by worker
        # threads; `_handing_over` only while the pending lists are swapped or appended to.
        self._committing = Lock()
        self._handing_over = Lock()
        self._pending: list[Stored] = []
        self._pending_bytes = 0
        self._pending_turns: list[tuple[int, int, Turn]] = []
        self._unfinished: set[int] = set()
        """Rows that have turns in this journal."""
        self._writer = uuid.uuid4().hex
        self._charged, self._held = NOTHING, NOTHING
        self._holds = self._holds_committed = 0
        self._ledger_written: tuple[Charges, Charges] = (NOTHING, NOTHING)
        self._put = 0
        self._committed = 0
        self._news = anyio.Event()
        self._progress = anyio.Event()
        self._database = JournalDatabase(path, files)
        try:
            self._forget_sealed()
            # Holds that an earlier writer left behind belong to calls that were in flight when it was killed.
            with self._database.transaction() as database:
                ledger.count_lost(database, self._writer)
        except Broken:
            self._database.close()
            raise

    # On the event loop.

    def charge(self, one: Charges) -> None:
        """Adds an answered call to the ledger; durable within a tick, and no later than the entry of its row."""
        self._charged += one
        self._news.set()

    def hold(self, held: Charges) -> None:
        """Sets the amount reserved for calls in flight, which counts as spent after a kill. Durable within a tick."""
        self._held = held
        self._holds += 1
        self._news.set()

    async def secured(self) -> None:
        """Returns when the current hold is durable."""
        until = self._holds
        while self._holds_committed < until:
            await self._next_commit()

    async def put(self, ordinal: int, entry: Entry) -> None:
        """Queues an entry; it is durable within a tick. Waits only when the disk cannot keep up."""
        self._database.require_sound()
        row = (ordinal, *encode(entry))
        with self._handing_over:  # otherwise a commit could swap the list between our reading and appending
            self._pending.append(row)
            self._pending_bytes += len(row[2])
        self._put += 1  # on the event loop alone, so it needs no lock
        self._news.set()
        while len(self._pending) > MAX_PENDING:
            await self._next_commit()

    async def room(self) -> None:
        """Returns when uncommitted replies take little enough memory for more requests to be sent."""
        # Apart from `put`, which must not wait for long: a reply that is here is paid for, and belongs on the disk.
        while self._pending_bytes > MAX_PENDING_BYTES:
            await self._next_commit()

    async def put_turn(self, ordinal: int, number: int, turn: Turn) -> None:
        """Queues an answer of an unfinished row: durable within a tick, deleted when the row's entry is written."""
        self._database.require_sound()
        with self._handing_over:
            self._pending_turns.append((ordinal, number, turn))
            self._unfinished.add(ordinal)
        self._news.set()
        while len(self._pending_turns) > MAX_PENDING:
            await self._next_commit()

    async def flush(self) -> None:
        """Returns when everything put before the call is durable."""
        until = self._put
        while self._committed < until:
            await self._next_commit()

    async def keep_writing(self) -> None:
        """Commits what was put, one transaction per tick, until it is cancelled or the disk fails."""
        while self._database.broken is None:
            await self._news.wait()
            await anyio.sleep(TICK_S)
            # Replaced before the commit: what is put while it runs sets the new event and gets a tick of its own.
            self._news = anyio.Event()
            with suppress(Broken):  # stored, and raised by `put` and `flush`
                await to_thread.run_sync(self.commit)
            self._progress.set()
            self._progress = anyio.Event()

    async def _next_commit(self) -> None:
        self._database.require_sound()
        await self._progress.wait()

    # On any thread.

    def commit(self) -> None:
        """Commits everything that is pending now."""
        with self._committing:
            with self._handing_over:
                pending, self._pending = self._pending, []
                kept, self._pending_turns = self._pending_turns, []
                finished = self._unfinished.intersection(ordinal for ordinal, *_ in pending) if self._unfinished else ()
                self._unfinished.difference_update(finished)
            # Read after the entries were taken: a call is charged before its entry is put, so this includes them all.
            holds, owed = self._holds, (self._charged, self._held)
            if pending or kept or owed != self._ledger_written:
                with self._database.transaction() as database:
                    insert(database, pending)
                    unfinished_rows.write(database, kept)
                    unfinished_rows.drop(database, finished)
                    if owed != self._ledger_written:
                        ledger.write(database, self._writer, *owed)
                # Only now: the counts that `flush` and `room` wait for must not run ahead of the commit.
                self._committed += len(pending)
                with self._handing_over:
                    self._pending_bytes -= sum(len(said) for _, _, said in pending if said)
                self._ledger_written = owed
            self._holds_committed = holds

    def recorded(self, first: int, rows: int) -> set[int]:
        """The ordinals of `[first, first + rows)` that have an entry."""
        return recorded_in(self._path, first, rows)

    def entries(self, first: int, rows: int) -> Iterator[tuple[int, Entry]]:
        """The entries of `[first, first + rows)`, in order; read lazily to bound memory."""
        return entries_in(self._path, first, rows)

    def turns(self, first: int, rows: int) -> dict[int, dict[int, Turn]]:
        """The stored answers of unfinished rows in `[first, first + rows)`."""
        found = turns_in(self._path, first, rows)
        with self._handing_over:
            self._unfinished |= found.keys()
        return found

    def charged(self) -> Charges:
        """What the run was charged, over all its starts, as far as this journal records it."""
        with opened(self._path) as database:
            others = ledger.read(database)
        others.pop(self._writer, None)  # our own total in memory is ahead of the committed one
        return ledger.total(others.values()) + self._charged

    def count(self) -> int:
        """The number of entries not sealed yet."""
        with opened(self._path) as database:
            return int(database.execute("SELECT count(*) FROM entries").fetchone()[0])

    def parts(self) -> list[Part]:
        """The sealed chunks, in order."""
        return parts_in(self._path)

    def seal(self, part: Part) -> None:
        """Records a part that is durable on disk, then deletes its entries. Harmless when repeated."""
        # Two steps: a kill between them leaves entries beside their part, which the next open deletes.
        with self._database.transaction() as database:
            database.execute("INSERT OR REPLACE INTO parts VALUES (?, ?)", (part.chunk, orjson.dumps(asdict(part))))
        self.discard(part)

    def discard(self, part: Part) -> None:
        """Deletes the entries of a recorded part, durably."""
        for start in range(part.first, part.first + part.rows, _FORGET_ROWS):
            end = min(start + _FORGET_ROWS, part.first + part.rows)
            with self._database.transaction() as database:
                database.execute(_FORGET, (start, end))
                unfinished_rows.drop_range(database, start, end)

    def absorb(self, path: Path) -> Charges:
        """Copies the entries of another journal that has no writer any more, then removes its file.

        Returns what its writers were charged, including calls that were in flight when they ended.
        """
        with self._database.attached(path), self._database.transaction() as database:
            writers = ledger.read(database, "other")
            ledger.take_over(database, "other")
            unfinished_rows.take_over(database, "other")
            ledger.count_lost(database, self._writer)
            known = ledger.read(database)
            if database.execute("SELECT 1 FROM other.sqlite_master WHERE name = 'entries'").fetchone():
                # Copied before, if a kill came between the copy and the removal; ours then stay.
                database.execute("INSERT OR IGNORE INTO main.entries SELECT * FROM other.entries")
        self._forget_sealed()
        try:
            self._files.remove([path])  # before its WAL: without that, it may be corrupt
            self._files.remove(path.parent.glob(f"{path.name}-*"))
        except OSError as error:
            raise broken(error) from error
        return ledger.total(known[writer] for writer in writers)

    def restore(
        self,
        parts: Iterable[Part],
        entries: Iterable[Sequence[Stored]],
        charged: Mapping[str, Mapping[str, Any]],
        *,
        ended: bool = True,
    ) -> None:
        """Puts into an empty journal what another one held: sealed chunks, entries, later ones in place of earlier.

        `charged` has what each writer was charged and what it held for calls in flight, which count as lost if the
        writers have `ended`. Raises `ValueError` if that has another form.
        """
        with self._database.transaction() as database:
            rows = [(part.chunk, orjson.dumps(asdict(part))) for part in parts]
            database.executemany("INSERT OR REPLACE INTO parts VALUES (?, ?)", rows)
            ledger.restore(database, charged)
            if ended:
                ledger.count_lost(database, self._writer)
        for some in entries:
            with self._database.transaction() as database:
                insert(database, some)
        self._forget_sealed()

    def unseal(self, chunk: int, entries: Iterable[tuple[int, Entry]]) -> None:
        """Reopens a sealed chunk with the entries to keep, in one transaction, so that nothing is lost."""
        with self._database.transaction() as database:
            insert(database, ((ordinal, *encode(entry)) for ordinal, entry in entries))
            database.execute("DELETE FROM parts WHERE chunk = ?", (chunk,))

    def record(self, entries: Iterable[tuple[int, Entry]], turns: Sequence[tuple[int, int, Turn]] = ()) -> None:
        """Records entries, and answers of unfinished rows, at once: durable in one transaction when this returns."""
        rows = [(ordinal, *encode(entry)) for ordinal, entry in entries]
        with self._database.transaction() as database:
            insert(database, rows)
            unfinished_rows.write(database, turns)
            unfinished_rows.drop(database, [ordinal for ordinal, *_ in rows])

    @property
    def submissions(self) -> SubmissionBook:
        """The batch jobs that the run has submitted."""
        return SubmissionBook(self._database, self._path)

    def forget(self, ordinals: Sequence[int]) -> None:
        """Deletes entries, so that their rows are asked again."""
        with self._database.transaction() as database:
            database.executemany("DELETE FROM entries WHERE ordinal = ?", [(ordinal,) for ordinal in ordinals])
            unfinished_rows.drop(database, ordinals)

    def close(self) -> None:
        """Commits what is pending and closes the files."""
        try:
            if self._database.broken is None:
                self.commit()
        finally:
            self._database.close()

    def _forget_sealed(self) -> None:
        """Deletes the entries of recorded parts that an interrupted `seal` left behind."""
        sealed = [(part.first, part.first + part.rows) for part in self.parts()]
        with self._database.transaction() as database:
            database.executemany(_FORGET, sealed)
            for first, end in sealed:
                unfinished_rows.drop_range(database, first, end)
