"""What was flushed survives a close, a kill and a full disk; sealed entries take no space."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import faults
from pipeline.data import Entry, Part, Reply, Usage
from pipeline.faults import Broken, Fault, ProviderUnusable, Refused, Unavailable
from pipeline.storage.codec import decode, encode
from pipeline.storage.journal import MAX_PENDING, Journal
from pipeline.storage.journal_reader import read_state
from tests.servers import PATIENCE_S

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[1]
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - a folder of its own is made in it

COUNTS = st.integers(0, 2**63 - 1)
SECONDS = st.floats(0, 1e9)
REPLIES = st.builds(
    Reply,
    body=st.binary(max_size=200),
    usage=st.builds(Usage, COUNTS, COUNTS, COUNTS, COUNTS),
    attempts=st.integers(1, 99),
    latency_s=SECONDS,
    first_token_s=st.none() | SECONDS,
    finished_at=COUNTS,
    transcript=st.none() | st.text(max_size=50),
    from_cache=st.booleans(),
    saved=st.builds(Usage, COUNTS, COUNTS, COUNTS, COUNTS),
    saved_usd=SECONDS,
)
KINDS = [
    Unavailable,
    Refused,
    faults.Truncated,
    faults.Unparsable,
    faults.InvalidRow,
    faults.Throttled,
    ProviderUnusable,
]
FAULTS = st.builds(
    lambda kind, message, status: kind(message, http_status=status),
    st.sampled_from(KINDS),
    st.text(max_size=50),
    st.none() | st.integers(100, 599),
)
ENTRIES = st.one_of(REPLIES, FAULTS)


def known(entry: Entry) -> object:
    """What equality means for an entry: faults are compared by what they say."""
    return (type(entry), entry.message, entry.http_status) if isinstance(entry, Fault) else entry


def test_a_reply_that_was_kept_before_there_was_a_cache_is_read() -> None:
    times = b'"attempts": 1, "latency_s": 0.5, "first_token_s": null, "finished_at": 7'
    meta = b'{"usage": [1, 2, 3, 4], %b, "location": null, "cost_usd": 0.5, "transcript": null}' % times
    assert decode(meta, b"{}") == Reply(b"{}", Usage(1, 2, 3, 4), latency_s=0.5, finished_at=7, cost_usd=0.5)


def reply(size: int = 10) -> Reply:
    return Reply(b"x" * size, usage=Usage(1, 2, 3, 4))


def part(chunk: int, first: int, rows: int) -> Part:
    zeros: dict[str, Any] = dict.fromkeys((field.name for field in fields(Part) if field.default is MISSING), 0)
    return Part(**{**zeros, "chunk": chunk, "name": f"part-{chunk:06d}.parquet", "first": first, "rows": rows})


@contextmanager
def opened(path: Path) -> Iterator[Journal]:
    with closing(Journal(path)) as journal:
        yield journal


@asynccontextmanager
async def writing(path: Path) -> AsyncIterator[Journal]:
    """A journal whose writer works."""
    with opened(path) as journal:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(journal.keep_writing)
            yield journal
            tasks.cancel_scope.cancel()


async def put_all(journal: Journal, entries: Sequence[tuple[int, Entry]]) -> None:
    for ordinal, entry in entries:
        await journal.put(ordinal, entry)


# Entries


@given(ENTRIES)
def test_an_entry_is_read_as_it_was_written(entry: Entry) -> None:
    assert known(decode(*encode(entry))) == known(entry)


def test_a_fault_whose_message_is_no_unicode_can_be_kept() -> None:
    kept = decode(*encode(Unavailable("half a pair: \ud800")))
    assert isinstance(kept, Unavailable)
    assert kept.message == "half a pair: ?"


@settings(deadline=None, max_examples=30)
@given(st.dictionaries(st.integers(0, 50), ENTRIES, max_size=20), st.integers(0, 50), st.integers(0, 50))
def test_a_journal_that_is_opened_again_holds_what_was_put_in_order(
    entries: dict[int, Entry], first: int, rows: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "journal.sqlite")
        with opened(path) as journal:
            anyio.run(put_all, journal, list(entries.items()))
        with opened(path) as journal:
            within = sorted(ordinal for ordinal in entries if first <= ordinal < first + rows)
            assert journal.recorded(first, rows) == set(within)
            found = [(ordinal, known(entry)) for ordinal, entry in journal.entries(first, rows)]
            assert found == [(ordinal, known(entries[ordinal])) for ordinal in within]
            assert journal.count() == len(entries)


async def test_an_entry_that_is_put_again_takes_the_place_of_the_first(tmp_path: Path) -> None:
    async with writing(tmp_path / "journal") as journal:
        await put_all(journal, [(7, Unavailable("the first")), (7, reply())])
        await journal.flush()
        assert list(journal.entries(0, 10)) == [(7, reply())]


# Durability


async def test_what_was_flushed_is_seen_by_another_connection_at_once(tmp_path: Path) -> None:
    async with writing(tmp_path / "journal") as journal:
        for ordinal in range(5):
            await journal.put(ordinal, reply())
            await journal.flush()
            with closing(sqlite3.connect(tmp_path / "journal")) as other:
                assert other.execute("SELECT count(*) FROM entries").fetchone() == (ordinal + 1,)


def test_every_commit_is_synced(tmp_path: Path) -> None:
    with opened(tmp_path / "journal") as journal, journal._database.transaction() as database:
        assert database.execute("PRAGMA synchronous").fetchone() == (2,)
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_flush_returns_at_once_when_nothing_was_put(tmp_path: Path) -> None:
    with opened(tmp_path / "journal") as journal:  # and nobody writes
        await journal.flush()


async def test_no_entry_is_lost_between_the_loop_that_puts_and_the_thread_that_commits() -> None:
    rows = 60_000
    done = threading.Event()

    def commit_all_the_time() -> None:
        while not done.is_set():
            journal.commit()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        # In memory, where there is one, syncs take no time and the two threads meet much more often.
        with tempfile.TemporaryDirectory(dir=MEMORY) as folder, opened(Path(folder, "journal")) as journal:
            writer = threading.Thread(target=commit_all_the_time)
            writer.start()
            await put_all(journal, [(ordinal, reply()) for ordinal in range(rows)])
            done.set()
            writer.join()
            journal.commit()
            assert journal.count() == rows
    finally:
        sys.setswitchinterval(interval)


async def test_put_waits_when_the_disk_cannot_keep_up(tmp_path: Path) -> None:
    with opened(tmp_path / "journal") as journal:
        await put_all(journal, [(ordinal, reply()) for ordinal in range(MAX_PENDING)])
        with anyio.move_on_after(0.05) as waited:
            await journal.put(MAX_PENDING, reply())
        assert waited.cancelled_caught
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(journal.keep_writing)
            await journal.put(MAX_PENDING + 1, reply())
            tasks.cancel_scope.cancel()


PUT_FOR_EVER = """
import anyio, sys
from pathlib import Path
from pipeline.data import Reply
from pipeline.storage.journal import Journal

