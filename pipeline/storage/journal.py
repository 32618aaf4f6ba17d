"""Makes every reply durable before anything else happens to it.

SQLite in WAL mode with `synchronous=FULL`: one transaction per tick, from one thread at a time. A reply is durable one
tick and one sync after it was put; `kill -9` loses at most the replies of one tick, and a power cut loses no more.
Entries stay here until their chunk is sealed as a Parquet part; then the part is recorded and its entries are deleted,
in small transactions, and SQLite reuses their space.
"""

from __future__ import annotations

import os
import sqlite3
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import TypeVar

import anyio
import orjson
from anyio import to_thread

from pipeline import ledger
from pipeline.data import Entry, Part
from pipeline.faults import Broken
from pipeline.ledger import NOTHING, Charges
from pipeline.policy.turns import Turn
from pipeline.storage import unfinished_rows
from pipeline.storage.codec import decode, encode
from pipeline.storage.durable import FILES, PRIVATE_FILE, FileSystem

TICK_S = 0.01
"""How long replies are collected before they are committed together, in seconds: a sync costs milliseconds."""

MAX_PENDING = 20_000
"""Uncommitted replies beyond which `put` makes its callers wait."""

MAX_PENDING_BYTES = 64 << 20
"""Bytes of uncommitted replies beyond which `room` makes its callers wait."""

_FORGET = "DELETE FROM entries WHERE ordinal >= ? AND ordinal < ?"
_FORGET_ROWS = 1000  # per transaction: commits of new replies wait for the lock no longer than this takes
_INSERT_ROWS = 500  # 1,500 parameters; SQLite allows 32,766 in a statement
_INSERT_BYTES = 16 << 20

_SCHEMA = (
    """
CREATE TABLE IF NOT EXISTS entries (ordinal INTEGER PRIMARY KEY, meta BLOB NOT NULL, body BLOB) STRICT;
CREATE TABLE IF NOT EXISTS parts (chunk INTEGER PRIMARY KEY, part BLOB NOT NULL) STRICT;
"""
    + ledger.SCHEMA
    + unfinished_rows.SCHEMA
)

_T = TypeVar("_T")
_Stored = tuple[int, bytes, bytes | None]


