"""A sealed part is a plain Parquet file: readers understand it alike; it is whole or absent, and always the same."""

from __future__ import annotations

import base64
import datetime as dt
import enum
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from pipeline import Job
from pipeline.data import PARTS, Entry, Part, Reply, Usage
from pipeline.faults import Broken, Fault, InvalidRow, Refused, Throttled, Truncated, Unavailable
from pipeline.storage.dataset import Dataset
from pipeline.storage.kept_replies import kept_replies
from pipeline.storage.part_writer import part_name
from pipeline.storage.run_folder import MANIFEST, SUCCESS
from tests.servers import chat

ROOT = Path(__file__).parents[1]


class Mood(enum.StrEnum):
    good = "good"
    bad = "bad"


class Person(BaseModel):
    name: str
    age: int | None = None


class Record(BaseModel):
    title: str
    day: dt.date
    at: dt.datetime
    price: Decimal
    share: float
    mood: Mood
    people: list[Person]
    sure: bool | None = None


VALUE: dict[str, Any] = {
    "title": "Grüße \N{PARTY POPPER}",
    "day": "2026-11-22",
    "at": "2026-11-22T10:00:00+01:00",
    "price": "12.50",
    "share": 0.5,
    "mood": "good",
    "people": [{"name": "Ada", "age": 36}, {"name": "Bob", "age": None}],
    "sure": None,
}
PLAIN = {
    **VALUE,
    "day": dt.date(2026, 11, 22),
    "at": dt.datetime(2026, 11, 22, 9, tzinfo=dt.UTC),
    "price": Decimal("12.500000000"),
}

STRUCTURED = Job(name="structured", model="m", user="{{ text }}", schema=Record)
TEXT = Job(name="text", model="m", user="{{ text }}")
KEPT = pa.schema([("id", pa.int64()), ("text", pa.string())])
USAGE = Usage(10, 5, 3, 2)
FINISHED = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)


def reply(content: str | None, **more: Any) -> Reply:
    return Reply(
        chat(content, **more).body,
        usage=USAGE,
        attempts=2,
        latency_s=0.25,
        finished_at=int(FINISHED.timestamp() * 1_000_000),
    )


GOOD = reply(json.dumps(VALUE))


def dataset(folder: Path, job: Job = STRUCTURED, kept: pa.Schema = KEPT) -> Dataset:
    for name in ("_run", PARTS):
        (folder / name).mkdir(exist_ok=True)
    return Dataset(folder, kept, job.reader, {"pipeline.job": job.name, "pipeline.run_id": "a-run"})


def batches(rows: int, first: int = 0) -> list[pa.RecordBatch]:
    """The copied columns of this many rows, in batches as the source yields them."""
    ordinals = range(first, first + rows)
    return [
        pa.RecordBatch.from_pydict({"id": some, "text": [f"text {ordinal}" for ordinal in some]}, schema=KEPT)
        for some in (list(ordinals[start : start + 256]) for start in range(0, rows, 256))
    ]


def seal(
    into: Dataset, entries: Sequence[Entry], *, chunk: int = 0, first: int = 0, replies: bool = True
) -> tuple[Part, list[dict[str, Any]]]:
    """Seals a part; what was said of it, and its rows."""
    numbered = list(enumerate(entries, first))
    part = into.seal(chunk, first, batches(len(entries), first), numbered, replies=replies)
    return part, pq.read_table(into.folder / PARTS / part.name).to_pylist()


def test_discard_removes_every_file_of_a_part_and_no_file_of_another(tmp_path: Path) -> None:
    into = dataset(tmp_path)
    for chunk in (0, 1, 10):
        seal(into, [GOOD] * 2, chunk=chunk, first=2 * chunk)
    for more in ("part-000001_01.parquet", "part-000001_02.parquet", "part-000010_01.parquet"):
        (into.parts / more).write_bytes(b"the part goes on here")
    into.discard(1)
    left = {"part-000000.parquet", "part-000010.parquet", "part-000010_01.parquet"}
    assert {path.name for path in into.parts.iterdir()} == left
    assert {path.name for path in (tmp_path / "_run/replies").iterdir()} == {
        "part-000000.replies",
        "part-000010.replies",
    }


# For any reader


