"""However large rows and replies are, memory stays bounded and every file that is written can be read."""

from __future__ import annotations

import gc
import gzip
import json
import subprocess
import sys
import tracemalloc
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import Job
from pipeline.data import PARTS, Entry, Reply
from pipeline.faults import Refused
from pipeline.source import survey
from pipeline.storage.batches import SLICE_BYTES, SLICE_ROWS, bounded_batches, slices
from pipeline.storage.journal import MAX_PENDING_BYTES, Journal
from pipeline.storage.kept_replies import kept_replies
from pipeline.storage.records import records
from tests.commands import JOB, ROOT, Shell
from tests.servers import Answer, Call, chat, served
from tests.test_dataset import TEXT, batches, dataset, reply, seal

MEGABYTE = "x" * 1_000_000

SEAL = """
import json, resource, sys
from pathlib import Path
import pyarrow as pa
from pipeline.data import Reply
from pipeline.storage.records import records
from pipeline.storage.journal import Journal
from tests.test_dataset import TEXT, batches, dataset, reply

folder = Path(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
large = reply("y" * 2_200_000)
part = dataset(folder, TEXT).seal(0, 0, batches(1000), ((n, large) for n in range(1000)), replies=True)
journal = Journal(folder / "_run" / "journal.sqlite")
journal.seal(part)
journal.close()
assert sum(record["response"]["text"] == "y" * 2_200_000 for _, record in records(folder)) == 1000
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
print(json.dumps({"grown": grown, "files": [[file.name, file.rows] for file in part.files]}))
"""


def test_i8_a_thousand_replies_of_2_megabytes_make_a_part_that_is_written_and_read_in_bounded_memory(
    tmp_path: Path,
) -> None:
    """2.2 GB of text, twice: no column of any file comes near the 2 GiB of 32-bit offsets."""
    done = subprocess.run(
        [sys.executable, "-c", SEAL, str(tmp_path)], stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT
    )
    told = json.loads(done.stdout)
    assert told["grown"] < 500
    files = told["files"]
    assert len(files) > 1
    assert sum(rows for _, rows in files) == 1000
    assert [name for name, _ in files] == sorted(path.name for path in (tmp_path / PARTS).glob("*.parquet"))
    for name, rows in files:
        metadata = pq.read_metadata(tmp_path / PARTS / name)
        assert metadata.num_rows == rows
        for column in range(metadata.num_columns):
            groups = (metadata.row_group(group).column(column) for group in range(metadata.num_row_groups))
            assert sum(group.total_uncompressed_size for group in groups) < 2 << 30
    pattern = str(tmp_path / PARTS / "*.parquet")
    query = f"SELECT list_sort(list(id)), min(length(parsed)), max(length(response.text)) FROM '{pattern}'"  # noqa: S608 - our own path
    assert duckdb.connect().execute(query).fetchall() == [(list(range(1000)), 2_200_000, 2_200_000)]
    lengths = pl.scan_parquet(pattern).select(pl.col("parsed").str.len_bytes()).collect()
    assert lengths["parsed"].to_list() == [2_200_000] * 1000


def test_i8_failures_hold_nothing_of_the_rows_around_them(tmp_path: Path) -> None:
    """Neither in memory that only the collector of cycles would find: it comes seldom."""
    good, bad = reply(json.dumps({"answer": MEGABYTE})), reply("no JSON")
    into = dataset(tmp_path, Job(name="a", model="m", user="x", schema="json_object"))
    entries = [(n, bad if n % 5 == 0 else good) for n in range(60)]
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        before = pa.total_allocated_bytes()
        assert into.seal(0, 0, batches(60), entries, replies=True).failed == 12
        assert pa.total_allocated_bytes() - before < 1_000_000
        assert tracemalloc.get_traced_memory()[0] < 1_000_000
    finally:
        tracemalloc.stop()
        gc.enable()


