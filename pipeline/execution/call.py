"""Work in a thread and an event loop of its own, so that it runs beside any other; stopped from any thread.

The loop of the caller, if there is one, is never blocked, and nothing of the caller's process is changed: no signal
handler, no limit, no memory pool.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import anyio

from pipeline.execution.progress_bar import ProgressBar
from pipeline.execution.run import Run
from pipeline.faults import Broken, Halt, Interrupted, UsageError
from pipeline.source.progress import SurveyProgress

T = TypeVar("T")


class StopSwitch:
    """Carries requests to stop into the event loops of runs, from any thread. The first drains, the second cuts off."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests = 0
        self._reason: Halt | signal.Signals | None = None
        self._wake: Callable[[], object] | None = None

    def request(self, reason: Halt | signal.Signals) -> None:
        """Requests the stop. The first reason counts."""
        with self._lock:
            self._requests += 1
            self._reason = self._reason or reason
            if self._wake is not None:
                self._wake()

    async def watch(self, runs: Sequence[Run], cut_off: Callable[[], None]) -> None:
        """Stops runs that share their stop when that is requested, or was before. Runs until it is cancelled."""
        changed = asyncio.Event()
        with self._lock:
            self._wake = partial(asyncio.get_running_loop().call_soon_threadsafe, changed.set)
        try:
            while True:
                if self._reason is not None and not runs[0].context.stop.requested:
                    runs[0].context.stop.request(self._reason)
                if self._requests > 1:
                    for run in runs:
                        with suppress(Broken):
                            run.context.journal.commit()
                    cut_off()
                await changed.wait()
                changed.clear()
        finally:
            with self._lock:
                self._wake = None


@dataclass(frozen=True, slots=True)
class CallSupervisor:
    """Supervises runs for a call from Python; see `pipeline.execution.target.Supervisor`."""

    switch: StopSwitch
    bar: ProgressBar

    def stage(self, text: str, reading: SurveyProgress | None = None) -> AbstractContextManager[None]:  # noqa: ARG002
        """Shows nothing."""
        return nullcontext()

    def note(self, text: str) -> None:
        """Shows a message above the bar, if there is one."""
        self.bar.note(text)

    def prepare(self, concurrency: int) -> None:
        """Leaves the process as it is."""

    async def supervise(self, runs: Sequence[Run], cut_off: Callable[[], None]) -> None:
        """Shows the progress, if wanted, and watches for the stop."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.switch.watch, runs, cut_off)
            tasks.start_soon(self.bar.show, runs[0].context.counters)


class Call(Generic[T]):
    """One piece of work, begun by `start`, whose result is waited for by `wait` or `join`."""

    def __init__(self, work: Callable[[], T], switch: StopSwitch) -> None:
        self._work = work
        self._switch = switch
        self._finished = threading.Event()
        self._then: Callable[[], object] = lambda: None
        self._result: T
        self._error: BaseException | None = None

    def start(self, then: Callable[[], object] = lambda: None) -> None:
        """Begins the work; `then` is called in its thread once it has ended."""
        self._then = then
        # With the caller's context: a notebook finds the cell that printed by it.
        context = copy_context()
        if (sniffio := sys.modules.get("sniffio")) is not None:  # where it is installed, anyio takes the loop from it
            context.run(sniffio.current_async_library_cvar.set, None)
        threading.Thread(target=context.run, args=(self._carry_out,), name="pipeline").start()

    def _carry_out(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:  # noqa: BLE001 - raised again where the result is waited for
            self._error = error
        finally:
            self._finished.set()
            self._then()

    def stop(self, reason: Halt | signal.Signals) -> None:
        """Requests the stop of the work."""
        self._switch.request(reason)

    async def wait(self) -> T:
        """The result. If the waiting task is cancelled, the work is stopped, and the cancellation goes on afterwards.

        The first cancellation drains, the second cuts off calls in flight. Raises what the work raised.
        """
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        then = self._then

        def tell() -> None:
            then()
            with suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(ended.set)

        self._then = tell
        cancelled: asyncio.CancelledError | None = None
        while not self._finished.is_set():
            try:
                await ended.wait()
            except asyncio.CancelledError as error:
                cancelled = error
                self.stop(Interrupted("the call was cancelled"))
        if cancelled is not None:
            raise cancelled
        return self._outcome()

    def join(self) -> T:
        """The result, waited for by this thread. What interrupts it, such as Ctrl-C, stops the work, and is raised.

        The first interrupt drains, the second cuts off calls in flight; the `summary` is that of the stopped start.
        Raises what the work raised.
        """
        interrupt: BaseException | None = None
        while not self._finished.is_set():
            try:
                self._finished.wait()
            except BaseException as error:  # noqa: BLE001 - raised again below
                interrupt = interrupt or error
                self.stop(signal.SIGINT)
        if interrupt is None:
            return self._outcome()
        ended = self._error if isinstance(self._error, Halt) else getattr(self, "_result", None)
        interrupt.summary = getattr(ended, "summary", None)  # type: ignore[attr-defined] # it takes any attribute
        raise interrupt

    def _outcome(self) -> T:
        if self._error is not None:
            raise self._error
        return self._result


def require_asyncio() -> None:
    """Raises `UsageError` where no event loop of asyncio runs, as under trio."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise UsageError(
            "this is awaited on asyncio, which does not run here: call pipeline.run_sync, under trio as in "
            "await trio.to_thread.run_sync(pipeline.run_sync, job)"
        ) from None
