"""Reads the rows of a dataset back: sealed parts only, in order, even while a run is still writing it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.data import Part
from pipeline.faults import Broken, ProviderUnusable, UsageError
from pipeline.storage.batches import bounded_batches, part_file, rows_of
from pipeline.storage.journal_reader import read_state
from pipeline.storage.remote.part_files import is_readable
from pipeline.storage.run_folder import RunFolder
from pipeline.totals.failures import FailureKind, Failures


def records(output: Path, columns: Sequence[str] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of the sealed parts with their ordinals, in order: all columns, or the named ones.

    Raises `Broken` when a part is missing or damaged. About 16 MiB of rows are in memory at a time.
    """
    parts, _ = read_state(RunFolder(output).journal)
    for name, ordinal, _ in (span for part in parts for span in part.spans()):
        with part_file(output / name) as file:
            for batch in bounded_batches(file, columns):
                for record in rows_of(batch):
                    yield ordinal, record
                    ordinal += 1  # noqa: PLW2901 - counts on through the file


def with_examples(failures: Failures, output: Path, parts: Iterable[Part]) -> Failures:
    """The failures, each kind with the message of its example row if that row is in a sealed part."""
    spans = [span for part in sorted(parts, key=lambda part: part.first) for span in part.spans()]
    return Failures(tuple(kind if kind.example else _with_example(kind, output, spans) for kind in failures.kinds))


def _with_example(kind: FailureKind, output: Path, spans: Sequence[tuple[str, int, int]]) -> FailureKind:
    for name, first, rows in spans:
        if first <= kind.row < first + rows and is_readable(output / name):
            # Damage is reported by the part check; without an example the kind is still counted.
            with suppress(Broken, ProviderUnusable, UsageError), part_file(output / name) as file:
                return replace(kind, example=_message(file, kind.row - first))
    return kind


def _message(file: pq.ParquetFile, row: int) -> str:
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if row < rows:
            (error,) = file.read_row_group(group, columns=["error"]).column("error").slice(row, 1).to_pylist()
            return str((error or {}).get("message") or "")
        row -= rows
    return ""
