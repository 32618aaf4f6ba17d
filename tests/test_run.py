"""The engine: rows to entries, chunks to seals, and every way to an end. In virtual time."""

from __future__ import annotations

import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import Entry, Reply, Row
from pipeline.execution.engine import (
    OPEN_BYTES,
    OPEN_CHUNKS,
    ROWS_AHEAD,
    Chunk,
    EngineCallbacks,
    in_order,
    open_chunks_for,
    process_chunks,
)
from pipeline.faults import Broken, Fault, Halt, Interrupted, ProviderUnusable, Refused
from pipeline.policy import Shutdown
from tests import virtual

anyio_backend = virtual.anyio_backend
pytestmark = pytest.mark.anyio

REPLY = Reply(b"{}")
GRACE_S = 20.0

Answer = Callable[[Row], Awaitable[Entry]]


@dataclass(frozen=True)
class ListedRows:
    """A batch of the list source."""

    rows: Sequence[Row]
    kept: list[int]


@dataclass
class World:
    """What surrounds the engine, made of lists: it remembers what was done, and when, and in which order."""

    sizes: Sequence[int]
    answer: Answer
    known: frozenset[int] = frozenset()
    batch_rows: int = 4
    read_s: float = 0.0
    record_s: float = 0.0
    seal_s: float = 0.0
    seal_fault: Halt | None = None
    record_fault: Halt | None = None
    read_fault: Halt | None = None

    stop: Shutdown = field(default_factory=Shutdown)
    read: list[int] = field(default_factory=list)
    asked: dict[int, float] = field(default_factory=dict)
    recorded: dict[int, Entry] = field(default_factory=dict)
    sealed: dict[int, float] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    open: set[int] = field(default_factory=set)
    most_open: int = 0
    furthest_ahead: int = 0
    ended: float = -1.0
    chunks: list[Chunk] = field(default_factory=list)
    kept: dict[int, list[object]] = field(default_factory=dict)
    """What came with every chunk that was sealed."""

    def __post_init__(self) -> None:
        starts = accumulate(self.sizes, initial=0)
        self.chunks = [Chunk(i, first, rows) for i, (first, rows) in enumerate(zip(starts, self.sizes, strict=False))]

    async def work(self, workers: int = 4, grace_s: float = GRACE_S) -> float:
        """Runs the engine to its end, and says when that was."""
        hands = EngineCallbacks(self._read, self._done, self._answer, self._record, self._seal)
        await process_chunks(in_order(self.chunks), hands, workers=workers, stop=self.stop, grace_s=grace_s)
        self.ended = anyio.current_time()
        return self.ended

    @property
    def ordinals(self) -> set[int]:
        return set(range(sum(self.sizes)))

    def rows_of(self, chunk: int) -> range:
        first = self.chunks[chunk].first
        return range(first, first + self.chunks[chunk].rows)

    async def _read(self, index: int) -> AsyncGenerator[ListedRows, None]:
        self.open.add(index)
        self.most_open = max(self.most_open, len(self.open))
        ordinals = self.rows_of(index)
        for start in range(0, len(ordinals), self.batch_rows):
            await anyio.sleep(self.read_s)
            if self.read_fault is not None:
                raise self.read_fault
            some = list(ordinals[start : start + self.batch_rows])
            self.read += some
            self.furthest_ahead = max(self.furthest_ahead, len(self.read) - len(self.recorded))
            yield ListedRows([Row(ordinal, {}) for ordinal in some], some)

    async def _done(self, chunk: Chunk) -> set[int]:
        await anyio.lowlevel.checkpoint()
        return set(self.known) & set(self.rows_of(chunk.index))

    async def _answer(self, row: Row) -> Entry:
        assert row.ordinal not in self.asked, "a row was asked twice"
        self.asked[row.ordinal] = anyio.current_time()
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self.answer(row)
        finally:
            self.in_flight -= 1

    async def _record(self, ordinal: int, entry: Entry) -> None:
        if self.record_fault is not None:
            raise self.record_fault
        assert ordinal not in self.recorded, "a row was recorded twice"
        self.recorded[ordinal] = entry
        self.events.append(f"record {ordinal}")
        if self.record_s:
            await anyio.sleep(self.record_s)

    async def _seal(self, chunk: Chunk) -> None:
        assert chunk.index not in self.sealed, "a chunk was sealed twice"
        self.events.append(f"seal {chunk.index}")
        if self.seal_fault is not None:
            raise self.seal_fault
        await anyio.sleep(self.seal_s)
        self.sealed[chunk.index] = anyio.current_time()
        self.kept[chunk.index] = list(chunk.kept)
        self.open.discard(chunk.index)


