"""`kill -9` at any moment costs nothing that was recorded: not a row, not twice, not another answer, not the order."""

from __future__ import annotations

import errno
import json
import random
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from anyio.from_thread import start_blocking_portal

from pipeline.data import PARTS
from pipeline.emulator.options import Options
from pipeline.emulator.vertex import Vertex, emulated
from pipeline.faults import Broken, UsageError
from tests.commands import Shell, ended
from tests.crash import SEED
from tests.crash.calls import FailingCalls, Kill, SystemCall, tapped
from tests.crash.forks import Forks, forking
from tests.crash.lives import calls_of_a_start, every_call, kept, live_all, with_second
from tests.crash.small import RunPlace, Shape, recorded, require_whole, start


def test_p1_kill_9_at_every_call_and_in_the_middle_of_writes_costs_nothing_recorded(scratch: Path) -> None:
    made = calls_of_a_start(RunPlace(scratch / "whole").prepare())
    first = every_call(len(made), sum(call.name == "write" for call in made))
    figures = live_all(with_second(first, random.Random(SEED)), scratch)
    assert figures.trouble == []
    assert figures.kills >= 200
    assert figures.torn >= 100


def test_p1_files_written_in_place_are_caught_by_the_same_check(scratch: Path) -> None:
    torn = [[Kill(nth, "write", 0.5)] for nth in range(1, 6)]
    assert live_all(torn, scratch, careless=True).trouble


def test_p1_a_fresh_start_that_is_cut_short_leaves_no_row_of_the_run_before_it(scratch: Path) -> None:
    """The next start, which is not told to begin afresh, finishes the new run or says that it must be told so."""
    shape, refused = Shape(rows=9, chunk_rows=3, pause_s=0.0), 0

    def begun(at: int) -> tuple[RunPlace, list[SystemCall]]:
        """A shorter run begun in the place of one that was finished; the `at`-th call on files fails."""
        old = RunPlace(scratch / f"fresh {at}", shape).prepare()
        start(old)
        old.notes.unlink()
        place = RunPlace(old.folder, replace(shape, rows=3), old.rows, user="Again: {{ text }}")
        calls = FailingCalls(at, errno.EIO)
        with suppress(Broken):
            start(place, tapped(calls), fresh=True)
        return place, calls.made

    _, made = begun(-1)
    first, last = (next(call.number for call in made if call.name == name) for name in ("unlink", "replace"))
    cleared = [call.number for call in made[first:last] if call.name == "sync"]
    for at in cleared:
        place, _ = begun(at)
        try:
            assert start(place).status == "complete"
        except UsageError as refusal:
            assert "--fresh" in str(refusal)  # noqa: PT017 - it need not be refused
            assert start(place, fresh=True).status == "complete"
            refused += 1
        require_whole(place)
    assert len(cleared) > refused > 0


# The check itself.


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with forking() as forks:
        yield forks


@pytest.fixture
def killed(forks: Forks, scratch: Path) -> Iterator[tuple[RunPlace, dict[int, str]]]:
    """A run that was killed when its last part was to be renamed, and what it had recorded."""
    place = RunPlace(scratch / "killed").prepare()
    assert forks.start(place, Kill(5, "replace")).killed
    known = kept(place, {})
    assert len(known) == place.shape.rows
    yield place, known
    shutil.rmtree(place.folder)


@pytest.mark.parametrize(
    "harm",
    [
        "DELETE FROM entries WHERE ordinal = (SELECT max(ordinal) FROM entries)",
        "DELETE FROM parts WHERE chunk = 0",
        "UPDATE entries SET body = CAST(replace(body, 'nonce-', 'nonce-1') AS BLOB) WHERE body IS NOT NULL",
    ],
)
def test_p1_a_row_that_is_lost_or_changed_would_be_noticed(harm: str, killed: tuple[RunPlace, dict[int, str]]) -> None:
    place, known = killed
    with closing(sqlite3.connect(place.output / "_run" / "journal.sqlite")) as journal:
        journal.execute(harm)
        journal.commit()
    with pytest.raises(AssertionError):
        kept(place, known)


