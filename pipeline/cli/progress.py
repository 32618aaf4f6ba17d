"""Draws the progress of a run on stderr: two lines on a terminal, drawn by tqdm; a line now and then elsewhere."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from datetime import UTC, datetime
from typing import Any

import anyio
from tqdm import tqdm

from pipeline.cli.progress_lines import NARROW, RecentRate, log_line, narrow_line, second_line, top_line
from pipeline.cli.sampling import for_the_eye
from pipeline.counters import Counters

REFRESH_S = 0.5
HEARTBEAT_S = 30.0
HEARTBEAT_SHARE = 0.05
USUAL_COLUMNS = 80
"""Where the terminal does not say how wide it is."""

_CLEAR_BELOW = "\x1b[J"


def draws_bar() -> bool:
    """Whether somebody watches who can see lines change: on a terminal that moves its cursor, and not in CI."""
    return sys.stderr.isatty() and not os.environ.get("CI") and os.environ.get("TERM") != "dumb"


def is_coloured() -> bool:
    """Whether colours are wanted: see https://no-color.org."""
    return not os.environ.get("NO_COLOR")


@contextmanager
def stage(text: str, *, quiet: bool) -> Iterator[None]:
    """Says on a terminal what goes on before the first call, for as long as the block takes; leaves nothing behind."""
    if quiet or not draws_bar():
        yield
        return
    show = tqdm.status_printer(sys.stderr)
    show(f"{text} ..."[: _columns() - 1])
    try:
        yield
    finally:
        show("")
        sys.stderr.write("\r")
        sys.stderr.flush()


class Progress:
    """What is shown while a run works. Nothing in here can fail the run."""

    def __init__(self, tally: Counters, *, quiet: bool) -> None:
        self._tally = tally
        self._quiet = quiet
        self._bars: _Bars | None = None

    async def show(self) -> None:
        """Draws until it is cancelled; closes what it has drawn."""
        if self._quiet:
            return
        with for_the_eye("the progress"):
            if not draws_bar():
                await self._beat()
            try:
                self._bars = _Bars(self._tally)
                with redirect_stdout(_AboveBars()) if sys.stdout.isatty() else nullcontext():
                    while True:
                        self._tell_notes()
                        self._bars.draw()
                        await anyio.sleep(REFRESH_S)
            finally:
                self.close()

    def say(self, line: str) -> None:
        """Prints a line, above the bars where there are some."""
        tqdm.write(line, file=sys.stderr)

    def close(self) -> None:
        """Ends the drawing, with the cursor at the beginning of a new line. May be called again."""
        if self._bars is not None:
            bars, self._bars = self._bars, None
            bars.close()

    async def _beat(self) -> None:
        """A line every `HEARTBEAT_SHARE` of the rows and every `HEARTBEAT_S`."""
        tally = self._tally
        told_at, told = time.monotonic(), tally.done
        rate = RecentRate(told_at, told)
        while True:
            await anyio.sleep(REFRESH_S)
            self._tell_notes()
            now = time.monotonic()
            rate.add(now, tally.done)
            if now - told_at < HEARTBEAT_S and tally.done - told < max(1.0, HEARTBEAT_SHARE * tally.rows):
                continue
            told_at, told = now, tally.done
            self.say(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {log_line(tally, rate)}")

    def _tell_notes(self) -> None:
        """Says once each what the user is to be told."""
        while self._tally.notices:
            self.say(f"note: {self._tally.notices.pop(0)}")


class _AboveBars(io.TextIOBase):
    """What a job's own functions print while bars are drawn on the same terminal: whole lines, above the bars."""

    def __init__(self) -> None:
        self._begun = ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            tqdm.write(line, file=sys.stderr)
        return len(text)


class _Line(tqdm):  # type: ignore[type-arg] # its stubs have it generic, the class is not
    monitor_interval = 0
    """No thread that watches over bars: these are drawn at their own pace."""


class _Bars:
    """Two lines of tqdm's, or one on a narrow terminal.

    Between two drawings the cursor is at the beginning of the first line: when the terminal is resized and wraps what
    is drawn, all of it is below, and is cleared from there.
    """

    def __init__(self, tally: Counters) -> None:
        self._tally = tally
        self._began = time.monotonic()
        self._rate = RecentRate(self._began, tally.done)
        self._width = 0
        options: dict[str, Any] = {"file": sys.stderr, "delay": 1e9, "bar_format": "{desc}"}
        self._first = _Line(total=tally.rows, initial=tally.done, position=0, leave=True, **options)
        self._second = _Line(total=0, position=1, leave=False, **options)
        self._first.delay = self._second.delay = 0  # drawn here, and not by their constructors

    def draw(self) -> None:
        """Draws how things stand, as wide as the terminal is now."""
        now, width, tally = time.monotonic(), _columns() - 1, self._tally
        if width != self._width:
            self._resize(width)
        self._rate.add(now, tally.done)
        coloured = is_coloured()
        self._first.total, self._first.n = tally.rows, tally.done
        if width + 1 < NARROW:
            self._first.bar_format = "{desc}"
            self._first.set_description_str(narrow_line(tally, self._rate, width, coloured=coloured), refresh=False)
            below = ""
        else:
            self._first.bar_format = top_line(tally, now - self._began, self._rate, width)
            below = second_line(tally, width, coloured=coloured)
        self._second.set_description_str(below, refresh=False)
        self._first.refresh()
        self._second.refresh()
        sys.stderr.write("\r")
        sys.stderr.flush()

    def close(self) -> None:
        """Leaves the first line as it stands at the end, and nothing of the second."""
        self.draw()
        self._second.close()
        self._first.close()
        sys.stderr.flush()

    def _resize(self, width: int) -> None:
        sys.stderr.write(f"\r{_CLEAR_BELOW}")
        self._width = width
        for line in (self._first, self._second):
            line.ncols, line.nrows = width, 24
            line.sp = line.status_printer(line.fp)  # it blanks out what was longer before


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or USUAL_COLUMNS
    except (OSError, ValueError):
        return USUAL_COLUMNS
