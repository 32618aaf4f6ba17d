"""Rows come out of JSONL and Parquet whole, in order and with stable ordinals, whichever chunk is read first."""

from __future__ import annotations

import gzip
import json
import os
import pickle
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import Row
from pipeline.faults import Broken, UsageError
from pipeline.source import Batch, Source, Survey, changed, discover, found_again, survey
from pipeline.source.parquet import survey_parquet
from pipeline.source.survey import ChunkRows
from pipeline.source.text_records import survey_text

RECORDS = [{"id": n, "text": f"text {n}"} for n in range(10)]


def write_jsonl(path: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    content = "".join(json.dumps(record) + "\n" for record in records).encode()
    if path.suffix == ".gz":
        middle = len(content) // 2  # two members, as `cat a.gz b.gz` makes
        content = gzip.compress(content[:middle]) + gzip.compress(content[middle:])
    if path.suffix == ".zst":
        middle = len(content) // 2
        content = b"".join(pa.compress(part, "zstd", asbytes=True) for part in (content[:middle], content[middle:]))
    path.write_bytes(content)
    return path


def write_parquet(path: Path, records: Sequence[Mapping[str, Any]], **options: Any) -> Path:
    pq.write_table(pa.Table.from_pylist([dict(record) for record in records]), path, **options)
    return path


def read_all(found: Survey, source: Source, order: Sequence[int] | None = None) -> dict[int, list[Batch]]:
    return {index: list(source.chunk(index)) for index in (range(len(found.chunks)) if order is None else order)}


def rows_of(inputs: Path | list[Path], *, kept: Sequence[str] = (), **options: Any) -> list[Row]:
    found = survey(inputs, **options)
    batches = read_all(found, Source(found, needed=None, kept=kept))
    return [row for index in sorted(batches) for batch in batches[index] for row in batch.rows]


def holds(kept: Any, value: Any) -> bool:
    """Whether an Arrow value says the same as a JSON value: absent keys are nulls there."""
    if isinstance(kept, dict) and isinstance(value, dict):
        return value.keys() <= kept.keys() and all(holds(kept[name], value.get(name)) for name in kept)
    if isinstance(kept, list) and isinstance(value, list):
        return len(kept) == len(value) and all(map(holds, kept, value))
    return bool(kept == value)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)
records_of_any_kind = st.lists(st.dictionaries(st.sampled_from(["a", "b", "messages", "é.x", ""]), values), max_size=25)


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    files=st.lists(records_of_any_kind, min_size=1, max_size=3),
    chunk_rows=st.integers(1, 12),
    suffix=st.sampled_from([".jsonl", ".jsonl.gz", ".ndjson.zst"]),
)
def test_jsonl_read_by_chunks_in_any_order_equals_what_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    files: list[list[dict[str, Any]]],
    chunk_rows: int,
    suffix: str,
) -> None:
    folder = tmp_path_factory.mktemp("jsonl")
    for index, records in enumerate(files):
        write_jsonl(folder / f"{index}{suffix}", records)
    written = [record for records in files for record in records]
    found = survey([folder], chunk_rows=chunk_rows)
    assert found.rows == len(written)
    source = Source(found, needed=None, kept=list(found.columns))
    order = data.draw(st.permutations(range(len(found.chunks))))
    check(found, read_all(found, source, order), written)


def check(found: Survey, chunks: Mapping[int, Sequence[Batch]], written: Sequence[Mapping[str, Any]]) -> None:
    assert [sum(len(batch.rows) for batch in chunks[index]) for index in sorted(chunks)] == [
        min(found.chunk_rows, found.rows - index * found.chunk_rows) for index in sorted(chunks)
    ]
    batches = [batch for index in sorted(chunks) for batch in chunks[index]]
    rows = [row for batch in batches for row in batch.rows]
    assert [row.ordinal for row in rows] == list(range(len(written)))
    for row, record in zip(rows, written, strict=True):
        assert row.problem is None
        assert row.values == {name: record.get(name) for name in found.columns}
        assert [type(value) for value in row.values.values()] == [type(record.get(name)) for name in found.columns]
    for batch in batches:
        assert len(batch.rows) == batch.kept.num_rows <= 256
        for row, kept in zip(batch.rows, batch.kept.to_pylist(), strict=True):
            for name, value in kept.items():
                written_as_json = name in found.json_columns and not isinstance(row.values[name], str | None)
                assert holds(json.loads(value) if written_as_json else value, row.values[name])


