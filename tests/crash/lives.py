"""The life of a run from its first start to its end, with the kills in between; and what was proved by many of them."""

from __future__ import annotations

import errno
import random
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Self

from pipeline.data import PARTS
from tests.crash.calls import FailingCalls, Kill, SystemCall, tapped
from tests.crash.forks import After, Ended, Forks, forking
from tests.crash.small import SHAPE, RunPlace, Shape, nonces_of, recorded, require_whole, start

TEARS = (0.01, 0.5, 0.99)


@dataclass(slots=True)
class LifeFigures:
    """What many lives came to."""

    lives: int = 0
    starts: int = 0
    kills: int = 0
    torn: int = 0
    at_random: int = 0
    rows: int = 0
    answers: int = 0
    trouble: list[str] = field(default_factory=list)

    def __iadd__(self, other: LifeFigures) -> Self:
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self

    def __str__(self) -> str:
        again = self.answers - self.rows
        return (
            f"{self.kills} kills ({self.torn} in the middle of a write, {self.at_random} at random times) of "
            f"{self.starts} starts in {self.lives} lives; {self.rows} rows recorded, {again} asked again; "
            f"{len(self.trouble)} lost, doubled, changed or out of order"
        )


def calls_of_a_start(place: RunPlace) -> list[SystemCall]:
    """Every call on files that one start makes."""
    never = FailingCalls(-1, errno.EIO)
    start(place, tapped(never))
    return never.made


def every_call(calls: int, writes: int) -> list[Kill | After]:
    """A kill at each call, and one after each of several beginnings of each write."""
    whole = (Kill(number) for number in range(calls))
    torn = (Kill(nth, "write", tear) for nth in range(writes) for tear in TEARS)
    return [*chain(whole, torn)]


def with_second(first: Iterable[Kill | After], dice: random.Random) -> Iterator[list[Kill | After]]:
    """The kills of each life: one of `first`, and one that is drawn."""
    for kill in first:
        yield [kill, _drawn(dice)]


def _drawn(dice: random.Random) -> Kill | After:
    if dice.random() < 0.25:
        return After(dice.uniform(0.0, 0.08))
    return Kill(dice.randrange(6), "write", dice.choice(TEARS))


def live_all(
    lives: Iterable[Sequence[Kill | After]], scratch: Path, shape: Shape = SHAPE, *, careless: bool = False
) -> LifeFigures:
    """Lives all lives, two at a time."""
    figures, waiting, turn = LifeFigures(), iter(enumerate(lives)), Lock()

    def work() -> None:
        with forking() as forks:
            while True:
                with turn:
                    number, kills = next(waiting, (0, None))
                if kills is None:
                    return
                _live(forks, RunPlace(scratch / str(number), shape).prepare(), kills, figures, careless=careless)

    with ThreadPoolExecutor(2) as pool:
        for worker in [pool.submit(work) for _ in range(2)]:
            worker.result()
    return figures


def _live(
    forks: Forks, place: RunPlace, kills: Sequence[Kill | After], figures: LifeFigures, *, careless: bool
) -> None:
    """One life, checked after each kill and at its end."""
    known: dict[int, str] = {}
    try:
        for kill in [*kills, None]:
            ended = forks.start(place, kill, careless=careless)
            _count(figures, kill, ended)
            known = kept(place, known)
            if not ended.killed:
                assert ended.status == "complete", ended.status
                break
        require_whole(place)
    except (AssertionError, OSError, ValueError) as error:
        figures.trouble.append(f"{kills}: {error}")
    figures.lives += 1
    figures.rows += place.shape.rows
    figures.answers += sum(len(nonces) for nonces in place.said().values())
    shutil.rmtree(place.folder)


def _count(figures: LifeFigures, kill: Kill | After | None, ended: Ended) -> None:
    figures.starts += 1
    figures.kills += ended.killed
    figures.torn += ended.torn
    figures.at_random += ended.killed and isinstance(kill, After)


def kept(place: RunPlace, known: dict[int, str]) -> dict[int, str]:
    """What is recorded now. Raises `AssertionError` when something that was recorded before is gone or another."""
    now = recorded(place.output)
    assert known.items() <= now.items(), f"recorded before, and gone or changed: {known.items() - now.items()}"
    assert place.seen_kept() <= now.keys(), f"rows lost: {place.seen_kept() - now.keys()}"
    for part in (place.output / PARTS).glob("part-*.parquet"):
        nonces_of(part)  # whatever readers see is whole
    return now
