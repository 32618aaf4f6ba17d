"""Starts of the small run that are killed: each in a fork of one process that has loaded everything, in milliseconds.

`python -m tests.crash.forks` reads an order a line and answers how the start ended. It has one thread, so that forking
it is safe; the forks make their own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.storage.durable import FILES
from tests.crash.calls import Kill, in_place, tapped
from tests.crash.small import RunPlace, Shape, start

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class After:
    """`kill -9` from outside, so many seconds after the start has begun."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Ended:
    """How a start ended: by our kill (in the middle of a write, or not), or by itself with this status."""

    killed: bool
    torn: bool
    status: str


class Forks:
    """The other end of the line."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child

    def start(
        self, place: RunPlace, kill: Kill | After | None = None, *, careless: bool = False, append: bool = False
    ) -> Ended:
        """One start, killed or left alone; a careless one writes its files in place."""
        order = {"folder": str(place.folder), "shape": asdict(place.shape), "careless": careless}
        order |= {"rows": str(place.rows), "changes": {"append": True, "limit": None} if append else {}}
        fate = {} if kill is None else {type(kill).__name__.lower(): asdict(kill)}
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps(order | fate) + "\n")
        self._child.stdin.flush()
        return Ended(**json.loads(self._child.stdout.readline()))


@contextmanager
def forking() -> Iterator[Forks]:
    """A process to fork from, that ends with the block."""
    command = [sys.executable, "-m", "tests.crash.forks"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield Forks(child)
        finally:
            assert child.stdin is not None
            child.stdin.close()


def main() -> None:
    """Serves the orders on stdin until it is closed."""
    with TemporaryDirectory() as folder:
        start(RunPlace(Path(folder)).prepare())  # what is loaded and made now need not be in every fork
    for line in sys.stdin:
        order = json.loads(line)
        place = RunPlace(Path(order["folder"]), Shape(**order["shape"]), Path(order["rows"]))
        kill = Kill(**order["kill"]) if "kill" in order else None
        work = partial(_worked, place, kill, order["changes"], careless=order["careless"])
        ended = _forked(place, work, order.get("after"))
        print(json.dumps(asdict(ended)), flush=True)


def _forked(place: RunPlace, work: Callable[[], str], after: dict[str, Any] | None) -> Ended:
    told = place.folder / "told"
    told.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        try:
            told.write_text(work())
        except BaseException:  # noqa: BLE001 - it is told as it is, and ends the fork
            told.write_text(traceback.format_exc())
        finally:
            os._exit(0)
    if after is not None:
        time.sleep(after["seconds"])
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    text = told.read_text() if told.exists() else ""
    return Ended(killed, killed and text == "tearing", "" if killed else text)


def _worked(place: RunPlace, kill: Kill | None, changes: dict[str, Any], *, careless: bool) -> str:
    if kill is not None and kill.tear is not None:
        (place.folder / "told").write_text("tearing")
    files = tapped(kill) if kill is not None else FILES
    return start(place, in_place(files) if careless else files, **changes).status


if __name__ == "__main__":
    main()