def taking(seconds: float, entry: Entry = REPLY) -> Answer:
    """An endpoint that answers every row after so many seconds."""
    return scripted({}, seconds, entry)


def scripted(special: dict[int, float | BaseException], seconds: float = 1.0, entry: Entry = REPLY) -> Answer:
    """An endpoint that takes its time for some rows, or raises for them, after `seconds`."""

    async def answer(row: Row) -> Entry:
        what = special.get(row.ordinal, seconds)
        await anyio.sleep(seconds if isinstance(what, BaseException) else what)
        if isinstance(what, BaseException):
            raise what
        return entry

    return answer


async def working(world: World, *happenings: Awaitable[None], workers: int = 4, grace_s: float = GRACE_S) -> float:
    """Runs the engine while other things happen; says when the engine ended."""
    async with anyio.create_task_group() as tasks:
        for happening in happenings:
            tasks.start_soon(_awaited, happening)
        await world.work(workers, grace_s)
    return world.ended


async def _awaited(happening: Awaitable[None]) -> None:
    await happening


async def test_a_hundred_rows_of_a_minute_on_ten_workers_take_ten_minutes() -> None:
    world = World([100], taking(60.0))
    assert await world.work(workers=10) == 600.0
    assert world.recorded.keys() == world.ordinals


async def test_workers_are_all_busy_and_never_more_than_asked_for() -> None:
    world = World([10] * 10, taking(1.0))
    await world.work(workers=7)
    assert world.most_in_flight == 7


async def test_rows_reach_the_workers_that_wait_for_them_together() -> None:
    """At one row a round of the loop, a thousand workers would starve."""
    world = World([400], taking(100.0), batch_rows=200)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.work, 400)
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        assert world.in_flight == 400
        tasks.cancel_scope.cancel()


async def test_every_row_is_recorded_once_and_every_chunk_sealed_once() -> None:
    world = World([7, 1, 12, 3], scripted({3: 50.0, 8: 0.0, 11: 9.0}))
    await world.work()
    assert world.recorded == dict.fromkeys(world.ordinals, REPLY)
    assert world.sealed.keys() == {0, 1, 2, 3}
    assert world.stop.reason is None


async def test_a_fault_that_ends_a_row_is_recorded_like_a_reply() -> None:
    refused = Refused("no")
    world = World([3], taking(1.0, refused))
    await world.work()
    assert world.recorded == dict.fromkeys(range(3), refused)
    assert list(world.sealed) == [0]


async def test_a_chunk_is_sealed_after_the_last_of_its_rows_is_recorded() -> None:
    world = World([5, 5, 5], scripted({0: 30.0, 7: 20.0}))
    await world.work(workers=15)
    for chunk in range(3):
        sealed = world.events.index(f"seal {chunk}")
        assert all(world.events.index(f"record {row}") < sealed for row in world.rows_of(chunk))


async def test_a_chunk_carries_the_kept_columns_of_all_its_rows_in_order() -> None:
    world = World([10, 3], scripted({2: 9.0}), known=frozenset({5}), batch_rows=4)
    await world.work()
    assert world.kept[0] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert world.kept[1] == [[10, 11, 12]]


