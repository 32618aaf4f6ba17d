"""Parquet is checked by its footers before the first row, and read column by column, loudly where it is broken."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data import Row
from pipeline.faults import Broken, InvalidRow, UsageError
from pipeline.source import Batch, Source, Survey, survey


def written(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def batches(found: Survey, needed: Sequence[str] | None = None, kept: Sequence[str] = ()) -> list[Batch]:
    source = Source(found, needed=needed, kept=kept)
    return [batch for index in range(len(found.chunks)) for batch in source.chunk(index)]


def rows(found: Survey, needed: Sequence[str] | None = None) -> list[Row]:
    return [row for batch in batches(found, needed) for row in batch.rows]


def flipped(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("harm", ["empty", "cut short", "broken footer"])
def test_i3_a_file_that_is_no_whole_parquet_is_refused_by_name_before_the_first_call(tmp_path: Path, harm: str) -> None:
    written(tmp_path / "a.parquet", {"n": [1]})
    path = written(tmp_path / "b.parquet", {"n": list(range(1000))})
    content = path.read_bytes()
    harms = {
        "empty": b"",
        "cut short": content[:-10],
        "broken footer": content[:-100] + b"\xff" * 60 + content[-40:],
    }
    path.write_bytes(harms[harm])
    with pytest.raises(
        UsageError, match=rf"{path} is not a complete Parquet file \(.*\); write it again or take it out"
    ):
        survey([tmp_path])


@pytest.mark.parametrize("checksums", [True, False])
def test_i3_a_bad_page_stops_the_run_with_file_and_row_group(tmp_path: Path, *, checksums: bool) -> None:
    path = written(
        tmp_path / "a.parquet",
        {"n": [f"{n:09}" for n in range(1000)]},
        row_group_size=300,
        use_dictionary=False,
        compression="snappy" if checksums else "zstd",
        write_page_checksum=checksums,
    )
    column = pq.read_metadata(path).row_group(2).column(0)
    flipped(path, column.data_page_offset + column.total_compressed_size - 9)
    found = survey([path], chunk_rows=100)
    source = Source(found, needed=["n"], kept=[])
    assert sum(len(batch.rows) for index in range(6) for batch in source.chunk(index)) == 600
    with pytest.raises(Broken, match=rf"{path}, row group 2: cannot be read"):
        list(source.chunk(6))


def test_i3_a_bad_page_of_a_column_nobody_asked_for_does_no_harm(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", {"n": [1, 2], "x": ["a" * 99, "b" * 99]}, write_page_checksum=True)
    column = pq.read_metadata(path).row_group(0).column(1)
    flipped(path, column.data_page_offset + 40)
    assert rows(survey([path]), ["n"]) == [Row(0, {"n": 1}), Row(1, {"n": 2})]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.int64(), pa.float64()),
        (pa.string(), pa.int64()),
        (pa.timestamp("us"), pa.timestamp("us", "UTC")),
        (pa.list_(pa.int64()), pa.list_(pa.string())),
        (pa.struct([("a", pa.int64())]), pa.struct([("a", pa.string())])),
    ],
)
def test_i4_a_column_of_two_types_is_refused_with_both_files(
    tmp_path: Path, one: pa.DataType, other: pa.DataType
) -> None:
    paths = [
        written(tmp_path / f"{index}.parquet", {"x": pa.nulls(1, kind)})
        for index, kind in enumerate([pa.null(), one, other])
    ]
    found = survey([tmp_path])
    with pytest.raises(UsageError) as refused:
        Source(found, needed=[], kept=["x"])
    assert str(refused.value).startswith(
        f"column 'x' is {other} in {paths[2]} but {one} in {paths[1]}: ".replace("item", "element")
    )


@pytest.mark.parametrize(
    "values",
    [
        pa.array([1, None]),
        pa.array(["a", "b"], pa.dictionary(pa.int8(), pa.string())),
        pa.array([[1], None], pa.list_(pa.int64())),
        pa.array([Decimal("1.50"), None]),
        pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
    ],
    ids=lambda values: str(values.type),
)
def test_i4_null_and_absence_widen_to_the_type_of_another_file(tmp_path: Path, values: pa.Array) -> None:
    written(tmp_path / "0.parquet", {"x": pa.nulls(2), "y": [1, 2]})
    written(tmp_path / "1.parquet", {"x": values, "y": [3, 4]})
    written(tmp_path / "2.parquet", {"y": [5, 6]})
    found = survey([tmp_path])
    assert found.arrow_schema() == pa.schema({"x": values.type, "y": pa.int64()})
    kept = pa.Table.from_batches([batch.kept for batch in batches(found, kept=["x", "y"])])
    assert kept.schema == pa.schema({"x": values.type, "y": pa.int64()})
    assert kept["x"].to_pylist() == [None, None, *values.to_pylist(), None, None]
    assert [row.values["x"] for row in rows(found)] == kept["x"].to_pylist()


def test_i5_nested_nulls_and_required_fields_widen_too(tmp_path: Path) -> None:
    required = pa.struct([pa.field("a", pa.int64(), nullable=False), ("b", pa.null())])
    optional = pa.struct([("a", pa.int64()), ("b", pa.list_(pa.string()))])
    written(tmp_path / "0.parquet", {"x": pa.array([{"a": 1}], required)})
    written(tmp_path / "1.parquet", {"x": pa.array([{"a": None, "b": ["c"]}], optional)})
    found = survey([tmp_path])
    kept = pa.Table.from_batches([batch.kept for batch in batches(found, kept=["x"])])
    assert kept.schema.field("x").type == optional
    assert kept["x"].to_pylist() == [{"a": 1, "b": None}, {"a": None, "b": ["c"]}]


def test_i5_a_column_without_any_value_is_a_string_and_files_without_rows_are_fine(tmp_path: Path) -> None:
    written(tmp_path / "0.parquet", {"x": pa.nulls(0)})
    written(tmp_path / "1.parquet", {"x": pa.nulls(1)})
    found = survey([tmp_path])
    assert ([file.rows for file in found.files], found.columns) == ([0, 1], {"x": "string"})
    (batch,) = batches(found, kept=["x"])
    assert batch.kept.schema == pa.schema({"x": pa.string()})
    assert batch.rows == [Row(0, {"x": None})]


def test_i5_a_file_without_any_row_has_no_chunk(tmp_path: Path) -> None:
    found = survey([written(tmp_path / "a.parquet", {"x": pa.nulls(0, pa.int64())})])
    assert (found.rows, found.chunks, found.columns) == (0, (), {"x": "int64"})


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UsageError, match=r"a\.parquet has several columns named x"):
        survey([tmp_path])


def test_a_dot_in_a_name_is_part_of_the_name(tmp_path: Path) -> None:
    columns = {"a": [{"b": 1}], "a.b": [2], "c": [3]}
    found = survey([written(tmp_path / "a.parquet", columns)])
    (batch,) = batches(found, needed=["a.b"], kept=["a", "a.b"])
    assert batch.rows == [Row(0, {"a.b": 2})]
    assert batch.kept.to_pydict() == {"a": [{"b": 1}], "a.b": [2]}


def test_kept_columns_come_in_the_order_asked_for(tmp_path: Path) -> None:
    found = survey([written(tmp_path / "a.parquet", {"a": [1], "b": [2], "c": [3]})])
    (batch,) = batches(found, kept=["c", "a"])
    assert batch.kept.to_pydict() == {"c": [3], "a": [1]}


def test_the_survey_reads_no_data_page_but_hashes_all_bytes(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", {"x": ["a" * 99] * 9})
    content = bytearray(path.read_bytes())
    content[4:40] = b"\xff" * 36
    path.write_bytes(content)
    (file,) = survey([path]).files
    assert (file.sha256, file.rows) == (hashlib.sha256(content).hexdigest(), 9)


def test_large_values_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    values = [bytes([n % 256]) * (1 << 20) for n in range(200)]
    one_value_a_page = {"write_batch_size": 1, "use_dictionary": False, "compression": "none"}
    found = survey([written(tmp_path / "a.parquet", {"x": values}, **one_value_a_page)])
    del values
    source = Source(found, needed=["x"], kept=["x"])
    before, peak = pa.total_allocated_bytes(), 0
    for batch in source.chunk(0):
        assert len(batch.rows) <= 16
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert peak < 64 << 20


FORMLESS = {
    "nanoseconds": (pa.timestamp("ns"), 1, "1970-01-01 00:00:00.000000001"),
    "nanoseconds in a zone": (pa.timestamp("ns", "+02:00"), 1, "1970-01-01 02:00:00.000000001+0200"),
    "a year above 9999": (pa.timestamp("us"), 253402300800000000, "10000-01-01 00:00:00.000000"),
    "a date before the year 1": (pa.date32(), -(10**6), "-0768-02-04"),
    "a time with nanoseconds": (pa.time64("ns"), 1001, "00:00:00.000001001"),
}


@pytest.mark.parametrize(("kind", "value", "text"), FORMLESS.values(), ids=FORMLESS)
def test_i8_a_time_that_python_has_no_form_for_comes_as_its_exact_text(
    tmp_path: Path, kind: pa.DataType, value: int, text: str
) -> None:
    storage = pa.int32() if pa.types.is_date32(kind) else pa.int64()
    values = pa.array([0, value], storage).cast(kind)
    nested = pa.StructArray.from_arrays([values], names=["inner"])
    found = survey([written(tmp_path / "a.parquet", {"x": values, "s": nested})])
    (batch,) = batches(found, kept=["x"])
    good, bad = batch.rows
    assert not isinstance(good.values["x"], str)
    assert (bad.values, bad.problem) == ({"x": text, "s": {"inner": text}}, None)
    assert batch.kept["x"].cast(kind).equals(values)


def test_i8_a_value_without_any_form_fails_its_row_only_where_it_is_asked_for(tmp_path: Path) -> None:
    far = pa.array([0, 2**62], pa.int64()).cast(pa.timestamp("us", "UTC"))
    found = survey([written(tmp_path / "a.parquet", {"n": [1, 2], "x": far})])
    good, bad = rows(found)
    assert good == Row(0, {"n": 1, "x": datetime(1970, 1, 1, tzinfo=UTC)})
    assert (bad.ordinal, bad.values["n"], bad.problem) == (1, 2, None)
    told = r"row 1: column 'x' holds a timestamp\[us, tz=UTC\] that Python has no exact"
    with pytest.raises(InvalidRow, match=told):
        bad.values["x"]
    with pytest.raises(InvalidRow, match=told):
        bad.values.get("x")


def test_a_string_that_is_not_utf8_fails_its_row_alone(tmp_path: Path) -> None:
    raw = pa.array([b"good", b"\xff"])
    table = pa.table({"x": pa.StringArray.from_buffers(2, raw.buffers()[1], raw.buffers()[2])})
    pq.write_table(table, tmp_path / "a.parquet")
    good, bad = rows(survey([tmp_path]))
    assert good == Row(0, {"x": "good"})
    with pytest.raises(InvalidRow, match="row 1: column 'x' is not valid UTF-8"):
        bad.values["x"]
