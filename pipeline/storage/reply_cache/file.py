"""The file of a reply cache: created atomically, recognised by its id, opened by any number of processes."""

from __future__ import annotations

import fcntl
import glob
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from pipeline.faults import UsageError
from pipeline.storage.durable import FILES, PRIVATE_FOLDER, TEMPORARY

FILE = "replies.sqlite"

FORMAT = 1
"""Increased when older versions can no longer read the file."""

_APPLICATION = 0x76706C63
"""Distinguishes our file from other SQLite files: https://www.sqlite.org/pragma.html#pragma_application_id"""

_BUSY_S = 30.0

_SCHEMA = """
CREATE TABLE replies (
    key BLOB PRIMARY KEY,
    endpoint TEXT NOT NULL,
    model TEXT NOT NULL,
    made INTEGER NOT NULL,
    used INTEGER NOT NULL,
    cost_usd REAL,
    reply BLOB NOT NULL
) STRICT
"""
"""`made` and `used` are Unix times in seconds."""


def make(folder: Path) -> Path:
    """The cache file in this folder, created if missing. Raises `UsageError` when that fails."""
    path = folder / FILE
    try:
        if not folder.exists():
            FILES.make_folder(folder, mode=PRIVATE_FOLDER)
            (folder / ".gitignore").write_text("*\n")
        if not path.exists():
            _put_empty(path)
    except (OSError, sqlite3.Error) as error:
        raise _unusable(path, error) from error
    return path


def connect(path: Path) -> sqlite3.Connection:
    """Opens the file. Raises `UsageError` when it is not ours, is damaged, or was made by a newer version."""
    try:
        database = _opened(path)
    except sqlite3.Error as error:
        raise _unusable(path, error) from error
    try:
        _require_ours(database, path)
    except sqlite3.Error as error:
        database.close()
        raise _unusable(path, error) from error
    except UsageError:
        database.close()
        raise
    return database


@contextmanager
def connected(path: Path) -> Iterator[sqlite3.Connection]:
    """The file, open for the duration of the block. Every error is a `UsageError` with its remedy."""
    try:
        with closing(connect(path)) as database:
            yield database
    except sqlite3.Error as error:
        raise _unusable(path, error) from error


@contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """A new private file in the same folder, which nobody else uses, under a name that readers ignore.

    It is removed at the end of the block; so are leftovers of killed processes. Raises `OSError`.
    """
    _sweep(path)
    temporary, descriptor = _locked_beside(path)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
        os.close(descriptor)


def _locked_beside(path: Path) -> tuple[Path, int]:
    """A new file, and the descriptor that holds its lock.

    Before it is locked, another process may take it for a leftover and remove it: its name is then gone, and another
    file is created.
    """
    while True:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=TEMPORARY, dir=path.parent)
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # a sweeping process holds it for a moment
        if os.fstat(descriptor).st_nlink:
            return Path(name), descriptor
        os.close(descriptor)


def _sweep(path: Path) -> None:
    """Removes the leftovers of killed processes beside a file: a live process holds a lock on its own."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*{TEMPORARY}"):
        with suppress(OSError), left.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()
            left.with_name(f"{left.name}-journal").unlink(missing_ok=True)


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """BEGIN IMMEDIATE ... COMMIT, or nothing at all."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    finally:
        if database.in_transaction:
            with suppress(sqlite3.Error):
                database.rollback()


def _put_empty(path: Path) -> None:
    """Creates the file atomically: two processes that start at once never see each other's incomplete one."""
    with temporary_beside(path) as temporary:
        with closing(sqlite3.connect(temporary, isolation_level=None)) as database:
            database.execute("PRAGMA auto_vacuum=INCREMENTAL")
            database.execute(f"PRAGMA application_id={_APPLICATION}")
            database.execute(f"PRAGMA user_version={FORMAT}")
            database.execute(_SCHEMA)
            database.execute("PRAGMA journal_mode=WAL")
        with suppress(FileExistsError):
            # Linked, because a rename would replace a file already in use with an empty one.
            path.hardlink_to(temporary)


def _opened(path: Path) -> sqlite3.Connection:
    # A URI with a mode, so that a missing file is not created again, empty.
    name = f"{path.absolute().as_uri()}?mode=rw"
    database = sqlite3.connect(name, uri=True, check_same_thread=False, isolation_level=None, timeout=_BUSY_S)
    try:
        # A power cut may lose the last commits but never damages the file; what is lost is asked again.
        database.execute("PRAGMA synchronous=NORMAL")
        database.execute("PRAGMA trusted_schema=OFF")
    except sqlite3.Error:
        database.close()
        raise
    return database


def _require_ours(database: sqlite3.Connection, path: Path) -> None:
    (application,) = database.execute("PRAGMA application_id").fetchone()
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if application != _APPLICATION:
        raise UsageError(f"{path} is not a reply cache: choose another folder (--cache-dir), or move the file away")
    if version > FORMAT:
        raise UsageError(
            f"{path} was made by a newer version of pipeline: upgrade, or choose another folder (--cache-dir)"
        )
    database.execute("SELECT key, endpoint, model, made, used, cost_usd, reply FROM replies LIMIT 1").fetchone()


def _unusable(path: Path, error: Exception) -> UsageError:
    said = error.strerror if isinstance(error, OSError) and error.strerror else error
    return UsageError(
        f"the reply cache {path} cannot be used: {said}; delete it if it is damaged, choose another folder "
        f"(--cache-dir), or run without a cache"
    )
