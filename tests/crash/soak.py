"""The long run: thousands of kills, power cuts and failed calls, of runs of every shape; prints its figures.

`python -m tests.crash.soak --kills 2000 --cuts 10000 --seed 7` does the same crashes as anybody else's.
"""

from __future__ import annotations

import argparse
import errno
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from tests.crash import SEED
from tests.crash.appends import kills_of_an_append
from tests.crash.calls import FailingCalls, Kill
from tests.crash.cuts import CutFigures, Cutter
from tests.crash.forks import After
from tests.crash.lives import LifeFigures, calls_of_a_start, live_all
from tests.crash.small import RunPlace, Shape
from tests.crash.test_full_disk import require_resumed_exactly
from tests.crash.test_power import HISTORIES

RECORD = Path(__file__).parents[1] / "SOAK.md"
MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it


def drawn_shape(dice: random.Random) -> Shape:
    return Shape(
        rows=dice.randint(1, 60),
        chunk_rows=dice.randint(1, 25),
        concurrency=dice.randint(1, 16),
        pause_s=dice.choice([0.0, 0.001, 0.004]),
    )


def drawn_kill(shape: Shape, dice: random.Random) -> Kill | After:
    chunks = -(-shape.rows // shape.chunk_rows)
    match dice.random():
        case draw if draw < 0.6:
            return Kill(dice.randrange(4 + 3 * chunks), "write", dice.random())
        case draw if draw < 0.85:
            return Kill(dice.randrange(35 + 16 * chunks))
    return After(dice.uniform(0.0, 0.02 * chunks + 0.05))


def kills(scratch: Path, most: int, dice: random.Random) -> LifeFigures:
    """At least so many kills, of runs of every shape."""
    total = LifeFigures()
    while total.kills < most and not total.trouble:
        shape = drawn_shape(dice)
        batch = [[drawn_kill(shape, dice) for _ in range(dice.randint(1, 5))] for _ in range(20)]
        total += live_all(batch, scratch, shape)
        _tell("\n".join([f"{total}", *total.trouble]))
    return total


def cuts(scratch: Path, most: int, dice: random.Random) -> CutFigures:
    """So many states after a power cut, of every history."""
    figures = CutFigures()
    for history, share in HISTORIES.items():
        folder = scratch / history.__name__
        Cutter(history(folder), scratch).cut(most * share // sum(HISTORIES.values()), dice, figures)
        _tell("\n".join([f"{figures}", *figures.trouble]))
    return figures


def failures(scratch: Path, dice: random.Random) -> int:
    """Every call of three runs, failing with every error; how many that were."""
    tried = 0
    for turn in range(3):
        shape = drawn_shape(dice)
        calls = len(calls_of_a_start(RunPlace(scratch / f"shape {turn}", shape).prepare()))
        for at in range(calls):
            for number in (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                folder = scratch / "failing"
                require_resumed_exactly(RunPlace(folder, shape).prepare(), FailingCalls(at, number))
                shutil.rmtree(folder)
                tried += 1
        _tell(f"{tried} failed calls")
    return tried


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def report(arguments: argparse.Namespace, scratch: Path) -> Iterator[tuple[str, bool]]:
    """The figures, a line each, and whether all is well."""
    dice, begun = random.Random(arguments.seed), time.monotonic()
    killed = kills(scratch, arguments.kills, dice)
    yield f"P1: {killed}; {time.monotonic() - begun:.0f} s", not killed.trouble
    begun = time.monotonic()
    appended = kills_of_an_append(scratch, None, dice)
    yield f"P16: {appended}; {time.monotonic() - begun:.0f} s", not appended.trouble
    begun = time.monotonic()
    cut = cuts(scratch, arguments.cuts, dice)
    yield f"P3: {cut}; {time.monotonic() - begun:.0f} s", not cut.trouble
    begun = time.monotonic()
    failed = failures(scratch, dice)
    told = f"P4: {failed} calls failed, each stopped its run with the reason, and was resumed exactly"
    yield f"{told}; {time.monotonic() - begun:.0f} s", True


def commit() -> str:
    """The commit that is looked at, with a plus when files differ from it."""
    said = subprocess.run(["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=False)
    return said.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=2000)
    parser.add_argument("--cuts", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--record", action="store_true", help=f"add the figures to {RECORD.name}")
    arguments = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.exists() else None))
    try:
        lines = list(report(arguments, scratch))
    finally:
        shutil.rmtree(scratch)
    head = f"## {datetime.now(UTC):%Y-%m-%d}, commit {commit()}, seed {arguments.seed}"
    text = "\n".join([head, "", *(f"- {line}" for line, _ in lines), ""])
    print(text)
    if arguments.record:
        with RECORD.open("a", encoding="utf-8") as record:
            record.write(f"\n{text}")
    sys.exit(not all(well for _, well in lines))


if __name__ == "__main__":
    main()