async def main():
    journal = Journal(Path(sys.argv[1]))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(journal.keep_writing)
        for ordinal in range(10**9):
            await journal.put(ordinal, Reply(b"%d" % ordinal))
            if ordinal % 7 == 6:
                await journal.flush()
                print(ordinal + 1, flush=True)
            await anyio.lowlevel.checkpoint()

anyio.run(main)
"""


def test_p1_all_that_was_flushed_survives_kill_9(tmp_path: Path) -> None:
    for turns in (1, 3, 10):
        path = tmp_path / f"journal-{turns}"
        command = [sys.executable, "-c", PUT_FOR_EVER, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True) as child:
            assert child.stdout is not None
            flushed = [int(child.stdout.readline()) for _ in range(turns)][-1]
            child.kill()
            flushed = max([flushed, *map(int, child.stdout.read().split())])
        with opened(path) as journal:
            bodies = [(ordinal, entry.body) for ordinal, entry in journal.entries(0, 10**9) if isinstance(entry, Reply)]
        assert bodies[:flushed] == [(ordinal, b"%d" % ordinal) for ordinal in range(flushed)]
        assert len(bodies) <= flushed + 7


FILL_THE_DISK = """
import anyio, resource, sys
from pathlib import Path
from pipeline.data import Reply
from pipeline.faults import Broken
from pipeline.storage.journal import Journal

