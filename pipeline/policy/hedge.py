"""A second request where the first is unusually late (Dean and Barroso, The Tail at Scale, CACM 2013)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import anyio
from anyio.lowlevel import checkpoint

from pipeline.data import Ask, Reply, Request, together
from pipeline.faults import Fault
from pipeline.pace import StragglerDetector, TimedCall
from pipeline.totals.counters import Counters


@dataclass(slots=True, eq=False)
class _Attempt:
    """One of a row's two requests. Of the first: its call, while it runs; of the second: whether it was sent."""

    second: bool = False
    sent: bool = False
    call: TimedCall | None = None
    leaves: anyio.Event | None = None


@dataclass(frozen=True, slots=True)
class _Watched(Request):
    attempt: _Attempt = field(default_factory=_Attempt)


def watched(ask: Ask, stragglers: StragglerDetector) -> Ask:
    """Ask, and report to `hedged` when its requests leave and how long they take. Wraps the endpoint, below the queue.

    Time in the queue does not make a request late: a second one would only queue behind it.
    """

    async def watched_ask(request: Request) -> Reply:
        if not isinstance(request, _Watched):
            return await ask(request)
        attempt = request.attempt
        if attempt.second:
            await checkpoint()  # if the first answer freed this slot, the cancellation arrives here: nothing is sent
            attempt.sent = True
            return await ask(request)
        call = attempt.call = stragglers.begin(anyio.current_time())
        if attempt.leaves:
            attempt.leaves.set()
        try:
            return await ask(request)
        finally:
            attempt.call = None
            stragglers.end(call, anyio.current_time())

    return watched_ask


def hedged(
    ask: Ask, stragglers: StragglerDetector, counters: Counters, give_up: Callable[[Reply], object] = lambda _: None
) -> Ask:
    """Ask, and once more when the answer is later than nearly all others: the first answer wins.

    Returns one reply, never two. Its latency counts from the first request; its usage and cost cover both: the
    abandoned request is assumed to have cost as much as the winner, with which `give_up` is called. A fault of one
    counts only if the other fails too.
    """

    async def hedged_ask(request: Request) -> Reply:
        replies: list[Reply] = []
        faults: list[Fault] = []
        second: _Attempt | None = None
        since = 0.0

        async def race(attempt: _Attempt) -> None:
            try:
                replies.append(
                    await ask(_Watched(request.ordinal, request.payload, request.headers, request.calls, attempt))
                )
            except Fault as fault:
                faults.append(fault)
            # 1. The first to end was answered, and the other is in attempt: it is abandoned, but may be billed.
            if replies and len(replies) + len(faults) == 1 and second is not None and second.sent:
                give_up(replies[0])
            # 2. Answered, or the only request failed: nothing is left to wait for. After a fault with the other request
            #    on its way, the race goes on.
            if replies or second is None:
                tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            first = _Attempt()
            tasks.start_soon(race, first)
            since = await _late(first, stragglers)
            second = _Attempt(second=True)
            tasks.start_soon(race, second)
        # A second request that never left the queue cost nothing, and is not counted.
        both = second is not None and second.sent
        counters.hedged += both
        if not replies:
            raise faults[0]
        if not both:
            return replies[0]
        return _for_both(replies, faults, anyio.current_time() - since)

    return hedged_ask


async def _late(attempt: _Attempt, stragglers: StragglerDetector) -> float:
    """Waits until the request is late and may be hedged; returns when it was sent. A retried call is timed anew."""
    while True:
        while attempt.call is not None:
            call, now = attempt.call, anyio.current_time()
            if stragglers.may_hedge(call, now):
                stragglers.hedge(call)
                return call.began
            await anyio.sleep(stragglers.look_again(call, now))
        attempt.leaves = anyio.Event()
        await attempt.leaves.wait()


def _for_both(replies: Sequence[Reply], faults: Sequence[Fault], latency_s: float) -> Reply:
    """The winning answer with the usage and cost of both requests; a failed one has none."""
    reply = replies[0]
    if not faults:
        both = together(replies[-1], reply)
        reply = replace(reply, usage=both.usage, cost_usd=both.cost_usd)
    return replace(reply, latency_s=latency_s)