columns_of_parquet = st.fixed_dictionaries(
    {
        "number": st.none() | st.integers(-(2**63), 2**63 - 1),
        "text": st.none() | st.text(),
        "list": st.none() | st.lists(st.none() | st.integers(0, 9), max_size=3),
        "pairs": st.none() | st.lists(st.tuples(st.text(max_size=3), st.booleans()), max_size=3),
    }
)
PARQUET_SCHEMA = pa.schema(
    {
        "number": pa.int64(),
        "text": pa.dictionary(pa.int32(), pa.string()),
        "list": pa.list_(pa.int32()),
        "pairs": pa.map_(pa.string(), pa.bool_()),
    }
)


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    files=st.lists(st.lists(columns_of_parquet, max_size=25), min_size=1, max_size=3),
    chunk_rows=st.integers(1, 12),
    group_rows=st.integers(1, 12),
)
def test_parquet_read_by_chunks_in_any_order_equals_what_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    files: list[list[dict[str, Any]]],
    chunk_rows: int,
    group_rows: int,
) -> None:
    folder = tmp_path_factory.mktemp("parquet")
    for index, records in enumerate(files):
        table = pa.Table.from_pylist(records, schema=PARQUET_SCHEMA)
        pq.write_table(table, folder / f"{index}.parquet", row_group_size=group_rows)
    found = survey([folder], chunk_rows=chunk_rows)
    kept = data.draw(st.lists(st.sampled_from(PARQUET_SCHEMA.names), unique=True))
    source = Source(found, needed=None, kept=kept)
    assert source.kept_schema == pa.schema([PARQUET_SCHEMA.field(name) for name in kept])
    order = data.draw(st.permutations(range(len(found.chunks))))
    check(found, read_all(found, source, order), [record for records in files for record in records])


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_two_chunks_read_in_turns_do_not_disturb_each_other(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    records = [{"n": n} for n in range(2000)]
    found = survey([(write_parquet if suffix == ".parquet" else write_jsonl)(path, records)], chunk_rows=1000)
    source = Source(found, needed=["n"], kept=[])
    pairs = list(zip(source.chunk(0), source.chunk(1), strict=True))
    assert [row.values["n"] for one, _ in pairs for row in one.rows] == list(range(1000))
    assert [row.values["n"] for _, other in pairs for row in other.rows] == list(range(1000, 2000))


def test_a_chunk_left_half_read_can_be_read_again_in_full(tmp_path: Path) -> None:
    found = survey([write_jsonl(tmp_path / "a.jsonl", [{"n": n} for n in range(900)])], chunk_rows=600)
    source = Source(found, needed=["n"], kept=[])
    next(source.chunk(0))
    assert sum(len(batch.rows) for batch in source.chunk(0)) == 600
    assert sum(len(batch.rows) for batch in source.chunk(1)) == 300


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted where the system lists them")
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_no_file_stays_open_when_a_chunk_is_abandoned_or_the_source_closed(tmp_path: Path, suffix: str) -> None:
    write = write_parquet if suffix == ".parquet" else write_jsonl
    path = write(tmp_path / f"a{suffix}", [{"n": n} for n in range(900)])

    def is_open() -> bool:
        return any(os.path.realpath(entry) == str(path) for entry in Path("/proc/self/fd").iterdir())

    found = survey([path], chunk_rows=450)
    assert not is_open()
    source = Source(found, needed=None, kept=[])
    chunk = source.chunk(0)
    next(chunk)
    assert is_open()
    cast("Generator[Batch, None, None]", chunk).close()
    assert not is_open()
    list(source.chunk(0))
    assert is_open()
    source.close()
    assert not is_open()


def test_chunks_may_span_files_and_skip_empty_ones(tmp_path: Path) -> None:
    for index, part in enumerate([RECORDS[:3], [], RECORDS[3:4], RECORDS[4:]]):
        write_jsonl(tmp_path / f"{index}.jsonl", part)
    found = survey([tmp_path], chunk_rows=5)
    assert [file.rows for file in found.files] == [3, 0, 1, 6]
    assert len(found.chunks) == 2
    assert [row.values for row in rows_of(tmp_path, chunk_rows=5)] == RECORDS


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.zst", ".parquet"])
def test_a_limit_ends_the_rows_but_still_lists_and_hashes_every_file(tmp_path: Path, suffix: str) -> None:
    write = write_parquet if suffix == ".parquet" else write_jsonl
    for index in range(3):
        write(tmp_path / f"{index}{suffix}", RECORDS)
    whole, cut = survey([tmp_path], chunk_rows=4), survey([tmp_path], chunk_rows=4, limit=13)
    assert [file.rows for file in cut.files] == [10, 3, 0]
    assert [file.sha256 for file in cut.files] == [file.sha256 for file in whole.files]
    (tmp_path / f"2{suffix}").unlink()  # no row of it counts, so it is not opened
    batches = read_all(cut, Source(cut, needed=["id"], kept=[]))
    rows = [row for index in range(4) for batch in batches[index] for row in batch.rows]
    assert [row.values["id"] for row in rows] == [*range(10), *range(3)]


def test_the_chunk_size_follows_the_size_of_the_first_rows(tmp_path: Path) -> None:
    small = write_jsonl(tmp_path / "small.jsonl", [{"n": 1}] * 170_000)
    medium = write_jsonl(tmp_path / "medium.jsonl", [{"text": "x" * 4012}] * 17_000)
    large = write_jsonl(tmp_path / "large.jsonl", [{"text": "x" * 100_000}] * 10)
    assert survey([small]).chunk_rows == 10_000
    assert 2_000 < survey([medium]).chunk_rows < 2_200
    assert survey([large]).chunk_rows == 1_000
    assert survey([small], min_chunk_rows=30_000).chunk_rows == 21_250
    assert survey([small], chunk_rows=7).chunk_rows == 7


@pytest.mark.parametrize(("rows", "chunks"), [(9_000, 8), (4_100, 5), (900, 1)])
def test_an_input_is_cut_so_that_several_can_share_it(tmp_path: Path, rows: int, chunks: int) -> None:
    path = write_jsonl(tmp_path / "small.jsonl", [{"n": 1}] * rows)
    assert len(survey([path]).chunks) == chunks
    assert len(survey([path], limit=rows // 2).chunks) == -(-rows // 2 // 1_000)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_i8_a_chunk_is_bounded_in_bytes_also_where_large_rows_come_late(tmp_path: Path, suffix: str) -> None:
    records = [{"n": n, "text": "" if n < 500 else "x" * (n % 7 * 100) + str(n)} for n in range(1_000)]
    if suffix == ".jsonl":
        write_jsonl(tmp_path / "a.jsonl", records)
    else:
        pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet", row_group_size=250, use_dictionary=False)
    survey_files = survey_text if suffix == ".jsonl" else survey_parquet
    found = survey_files(discover(tmp_path), ChunkRows(lambda _: 400, max_bytes=20_000), None)
    assert found.rows == 1_000
    assert 20 < found.chunk_rows <= 100
    batches = read_all(found, Source(found, needed=None, kept=["text"]), range(len(found.chunks))[::-1])
    sizes = [
        sum(len(row.values["text"]) for batch in batches[index] for row in batch.rows) for index in sorted(batches)
    ]
    assert 0 < max(sizes) <= 20_000
    assert [row.values["n"] for index in sorted(batches) for batch in batches[index] for row in batch.rows] == list(
        range(1_000)
    )
    assert (
        survey_files(discover(tmp_path), ChunkRows(lambda _: 400, is_fixed=True, max_bytes=1), None).chunk_rows == 400
    )


@pytest.mark.parametrize("options", [{"chunk_rows": 0}, {"limit": -1}])
def test_impossible_numbers_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="must be"):
        survey([write_jsonl(tmp_path / "a.jsonl", RECORDS)], **options)


def test_a_survey_survives_json_and_pickle(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"x": 1, "m": [1, "a"]}\n{"x": "a"}\nbad\n')
    found = survey([path], chunk_rows=2)
    assert Survey.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert pickle.loads(pickle.dumps(found)) == found  # noqa: S301 - our own bytes
    assert found.arrow_schema().names == ["x", "m"]


def test_only_the_needed_columns_are_in_the_values(tmp_path: Path) -> None:
    for path in (write_jsonl(tmp_path / "a.jsonl", RECORDS), write_parquet(tmp_path / "a.parquet", RECORDS)):
        found = survey([path])
        (batch,) = Source(found, needed=["text"], kept=["id"]).chunk(0)
        assert batch.rows[3] == Row(3, {"text": "text 3"})
        assert batch.kept.to_pydict() == {"id": list(range(10))}
        (bare,) = Source(found, needed=[], kept=[]).chunk(0)
        assert (bare.rows[9], bare.kept.num_rows) == (Row(9, {}), 10)


def test_i2_rows_with_the_same_id_are_all_there(tmp_path: Path) -> None:
    rows = rows_of(write_jsonl(tmp_path / "a.jsonl", [{"id": "x"}, {"id": "x"}]))
    assert rows == [Row(0, {"id": "x"}), Row(1, {"id": "x"})]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_i5_a_missing_column_is_refused_with_the_names_there_are(tmp_path: Path, suffix: str) -> None:
    found = survey([(write_parquet if suffix == ".parquet" else write_jsonl)(tmp_path / f"a{suffix}", RECORDS)])
    with pytest.raises(UsageError, match=r"no column 'body'; it has: id, text"):
        Source(found, needed=["body"], kept=[])
    with pytest.raises(UsageError, match=r"no column 'key'"):
        Source(found, needed=None, kept=["key"])


def test_i5_an_input_without_rows_is_surveyed_and_read_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"")
    (tmp_path / "b.jsonl").write_bytes(b"\n  \n")
    found = survey([tmp_path])
    assert (found.rows, found.chunks, dict(found.columns)) == (0, (), {})
    Source(found, needed=["text"], kept=[]).close()
    with pytest.raises(IndexError):
        next(Source(found, needed=None, kept=[]).chunk(0))


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_p7_changed_says_nothing_of_a_touched_file_and_names_an_edited_one(tmp_path: Path, suffix: str) -> None:
    write = write_parquet if suffix == ".parquet" else write_jsonl
    path = write(tmp_path / f"a{suffix}", RECORDS)
    found = survey([path])
    os.utime(path, ns=(1, 1))
    assert changed(found) == []
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(1, 1))
    assert changed(found) == [f"{path} has the same size, but different content"]
    path.write_bytes(content + b"\n")
    assert changed(found) == [f"{path} had {len(content)} bytes and now has {len(content) + 1}"]
    path.unlink()
    assert changed(found) == [f"{path} is missing or can no longer be read"]