async def test_one_chunk_is_sealed_at_a_time_and_rows_are_answered_meanwhile() -> None:
    world = World([1] * 6, taking(1.0), seal_s=10.0)
    assert await world.work(workers=6) == 61.0
    assert sorted(world.sealed.values()) == [11.0, 21.0, 31.0, 41.0, 51.0, 61.0]


async def test_p11_a_straggler_in_the_oldest_chunk_stops_no_other_chunk() -> None:
    world = World([3] * 40, scripted({0: 10_000.0}))
    assert await world.work(workers=3) == 10_000.0
    others = [moment for chunk, moment in world.sealed.items() if chunk > 0]
    assert len(others) == 39
    assert max(others) < 100.0


async def test_a_sealed_chunk_holds_no_input_any_more() -> None:
    """The chunks of a run are listed as long as it lasts; were they to keep their rows, memory would grow with them."""
    world = World([3] * 40, taking(1.0))
    await world.work()
    assert world.sealed.keys() == set(range(40))
    assert [chunk.index for chunk in world.chunks if chunk.kept] == []


async def test_p11_with_a_straggler_in_every_open_chunk_no_further_chunk_is_read() -> None:
    stragglers = {chunk * 3: 10_000.0 for chunk in range(OPEN_CHUNKS)}
    world = World([3] * 40, scripted(dict(stragglers)), batch_rows=3)
    read: list[int] = []
    await working(world, virtual.at(9_999.0, lambda: read.extend(world.read)), workers=100)
    assert read == list(range(3 * OPEN_CHUNKS))
    assert world.sealed.keys() == set(range(40))


def test_p11_so_many_chunks_are_open_that_rows_50_times_slower_leave_no_call_unused() -> None:
    assert open_chunks_for(64, 1000, 500.0) == OPEN_CHUNKS
    assert open_chunks_for(1000, 1000, 500.0) * 1000 > 40 * 1000


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.floats(0.0, 1e8))
def test_p11_open_chunks_hold_no_more_than_eight_of_them_or_64_mib(
    concurrency: int, rows: int, row_bytes: float
) -> None:
    chunks = open_chunks_for(concurrency, rows, row_bytes)
    assert chunks == OPEN_CHUNKS or chunks * rows * row_bytes <= OPEN_BYTES


async def test_chunks_that_wait_for_their_seal_count_as_open() -> None:
    world = World([2] * 30, taking(0.1), seal_s=60.0)
    await world.work(workers=64)
    assert world.most_open == OPEN_CHUNKS


async def test_while_full_chunks_wait_for_their_seal_no_other_is_opened() -> None:
    """One that is sealed, one that was opened before it was full: were there more, slow seals would fill the memory."""
    world = World([20] * 10, taking(0.1), seal_s=60.0)
    await world.work(workers=2)
    assert world.most_open == 2


async def test_a_seal_that_fails_ends_the_run_also_while_the_next_chunk_waits_for_it() -> None:
    broken = Broken("the disk is full")
    world = World([20] * 10, taking(0.1), seal_s=60.0, seal_fault=broken)
    await world.work(workers=2)
    assert world.stop.reason is broken
    assert len(world.recorded) < 20 * 10


@pytest.mark.parametrize(("workers", "batch_rows"), [(1, 1), (3, 4), (5, 250), (100, 16)])
async def test_the_source_is_not_read_further_ahead_than_the_workers_need(workers: int, batch_rows: int) -> None:
    world = World([1000], scripted({}, 1.0), batch_rows=batch_rows)
    await world.work(workers=workers)
    waiting_in_the_stream = min(workers, ROWS_AHEAD)
    assert world.furthest_ahead <= workers + waiting_in_the_stream + batch_rows


async def test_rows_that_have_an_entry_are_not_asked_again() -> None:
    world = World([6, 6], taking(1.0), known=frozenset({0, 1, 5, 6}))
    await world.work()
    assert world.asked.keys() == world.recorded.keys() == {2, 3, 4, 7, 8, 9, 10, 11}
    assert world.sealed.keys() == {0, 1}


