"""Graded rows as two Parquet tables: one line per leaf, for analysis, and one line per row, for its result.

`leaves.parquet` has `row`, `repeat`, `slices`, `field`, `path`, `expected` and `got` as JSON text, `verdict`, `score`,
`label`, `expected_index` and `got_index`. `rows.parquet` has `row`, `repeat`, `correct`, `fault`, `slices`, `cluster`,
`cost_usd` and `latency_s`. They join on `row` and `repeat`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

from pipeline.evaluation.graders.verdicts import Graded, Leaf, Verdict
from pipeline.faults import UsageError
from pipeline.storage.durable import FILES, FileSystem

LEAVES, ROWS = "leaves.parquet", "rows.parquet"

_SLICE = 1_000
"""Rows per write."""


def write(folder: Path, graded: Iterable[Graded], files: FileSystem = FILES) -> None:
    """Writes both tables into the folder, each atomically and durably. Raises OSError when the disk fails."""
    rest = iter(graded)
    with ExitStack() as stack:
        leaves = stack.enter_context(_writer(folder / LEAVES, _leaf_schema(), files))
        rows = stack.enter_context(_writer(folder / ROWS, _row_schema(), files))
        while some := list(islice(rest, _SLICE)):
            leaves.write_batch(_batch([line for row in some for line in _leaf_lines(row)], _leaf_schema()))
            rows.write_batch(_batch(list(map(_row_line, some)), _row_schema()))


def read(folder: Path) -> Iterator[Graded]:
    """The rows that `write` wrote, in order. Raises UsageError when the tables are missing or do not match."""
    fields = groupby(_lines(folder / LEAVES), key=itemgetter("row", "repeat"))
    for line in _lines(folder / ROWS):
        at, lines = next(fields, (None, iter(())))
        if at != (line["row"], line["repeat"]):
            raise UsageError(f"{folder}: {LEAVES} and {ROWS} are not of the same run: grade it again")
        yield _graded(line, lines)


def _graded(line: Mapping[str, Any], lines: Iterable[Mapping[str, Any]]) -> Graded:
    fields = {name: tuple(map(_leaf, some)) for name, some in groupby(lines, key=itemgetter("field"))}
    return Graded(**{**line, "slices": dict(line["slices"]), "fields": fields})


def _leaf(line: Mapping[str, Any]) -> Leaf:
    return Leaf(
        path=line["path"],
        verdict=Verdict(line["verdict"]),
        expected=_value(line["expected"]),
        got=_value(line["got"]),
        score=line["score"],
        label=line["label"],
        expected_index=tuple(line["expected_index"]),
        got_index=tuple(line["got_index"]),
    )


def _leaf_lines(row: Graded) -> Iterator[dict[str, Any]]:
    own = {"row": row.row, "repeat": row.repeat, "slices": list(row.slices.items())}
    for name, leaves in row.fields.items():
        for leaf in leaves:
            yield {
                **own,
                "field": name,
                "path": leaf.path,
                "expected": _text(leaf.expected),
                "got": _text(leaf.got),
                "verdict": leaf.verdict.value,
                "score": leaf.score,
                "label": leaf.label,
                "expected_index": leaf.expected_index,
                "got_index": leaf.got_index,
            }


def _row_line(row: Graded) -> dict[str, Any]:
    names = ("row", "repeat", "correct", "fault", "cluster", "cost_usd", "latency_s")
    return {name: getattr(row, name) for name in names} | {"slices": list(row.slices.items())}


def _text(value: Any) -> str | None:
    if value is None:
        return None
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return json.dumps(value)
    return text


def _value(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def _leaf_schema() -> Any:
    import pyarrow as pa

    few, places = pa.dictionary(pa.int32(), pa.string()), pa.list_(pa.int32())
    return pa.schema(
        [
            pa.field("row", pa.string(), nullable=False),
            pa.field("repeat", pa.int32(), nullable=False),
            pa.field("slices", pa.map_(pa.string(), pa.string()), nullable=False),
            pa.field("field", few, nullable=False),
            pa.field("path", few, nullable=False),
            pa.field("expected", pa.string()),
            pa.field("got", pa.string()),
            pa.field("verdict", few, nullable=False),
            pa.field("score", pa.float64(), nullable=False),
            pa.field("label", pa.string()),
            pa.field("expected_index", places, nullable=False),
            pa.field("got_index", places, nullable=False),
        ]
    )


def _row_schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("row", pa.string(), nullable=False),
            pa.field("repeat", pa.int32(), nullable=False),
            pa.field("correct", pa.bool_(), nullable=False),
            pa.field("fault", pa.string()),
            pa.field("slices", pa.map_(pa.string(), pa.string()), nullable=False),
            pa.field("cluster", pa.string()),
            pa.field("cost_usd", pa.float64()),
            pa.field("latency_s", pa.float64()),
        ]
    )


def _batch(lines: Sequence[Mapping[str, Any]], schema: Any) -> Any:
    import pyarrow as pa

    return pa.RecordBatch.from_pylist(lines, schema=schema)


@contextmanager
def _writer(path: Path, schema: Any, files: FileSystem) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with (
        files.atomic_writer(path) as file,
        pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        yield writer


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError:
        raise UsageError(f"{path} is not there: grade the run first") from None
    with file:
        for batch in file.iter_batches():
            yield from batch.to_pylist()