def test_every_reader_reads_the_same_rows_of_the_declared_types(tmp_path: Path) -> None:
    into = dataset(tmp_path)
    for chunk in range(3):
        seal(into, [GOOD, Refused("no", http_status=400)] * 5, chunk=chunk, first=chunk * 10)
    into.finish({}, success=True)
    rows = pyarrow.dataset.dataset(tmp_path, format="parquet").to_table()
    pattern = str(tmp_path / PARTS / "*.parquet")
    by_duckdb = duckdb.read_parquet(pattern).order("id").to_arrow_table()
    by_polars = pl.read_parquet(pattern)
    assert rows.schema == into.schema
    assert by_duckdb.to_pylist() == by_polars.to_arrow().to_pylist() == rows.to_pylist()
    assert [row["id"] for row in rows.to_pylist()] == list(range(30))
    parsed = by_polars.schema["parsed"]
    assert isinstance(parsed, pl.Struct)
    assert parsed.to_schema()["day"] == pl.Date
    assert by_duckdb.schema.field("parsed").type.field("price").type == pa.decimal128(38, 9)


def test_a_folder_that_is_read_whole_holds_the_rows_once(tmp_path: Path) -> None:
    into = dataset(tmp_path)
    seal(into, [GOOD] * 7)
    into.finish({}, success=True)
    assert pq.read_table(tmp_path).num_rows == 7
    assert duckdb.read_parquet(str(tmp_path)).to_arrow_table().num_rows == 7
    assert duckdb.read_parquet(str(tmp_path / "**" / "*.parquet")).to_arrow_table().num_rows == 7


def test_every_part_has_the_declared_schema_also_when_all_its_rows_failed(tmp_path: Path) -> None:
    into = dataset(tmp_path)
    schemas = []
    chunks: list[list[Entry]] = [[GOOD], [Unavailable("gone")], [GOOD, Unavailable("gone")]]
    for chunk, entries in enumerate(chunks):
        part, _ = seal(into, entries, chunk=chunk)
        schemas.append(pq.read_schema(tmp_path / PARTS / part.name))
    assert schemas == [into.schema] * 3


def test_the_footer_says_which_run_made_the_part(tmp_path: Path) -> None:
    into = dataset(tmp_path)
    part, _ = seal(into, [GOOD])
    metadata = pq.read_metadata(tmp_path / PARTS / part.name).metadata
    assert metadata[b"pipeline.job"] == b"structured"
    assert metadata[b"pipeline.run_id"] == b"a-run"


def test_pages_carry_checksums_that_tell_a_changed_byte(tmp_path: Path) -> None:
    into = dataset(tmp_path)
    part, _ = seal(into, [GOOD] * 100)
    path = tmp_path / PARTS / part.name
    pages = pq.read_metadata(path).row_group(0).column(1)
    content = bytearray(path.read_bytes())
    content[pages.data_page_offset + pages.total_compressed_size - 1] ^= 1
    path.write_bytes(content)
    with pytest.raises(OSError, match="CRC"):
        pq.ParquetFile(path, page_checksum_verification=True).read()


def test_parts_are_compressed_with_zstd(tmp_path: Path) -> None:
    part, _ = seal(dataset(tmp_path), [GOOD])
    group = pq.read_metadata(tmp_path / PARTS / part.name).row_group(0)
    assert {group.column(number).compression for number in range(group.num_columns)} == {"ZSTD"}


# What a row says


def test_a_good_row_has_its_value_and_what_it_cost(tmp_path: Path) -> None:
    _, (row,) = seal(dataset(tmp_path), [GOOD])
    assert (row["id"], row["text"], row["status"], row["error"]) == (0, "text 0", "ok", None)
    assert row["parsed"] == PLAIN
    response = row["response"]
    assert response["text"] == json.dumps(VALUE)
    assert (response["model"], response["id"], response["finish_reason"]) == ("google/gemini-test", "an-id", "stop")
    tokens = ("input_tokens", "output_tokens", "reasoning_tokens", "cached_tokens")
    assert tuple(response[name] for name in tokens) == (10, 5, 3, 2)
    assert (response["attempts"], response["latency_s"], response["first_token_s"]) == (2, 0.25, None)
    assert response["finished_at"] == FINISHED


@pytest.mark.parametrize(
    ("entry", "error", "answered"),
    [
        (
            Unavailable("gone", http_status=503),
            {"type": "Unavailable", "message": "gone", "http_status": 503},
            False,
        ),
        (Throttled("slow down"), {"type": "Throttled", "message": "slow down", "http_status": 429}, False),
        (InvalidRow("a bad line"), {"type": "InvalidRow", "message": "a bad line", "http_status": None}, False),
        (Truncated("too long"), {"type": "Truncated", "message": "too long", "http_status": None}, False),
        (reply("no JSON"), {"type": "Unparsable", "http_status": None}, True),
        (reply("{", finish_reason="length"), {"type": "Truncated", "http_status": None}, True),
        (reply(None, finish_reason="content_filter"), {"type": "Refused", "http_status": None}, True),
        (reply('{"title": "\\ud800"}'), {"type": "Unparsable", "http_status": None}, True),
    ],
)
def test_a_failed_row_says_why_and_keeps_what_was_answered(
    entry: Entry, error: dict[str, Any], *, answered: bool, tmp_path: Path
) -> None:
    part, (row,) = seal(dataset(tmp_path), [entry])
    assert row["status"] == "failed"
    assert row["parsed"] is None
    assert row["error"].items() >= error.items()
    assert row["error"]["message"]
    assert (row["response"] is not None) == answered
    assert (part.ok, part.failed) == (0, 1)


