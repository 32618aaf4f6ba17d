"""The reply cache on the disk: what is stored, what is found again, and what becomes of a file that is damaged."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import Failure, Reply, Success, Usage
from pipeline.faults import Unavailable, Unparsable, UsageError
from pipeline.storage.reply_cache import FILE, Cache, export, holdings, import_from, prune, size_of
from pipeline.storage.reply_cache.store import packed, unpacked

pytestmark = pytest.mark.anyio

KEY, OTHER = b"k" * 32, b"o" * 32


def reply(text: str = "fine", **more: object) -> Reply:
    known: dict[str, Any] = {"usage": Usage(9, 4, 2, 1), "latency_s": 2.5, "cost_usd": 0.25, "finished_at": 7, **more}
    return Reply(f'{{"choices": [{{"message": {{"content": "{text}"}}}}]}}'.encode(), **known)


@asynccontextmanager
async def working(folder: Path, endpoint: str = "vertex") -> AsyncIterator[tuple[Cache, list[str]]]:
    """An active cache, and what it reported; closed, and so committed, at the end of the block."""
    told: list[str] = []
    with closing(Cache(folder, endpoint)) as cache:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cache.keep_working, told.append)
            yield cache, told
            tasks.cancel_scope.cancel()


def stored(cache: Cache, ordinal: int, key: bytes, one: Reply) -> None:
    """A row that was answered and produced a value."""
    cache.hold(ordinal, key, one)
    cache.settle(Success(ordinal, "a value", one))


async def fill(folder: Path, count: int, endpoint: str = "vertex", text: str = "fine") -> None:
    async with working(folder, endpoint) as (cache, _):
        for number in range(count):
            stored(cache, number, b"%032d" % number, reply(text, model="gemini"))


# What is stored, and what is found


async def test_a_reply_is_found_in_the_next_run_as_it_came(tmp_path: Path) -> None:
    one = reply(first_token_s=0.5, location="global", transcript="[]", attempts=3)
    async with working(tmp_path / "c") as (cache, _):
        stored(cache, 0, KEY, one)
    async with working(tmp_path / "c") as (cache, told):
        assert await cache.find(5, KEY) == one
        assert await cache.find(6, OTHER) is None
    assert told == []


async def test_a_reply_is_found_as_soon_as_its_row_is_settled_and_not_before(tmp_path: Path) -> None:
    async with working(tmp_path) as (cache, _):
        cache.hold(0, KEY, reply())
        assert await cache.find(1, KEY) is None
        cache.settle(Success(0, "a value", reply()))
        assert await cache.find(1, KEY) == reply()


async def test_no_reply_of_a_row_that_failed_is_stored(tmp_path: Path) -> None:
    async with working(tmp_path) as (cache, _):
        for ordinal, failure in enumerate(
            [Failure(0, Unparsable("no"), reply()), Failure(1, Unavailable("down")), Failure(2, Unparsable("no"))]
        ):
            cache.hold(ordinal, b"%032d" % ordinal, reply())
            cache.settle(failure)
    assert holdings(tmp_path) == []


async def test_every_turn_of_a_row_that_came_to_a_value_is_stored(tmp_path: Path) -> None:
    async with working(tmp_path) as (cache, _):
        cache.hold(0, KEY, reply("first turn"))
        stored(cache, 0, OTHER, reply("second turn"))
    async with working(tmp_path) as (cache, _):
        assert await cache.find(0, KEY) == reply("first turn")
        assert await cache.find(0, OTHER) == reply("second turn")


async def test_a_stored_reply_that_does_not_fit_any_more_is_forgotten(tmp_path: Path) -> None:
    """As after a change of the job's own checks, which no request shows: the next run must ask again."""
    await fill(tmp_path, 1)
    async with working(tmp_path) as (cache, _):
        found = await cache.find(0, b"%032d" % 0)
        assert found is not None
        cache.settle(Failure(0, Unparsable("no"), found))
    assert holdings(tmp_path) == []


async def test_a_stored_reply_outlives_a_row_that_failed_for_other_reasons(tmp_path: Path) -> None:
    await fill(tmp_path, 1)
    async with working(tmp_path) as (cache, _):
        await cache.find(0, b"%032d" % 0)
        cache.settle(Failure(0, Unavailable("a later turn found nobody")))
    assert holdings(tmp_path)[0].replies == 1


