"""Columns that differ between Parquet files get one type where nothing is lost, and nobody else pays for the rest."""

from __future__ import annotations

from datetime import UTC, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import Row
from pipeline.faults import InvalidRow, UsageError
from pipeline.source import Source, survey
from pipeline.source.type_promotion import conformed, widened


def struct(*fields: tuple[str, pa.DataType]) -> pa.DataType:
    return pa.struct(list(fields))


TIME = time(1, 2, 3)
AT = datetime(2026, 1, 31, 1, 2, 3, tzinfo=UTC)
NAIVE = AT.replace(tzinfo=None)
WIDENED: dict[str, tuple[pa.DataType, pa.DataType, pa.DataType, Any, Any]] = {
    "string, large_string": (pa.string(), pa.large_string(), pa.string(), "a", "é"),
    "string_view, string": (pa.string_view(), pa.string(), pa.string(), "a long one, out of line", "b"),
    "dictionary, string": (pa.dictionary(pa.int8(), pa.string()), pa.string(), pa.string(), "a", "b"),
    "dictionaries": (
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.int32(), pa.large_string()),
        pa.string(),
        "a",
        "b",
    ),
    "binary, fixed": (pa.large_binary(), pa.binary(2), pa.binary(), b"a", b"bc"),
    "int8, int64": (pa.int8(), pa.int64(), pa.int64(), -1, 2**63 - 1),
    "uint32, int32": (pa.uint32(), pa.int32(), pa.int64(), 2**32 - 1, -(2**31)),
    "uint64, int64": (pa.uint64(), pa.int64(), pa.decimal128(20, 0), 2**64 - 1, -(2**63)),
    "float, double": (pa.float32(), pa.float64(), pa.float64(), 0.5, 0.1),
    "int32, double": (pa.int32(), pa.float64(), pa.float64(), 2**31 - 1, 0.1),
    "decimals": (pa.decimal128(9, 2), pa.decimal128(12, 4), pa.decimal128(12, 4), Decimal("1.50"), Decimal("2.0001")),
    "int64, decimal": (pa.int64(), pa.decimal128(12, 4), pa.decimal128(24, 4), 2**63 - 1, Decimal("1.5")),
    "times": (pa.time32("s"), pa.time64("us"), pa.time64("us"), TIME, TIME),
    "UTC by two names": (pa.timestamp("us", "UTC"), pa.timestamp("us", "Etc/UTC"), pa.timestamp("us", "UTC"), AT, AT),
    "UTC by an offset": (pa.timestamp("ms", "+00:00"), pa.timestamp("us", "Z"), pa.timestamp("us", "UTC"), AT, AT),
    "two zones": (pa.timestamp("us", "UTC"), pa.timestamp("us", "Europe/Berlin"), pa.timestamp("us", "UTC"), AT, AT),
    "units of time": (pa.timestamp("us"), pa.timestamp("ms"), pa.timestamp("us"), NAIVE, NAIVE),
    "lists": (pa.list_(pa.int32()), pa.large_list(pa.int64()), pa.list_(pa.int64()), [1, None], [2**40]),
    "lists of a fixed size": (pa.list_(pa.int32(), 2), pa.list_(pa.int32()), pa.list_(pa.int32()), [1, 2], []),
    "maps": (
        pa.map_(pa.string(), pa.int32()),
        pa.map_(pa.string(), pa.int64()),
        pa.map_(pa.string(), pa.int64()),
        [("a", 1)],
        [("b", 2**40)],
    ),
    "fields added and in another order": (
        struct(("a", pa.int32()), ("b", pa.string())),
        struct(("c", pa.bool_()), ("b", pa.large_string()), ("a", pa.int64())),
        struct(("a", pa.int64()), ("b", pa.string()), ("c", pa.bool_())),
        {"a": 1, "b": "x", "c": None},
        {"a": 2, "b": "y", "c": True},
    ),
    "no field in common": (
        struct(("a", pa.int32())),
        struct(("b", pa.int32())),
        struct(("a", pa.int32()), ("b", pa.int32())),
        {"a": 1, "b": None},
        {"a": None, "b": 2},
    ),
}


def two_files(folder: Path, one: pa.Array, other: pa.Array) -> None:
    pq.write_table(pa.table({"x": one, "n": [1] * len(one)}), folder / "1.parquet")
    pq.write_table(pa.table({"x": other, "n": [2] * len(other)}), folder / "2.parquet")


