"""Which rows were submitted to batch jobs: recorded before a job is created, so that no row is submitted twice."""

from __future__ import annotations

import json
import sqlite3
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.faults import Broken
from pipeline.storage.journal_database import JournalDatabase
from pipeline.storage.journal_reader import opened
from pipeline.totals import ledger
from pipeline.totals.ledger import NOTHING, Charges

Progress = Literal["submitted", "collected", "void"]
"""`submitted` until its answers are recorded, then `collected`. A job that failed as a whole is `void`: its rows count
as never submitted."""


class OrdinalSet:
    """Ordinals of rows in ascending order, held as spans: a million consecutive rows take no more than one."""

    def __init__(self, spans: Iterable[tuple[int, int]] = ()) -> None:
        self._firsts = array("q")
        self._counts = array("q")
        self._before = array("q")
        """How many ordinals come before each span."""
        self._size = 0
        for first, count in spans:
            self._append(first, count)

    def add(self, ordinal: int) -> None:
        """Adds an ordinal above all others. Raises `ValueError` for any other."""
        if self._firsts and ordinal == self._firsts[-1] + self._counts[-1]:
            self._counts[-1] += 1
            self._size += 1
        else:
            self._append(ordinal, 1)

    def position(self, ordinal: int) -> int | None:
        """How many ordinals come before this one; None if it is not in the set."""
        place = bisect_right(self._firsts, ordinal) - 1
        if place < 0 or ordinal >= self._firsts[place] + self._counts[place]:
            return None
        return self._before[place] + ordinal - self._firsts[place]

    def spans(self) -> list[tuple[int, int]]:
        """First ordinal and number of consecutive ones, for each span."""
        return list(zip(self._firsts, self._counts, strict=True))

    def chunks(self, chunk_of: Callable[[int], int]) -> list[int]:
        """The chunks that have one of them, in order; `chunk_of` gives the chunk of an ordinal."""
        found: dict[int, None] = {}
        for first, count in zip(self._firsts, self._counts, strict=True):
            found |= dict.fromkeys(range(chunk_of(first), chunk_of(first + count - 1) + 1))
        return list(found)

    def __contains__(self, ordinal: int) -> bool:
        return self.position(ordinal) is not None

    def __iter__(self) -> Iterator[int]:
        for first, count in zip(self._firsts, self._counts, strict=True):
            yield from range(first, first + count)

    def __len__(self) -> int:
        return self._size

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OrdinalSet) and self.spans() == other.spans()

    __hash__ = None  # type: ignore[assignment] # it changes

    def _append(self, first: int, count: int) -> None:
        if count < 1 or first < 0 or (self._firsts and first < self._firsts[-1] + self._counts[-1]):
            raise ValueError("ordinals are added in ascending order, each once")
        self._firsts.append(first)
        self._counts.append(count)
        self._before.append(self._size)
        self._size += count


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One batch job: its rows, its input, and how far it has come.

    `wave` counts from 1: rows that an earlier job did not answer may be submitted again, in a later wave. `usd` and
    `tokens` are what a budget reserves for it; None where that was not estimated. `handle` is the server's name of the
    job, None until it is known; `state` the state that the server last told.
    """

    wave: int
    number: int
    name: str
    ordinals: OrdinalSet
    sha256: str
    size: int
    """Bytes of the input."""
    at: float
    """When it was recorded, in Unix time."""
    usd: float | None = None
    tokens: float | None = None
    place: dict[str, Any] = field(default_factory=dict)
    """Where the job is, for `pipeline cancel`: project, location or base URL."""
    handle: str | None = None
    state: str = "waiting"
    message: str | None = None
    answered: int = 0
    """Answers that were recorded once it had ended."""
    progress: Progress = "submitted"

    @property
    def rows(self) -> int:
        """The number of its rows."""
        return len(self.ordinals)

    @property
    def writer(self) -> str:
        """Its row in the ledger: what its answers cost, written once, when they are recorded."""
        return f"{_WRITERS}{self.wave}-{self.number}"

    def to_json(self) -> bytes:
        """The record, as the journal and the bucket have it."""
        # `asdict` would copy the arrays of the set.
        known = asdict(replace(self, ordinals=OrdinalSet()))
        return json.dumps({**known, "ordinals": self.ordinals.spans()}).encode()

    @classmethod
    def from_json(cls, content: bytes) -> Submission:
        """The inverse. Raises `ValueError` for anything else."""
        try:
            known = json.loads(content)
            spans = [(int(first), int(count)) for first, count in known.pop("ordinals")]
            found = cls(**known, ordinals=OrdinalSet(spans))
            numbers = (found.wave, found.number, found.size)
            sane = all(isinstance(number, int) and number >= 0 for number in numbers)
            named = isinstance(found.name, str) and isinstance(found.handle, str | None)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(str(error)) from error
        if not sane or not named:
            raise ValueError("its numbers or names are invalid")
        return found


_WRITERS = "batch-"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS submissions (
    wave INTEGER NOT NULL, number INTEGER NOT NULL, record BLOB NOT NULL, PRIMARY KEY (wave, number)
) STRICT;
"""


def _write(database: sqlite3.Connection, submission: Submission) -> None:
    database.execute(_SCHEMA)  # here: runs without batches have no such table
    row = (submission.wave, submission.number, submission.to_json())
    database.execute("INSERT OR REPLACE INTO submissions VALUES (?, ?, ?)", row)


class SubmissionBook:
    """The submissions of a run, in the database of its journal. Any thread; raises `Broken`."""

    def __init__(self, database: JournalDatabase, path: Path) -> None:
        self._database = database
        self._path = path

    def all(self) -> list[Submission]:
        """All of them, in the order in which they were made."""
        return submissions_in(self._path)

    def save(self, submission: Submission) -> None:
        """Records one, durably, in place of its earlier record."""
        with self._database.transaction() as database:
            _write(database, submission)

    def settle(self, submission: Submission, charged: Charges) -> None:
        """Records that the answers of a job are recorded, and what they cost, in one transaction.

        The cost replaces what was written before, so that doing it again changes nothing.
        """
        with self._database.transaction() as database:
            _write(database, submission)
            ledger.write(database, submission.writer, charged, NOTHING)


def submissions_in(path: Path) -> list[Submission]:
    """The submissions that a journal records; none if it is of a run without batches."""
    if not path.exists():
        return []
    with opened(path) as database:
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'submissions'").fetchone():
            return []
        found = database.execute("SELECT record FROM submissions ORDER BY wave, number").fetchall()
    try:
        return [Submission.from_json(record) for (record,) in found]
    except ValueError as error:
        remedy = f"restore {path} from a copy, or start over with --fresh"
        raise Broken(
            f"the journal is damaged: what it says of a batch job cannot be read ({error}): {remedy}"
        ) from error


def charged_by_batch(path: Path) -> Charges:
    """What the recorded answers of a run's batch jobs cost."""
    with opened(path) as database:
        found = ledger.read(database)
    return ledger.total(charged for writer, charged in found.items() if writer.startswith(_WRITERS))
