"""Maintenance of a reply cache: list it, prune it, export and import it. Safe while runs are active."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pipeline.faults import UsageError
from pipeline.storage.reply_cache.file import FILE, connect, connected, make, temporary_beside, transaction

_AT_ONCE = 50


@dataclass(frozen=True, slots=True)
class CacheStats:
    """The replies of one model at one endpoint. `cost_usd` is what they originally cost, where known."""

    endpoint: str
    model: str
    replies: int
    bytes: int
    cost_usd: float
    first_made: datetime
    last_used: datetime


def holdings(folder: Path) -> list[CacheStats]:
    """The content of the cache in this folder, largest first. Raises `UsageError` when there is none."""
    query = (
        "SELECT endpoint, model, count(*), sum(length(reply)), total(cost_usd), min(made), max(used) "
        "FROM replies GROUP BY endpoint, model ORDER BY 4 DESC"
    )
    with connected(_there(folder)) as database:
        return [
            CacheStats(endpoint, model, replies, size, cost, *(datetime.fromtimestamp(at, UTC) for at in (made, used)))
            for endpoint, model, replies, size, cost, made, used in database.execute(query)
        ]


def size_of(folder: Path) -> int:
    """The size on disk of the cache in this folder, in bytes."""
    files = [folder / f"{FILE}{suffix}" for suffix in ("", "-wal", "-shm")]
    return sum(path.stat().st_size for path in files if path.exists())


def prune(folder: Path, *, unused_s: float | None = None, most_bytes: int | None = None) -> int:
    """Deletes replies and frees their space; returns how many were deleted.

    First those not used for `unused_s` seconds (the last use is known to the hour), then the least recently used,
    until the rest takes no more than `most_bytes`.
    """
    deleted = 0
    with connected(_there(folder)) as database:
        if unused_s is not None:
            with transaction(database):
                cut = time.time() - unused_s
                deleted += database.execute("DELETE FROM replies WHERE used <= ?", (cut,)).rowcount
        if most_bytes is not None:
            deleted += _shrink(database, most_bytes)
        # executescript, because execute() steps the statement once, which frees a single page.
        database.executescript("PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE)")
    return deleted


def export(folder: Path, file: Path) -> int:
    """Writes everything into one file, atomically replacing `file`; returns the number of replies."""
    try:
        with temporary_beside(file) as temporary:
            with connected(_there(folder)) as database:
                database.execute("VACUUM INTO ?", (str(temporary),))
            with connected(temporary) as copy:
                (count,) = copy.execute("SELECT count(*) FROM replies").fetchone()
            temporary.replace(file)
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror or error}") from error
    return int(count)


def import_from(folder: Path, file: Path) -> int:
    """Adds the replies of an exported file; returns how many are new. Existing replies stay unchanged."""
    if not file.is_file():
        raise UsageError(f"there is no file {file}")
    connect(file).close()  # refuses a file that is not ours before anything is created
    with connected(make(folder)) as database:
        database.execute("ATTACH ? AS other", (f"{file.absolute().as_uri()}?mode=ro",))
        with transaction(database):
            added = database.execute(
                "INSERT OR IGNORE INTO main.replies (key, endpoint, model, made, used, cost_usd, reply) "
                "SELECT key, endpoint, model, made, used, cost_usd, reply FROM other.replies"
            ).rowcount
        database.execute("DETACH other")
    return added


def _there(folder: Path) -> Path:
    path = folder / FILE
    if not path.is_file():
        raise UsageError(f"there is no reply cache in {folder} (--cache-dir names another folder)")
    return path


def _shrink(database: sqlite3.Connection, most_bytes: int) -> int:
    """Deletes the least recently used replies, in small transactions, until the file's content fits."""
    deleted = 0
    with closing(database.execute("SELECT key FROM replies ORDER BY used, key")) as found:
        keys = [key for (key,) in found]
    for start in range(0, len(keys), _AT_ONCE):
        if _content(database) <= most_bytes:
            break
        with transaction(database):
            database.executemany(
                "DELETE FROM replies WHERE key = ?", [(key,) for key in keys[start : start + _AT_ONCE]]
            )
        deleted += len(keys[start : start + _AT_ONCE])
    return deleted


def _content(database: sqlite3.Connection) -> int:
    """Bytes of the pages in use."""
    pages, free, size = (
        database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)