def given_in(value: Any, kind: pa.DataType) -> Any:
    return {name: value[name] for name in kind.names} if pa.types.is_struct(kind) else value


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("case", WIDENED)
def test_i4_types_that_one_type_holds_exactly_are_widened_to_it(tmp_path: Path, case: str, *, swapped: bool) -> None:
    kinds, settled, expected = WIDENED[case][:2], WIDENED[case][2], list(WIDENED[case][3:])
    arrays = [pa.array([given_in(value, kind), None], kind) for value, kind in zip(expected, kinds, strict=True)]
    if swapped:
        arrays.reverse()
        expected.reverse()
    two_files(tmp_path, *arrays)
    found = survey(tmp_path)
    source = Source(found, needed=["x"], kept=["x"])
    batches = list(source.chunk(0))
    kind = source.kept_schema.field("x").type
    assert kind == settled or (swapped and pa.types.is_struct(kind) and {*kind} == {*settled})
    values = [expected[0], None, expected[1], None]
    assert [value for batch in batches for value in batch.kept["x"].to_pylist()] == values
    assert [row.values["x"] for batch in batches for row in batch.rows] == values


LOSSY = {
    "int64, double": (pa.int64(), pa.float64()),
    "string, int64": (pa.string(), pa.int64()),
    "with and without a zone": (pa.timestamp("us"), pa.timestamp("us", "UTC")),
    "date, timestamp": (pa.date32(), pa.timestamp("us")),
    "bool, int8": (pa.bool_(), pa.int8()),
    "structs of other types": (struct(("a", pa.int64())), struct(("a", pa.string()))),
    "string, binary": (pa.string(), pa.binary()),
    "list, struct": (pa.list_(pa.int64()), struct(("a", pa.int64()))),
}


@pytest.mark.parametrize("case", LOSSY)
def test_i4_a_column_that_no_type_holds_refuses_only_those_who_keep_it(tmp_path: Path, case: str) -> None:
    one, other = LOSSY[case]
    two_files(tmp_path, pa.nulls(1, one), pa.nulls(1, other))
    found = survey(tmp_path)
    assert dict(found.columns) == {"x": "mixed", "n": "int64"}
    with pytest.raises(UsageError, match=r"column 'x' is .* in .*2\.parquet but .* in .*1\.parquet: leave it out"):
        Source(found, needed=["n"], kept=["x", "n"])
    batches = list(Source(found, needed=["n", "x"], kept=["n"]).chunk(0))
    assert [row for batch in batches for row in batch.rows] == [
        Row(0, {"n": 1, "x": None}),
        Row(1, {"n": 2, "x": None}),
    ]


def test_a_value_that_does_not_fit_the_widened_type_fails_its_row_alone(tmp_path: Path) -> None:
    far = pa.array([0, 10**15], pa.int64()).cast(pa.timestamp("ms"))  # nanoseconds end in the year 2262
    two_files(tmp_path, far, pa.array([1], pa.int64()).cast(pa.timestamp("ns")))
    batches = list(Source(survey(tmp_path), needed=["n", "x"], kept=["x"]).chunk(0))
    rows = [row for batch in batches for row in batch.rows]
    assert [value for batch in batches for value in batch.kept["x"].is_valid().to_pylist()] == [True, False, True]
    assert (rows[0].values["x"].year, rows[1].values["n"], rows[2].values["n"]) == (1970, 1, 2)
    with pytest.raises(
        InvalidRow, match=r"row 1: column 'x' holds a timestamp\[ms\] that does not fit timestamp\[ns\]"
    ):
        rows[1].values["x"]


scalar_types = st.sampled_from(
    [
        *(pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
        *(pa.float32(), pa.float64(), pa.decimal128(5, 2), pa.decimal128(38, 10), pa.bool_(), pa.null()),
        *(pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int8(), pa.string())),
        *(pa.date32(), pa.date64(), pa.time32("ms"), pa.time64("ns"), pa.timestamp("ms"), pa.timestamp("us", "UTC")),
    ]
)
types = st.recursive(
    scalar_types,
    lambda inner: st.one_of(
        inner.map(pa.list_),
        inner.map(pa.large_list),
        st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3).map(
            lambda fields: pa.struct(list(fields.items()))
        ),
    ),
    max_leaves=4,
)


@settings(max_examples=400, deadline=None)
@given(one=types, other=types)
def test_widening_is_the_same_either_way_and_holds_nulls_and_empty_values_of_both(
    one: pa.DataType, other: pa.DataType
) -> None:
    merged, reversed_ = widened(one, other), widened(other, one)
    assert widened(one, one) == one
    assert (merged is None) == (reversed_ is None)
    if merged is not None:
        assert widened(merged, other) == widened(merged, one) == merged
        for kind in (one, other):
            assert conformed(pa.nulls(2, kind), merged).to_pylist() == [None, None]