class Journal:
    """The journal of one run, opened by one process at a time.

    `put`, `flush` and `keep_writing` belong to the event loop; the rest may be called from any thread.
    A disk error is raised as `Broken` and never retried: every later write raises it again.
    """

    def __init__(self, path: Path, files: FileSystem = FILES) -> None:
        _make(path, files)
        self._path = path
        self._files = files
        # Two locks, so that the event loop never waits for a sync: `_writing` is held for a transaction, by worker
        # threads; `_handing_over` only while the pending lists are swapped or appended to.
        self._writing = Lock()
        self._handing_over = Lock()
        self._pending: list[_Stored] = []
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
        self._broken: Broken | None = None
        self._database = _guarded(lambda: _open(path))
        try:
            self._forget_sealed()
            # Holds that an earlier writer left behind belong to calls that were in flight when it was killed.
            with self._writing, self._transaction():
                ledger.count_lost(self._database, self._writer)
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
        if self._broken is not None:
            raise self._broken
        row = (ordinal, *encode(entry))
        with self._handing_over:  # otherwise a commit could swap the list between our reading and appending
            self._pending.append(row)
            self._pending_bytes += len(row[2])
        self._put += 1
        self._news.set()
        while len(self._pending) > MAX_PENDING:
            await self._next_commit()

    async def room(self) -> None:
        """Returns when uncommitted replies take little enough memory for more requests to be sent."""
        while self._pending_bytes > MAX_PENDING_BYTES:
            await self._next_commit()

    async def put_turn(self, ordinal: int, number: int, turn: Turn) -> None:
        """Queues an answer of an unfinished row: durable within a tick, deleted when the row's entry is written."""
        if self._broken is not None:
            raise self._broken
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
        while self._broken is None:
            await self._news.wait()
            await anyio.sleep(TICK_S)
            # Replaced before the commit: what is put while it runs sets the new event and gets a tick of its own.
            self._news = anyio.Event()
            with suppress(Broken):  # stored, and raised by `put` and `flush`
                await to_thread.run_sync(self.commit)
            self._progress.set()
            self._progress = anyio.Event()

    async def _next_commit(self) -> None:
        if self._broken is not None:
            raise self._broken
        await self._progress.wait()

    # On any thread.

    def commit(self) -> None:
        """Commits everything that is pending now."""
        with self._writing:
            with self._handing_over:
                pending, self._pending = self._pending, []
                kept, self._pending_turns = self._pending_turns, []
                finished = self._unfinished.intersection(ordinal for ordinal, *_ in pending) if self._unfinished else ()
                self._unfinished.difference_update(finished)
            # Read after the entries were taken: a call is charged before its entry is put, so this includes them all.
            holds, owed = self._holds, (self._charged, self._held)
            if pending or kept or owed != self._ledger_written:
                with self._transaction():
                    self._insert(pending)
                    unfinished_rows.write(self._database, kept)
                    unfinished_rows.drop(self._database, finished)
                    if owed != self._ledger_written:
                        ledger.write(self._database, self._writer, *owed)
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
        with _reading(self._path) as database:
            others = ledger.read(database)
        others.pop(self._writer, None)  # our own total in memory is ahead of the committed one
        return ledger.total(others.values()) + self._charged

    def count(self) -> int:
        """The number of entries not sealed yet."""
        with _reading(self._path) as database:
            return int(database.execute("SELECT count(*) FROM entries").fetchone()[0])

    def parts(self) -> list[Part]:
        """The sealed chunks, in order."""
        return _parts_in(self._path)

    def seal(self, part: Part) -> None:
        """Records a part that is durable on disk, then deletes its entries. Harmless when repeated."""
        # Two steps: a kill between them leaves entries beside their part, which the next open deletes.
        with self._writing, self._transaction():
            self._database.execute(
                "INSERT OR REPLACE INTO parts VALUES (?, ?)", (part.chunk, orjson.dumps(asdict(part)))
            )
        self.discard(part)

    def discard(self, part: Part) -> None:
        """Deletes the entries of a recorded part, durably."""
        for start in range(part.first, part.first + part.rows, _FORGET_ROWS):
            end = min(start + _FORGET_ROWS, part.first + part.rows)
            with self._writing, self._transaction():
                self._database.execute(_FORGET, (start, end))
                unfinished_rows.drop_range(self._database, start, end)

    def absorb(self, path: Path) -> Charges:
        """Copies the entries of another journal that has no writer any more, then removes its file.

        Returns what its writers were charged, including calls that were in flight when they ended.
        """
        with self._writing, self._attached(path), self._transaction():
            writers = ledger.read(self._database, "other")
            ledger.take_over(self._database, "other")
            unfinished_rows.take_over(self._database, "other")
            ledger.count_lost(self._database, self._writer)
            known = ledger.read(self._database)
            if self._database.execute("SELECT 1 FROM other.sqlite_master WHERE name = 'entries'").fetchone():
                # Copied before, if a kill came between the copy and the removal; ours then stay.
                self._database.execute("INSERT OR IGNORE INTO main.entries SELECT * FROM other.entries")
        self._forget_sealed()
        try:
            self._files.remove([path])  # before its WAL: without that, it may be corrupt
            self._files.remove(path.parent.glob(f"{path.name}-*"))
        except OSError as error:
            raise _broken(error) from error
        return ledger.total(known[writer] for writer in writers)

    def unseal(self, chunk: int, entries: Iterable[tuple[int, Entry]]) -> None:
        """Reopens a sealed chunk with the entries to keep, in one transaction, so that nothing is lost."""
        with self._writing, self._transaction():
            self._insert((ordinal, *encode(entry)) for ordinal, entry in entries)
            self._database.execute("DELETE FROM parts WHERE chunk = ?", (chunk,))

    def forget(self, ordinals: Sequence[int]) -> None:
        """Deletes entries, so that their rows are asked again."""
        with self._writing, self._transaction():
            self._database.executemany("DELETE FROM entries WHERE ordinal = ?", [(ordinal,) for ordinal in ordinals])
            unfinished_rows.drop(self._database, ordinals)

    def close(self) -> None:
        """Commits what is pending and closes the files."""
        try:
            if self._broken is None:
                self.commit()
        finally:
            self._database.close()

    def _forget_sealed(self) -> None:
        """Deletes the entries of recorded parts that an interrupted `seal` left behind."""
        sealed = [(part.first, part.first + part.rows) for part in self.parts()]
        with self._writing, self._transaction():
            self._database.executemany(_FORGET, sealed)
            for first, end in sealed:
                unfinished_rows.drop_range(self._database, first, end)

    def _insert(self, rows: Iterable[_Stored]) -> None:
        # Many rows per statement: each statement releases the GIL, and may wait 5 ms (Python's switch interval)
        # for a busy event loop to get it back. Row by row, seconds of replies piled up before their commit.
        for some in _portions(rows):
            values = ", ".join(["(?, ?, ?)"] * len(some))
            self._database.execute(f"INSERT OR REPLACE INTO entries VALUES {values}", [*chain.from_iterable(some)])  # noqa: S608 - question marks

    @contextmanager
    def _attached(self, path: Path) -> Iterator[None]:
        _guarded(lambda: self._database.execute("ATTACH ? AS other", (str(path),)))
        try:
            yield
        finally:
            _guarded(lambda: self._database.execute("DETACH other"))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """BEGIN IMMEDIATE ... COMMIT; SQLite errors become `Broken`, and after one no transaction is tried again."""
        if self._broken is not None:
            raise self._broken
        try:
            # IMMEDIATE takes the write lock now: upgrading a read transaction later may fail with SQLITE_BUSY at once.
            self._database.execute("BEGIN IMMEDIATE")
            yield
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            self._broken = _broken(error)
            raise self._broken from error
        finally:
            # After an error in the block or in COMMIT. The first error counts; one of the rollback adds nothing.
            if self._database.in_transaction:
                with suppress(sqlite3.Error):
                    self._database.rollback()