async def test_a_chunk_whose_rows_all_have_entries_is_sealed_without_a_call() -> None:
    world = World([6, 2], taking(1.0), known=frozenset(range(6)))
    await world.work()
    assert world.asked.keys() == {6, 7}
    assert world.sealed[0] == 0.0


async def test_nothing_to_work_on_ends_at_once() -> None:
    world = World([], taking(1.0))
    assert await world.work() == 0.0


async def test_more_workers_than_rows_is_no_trouble() -> None:
    world = World([2], taking(1.0))
    assert await world.work(workers=500) == 1.0


async def test_p2_after_the_stop_no_row_is_taken_and_rows_in_flight_finish_and_are_recorded() -> None:
    world = World([100], taking(10.0))
    end = await working(world, virtual.at(25.0, world.stop.request, signal.SIGTERM), workers=4)
    assert end == 30.0
    assert len(world.asked) == len(world.recorded) == 12
    assert max(world.asked.values()) == 20.0
    assert world.stop.reason is signal.SIGTERM


async def test_p2_whole_chunks_are_sealed_after_the_stop_and_others_are_not() -> None:
    world = World([4, 4, 4], scripted({6: 100.0}, 10.0), seal_s=5.0)
    end = await working(world, virtual.at(15.0, world.stop.request, signal.SIGINT), workers=8, grace_s=10.0)
    assert end == 25.0
    assert world.sealed.keys() == {0, 2}
    assert world.recorded.keys() == world.ordinals - {6}


async def test_p2_rows_that_outlast_the_grace_period_are_left_undone() -> None:
    world = World([8], scripted({0: 3600.0, 1: 7.0}, 1.0))
    end = await working(world, virtual.at(5.0, world.stop.request, signal.SIGINT), workers=2, grace_s=20.0)
    assert end == 25.0
    assert 1 in world.recorded
    assert 0 not in world.recorded
    assert not world.sealed


async def test_p2_a_seal_that_has_begun_is_finished_even_after_the_grace_period() -> None:
    world = World([1, 4], scripted({1: 3600.0}, 1.0), seal_s=100.0)
    end = await working(world, virtual.at(2.0, world.stop.request, signal.SIGINT), workers=1, grace_s=20.0)
    assert end == 101.0
    assert world.sealed == {0: 101.0}


async def test_p2_without_a_grace_period_the_end_comes_at_once() -> None:
    world = World([8], taking(3600.0))
    assert await working(world, virtual.at(5.0, world.stop.request, signal.SIGINT), grace_s=0.0) == 5.0


async def test_p2_a_stop_before_the_start_asks_nothing() -> None:
    world = World([8] * 20, taking(1.0))
    world.stop.request(signal.SIGINT)
    assert await world.work() == 0.0
    assert not world.asked


async def test_p2_a_stop_while_the_source_is_slow_ends_at_once() -> None:
    world = World([8], taking(1.0), read_s=3600.0)
    assert await working(world, virtual.at(5.0, world.stop.request, signal.SIGINT)) == 5.0


async def test_a_row_interrupted_by_the_stop_is_left_undone_and_the_first_reason_stays() -> None:
    world = World([8], taking(0.0))

    async def answer(row: Row) -> Entry:
        await world.stop.pause(60.0 if row.ordinal else 1.0)
        return REPLY

    world.answer = answer
    end = await working(world, virtual.at(5.0, world.stop.request, signal.SIGTERM), workers=3)
    assert end == 5.0
    assert list(world.recorded) == [0]
    assert world.stop.reason is signal.SIGTERM


async def test_an_interruption_without_a_stop_ends_the_run_instead_of_leaving_its_chunk_open_for_ever() -> None:
    interrupted = Interrupted("by whom?")
    world = World([1] * 40, scripted(dict.fromkeys(range(OPEN_CHUNKS), interrupted)))
    assert await world.work(workers=64) == 1.0
    assert world.stop.reason is interrupted
    assert not world.recorded