def test_i8_a_part_that_is_sealed_again_with_fewer_bytes_leaves_no_file_of_before(tmp_path: Path) -> None:
    into = dataset(tmp_path, TEXT)
    large = reply("y" * 2_200_000)
    before = into.seal(0, 0, batches(400), ((n, large) for n in range(400)), replies=False)
    assert len(before.files) > 1
    part, rows = seal(into, [reply("small")] * 400)
    assert [file.name for file in part.files] == [path.name for path in (tmp_path / PARTS).glob("*.parquet")]
    assert [row["parsed"] for row in rows] == ["small"] * 400


def test_i8_rows_that_are_read_back_come_in_bounded_batches(tmp_path: Path) -> None:
    """Also where a row group is large, as files of others are."""
    path = tmp_path / "file.parquet"
    table = pa.table({"n": range(100), "text": [MEGABYTE[: 500_000 + n] for n in range(100)]})
    pq.write_table(table, path, use_dictionary=False)
    with pq.ParquetFile(path) as file:
        found = list(bounded_batches(file, ["n", "text"]))
    assert max(batch.nbytes for batch in found) < 2 * SLICE_BYTES
    assert [n for batch in found for n in batch.column("n").to_pylist()] == list(range(100))


ENTRIES: st.SearchStrategy[Entry] = st.one_of(
    st.integers(0, 3_000).map(lambda size: Reply(bytes(size))),
    st.sampled_from([Reply(b"x" * SLICE_BYTES), Reply(b"", transcript="y" * 5_000_000), Refused("no")]),
)


@given(st.lists(ENTRIES, max_size=40), st.data())
def test_i8_slices_hold_the_rows_once_in_order_and_are_bounded(entries: list[Entry], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(entries) - 1)), max_size=5))) if len(entries) > 1 else []
    numbers = pa.record_batch({"n": pa.array(range(len(entries)), pa.int64())})
    pieces = [numbers.slice(a, b - a) for a, b in zip([0, *cuts], [*cuts, len(entries)], strict=True)]
    found = list(slices(iter(pieces), iter(enumerate(entries))))
    rows = [n for columns, _ in found for column in columns for n in column.column(0).to_pylist()]
    assert rows == list(range(len(entries)))
    assert [entry for _, some in found for entry in some] == list(enumerate(entries))
    for columns, some in found:
        assert sum(column.num_rows for column in columns) == len(some) <= SLICE_ROWS
        before_last = sum(len(getattr(entry, "body", b"")) for _, entry in some[:-1])
        assert before_last < SLICE_BYTES