async def raises(call):
    try:
        await call
    except Broken as broken:
        return str(broken)
    return None

async def main():
    journal = Journal(Path(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(journal.keep_writing)
        flushed = 0
        for ordinal in range(100):
            first = await raises(journal.put(ordinal, Reply(b"x" * 10_000))) or await raises(journal.flush())
            if first:
                break
            flushed = ordinal + 1
        again = {await raises(journal.put(0, Reply(b""))), await raises(journal.flush())}
        assert again == {first}, (first, again)
        tasks.cancel_scope.cancel()
    journal.close()
    print(flushed, first)

anyio.run(main)
"""


def test_p4_a_full_disk_is_broken_for_every_put_and_flush_and_costs_nothing_flushed(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    command = [sys.executable, "-c", FILL_THE_DISK, str(path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, cwd=ROOT, text=True, check=True)
    flushed, _, message = done.stdout.partition(" ")
    assert message.startswith("the journal cannot be used: ")
    assert 5 < int(flushed) < 20
    with opened(path) as journal:
        assert journal.recorded(0, 100) >= set(range(int(flushed)))


def test_p4_a_file_that_is_no_journal_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b"this is no database at all, by no means\n" * 200)
    with pytest.raises(Broken, match="not a database"):
        Journal(path)


def test_p4_a_damaged_journal_is_broken_whoever_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with opened(path) as journal:
        anyio.run(put_all, journal, [(ordinal, reply(2000)) for ordinal in range(200)])
    content = bytearray(path.read_bytes())
    content[8192:] = b"\xa5" * (len(content) - 8192)
    path.write_bytes(content)
    with pytest.raises(Broken), opened(path) as journal:
        list(journal.entries(0, 200))
    with pytest.raises(Broken):
        read_state(path)


def test_s6_the_files_of_the_journal_are_private(tmp_path: Path) -> None:
    with opened(tmp_path / "journal") as journal:
        anyio.run(put_all, journal, [(0, reply())])
        journal.commit()
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"journal": 0o600, "journal-wal": 0o600, "journal-shm": 0o600}


# Sealing


async def test_seal_records_the_part_and_lets_its_entries_go(tmp_path: Path) -> None:
    async with writing(tmp_path / "journal") as journal:
        await put_all(journal, [(ordinal, reply()) for ordinal in range(5000)])
        await journal.flush()
        journal.seal(part(1, 1000, 2500))
        assert journal.parts() == [part(1, 1000, 2500)]
        assert journal.recorded(0, 5000) == {*range(1000), *range(3500, 5000)}
        journal.seal(part(1, 1000, 2500))
        assert journal.parts() == [part(1, 1000, 2500)]
        assert journal.count() == 2500


def test_parts_are_told_in_order(tmp_path: Path) -> None:
    with opened(tmp_path / "journal") as journal:
        for chunk in (2, 0, 1):
            journal.seal(part(chunk, chunk * 10, 10))
        assert [sealed.chunk for sealed in journal.parts()] == [0, 1, 2]


async def test_entries_that_a_cut_short_seal_left_behind_go_when_the_journal_is_opened_again(tmp_path: Path) -> None:
    async with writing(tmp_path / "journal") as journal:
        journal.seal(part(0, 0, 3000))
        # As a kill between the record of the part and the last of the deletions leaves it:
        await put_all(journal, [(ordinal, reply()) for ordinal in range(2000, 3010)])
        await journal.flush()
    with opened(tmp_path / "journal") as journal:
        assert journal.recorded(0, 4000) == set(range(3000, 3010))
    assert read_state(tmp_path / "journal") == ([part(0, 0, 3000)], 10)


async def test_unseal_opens_a_chunk_again_with_the_entries_to_keep(tmp_path: Path) -> None:
    async with writing(tmp_path / "journal") as journal:
        journal.seal(part(0, 0, 10))
        journal.seal(part(1, 10, 10))
        kept: list[tuple[int, Entry]] = [(12, reply()), (17, reply(20))]
        journal.unseal(1, kept)
        assert journal.parts() == [part(0, 0, 10)]
        assert list(journal.entries(0, 100)) == kept


def test_unseal_is_one_transaction(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with opened(path) as journal:
        journal.seal(part(0, 0, 10))
        # The second entry cannot be stored: then the first is not there, either, and the part still is.
        with pytest.raises(Broken):
            journal.unseal(0, [(1, reply()), ("two", reply())])  # type: ignore[list-item] # wrong on purpose
    with opened(path) as journal:
        assert journal.parts() == [part(0, 0, 10)]
        assert journal.count() == 0


def test_p4_after_a_failure_nothing_is_tried_again(tmp_path: Path) -> None:
    with opened(tmp_path / "journal") as journal:
        with pytest.raises(Broken) as first:
            journal.unseal(0, [("one", reply())])  # type: ignore[list-item] # wrong on purpose
        calls: list[Callable[[], None]] = [
            lambda: journal.seal(part(0, 0, 10)),
            lambda: journal.forget([1]),
            lambda: journal.unseal(0, []),
        ]
        for call in calls:
            with pytest.raises(Broken) as again:
                call()
            assert again.value is first.value
        with pytest.raises(Broken):
            anyio.run(journal.put, 1, reply())
        assert journal.parts() == []


async def test_forget_drops_just_the_entries_that_are_named(tmp_path: Path) -> None:
    async with writing(tmp_path / "journal") as journal:
        await put_all(journal, [(ordinal, reply()) for ordinal in range(10)])
        await journal.flush()
        journal.forget([3, 5, 99])
        assert journal.recorded(0, 10) == {0, 1, 2, 4, 6, 7, 8, 9}


async def test_the_space_of_sealed_chunks_is_used_again(tmp_path: Path) -> None:
    sizes = []
    async with writing(tmp_path / "journal") as journal:
        for chunk in range(30):
            await put_all(journal, [(chunk * 200 + number, reply(2000)) for number in range(200)])
            await journal.flush()
            journal.seal(part(chunk, chunk * 200, 200))
            sizes.append(size_of(tmp_path))
    written = 30 * 200 * 2000
    assert max(sizes) < written / 2
    assert sizes[-1] <= 1.1 * max(sizes[:15])


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


# Looking from outside


async def test_look_reads_beside_a_writer(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    assert read_state(path) == ([], 0)
    looked: list[tuple[list[Part], int]] = []
    done = threading.Event()

    def look_all_the_time() -> None:
        while not done.is_set():
            looked.append(read_state(path))

    async with writing(path) as journal:
        looker = threading.Thread(target=look_all_the_time)
        looker.start()
        with anyio.fail_after(PATIENCE_S):
            for chunk in range(20):
                await put_all(journal, [(chunk * 10 + number, reply()) for number in range(10)])
                await journal.flush()
                journal.seal(part(chunk, chunk * 10, 10))
        done.set()
        looker.join()
    assert read_state(path) == ([part(chunk, chunk * 10, 10) for chunk in range(20)], 0)
    counts = [len(parts) for parts, _ in looked]
    assert counts == sorted(counts)


def test_look_at_a_journal_that_is_just_being_made_finds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.touch()
    assert read_state(path) == ([], 0)
