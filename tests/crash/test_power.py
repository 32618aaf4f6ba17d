"""After a power cut at any moment, whatever was not synced, no durable row is lost and no wrong byte is read."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import replace
from inspect import signature
from pathlib import Path

import pytest

from pipeline.execution.reparse import reparse
from pipeline.execution.start import open_run
from pipeline.faults import UsageError
from pipeline.storage.durable import FileSystem
from tests.crash import SEED
from tests.crash.cuts import CutFigures, Cutter, Recorded
from tests.crash.mistakes import MISTAKES, Mistake
from tests.crash.power import record
from tests.crash.small import RunPlace, SmallAnswer, start


class More(SmallAnswer):
    """A schema to which a field was added."""

    remark: str | None = None


def finish(place: RunPlace) -> None:
    assert start(place).status == "complete"


def a_run(folder: Path) -> Recorded:
    """A run from its first call to its last."""
    place = RunPlace(folder).prepare()
    return Recorded(record(folder, lambda files: start(place, files)), place, finish)


def a_run_resumed(folder: Path) -> Recorded:
    """A run that was stopped half-way, resumed."""
    place = RunPlace(folder).prepare()
    start(place, stop_after=12)
    return Recorded(record(folder, lambda files: start(place, files)), place, finish)


def failed_rows_again(folder: Path) -> Recorded:
    """The failed rows of a finished run, asked again."""
    place = RunPlace(folder).prepare()
    start(place)
    log = record(folder, lambda files: start(place, files, retry_failed=True))
    return Recorded(log, place, finish, asked_again=frozenset(range(6, place.shape.rows, 7)))


def a_fresh_start(folder: Path) -> Recorded:
    """A run of fewer rows with another prompt in the place of one that was stopped; of that, nothing may stay."""
    old = RunPlace(folder).prepare()
    start(old, stop_after=15)
    old.notes.unlink()
    place = RunPlace(folder, replace(old.shape, rows=7), old.rows, user="Again: {{ text }}")
    log = record(folder, lambda files: start(place, files, fresh=True))

    def resume(place: RunPlace) -> None:
        try:
            finish(place)
        except UsageError as refusal:
            assert "--fresh" in str(refusal)  # noqa: PT017 - it need not be refused
            assert start(place, fresh=True).status == "complete"

    return Recorded(log, place, resume, share=0.5, steady=False)


def a_reparse(folder: Path) -> Recorded:
    """A finished run, parsed again under another schema."""
    before = RunPlace(folder).prepare()
    start(before)
    place = before.with_job(schema=More)
    log = record(folder, lambda files: reparse(place.job(), place.output, files))
    return Recorded(log, place, reparsed, share=0.2, steady=False)


def reparsed(place: RunPlace) -> None:
    assert reparse(place.job(), place.output).status == "complete"


def test_p3_a_run_uses_the_calls_of_the_system_itself() -> None:
    files = FileSystem(os.open, os.write, os.fsync, os.replace, os.unlink, os.mkdir)
    assert signature(open_run).parameters["files"].default == files


History = Callable[[Path], Recorded]

HISTORIES: dict[History, int] = {
    a_run: 400,
    a_run_resumed: 200,
    failed_rows_again: 150,
    a_fresh_start: 150,
    a_reparse: 100,
}
"""How many states are looked at of each: 1,000 in all."""


@pytest.mark.parametrize("history", HISTORIES, ids=lambda history: history.__name__)
def test_p3_a_power_cut_loses_no_durable_row_and_shows_no_wrong_byte(history: History, scratch: Path) -> None:
    figures = CutFigures()
    Cutter(history(scratch / history.__name__), scratch).cut(HISTORIES[history], random.Random(SEED), figures)
    assert figures.trouble == []
    assert figures.states == HISTORIES[history]


@pytest.fixture(scope="module")
def recorded_run(scratch: Path) -> Recorded:
    return a_run(scratch / "to be spoilt")


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_p3_a_seeded_bug_is_caught_by_the_same_check(mistake: Mistake, recorded_run: Recorded, scratch: Path) -> None:
    figures, dice = CutFigures(), random.Random(SEED)
    cutter = Cutter(replace(recorded_run, log=mistake(recorded_run.log)), scratch)
    while not figures.trouble and figures.states < HISTORIES[a_run]:
        cutter.cut(10, dice, figures)
    assert figures.trouble