@pytest.mark.parametrize("count", [0, 1, SLICE_ROWS, SLICE_ROWS + 1])
def test_slices_end_at_a_thousand_rows(count: int) -> None:
    found = list(slices(batches(count), ((n, Refused("no")) for n in range(count))))
    assert [len(some) for _, some in found] == [SLICE_ROWS] * (count // SLICE_ROWS) + [1] * (count % SLICE_ROWS)


def test_a_dictionary_of_its_own_in_every_batch_is_no_obstacle(tmp_path: Path) -> None:
    kind = pa.dictionary(pa.int32(), pa.string())
    kept = pa.schema([("word", kind), ("inner", pa.struct([("word", kind)]))])

    def batch(number: int) -> pa.RecordBatch:
        word = pa.array([f"word {number}"] * 300).dictionary_encode()
        inner = pa.StructArray.from_arrays([word], fields=[pa.field("word", kind)])
        return pa.RecordBatch.from_arrays([word, inner], schema=kept)

    into = dataset(tmp_path, TEXT, kept)
    part = into.seal(0, 0, [batch(n) for n in range(5)], ((n, reply("x")) for n in range(1500)), replies=False)
    rows = pq.read_table(tmp_path / PARTS / part.name).to_pylist()
    assert [(row["word"], row["inner"]["word"]) for row in rows] == [(f"word {n // 300}",) * 2 for n in range(1500)]


@pytest.mark.anyio
async def test_i8_what_waits_for_its_commit_holds_back_who_would_ask_for_more(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    async with anyio.create_task_group() as tasks:
        await journal.room()
        await journal.put(0, Reply(bytes(MAX_PENDING_BYTES)))
        await journal.room()
        await journal.put(1, Reply(b"x"))
        with anyio.move_on_after(0.05) as waited:
            await journal.room()
        assert waited.cancelled_caught
        tasks.start_soon(journal.keep_writing)
        await journal.room()
        tasks.cancel_scope.cancel()
    journal.close()


# A whole run


def answer(call: Call) -> Answer:
    return chat(json.dumps({"answer": call.prompt}))


def _as_jsonl(folder: Path, rows: list[dict[str, Any]]) -> str:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "rows.jsonl"


def _as_gzip(folder: Path, rows: list[dict[str, Any]]) -> str:
    with gzip.open(folder / "rows.jsonl.gz", "wt", compresslevel=1) as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    return "rows.jsonl.gz"


def _as_parquet(folder: Path, rows: list[dict[str, Any]]) -> str:
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet", row_group_size=50)
    return "rows.parquet"


@pytest.mark.parametrize("written", [_as_jsonl, _as_gzip, _as_parquet])
def test_i8_kept_columns_beyond_what_memory_may_hold_are_read_again_and_are_those_of_their_rows(
    written: Any, tmp_path: Path
) -> None:
    shell = Shell(tmp_path, {"OPENAI_API_KEY": "k"})
    shell.write("job.py", JOB.replace('keep=["id", "text"]', 'keep=["id", "large"]'))
    rows = [{"id": n, "text": f"text {n}", "large": f"{n} {MEGABYTE}"} for n in range(220)]
    name = written(tmp_path, rows)
    with served(answer) as server:
        done = shell.pipeline("run", "job.py", "--input", name, "--base-url", server.base_url, "--quiet", "--json")
        assert done.json.items() >= {"ok": 220, "failed": 0}.items()
    found = shell.output()
    assert [(row["id"], row["large"].partition(" ")[0]) for row in found] == [(n, str(n)) for n in range(220)]
    assert {len(row["large"].partition(" ")[2]) for row in found} == {len(MEGABYTE)}
    assert [row["parsed"]["answer"] for row in found] == [f"Say text {n}" for n in range(220)]


def test_i8_a_chunk_of_large_rows_has_fewer_of_them(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"n": n, "x": MEGABYTE}) + "\n" for n in range(30)))
    assert survey([path]).chunk_rows < 300


def test_i8_failed_rows_are_reopened_and_reparsed_out_of_replies_that_are_read_one_by_one(tmp_path: Path) -> None:
    shell = Shell(tmp_path, {"OPENAI_API_KEY": "k"})
    shell.write("job.py", JOB.replace('"a_job",', '"a_job", max_failed=0.9, repairs=0,'))
    shell.rows(60)
    large = {"answer": MEGABYTE[:300_000]}

    def first(call: Call) -> Answer:
        return chat("no JSON" if call.prompt.endswith("7") else json.dumps(large))

    with served(first) as server:
        flags = ("run", "job.py", "--base-url", server.base_url, "--quiet", "--json")
        assert shell.pipeline(*flags).json.items() >= {"ok": 54, "failed": 6}.items()
        server.follow(lambda _: chat(json.dumps(large)))
        again = shell.pipeline(*flags, "--retry-failed").json
        assert again.items() >= {"ok": 60, "failed": 0, "requests": 6}.items()
    assert len(list(kept_replies(tmp_path / "out/a_job", 0))) == 60
    assert [ordinal for ordinal, _ in records(tmp_path / "out/a_job", ["status"])] == list(range(60))
    reparsed = shell.pipeline("reparse", "out/a_job", "--job", "job.py", "--json").json
    assert reparsed.items() >= {"ok": 60, "requests": 0}.items()


def test_a_part_that_fails_in_its_second_file_takes_no_place(tmp_path: Path) -> None:
    into = dataset(tmp_path, TEXT)
    part, rows = seal(into, [reply("before")] * 3)

    def entries() -> Any:
        yield from ((n, reply("y" * 2_200_000)) for n in range(300))
        raise OSError("no space")

    with ExitStack() as stack:
        stack.enter_context(pytest.raises(Exception, match="no space"))
        into.seal(0, 0, batches(600), entries(), replies=False)
    assert pq.read_table(tmp_path / PARTS / part.name).to_pylist() == rows
    assert [path.name for path in (tmp_path / PARTS).glob("part-*.parquet")] == [part.name]
