"""The source by itself: rows and kept columns out of JSONL and Parquet."""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.source import Source, survey
from tests.benchmarks.figures import FigureTarget, Line
from tests.benchmarks.scale import Scale, write_rows

_WORDS = ("the quick brown fox jumps over a lazy dog while rain falls on the village", "and nobody looks up at it")


def measure(scale: Scale) -> list[Line]:
    """CPU a row, to the standard library's `json` and to pyarrow's lists of dicts; the survey's speed, to orjson."""
    return [*_reads(scale), *_surveys(scale)]


def _surveys(scale: Scale) -> list[Line]:
    """MB that a core surveys in a second, of short texts and of records of eight columns, to orjson alone."""
    rows = scale.of(200_000, 10_000)
    with tempfile.TemporaryDirectory() as folder:
        texts = write_rows(Path(folder) / "texts.jsonl", rows)
        records = _write_records(Path(folder) / "records.jsonl", rows)
        return [
            Line("source: survey of JSONL texts, to orjson alone", "MB/s", *_speeds(texts), FigureTarget(">=", 200)),
            Line(
                "source: survey of JSONL of eight columns, to orjson",
                "MB/s",
                *_speeds(records),
                FigureTarget(">=", 200),
            ),
        ]


def _write_records(path: Path, rows: int) -> Path:
    """Records of 330 bytes: texts, numbers, a list and an object."""
    chosen = random.Random(1)
    with path.open("wb") as file:
        for row in range(rows):
            record = {
                "id": f"doc-{row:08d}",
                "text": " ".join(chosen.choices(_WORDS, k=4)),
                "lang": chosen.choice(["en", "de", "fr"]),
                "score": chosen.random(),
                "n": chosen.randrange(1000),
                "ok": row % 3 == 0,
                "tags": ["a", "b"][: row % 3],
                "meta": {"src": "web", "rank": row % 100},
            }
            file.write(orjson.dumps(record) + b"\n")
    return path


def _speeds(path: Path) -> tuple[float, float]:
    """Of the survey and of orjson alone: the best of three rounds that alternate."""
    survey(str(path))
    rounds = [(_cpu_us(1, path, _surveyed), _cpu_us(1, path, _parsed)) for _ in range(3)]
    ours, alone = (min(each) for each in zip(*rounds, strict=True))
    return path.stat().st_size / ours, path.stat().st_size / alone


def _surveyed(path: Path) -> None:
    survey(str(path))


def _parsed(path: Path) -> None:
    with path.open("rb") as file:
        for line in file:
            orjson.loads(line)


def _reads(scale: Scale) -> list[Line]:
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
