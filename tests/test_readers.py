"""The dataset of every job, read with the plain folder call of every reader, is the same value by value.

DuckDB, Polars and pyarrow are always tried. The others are where they are installed: `pip install pandas datasets chdb
pyspark` (Spark needs a Java).
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, Literal

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel, NaiveDatetime

from pipeline import Job
from pipeline.data import PARTS, Entry
from pipeline.faults import Refused
from pipeline.schema.spark import refused_columns
from tests.commands import JOB, ROOT, Shell
from tests.test_dataset import dataset as sealed_into
from tests.test_dataset import reply

Rows = list[dict[str, Any]]
JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("*.py") if not path.name.startswith("eval_"))

pytestmark = [
    pytest.mark.xdist_group("readers"),  # a dataset is made once for all readers
    pytest.mark.filterwarnings("default"),  # of libraries that are none of ours
]


LINES = {
    "pyarrow": 'pyarrow.parquet.read_table("FOLDER")',
    "DuckDB": "SELECT * FROM 'FOLDER/*.parquet'",
    "Polars": 'polars.read_parquet("FOLDER")',
    "pandas": 'pandas.read_parquet("FOLDER")',
    "Spark": 'spark.read.parquet("FOLDER")',
    "datasets": 'datasets.load_dataset("parquet", data_dir="FOLDER")',
    "ClickHouse": "SELECT * FROM file('FOLDER', Parquet)",
}
"""How each reader is told to read the dataset in a folder: the lines of the table in docs/output.md."""


def read(reader: str, folder: Path, **names: Any) -> Any:
    """What a line of Python comes to."""
    return eval(LINES[reader].replace("FOLDER", str(folder)), names)  # noqa: S307 - one of the lines above


def by_pyarrow(folder: Path) -> Rows:
    return list(read("pyarrow", folder, pyarrow=pa).to_pylist())


def by_pyarrow_dataset(folder: Path) -> Rows:
    return list(pa.dataset.dataset(folder).to_table().to_pylist())


def by_duckdb(folder: Path) -> Rows:
    found = duckdb.sql(LINES["DuckDB"].replace("FOLDER", str(folder)))
    assert found is not None
    return list(found.to_arrow_table().to_pylist())


def by_duckdb_folder(folder: Path) -> Rows:
    return list(duckdb.read_parquet(str(folder)).to_arrow_table().to_pylist())


def by_polars(folder: Path) -> Rows:
    return list(read("Polars", folder, polars=pl).to_arrow().to_pylist())


def by_polars_scan(folder: Path) -> Rows:
    return list(pl.scan_parquet(folder).collect().to_arrow().to_pylist())


def by_pandas(folder: Path) -> Rows:
    frame = read("pandas", folder, pandas=pytest.importorskip("pandas"))
    return list(pa.Table.from_pandas(frame, schema=pq.read_table(folder).schema).to_pylist())


def by_datasets(folder: Path) -> Rows:
    datasets = pytest.importorskip("datasets")
    datasets.config.HF_DATASETS_CACHE = folder.parent / "_datasets"
    return list(read("datasets", folder, datasets=datasets)["train"].with_format("arrow")[:].to_pylist())


def by_spark(folder: Path) -> Rows:
    return [row.asDict(recursive=True) for row in read("Spark", folder, spark=_spark()).collect()]


def by_clickhouse(folder: Path) -> Rows:
    """Its text may be any bytes, so that as Arrow it is given as bytes."""
    chdb = pytest.importorskip("chdb")
    query = f"{LINES['ClickHouse'].replace('FOLDER', str(folder))} SETTINGS output_format_arrow_string_as_string = 0"
    return list(chdb.query(query, "ArrowTable").to_pylist())


@cache
def _spark() -> Any:
    if importlib.util.find_spec("pyspark") is None or shutil.which("java") is None:
        pytest.skip("needs pyspark and a Java")
    own = {
        "spark.ui.enabled": "false",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
    }
    builder = importlib.import_module("pyspark.sql").SparkSession.builder.master("local[1]")
    for name, value in own.items():
        builder = builder.config(name, value)
    return builder.getOrCreate()


READERS: Mapping[str, Callable[[Path], Rows]] = {
    "pyarrow": by_pyarrow,
    "pyarrow.dataset": by_pyarrow_dataset,
    "DuckDB": by_duckdb,
    "DuckDB, the folder": by_duckdb_folder,
    "Polars": by_polars,
    "Polars, lazily": by_polars_scan,
    "pandas": by_pandas,
    "datasets": by_datasets,
    "Spark": by_spark,
    "ClickHouse": by_clickhouse,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the parts of a sample job, answered by the emulator, some of whose rows failed."""
    folder = tmp_path_factory.mktemp("readers")

    @cache
    def made(job: str) -> Path:
        faults = ("--fault", "wrong_schema=0.3", "--set", "max_failed=0.9", "--no-fail-fast", "--set", "repairs=0")
        output = folder / job
        command = ("run", f"jobs/{job}.py", "--emulate", "--quiet", "--json", "-o", str(output), *faults)
        done = Shell(ROOT, {"HOME": str(folder)}).pipeline(*command)
        assert done.code == 0, done
        return output / PARTS

    return made


