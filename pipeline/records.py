"""The rows of a dataset as they are read back: sealed parts only, in order, also while a run still works on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.journal import look
from pipeline.plan import JOURNAL


def records(output: Path, columns: Sequence[str] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of the sealed parts with their ordinals, in order: all columns, or those that are named."""
    parts, _ = look(output / "_run" / JOURNAL)
    for part in parts:
        with pq.ParquetFile(output / part.name) as file:
            ordinal = part.first
            for batch in file.iter_batches(batch_size=256, columns=columns):
                for record in batch.to_pylist():
                    yield ordinal, record
                    ordinal += 1