def read_state(path: Path) -> tuple[list[Part], int]:
    """The sealed parts and the number of entries not sealed yet; safe while the run is active.

    Includes the journals of its worker processes, which lie beside the run's own.
    Raises `Broken` when a journal is damaged.
    """
    parts = _parts_in(path) if path.exists() else []
    return parts, sum(_unsealed(one, parts) for one in [path, *worker_journals(path)])


def charged_in(path: Path, *, ended: bool = False) -> Charges:
    """What a run was charged, over all its starts and processes; safe while the run is active.

    If the run has `ended`, this includes the calls that were in flight when it was killed.
    """
    writers: dict[str, Charges] = {}
    # The run's own comes last. It absorbs the others, whose writers are in both for a moment, and in it alone after:
    # so each is read at least once, and counts once, as the run's own journal has it.
    for one in [*worker_journals(path), path]:
        try:
            with _reading(one) as database:
                writers |= ledger.read(database, ended=ended)
        except Broken:
            # A worker's journal may be absorbed and removed between the listing and the read: not damage.
            if one == path or one.exists():
                raise
    return ledger.total(writers.values())


def worker_journals(path: Path) -> list[Path]:
    """The journals of worker processes that lie beside the run's own."""
    return sorted(path.parent.glob(f"{path.stem}-[0-9]*{path.suffix}"))


def worker_journal_path(path: Path, number: int) -> Path:
    """The path of a worker process's journal, beside the run's own."""
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def recorded_in(path: Path, first: int, rows: int) -> set[int]:
    """The ordinals of `[first, first + rows)` that have an entry in a journal."""
    query = "SELECT ordinal FROM entries WHERE ordinal >= ? AND ordinal < ?"
    with _reading(path) as database:
        return {ordinal for (ordinal,) in database.execute(query, (first, first + rows))}


def entries_in(path: Path, first: int, rows: int) -> Iterator[tuple[int, Entry]]:
    """The entries of `[first, first + rows)` in a journal, in order; read lazily to bound memory."""
    query = "SELECT ordinal, meta, body FROM entries WHERE ordinal >= ? AND ordinal < ? ORDER BY ordinal"
    with _reading(path) as database:
        for ordinal, meta, body in database.execute(query, (first, first + rows)):
            try:
                entry = decode(meta, body)
            except ValueError as error:
                raise _damaged(path, ordinal, error) from error
            yield ordinal, entry