def plain(value: Any) -> Any:
    """A value in one form for all readers: bytes, moments in UTC, pairs of maps."""
    match value:
        case bytearray():
            return bytes(value)
        case datetime() if value.tzinfo is None:
            return value.astimezone(UTC)
        case datetime():
            return value.astimezone(UTC)
        case dict():
            return {name: plain(inner) for name, inner in value.items()}
        case list() | tuple():
            return [plain(inner) for inner in value]
        case float() if math.isnan(value):
            return "NaN"
    return value


def hollow(value: Any, kind: pa.DataType) -> Any:
    """A value as ClickHouse has it: bytes for text; a null struct may be one of nulls, and a null list is empty."""
    if pa.types.is_struct(kind):
        given = value or {}
        return {field.name: hollow(given.get(field.name), field.type) for field in kind}
    if pa.types.is_list(kind):
        return [hollow(inner, kind.value_type) for inner in value or []]
    return value.encode() if isinstance(value, str) else value


def parts_of(folder: Path) -> Rows:
    """The rows as they stand in the files, one after the other."""
    return [row for path in sorted(folder.iterdir()) for row in pq.ParquetFile(path).read().to_pylist()]


def require_same(reader: str, folder: Path) -> None:
    """What a reader makes of a folder is what is in its files, value by value. Raises `AssertionError`."""
    expected, found = parts_of(folder), READERS[reader](folder)
    if reader == "ClickHouse":
        schema = pa.struct(list(pq.read_schema(next(folder.iterdir()))))
        expected, found = ([hollow(row, schema) for row in rows] for rows in (expected, found))
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert plain(one) == plain(other)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("job", JOBS)
def test_every_reader_reads_the_folder_of_every_job_value_by_value(
    job: str, reader: str, dataset: Callable[[str], Path]
) -> None:
    require_same(reader, dataset(job))


class Item(BaseModel):
    name: str
    price: Decimal | None
    tags: list[str]


class Rich(BaseModel):
    """A field of every type that has a column."""

    text: str
    number: int
    share: float
    sure: bool | None
    day: date
    clock: time
    moment: datetime
    wall: NaiveDatetime
    span: timedelta
    blob: bytes
    price: Decimal
    kind: Literal["a", "b"]
    items: list[Item]
    some: set[int]
    nested: Item | None
    free: dict[str, Any]


