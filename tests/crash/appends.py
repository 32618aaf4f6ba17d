"""A finished run whose input has grown, and kills of the start that appends the new rows."""

from __future__ import annotations

import errno
import json
import random
import shutil
from pathlib import Path

from pipeline.data import PARTS
from tests.crash.calls import FailingCalls, tapped
from tests.crash.forks import forking
from tests.crash.lives import LifeFigures, every_call, kept
from tests.crash.small import RunPlace, Shape, require_whole, start

SHAPE = Shape(rows=20, chunk_rows=7)
FIRST = 11
"""Rows of the first generation. Three more come at the end of their file, and the others in a file before it."""


def _lines(first: int, last: int) -> str:
    return "".join(json.dumps({"id": number, "text": f"text {number}"}) + "\n" for number in range(first, last))


def grown_run(scratch: Path) -> RunPlace:
    """A finished run of the first rows, with all rows in its input now."""
    place = RunPlace(scratch / "grown", SHAPE, scratch / "grown" / "in")
    place.rows.mkdir(parents=True)
    (place.rows / "b.jsonl").write_text(_lines(0, FIRST))
    start(place, append=True, limit=None)
    (place.rows / "b.jsonl").write_text(_lines(0, FIRST + 3))
    (place.rows / "a.jsonl").write_text(_lines(FIRST + 3, SHAPE.rows))
    return place


def kills_of_an_append(scratch: Path, most: int | None, dice: random.Random) -> LifeFigures:
    """Kills at every call on files, and in the middle of every write, of a start that appends; `most` draws as many.

    After each of them, the same start once more must give every row, with no row of the first generation asked again
    and none of its parts touched.
    """
    grown = grown_run(scratch)
    never = FailingCalls(-1, errno.EIO)
    start(_copied(grown, scratch / "counted"), tapped(never), append=True, limit=None)
    kills = every_call(len(never.made), sum(call.name == "write" for call in never.made))
    drawn = kills if most is None else dice.sample(kills, most)
    figures = LifeFigures()
    with forking() as forks:
        for number, kill in enumerate(drawn):
            place = _copied(grown, scratch / str(number))
            try:
                known = kept(place, {})
                ended = forks.start(place, kill, append=True)
                figures.kills, figures.torn = figures.kills + ended.killed, figures.torn + ended.torn
                kept(place, known)
                _require_true_marker(place)
                assert ended.killed or ended.status == "complete", ended.status
                assert (status := forks.start(place, append=True).status) == "complete", status
                require_whole(place)
                _require_untouched(grown, place)
            except (AssertionError, OSError, ValueError) as error:
                figures.trouble.append(f"{kill}: {error}")
            figures.lives, figures.starts = figures.lives + 1, figures.starts + 2
            figures.rows += SHAPE.rows
            figures.answers += sum(len(nonces) for nonces in place.said().values())
            shutil.rmtree(place.folder)
    return figures


def _copied(grown: RunPlace, folder: Path) -> RunPlace:
    shutil.copytree(grown.folder, folder)
    return RunPlace(folder, SHAPE, grown.rows)


def _require_true_marker(place: RunPlace) -> None:
    """The success marker is of all rows that the plan has."""
    if (place.output / "_SUCCESS").exists():
        plan, manifest = (
            json.loads((place.output / name).read_bytes()) for name in ("_run/plan.json", "_manifest.json")
        )
        assert manifest["rows"] == plan["survey"]["rows"], "the marker stands for fewer rows than the plan has"


def _require_untouched(grown: RunPlace, place: RunPlace) -> None:
    for part in (grown.output / PARTS).iterdir():
        assert (place.output / PARTS / part.name).read_bytes() == part.read_bytes(), f"{part.name} was written again"
    again = [row for row, nonces in place.said().items() if row < FIRST and len(nonces) > 1]
    assert not again, f"rows of the first generation were asked again: {again}"