def test_without_a_schema_the_value_is_the_answers_text(tmp_path: Path) -> None:
    into = dataset(tmp_path, TEXT)
    _, rows = seal(into, [reply("Hello!"), reply(""), reply(None)])
    assert into.schema.field("parsed").type == pa.string()
    assert [row["parsed"] for row in rows] == ["Hello!", None, None]
    assert [row["status"] for row in rows] == ["ok", "failed", "failed"]


def test_tool_calls_media_and_reasoning_have_columns(tmp_path: Path) -> None:
    call = {"id": "call-1", "type": "function", "function": {"name": "look_up", "arguments": '{"x": 1}'}}
    audio = {"data": base64.b64encode(b"\x89PNG").decode(), "extra_content": {"google": {"mime_type": "image/png"}}}
    answers = [reply(None, tool_calls=[call]), reply(None, audio=audio), reply("so", reasoning_content="because")]
    _, rows = seal(dataset(tmp_path, TEXT), answers)
    called, drawn, reasoned = (row["response"] for row in rows)
    assert called["tool_calls"] == [{"id": "call-1", "name": "look_up", "arguments": '{"x": 1}'}]
    assert drawn["media"] == [{"mime_type": "image/png", "data": b"\x89PNG"}]
    assert reasoned["reasoning"] == "because"
    assert reasoned["tool_calls"] == reasoned["media"] == []


