"""Copied columns are read by every reader, and files may differ in types wherever the values stay the same."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.faults import UsageError
from pipeline.source import Source, Survey, kept_schema, survey
from pipeline.source.kept_types import cast, without_views

EPOCH = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - a timestamp without a zone

VIEWS: dict[str, tuple[pa.DataType, list[Any]]] = {
    "a list view": (pa.list_view(pa.int64()), [[1], None, [], [2, None, 3]]),
    "a large one": (pa.large_list_view(pa.string()), [["a"], None, ["b", "c"]]),
    "one in another": (pa.list_view(pa.list_view(pa.int8())), [[[1], None], None, [[], [2, 3]]]),
    "one in a list": (pa.list_(pa.list_view(pa.int8())), [[[1], None], None, [[], [2, 3]]]),
    "one in a struct": (pa.struct([("a", pa.list_view(pa.int8()))]), [{"a": [1, 2]}, None, {"a": None}, {"a": [3]}]),
    "one in a map": (pa.map_(pa.string(), pa.list_view(pa.int8())), [[("a", [1]), ("b", None)], None, [("c", [2, 3])]]),
    "one in a list of fixed size": (pa.list_(pa.list_view(pa.int8()), 2), [[[1], [2, 3]], None, [None, []]]),
    "lists of nothing in one": (
        pa.list_view(pa.struct([("a", pa.list_(pa.null())), ("b", pa.list_(pa.null(), 2))])),
        [[{"a": [None], "b": None}], None, [{"a": None, "b": [None, None]}, {"a": [], "b": None}]] * 3,
    ),
    "texts in a struct": (
        pa.struct([("a", pa.string_view()), ("b", pa.list_(pa.binary_view()))]),
        [{"a": "x" * 20, "b": [b"y" * 20]}, None, {"a": None, "b": []}],
    ),
    "structs in one": (pa.list_view(pa.struct([("a", pa.int8())])), [[{"a": 1}, None], None, [{"a": None}]]),
}


def kept_of(found: Survey) -> pa.Table:
    source = Source(found, needed=[], kept=list(found.columns))
    batches = [batch.kept for index in range(len(found.chunks)) for batch in source.chunk(index)]
    return pa.Table.from_batches(batches, source.kept_schema)


def values_of(found: Survey) -> list[Any]:
    """The rows as prompts see them."""
    return [dict(row.values) for batch in Source(found, needed=None, kept=[]).chunk(0) for row in batch.rows]


def read_by_all(table: pa.Table, path: Path) -> list[list[dict[str, Any]]]:
    """What three readers make of the table in a file."""
    pq.write_table(table, path)
    readers = [pq.read_table(path), duckdb.read_parquet(str(path)).to_arrow_table(), pl.read_parquet(path).to_arrow()]
    return [found.to_pylist() for found in readers]


@pytest.mark.parametrize("kind", VIEWS)
def test_views_are_copied_as_what_they_are_views_of(kind: str, tmp_path: Path) -> None:
    """Polars refuses a file for a column that is called a list view, and Arrow cannot write a slice of some views."""
    (tmp_path / "in").mkdir()
    type_, values = VIEWS[kind]
    pq.write_table(pa.table({"x": pa.array(values, type_)}), tmp_path / "in/a.parquet")
    rows = [{"x": value} for value in values]
    assert values_of(survey(tmp_path / "in")) == rows
    assert read_by_all(kept_of(survey(tmp_path / "in")), tmp_path / "out.parquet") == [rows] * 3


@given(st.lists(st.none() | st.lists(st.none() | st.integers(0, 9), max_size=4), max_size=8), st.data())
def test_a_list_view_is_cast_to_the_same_lists_wherever_it_begins(values: list[Any], data: st.DataObject) -> None:
    whole = pa.array(values, pa.list_view(pa.int8()))
    start = data.draw(st.integers(0, len(values)))
    array = cast(whole[start:], pa.list_(pa.int64()))
    array.validate(full=True)
    assert array.to_pylist() == values[start:]


def test_views_that_are_out_of_order_are_cast_to_the_same_lists() -> None:
    views = pa.ListViewArray.from_arrays(pa.array([2, 0, 1], pa.int32()), pa.array([1, 2, 2], pa.int32()), [1, 2, 3])
    assert cast(views, without_views(views.type)).to_pylist() == views.to_pylist() == [[3], [1, 2], [2, 3]]


def test_an_offset_for_a_zone_is_copied_as_utc_and_given_to_prompts_as_it_is(tmp_path: Path) -> None:
    """Polars and DuckDB know no such zone; Parquet stores the instant alone."""
    (tmp_path / "in").mkdir()
    at = pa.array([0, None], pa.timestamp("us", "+05:30"))
    pq.write_table(pa.table({"x": at, "inner": [[at[0]], []]}), tmp_path / "in/a.parquet")
    found = survey(tmp_path / "in")
    instant = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    rows = [{"x": instant, "inner": [instant]}, {"x": None, "inner": []}]
    assert read_by_all(kept_of(found), tmp_path / "out.parquet") == [rows] * 3
    (batch,) = Source(found, needed=["x"], kept=[]).chunk(0)
    assert batch.rows[0].values["x"].isoformat() == "1970-01-01T05:30:00+05:30"


BAD = pa.Array.from_buffers(
    pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"\xff\xfea")]
)
"""A text that is not UTF-8, and one that is."""

NOT_TEXT: dict[str, tuple[pa.Array, list[Any]]] = {
    "a text": (BAD, ["\ufffd\ufffd", "a"]),
    "in a list": (pa.ListArray.from_arrays([0, 2, 2], BAD), [["\ufffd\ufffd", "a"], []]),
    "in a map": (pa.MapArray.from_arrays([0, 2, 2], BAD, pa.array([1, 2])), [[("\ufffd\ufffd", 1), ("a", 2)], []]),
    "in a struct with bytes": (
        pa.StructArray.from_arrays([BAD, pa.array([b"\xff", b"x"])], ["text", "bytes"]),
        [{"text": "\ufffd\ufffd", "bytes": b"\xff"}, {"text": "a", "bytes": b"x"}],
    ),
    "beside what Python has no form for": (
        pa.StructArray.from_arrays([BAD, pa.array([1001, 0], pa.timestamp("ns"))], ["text", "at"]),
        [None, {"text": "a", "at": EPOCH}],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", NOT_TEXT)
def test_text_that_is_not_utf8_is_copied_with_replacements(kind: str, tmp_path: Path) -> None:
    """DuckDB and Polars refuse the whole file for one such text."""
    array, copied = NOT_TEXT[kind]
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"x": array}), tmp_path / "in/a.parquet")
    table = kept_of(survey(tmp_path / "in"))
    assert table["x"].type.equals(pq.read_schema(tmp_path / "in/a.parquet").field("x").type)
    assert table["x"].to_pylist() == copied
    pq.write_table(table, tmp_path / "out.parquet")
    assert len(duckdb.read_parquet(str(tmp_path / "out.parquet")).fetchall()) == 2
    assert pl.read_parquet(tmp_path / "out.parquet").height == 2


def test_columns_that_never_hold_a_value_are_text_at_every_level(tmp_path: Path) -> None:
    """Spark refuses a file with a column of no type."""
    table = pa.table({"a": pa.nulls(1), "b": [[None]], "c": [{"d": None, "e": 1}]})
    pq.write_table(table, tmp_path / "a.parquet")
    found = survey(tmp_path)
    assert kept_schema(found, ["a", "b", "c"]).types == [
        pa.string(), pa.list_(pa.field("element", pa.string())), pa.struct([("d", pa.string()), ("e", pa.int64())]),
    ]  # fmt: skip
    assert kept_of(found).to_pylist() == table.to_pylist()


def surveyed(folder: Path, *columns: pa.Array) -> Survey:
    """A file for each of these, with a column x."""
    for number, column in enumerate(columns):
        pq.write_table(pa.table({"x": column}), folder / f"{number}.parquet")
    return survey(folder)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_file_without_rows_changes_the_type_of_no_column(place: int, tmp_path: Path) -> None:
    """A writer without rows to go by often has no type for a column, or another."""
    columns = [pa.array([1], pa.int32()), pa.array([2**40])]
    columns.insert(place, pa.array([], pa.string()))
    found = surveyed(tmp_path, *columns)
    assert kept_of(found).to_pydict() == {"x": [1, 2**40]}


def test_a_column_of_files_without_rows_has_the_type_that_they_say(tmp_path: Path) -> None:
    assert surveyed(tmp_path, pa.array([], pa.int32()), pa.array([], pa.string())).columns == {"x": "int32"}


def test_a_column_that_only_a_file_without_rows_has_is_a_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"y": pa.array([], pa.int64())}), tmp_path / "1.parquet")
    assert kept_of(survey(tmp_path)).to_pylist() == [{"x": 1, "y": None}]


def test_instants_in_different_zones_are_instants_in_utc(tmp_path: Path) -> None:
    found = surveyed(
        tmp_path, pa.array([0], pa.timestamp("us", "Europe/Berlin")), pa.array([1], pa.timestamp("ns", "Asia/Tokyo"))
    )
    assert found.columns == {"x": "timestamp[ns, tz=UTC]"}
    assert kept_of(found)["x"].cast(pa.int64()).to_pylist() == [0, 1]


def test_lists_and_list_views_of_different_files_are_lists(tmp_path: Path) -> None:
    found = surveyed(tmp_path, pa.array([[1], None]), pa.array([[2, 3], None, [4]], pa.list_view(pa.int8())))
    assert kept_of(found).to_pydict() == {"x": [[1], None, [2, 3], None, [4]]}


def test_a_conflict_names_the_file_that_gave_the_column_its_type(tmp_path: Path) -> None:
    found = surveyed(tmp_path, pa.array([1], pa.int8()), pa.array([0.5], pa.float32()), pa.array(["a"]))
    with pytest.raises(UsageError, match=r"'x' is string in .*2\.parquet but float in .*1\.parquet"):
        kept_schema(found, ["x"])