def turns_in(path: Path, first: int, rows: int) -> dict[int, dict[int, Turn]]:
    """The answers that a journal has stored of unfinished rows in `[first, first + rows)`."""
    with _reading(path) as database:
        try:
            return unfinished_rows.read(database, first, rows)
        except ValueError as error:
            told = f"the journal is damaged: an answer of a row that is not finished cannot be read ({error})"
            how = f'sqlite3 {path} "DELETE FROM turns"'  # noqa: S608 - shown, not run
            remedy = f"restore {path} from a copy, or delete such answers to have these rows asked again ({how})"
            raise Broken(f"{told}: {remedy}") from error


def _parts_in(path: Path) -> list[Part]:
    with _reading(path) as database:
        if not _has_tables(database):
            return []
        found = database.execute("SELECT part FROM parts ORDER BY chunk").fetchall()
    try:
        return [Part.from_json(orjson.loads(part)) for (part,) in found]
    except ValueError as error:
        remedy = f"restore {path} from a copy, or start over with --fresh"
        raise Broken(
            f"the journal is damaged: what it says of a sealed part cannot be read ({error}): {remedy}"
        ) from error


def _unsealed(path: Path, parts: Sequence[Part]) -> int:
    """The number of entries whose rows are in no part; those of a recorded part are about to be deleted."""
    count = "SELECT count(*) FROM entries WHERE ordinal >= ? AND ordinal < ?"
    try:
        with _reading(path) as database:
            if not _has_tables(database):
                return 0
            everything = int(database.execute("SELECT count(*) FROM entries").fetchone()[0])
            within = (database.execute(count, (part.first, part.first + part.rows)).fetchone()[0] for part in parts)
            return everything - sum(within) if everything else 0
    except Broken:
        # A worker's journal may be absorbed and removed between the listing and the read: not damage.
        if path.exists():
            raise
        return 0


def _has_tables(database: sqlite3.Connection) -> bool:
    return database.execute("SELECT 1 FROM sqlite_master WHERE name = 'parts'").fetchone() is not None


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A separate connection: in WAL mode readers and the writer do not block each other.

    Raises `Broken`, also when there is no journal: none is created.
    """
    if not path.exists():
        remedy = "it was moved or removed while it was in use: put it back, then run again"
        raise Broken(f"the journal {path} is gone: {remedy}; rows that are in no part are asked again")
    try:
        address = f"{path.resolve().as_uri()}?mode=rw"
        with closing(sqlite3.connect(address, uri=True, check_same_thread=False)) as database:
            yield database
    except sqlite3.Error as error:
        raise _broken(error) from error


def _make(path: Path, files: FileSystem) -> None:
    """Creates a private file if there is none: SQLite gives the WAL files beside it the same mode."""
    try:
        os.close(files.open(path, os.O_RDWR | os.O_CREAT, PRIVATE_FILE))
    except OSError as error:
        raise _broken(error) from error


def _open(path: Path) -> sqlite3.Connection:
    # isolation_level=None: transactions are ours alone, Python opens none. Threads are serialised by `_writing`.
    database = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=30.0)
    try:
        # FULL, because NORMAL does not sync the WAL at commit: https://www.sqlite.org/pragma.html#pragma_synchronous
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.executescript(_SCHEMA)
    except sqlite3.Error:
        database.close()
        raise
    return database


def _guarded(action: Callable[[], _T]) -> _T:
    try:
        return action()
    except sqlite3.Error as error:
        raise _broken(error) from error


def _portions(rows: Iterable[_Stored]) -> Iterator[list[_Stored]]:
    """The rows in portions of one statement each."""
    some: list[_Stored] = []
    size = 0
    for row in rows:
        some.append(row)
        size += len(row[2] or b"")
        if len(some) == _INSERT_ROWS or size >= _INSERT_BYTES:
            yield some
            some, size = [], 0
    if some:
        yield some


def _damaged(path: Path, ordinal: int, error: ValueError) -> Broken:
    remedy = f"restore {path} from a copy, or delete that entry to have the row asked again"
    how = f'sqlite3 {path} "DELETE FROM entries WHERE ordinal = {ordinal}"'  # noqa: S608 - shown, not run
    return Broken(f"the journal is damaged: the entry of row {ordinal} cannot be read ({error}): {remedy} ({how})")


def _broken(error: sqlite3.Error | OSError) -> Broken:
    return Broken(f"the journal cannot be used: {error}; nothing received before is lost: fix the disk, run again")