def test_p7_files_that_joined_or_left_the_input_are_named(tmp_path: Path) -> None:
    one, two = write_jsonl(tmp_path / "a.jsonl", RECORDS), tmp_path / "b.jsonl"
    found = survey([tmp_path])
    assert found_again(found, [tmp_path]) == (found, [])
    write_jsonl(two, RECORDS[:3])
    assert found_again(found, [tmp_path])[1] == [f"{two} is new in the input"]
    assert found_again(found, [two])[1] == ["b.jsonl is new in the input", "a.jsonl is no longer in the input"]
    one.unlink()
    (gone,) = found_again(found, [one])[1]
    assert "no input file matches" in gone


def test_an_unchanged_size_and_time_is_taken_for_an_unchanged_file_without_reading_it(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", RECORDS)
    found, status = survey([path]), path.stat()
    path.write_bytes(b"x" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert changed(found) == []


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
@pytest.mark.parametrize("harm", ["gone", "shorter", "longer", "other", "empty"])
def test_a_file_that_changes_while_it_is_read_stops_the_run(tmp_path: Path, suffix: str, harm: str) -> None:
    write = write_parquet if suffix == ".parquet" else write_jsonl
    path = write(tmp_path / f"a{suffix}", [{"n": n} for n in range(600)])
    found = survey([path], chunk_rows=300)
    source = Source(found, needed=["n"], kept=["n"])
    assert len(list(source.chunk(0))) == 2
    content = path.read_bytes()
    if harm == "gone":
        path.unlink()
    else:
        changes = {"shorter": content[:-9], "longer": content + b"\n", "other": content[::-1], "empty": b""}
        path.write_bytes(changes[harm])
        os.utime(path, ns=(1, 1))
    for reader in (source, Source(found, needed=["n"], kept=["n"])):
        with pytest.raises(Broken, match=str(path)):
            list(reader.chunk(1))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_file_that_is_only_touched_while_it_is_read_is_read_on(tmp_path: Path, suffix: str) -> None:
    write = write_parquet if suffix == ".parquet" else write_jsonl
    path = write(tmp_path / f"a{suffix}", [{"n": n} for n in range(600)])
    found = survey([path])
    source = Source(found, needed=["n"], kept=[])
    chunk = source.chunk(0)
    first = next(chunk)
    os.utime(path, ns=(1, 1))
    assert sum(len(batch.rows) for batch in [first, *chunk]) == 600
