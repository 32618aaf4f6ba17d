"""A second request where the first is unusually late (Dean and Barroso, The Tail at Scale, CACM 2013)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import anyio
from anyio.lowlevel import checkpoint

from pipeline.counters import Counters
from pipeline.data import Ask, Reply, Request, together
from pipeline.faults import Fault
from pipeline.pace import Call, StragglerDetector


@dataclass(slots=True, eq=False)
class _Attempt:
    """A request on its way. Of a first one: its call, while one runs; of a second one: whether it was ever sent."""

    second: bool = False
    sent: bool = False
    call: Call | None = None
    leaves: anyio.Event | None = None


@dataclass(frozen=True, slots=True)
class _Watched(Request):
    flight: _Attempt = field(default_factory=_Attempt)


def watched(ask: Ask, lateness: StragglerDetector) -> Ask:
    """Ask, and tell `hedged` when a request of its own leaves and how long it takes. Stands where requests are sent.

    Waiting for a turn makes no request late: a second one would only wait behind it.
    """

    async def watched_ask(request: Request) -> Reply:
        if not isinstance(request, _Watched):
            return await ask(request)
        flight = request.flight
        if flight.second:
            await checkpoint()  # its turn may have come because the first was answered: then it ends here
            flight.sent = True
            return await ask(request)
        call = flight.call = lateness.begin(anyio.current_time())
        if flight.leaves:
            flight.leaves.set()
        try:
            return await ask(request)
        finally:
            flight.call = None
            lateness.end(call, anyio.current_time())

    return watched_ask


def hedged(
    ask: Ask, lateness: StragglerDetector, tally: Counters, give_up: Callable[[Reply], object] = lambda _: None
) -> Ask:
    """Ask, and once more when the answer is later than nearly all others were: the first answer wins.

    There is one reply, never two; its latency counts from the first request, and its usage and cost are those of both
    (the one that was given up is taken to have cost as much as the one that won, of which `give_up` is told). A fault
    of one counts only when the other fails, too.
    """

    async def hedged_ask(request: Request) -> Reply:
        replies: list[Reply] = []
        faults: list[Fault] = []
        second: _Attempt | None = None
        since = 0.0

        async def race(flight: _Attempt) -> None:
            try:
                replies.append(
                    await ask(_Watched(request.ordinal, request.payload, request.headers, request.calls, flight))
                )
            except Fault as fault:
                faults.append(fault)
            if replies and len(replies) + len(faults) == 1 and second is not None and second.sent:
                give_up(replies[0])
            if replies or second is None:
                tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            first = _Attempt()
            tasks.start_soon(race, first)
            since = await _late(first, lateness)
            second = _Attempt(second=True)
            tasks.start_soon(race, second)
        both = second is not None and second.sent
        tally.hedged += both
        if not replies:
            raise faults[0]
        if not both:
            return replies[0]
        return _for_both(replies, faults, anyio.current_time() - since)

    return hedged_ask


async def _late(flight: _Attempt, lateness: StragglerDetector) -> float:
    """Waits until the request is late, and is to be hedged; says when it was sent."""
    while True:
        while flight.call is not None:
            call, now = flight.call, anyio.current_time()
            if lateness.may_hedge(call, now):
                lateness.hedge(call)
                return call.began
            await anyio.sleep(lateness.look_again(call, now))
        flight.leaves = anyio.Event()
        await flight.leaves.wait()


def _for_both(replies: Sequence[Reply], faults: Sequence[Fault], latency_s: float) -> Reply:
    """The answer that won, with the usage and cost of both; one that failed has none."""
    reply = replies[0]
    if not faults:
        both = together(replies[-1], reply)
        reply = replace(reply, usage=both.usage, cost_usd=both.cost_usd)
    return replace(reply, latency_s=latency_s)
