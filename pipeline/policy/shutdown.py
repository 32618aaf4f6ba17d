"""Graceful shutdown of a run."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from typing import NoReturn

import anyio

from pipeline.endpoint.log_events import log
from pipeline.faults import Broken, Fault, Interrupted

_LOG = logging.getLogger(__name__)


class Shutdown:
    """A request to stop the run: no new row, no new attempt. Waits end at once; calls in flight may finish."""

    def __init__(self) -> None:
        self._event = anyio.Event()
        self._then: list[Callable[[], None]] = []
        self.reason: Fault | signal.Signals | None = None

    def request(self, reason: Fault | signal.Signals) -> None:
        """Requests the stop, because of a fault or a signal. The first reason counts, but `Broken` overrides it."""
        if self.reason is None or isinstance(reason, Broken):
            self.reason = reason
            name = reason.name if isinstance(reason, signal.Signals) else str(reason)
            log(_LOG, "run.stop", reason=name, cause=type(reason).__name__)
            self._event.set()
            while self._then:
                self._then.pop()()

    def then(self, do: Callable[[], None]) -> None:
        """Calls `do` once, when the stop is requested; at once if it already was."""
        if self.requested:
            do()
        else:
            self._then.append(do)

    @property
    def requested(self) -> bool:
        """Whether the run is stopping."""
        return self.reason is not None

    async def wait(self) -> None:
        """Returns once the stop is requested."""
        await self._event.wait()

    async def pause(self, seconds: float) -> None:
        """Sleeps. Raises `Interrupted` as soon as the run is stopping."""
        with anyio.move_on_after(seconds):
            await self._event.wait()
        self.check()

    def check(self) -> None:
        """Raises `Interrupted` if the run is stopping."""
        if self.requested:
            _interrupt()


def _interrupt() -> NoReturn:
    raise Interrupted("the run is stopping")
