"""`pipeline export`: one file of a run's rows, which other readers read back value by value."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.export.formats import format_of, writer_to
from pipeline.export.selection import select
from pipeline.faults import UsageError
from pipeline.source import Source, survey
from tests.commands import JOB, Shell
from tests.test_cli import error_of

ROWS = 12
HARD = ("", " a ", 'quote " and, comma', "two\nlines\r\n", "é\U0001f600", "=1+1", "00123", "NA")

VALUES: dict[str, tuple[pa.DataType, Any, str, Any]] = {
    "flag": (pa.bool_(), True, "true", True),
    "count": (pa.int64(), -(2**63), str(-(2**63)), -(2**63)),
    "unsigned": (pa.uint64(), 2**64 - 1, str(2**64 - 1), 2**64 - 1),
    "ratio": (pa.float64(), 0.1, "0.1", 0.1),
    "large": (pa.float64(), 1e22, "1e+22", 1e22),
    "no_number": (pa.float64(), float("nan"), "NaN", "NaN"),
    "unbounded": (pa.float64(), float("-inf"), "-Infinity", "-Infinity"),
    "price": (pa.decimal128(38, 20), Decimal("123456789012345678.00000000000000000001"),
              "123456789012345678.00000000000000000001", Decimal("123456789012345678.00000000000000000001")),
    "tiny": (pa.decimal128(20, 12), Decimal("0.000000000001"), "0.000000000001", Decimal("0.000000000001")),
    "day": (pa.date32(), date(2026, 11, 28), "2026-11-28", "2026-11-28"),
    "at": (pa.time64("us"), time(14, 30, 0, 250000), "14:30:00.250000", "14:30:00.250000"),
    "moment": (pa.timestamp("us", "UTC"), datetime(2026, 11, 28, 14, 30, tzinfo=UTC), "2026-11-28T14:30:00Z",
               "2026-11-28T14:30:00Z"),
    "in_paris": (pa.timestamp("us", "Europe/Paris"), datetime(1900, 1, 1, tzinfo=UTC), "1900-01-01T00:00:00Z",
                 "1900-01-01T00:00:00Z"),
    "local": (pa.timestamp("ms"), datetime(26, 1, 2, 3, 4, 5, 6000),  # noqa: DTZ001 - a time without a zone
              "0026-01-02T03:04:05.006000",
              "0026-01-02T03:04:05.006000"),
    "nanoseconds": (pa.timestamp("ns"), 1, "1970-01-01T00:00:00.000000001", "1970-01-01T00:00:00.000000001"),
    "far": (pa.timestamp("s", "UTC"), 253402300800, "10000-01-01T00:00:00Z", "10000-01-01T00:00:00Z"),
    "took": (pa.duration("us"), timedelta(seconds=-1.5), "PT-1.5S", "PT-1.5S"),
    "took_ns": (pa.duration("ns"), -1_500, "PT-0.0000015S", "PT-0.0000015S"),
    "picture": (pa.binary(), b"\x00\xff", "AP8=", "AP8="),
    "word": (pa.dictionary(pa.int32(), pa.string()), "a", "a", "a"),
    "list": (pa.list_(pa.float64()), [1.5, None, float("inf")], '[1.5,null,"Infinity"]', [1.5, None, "Infinity"]),
    "things": (pa.list_(pa.struct([("name", pa.string()), ("price", pa.decimal128(9, 2))])),
               [{"name": 'a"b', "price": Decimal("1.10")}], '[{"name":"a\\"b","price":1.10}]',
               [{"name": 'a"b', "price": Decimal("1.10")}]),
    "map": (pa.map_(pa.string(), pa.date32()), [("a", date(2026, 1, 1))], '{"a":"2026-01-01"}', {"a": "2026-01-01"}),
}  # fmt: skip
"""For each column its type and value, its cell in CSV, and its value in JSON."""


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A complete run in `out`; every third row has failed."""
    shell = Shell(tmp_path, {})
    lines = [{"id": n, "text": f"{HARD[n % 8]}|{n}" if n % 3 else None} for n in range(ROWS)]
    shell.write("rows.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    shell.write("job.py", JOB.replace("    keep=", "    max_failed=0.9,\n    keep="))
    assert shell.pipeline("run", "job.py", "--emulate", "-o", "out", "--json").json["failed"] == ROWS // 3
    return shell


def written(table: pa.Table, path: Path, names: Sequence[str] = (), *, bom: bool = False) -> Path:
    """The table as an exported file."""
    with path.open("wb") as file, writer_to(file, format_of(path.name), select(table.schema, names), bom=bom) as writer:
        for batch in table.to_batches():
            writer.write(batch)
    return path


def table_of_all() -> pa.Table:
    """A row of values, and a row of nulls."""
    return pa.table({name: pa.array([value, None], kind) for name, (kind, value, _, _) in VALUES.items()})


def test_every_value_keeps_its_digits_in_csv(tmp_path: Path) -> None:
    path = written(table_of_all(), tmp_path / "a.csv")
    with path.open(newline="", encoding="utf-8") as file:
        header, values, nulls = list(csv.reader(file))
    assert dict(zip(header, values, strict=True)) == {name: cell for name, (_, _, cell, _) in VALUES.items()}
    assert nulls == [""] * len(VALUES)


def test_every_value_keeps_its_digits_in_json(tmp_path: Path) -> None:
    path = written(table_of_all(), tmp_path / "a.jsonl")
    values, nulls = [json.loads(line, parse_float=Decimal) for line in path.read_bytes().splitlines()]
    expected = {name: value for name, (_, _, _, value) in VALUES.items()}
    assert values == json.loads(json.dumps(expected, default=str), parse_float=Decimal) | {
        name: expected[name] for name in ("price", "tiny", "things")
    }
    assert nulls == dict.fromkeys(VALUES)


def test_every_value_and_its_type_are_those_of_the_dataset_in_parquet(tmp_path: Path) -> None:
    table = table_of_all()
    path = written(table, tmp_path / "a.parquet")
    again = pq.read_table(path)
    assert again.schema.names == table.schema.names
    for name in set(VALUES) - {"no_number"}:  # which equals nothing
        assert again[name].cast(table[name].type).equals(table[name]), name
    assert again.schema.field("price").type == pa.decimal128(38, 20)
    assert again.schema.field("moment").type == pa.timestamp("us", "UTC")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz", ".csv.zst", ".jsonl", ".ndjson.zst", ".jsonl.gz"])
def test_other_readers_read_hard_text_back(suffix: str, tmp_path: Path) -> None:
    """DuckDB reads every suffix as it is; an empty text and a null are told apart where the format can."""
    table = pa.table({"text": [*HARD, None], "a,b": [*range(8), None]})
    path = written(table, tmp_path / f"a{suffix}")
    if "json" in suffix:
        found = duckdb.read_json(str(path))
    else:
        found = duckdb.read_csv(str(path), header=True, all_varchar=True, sep="\t" if "tsv" in suffix else ",")
    assert found.columns == ["text", "a,b"]
    texts = [row[0] for row in found.fetchall()]
    assert texts == [*HARD, None] if "json" in suffix else [text or None for text in [*HARD, None]]


def test_an_empty_text_is_quoted_in_csv_and_a_null_is_not(tmp_path: Path) -> None:
    path = written(pa.table({"a": ["", None, "x"], "b": [1, 2, 3]}), tmp_path / "a.csv")
    assert path.read_bytes() == b'a,b\n"",1\n,2\nx,3\n'


def test_a_null_alone_in_its_line_is_still_a_row(tmp_path: Path) -> None:
    """Python and pandas skip blank lines, and so do we; DuckDB does not."""
    path = written(pa.table({"a": ["x", None, "y"]}), tmp_path / "a.csv")
    with path.open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["a"], ["x"], [""], ["y"]]
    assert survey(path).rows == 3
    assert [row[0] for row in duckdb.read_csv(str(path), header=True).fetchall()] == ["x", None, "y"]


