"""The source by itself: rows and kept columns out of JSONL and Parquet."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.source import Source, survey
from tests.benchmarks.figures import Line
from tests.benchmarks.scale import Scale, write_rows


def measure(scale: Scale) -> list[Line]:
    """CPU a row, to the standard library's `json` and to pyarrow's lists of dicts."""
    rows = scale.of(50_000, 5000)
    with tempfile.TemporaryDirectory() as folder:
        jsonl, parquet = write_rows(Path(folder) / "rows.jsonl", rows), Path(folder) / "rows.parquet"
        pq.write_table(pa.Table.from_pylist(_loaded(jsonl)), parquet)
        return [
            Line("source: JSONL, CPU a row surveyed and read, to json", "us", *_both(rows, jsonl, _loaded)),
            Line("source: Parquet, CPU a row, to to_pylist", "us", *_both(rows, parquet, _listed)),
        ]


def _both(rows: int, path: Path, plain: Callable[[Path], object]) -> tuple[float, float]:
    return _cpu_us(rows, path, _read), _cpu_us(rows, path, plain)


def _read(path: Path) -> None:
    found = survey(str(path))
    source = Source(found, needed=["text"], kept=["id", "text"])
    for chunk in range(len(found.chunks)):
        for batch in source.chunk(chunk):
            len(batch.rows)
    source.close()


def _loaded(path: Path) -> list[object]:
    with path.open("rb") as file:
        return [json.loads(line) for line in file]


def _listed(path: Path) -> None:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches():
            batch.to_pylist()


def _cpu_us(rows: int, path: Path, read: Callable[[Path], object]) -> float:
    before = time.process_time()
    read(path)
    return (time.process_time() - before) / rows * 1e6
