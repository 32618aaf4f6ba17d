"""The SQLite file of a journal: how it is created, written in transactions, and what its errors become.

Every error is raised as `Broken`. After one in a transaction nothing more is written, since it is not known what the
disk still holds.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from threading import RLock
from typing import TypeVar

from pipeline.faults import Broken
from pipeline.storage import unfinished_rows
from pipeline.storage.durable import PRIVATE_FILE, FileSystem
from pipeline.totals import ledger

_INSERT_ROWS = 500  # 1,500 parameters; SQLite allows 32,766 in a statement
_INSERT_BYTES = 16 << 20  # the parameters of a statement are in memory once more, as SQLite's own copy
_BUSY_S = 30.0  # another process holds the write lock for one transaction: milliseconds, unless its disk hangs

_SCHEMA = (
    """
CREATE TABLE IF NOT EXISTS entries (ordinal INTEGER PRIMARY KEY, meta BLOB NOT NULL, body BLOB) STRICT;
CREATE TABLE IF NOT EXISTS parts (chunk INTEGER PRIMARY KEY, part BLOB NOT NULL) STRICT;
"""
    + ledger.SCHEMA
    + unfinished_rows.SCHEMA
)

_T = TypeVar("_T")

Stored = tuple[int, bytes, bytes | None]
"""An entry as the database holds it: ordinal, metadata, body."""


class JournalDatabase:
    """The connection that writes a journal, created if there is none. One thread at a time may be in a transaction.

    `broken` is the first error of a transaction; every later transaction raises it again.
    """

    def __init__(self, path: Path, files: FileSystem) -> None:
        _make(path, files)
        self._writing = RLock()  # of a thread at a time; twice by `attached` with a transaction in it
        self._connection = _guarded(lambda: _open(path))
        self.broken: Broken | None = None

    def require_sound(self) -> None:
        """Raises the error of an earlier transaction, if there was one."""
        if self.broken is not None:
            raise self.broken

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """BEGIN IMMEDIATE ... COMMIT; SQLite errors become `Broken`, and after one no transaction is tried again."""
        with self._writing:
            self.require_sound()
            try:
                # IMMEDIATE takes the write lock now: upgrading a read transaction later may fail with SQLITE_BUSY at
                # once, without waiting.
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
                self._connection.execute("COMMIT")
            except sqlite3.Error as error:
                self.broken = broken(error)
                raise self.broken from error
            finally:
                # After an error in the block or in COMMIT. The first error counts; one of the rollback adds nothing.
                if self._connection.in_transaction:
                    with suppress(sqlite3.Error):
                        self._connection.rollback()

    @contextmanager
    def attached(self, path: Path) -> Iterator[None]:
        """A block in which another journal's tables are `other.entries` and so on."""
        with self._writing:  # SQLite neither attaches nor detaches a database while a transaction is open
            _guarded(lambda: self._connection.execute("ATTACH ? AS other", (str(path),)))
            try:
                yield
            finally:
                _guarded(lambda: self._connection.execute("DETACH other"))

    def close(self) -> None:
        """Closes the file; what is in no finished transaction is lost."""
        self._connection.close()


def insert(database: sqlite3.Connection, rows: Iterable[Stored]) -> None:
    """Stores entries, in place of earlier ones of the same rows."""
    # Many rows per statement: each statement releases the GIL, and may wait 5 ms (Python's switch interval)
    # for a busy event loop to get it back. Row by row, seconds of replies piled up before their commit.
    for some in _portions(rows):
        values = ", ".join(["(?, ?, ?)"] * len(some))
        database.execute(f"INSERT OR REPLACE INTO entries VALUES {values}", [*chain.from_iterable(some)])  # noqa: S608 - question marks


def broken(error: sqlite3.Error | OSError) -> Broken:
    """The fault for an error of SQLite or the disk."""
    return Broken(f"the journal cannot be used: {error}; nothing received before is lost: fix the disk, run again")


def _make(path: Path, files: FileSystem) -> None:
    """Creates a private file if there is none: SQLite gives the WAL files beside it the same mode."""
    try:
        os.close(files.open(path, os.O_RDWR | os.O_CREAT, PRIVATE_FILE))
    except OSError as error:
        raise broken(error) from error


def _open(path: Path) -> sqlite3.Connection:
    # isolation_level=None: transactions are ours alone, Python opens none. Threads are serialised by `_writing`.
    database = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=_BUSY_S)
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
        raise broken(error) from error


def _portions(rows: Iterable[Stored]) -> Iterator[list[Stored]]:
    """The rows in portions of one statement each."""
    some: list[Stored] = []
    size = 0
    for row in rows:
        some.append(row)
        size += len(row[2] or b"")
        if len(some) == _INSERT_ROWS or size >= _INSERT_BYTES:
            yield some
            some, size = [], 0
    if some:
        yield some
