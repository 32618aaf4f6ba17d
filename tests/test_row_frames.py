"""Rows from memory as Parquet: types kept, the same rows the same bytes, memory that does not grow with them."""

from __future__ import annotations

import datetime as dt
import io
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from pipeline.faults import NothingToDo, UsageError
from pipeline.source.frames import GROUP_ROWS, are_places, row_differences, write_rows


def written(rows: Any) -> bytes:
    file = io.BytesIO()
    write_rows(rows, file)
    return file.getvalue()


def read(rows: Any) -> pa.Table:
    return pq.read_table(io.BytesIO(written(rows)))


def types_of(rows: Any) -> dict[str, str]:
    schema = read(rows).schema
    return {field.name: str(field.type) for field in schema}


class Record(BaseModel):
    id: int
    note: str | None = None


FIELDS = {"id": 1, "day": dt.date(2026, 1, 2), "price": Decimal("1.50"), "tags": ["a"], "at": {"x": 0.5}}


def test_records_keep_their_types_and_missing_keys_are_null() -> None:
    table = read([FIELDS, {"id": 2}])
    assert table.to_pylist() == [FIELDS, {**dict.fromkeys(FIELDS), "id": 2}]
    assert types_of([FIELDS])["price"] == "decimal128(3, 2)"


def test_models_are_records() -> None:
    assert read([Record(id=1), Record(id=2, note="x")]).to_pylist() == [{"id": 1, "note": None}, {"id": 2, "note": "x"}]


def test_a_type_that_shows_late_in_an_iterator_counts_for_all_rows() -> None:
    def rows() -> Iterator[dict[str, Any]]:
        for number in range(3 * GROUP_ROWS):
            late = number >= 2 * GROUP_ROWS
            yield {"n": number + 0.5 if late else number, **({"more": "x"} if late else {})}

    table = read(rows())
    assert (str(table.schema.field("n").type), str(table.schema.field("more").type)) == ("double", "string")
    assert table["n"][0].as_py() == 0.0
    assert table["more"].null_count == 2 * GROUP_ROWS


@pytest.mark.parametrize("bad", [[{"a": 1}, {"a": "x"}], [{"a": object()}]])
def test_values_without_a_common_type_are_refused_by_column(bad: Any) -> None:
    with pytest.raises(UsageError, match=r"the values of 'a', in rows 0 to \d"):
        written(bad)


def test_a_type_that_changes_between_batches_is_refused() -> None:
    rows = ({"a": number if number < GROUP_ROWS else "x"} for number in range(2 * GROUP_ROWS))
    with pytest.raises(UsageError, match="different types in one column"):
        written(rows)


def test_polars_frames_keep_categories_lists_and_dates() -> None:
    frame = pl.DataFrame(
        {
            "c": pl.Series(["u", "v"], dtype=pl.Categorical),
            "e": pl.Series(["u", "v"], dtype=pl.Enum(["u", "v"])),
            "l": [["a"], []],
            "d": [dt.date(2026, 1, 2), None],
        }
    )
    assert read(frame).to_pydict() == {"c": ["u", "v"], "e": ["u", "v"], "l": [["a"], []], "d": frame["d"].to_list()}
    assert types_of(frame)["d"] == "date32[day]"


def test_pandas_frames_keep_nullable_numbers_and_lose_an_index_without_a_name() -> None:
    frame = pd.DataFrame({"i": pd.array([1, None, 3], dtype="Int64"), "t": ["a", "b", "c"]})
    assert read(frame[frame["t"] != "b"]).to_pydict() == {"i": [1, 3], "t": ["a", "c"]}
    named = read(frame.set_index("t"))
    assert set(named.schema.names) == {"i", "t"}
    assert types_of(frame)["i"] == "int64"


def test_duckdb_relations_keep_decimals_and_structs() -> None:
    relation = duckdb.sql("SELECT 1.5::DECIMAL(10, 2) AS p, {'a': 1} AS s, DATE '2026-01-02' AS d")
    assert types_of(relation) == {"p": "decimal128(10, 2)", "s": "struct<a: int32>", "d": "date32[day]"}


class HuggingFace:
    """As `datasets.Dataset` is: without `__arrow_c_stream__` (version 5.2), with tables in batches."""

    features: Any = ()

    def with_format(self, kind: str) -> HuggingFace:
        assert kind == "arrow"
        return self

    def iter(self, batch_size: int) -> Iterator[pa.Table]:
        assert batch_size
        yield pa.table({"a": [1, 2]})
        yield pa.table({"a": [3]})


def test_a_dataset_of_hugging_face_is_read_in_its_arrow_format() -> None:
    assert read(HuggingFace()).to_pydict() == {"a": [1, 2, 3]}


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_the_same_rows_in_any_batches_make_the_same_bytes(sizes: list[int]) -> None:
    table = pa.table({"a": list(range(sum(sizes))), "b": [str(n) if n % 3 else None for n in range(sum(sizes))]})
    at, batches = 0, []
    for size in sizes:
        batches.append(table.slice(at, size).to_batches()[0])
        at += size
    assert written(pa.RecordBatchReader.from_batches(table.schema, batches)) == written(table)


def test_row_groups_are_bounded_by_rows_and_by_bytes() -> None:
    metadata = pq.read_metadata(io.BytesIO(written(pa.table({"a": range(2 * GROUP_ROWS + 5)}))))
    assert [metadata.row_group(at).num_rows for at in range(metadata.num_row_groups)] == [GROUP_ROWS, GROUP_ROWS, 5]
    large = pa.table({"a": ["x" * (1 << 20)] * 64})
    metadata = pq.read_metadata(io.BytesIO(written(large)))
    assert 2 <= metadata.num_row_groups <= 4


@pytest.mark.parametrize(
    "none", [[], iter(()), pa.table({"a": []}), pd.DataFrame({"a": []})], ids=lambda one: type(one).__name__
)
def test_no_row_is_nothing_to_do(none: Any) -> None:
    with pytest.raises(NothingToDo):
        written(none)


@pytest.mark.parametrize(
    ("bad", "remedy"),
    [
        ({"a": [1]}, r"pa\.table\(rows\)"),
        (5, "not int"),
        (b"x", "not bytes"),
        ([5], "row 0 is a int"),
        ([{1: 2}], "row 0 has 1"),
        (pa.table([[1], [2]], names=["a", "a"]), "two columns called 'a'"),
    ],
    ids=str,
)
def test_what_cannot_be_rows_is_refused_with_what_can(bad: Any, remedy: str) -> None:
    with pytest.raises(UsageError, match=remedy):
        written(bad)


@pytest.mark.parametrize(
    ("rows", "places"), [("a.csv", True), (Path("a"), True), (["a", Path("b")], True), ([], False), ([{}], False)]
)
def test_texts_and_paths_are_places(rows: Any, places: bool) -> None:  # noqa: FBT001 - the expected answer
    assert are_places(rows) is places


def test_differences_name_columns_types_numbers_and_the_first_row(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(written([{"x": 1, "y": "a"}, {"x": 2, "y": "b"}]))
    (tmp_path / "b").write_bytes(written([{"x": 1.0, "y": "a", "z": 0}, {"x": 2.0, "y": "c", "z": 0}, {"x": 3.0}]))
    assert row_differences(tmp_path / "a", tmp_path / "b") == [
        "column 'x' changed its type: int64 -> double",
        "column 'z' is new in `rows`",
        "rows changed: 2 -> 3",
        "column 'y' changed, first in row 1: 'b' -> 'c'",
    ]
    assert row_differences(tmp_path / "a", tmp_path / "a") == []
