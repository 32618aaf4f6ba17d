"""The answers of unfinished rows, kept so that a stop between a row's calls does not mean paying for them again."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from itertools import chain

from pipeline.data import Reply
from pipeline.job.turns import Results, Turn
from pipeline.storage.codec import decode, encode

SCHEMA = """
CREATE TABLE IF NOT EXISTS turns (
    ordinal INTEGER NOT NULL, number INTEGER NOT NULL, digest BLOB NOT NULL,
    meta BLOB NOT NULL, body BLOB, results BLOB, PRIMARY KEY (ordinal, number)
) STRICT;
"""


def write(database: sqlite3.Connection, turns: Iterable[tuple[int, int, Turn]]) -> None:
    """Stores turns, by row and by number within the row."""
    rows = [
        (ordinal, number, turn.digest, *encode(turn.reply), _packed(turn.results)) for ordinal, number, turn in turns
    ]
    if rows:
        database.executemany("INSERT OR REPLACE INTO turns VALUES (?, ?, ?, ?, ?, ?)", rows)


def drop(database: sqlite3.Connection, ordinals: Iterable[int]) -> None:
    """Deletes the turns of these rows."""
    database.executemany("DELETE FROM turns WHERE ordinal = ?", [(ordinal,) for ordinal in ordinals])


def drop_range(database: sqlite3.Connection, first: int, end: int) -> None:
    """Deletes the turns of rows `[first, end)`."""
    database.execute("DELETE FROM turns WHERE ordinal >= ? AND ordinal < ?", (first, end))


def read(database: sqlite3.Connection, first: int, rows: int) -> dict[int, dict[int, Turn]]:
    """The turns of rows `[first, first + rows)`, by row and number."""
    query = "SELECT * FROM turns WHERE ordinal >= ? AND ordinal < ?"
    found: dict[int, dict[int, Turn]] = {}
    for ordinal, number, digest, meta, body, results in database.execute(query, (first, first + rows)):
        reply = decode(meta, body)
        if isinstance(reply, Reply):
            known = None if results is None else json.loads(results)
            found.setdefault(ordinal, {})[number] = Turn(digest, reply, known)
    return found


def take_over(database: sqlite3.Connection, schema: str) -> None:
    """Copies the turns of an attached database."""
    known = f"SELECT 1 FROM {schema}.sqlite_master WHERE name = 'turns'"  # noqa: S608 - the name is ours
    if database.execute(known).fetchone():
        database.execute(f"INSERT OR REPLACE INTO main.turns SELECT * FROM {schema}.turns")  # noqa: S608 - as above


def merged(*found: Mapping[int, Mapping[int, Turn]]) -> dict[int, dict[int, Turn]]:
    """The turns of several journals combined; later journals override earlier ones."""
    ordinals = set(chain.from_iterable(found))
    return {ordinal: {n: turn for one in found for n, turn in one.get(ordinal, {}).items()} for ordinal in ordinals}


def _packed(results: Results | None) -> bytes | None:
    return None if results is None else json.dumps(results).encode()
