"""The rows of a dataset as they are read back: sealed parts only, in order, also while a run still works on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.journal import look
from pipeline.plan import JOURNAL
from pipeline.slices import bounded_batches, part_file, rows_of


def records(output: Path, columns: Sequence[str] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of the sealed parts with their ordinals, in order: all columns, or those that are named.

    Raises `Broken` when a part is missing or damaged. Some 16 MiB of rows are in memory at once.
    """
    parts, _ = look(output / "_run" / JOURNAL)
    for name, ordinal, _ in (span for part in parts for span in part.spans()):
        with part_file(output / name) as file:
            for batch in bounded_batches(file, columns):
                for record in rows_of(batch):
                    yield ordinal, record
                    ordinal += 1  # noqa: PLW2901 - on through the file
