"""Many power cuts of a recorded run, and what is left to be read and to be resumed after each."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.execution.start import open_run
from pipeline.faults import Fault, UsageError
from tests.crash.power import JournalFiles, Log, Tree, alive, crashed, journal_between, plant
from tests.crash.small import PART, RunPlace, recorded, require_finished, require_whole


@dataclass(slots=True)
class CutFigures:
    """What many power cuts came to. `states` counts different ones."""

    states: int = 0
    resumed: int = 0
    trouble: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.states} different states after a power cut ({self.resumed} resumed to their end); "
            f"{len(self.trouble)} with wrong bytes or a durable row lost"
        )


@dataclass(frozen=True, slots=True)
class Recorded:
    """A run that was recorded. `resume` is what is done after a power cut, and `share` the states it is done in.

    With `steady`, what was ever recorded stays so, but for the rows `asked_again`, and the run can be opened.
    """

    log: Log
    place: RunPlace
    resume: Callable[[RunPlace], None]
    share: float = 0.1
    steady: bool = True
    asked_again: frozenset[int] = frozenset()


class Cutter:
    """Power cuts of one recorded run, looked at in a scratch folder."""

    def __init__(self, run: Recorded, scratch: Path) -> None:
        self._run = run
        self._scratch = scratch
        self._recorded: dict[tuple[int, JournalFiles], dict[int, str]] = {}
        self._seen: set[str] = set()
        self._versions = _versions(run.log)

    def cut(self, states: int, dice: random.Random, figures: CutFigures) -> None:
        """Looks at so many states that it has not seen yet, drawn at random."""
        for _ in range(states):
            at, journal, tree = self._unseen(dice)
            resumes = dice.random() < self._run.share
            figures.states += 1
            figures.resumed += resumes
            try:
                self._look(at, journal, tree, resumes=resumes)
            except (AssertionError, Fault, UsageError, OSError, ValueError) as error:
                figures.trouble.append(f"after {at} steps: {type(error).__name__}: {error}")

    def _unseen(self, dice: random.Random) -> tuple[int, JournalFiles, Tree]:
        while True:
            at = dice.randint(0, len(self._run.log.steps))
            journal = journal_between(self._run.log, at, dice)
            tree = crashed(self._run.log, at, journal, dice)
            digest = _digest(tree)
            if digest not in self._seen:
                self._seen.add(digest)
                return at, journal, tree

    def _look(self, at: int, journal: JournalFiles, tree: Tree, *, resumes: bool) -> None:
        durable = self._durable(at, journal) if self._run.steady else {}
        with self._planted(tree) as place:
            self._read(tree, place)
            if self._run.steady:
                with open_run(place.job(), place.settings()):
                    _require(durable, recorded(place.output))
            if resumes:
                self._run.resume(place)
                require_whole(place)
                _require(durable, recorded(place.output))

    def _read(self, tree: Tree, place: RunPlace) -> None:
        """What readers see was once written whole; and what is said to be finished is."""
        for path, content in tree.items():
            if content is not None and _is_visible(path):
                assert content in self._versions[path], f"{path} holds wrong bytes"
        if (place.output / "_SUCCESS").exists():
            require_finished(place.output)

    def _durable(self, at: int, journal: JournalFiles) -> dict[int, str]:
        """The rows that were recorded at any time before the power goes."""
        moments = [(step, self._run.log.journal_at(step)) for step in range(at)]
        rows: dict[int, str] = {}
        for moment in [*moments, (at, journal)]:
            now = self._recorded_at(*moment)
            rows = now | rows  # what was recorded first is what must be there
        return {row: nonce for row, nonce in rows.items() if row not in self._run.asked_again}

    def _recorded_at(self, at: int, journal: JournalFiles) -> dict[int, str]:
        if (at, journal) not in self._recorded:
            with self._planted(alive(self._run.log, at, journal)) as place:
                self._recorded[at, journal] = recorded(place.output)
        return self._recorded[at, journal]

    @contextmanager
    def _planted(self, tree: Tree) -> Iterator[RunPlace]:
        folder = self._scratch / "cut"
        folder.mkdir()
        try:
            plant(tree, folder)
            if self._run.place.notes.exists():
                shutil.copy(self._run.place.notes, folder / "notes")
            yield self._run.place.moved(folder)
        finally:
            shutil.rmtree(folder)


def _require(durable: dict[int, str], now: dict[int, str]) -> None:
    assert durable.items() <= now.items(), f"lost or changed: {sorted(durable.items() - now.items())}"


def _versions(log: Log) -> dict[str, set[bytes]]:
    """Every content that a file which readers see was ever given on purpose."""
    found: dict[str, set[bytes]] = {}
    for at in range(len(log.steps) + 1):
        for path, content in alive(log, at, JournalFiles()).items():
            if content is not None and _is_visible(path):
                found.setdefault(path, set()).add(content)
    return found


def _is_visible(path: str) -> bool:
    return PART.fullmatch(path) is not None or path in {"out/_manifest.json", "out/_SUCCESS"}


def _digest(tree: Tree) -> str:
    whole = hashlib.sha256()
    for path, content in sorted(tree.items()):
        whole.update(repr((path, content)).encode())
    return whole.hexdigest()