def test_a_byte_order_mark_is_written_where_it_is_asked_for(tmp_path: Path) -> None:
    path = written(pa.table({"a": ["é"]}), tmp_path / "a.csv", bom=True)
    assert path.read_bytes() == "\ufeffa\né\n".encode()
    assert duckdb.read_csv(str(path)).fetchall() == [("é",)]


@pytest.mark.parametrize("suffix", [".csv", ".tsv.gz", ".jsonl.zst", ".parquet"])
def test_an_exported_file_is_an_input(suffix: str, tmp_path: Path) -> None:
    """What CSV cannot tell apart, an empty text and a null, is null then."""
    path = written(pa.table({"text": [*HARD, None], "n": [*map(str, range(8)), None]}), tmp_path / f"a{suffix}")
    source = Source(survey(path), needed=None, kept=[])
    rows = [row.values for batch in source.chunk(0) for row in batch.rows]
    source.close()
    texts = [*HARD, None] if suffix in (".jsonl.zst", ".parquet") else [text or None for text in [*HARD, None]]
    assert rows == [{"text": text, "n": str(n) if n < 8 else None} for n, text in enumerate(texts)]


NESTED = pa.table(
    {
        "id": [1, 2],
        "a.b": ["flat", None],
        "a": [{"b": "deep", "c": {"d": 1, "e": [1]}}, None],
        "x": [{"y.z": 1, "y": {"z": 2}}, {"y.z": 3, "y": None}],
        " b ": ["spaced", None],
    }
)