RICH = {
    "text": "Grüße \N{PARTY POPPER}\x00\n",
    "number": -(2**62),
    "share": 0.1,
    "sure": None,
    "day": "2026-02-28",
    "clock": "23:59:59.999999",
    "moment": "1969-12-31T23:59:59.999999Z",
    "wall": "2026-03-29T02:30:00",
    "span": "P1DT2H",
    "blob": "x",
    "price": "-12345678901234567890123456789.123456789",
    "kind": "a",
    "items": [{"name": "", "price": None, "tags": []}, {"name": "b", "price": "0.5", "tags": ["", "x"]}],
    "some": [3, 1, 2],
    "nested": None,
    "free": {"a": [1, {"b": None}]},
}
EMPTY = {**RICH, "items": [], "some": [], "nested": {"name": "n", "price": "1", "tags": []}, "free": {}, "kind": "b"}
KEPT = {
    "id": pa.array([0, 1, None, 3]),
    "u8": pa.array([0, 255, None, 1], pa.uint8()),
    "f32": pa.array([0.5, None, -0.0, 1e30], pa.float32()),
    "flag": pa.array([True, False, None, True]),
    "large": pa.array(["a", "", None, "\U0001f600"], pa.large_string()),
    "coded": pa.array(["x", "y", "x", None]).dictionary_encode(),
    "day": pa.array([date(2026, 1, 1), None, date(1970, 1, 1), date(9999, 12, 31)]),
    "at": pa.array([1_767_225_600_000, None, -2_000_000_000_000, 1_774_751_400_000], pa.timestamp("ms")),
    "utc": pa.array([datetime(2026, 1, 1, tzinfo=UTC), None, None, None], pa.timestamp("us", "UTC")),
    "money": pa.array([Decimal("1.25"), None, Decimal("-0.01"), Decimal(0)], pa.decimal128(18, 2)),
    "many": pa.array([[1, None], [], None, [3]], pa.list_(pa.int32())),
    "deep": pa.array([[{"a": 1, "b": ["x"]}], [], None, [{"a": None, "b": None}]]),
    "raw": pa.array([b"\x00\xff", b"", None, b"x"]),
}


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three parts with columns of every type, failed rows among them."""
    folder = tmp_path_factory.mktemp("rich")
    kept = pa.RecordBatch.from_pydict(KEPT)
    job = Job(name="rich", model="m", user="{{ id }}", schema=Rich)
    into = sealed_into(folder, job, kept.schema)
    entries: list[Entry] = [
        reply(json.dumps(RICH)),
        Refused("no", http_status=400),
        reply("no JSON"),
        reply(json.dumps(EMPTY)),
    ]
    for chunk in range(3):
        first = 4 * chunk
        part = into.seal(chunk, first, [kept], list(enumerate(entries, first)), replies=True)
        assert part.ok == 2
    into.finish({}, success=True)
    return folder / PARTS


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_reads_columns_of_every_type_value_by_value(reader: str, rich: Path) -> None:
    require_same(reader, rich)


class OpeningHour(BaseModel):
    at: time


def one_row(folder: Path, kept: dict[str, list[Any]], entry: Entry, time_as: Literal["text", "time"] = "text") -> Path:
    """A part of one row."""
    job = Job(name="one", model="m", user="{{ id }}", schema=OpeningHour, time_as=time_as)
    batch = pa.RecordBatch.from_pydict(kept)
    folder.mkdir()
    into = sealed_into(folder, job, batch.schema)
    into.seal(0, 0, [batch], [(0, entry)], replies=False)
    return into.parts


def test_spark_reads_days_before_its_calendar_began_only_when_told_how(tmp_path: Path) -> None:
    folder = one_row(tmp_path / "old", {"day": [date(1492, 10, 12)]}, Refused("no"))
    spark = _spark()
    with pytest.raises(Exception, match="datetimeRebaseMode"):
        by_spark(folder)
    told = spark.read.option("datetimeRebaseMode", "CORRECTED").parquet(str(folder))
    assert [row.day for row in told.collect()] == [date(1492, 10, 12)]


def test_spark_refuses_a_file_with_times_of_its_own_and_reads_it_with_times_as_text(tmp_path: Path) -> None:
    answer = reply('{"at": "10:00"}')
    text = one_row(tmp_path / "text", {"id": [0]}, answer)
    own = one_row(tmp_path / "own", {"id": [0]}, answer, "time")
    assert by_spark(text)[0]["parsed"] == {"at": "10:00:00"}
    with pytest.raises(Exception, match="TIME"):
        by_spark(own)


UNREADABLE = {
    "a time in ms": pa.time32("ms"),
    "a time in ns": pa.time64("ns"),
    "a time in a struct in a list": pa.list_(pa.struct([("n", pa.int64()), ("t", pa.time64("us"))])),
    "a time in a map": pa.map_(pa.string(), pa.time64("us")),
    "ns": pa.timestamp("ns"),
    "ns in UTC": pa.timestamp("ns", "UTC"),
    "half a float": pa.float16(),
    "50 digits": pa.decimal256(50, 9),
    "a UUID": pa.uuid(),
}
READABLE = {
    **{name: values.type for name, values in KEPT.items()},
    "a duration": pa.duration("us"),
    "a large number": pa.uint64(),
    "38 digits": pa.decimal128(38, 9),
    "a map": pa.map_(pa.string(), pa.list_(pa.int64())),
    "fixed": pa.binary(2),
    "vector": pa.list_(pa.float32(), 2),
    "null": pa.null(),
    "s": pa.timestamp("s"),
}


@pytest.mark.parametrize("name", [*UNREADABLE, *READABLE])
def test_columns_that_spark_refuses_are_known_beforehand(name: str) -> None:
    kind = {**UNREADABLE, **READABLE}[name]
    assert bool([*refused_columns([pa.field("x", kind)])]) == (name in UNREADABLE)


@pytest.mark.parametrize("name", [*UNREADABLE, *READABLE])
def test_spark_refuses_those_that_are_told_of_and_no_others(name: str, tmp_path: Path) -> None:
    kind = {**UNREADABLE, **READABLE}[name]
    pq.write_table(pa.table({"x": pa.nulls(1, kind)}), tmp_path / "a.parquet")
    spark = _spark()
    if name in UNREADABLE:
        with pytest.raises(
            Exception,
            match=r"(?i)illegal parquet type|unrecognized parquet type|unsupported|invalid|decimal|not supported",
        ):
            spark.read.parquet(str(tmp_path)).collect()
    else:
        assert len(spark.read.parquet(str(tmp_path)).collect()) == 1


def test_plan_tells_of_columns_that_spark_refuses(tmp_path: Path) -> None:
    shell = Shell(tmp_path, {})
    shell.write("job.py", JOB.replace('keep=["id", "text"],', "").replace("rows.jsonl", "rows.parquet"))
    at = pa.array([time(1)], pa.time64("us"))
    rows = pa.table({"id": [1], "text": ["a"], "at": at, "seen": pa.StructArray.from_arrays([at], ["at"])})
    pq.write_table(rows, tmp_path / "rows.parquet")
    told = shell.pipeline("plan", "job.py").err
    assert "Spark refuses files with the columns at (time64[us]), seen.at (time64[us]); `keep` leaves" in told
    assert "Spark" not in shell.pipeline("plan", "job.py", "--set", 'keep=["id"]').err


def test_the_lines_that_the_documents_give_are_those_that_were_tried() -> None:
    page = (ROOT / "docs/output.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"^\| ([\w ]+?) \| `(.+?)` \|$", page.partition("## Readers\n")[2], re.MULTILINE))
    shown.pop("BigQuery")  # nothing here can try it
    assert shown == {reader: line.replace("FOLDER", "out/extract_events/data") for reader, line in LINES.items()}
