"""The rows of a run with their outcomes: sealed rows from its parts, the others from its journal.

Reads lazily and in row order, also while the run is in progress.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from heapq import merge
from operator import itemgetter
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data import Entry, Failure, Part
from pipeline.execution.input_rows import InputRows
from pipeline.faults import Broken, Fault
from pipeline.job.job import Job
from pipeline.job.reply_parser import ReplyParser
from pipeline.schema.bigquery import legal_names
from pipeline.storage.batches import bounded_batches, part_file, rows_of
from pipeline.storage.dataset import Dataset
from pipeline.storage.journal_reader import entries_in, read_state, recorded_in, worker_journals
from pipeline.storage.run_folder import RunFolder

_EVERY_ROW = 2**62

UNREAD = "answered"
"""The status of a row whose reply is in the journal, if there is no job to parse it with."""


@dataclass(frozen=True, slots=True)
class RunRow:
    """A row of the output: as its part holds it, or as its part will once it is sealed."""

    ordinal: int
    record: dict[str, Any]
    sealed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which rows to select; all by default. `key` is the text of a value in the column `key_column`."""

    failed: bool = False
    ordinal: int | None = None
    key: str | None = None
    key_column: str | None = None

    @property
    def columns(self) -> list[str]:
        """The columns that the selection depends on."""
        return [*(["status"] if self.failed else []), *([self.key_column] if self.key_column and self.key else [])]

    def takes(self, ordinal: int, record: dict[str, Any]) -> bool:
        """Whether a row is selected."""
        return (
            (self.ordinal is None or ordinal == self.ordinal)
            and (not self.failed or record["status"] == "failed")
            and (self.key is None or self._has_key(record))
        )

    def _has_key(self, record: dict[str, Any]) -> bool:
        value = record.get(self.key_column or "")
        return value is not None and str(value) == self.key


class RunRows:
    """The rows of a run. Given its `job` and `inputs`, rows that are not yet in a part have all their columns too."""

    def __init__(self, output: Path, job: Job | None = None, inputs: InputRows | None = None) -> None:
        self._output = output
        self._inputs = inputs
        self._reader = job.reader if job is not None else None
        self._preview = Dataset(output, inputs.kept if inputs else _NO_COLUMNS, self._reader or ReplyParser(None), {})

    def select(self, selection: Selection) -> Iterator[RunRow]:
        """The selected rows, in order. Raises `Broken` if a part or the journal is missing or damaged."""
        journal = RunFolder(self._output).journal
        parts, pending = read_state(journal)
        unsealed = _unsealed(journal, parts) if pending else {}
        rows = merge(self._sealed(parts, selection), self._unsealed(unsealed, selection), key=lambda row: row.ordinal)
        return (row for row in rows if selection.takes(row.ordinal, row.record))

    def _sealed(self, parts: Sequence[Part], selection: Selection) -> Iterator[RunRow]:
        for name, first, rows in (span for part in parts for span in part.spans()):
            if selection.ordinal is None or first <= selection.ordinal < first + rows:
                with part_file(self._output / name) as file:
                    yield from _rows_in(file, first, selection)

    def _unsealed(self, found: Mapping[int, Path], selection: Selection) -> Iterator[RunRow]:
        """The rows of the journals that `found` assigns to one, in order; each journal is opened once."""
        first, rows = (0, _EVERY_ROW) if selection.ordinal is None else (selection.ordinal, 1)
        entries = (_entries_of(path, first, rows, found) for path in sorted(set(found.values())))
        for ordinal, entry in merge(*entries, key=itemgetter(0)):
            if not selection.failed or self._has_failed(ordinal, entry):
                yield RunRow(ordinal, self._record(ordinal, entry), sealed=False)

    def _has_failed(self, ordinal: int, entry: Entry) -> bool:
        if self._reader is None:
            return isinstance(entry, Fault)
        return isinstance(self._reader.outcome(ordinal, entry), Failure)

    def _record(self, ordinal: int, entry: Entry) -> dict[str, Any]:
        kept = self._inputs.row(ordinal)[1] if self._inputs else _NOTHING_KEPT
        (record,) = rows_of(self._preview.preview([kept], [(ordinal, entry)]))
        if self._reader is None and not isinstance(entry, Fault):
            record |= {"status": UNREAD, "parsed": None, "error": None}
        return record


_NO_COLUMNS = pa.schema([])
_NOTHING_KEPT = pa.RecordBatch.from_struct_array(pa.array([{}], pa.struct([])))


def key_column(job: Mapping[str, str]) -> str | None:
    """The output column that identifies a row for users, by a job's fingerprint; None if the job names none."""
    columns = orjson.loads(job.get("columns") or "{}")
    key, rename = columns.get("key"), columns.get("rename") or {}
    if key is None:
        return None
    return str(legal_names([key])[key] if isinstance(rename, str) else rename.get(key, key))


def _rows_in(file: pq.ParquetFile, first: int, selection: Selection) -> Iterator[RunRow]:
    """The selected rows of a part's file; only row groups that contain one are read in full."""
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        wanted = _wanted_in(file, group, first, rows, selection)
        at = first
        for batch in bounded_batches(file, groups=[group]) if wanted else ():
            for number in (n for n in wanted if at <= n < at + batch.num_rows):
                (record,) = rows_of(batch.slice(number - at, 1))
                yield RunRow(number, record, sealed=True)
            at += batch.num_rows
        first += rows


def _wanted_in(file: pq.ParquetFile, group: int, first: int, rows: int, selection: Selection) -> Sequence[int]:
    """The ordinals of the selected rows in a row group."""
    if selection.ordinal is not None and not first <= selection.ordinal < first + rows:
        return ()
    columns = [name for name in selection.columns if name in file.schema_arrow.names]
    if not columns:
        return range(first, first + rows)
    deciding = (record for batch in bounded_batches(file, columns, groups=[group]) for record in rows_of(batch))
    return [ordinal for ordinal, record in enumerate(deciding, first) if selection.takes(ordinal, record)]


def _unsealed(journal: Path, parts: Sequence[Part]) -> dict[int, Path]:
    """The ordinals that are recorded but in no part, each with the journal that holds it."""
    ends = sorted((part.first, part.first + part.rows) for part in parts)
    starts = [first for first, _ in ends]
    found: dict[int, Path] = {}
    for path in [journal, *worker_journals(journal)]:
        with suppress(Broken):  # a worker's journal that was just created, or absorbed
            found |= dict.fromkeys(recorded_in(path, 0, _EVERY_ROW), path)

    def is_sealed(ordinal: int) -> bool:
        place = bisect_right(starts, ordinal) - 1
        return place >= 0 and ordinal < ends[place][1]

    return {ordinal: path for ordinal, path in found.items() if not is_sealed(ordinal)}


def _entries_of(path: Path, first: int, rows: int, found: Mapping[int, Path]) -> Iterator[tuple[int, Entry]]:
    """The entries that `found` assigns to this journal; those that were sealed or absorbed meanwhile are left out."""
    try:
        for ordinal, entry in entries_in(path, first, rows):
            if found.get(ordinal) == path:
                yield ordinal, entry
    except Broken:
        if path.exists():
            raise
