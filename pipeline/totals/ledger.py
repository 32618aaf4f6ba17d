"""What a run was charged: a sum that only grows, whatever happens to the replies and the rows.

Each process that records calls keeps one row of the ledger: its own sum since it started. The run's cost is the sum
over all rows. Copying a row from another journal twice changes nothing.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from pipeline.data import Usage

SCHEMA = "CREATE TABLE IF NOT EXISTS ledger (writer TEXT PRIMARY KEY, charged BLOB NOT NULL, held BLOB) STRICT;"

KINDS = ("input", "output", "reasoning", "cached")

_MOST = 2**62
"""Sums are capped here when written, so that they fit in 64 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Charges:
    """Answered calls and their cost, each counted once. Hits in the reply cache do not count."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cached_tokens: int = 0
    cost_usd: float = 0.0
    unpriced_calls: int = 0
    """Calls of unknown cost, which `cost_usd` excludes."""
    unmetered_calls: int = 0
    """Calls without usage, which the token counts exclude."""
    unpriced_input: int = 0
    """Tokens of the unpriced calls, so that they can be priced later; estimated where there was no usage."""
    unpriced_output: int = 0
    estimated_input: int = 0
    """Tokens of the unmetered calls, estimated from the size of request and reply."""
    estimated_output: int = 0
    lost_calls: int = 0
    """Calls that were in flight under a budget when their process was killed: they may have been billed."""
    lost_usd: float = 0.0
    """The amount that was reserved for them."""
    lost_tokens: float = 0.0

    @classmethod
    def of_call(cls, usage: Usage | None, cost_usd: float | None, estimated: Usage) -> Charges:
        """One answered call; `estimated` stands in for a usage that the server did not report."""
        known = usage or estimated
        priced, metered = cost_usd is not None, usage is not None
        return cls(
            calls=1,
            input_tokens=known.input if metered else 0,
            output_tokens=known.output if metered else 0,
            reasoning_tokens=known.reasoning if metered else 0,
            cached_tokens=known.cached if metered else 0,
            cost_usd=cost_usd or 0.0,
            unpriced_calls=int(not priced),
            unmetered_calls=int(not metered),
            unpriced_input=0 if priced else known.input,
            unpriced_output=0 if priced else known.output + known.reasoning,
            estimated_input=0 if metered else known.input,
            estimated_output=0 if metered else known.output,
        )

    def __add__(self, other: Charges) -> Charges:
        return Charges(
            calls=self.calls + other.calls,
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            cost_usd=self.cost_usd + other.cost_usd,
            unpriced_calls=self.unpriced_calls + other.unpriced_calls,
            unmetered_calls=self.unmetered_calls + other.unmetered_calls,
            unpriced_input=self.unpriced_input + other.unpriced_input,
            unpriced_output=self.unpriced_output + other.unpriced_output,
            estimated_input=self.estimated_input + other.estimated_input,
            estimated_output=self.estimated_output + other.estimated_output,
            lost_calls=self.lost_calls + other.lost_calls,
            lost_usd=self.lost_usd + other.lost_usd,
            lost_tokens=self.lost_tokens + other.lost_tokens,
        )

    def __sub__(self, other: Charges) -> Charges:
        return Charges(**{name: getattr(self, name) - getattr(other, name) for name in _FIELDS})

    @property
    def tokens(self) -> float:
        """Tokens that count against a budget: reported, else estimated, plus those reserved for lost calls."""
        reported = self.input_tokens + self.output_tokens + self.reasoning_tokens
        return reported + self.estimated_input + self.estimated_output + self.lost_tokens

    def figures(self, prefix: str = "") -> dict[str, Any]:
        """The figures for reports and tables; None where the total is not fully known."""
        tokens = {f"{kind}_tokens": getattr(self, f"{kind}_tokens") for kind in KINDS}
        known = {
            "calls": self.calls,
            **(dict.fromkeys(tokens) if self.unmetered_calls else tokens),
            "cost_usd": None if self.unpriced_calls else round(self.cost_usd, 6),
            "unpriced_calls": self.unpriced_calls,
            "unmetered_calls": self.unmetered_calls,
        }
        return {f"{prefix}{name}": value for name, value in known.items()}

    def to_json(self) -> dict[str, int | float]:
        """The form stored in manifests and journals."""
        return {name: min(getattr(self, name), _MOST) for name in _FIELDS}

    @classmethod
    def from_json(cls, content: Mapping[str, Any] | None) -> Charges:
        """The inverse of `to_json`, and nothing for None; fields added by later versions are ignored."""
        return cls(**{name: content[name] for name in _FIELDS if name in content}) if content else cls()


_FIELDS = tuple(one.name for one in fields(Charges))

NOTHING = Charges()


def total(charges: Iterable[Charges]) -> Charges:
    """The sum."""
    return sum(charges, NOTHING)


# The ledger in a journal's database.

_WRITE = (
    "INSERT INTO ledger VALUES (?, ?, ?) ON CONFLICT (writer) DO UPDATE SET charged = excluded.charged, "
    "held = excluded.held"
)
"""Not `INSERT OR REPLACE`, which writes the page of the index too: every commit of a run writes its row."""


def write(database: sqlite3.Connection, writer: str, charged: Charges, held: Charges) -> None:
    """Writes a writer's row: what it was charged since it started, and what its calls in flight may yet cost."""
    row = (writer, _packed(charged), None if held == NOTHING else _packed(held))
    database.execute(_WRITE, row)


