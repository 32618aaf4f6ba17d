"""The ledger in the journal: each answered call once, over starts, kills and the journals of other processes."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import Reply, Usage
from pipeline.faults import Broken
from pipeline.storage.journal import Journal
from pipeline.storage.journal_reader import charged_in, read_state, worker_journal_path
from pipeline.totals.ledger import NOTHING, Charges, total

CALL = Charges.of_call(Usage(10, 5, 3, 2), 0.25, Usage())
HELD = Charges(lost_calls=2, lost_usd=0.5, lost_tokens=30.0)

counts = st.integers(0, 2**40)
usages = st.none() | st.builds(Usage, counts, counts, counts, counts)
calls = st.builds(Charges.of_call, usages, st.none() | st.floats(0, 1e6), st.builds(Usage, counts, counts))


def charge(path: Path, *ones: Charges, held: Charges = NOTHING) -> Charges:
    """What is on the books after a start that charged these; it ends without letting go of what it held."""
    journal = Journal(path)
    for one in ones:
        journal.charge(one)
    journal.hold(held)
    journal.close()
    return charged_in(path)


@given(st.lists(calls, max_size=6), calls)
def test_m4_sums_only_grow_and_are_the_same_in_any_order(ones: list[Charges], more: Charges) -> None:
    before, after = total(ones), total([*ones, more])
    assert all(
        getattr(after, name) >= getattr(before, name) for name in ("calls", "tokens", "cost_usd", "unpriced_calls")
    )
    assert total(reversed(ones)).tokens == before.tokens
    assert Charges.from_json(after.to_json()) == after


def test_m2_what_is_not_known_is_null_in_the_figures_and_counted_apart() -> None:
    unknown = Charges.of_call(None, None, Usage(100, 50))
    figures = (CALL + unknown).figures("run_")
    assert figures["run_calls"] == 2
    assert figures["run_cost_usd"] is figures["run_input_tokens"] is None
    assert (figures["run_unpriced_calls"], figures["run_unmetered_calls"]) == (1, 1)
    assert (CALL + unknown).tokens == 18 + 150
    assert CALL.figures()["cost_usd"] == 0.25


def test_m2_no_sum_of_the_largest_counts_overflows_what_is_written(tmp_path: Path) -> None:
    huge = Charges(calls=1, input_tokens=2**62, output_tokens=2**62)
    assert charge(tmp_path / "journal.sqlite", huge, huge, huge).input_tokens == 2**62


def test_m4_every_start_adds_to_what_the_others_have_paid(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    assert charge(path, CALL) == CALL
    assert charge(path) == CALL
    assert charge(path, CALL, CALL) == total([CALL] * 3)


def test_m4_rows_that_are_forgotten_or_opened_again_take_nothing_off(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path)

    async def fill() -> None:
        for ordinal in range(3):
            journal.charge(CALL)
            await journal.put(ordinal, Reply(b"{}", Usage(10, 5, 3, 2)))

    anyio.run(fill)
    journal.commit()
    journal.forget([0, 1])
    journal.unseal(0, [])
    journal.close()
    assert charged_in(path) == total([CALL] * 3)


def test_m4_a_journal_that_is_taken_over_twice_is_counted_once(tmp_path: Path) -> None:
    """The file may survive a crash in the middle of that."""
    path, own = tmp_path / "journal.sqlite", worker_journal_path(tmp_path / "journal.sqlite", 0)
    charge(path, CALL)
    charge(own, CALL, CALL, held=HELD)
    assert charged_in(path) == total([CALL] * 3)
    shutil.copy(own, tmp_path / "copy")
    journal = Journal(path)
    assert journal.absorb(own) == total([CALL, CALL, HELD])
    assert not own.exists()
    shutil.copy(tmp_path / "copy", own)
    assert journal.absorb(own) == total([CALL, CALL, HELD])
    assert journal.charged() == total([CALL, CALL, CALL, HELD])
    journal.close()
    assert charged_in(path) == total([CALL, CALL, CALL, HELD])


def test_m4_a_worker_journal_that_is_absorbed_between_its_listing_and_its_reading_is_no_damage(tmp_path: Path) -> None:
    path, own = tmp_path / "journal.sqlite", worker_journal_path(tmp_path / "journal.sqlite", 0)
    charge(path, CALL)
    own.symlink_to(tmp_path / "gone")  # listed, and not there when it is opened
    assert charged_in(path) == CALL
    assert read_state(path) == ([], 0)
    path.unlink()
    with pytest.raises(Broken, match="is gone"):
        charged_in(path)


def test_m4_what_a_killed_start_had_in_flight_counts_as_lost_from_the_next_on(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    assert charge(path, CALL, held=HELD) == CALL
    assert charged_in(path, ended=True) == CALL + HELD
    assert charge(path) == charged_in(path, ended=True) == CALL + HELD
    assert charge(path, CALL) == total([CALL, CALL, HELD])


def test_m4_a_charge_is_durable_no_later_than_the_entry_of_its_row(tmp_path: Path) -> None:
    """Whenever the journal is copied: no row may be there that nobody paid for."""
    path = tmp_path / "journal.sqlite"

    async def write() -> None:
        journal = Journal(path)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(journal.keep_writing)
            for ordinal in range(300):
                journal.charge(CALL)
                await journal.put(ordinal, Reply(b"{}"))
                if ordinal % 10 == 0:
                    await anyio.lowlevel.checkpoint()
                    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as seen:
                        (rows,) = seen.execute("SELECT count(*) FROM entries").fetchone()
                    assert charged_in(path).calls >= rows
            await journal.flush()
            tasks.cancel_scope.cancel()
        journal.close()

    anyio.run(write)
    assert charged_in(path).calls == 300


@pytest.mark.parametrize("column", ["calls", "cost_usd"])
def test_a_ledger_of_a_later_version_is_read_by_what_is_known(column: str) -> None:
    assert Charges.from_json({column: 3, "something_new": 1}) == Charges(**{column: 3})


def test_a_commit_of_a_charge_writes_one_page(tmp_path: Path) -> None:
    """Every commit of a run writes the ledger's row; its index has not changed, and is not written again."""
    journal = Journal(tmp_path / "journal.sqlite")
    log = tmp_path / "journal.sqlite-wal"
    sizes = []
    for _ in range(3):
        journal.charge(CALL)
        journal.commit()
        sizes.append(log.stat().st_size)
    page = 4096 + 24  # as SQLite's format says: a page of the database, and the header of its frame
    assert [after - before for before, after in pairwise(sizes)] == [page, page]
    journal.close()
