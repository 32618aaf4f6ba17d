"""Shows on stderr how far the survey of an input is: a bar on a terminal, an occasional line elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tqdm import tqdm

from pipeline.cli.progress_lines import NARROW, survey_bar, survey_line
from pipeline.pace import RecentRate

if TYPE_CHECKING:
    from pipeline.source.progress import SurveyProgress

LINE_EVERY_S = 10.0
"""Seconds between two lines where there is no terminal."""

_REFRESH_S = 0.5


class SurveyDisplay:
    """Draws or prints the progress of a survey whenever its `update` is called.

    `show` replaces the line of a terminal; None prints lines. Nothing is shown of a survey that has not begun, or is
    not needed.
    """

    def __init__(
        self, text: str, progress: SurveyProgress, now: float, show: Callable[[str], object] | None, width: int
    ) -> None:
        self._text, self._progress, self._show, self._width = text, progress, show, width
        self._began = self._printed_at = now
        self._rate = RecentRate(now, 0)

    def update(self, now: float) -> None:
        """Draw the line, or print one if it is time."""
        progress = self._progress
        if not progress.is_known:
            return
        self._rate.add(now, progress.done)
        if self._show is not None:
            self._show(self._drawn(now))
        elif now - self._printed_at >= LINE_EVERY_S:
            self._printed_at = now
            line = survey_line(self._text, progress, self._rate)
            tqdm.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}", file=sys.stderr)

    def _drawn(self, now: float) -> str:
        progress = self._progress
        if self._width < NARROW:
            return survey_line(self._text, progress, self._rate)[: self._width]
        bar = survey_bar(self._text, progress, now - self._began, self._rate, self._width)
        return tqdm.format_meter(
            progress.done, progress.total, now - self._began, ncols=self._width, bar_format=bar, ascii=False
        )


@contextmanager
def updated(display: SurveyDisplay) -> Iterator[None]:
    """Updates the display from a thread, twice per second, during the block."""
    is_over = threading.Event()

    def update() -> None:
        while not is_over.wait(_REFRESH_S):
            display.update(time.monotonic())

    thread = threading.Thread(target=update, name="survey progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
