"""No file of an input is skipped silently, and what its folders say of it is not lost."""

from __future__ import annotations

import bz2
import gzip
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data import Row
from pipeline.faults import UsageError
from pipeline.source import Source, Survey, discover, survey

LINE = b'{"text": "a"}\n'


def put(folder: Path, **files: bytes) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def put_table(path: Path, **columns: list[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def rows_of(found: Survey) -> list[Row]:
    source = Source(found, needed=None, kept=[])
    return [row for chunk in range(len(found.chunks)) for batch in source.chunk(chunk) for row in batch.rows]


UNREAD = {
    "part-00000": LINE,
    "rows.txt": LINE,
    "rows": b'[{"text": "a"}]',
    "rows.avro": b"Obj\x01",
    "export": b"PAR1\x15\x04",
    "rows.xlsx": b"PK\x03\x04",
    "rows.tar.gz": gzip.compress(LINE),
    "rows.txt.bz2": bz2.compress(LINE),
    "dump.unknown": gzip.compress(LINE),
    "utf16.txt": LINE.decode().encode("utf-16"),
}


@pytest.mark.parametrize("name", UNREAD)
def test_i7_a_folder_with_a_file_that_may_hold_rows_and_is_not_read_is_refused(tmp_path: Path, name: str) -> None:
    put(tmp_path, **{"a.jsonl": LINE, f"deep/{name}": UNREAD[name]})
    with pytest.raises(UsageError) as refused:
        discover(tmp_path)
    assert f"{tmp_path}/deep/{name}: " in str(refused.value)
    assert "--include '*.jsonl'" in str(refused.value)
    assert [found.name for found in discover(tmp_path, ["*.jsonl"]).files] == ["a.jsonl"]


def test_i7_files_beside_the_rows_that_hold_none_are_passed_over_and_named(tmp_path: Path) -> None:
    put(tmp_path, **{"a.jsonl": LINE, "README.md": b"# Data", "1.png": b"\x89PNG\r\n", "2.png": b"\x89PNG\r\n"})
    put(tmp_path, **{"_old.jsonl": LINE, ".DS_Store": b"\x00", "_SUCCESS": b"", "_manifest.json": b"{}"})
    found = discover(tmp_path)
    assert [one.name for one in found.files] == ["a.jsonl"]
    assert found.notes == (f"skipped in {tmp_path}: 2 .png, 1 .md, 1 .jsonl",)
    assert survey(tmp_path).notes == found.notes
    assert Survey.from_json(json.loads(json.dumps(survey(tmp_path).to_json()))).notes == found.notes


@pytest.mark.parametrize(
    ("include", "names"),
    [
        ("*.jsonl", ["a.jsonl", "x/b.jsonl"]),
        (["a.*", "x/*"], ["a.jsonl", "x/b.jsonl"]),
        ("x/*.jsonl", ["b.jsonl"]),
    ],
)
def test_i7_include_chooses_by_name_or_by_the_end_of_the_path(
    tmp_path: Path, include: str | list[str], names: list[str]
) -> None:
    put(tmp_path, **{"a.jsonl": LINE, "x/b.jsonl": LINE, "rows.avro": b"Obj\x01", "c.parquet": b""})
    assert [found.name for found in discover(tmp_path, include).files] == names


def test_i7_include_that_matches_nothing_is_named(tmp_path: Path) -> None:
    put(tmp_path, **{"a.jsonl": LINE})
    with pytest.raises(UsageError, match=r"no input file that --include \*\.csv selects matches"):
        discover(tmp_path, "*.csv")


LAKES = {
    "Delta": ("_delta_log/00000000000000000000.json", "part-0.parquet", "part-0.parquet"),
    "Delta, partitioned": ("_delta_log/00000000000000000000.json", "day=1/part-0.parquet", "day=1"),
    "Hudi": (".hoodie/hoodie.properties", "2026/a.parquet", "2026"),
    "Iceberg": ("metadata/v2.metadata.json", "data/a.parquet", "data"),
    "Iceberg of a catalog": ("metadata/00001-6f9c2c10-0b6e-4b6e-9f6e-0a5d2b3c4d5e.metadata.json", "data/a.parquet", ""),
    "Paimon": ("manifest/m snapshot/LATEST schema/schema-0", "bucket-0/a.parquet", ""),
}


@pytest.mark.parametrize("entry", ["the table", "inside", "a pattern"])
@pytest.mark.parametrize("kind", LAKES)
def test_i7_a_table_of_a_lake_format_is_refused_with_the_way_to_export_it(
    tmp_path: Path, kind: str, entry: str
) -> None:
    markers, part, inside = LAKES[kind]
    table = tmp_path / "table"
    put(table, **dict.fromkeys(markers.split(), b"{}"))
    put_table(table / part, text=["a"])
    named = {"the table": table, "inside": table / inside, "a pattern": table / "**" / "*.parquet"}[entry]
    with pytest.raises(UsageError, match=rf"{table} is a table of {re.split('[, ]', kind)[0]}: .*Export the rows"):
        discover(named)


def test_i7_a_folder_called_metadata_is_no_table(tmp_path: Path) -> None:
    put(tmp_path, **{"metadata/about.json": b"{}", "metadata/x.metadata.json": b"{}", "a.json": LINE})
    assert len(discover(tmp_path).files) == 3


def test_folders_named_key_equals_value_become_columns_of_text(tmp_path: Path) -> None:
    put(tmp_path, **{"date=2026-11-01/hour=07/a.jsonl": LINE, "date=2026-11-02/b.jsonl": LINE, "c.jsonl": LINE})
    found = survey(tmp_path)
    assert dict(found.columns) == {"text": "string", "date": "string", "hour": "string"}
    assert [row.values for row in rows_of(found)] == [
        {"text": "a", "date": None, "hour": None},
        {"text": "a", "date": "2026-11-01", "hour": "07"},
        {"text": "a", "date": "2026-11-02", "hour": None},
    ]


def test_folders_become_columns_of_parquet_and_csv_too(tmp_path: Path) -> None:
    put_table(tmp_path / "p" / "lang=de" / "a.parquet", text=["x", "y"])
    put(tmp_path / "c" / "lang=fr", **{"a.csv": b"text\nz\n"})
    for folder, expected in (("p", ["de", "de"]), ("c", ["fr"])):
        found = survey(tmp_path / folder)
        source = Source(found, needed=["lang"], kept=["lang", "text"])
        (batch,) = source.chunk(0)
        assert [row.values["lang"] for row in batch.rows] == batch.kept["lang"].to_pylist() == expected


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_a_folder_goes_before_a_column_of_the_same_name_as_in_duckdb(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "date=2026"
    if suffix == ".parquet":
        put_table(folder / "a.parquet", date=[7], text=["a"])
    else:
        put(folder, **{"a.jsonl": b'{"date": 7, "text": "a"}\n'})
    found = survey(tmp_path)
    (batch,) = Source(found, needed=["date"], kept=["date"]).chunk(0)
    assert (found.columns["date"], batch.rows[0].values, batch.kept["date"].to_pylist()) == (
        "string",
        {"date": "2026"},
        ["2026"],
    )


def test_values_of_folders_are_decoded_and_the_word_of_hive_for_null_is_null(tmp_path: Path) -> None:
    put(tmp_path, **{"a%20b=x%2Fy/c=__HIVE_DEFAULT_PARTITION__/d=/a.jsonl": LINE})
    assert rows_of(survey(tmp_path))[0].values == {"text": "a", "a b": "x/y", "c": None, "d": ""}


def test_of_a_relative_path_only_what_is_named_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "user=me"
    put(work / "in" / "day=1", **{"a.jsonl": LINE})
    monkeypatch.chdir(work)
    assert [found.partitions for found in discover("in/day=1/a.jsonl").files] == [(("day", "1"),)]
    assert [found.partitions for found in discover("../user=me/in").files] == [(("day", "1"),)]
    assert [found.partitions for found in discover(work / "in").files] == [(("user", "me"), ("day", "1"))]
