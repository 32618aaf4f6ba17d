"""Reads journals that another process, or another thread, may be writing: each call opens a connection of its own.

In WAL mode readers and the writer do not block each other. A run has one journal, and beside it one for each of its
worker processes. Every function raises `Broken` for a journal that is damaged.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import orjson

from pipeline.data import Entry, Part
from pipeline.faults import Broken
from pipeline.job.turns import Turn
from pipeline.storage import unfinished_rows
from pipeline.storage.codec import decode
from pipeline.storage.journal_database import broken
from pipeline.totals import ledger
from pipeline.totals.ledger import Charges

_T = TypeVar("_T")


def read_state(path: Path) -> tuple[list[Part], int]:
    """The sealed parts and the number of entries not sealed yet; safe while the run is active.

    Includes the journals of its worker processes, which lie beside the run's own.
    Raises `Broken` when a journal is damaged.
    """
    parts = parts_in(path) if path.exists() else []
    return parts, sum(_unsealed(one, parts) for one in [path, *worker_journals(path)])


def charged_in(path: Path, *, ended: bool = False) -> Charges:
    """What a run was charged, over all its starts and processes; safe while the run is active.

    If the run has `ended`, this includes the calls that were in flight when it was killed.
    """
    writers: dict[str, Charges] = {}
    nothing: dict[str, Charges] = {}
    for one in worker_journals(path):
        writers |= _unless_absorbed(one, lambda database: ledger.read(database, ended=ended), nothing)
    # The run's own comes last. It absorbs the others, whose writers are in both for a moment, and in it alone after:
    # so each is read at least once, and counts once, as the run's own journal has it.
    with opened(path) as database:
        writers |= ledger.read(database, ended=ended)
    return ledger.total(writers.values())


def ledger_in(path: Path) -> dict[str, dict[str, Any]]:
    """The ledger of a run and its worker processes, as `ledger.restore` takes it."""
    found: dict[str, dict[str, Any]] = {}
    nothing: dict[str, dict[str, Any]] = {}
    for one in worker_journals(path):
        found |= _unless_absorbed(one, ledger.rows, nothing)
    with opened(path) as database:  # last, as above
        return found | ledger.rows(database)


def worker_journals(path: Path) -> list[Path]:
    """The journals of worker processes that lie beside the run's own."""
    return sorted(path.parent.glob(f"{path.stem}-[0-9]*{path.suffix}"))


def worker_journal_path(path: Path, number: int) -> Path:
    """The path of a worker process's journal, beside the run's own."""
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def recorded_in(path: Path, first: int, rows: int) -> set[int]:
    """The ordinals of `[first, first + rows)` that have an entry in a journal."""
    query = "SELECT ordinal FROM entries WHERE ordinal >= ? AND ordinal < ?"
    with opened(path) as database:
        return {ordinal for (ordinal,) in database.execute(query, (first, first + rows))}


def entries_in(path: Path, first: int, rows: int) -> Iterator[tuple[int, Entry]]:
    """The entries of `[first, first + rows)` in a journal, in order; read lazily to bound memory."""
    query = "SELECT ordinal, meta, body FROM entries WHERE ordinal >= ? AND ordinal < ? ORDER BY ordinal"
    with opened(path) as database:
        for ordinal, meta, body in database.execute(query, (first, first + rows)):
            try:
                entry = decode(meta, body)
            except ValueError as error:
                raise _damaged(path, ordinal, error) from error
            yield ordinal, entry


def turns_in(path: Path, first: int, rows: int) -> dict[int, dict[int, Turn]]:
    """The answers that a journal has stored of unfinished rows in `[first, first + rows)`."""
    with opened(path) as database:
        try:
            return unfinished_rows.read(database, first, rows)
        except ValueError as error:
            told = f"the journal is damaged: an answer of a row that is not finished cannot be read ({error})"
            how = f'sqlite3 {path} "DELETE FROM turns"'  # noqa: S608 - shown, not run
            remedy = f"restore {path} from a copy, or delete such answers to have these rows asked again ({how})"
            raise Broken(f"{told}: {remedy}") from error


def parts_in(path: Path) -> list[Part]:
    """The sealed chunks that a journal records, in order."""
    with opened(path) as database:
        if not _has_tables(database):
            return []  # created, and its writer was killed before it made the tables
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

    def unsealed(database: sqlite3.Connection) -> int:
        if not _has_tables(database):
            return 0
        everything = int(database.execute("SELECT count(*) FROM entries").fetchone()[0])
        within = (database.execute(count, (part.first, part.first + part.rows)).fetchone()[0] for part in parts)
        return everything - sum(within) if everything else 0

    return _unless_absorbed(path, unsealed, 0)


def _unless_absorbed(path: Path, read: Callable[[sqlite3.Connection], _T], nothing: _T) -> _T:
    """What `read` finds in a journal; `nothing` if there is none any more."""
    try:
        with opened(path) as database:
            return read(database)
    except Broken:
        # A worker's journal may be absorbed and removed between the listing and the read: not damage.
        if path.exists():
            raise
        return nothing


def _has_tables(database: sqlite3.Connection) -> bool:
    return database.execute("SELECT 1 FROM sqlite_master WHERE name = 'parts'").fetchone() is not None


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
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
        raise broken(error) from error


def _damaged(path: Path, ordinal: int, error: ValueError) -> Broken:
    remedy = f"restore {path} from a copy, or delete that entry to have the row asked again"
    how = f'sqlite3 {path} "DELETE FROM entries WHERE ordinal = {ordinal}"'  # noqa: S608 - shown, not run
    return Broken(f"the journal is damaged: the entry of row {ordinal} cannot be read ({error}): {remedy} ({how})")
