"""Segments of the journal in the bucket, so that a lost machine costs the calls in flight and a few seconds.

A segment is a Parquet file of journal entries as they are encoded there. The ledger is an object of its own, since it
outlives the entries.
"""

from __future__ import annotations

import io
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.faults import Broken, Halt, UsageError
from pipeline.storage.journal_database import Stored
from pipeline.storage.journal_reader import ledger_in, opened, worker_journals
from pipeline.storage.remote.lease import RunLease
from pipeline.storage.remote.objects import LEDGER, SEGMENTS, OutputObjects
from pipeline.store.object_store import AlreadyThere, Changed

INTERVAL_S = 5.0
"""How often what is new in the journal is uploaded, in seconds."""

SEGMENT_BYTES = 16 << 20
"""Bytes of replies in a segment, about."""

_SCHEMA = pa.schema([("ordinal", pa.int64()), ("meta", pa.binary()), ("body", pa.binary())])
_ROWS = "rows-"
_TRIES = 5
_ASKED = 500  # ordinals in a query; SQLite allows 32,766 parameters


@dataclass(frozen=True, slots=True)
class JournalPlace:
    """Where the segments and the ledger of a start are: of the whole run, or of these `rows` of it."""

    rows: range | None = None
    ledger: str = LEDGER

    @property
    def prefix(self) -> str:
        """What the names of the segments begin with."""
        return SEGMENTS if self.rows is None else f"{SEGMENTS}{_ROWS}{self.rows.start}-{self.rows.stop}/"

    def replaces(self, name: str) -> bool:
        """Whether the entries of an earlier segment are all in the journal of a start that was filled from here."""
        rows = rows_of_segment(name)
        return self.rows is None or (rows is not None and _within(rows, self.rows))


