"""Shows the progress of a run on stderr: two lines drawn by tqdm on a terminal, an occasional line elsewhere."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import anyio
from tqdm import tqdm

from pipeline.cli.progress_lines import NARROW, log_line, narrow_line, second_line, top_line
from pipeline.cli.samples import for_the_eye
from pipeline.cli.survey_progress import SurveyDisplay, updated
from pipeline.pace import RecentRate
from pipeline.totals.counters import Counters

if TYPE_CHECKING:
    from pipeline.source.progress import SurveyProgress

REFRESH_S = 0.5
HEARTBEAT_S = 30.0
HEARTBEAT_SHARE = 0.05
USUAL_COLUMNS = 80
"""The assumed width if the terminal does not report one."""

_CLEAR_BELOW = "\x1b[J"


def draws_bar() -> bool:
    """Whether to redraw lines in place: on a terminal that can move its cursor, and not in CI."""
    return sys.stderr.isatty() and not os.environ.get("CI") and os.environ.get("TERM") != "dumb"


def is_coloured() -> bool:
    """Whether to use colours: see https://no-color.org."""
    return not os.environ.get("NO_COLOR")


@contextmanager
def stage(text: str, *, quiet: bool, reading: SurveyProgress | None = None) -> Iterator[None]:
    """Shows on a terminal what is happening before the first call, while the block runs; then removes it.

    With `reading`, it shows how far that survey is; elsewhere than on a terminal as a line from time to time.
    """
    draws = draws_bar()
    if quiet or not (draws or reading is not None):
        yield
        return
    width = _columns() - 1
    show = tqdm.status_printer(sys.stderr) if draws else None
    if show is not None:
        show(f"{text} ..."[:width])
    try:
        with (
            updated(SurveyDisplay(text, reading, time.monotonic(), show, width))
            if reading is not None
            else nullcontext()
        ):
            yield
    finally:
        if show is not None:
            show("")
            sys.stderr.write("\r")
            sys.stderr.flush()


class Progress:
    """Shows a run while it works. Nothing in here can fail the run."""

    def __init__(self, counters: Counters, *, quiet: bool) -> None:
        self._counters = counters
        self._quiet = quiet
        self._bars: _Bars | None = None
        self._above = _AboveBars()

    async def show(self) -> None:
        """Draws until it is cancelled, then closes the bars."""
        if self._quiet:
            return
        with for_the_eye("the progress"):
            if not draws_bar():
                try:
                    await self._beat()
                finally:
                    self._print_notices()  # of the last moment
            try:
                self._bars = _Bars(self._counters)
                with redirect_stdout(self._above) if sys.stdout.isatty() else nullcontext():
                    while True:
                        self._print_notices()
                        self._bars.draw()
                        await anyio.sleep(REFRESH_S)
            finally:
                self.close()

    def say(self, line: str) -> None:
        """Prints a line, above the bars if there are any."""
        tqdm.write(line, file=sys.stderr)

    def close(self) -> None:
        """Stops drawing, with the cursor at the start of a new line. May be called more than once."""
        if self._bars is not None:
            self._print_notices()
            self._above.end_line()
            bars, self._bars = self._bars, None
            bars.close()

    async def _beat(self) -> None:
        """Prints a line every `HEARTBEAT_SHARE` of the rows, and at least every `HEARTBEAT_S` seconds."""
        counters = self._counters
        printed_at, printed = time.monotonic(), counters.done
        rate = RecentRate(printed_at, printed)
        while True:
            await anyio.sleep(REFRESH_S)
            self._print_notices()
            now = time.monotonic()
            rate.add(now, counters.done)
            if now - printed_at < HEARTBEAT_S and counters.done - printed < max(1.0, HEARTBEAT_SHARE * counters.rows):
                continue
            printed_at, printed = now, counters.done
            self.say(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {log_line(counters, rate)}")

    def _print_notices(self) -> None:
        """Prints each notice for the user once."""
        while self._counters.notices:
            self.say(f"note: {self._counters.notices.pop(0)}")


class _AboveBars(io.TextIOBase):
    """Standard output while bars are drawn on the same terminal: prints a job's own output above them, by line."""

    def __init__(self) -> None:
        self._begun = ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            tqdm.write(line, file=sys.stderr)
        return len(text)

    def end_line(self) -> None:
        """Prints what was written after the last line end, as a line."""
        if self._begun:
            self.write("\n")


class _BarLine(tqdm):  # type: ignore[type-arg] # its stubs have it generic, the class is not
    monitor_interval = 0
    """Turns off tqdm's monitor thread: these bars are redrawn by `Progress.show`."""


class _Bars:
    """Two tqdm lines, or one on a narrow terminal.

    Between updates the cursor is at the start of the first line. If the terminal is resized and wraps the lines, all
    of them are below the cursor, and can be cleared from there.
    """

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._began = time.monotonic()
        self._rate = RecentRate(self._began, counters.done)
        self._width = 0
        options: dict[str, Any] = {"file": sys.stderr, "delay": 1e9, "bar_format": "{desc}"}
        self._first = _BarLine(total=counters.rows, initial=counters.done, position=0, leave=True, **options)
        self._second = _BarLine(total=0, position=1, leave=False, **options)
        self._first.delay = self._second.delay = 0  # drawn here, and not by their constructors

    def draw(self) -> None:
        """Draws the current state, at the current width of the terminal."""
        now, width, counters = time.monotonic(), _columns() - 1, self._counters
        if width != self._width:
            self._resize(width)
        self._rate.add(now, counters.done)
        coloured = is_coloured()
        self._first.total, self._first.n = counters.rows, counters.done
        if width + 1 < NARROW:
            self._first.bar_format = "{desc}"
            self._first.set_description_str(narrow_line(counters, self._rate, width, coloured=coloured), refresh=False)
            below = ""
        else:
            self._first.bar_format = top_line(counters, now - self._began, self._rate, width)
            below = second_line(counters, width, coloured=coloured)
        self._second.set_description_str(below, refresh=False)
        self._first.refresh()
        self._second.refresh()
        sys.stderr.write("\r")
        sys.stderr.flush()

    def close(self) -> None:
        """Leaves the first line in its final state, and removes the second."""
        self.draw()
        self._second.close()
        self._first.close()
        sys.stderr.flush()

    def _resize(self, width: int) -> None:
        sys.stderr.write(f"\r{_CLEAR_BELOW}")
        self._width = width
        for line in (self._first, self._second):
            line.ncols, line.nrows = width, 24
            line.sp = line.status_printer(line.fp)  # it forgets the longer line that it would blank out


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or USUAL_COLUMNS
    except (OSError, ValueError):
        return USUAL_COLUMNS
