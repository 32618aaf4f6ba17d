"""A run whose output is in a bucket: killed between any two requests, here or on another machine, nothing is lost."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import pyarrow.parquet as pq
import pytest
from anyio import to_thread

from pipeline.data import Part, PartFile, Reply, Request
from pipeline.emulator.bucket.objects import Buckets
from pipeline.endpoint.connection import Connect, OpenEndpoint
from pipeline.execution.finish import Summary, finish
from pipeline.execution.reparse import reparse
from pipeline.execution.run import Run
from pipeline.execution.start import open_run
from pipeline.faults import Broken, OutputInUse, ProviderUnusable, UsageError
from pipeline.storage.remote.lease import RENEW_S, TAKEOVER_S
from pipeline.storage.remote.segments import JournalPlace, Segments, segments_in
from tests.crash.small import RunPlace, SmallAnswer, require_whole
from tests.memory_store import BUCKET, DIES_IN_THREADS, Clock, Killed, MemoryStore, contents

pytestmark = DIES_IN_THREADS


class Cloud:
    """A bucket, and machines that work on it: each has a state folder of its own. All ask the same endpoint."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.buckets = Buckets([BUCKET], self.clock)
        self.folder = folder
        self.place = RunPlace(folder / "machine").prepare()

    def store(self, **changes: Any) -> MemoryStore:
        return MemoryStore(self.buckets, **changes)

    def machine(self, name: str) -> RunPlace:
        """Another machine, whose disk is empty."""
        moved = self.place.moved(self.folder / name)
        moved.folder.mkdir(exist_ok=True)
        moved.notes = self.place.notes
        return moved

    def start(
        self, place: RunPlace, store: MemoryStore, *, opened: Callable[[Run], None] = lambda _: None, **changes: Any
    ) -> Summary:
        """One start of a run, to its end."""
        stop_after = changes.pop("stop_after", None)
        with open_run(place.job(), place.settings(**changes), objects=store.objects()) as run:
            opened(run)
            anyio.run(run.execute, place.connect(run.context.stop, stop_after))
            return finish([run])[0]

    def killed(self, place: RunPlace, store: MemoryStore, **changes: Any) -> bool:
        """A start that may be killed; whether it was."""
        try:
            self.start(place, store, **changes)
        except (Killed, BaseExceptionGroup):  # in the group of a thread or task, where the store died in one
            if not store.dead:
                raise
        return store.dead

    def names(self) -> list[str]:
        return [key.removeprefix("out/") for key in contents(self.buckets)]

    def require_whole(self) -> None:
        """The dataset in the bucket is whole, and nothing is left beside it that a finished run does not need."""
        copy = RunPlace(self.folder / "copy", rows=self.place.rows)
        copy.notes = self.place.notes
        shutil.rmtree(copy.output, ignore_errors=True)
        for key, data in contents(self.buckets).items():
            path = copy.folder / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        require_whole(copy)
        records = [json.loads(path.read_bytes()) for path in sorted((copy.output / "_run/parts").iterdir())]
        manifest = json.loads((copy.output / "_manifest.json").read_bytes())
        assert [record["sha256"] for record in records] == [part["sha256"] for part in manifest["parts"]]
        replies = sorted(path.name for path in (copy.output / "_run/replies").iterdir())
        named = {f"part-{record['chunk']:06d}-{record['sha256'][:16]}.replies" for record in records}
        assert named <= set(replies)
        assert not [key for key in self.names() if key.startswith(("_run/intents/", "_run/journal/", "_run/probes/"))]


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    return Cloud(tmp_path)


def test_the_bucket_holds_the_dataset_and_its_run_state_at_the_end(cloud: Cloud) -> None:
    summary = cloud.start(cloud.place, cloud.store())
    assert (summary.status, summary.output) == ("complete", "gs://bucket/out")
    cloud.require_whole()
    names = [key for key in cloud.names() if not key.startswith("_run/replies/")]
    assert names == [
        "_SUCCESS",
        "_manifest.json",
        "_run/lease.json",
        "_run/ledger.json",
        *(f"_run/parts/00000{n}.json" for n in range(3)),
        "_run/plan.json",
        *(f"data/part-00000{n}.parquet" for n in range(3)),
    ]


def requests_of_a_run(folder: Path) -> int:
    cloud = Cloud(folder)
    store = cloud.store()
    cloud.start(cloud.place, store)
    return len(store.requests)