@pytest.mark.parametrize(
    ("names", "flat", "nested"),
    [
        (["id"], [["1"], ["2"]], [{"id": 1}, {"id": 2}]),
        (["a.c.d,id"], [["1", "1"], ["", "2"]], [{"a": {"c": {"d": 1}}, "id": 1}, {"a": None, "id": 2}]),
        (["a.c"], [["1", "[1]"], ["", ""]], [{"a": {"c": {"d": 1, "e": [1]}}}, {"a": None}]),
        (["a.c", "a.c.d"], [["1", "[1]"], ["", ""]], [{"a": {"c": {"d": 1, "e": [1]}}}, {"a": None}]),
        (["a.c.d", "a.c"], [["1", "[1]"], ["", ""]], [{"a": {"c": {"d": 1, "e": [1]}}}, {"a": None}]),
        (["a.b"], [["flat"], [""]], [{"a.b": "flat"}, {"a.b": None}]),
        ([" b ", "id"], [["spaced", "1"], ["", "2"]], [{" b ": "spaced", "id": 1}, {" b ": None, "id": 2}]),
        ([" b , id"], [["spaced", "1"], ["", "2"]], [{" b ": "spaced", "id": 1}, {" b ": None, "id": 2}]),
        (["x.y.z", "id, id"], [["1", "1"], ["3", "2"]], [{"x": {"y.z": 1}, "id": 1}, {"x": {"y.z": 3}, "id": 2}]),
    ],
)
def test_columns_and_fields_are_chosen_by_name(
    names: list[str], flat: list[list[str]], nested: list[dict[str, Any]], tmp_path: Path
) -> None:
    """In the order in which they are named, each once; a name that exists as it is counts before a field."""
    with written(NESTED, tmp_path / "a.csv", names).open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file))[1:] == flat
    lines = written(NESTED, tmp_path / "a.jsonl", names).read_bytes().splitlines()
    assert [json.loads(line) for line in lines] == nested
    assert pq.read_table(written(NESTED, tmp_path / "a.parquet", names)).to_pylist() == nested


def test_columns_that_csv_cannot_tell_apart_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"two columns would be called a.b, x.y.z: leave one out with --columns"):
        written(NESTED, tmp_path / "a.csv")


def test_parquet_is_written_in_row_groups_of_bounded_size(tmp_path: Path) -> None:
    """Rows wait in memory only until a row group is full."""
    table = pa.Table.from_batches([pa.record_batch({"a": pa.nulls(40_000, pa.int8())}) for _ in range(6)])
    metadata = pq.read_metadata(written(table, tmp_path / "a.parquet"))
    assert [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)] == [120_000, 120_000]


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV file."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return list(csv.DictReader(io.StringIO(content.decode(), newline="")))


def test_a_run_becomes_one_file_in_the_order_of_its_rows(shell: Shell) -> None:
    done = shell.pipeline("export", "out", "--to", "rows.csv.gz", "--json").json
    rows, dataset = read(shell.folder / "rows.csv.gz"), shell.output("out")
    assert (done["rows"], done["columns"]) == (ROWS, list(rows[0]))
    assert [int(row["id"]) for row in rows] == list(range(ROWS))
    assert [row["text"] for row in rows] == [row["text"] or "" for row in dataset]
    assert [row["parsed.answer"] or None for row in rows] == [(row["parsed"] or {}).get("answer") for row in dataset]
    assert [row["error.type"] for row in rows] == [(row["error"] or {}).get("type", "") for row in dataset]
    assert (shell.folder / "rows.csv.gz").stat().st_size == done["bytes"]