def read(database: sqlite3.Connection, schema: str = "main", *, ended: bool = False) -> dict[str, Charges]:
    """What each writer was charged; empty when there is no ledger.

    With `ended`, the writers are gone, and what they had in flight is included.
    """
    if not _has_ledger(database, schema):
        return {}
    query = f"SELECT writer, charged, held FROM {schema}.ledger"  # noqa: S608 - a name of ours
    return {
        writer: _unpacked(charged) + (_unpacked(held) if held and ended else NOTHING)
        for writer, charged, held in database.execute(query).fetchall()
    }


def rows(database: sqlite3.Connection) -> dict[str, dict[str, Any]]:
    """The whole ledger, as JSON can hold it: by writer, what it was charged, and what its calls in flight may cost."""
    if not _has_ledger(database, "main"):
        return {}
    query = "SELECT writer, charged, held FROM main.ledger"
    return {
        writer: {"charged": json.loads(charged), "held": json.loads(held) if held else {}}
        for writer, charged, held in database.execute(query).fetchall()
    }


def restore(database: sqlite3.Connection, known: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes what `rows` returned. Raises `ValueError` for anything else."""
    try:
        for writer, row in known.items():
            write(database, writer, Charges.from_json(row["charged"]), Charges.from_json(row["held"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a ledger: {error}") from error


def take_over(database: sqlite3.Connection, schema: str) -> None:
    """Copies the ledger's rows from an attached database; a row that was copied before is replaced."""
    if _has_ledger(database, schema):
        database.execute(f"INSERT OR REPLACE INTO main.ledger SELECT * FROM {schema}.ledger")  # noqa: S608 - as above


def count_lost(database: sqlite3.Connection, living: str) -> None:
    """Counts what dead writers had in flight as lost."""
    query = "SELECT writer, charged, held FROM main.ledger WHERE held IS NOT NULL AND writer != ?"
    for writer, charged, held in database.execute(query, (living,)).fetchall():
        write(database, writer, _unpacked(charged) + _unpacked(held), NOTHING)


def _has_ledger(database: sqlite3.Connection, schema: str) -> bool:
    query = f"SELECT 1 FROM {schema}.sqlite_master WHERE name = 'ledger'"  # noqa: S608 - as above
    return database.execute(query).fetchone() is not None


def _packed(charges: Charges) -> bytes:
    return json.dumps(charges.to_json()).encode()


def _unpacked(content: bytes) -> Charges:
    return Charges.from_json(json.loads(content))