async def test_many_keys_that_are_asked_for_at_once_are_each_answered(tmp_path: Path) -> None:
    """More than go into one statement, found and not found mixed."""
    async with working(tmp_path) as (cache, _):
        for number in range(0, 1500, 2):
            stored(cache, number, b"%032d" % number, reply(f"number {number}"))
    found: dict[int, Reply | None] = {}

    async def look(cache: Cache, number: int) -> None:
        found[number] = await cache.find(number, b"%032d" % number)

    async with working(tmp_path) as (cache, _), anyio.create_task_group() as tasks:
        for number in range(1500):
            tasks.start_soon(look, cache, number)
    assert found == {number: None if number % 2 else reply(f"number {number}") for number in range(1500)}


async def test_replies_are_committed_while_the_run_works(tmp_path: Path) -> None:
    async with working(tmp_path) as (cache, _):
        stored(cache, 0, KEY, reply())
        with anyio.fail_after(30):
            while not holdings(tmp_path):  # noqa: ASYNC110 - it is another thread that commits
                await anyio.sleep(0.01)


@given(
    st.builds(
        Reply,
        body=st.binary(max_size=200),
        usage=st.builds(Usage, *[st.integers(0, 10**9)] * 4),
        attempts=st.integers(1, 99),
        cost_usd=st.none() | st.floats(0, 10),
        transcript=st.none() | st.text(st.characters(exclude_categories=["Cs"])),
    )
)
def test_packing_and_unpacking_is_the_identity(one: Reply) -> None:
    assert unpacked(packed(one)) == one


# Several at once


async def test_two_runs_use_one_file_at_once(tmp_path: Path) -> None:
    async with working(tmp_path) as (one, told), working(tmp_path) as (other, told_other):
        stored(one, 0, KEY, reply("by one"))
        stored(other, 0, OTHER, reply("by the other"))
        with anyio.fail_after(30):
            while await one.find(1, OTHER) is None or await other.find(1, KEY) is None:  # noqa: ASYNC110 - the same
                await anyio.sleep(0.01)
    assert told == told_other == []


def test_those_that_start_at_once_share_one_file(tmp_path: Path) -> None:
    """The file is created once, whichever process is first: no writes are lost to a replaced file."""
    together = threading.Barrier(8)

    def start(number: int) -> None:
        together.wait(30)
        with closing(Cache(tmp_path / "c", "vertex")) as cache:
            together.wait(30)
            stored(cache, number, b"%032d" % number, reply())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(start, range(8)))
    assert holdings(tmp_path / "c")[0].replies == 8


def test_starts_at_once_do_not_remove_each_others_new_file(tmp_path: Path) -> None:
    """A new file is not a leftover, however short a time ago it was made: twenty rounds of eight starts."""
    for number in range(20):
        together = threading.Barrier(8)

        def start(folder: Path, together: threading.Barrier = together) -> None:
            together.wait(30)
            Cache(folder, "vertex").close()

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(start, [tmp_path / str(number)] * 8))
        assert {path.name for path in (tmp_path / str(number)).iterdir()} >= {FILE}
        assert not list((tmp_path / str(number)).glob(".*.tmp"))


WRITER = """
import sys, anyio
from pathlib import Path
from pipeline.storage.reply_cache import Cache
from pipeline.data import Reply, Success

async def main():
    cache = Cache(Path(sys.argv[1]), "vertex")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cache.keep_working, print)
        for number in range(int(sys.argv[2])):
            reply = Reply(b'{"choices": []}' * 50, model="gemini")
            cache.hold(number, b"%s%030d" % (sys.argv[3].encode(), number), reply)
            cache.settle(Success(number, 1, reply))
            if number % 500 == 499:
                await anyio.sleep(0.3)
                print(number, flush=True)
        tasks.cancel_scope.cancel()
    cache.close()

anyio.run(main)
"""


def writer(folder: Path, count: int, name: str) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", WRITER, str(folder), str(count), name]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])


def test_processes_that_start_and_write_at_once_lose_nothing(tmp_path: Path) -> None:
    children = [writer(tmp_path / "c", 1000, name) for name in ("aa", "bb", "cc")]
    printed = [child.communicate(timeout=120)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0, 0]
    assert printed == ["499\n999\n"] * 3
    assert holdings(tmp_path / "c")[0].replies == 3000