def test_p1_a_part_with_other_bytes_would_be_noticed(killed: tuple[RunPlace, dict[int, str]]) -> None:
    place, known = killed
    part = place.output / PARTS / "part-000000.parquet"
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    with pytest.raises(AssertionError, match="other bytes"):
        kept(place, known)


def test_p1_a_row_that_is_there_twice_or_in_another_place_would_be_noticed(scratch: Path) -> None:
    place = RunPlace(scratch / "doubled").prepare()
    start(place)
    require_whole(place)
    first, second = place.output / PARTS / "part-000000.parquet", place.output / PARTS / "part-000001.parquet"
    shutil.copy(first, place.output / PARTS / "part-000009.parquet")
    with pytest.raises(AssertionError, match="doubled"):
        require_whole(place)
    (place.output / PARTS / "part-000009.parquet").unlink()
    first.rename(place.folder / "aside")
    second.rename(first)
    (place.folder / "aside").rename(second)
    with pytest.raises(AssertionError, match="out of order"):
        require_whole(place)


# The command itself, asked by an emulator that gives no answer twice.

ROWS = 1300


@contextmanager
def emulator() -> Iterator[tuple[Vertex, Any]]:
    """An emulator in a thread, and a way to call it."""
    options = Options(nonce=True, latency=0.01)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(emulated(options)) as vertex:
        yield vertex, partial(portal.call, vertex.answers)


def ids_recorded(output: Path) -> dict[int, str]:
    """The id of the answer that is recorded for each row."""
    with closing(sqlite3.connect(output / "_run" / "journal.sqlite")) as journal:
        entries = journal.execute("SELECT ordinal, body FROM entries").fetchall()
        parts = [json.loads(part) for (part,) in journal.execute("SELECT part FROM parts")]
    found = {ordinal: json.loads(body)["id"] for ordinal, body in entries}
    for part in parts:
        rows = pq.read_table(output / PARTS / part["name"], columns=["response"]).to_pylist()
        found |= {part["first"] + number: row["response"]["id"] for number, row in enumerate(rows)}
    return found


def test_p1_kill_9_of_the_command_replaces_no_answer_that_the_emulator_has_given(tmp_path: Path) -> None:
    shell = Shell(tmp_path, {})
    shell.rows(ROWS, heavy=True)  # two chunks
    shell.write(
        "job.py",
        "from pipeline import Job\n"
        "job = Job(name='a_job', model='google/gemini-test', input='rows.jsonl', user='Say {{ text }}', keep=['id'])",
    )
    output, dice, known = tmp_path / "out/a_job", random.Random(SEED), dict[int, str]()
    with emulator() as (vertex, answers):
        flags = ("--base-url", vertex.address.base_url, "--credentials", vertex.address.credentials_file)
        run = ("run", "job.py", *flags, "--no-adaptive", "-c", "32", "--quiet", "--json")
        for _ in range(3):
            with shell.started(*run) as child:
                enough = len(answers()) + dice.randrange(100, 400)
                while len(answers()) < enough and child.poll() is None:
                    pass
                child.send_signal(signal.SIGKILL)
                child.wait(60)
                assert child.returncode == -signal.SIGKILL, "the kill came too late"
            now = ids_recorded(output)
            assert known.items() <= now.items()
            known = now
        with shell.started(*run) as child:
            assert ended(child).json.items() >= {"status": "complete", "ok": ROWS}.items()
        given = {answer["id"]: answer["prompt"] for answer in answers()}
    found = ids_recorded(output)
    assert known
    assert known.items() <= found.items()
    assert [row["id"] for row in shell.output()] == list(range(ROWS))
    # Every row holds an answer to its own prompt: as many prompts as rows, and no answer twice.
    assert len({given[found[ordinal]] for ordinal in range(ROWS)}) == ROWS
    assert recorded(output).keys() == found.keys()