def test_rows_are_chosen_by_their_status(shell: Shell) -> None:
    """Also if the column of it is not exported."""
    for status, numbers in {"ok": [n for n in range(ROWS) if n % 3], "failed": list(range(0, ROWS, 3))}.items():
        for suffix, reader in {
            "csv": duckdb.read_csv,
            "jsonl": duckdb.read_json,
            "parquet": duckdb.read_parquet,
        }.items():
            name = f"{status}.{suffix}"
            shell.pipeline("export", "out", "--to", name, "--rows", status, "--columns", "id")
            found = reader(str(shell.folder / name))
            assert found.columns == ["id"]
            assert [row[0] for row in found.fetchall()] == numbers


def test_no_rows_make_a_file_of_no_rows(shell: Shell) -> None:
    """A nightly `--rows failed` of a run without failures does not fail."""
    assert shell.pipeline("run", "job.py", "--emulate", "-o", "good", "--set", "user=Say {{ id }}", "-q").code == 0
    for suffix in ("csv", "jsonl", "parquet"):
        done = shell.pipeline("export", "good", "--to", f"none.{suffix}", "--rows", "failed", "--columns", "id,parsed")
        assert (done.code, done.out.split()[1]) == (0, "0")
    assert (shell.folder / "none.csv").read_text() == "id,parsed.answer\n"
    assert pq.read_table(shell.folder / "none.parquet").schema.names == ["id", "parsed"]


def test_an_existing_file_is_replaced_only_by_force_and_only_by_a_whole_one(shell: Shell) -> None:
    shell.write("rows.csv", "mine")
    assert "rows.csv exists: name another file, or replace it with --force" in error_of(
        shell.pipeline("export", "out", "--to", "rows.csv")
    )
    part = next((shell.folder / "out" / "data").iterdir())
    content = part.read_bytes()
    part.write_bytes(content[: len(content) // 2])
    assert shell.pipeline("export", "out", "--to", "rows.csv", "--force", "--allow-partial").code == 1
    assert (shell.folder / "rows.csv").read_text() == "mine"
    part.write_bytes(content)
    assert shell.pipeline("export", "out", "--to", "rows.csv", "--force", "--allow-partial").code == 0
    assert len(read(shell.folder / "rows.csv")) == ROWS
    assert not list(shell.folder.glob(".rows.csv*"))


def test_a_run_that_is_not_complete_is_exported_only_where_that_is_asked_for(shell: Shell) -> None:
    (shell.folder / "out" / "_SUCCESS").unlink()
    assert "out is not complete" in error_of(shell.pipeline("export", "out", "--to", "rows.csv"))
    assert not (shell.folder / "rows.csv").exists()
    assert shell.pipeline("export", "out", "--to", "rows.csv", "--allow-partial").code == 0
    assert len(read(shell.folder / "rows.csv")) == ROWS


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (("out", "--to", "rows.txt"), "the name must end in one of .csv, .tsv, .jsonl, .ndjson, .parquet"),
        (("out", "--to", "rows.parquet.gz"), "all but .parquet also with .gz or .zst"),
        (("out", "--to", "nowhere/rows.csv"), "there is no folder nowhere: create it first"),
        (("out", "--to", "folder.csv"), "--to names a folder, folder.csv: name a file in it"),
        (("out", "--to", "out/data/rows.csv"), "--to names a file among those of the run"),
        (("out", "--to", "rows.csv", "--columns", "parsed.answr"), "did you mean 'parsed.answer'?"),
        (("out", "--to", "rows.csv", "--columns", "id.x"), "'id.x', which is not in the dataset (id has no fields)"),
        (("out", "--to", "rows.csv", "--columns", ", "), "--columns names no column"),
        (("out", "--to", "rows.jsonl", "--bom"), "--bom is for .csv and .tsv, not for .jsonl"),
        (("out", "--to", "ftp://host/rows.csv"), "ftp://, which is not supported"),
        (("folder.csv", "--to", "rows.csv"), "there is no run in folder.csv"),
    ],
)
def test_what_cannot_be_exported_is_refused_with_the_remedy(
    arguments: tuple[str, ...], remedy: str, shell: Shell
) -> None:
    (shell.folder / "folder.csv").mkdir()
    before = sorted(shell.folder.rglob("*"))
    assert remedy in error_of(shell.pipeline("export", *arguments))
    assert sorted(shell.folder.rglob("*")) == before
