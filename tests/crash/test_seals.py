"""Sealing, recording and stopping at once: one seal at a time, and a second one of the same chunk is harmless."""

from __future__ import annotations

import random
import re
import shutil
from contextlib import closing
from itertools import groupby
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from pipeline.data import PARTS, Part, Reply
from pipeline.storage.durable import FILES
from pipeline.storage.journal import Journal
from tests.crash import SEED
from tests.crash.calls import FailingCalls, SystemCall, tapped
from tests.crash.small import RunPlace, Shape, nonces_of, recorded, require_whole, start

pytestmark = pytest.mark.anyio

_PART = re.compile(r"part-(\d+)")


def parts_in_turn(made: list[SystemCall]) -> list[int]:
    """The parts that were worked on, in turn; one that was returned to is there twice."""
    numbers = [int(found.group(1)) for call in made if (found := _PART.search(call.path.name)) is not None]
    return [number for number, _ in groupby(numbers)]


def test_p2_runs_that_are_stopped_while_they_seal_and_record_seal_one_part_at_a_time_and_none_twice(
    scratch: Path,
) -> None:
    dice = random.Random(SEED)
    for turn in range(16):
        shape = Shape(rows=24, chunk_rows=dice.randint(1, 4), concurrency=dice.randint(1, 12), pause_s=0.001)
        place = RunPlace(scratch / f"stopped {turn}", shape).prepare()
        calls = FailingCalls(-1, 0), FailingCalls(-1, 0)
        start(place, tapped(calls[0]), stop_after=dice.randint(1, shape.rows))
        known = recorded(place.output)
        assert start(place, tapped(calls[1])).status == "complete"
        require_whole(place)
        sealed = [parts_in_turn(each.made) for each in calls]
        assert sorted(sealed[0] + sealed[1]) == list(range(-(-shape.rows // shape.chunk_rows)))
        assert known.items() <= recorded(place.output).items()
        shutil.rmtree(place.folder)


def test_p2_sealing_a_chunk_again_gives_the_same_part_and_loses_nothing(scratch: Path) -> None:
    place = RunPlace(scratch / "again").prepare()
    start(place)
    before = recorded(place.output)
    with closing(Journal(place.output / "_run" / "journal.sqlite")) as journal:
        for part in journal.parts() * 2:
            journal.seal(part)
        assert journal.count() == 0
    assert recorded(place.output) == before
    assert [nonces_of(path) for path in sorted((place.output / PARTS).glob("part-*"))]


CHUNK = 20
CHUNKS = 12


def part(chunk: int) -> Part:
    return Part(chunk, f"part-{chunk:06d}.parquet", chunk * CHUNK, CHUNK, CHUNK, 0, 1, "", 0, 0, 0, 0, 0.0, 0)


@pytest.mark.parametrize("turn", range(5))
async def test_p2_many_threads_that_seal_while_replies_are_put_leave_each_row_in_one_place(
    turn: int, tmp_path: Path
) -> None:
    dice = random.Random(SEED + turn)
    path = tmp_path / "journal"
    sealed = set[int]()
    journal = Journal(path, FILES)

    async def seal(chunk: int) -> None:
        await journal.flush()
        await to_thread.run_sync(journal.seal, part(chunk))
        sealed.add(chunk)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(journal.keep_writing)
        async with anyio.create_task_group() as sealing:
            for chunk in range(CHUNKS):
                for ordinal in range(chunk * CHUNK, (chunk + 1) * CHUNK):
                    await journal.put(ordinal, Reply(b"%d" % ordinal))
                for _ in range(dice.randint(0, 3)):
                    sealing.start_soon(seal, chunk)
                await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    journal.close()
    with closing(Journal(path)) as again:
        assert {each.chunk for each in again.parts()} == sealed
        open_chunks = set(range(CHUNKS)) - sealed
        left = {ordinal for ordinal in range(CHUNKS * CHUNK) if ordinal // CHUNK in open_chunks}
        assert again.recorded(0, CHUNKS * CHUNK) == left