def test_a_kill_leaves_the_file_readable_with_what_was_committed(tmp_path: Path) -> None:
    child = writer(tmp_path, 100_000, "aa")
    with child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(3)]
        child.send_signal(signal.SIGKILL)
    assert lines[0] == "499\n"
    with closing(sqlite3.connect(tmp_path / FILE)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert holdings(tmp_path)[0].replies >= 500


# Files that are not as they should be


def test_the_file_is_private_and_kept_out_of_git(tmp_path: Path) -> None:
    Cache(tmp_path / "c", "vertex").close()
    assert oct((tmp_path / "c").stat().st_mode & 0o777) == "0o700"
    assert oct((tmp_path / "c" / FILE).stat().st_mode & 0o777) == "0o600"
    assert (tmp_path / "c" / ".gitignore").read_text() == "*\n"
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [".gitignore", FILE]


def test_a_folder_that_was_there_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    Cache(tmp_path, "vertex").close()
    assert tmp_path.stat().st_mode & 0o777 == 0o755
    assert not (tmp_path / ".gitignore").exists()


def of_a_stranger(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE replies (a)")


def of_the_future(path: Path) -> None:
    Cache(path.parent, "vertex").close()
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version=99")


def without_its_table(path: Path) -> None:
    Cache(path.parent, "vertex").close()
    with closing(sqlite3.connect(path)) as database:
        database.execute("DROP TABLE replies")


BAD: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "text": (lambda path: path.write_text("no database at all, but long enough to be one" * 50), "delete it"),
    "empty": (lambda path: path.write_bytes(b""), "is not a reply cache"),
    "a stranger's": (of_a_stranger, "is not a reply cache"),
    "newer": (of_the_future, "newer version of pipeline: upgrade"),
    "no table": (without_its_table, "delete it"),
    "a folder": (lambda path: path.mkdir(), "cannot be used"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_file_that_cannot_be_used_is_told_with_the_remedy(tmp_path: Path, bad: str) -> None:
    spoil, said = BAD[bad]
    spoil(tmp_path / FILE)
    with pytest.raises(UsageError, match=said):
        Cache(tmp_path, "vertex")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="cannot be used: Permission denied"):
        Cache(tmp_path / "c", "vertex")


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("a file")
    with pytest.raises(UsageError, match="cannot be used"):
        Cache(tmp_path / "c", "vertex")


async def test_a_reply_that_is_damaged_is_as_good_as_none_and_is_replaced(tmp_path: Path) -> None:
    await fill(tmp_path, 3)
    bad = [b"\x00garbage", zlib.compress(b"not json\n{}"), zlib.compress(b'{"unknown": 1}\n{}')]
    with closing(sqlite3.connect(tmp_path / FILE)) as database, database:
        for number, blob in enumerate(bad):
            database.execute("UPDATE replies SET reply = ? WHERE key = ?", (blob, b"%032d" % number))
    async with working(tmp_path) as (cache, told):
        assert [await cache.find(number, b"%032d" % number) for number in range(3)] == [None] * 3
        stored(cache, 0, b"%032d" % 0, reply("new"))
    assert told == []
    async with working(tmp_path) as (cache, _):
        assert await cache.find(0, b"%032d" % 0) == reply("new")


async def test_a_file_that_fails_later_is_told_once_and_the_run_goes_on(tmp_path: Path) -> None:
    await fill(tmp_path, 3000)
    async with working(tmp_path) as (cache, told):
        with (tmp_path / FILE).open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (size_of(tmp_path) - 4096))
        for number in range(5):
            assert await cache.find(number, b"%032d" % number) is None
            stored(cache, number, b"%032d" % number, reply())
    assert len(told) == 1
    assert "failed" in told[0]
    assert "goes on without it" in told[0]


# Keeping


async def test_holdings_say_who_answered_what_it_cost_and_when(tmp_path: Path) -> None:
    await fill(tmp_path, 3, "vertex")
    async with working(tmp_path, "emulated") as (cache, _):
        stored(cache, 0, KEY, reply(cost_usd=None))
    found = {one.endpoint: one for one in holdings(tmp_path)}
    assert (found["vertex"].model, found["vertex"].replies, found["vertex"].cost_usd) == ("gemini", 3, 0.75)
    assert (found["emulated"].model, found["emulated"].replies, found["emulated"].cost_usd) == ("", 1, 0.0)
    assert found["vertex"].first_made <= found["vertex"].last_used


def aged(folder: Path, days: float, below: int) -> None:
    """Makes the replies with a number below this one look unused for so long."""
    with closing(sqlite3.connect(folder / FILE)) as database, database:
        database.execute("UPDATE replies SET used = used - ? WHERE key < ?", (days * 86_400, b"%032d" % below))


async def test_pruning_by_age_deletes_what_was_not_used_and_keeps_what_was(tmp_path: Path) -> None:
    await fill(tmp_path, 10)
    aged(tmp_path, days=40, below=6)
    async with working(tmp_path) as (cache, _):
        assert await cache.find(0, b"%032d" % 5) is not None
    assert prune(tmp_path, unused_s=30 * 86_400) == 5
    async with working(tmp_path) as (cache, _):
        assert [await cache.find(0, b"%032d" % number) is not None for number in (4, 5, 6)] == [False, True, True]


async def test_pruning_by_size_deletes_what_was_not_used_for_the_longest(tmp_path: Path) -> None:
    await fill(tmp_path, 1000)
    aged(tmp_path, days=1, below=500)
    before = size_of(tmp_path)
    deleted = prune(tmp_path, most_bytes=before * 3 // 4)
    assert 0 < deleted < 500
    assert size_of(tmp_path) <= before * 3 // 4
    async with working(tmp_path) as (cache, _):
        assert await cache.find(0, b"%032d" % 999) is not None
        assert await cache.find(0, b"%032d" % 0) is None
    assert prune(tmp_path, most_bytes=10**9) == 0


async def test_pruning_beside_a_run_harms_it_in_nothing(tmp_path: Path) -> None:
    await fill(tmp_path, 100)
    async with working(tmp_path) as (cache, told):
        assert prune(tmp_path, unused_s=-10) == 100
        assert await cache.find(0, b"%032d" % 0) is None
        stored(cache, 0, KEY, reply())
    assert told == []
    assert holdings(tmp_path)[0].replies == 1


async def test_what_is_exported_can_be_brought_in_elsewhere(tmp_path: Path) -> None:
    await fill(tmp_path / "here", 20, text="from here")
    await fill(tmp_path / "there", 5, text="from there")
    assert export(tmp_path / "here", tmp_path / "file") == 20
    assert oct((tmp_path / "file").stat().st_mode & 0o777) == "0o600"
    assert import_from(tmp_path / "there", tmp_path / "file") == 15
    assert import_from(tmp_path / "there", tmp_path / "file") == 0
    assert import_from(tmp_path / "new", tmp_path / "file") == 20
    async with working(tmp_path / "there") as (cache, _):
        assert await cache.find(0, b"%032d" % 4) == reply("from there")
        assert await cache.find(0, b"%032d" % 5) == reply("from here")
    left = [path.name async for path in anyio.Path(tmp_path).iterdir()]
    assert sorted(left) == ["file", "here", "new", "there"]


async def test_an_export_beside_a_run_holds_what_was_committed(tmp_path: Path) -> None:
    await fill(tmp_path / "c", 20)
    async with working(tmp_path / "c") as (cache, told):
        assert export(tmp_path / "c", tmp_path / "file") == 20
        stored(cache, 0, KEY, reply())
    assert told == []
    assert import_from(tmp_path / "new", tmp_path / "file") == 20


def test_keeping_what_is_not_there_is_told(tmp_path: Path) -> None:
    for keep in (holdings, prune):
        with pytest.raises(UsageError, match="there is no reply cache in"):
            keep(tmp_path)
    with pytest.raises(UsageError, match="there is no file"):
        import_from(tmp_path, tmp_path / "file")
    (tmp_path / "file").write_text("something else entirely, " * 100)
    with pytest.raises(UsageError, match="cannot be used"):
        import_from(tmp_path / "new", tmp_path / "file")
    assert not (tmp_path / "new").exists()
    Cache(tmp_path, "vertex").close()
    with pytest.raises(UsageError, match="cannot be written"):
        export(tmp_path, tmp_path / "no folder" / "file")
