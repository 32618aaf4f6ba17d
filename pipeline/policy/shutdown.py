"""The one graceful end of a run."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import NoReturn

import anyio

from pipeline.faults import Broken, Fault, Interrupted


class Shutdown:
    """The run is to end: no new row, no new try. Waiting ends at once; calls in flight may finish."""

    def __init__(self) -> None:
        self._event = anyio.Event()
        self._then: list[Callable[[], None]] = []
        self.reason: Fault | signal.Signals | None = None

    def request(self, reason: Fault | signal.Signals) -> None:
        """Asks for the end, because of a fault or a signal; the first reason counts, unless something broke."""
        if self.reason is None or isinstance(reason, Broken):
            self.reason = reason
            self._event.set()
            while self._then:
                self._then.pop()()

    def then(self, do: Callable[[], None]) -> None:
        """Does something when the end is asked for, once."""
        if self.requested:
            do()
        else:
            self._then.append(do)

    @property
    def requested(self) -> bool:
        """Whether the run is ending."""
        return self.reason is not None

    async def wait(self) -> None:
        """Returns when the end was asked for."""
        await self._event.wait()

    async def pause(self, seconds: float) -> None:
        """Sleeps. Raises `Interrupted` as soon as the run is ending."""
        with anyio.move_on_after(seconds):
            await self._event.wait()
        self.check()

    def check(self) -> None:
        """Raises `Interrupted` when the run is ending."""
        if self.requested:
            _interrupt()


def _interrupt() -> NoReturn:
    raise Interrupted("the run is stopping")
