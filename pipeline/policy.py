"""What governs calls: functions from ask to ask. Each adds one idea, and none of them knows the others."""

from __future__ import annotations

import signal
from dataclasses import replace
from typing import NoReturn

import anyio
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type
from tenacity.wait import wait_exponential_jitter

from pipeline.data import Ask, Reply, Request
from pipeline.faults import Fault, Interrupted, Throttled, Unavailable
from pipeline.pace import Gate, Weather
from pipeline.tally import Tally


class Stop:
    """The run is to end: no new row, no new try. Waiting ends at once; calls in flight may finish."""

    def __init__(self) -> None:
        self._event = anyio.Event()
        self.reason: Fault | signal.Signals | None = None

    def request(self, reason: Fault | signal.Signals) -> None:
        """Asks for the end, because of a fault or a signal; the first reason counts."""
        if self.reason is None:
            self.reason = reason
            self._event.set()

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
        if self.requested:
            raise Interrupted("the run is stopping")


def counted(ask: Ask, tally: Tally) -> Ask:
    """Ask, with every call counted: innermost, so that each try is seen."""

    async def counted_ask(request: Request) -> Reply:
        tally.requests += 1
        tally.in_flight += 1
        try:
            return await ask(request)
        except Throttled:
            tally.throttled += 1
            raise
        finally:
            tally.in_flight -= 1

    return counted_ask


def limited(ask: Ask, concurrency: int, *, gate: Gate, stop: Stop, tally: Tally) -> Ask:
    """Ask, with at most `concurrency` calls in flight, waiting out a used-up quota.

    One gate serves all workers: after a 429 nobody asks before the server's own time (or, without one, a growing
    and jittered pause). Whoever waits holds no slot and uses up no attempt. Raises `Interrupted` when the run ends.
    """
    slots = anyio.Semaphore(concurrency, fast_acquire=True)

    async def limited_ask(request: Request) -> Reply:
        while True:
            await _pass(gate, stop, tally)
            async with slots:
                left_at = anyio.current_time()
                if stop.requested or gate.wait(left_at) > 0:
                    continue
                try:
                    reply = await ask(request)
                except Throttled as fault:
                    gate.close(anyio.current_time(), left_at, fault.retry_after)
                else:
                    gate.opened(left_at)
                    return reply

    return limited_ask


def retrying(ask: Ask, *, attempts: int, weather: Weather, stop: Stop, tally: Tally) -> Ask:
    """Ask, up to `attempts` times against `Unavailable`: truncated exponential backoff with jitter (1 s, x2, 60 s).

    While the endpoint fails many rows, each gets as many more tries as chance alone may use up (see `Weather`). A
    server's own `retry_after` is a floor of the wait. The reply carries how many attempts it took; the last fault
    is raised when none succeeds.
    """

    async def retrying_ask(request: Request) -> Reply:
        try:
            reply = await ask(request)
        except Unavailable as fault:
            weather.saw(failed=True)
            return await _again(request, fault)
        weather.saw(failed=False)
        return reply

    async def _again(request: Request, first: Unavailable) -> Reply:
        # The first try is made outside tenacity, whose bookkeeping then costs only those rows that need it.
        tried = 0

        async def _try() -> Reply:
            nonlocal tried
            tried += 1
            if tried == 1:
                raise first
            return await ask(request)

        reply: Reply = await AsyncRetrying(
            retry=retry_if_exception_type(Unavailable),
            stop=lambda state: state.attempt_number >= weather.attempts(attempts),
            wait=_floored_wait,
            sleep=_sleep,
            reraise=True,
        )(_try)
        return replace(reply, attempts=tried)

    async def _sleep(seconds: float) -> None:
        if stop.requested:
            _interrupt()
        tally.retries += 1
        tally.retrying += 1
        try:
            await stop.pause(seconds)
        finally:
            tally.retrying -= 1

    return retrying_ask


_backoff = wait_exponential_jitter(initial=1, exp_base=2, max=60, jitter=1)


def _floored_wait(state: RetryCallState) -> float:
    fault = state.outcome.exception() if state.outcome else None
    floor = fault.retry_after if isinstance(fault, Unavailable) and fault.retry_after else 0.0
    return max(floor, _backoff(state))


async def _pass(gate: Gate, stop: Stop, tally: Tally) -> None:
    """Returns when the gate is open for us."""
    while (wait := gate.wait(anyio.current_time())) > 0:
        tally.waiting += 1
        try:
            await stop.pause(wait)
        finally:
            tally.waiting -= 1
    if stop.requested:
        _interrupt()


def _interrupt() -> NoReturn:
    raise Interrupted("the run is stopping")