def test_a_part_without_kept_columns_counts_its_rows_all_the_same(tmp_path: Path) -> None:
    nothing = pa.schema([])
    kept = [pa.RecordBatch.from_struct_array(pa.array([{}] * rows, pa.struct([]))) for rows in (3, 2)]
    into = dataset(tmp_path, TEXT, nothing)
    part = into.seal(0, 0, kept, [(ordinal, reply(str(ordinal))) for ordinal in range(5)], replies=False)
    rows = pq.read_table(tmp_path / PARTS / part.name).to_pylist()
    assert [row["parsed"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert list(rows[0]) == ["status", "parsed", "response", "error"]


def test_the_part_is_described_as_it_is(tmp_path: Path) -> None:
    part, _ = seal(dataset(tmp_path), [GOOD, reply("no JSON"), Unavailable("gone")], chunk=7, first=7000)
    content = (tmp_path / PARTS / "part-000007.parquet").read_bytes()
    assert (part.chunk, part.name, part.first) == (7, "part-000007.parquet", 7000)
    assert (part.rows, part.ok, part.failed) == (3, 1, 2)
    assert (part.bytes, part.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    tokens = (part.input_tokens, part.output_tokens, part.reasoning_tokens, part.cached_tokens)
    assert tokens == (20, 10, 6, 4)


def test_rows_stay_in_order_across_batches_and_slices(tmp_path: Path) -> None:
    entries = [reply(f"answer {number}") if number % 3 else Unavailable(str(number)) for number in range(2500)]
    part, rows = seal(dataset(tmp_path, TEXT), entries)
    assert [row["id"] for row in rows] == list(range(2500))
    assert [row["parsed"] or row["error"]["message"] for row in rows] == [
        f"answer {number}" if number % 3 else str(number) for number in range(2500)
    ]
    assert (part.ok, part.failed) == (1666, 834)


@pytest.mark.parametrize("ordinals", [[0, 1, 3, 4], [0, 1, 2], [1, 0, 2, 3], [1, 2, 3, 4], [0, 1, 2, 3, 4]])
def test_entries_that_are_not_those_of_the_rows_make_no_part(ordinals: list[int], tmp_path: Path) -> None:
    into = dataset(tmp_path)
    with pytest.raises((RuntimeError, ValueError)):
        into.seal(0, 0, batches(4), [(ordinal, GOOD) for ordinal in ordinals], replies=True)
    assert list((tmp_path / PARTS).glob("*.parquet")) == []


# Whole or absent, and always the same


def test_sealing_the_same_again_gives_the_same_bytes(tmp_path: Path) -> None:
    into = dataset(tmp_path)
    entries: list[Entry] = [GOOD, Refused("no"), reply("no JSON")] * 400
    first, _ = seal(into, entries)
    again, _ = seal(into, entries)
    elsewhere, _ = seal(dataset(_made(tmp_path / "elsewhere")), entries)
    assert first == again == elsewhere


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_failure_in_the_middle_leaves_no_part_and_the_one_before_as_it_was(tmp_path: Path) -> None:
    into = dataset(tmp_path)

    def entries() -> Iterator[tuple[int, Entry]]:
        yield from ((ordinal, GOOD) for ordinal in range(1500))
        raise Broken("the journal has gone")

    with pytest.raises(Broken, match="has gone"):
        into.seal(0, 0, batches(2000), entries(), replies=True)
    assert list((tmp_path / PARTS).iterdir()) == []
    part, rows = seal(into, [GOOD] * 3)
    with pytest.raises(Broken, match="has gone"):
        into.seal(0, 0, batches(2000), entries(), replies=True)
    assert pq.read_table(tmp_path / PARTS / part.name).to_pylist() == rows
    assert len(list(kept_replies(tmp_path, 0))) == 3


FILL_THE_DISK = """
import os, resource, sys
from pathlib import Path
from pipeline.faults import Broken
from tests.test_dataset import GOOD, batches, dataset, seal, reply

into = dataset(Path(sys.argv[1]))
for room in (40_000, 1):
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    try:
        seal(into, [reply(os.urandom(100).hex()) for _ in range(2000)])
    except Broken as broken:
        print(broken)
"""


def test_p4_a_full_disk_is_broken_and_leaves_no_part(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FILL_THE_DISK, str(tmp_path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    assert done.stdout.count("part-000000.parquet cannot be written: ") == 2
    assert list((tmp_path / PARTS).glob("*.parquet")) == []


def test_p4_a_manifest_that_cannot_be_written_is_broken(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(Broken, match="manifest"):
        dataset(tmp_path).finish({}, success=True)
    assert not (tmp_path / SUCCESS).exists()


def test_success_is_there_only_when_the_run_succeeded(tmp_path: Path) -> None:
    into = dataset(tmp_path)
    into.finish({"status": "complete"}, success=True)
    assert json.loads((tmp_path / MANIFEST).read_bytes()) == {"status": "complete"}
    assert (tmp_path / SUCCESS).read_bytes() == b""
    into.unfinish()
    assert not (tmp_path / SUCCESS).exists()
    into.unfinish()
    into.finish({}, success=True)
    into.finish({"status": "stopped"}, success=False)
    assert not (tmp_path / SUCCESS).exists()
    assert json.loads((tmp_path / MANIFEST).read_bytes()) == {"status": "stopped"}


# Kept replies


REPLIES = st.builds(
    Reply,
    body=st.sampled_from([GOOD.body, chat("x").body, chat(None).body]),
    attempts=st.integers(1, 99),
    latency_s=st.floats(0, 1000),
    finished_at=st.integers(0, 2**50),
    transcript=st.none() | st.text(),
)
FAULTS = st.builds(Unavailable, st.text(), http_status=st.none() | st.integers(100, 599))


@settings(deadline=None, max_examples=20)
@given(entries=st.lists(REPLIES | FAULTS, min_size=1, max_size=20))
def test_kept_replies_come_back_as_they_were(entries: list[Entry], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("kept")
    seal(dataset(folder), entries)
    kept = list(kept_replies(folder, 0))
    assert [ordinal for ordinal, _ in kept] == list(range(len(entries)))
    assert [_told(entry) for _, entry in kept] == [_told(entry) for entry in entries]


def _told(entry: Entry) -> object:
    return (type(entry), entry.message, entry.http_status) if isinstance(entry, Fault) else entry


def test_s6_kept_replies_are_private_and_only_kept_when_asked_for(tmp_path: Path) -> None:
    into = dataset(tmp_path)
    seal(into, [GOOD], chunk=0, replies=False)
    with pytest.raises(Broken, match=r"the kept replies of part-000000\.parquet cannot be read"):
        next(kept_replies(tmp_path, 0))
    seal(into, [GOOD], chunk=1)
    folder = tmp_path / "_run" / "replies"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in folder.iterdir()] == [0o600]


def test_damaged_replies_are_broken_and_not_wrong(tmp_path: Path) -> None:
    seal(dataset(tmp_path), [GOOD] * 50)
    (path,) = (tmp_path / "_run" / "replies").iterdir()
    whole = path.read_bytes()
    for content in (whole[:-10], b"", whole[:100] + b"\xff" + whole[101:]):
        path.write_bytes(content)
        with pytest.raises(Broken, match="cannot be read"):
            list(kept_replies(tmp_path, 0))


def test_names_of_parts_sort_like_their_rows() -> None:
    names = [part_name(chunk) for chunk in (0, 9, 10, 99, 100, 999_999)]
    assert names == sorted(names)
