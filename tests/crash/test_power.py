"""After a power cut at any moment, whatever the disk had not synced, no durable row is lost and no wrong byte is read."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.execute import reparse
from pipeline.faults import Misuse
from tests.crash.cuts import Cutter, Figures, Recorded
from tests.crash.mistakes import MISTAKES, Mistake
from tests.crash.power import record
from tests.crash.small import Place, Said, require_whole, start

SEED = 11


class More(Said):
    """A schema to which a field was added."""

    remark: str | None = None


def finish(place: Place) -> None:
    assert start(place).status == "complete"


def a_run(folder: Path) -> Recorded:
    """A run from its first call to its last."""
    place = Place(folder).prepare()
    return Recorded(record(folder, lambda files: start(place, files)), place, finish)


def a_run_resumed(folder: Path) -> Recorded:
    """A run that was stopped half-way, resumed."""
    place = Place(folder).prepare()
    start(place, stop=place.stop_after(12))
    return Recorded(record(folder, lambda files: start(place, files)), place, finish)


def failed_rows_again(folder: Path) -> Recorded:
    """The failed rows of a finished run, asked again."""
    place = Place(folder).prepare()
    start(place)
    return Recorded(record(folder, lambda files: start(place, files, retry_failed=True)), place, finish)


def a_fresh_start(folder: Path) -> Recorded:
    """A run in the place of one that was stopped, with another prompt: no answer of that one may come into it."""
    old = Place(folder).prepare()
    start(old, stop=old.stop_after(12))
    old.notes.unlink()
    place = old.with_job(user="Again: {{ text }}")
    log = record(folder, lambda files: start(place, files, fresh=True))

    def resume(place: Place) -> None:
        try:
            finish(place)
        except Misuse as refusal:
            assert "--fresh" in str(refusal)  # noqa: PT017 - it need not be refused
            assert start(place, fresh=True).status == "complete"

    return Recorded(log, place, resume, share=0.5, steady=False)


def a_reparse(folder: Path) -> Recorded:
    """A finished run, parsed again under another schema."""
    before = Place(folder).prepare()
    start(before)
    place = before.with_job(schema=More)
    log = record(folder, lambda files: reparse(place.job(), place.output, files))
    return Recorded(log, place, lambda place: reparsed(place), share=0.5, steady=False)


def reparsed(place: Place) -> None:
    assert reparse(place.job(), place.output).status == "complete"


HISTORIES = {a_run: 400, a_run_resumed: 200, failed_rows_again: 150, a_fresh_start: 150, a_reparse: 100}
"""How many states are looked at of each: 1,000 in all."""


@pytest.mark.parametrize("history", HISTORIES, ids=lambda history: history.__name__)
def test_p3_a_power_cut_loses_no_durable_row_and_shows_no_wrong_byte(
    history: Callable[[Path], Recorded], tmp_path: Path
) -> None:
    figures = Figures()
    Cutter(history(tmp_path / "run"), tmp_path).cut(HISTORIES[history], random.Random(SEED), figures)
    assert figures.trouble == []
    assert figures.states == HISTORIES[history]
    print(figures)


@pytest.fixture(scope="module")
def recorded_run(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return a_run(tmp_path_factory.mktemp("recorded"))


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_p3_a_seeded_bug_is_caught_by_the_same_check(mistake: Mistake, recorded_run: Recorded, tmp_path: Path) -> None:
    figures = Figures()
    log = mistake(recorded_run.log)
    Cutter(Recorded(log, recorded_run.place, finish), tmp_path).cut(150, random.Random(SEED), figures)
    assert figures.trouble


def test_p3_the_model_finds_nothing_wrong_where_every_step_is_synced_at_once(recorded_run: Recorded) -> None:
    """And so its findings are those of the missing syncs."""
    require_whole(recorded_run.place)