@pytest.mark.parametrize("lost", [False, True], ids=["same_machine", "another_machine"])
@pytest.mark.parametrize("answers_lost", [False, True], ids=["before", "after"])
def test_o1_a_kill_at_any_request_leaves_what_the_next_start_finishes(
    tmp_path: Path, *, lost: bool, answers_lost: bool
) -> None:
    """Before and after requests of a whole run, and then with the disk of the machine or, for the others, without."""
    for number in range(1 + lost, requests_of_a_run(tmp_path / "all") + 1, 2):
        cloud = Cloud(tmp_path / f"at_{number}")
        assert cloud.killed(cloud.place, cloud.store(dies_at=number, answers_lost=answers_lost))
        cloud.clock.now += RENEW_S + TAKEOVER_S + 1
        place = cloud.machine("another") if lost else cloud.place
        asked = sum(map(len, cloud.place.said().values()))
        sealed = sum(key.startswith("_run/parts/") for key in cloud.names())
        summary = cloud.start(place, cloud.store())
        assert summary.status == "complete", number
        cloud.require_whole()
        again = sum(map(len, cloud.place.said().values())) - asked
        if lost:
            assert again <= max(0, place.shape.rows - sealed * place.shape.chunk_rows), number
        else:
            assert again == place.shape.rows - asked, f"a recorded answer was paid twice: {number}"


def test_o1_two_kills_in_a_row_on_changing_machines_lose_nothing(tmp_path: Path) -> None:
    """The second one at any request of a start that takes the work over from another machine."""
    for number in range(1, 200, 3):
        cloud = Cloud(tmp_path / f"at_{number}")
        cloud.killed(cloud.place, cloud.store(dies_at=30))
        cloud.clock.now += RENEW_S + TAKEOVER_S + 1
        second = cloud.machine("second")
        died = cloud.killed(second, cloud.store(dies_at=number))
        cloud.clock.now += RENEW_S + TAKEOVER_S + 1
        back = cloud.place if number % 3 else second
        assert cloud.start(back, cloud.store()).status == "complete", number
        cloud.require_whole()
        if not died:
            return
    raise AssertionError("a start has more requests than this test expects")


class WiderAnswer(SmallAnswer):
    more: str | None = None


def reparsed(place: RunPlace, store: MemoryStore) -> Summary:
    return reparse(place.with_job(schema=WiderAnswer).job(), place.output, objects=store.objects())


@pytest.mark.parametrize("lost", [False, True], ids=["same_machine", "another_machine"])
def test_o1_a_re_parse_that_is_killed_at_any_request_is_finished_by_the_next_one(tmp_path: Path, *, lost: bool) -> None:
    """No answer is lost, and none is asked again; the run is refused until the re-parse is finished."""
    for number in range(1 + 3 * lost, 400, 7):
        cloud = Cloud(tmp_path / f"at_{number}")
        cloud.start(cloud.place, cloud.store())
        store = cloud.store(dies_at=number, answers_lost=number % 2 == 0)
        with suppress(Killed, BaseExceptionGroup):
            reparsed(cloud.place, store)
        cloud.clock.now += RENEW_S + TAKEOVER_S + 1
        place = cloud.machine("another") if lost else cloud.place
        asked = cloud.place.said()
        again = reparsed(place, cloud.store())
        assert (again.status, again.left) == ("complete", 0), number
        assert place.said() == asked
        cloud.require_whole()
        columns = {pq.read_schema(io.BytesIO(data)).field("parsed").type.num_fields for data in parts_in(cloud)}
        assert columns == {3}, number
        if not store.dead:
            return
    raise AssertionError("a re-parse has more requests than this test expects")


def parts_in(cloud: Cloud) -> list[bytes]:
    return [data for key, data in contents(cloud.buckets).items() if key.startswith("out/data/")]


def test_a_damaged_part_is_made_again_by_a_re_parse(cloud: Cloud) -> None:
    cloud.start(cloud.place, cloud.store())
    whole = parts_in(cloud)
    cloud.clock.now += 60
    cloud.buckets.put(BUCKET, "out/data/part-000001.parquet", b"x", {})
    with pytest.raises(UsageError, match=r"or `pipeline reparse gs://bucket/out --job"):
        cloud.start(cloud.place, cloud.store())
    assert reparse(cloud.place.job(), cloud.place.output, objects=cloud.store().objects()).status == "complete"
    assert parts_in(cloud) == whole
    cloud.require_whole()