async def test_a_halt_stops_the_run_and_leaves_its_row_undone_while_others_in_flight_finish() -> None:
    denied = ProviderUnusable("403")
    world = World([100], scripted({5: denied, **dict.fromkeys((4, 6, 7), 10.5)}, 10.0), batch_rows=100)
    assert await world.work(workers=4) == 20.5
    assert world.stop.reason is denied
    assert world.recorded.keys() == set(range(8)) - {5}


async def test_the_first_of_several_halts_is_the_reason() -> None:
    first = ProviderUnusable("first")

    async def answer(row: Row) -> Entry:
        await anyio.sleep(1.0 if row.ordinal == 1 else 2.0)
        raise first if row.ordinal == 1 else ProviderUnusable("later")

    world = World([4], answer)
    await world.work()
    assert world.stop.reason is first


async def test_an_unknown_exception_is_a_bug_and_leaves_at_once_as_it_is() -> None:
    world = World([100], scripted({5: ZeroDivisionError("a bug")}, 10.0))
    with pytest.RaisesGroup(pytest.RaisesExc(ZeroDivisionError, match="a bug"), flatten_subgroups=True):
        await world.work(workers=6)
    assert anyio.current_time() == 10.0
    assert len(world.asked) <= 12


@pytest.mark.parametrize("fault", [Refused("escaped"), KeyError("x")], ids=["fault", "error"])
async def test_what_answer_should_have_returned_is_never_swallowed(fault: Exception) -> None:
    world = World([3], scripted({0: fault}))
    with pytest.RaisesGroup(type(fault), flatten_subgroups=True):
        await world.work()


async def test_p4_a_disk_that_breaks_while_recording_stops_at_once_because_no_answer_could_be_kept() -> None:
    broken = Broken("disk full")
    world = World([100], scripted({0: 1.0}, 600.0), record_fault=broken)
    assert await world.work(workers=4) == 1.0
    assert world.stop.reason is broken
    assert not world.sealed


async def test_p4_a_disk_that_breaks_while_sealing_stops_at_once_and_no_further_seal_is_tried() -> None:
    broken = Broken("disk full")
    world = World([1] * 20, scripted({3: 600.0}, 1.0), seal_fault=broken)
    assert await world.work(workers=4) == 1.0
    assert world.stop.reason is broken
    assert len([event for event in world.events if event.startswith("seal")]) == 1


async def test_an_input_that_breaks_while_it_is_read_stops_the_run() -> None:
    broken = Broken("the input is gone")
    world = World([100], taking(10.0), read_fault=broken)
    assert await world.work() == 0.0
    assert world.stop.reason is broken


@dataclass(frozen=True)
class Script:
    """A random world."""

    sizes: list[int]
    latencies: list[float]
    faults: dict[int, type[Fault]]
    known: frozenset[int]
    workers: int
    batch_rows: int
    stop_at: float | None
    grace_s: float
    read_s: float
    record_s: float
    seal_s: float

    def world(self) -> World:
        async def answer(row: Row) -> Entry:
            await anyio.sleep(self.latencies[row.ordinal % len(self.latencies)])
            kind = self.faults.get(row.ordinal)
            if kind is Refused:
                return Refused("no")
            if kind is not None:
                raise kind("halt")
            return REPLY

        return World(
            self.sizes,
            answer,
            known=self.known,
            batch_rows=self.batch_rows,
            read_s=self.read_s,
            record_s=self.record_s,
            seal_s=self.seal_s,
        )

    @property
    def halts(self) -> bool:
        return any(kind is not Refused for kind in self.faults.values())


