"""A row of the output can be found again in the input, under names that its readers take."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import Job, image
from pipeline.data import Row
from pipeline.execution.chunks import source_of
from pipeline.faults import InvalidRow, UsageError
from pipeline.job.attachments import load
from pipeline.schema.bigquery import is_refused, legal_names, legal_type, refused_names
from pipeline.source import survey
from tests.commands import JOB, Done, Shell
from tests.servers import Answer, Call, Served, chat, served

MODEL = "google/gemini-test"


def answer(call: Call) -> Answer:
    return chat(json.dumps({"answer": call.prompt.removeprefix("Say ").upper()}))


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shell = Shell(tmp_path, {"OPENAI_API_KEY": "k"})
    shell.write("job.py", JOB)
    (tmp_path / "in/day=1").mkdir(parents=True)
    (tmp_path / "in/day=2").mkdir(parents=True)
    shell.write("in/day=1/a.jsonl", '{"id": 7, "text": "a"}\n\n{"id": 7, "text": "b"}\nbroken\n')
    shell.write("in/day=2/b.csv", "id,text\n8,c\n")
    shell.write("in/day=2/b.jsonl", '{"id": 8, "text": "c"}\n')
    return shell


@pytest.fixture
def server() -> Iterator[Served]:
    with served(answer) as server:
        yield server


def run(shell: Shell, server: Served, *more: str) -> Done:
    common = ("--base-url", server.base_url, "--quiet", "--json", "--set", "max_failed=0.5", "-i", "in")
    return shell.pipeline("run", "job.py", *common, "--include", "*.jsonl", *more)


def test_a_row_carries_its_ordinal_and_where_it_stood(shell: Shell, server: Served) -> None:
    assert run(shell, server, "--set", 'add=["source_row", "row", "source_file"]').json["rows"] == 4
    rows = shell.output()
    assert list(rows[0])[:5] == ["id", "text", "row", "source_file", "source_row"]
    assert [(row["row"], row["source_file"], row["source_row"], row["status"]) for row in rows] == [
        (0, "day=1/a.jsonl", 0, "ok"),
        (1, "day=1/a.jsonl", 1, "ok"),
        (2, "day=1/a.jsonl", 2, "failed"),
        (3, "day=2/b.jsonl", 0, "ok"),
    ]
    assert "Say c" in shell.pipeline("show", "out/a_job", "--row", "3").out


@pytest.mark.parametrize("chunk_rows", [1, 2, 3, 100])
def test_places_in_files_are_right_in_every_chunk(tmp_path: Path, chunk_rows: int) -> None:
    for index, count in enumerate([3, 0, 5]):
        pq.write_table(pa.table({"text": [f"{index} {n}" for n in range(count)]}), tmp_path / f"{index}.parquet")
    job = Job(name="a", model=MODEL, user="{{ text }}", add=["row", "source_file", "source_row"])
    source, schema = source_of(job, survey(tmp_path, chunk_rows=chunk_rows))
    batches = [batch.kept for index in range(-(-8 // chunk_rows)) for batch in source.chunk(index)]
    rows = pa.Table.from_batches(batches).rename_columns(schema.names).to_pylist()
    assert [row["row"] for row in rows] == list(range(8))
    assert [f"{row['source_file'][0]} {row['source_row']}" for row in rows] == [row["text"] for row in rows]


def test_the_ordinal_is_there_unless_the_job_has_a_key_says_no_or_the_input_has_such_a_column() -> None:
    kept = {"id": "id", "text": "text"}
    assert Job(name="a", user="x").columns_added(kept) == ("row",)
    assert Job(name="a", user="x", key="id").columns_added(kept) == ()
    assert Job(name="a", user="x", add=[]).columns_added(kept) == ()
    assert Job(name="a", user="x").columns_added({"Row": "Row"}) == ()
    assert Job(name="a", user="x", key="id", add=["row"]).columns_added(kept) == ("row",)
    with pytest.raises(UsageError, match=r"`add` and the input both have a column 'row'"):
        Job(name="a", user="x", add=["row"]).columns_added({"row": "row"})
    assert Job(name="a", user="x", add=["row"]).columns_added({"row": "input_row"}) == ("row",)


def test_an_input_column_called_row_can_be_kept_under_another_name_beside_ours(shell: Shell, server: Served) -> None:
    shell.write("rows.jsonl", '{"row": "mine", "text": "a"}\n')
    more = ("--set", 'keep=["row"]', "--set", 'rename={"row": "input_row"}', "--set", 'add=["row"]')
    done = shell.pipeline("run", "job.py", "--base-url", server.base_url, "--quiet", "--json", *more)
    assert done.code == 0, done
    assert [(row["input_row"], row["row"]) for row in shell.output()] == [("mine", 0)]


REFUSED = ["", " ", "a.b", "a\nb", "_TABLE_x", "_Partitiontime", "x" * 301, "a/b", "a`b", "_FILE_NAME", "__root__x"]
TAKEN = ["a", "_a", "größe", "a b", "a-b", "3d", "a&b", "x" * 300, "table_", "日付"]


def test_bigquery_s_rules_are_known() -> None:
    assert [name for name in REFUSED if not is_refused(name)] == []
    assert [name for name in TAKEN if is_refused(name)] == []
    assert legal_names(["a.b", "a_b", "A_B", "", "_TABLE_x", "ok"], taken=["status"]) == {
        "a.b": "a_b",
        "a_b": "a_b_2",
        "A_B": "A_B_3",
        "": "column",
        "_TABLE_x": "column_TABLE_x",
        "ok": "ok",
    }


@given(st.lists(st.text(max_size=8) | st.sampled_from([*REFUSED, *TAKEN, "status"]), unique=True))
def test_every_name_gets_one_that_bigquery_takes_and_no_two_the_same(names: list[str]) -> None:
    legal = legal_names(names, taken=["status"])
    assert list(legal) == names
    assert not any(map(is_refused, legal.values()))
    assert len({name.lower() for name in legal.values()} | {"status"}) == len(names) + 1


def test_fields_inside_are_renamed_without_a_value_changed(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [
        {"a.b": 1, "text": "x", "s": {"p.q": [{"x/y": 1}, None], "P_Q": "u"}, "status": "s"},
        {"a.b": None, "text": "y", "s": None, "status": "t"},
    ]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    job = Job(name="a", model=MODEL, user="{{ text }} {{ row['a.b'] }}", rename="bigquery")
    source, schema = source_of(job, survey(tmp_path))
    assert schema.names == ["a_b", "text", "s", "status_2", "row"]
    (batch,) = source.chunk(0)
    assert list(refused_names(schema)) == []
    kept = pa.Table.from_batches([batch.kept]).rename_columns(schema.names).to_pylist()
    assert kept == [
        {"a_b": 1, "text": "x", "s": {"p_q": [{"x_y": 1}, None], "P_Q_2": "u"}, "status_2": "s", "row": 0},
        {"a_b": None, "text": "y", "s": None, "status_2": "t", "row": 1},
    ]
    assert batch.rows[0].values["a.b"] == 1


def test_a_schema_with_names_that_bigquery_refuses_is_refused_before_the_first_call(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    schema = {"type": "object", "properties": {"a.b": {"type": "string"}}}
    job = Job(name="a", model=MODEL, user="{{ text }}", schema=schema, rename="bigquery")
    with pytest.raises(UsageError, match=r"BigQuery refuses 'parsed'\.'a\.b', of the job's schema"):
        source_of(job, survey(tmp_path))


def test_plan_tells_of_names_that_bigquery_refuses_and_run_takes_the_remedy(shell: Shell, server: Served) -> None:
    shell.write("rows.jsonl", '{"a.b": 1, "text": "a", "n": {"p/q": 1}}\n')
    keep = ("--set", 'keep=["a.b", "n"]')
    told = "BigQuery refuses columns named 'a.b', 'n'.'p/q'"
    assert told in shell.pipeline("plan", "job.py", *keep).err
    remedy = (*keep, "--set", "rename=bigquery")
    assert "BigQuery" not in shell.pipeline("plan", "job.py", *remedy).err
    done = shell.pipeline("run", "job.py", "--base-url", server.base_url, "--quiet", "--json", *remedy)
    assert done.code == 0, done
    assert [(row["a_b"], row["n"]) for row in shell.output()] == [(1, {"p_q": 1})]


def test_types_without_fields_are_left_as_they_are() -> None:
    for kind in (
        pa.int64(),
        pa.list_(pa.string()),
        pa.map_(pa.string(), pa.int64()),
        pa.dictionary(pa.int8(), pa.string()),
    ):
        assert legal_type(kind) == kind


PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
HUGGING_FACE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def test_the_struct_of_hugging_face_is_an_image_by_its_bytes_or_its_path(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "1.png").write_bytes(PNG)
    values = [{"bytes": PNG, "path": "gone.png"}, {"bytes": None, "path": "1.png"}, {"bytes": None, "path": None}]
    table = pa.table({"image": pa.array(values, HUGGING_FACE), "images": pa.array([values[:2]] * 3), "text": ["x"] * 3})
    pq.write_table(table, tmp_path / "a.parquet")
    job = Job(name="a", model=MODEL, user=["{{ text }}", image("image")], media_root=tmp_path / "media")
    source, schema = source_of(job, survey(tmp_path / "a.parquet"))
    assert schema.names == ["text", "row"]  # what holds bytes is not copied, at whatever depth
    one, two, three = (row for batch in source.chunk(0) for row in batch.rows)
    url = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    for row in (one, two):
        part = job.request(row).payload["messages"][0]["content"][1]
        assert load(part, tmp_path / "media")["image_url"]["url"] == url
    with pytest.raises(InvalidRow, match="column 'image' holds no image"):
        job.request(three)
    several = job.replace(user=["{{ text }}", image("images")])
    request = several.request(Row(0, {"text": "x", "images": values[:2]}))
    assert len(request.payload["messages"][0]["content"]) == 3


@pytest.mark.parametrize(
    ("kind", "copied"),
    [
        (pa.binary(), False),
        (pa.large_binary(), False),
        (pa.binary(4), False),
        (pa.binary_view(), False),
        (pa.list_(pa.binary()), False),
        (pa.map_(pa.string(), pa.binary()), False),
        (HUGGING_FACE, False),
        (pa.dictionary(pa.int8(), pa.binary()), False),
        (pa.struct([("binary", pa.string())]), True),
        (pa.list_(pa.string()), True),
    ],
    ids=str,
)
def test_what_holds_anything_binary_is_copied_only_when_it_is_named(kind: pa.DataType, *, copied: bool) -> None:
    types = {"binary: x": "string", "x": str(kind)}
    assert ("x" in Job(name="a", user="t").columns_kept(types)) is copied
    assert "x" in Job(name="a", user="t", keep=["x"]).columns_kept(types)
