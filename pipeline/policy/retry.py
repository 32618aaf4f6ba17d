"""Retries transient faults, within a retry budget."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial

import anyio
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type
from tenacity.wait import wait_exponential_jitter

from pipeline.data import Ask, Reply, Request
from pipeline.endpoint.log_events import log
from pipeline.faults import Unavailable
from pipeline.pace import FailureRate, RetryBudget
from pipeline.policy.shutdown import Shutdown
from pipeline.totals.counters import Counters

_LOG = logging.getLogger(__name__)


def retrying(
    ask: Ask, *, attempts: int, failure_rate: FailureRate, budget: RetryBudget, stop: Shutdown, counters: Counters
) -> Ask:
    """Ask, up to `attempts` times against `Unavailable`: truncated exponential backoff with jitter (1 s, x2, 60 s).

    While the endpoint fails many rows, each gets more attempts, as many as chance alone may use up (see `FailureRate`);
    all retries together stay within the retry budget. The server's `retry_after` is a lower bound of the wait. The
    reply says how many attempts it took; if none succeeds, the last fault is raised.
    """
    if attempts == 1:
        return ask

    async def retrying_ask(request: Request) -> Reply:
        budget.first_try()
        try:
            reply = await ask(request)
        except Unavailable as fault:
            failure_rate.saw(failed=True)
            return await _again(request, fault)
        failure_rate.saw(failed=False)
        return reply

    async def _again(request: Request, first: Unavailable) -> Reply:
        # The first attempt is made outside tenacity, so that only rows that need a retry pay for its bookkeeping.
        tried = 0

        async def _try() -> Reply:
            nonlocal tried
            tried += 1
            if tried == 1:
                raise first
            return await ask(request)

        reply: Reply = await AsyncRetrying(
            retry=retry_if_exception_type(Unavailable),
            stop=lambda state: state.attempt_number >= _tries(state, failure_rate, attempts),
            wait=_floored_wait,
            sleep=_sleep,
            before_sleep=partial(_log_retry, request.ordinal),
            reraise=True,
        )(_try)
        return replace(reply, attempts=tried)

    async def _sleep(seconds: float) -> None:
        stop.check()
        counters.retries += 1
        counters.retrying += 1
        try:
            await stop.pause(seconds)
            # Only now: a retry that is waiting for its backoff must not hold a part of the budget.
            while (wait := budget.take(anyio.current_time())) > 0:
                await stop.pause(wait)
        finally:
            counters.retrying -= 1

    return retrying_ask


def within(ask: Ask, seconds: float) -> Ask:
    """Ask, with a deadline for the whole row: all its attempts, turns and waits."""

    async def asking_within(request: Request) -> Reply:
        with anyio.move_on_after(seconds):
            return await ask(request)
        raise Unavailable(f"the row was not answered within {seconds:g} s (row_timeout_s)")

    return asking_within


def _tries(state: RetryCallState, failure_rate: FailureRate, attempts: int) -> int:
    """How many attempts the row gets: at most `attempts` once its failure is known to be its own."""
    fault = state.outcome.exception() if state.outcome else None
    # A bad hour of the endpoint gives a row more tries, but not one whose failure is known to be its own.
    return attempts if isinstance(fault, Unavailable) and fault.own else failure_rate.attempts(attempts)


def _log_retry(row: int, state: RetryCallState) -> None:
    fault = state.outcome.exception() if state.outcome else None
    log(
        _LOG,
        "row.retry",
        row=row,
        attempt=state.attempt_number + 1,
        wait_s=state.upcoming_sleep,
        fault=type(fault).__name__,
        http_status=getattr(fault, "http_status", None),
        reason=fault,
    )


_backoff = wait_exponential_jitter(initial=1, exp_base=2, max=60, jitter=1)


def _floored_wait(state: RetryCallState) -> float:
    fault = state.outcome.exception() if state.outcome else None
    floor = fault.retry_after if isinstance(fault, Unavailable) and fault.retry_after else 0.0
    return max(floor, _backoff(state))