_SECONDS = st.sampled_from([0.0, 0.5, 1.0, 1.0, 2.0, 7.0, 60.0])
_ORDINALS = st.integers(0, 60)


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    halts = draw(st.sampled_from([(), (ProviderUnusable,), (ProviderUnusable, Broken)]))
    return Script(
        sizes=draw(st.lists(st.integers(1, 6), max_size=14)),
        latencies=draw(st.lists(_SECONDS, min_size=1, max_size=9)),
        faults=draw(st.dictionaries(_ORDINALS, st.sampled_from([Refused, *halts]), max_size=4)),
        known=draw(st.frozensets(_ORDINALS, max_size=12)),
        workers=draw(st.integers(1, 12)),
        batch_rows=draw(st.integers(1, 7)),
        stop_at=draw(st.none() | st.sampled_from([0.0, 0.5, 1.0, 3.0, 8.0, 61.0])),
        grace_s=draw(st.sampled_from([0.0, 1.0, 20.0])),
        read_s=draw(st.sampled_from([0.0, 0.0, 1.5])),
        record_s=draw(st.sampled_from([0.0, 0.0, 0.5])),
        seal_s=draw(st.sampled_from([0.0, 0.0, 4.0])),
    )


def _carried_out(script: Script) -> tuple[World, float]:
    world = script.world()

    async def carry_out() -> float:
        async with anyio.create_task_group() as tasks:
            if script.stop_at is not None:
                tasks.start_soon(virtual.at, script.stop_at, world.stop.request, signal.SIGTERM)
            end = await world.work(script.workers, script.grace_s)
            tasks.cancel_scope.cancel()
        return end

    return world, virtual.run(carry_out)


def _whole(world: World, script: Script) -> set[int]:
    done = world.recorded.keys() | script.known
    return {chunk.index for chunk in world.chunks if done >= set(world.rows_of(chunk.index))}


@settings(max_examples=200, deadline=None)
@given(scripts())
def test_whatever_happens_rows_and_chunks_are_accounted_for(script: Script) -> None:
    """No row twice, none asked that was known, no seal before its rows, bounds kept, an end in time."""
    world, end = _carried_out(script)
    known = script.known & world.ordinals

    assert not world.asked.keys() & known
    assert world.recorded.keys() <= world.asked.keys()
    assert world.sealed.keys() <= _whole(world, script)
    assert world.most_in_flight <= script.workers
    assert world.most_open <= OPEN_CHUNKS
    assert world.furthest_ahead - len(known) <= script.workers + min(script.workers, 64) + script.batch_rows
    for index, event in enumerate(world.events):
        kind, number = event.split()
        if kind == "seal":
            recorded = {int(e.split()[1]) for e in world.events[:index] if e.startswith("record")}
            assert recorded | known >= set(world.rows_of(int(number)))
    if script.stop_at is not None:
        assert not [row for row, moment in world.asked.items() if moment > script.stop_at]
        sealing = script.seal_s * (OPEN_CHUNKS + 1)
        assert end <= max(script.stop_at, 0.0) + script.grace_s + sealing or world.stop.reason is None
    if world.stop.reason is None:
        assert world.recorded.keys() | known == world.ordinals
        assert world.sealed.keys() == {chunk.index for chunk in world.chunks}
    elif not (isinstance(world.stop.reason, Broken) or known or script.record_s):
        assert world.sealed.keys() == _whole(world, script)


@settings(max_examples=60, deadline=None)
@given(scripts(), scripts())
def test_a_second_start_finishes_what_the_first_one_left(script: Script, again: Script) -> None:
    """Starting again with what was recorded asks each remaining row once, and nothing else."""
    first, _ = _carried_out(script)
    sealed = first.sealed.keys()
    left = [size for index, size in enumerate(script.sizes) if index not in sealed]
    rest = [row for chunk in first.chunks if chunk.index not in sealed for row in first.rows_of(chunk.index)]
    known = frozenset(new for new, row in enumerate(rest) if row in first.recorded or row in script.known)
    second = World(left, taking(1.0), known=known, batch_rows=again.batch_rows)

    async def finish() -> float:
        return await second.work(again.workers)

    virtual.run(finish)
    assert len(second.asked) == len(rest) - len(known)
    assert second.sealed.keys() == set(range(len(left)))