class Segments:
    """What a run has uploaded of its journals, and uploads from now on, under the id of its lease's owner.

    `journal` is the path of the run's own; those of worker processes are beside it. `chunk_of` says in which chunk a
    row is.
    """

    def __init__(
        self,
        objects: OutputObjects,
        lease: RunLease,
        journal: Path,
        chunk_of: Callable[[int], int],
        place: JournalPlace,
    ) -> None:
        self._objects = objects
        self._lease = lease
        self._journal = journal
        self._place = place
        self._prefix = f"{place.prefix}{lease.owner}/"
        self._chunk_of = chunk_of
        self._number: int | None = None
        self._uploaded: set[int] = set()
        self._present: set[int] = set()
        self._open: dict[str, set[int]] = {}
        """The chunks of each segment that are not sealed."""
        self._sealed: set[int] = set()
        self._ledger: tuple[bytes, str | None] = (b"", None)
        self._working = threading.Lock()
        self._ended = threading.Event()
        self._wanted = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Uploads all entries that there are, then removes the segments of earlier starts, which these replace."""
        earlier = [info.key for info in self._objects.listing(SEGMENTS) if self._place.replaces(info.key)]
        self.upload()
        self._lease.require()
        for name in earlier:
            self._objects.remove(name)

    def keep(self, trouble: Callable[[str], None], interval_s: float = INTERVAL_S) -> None:
        """Uploads what is new, every so many seconds and after `hurry`, from a thread of its own until `end`.

        `trouble` is called with a sentence, once, while the store does not take it.
        """
        self._thread = threading.Thread(target=self._keep, args=(trouble, interval_s), name="segments", daemon=True)
        self._thread.start()

    def sealed(self, chunk: int) -> None:
        """Takes note that a chunk is recorded in the bucket: its entries are not needed any more."""
        self._sealed.add(chunk)

    def upload(self) -> None:
        """Uploads what is new in the journals, and removes the segments that are not needed any more."""
        with self._working:
            self._upload_ledger()
            self._present = set()
            for rows in _portions(self._new()):
                self._number = self._last_number() + 1
                name = f"{self._prefix}{self._number:08d}.parquet"
                content = _encoded(rows)
                self._lease.require()  # right before it: nothing else keeps a process that slept from creating it
                self._objects.create(name, content)
                self._uploaded.update(ordinal for ordinal, *_ in rows)
                self._open[name] = {self._chunk_of(ordinal) for ordinal, *_ in rows}
            self._uploaded &= self._present  # not those of sealed chunks: memory would grow with the run
            for name in [name for name, chunks in self._open.items() if chunks <= self._sealed]:
                self._objects.remove(name)
                del self._open[name]

    def hurry(self) -> None:
        """Has what is new uploaded at once, by the thread: this process may be killed in a few seconds."""
        self._wanted.set()

    def end(self) -> None:
        """Ends the thread."""
        self._ended.set()
        self._wanted.set()
        if self._thread is not None:
            self._thread.join()

    def _keep(self, trouble: Callable[[str], None], interval_s: float) -> None:
        failing = False
        while not self._ended.is_set():
            self._wanted.wait(interval_s)
            if self._ended.is_set():
                return
            self._wanted.clear()
            try:
                self.upload()
                failing = False
            except (Halt, UsageError) as fault:
                if not failing:
                    trouble(f"recorded replies are not in the bucket yet, only on this machine: {fault}")
                failing = True

    def _last_number(self) -> int:
        """The number of our last segment; those of an earlier start of this state folder count on."""
        if self._number is None:
            numbers = (_number_of(info.key) for info in self._objects.listing(self._prefix))
            self._number = max(numbers, default=0)
        return self._number

    def _upload_ledger(self) -> None:
        content = orjson.dumps(ledger_in(self._journal))
        known, version = self._ledger
        if content in (known, b"{}"):
            return
        name = self._place.ledger
        for _ in range(_TRIES):
            try:
                self._ledger = (content, self._objects.replace(name, content, version))
            except (Changed, AlreadyThere):
                self._lease.renew()  # raises if another run writes it now; else it is of an earlier start
                found = self._objects.head(name)
                version = found.version if found else None
            else:
                return
        raise Broken(f"{self._objects.address}/{name}: something else writes it again and again; run again")

    def _new(self) -> Iterator[Stored]:
        """The entries of unsealed chunks that are in no segment."""
        for path in [self._journal, *worker_journals(self._journal)]:
            try:
                yield from self._new_in(path)
            except Broken:
                if path.exists():  # else absorbed meanwhile: its entries come with the next upload
                    raise

    def _new_in(self, path: Path) -> Iterator[Stored]:
        with opened(path) as database:
            if not _has_entries(database):
                return
            known = {ordinal for (ordinal,) in database.execute("SELECT ordinal FROM entries")}
            self._present |= known
            new = sorted(known - self._uploaded)
            for start in range(0, len(new), _ASKED):
                asked = new[start : start + _ASKED]
                marks = ", ".join("?" * len(asked))
                yield from database.execute(
                    f"SELECT ordinal, meta, body FROM entries WHERE ordinal IN ({marks}) ORDER BY ordinal",  # noqa: S608 - question marks
                    asked,
                )


def segments_in(objects: OutputObjects, rows: range | None = None) -> Iterator[list[Stored]]:
    """The entries of all segments, or of these rows, the oldest first. Raises `Broken` for one that is damaged."""
    for info in sorted(objects.listing(SEGMENTS), key=lambda info: (info.modified, info.key)):
        of = rows_of_segment(info.key)
        if rows is not None and of is not None and (of.stop <= rows.start or of.start >= rows.stop):
            continue
        content = objects.read(info.key)
        if content is not None:
            found = _decoded(f"{objects.address}/{info.key}", content.data)
            yield found if rows is None else [entry for entry in found if entry[0] in rows]


def rows_of_segment(name: str) -> range | None:
    """The rows that a segment may hold, by its name; None if they may be any."""
    place = name.removeprefix(SEGMENTS).partition("/")[0]
    first, _, end = place.removeprefix(_ROWS).partition("-")
    known = place.startswith(_ROWS) and first.isdecimal() and end.isdecimal()
    return range(int(first), int(end)) if known else None


def _within(rows: range, others: range) -> bool:
    return others.start <= rows.start and rows.stop <= others.stop


def _has_entries(database: sqlite3.Connection) -> bool:
    """Whether the tables are there: a journal may have just been created."""
    return database.execute("SELECT 1 FROM sqlite_master WHERE name = 'ledger'").fetchone() is not None


def _portions(rows: Iterable[Stored]) -> Iterator[list[Stored]]:
    some: list[Stored] = []
    size = 0
    for row in rows:
        some.append(row)
        size += len(row[1]) + len(row[2] or b"")
        if size >= SEGMENT_BYTES:
            yield some
            some, size = [], 0
    if some:
        yield some


def _encoded(rows: list[Stored]) -> bytes:
    columns = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), _SCHEMA, strict=True)]
    file = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(columns, schema=_SCHEMA), file, compression="zstd", write_page_checksum=True)
    return file.getvalue()


def _decoded(place: str, content: bytes) -> list[Stored]:
    try:
        table = pq.read_table(io.BytesIO(content), page_checksum_verification=True).select(_SCHEMA.names).cast(_SCHEMA)
        return list(zip(*(column.to_pylist() for column in table.columns), strict=True))
    except (pa.ArrowException, OSError, KeyError) as error:
        remedy = "restore it, or delete it to have its rows asked again"
        raise Broken(f"{place} is not a segment of the journal ({error}): {remedy}") from error


def _number_of(name: str) -> int:
    digits = name.rpartition("/")[2].partition(".")[0]
    return int(digits) if digits.isdecimal() else 0