def test_a_ledger_that_another_start_wrote_is_replaced_by_the_next_upload(cloud: Cloud) -> None:
    """At once, and not only by the upload after the next."""
    cloud.start(cloud.place, cloud.store(), stop_after=9)
    before = contents(cloud.buckets)["out/_run/ledger.json"]

    def opened(run: Run) -> None:
        now = json.loads(contents(cloud.buckets)["out/_run/ledger.json"])
        cloud.buckets.put(BUCKET, "out/_run/ledger.json", b"{}", {})
        assert run.follower is not None
        objects, lease, journal = run.follower.objects, run.follower.lease, run.context.folder.journal
        segments = Segments(objects, lease, journal, lambda ordinal: ordinal // 5, JournalPlace())
        segments.upload()
        assert json.loads(contents(cloud.buckets)["out/_run/ledger.json"]) == now

    cloud.start(cloud.place, cloud.store(), opened=opened)
    assert contents(cloud.buckets)["out/_run/ledger.json"] != before


def test_an_object_that_is_always_replaced_while_it_is_read_is_told(cloud: Cloud) -> None:
    store = cloud.store()
    cloud.buckets.put(BUCKET, "out/a", b"0", {})

    def replaced(request: str) -> None:
        if request.startswith("GET"):
            cloud.buckets.put(BUCKET, "out/a", b"1", {})

    store.before = replaced
    with pytest.raises(Broken, match="gs://bucket/out/a was replaced 5 times while it was being read"):
        store.objects().read("a")


def test_a_lost_machine_costs_the_calls_after_the_last_segment(cloud: Cloud) -> None:
    """The journal is uploaded once while rows of a single chunk are asked; then the machine is gone, with its disk."""
    place = RunPlace(cloud.folder / "lost", replace(cloud.place.shape, chunk_rows=20)).prepare()

    with (
        pytest.raises(BaseExceptionGroup),
        open_run(place.job(), place.settings(), objects=cloud.store().objects()) as run,
    ):
        anyio.run(run.execute, interrupted(run, place.connect(run.context.stop, None)))
    cloud.clock.now += RENEW_S + TAKEOVER_S + 1
    saved = {ordinal for rows in segments_in(cloud.store().objects()) for ordinal, *_ in rows}
    assert len(saved) > 5
    another = place.moved(cloud.folder / "another")
    another.folder.mkdir()
    assert cloud.start(another, cloud.store()).requests == place.shape.rows - len(saved)
    assert another.said().keys() == set(range(place.shape.rows)) - saved


def interrupted(run: Run, connect: Connect) -> Connect:
    """The endpoint, before whose 10th answer the journal is uploaded, and which kills the process at the 14th."""
    answers = count(1)

    @asynccontextmanager
    async def connecting() -> AsyncIterator[Sequence[OpenEndpoint]]:
        uploaded = anyio.Event()
        async with connect() as [endpoint]:

            async def ask(request: Request) -> Reply:
                number = next(answers)
                if number == 10:
                    await run.context.journal.flush()
                    assert run.follower is not None
                    await to_thread.run_sync(run.follower.upload_journal)
                    uploaded.set()
                if number == 14:
                    await uploaded.wait()
                    raise Killed
                return await endpoint.ask(request)

            yield [replace(endpoint, ask=ask)]

    return connecting


def test_o2_of_two_starters_one_works_and_the_other_says_who(cloud: Cloud) -> None:
    def other(_: Run) -> None:
        with pytest.raises(OutputInUse, match=r"another run works on gs://bucket/out: pid \d+ on .+ is free in 80 s"):
            cloud.start(cloud.machine("another"), cloud.store())

    assert cloud.start(cloud.place, cloud.store(), opened=other).status == "complete"
    assert cloud.start(cloud.machine("another"), cloud.store()).requests == 0


def test_o2_a_run_whose_lease_was_taken_over_changes_nothing(cloud: Cloud) -> None:
    """It slept over the time of its lease; another machine finished the work before it woke."""

    def sleep(run: Run) -> None:
        cloud.clock.now += RENEW_S + TAKEOVER_S + 1
        assert cloud.start(cloud.machine("another"), cloud.store()).status == "complete"
        before.update(contents(cloud.buckets))
        assert run.follower is not None
        with pytest.raises(Broken, match="another run has taken over gs://bucket/out"):
            run.follower.lease.renew()

    before: dict[str, bytes] = {}
    with pytest.raises(Broken, match="has taken over"):
        cloud.start(cloud.place, cloud.store(), opened=sleep)
    assert contents(cloud.buckets) == before
    cloud.require_whole()


def test_o3_what_is_published_late_gives_way_to_what_another_machine_published(cloud: Cloud) -> None:
    """Two machines sealed the same chunk of other answers: the first part and its record count, on both."""

    def other_first(run: Run) -> None:
        cloud.clock.now += RENEW_S + TAKEOVER_S + 1
        second = cloud.machine("another")
        cloud.start(second, cloud.store(), stop_after=9)
        assert sum(key.startswith("data/") for key in cloud.names()) == 1
        assert run.follower is not None
        run.follower.lease._lost = None
        run.follower.lease._version = str(cloud.buckets.get(BUCKET, "out/_run/lease.json").generation)

    summary = cloud.start(cloud.place, cloud.store(), opened=other_first)
    assert (summary.status, summary.left) == ("stopped", 0)
    assert "gs://bucket/out/_manifest.json was written by somebody else" in str(summary.reason)
    assert cloud.names().count("_SUCCESS") == 0
    assert cloud.start(cloud.place, cloud.store()).requests == 0
    cloud.require_whole()


def test_failed_rows_are_asked_again_on_another_machine(cloud: Cloud) -> None:
    first = cloud.start(cloud.place, cloud.store())
    second = cloud.machine("second")
    summary = cloud.start(second, cloud.store(), retry_failed=True)
    assert (summary.status, summary.requests) == ("complete", first.failed)
    cloud.require_whole()


def test_a_kill_while_failed_rows_are_asked_again_loses_no_good_row(tmp_path: Path) -> None:
    """At any request of the second start, which withdraws parts; then on the same machine, or another one."""
    for number in range(1, 200, 3):
        cloud = Cloud(tmp_path / f"at_{number}")
        first = cloud.start(cloud.place, cloud.store())
        second = cloud.machine("second")
        died = cloud.killed(second, cloud.store(dies_at=number), retry_failed=True)
        cloud.clock.now += RENEW_S + TAKEOVER_S + 1
        for place in (second, cloud.machine("third")) if number % 2 else (cloud.machine("third"),):
            assert cloud.start(place, cloud.store()).status == "complete", number
            cloud.require_whole()
        assert max(len(said) for ordinal, said in cloud.place.said().items() if ordinal % 7 != 6) == 1, number
        assert first.status == "complete"
        if not died:
            return
    raise AssertionError("a start has more requests than this test expects")


def test_a_run_is_extended_on_another_machine_by_the_new_rows_only(cloud: Cloud) -> None:
    cloud.start(cloud.place, cloud.store(), limit=10)
    summary = cloud.start(cloud.machine("another"), cloud.store())
    assert (summary.status, summary.requests) == ("complete", 10)
    cloud.require_whole()


def test_fresh_starts_over_and_leaves_nothing_of_the_run_before(cloud: Cloud) -> None:
    cloud.start(cloud.place, cloud.store())
    before = contents(cloud.buckets)
    another = cloud.machine("another")
    assert cloud.start(another, cloud.store(), fresh=True).requests == another.shape.rows
    cloud.require_whole()
    assert not {key for key, data in contents(cloud.buckets).items() if before.get(key) == data and data}


def test_fresh_that_is_killed_leaves_a_whole_run_or_says_that_it_is_not_whole(tmp_path: Path) -> None:
    """At any request: what the next start finishes is whole, and what it refuses is started over by --fresh."""
    refused: list[str] = []
    for number in range(1, 200, 3):
        cloud = Cloud(tmp_path / f"at_{number}")
        cloud.start(cloud.place, cloud.store())
        died = cloud.killed(cloud.place, cloud.store(dies_at=number), fresh=True)
        cloud.clock.now += RENEW_S + TAKEOVER_S + 1
        place = cloud.machine("another") if number % 2 else cloud.place
        try:
            cloud.start(place, cloud.store())
        except UsageError as error:
            refused.append(str(error))
            cloud.start(place, cloud.store(), fresh=True)
        cloud.require_whole()
        if not died:
            assert all("is missing" in said or "without its run state" in said for said in refused)
            return
    raise AssertionError("a start has more requests than this test expects")


def test_a_bucket_that_was_emptied_is_refused_until_the_run_starts_over(cloud: Cloud) -> None:
    cloud.start(cloud.place, cloud.store())
    for key in contents(cloud.buckets):
        cloud.buckets.delete(BUCKET, key)
    with pytest.raises(
        UsageError, match=r"part-000000\.parquet is missing: restore the file, or .*; --fresh starts over"
    ):
        cloud.start(cloud.place, cloud.store())
    assert cloud.start(cloud.place, cloud.store(), fresh=True).status == "complete"
    cloud.require_whole()


def test_the_disk_of_a_machine_holds_no_part_that_is_in_the_bucket(cloud: Cloud) -> None:
    cloud.start(cloud.place, cloud.store())
    left = [path.name for path in cloud.place.output.rglob("*") if path.is_file()]
    assert not [name for name in left if name.startswith("part-")]


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("out/notes.txt", r"holds other objects \(notes.txt\)"),
        ("out/data/part-000000.parquet", "holds a dataset without its run state"),
    ],
)
def test_o5_a_place_that_holds_something_else_is_refused(cloud: Cloud, key: str, said: str) -> None:
    cloud.buckets.put(BUCKET, key, b"x", {})
    with pytest.raises(UsageError, match=said):
        cloud.start(cloud.place, cloud.store())
    assert cloud.place.said() == {}


@pytest.mark.parametrize("change", ["delete", "replace", "add"])
def test_o6_parts_that_were_changed_in_the_bucket_are_refused_by_name(cloud: Cloud, change: str) -> None:
    cloud.start(cloud.place, cloud.store())
    cloud.clock.now += 60
    if change == "delete":
        cloud.buckets.delete(BUCKET, "out/data/part-000001.parquet")
    elif change == "replace":
        size = len(cloud.buckets.get(BUCKET, "out/data/part-000001.parquet").data)
        cloud.buckets.put(BUCKET, "out/data/part-000001.parquet", b"x" * size, {})
    else:
        cloud.buckets.put(BUCKET, "out/data/mine.parquet", b"x", {})
    said = {
        "delete": "gs://bucket/out/data/part-000001.parquet is missing",
        "replace": "gs://bucket/out/data/part-000001.parquet was changed",
        "add": "data/mine.parquet is not a part of this run",
    }
    with pytest.raises(UsageError, match=said[change]):
        cloud.start(cloud.place, cloud.store())
    assert cloud.names().count("_SUCCESS") == 0


def test_the_cost_of_a_run_is_known_on_another_machine(cloud: Cloud) -> None:
    first = cloud.start(cloud.place, cloud.store(), stop_after=9)
    second = cloud.start(cloud.machine("another"), cloud.store())
    assert first.run.calls > 0
    assert second.run.calls == first.run.calls + second.calls


def test_the_files_of_a_part_are_one_writer_s(cloud: Cloud) -> None:
    """One was killed between the files of a large part, after this run had looked: none of its files stays."""
    with open_run(cloud.place.job(), cloud.place.settings(), objects=cloud.store().objects()) as run:
        follower, data = run.follower, run.context.folder.parts
        assert follower is not None
        first, second = data / "part-000000.parquet", data / "part-000000_01.parquet"
        first.write_bytes(b"one")
        second.write_bytes(b"two")
        files = [PartFile(path.name, 1, 3, hashlib.sha256(path.read_bytes()).hexdigest()) for path in (first, second)]
        described: dict[str, Any] = dict.fromkeys(
            ("failed", "input_tokens", "output_tokens", "reasoning_tokens", "cached_tokens"), 0
        )
        part = Part(
            chunk=0,
            name=first.name,
            first=0,
            rows=2,
            ok=2,
            bytes=3,
            sha256=files[0].sha256,
            more=(files[1],),
            **described,
        )
        for path in (first, second):
            cloud.buckets.put(BUCKET, f"out/data/{path.name}", b"of another one", {})
        assert follower.publish(part) == part
        first.write_bytes(b"one")
        second.write_bytes(b"two")
        assert follower.publish(part) == part
    found = contents(cloud.buckets)
    assert (found["out/data/part-000000.parquet"], found["out/data/part-000000_01.parquet"]) == (b"one", b"two")


def test_a_bucket_that_may_not_be_written_any_more_stops_the_run(cloud: Cloud) -> None:
    """Everything answered is on this machine, and is uploaded by the next start."""
    store = cloud.store()

    def deny(request: str) -> None:
        if request.startswith("PUT out/data/"):
            raise ProviderUnusable("access is denied", http_status=403)

    store.before = deny
    summary = cloud.start(cloud.place, store)
    assert summary.status == "stopped"
    assert "access is denied; what is not uploaded stays on this machine" in str(summary.reason)
    done = sum(map(len, cloud.place.said().values()))
    assert cloud.start(cloud.place, cloud.store()).requests == cloud.place.shape.rows - done
    cloud.require_whole()
