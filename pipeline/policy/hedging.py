"""A second request where the first is unusually late."""

from __future__ import annotations

from dataclasses import dataclass, replace

import anyio

from pipeline.data import Ask, Reply, Request
from pipeline.faults import Fault
from pipeline.pace import Latencies
from pipeline.tally import Tally

LATE = 0.98
"""The share of calls that are quicker than what counts as late."""

_LEAST_SEEN = 100


@dataclass(slots=True)
class Share:
    """How many calls were hedged, and how many may be."""

    most: float
    calls: int = 0
    hedged: int = 0

    def allows_another(self) -> bool:
        """Whether one more stays within the share."""
        return self.hedged + 1 <= self.most * self.calls


def hedged(ask: Ask, latencies: Latencies, share: Share, tally: Tally) -> Ask:
    """Ask, and once more when the answer is later than nearly all others were: the first answer wins.

    `latencies` learns all that a row waits, its turn included: when all wait long, none is late.

    There is one reply, never two; its usage and cost are those of both calls (the one that was given up is taken to
    have cost as much as the one that won). A fault of one call counts only when the other fails, too.
    """

    async def hedged_ask(request: Request) -> Reply:
        started = anyio.current_time()
        reply = await asked(request)
        latencies.add(anyio.current_time() - started)
        return reply

    async def asked(request: Request) -> Reply:
        share.calls += 1
        late = latencies.quantile(LATE) if len(latencies) >= _LEAST_SEEN else None
        if late is None:
            return await ask(request)
        replies: list[Reply] = []
        faults: list[Fault] = []

        async def race(scope: anyio.CancelScope) -> None:
            try:
                replies.append(await ask(request))
            except Fault as fault:
                faults.append(fault)
            else:
                scope.cancel()

        second = False
        async with anyio.create_task_group() as tasks:
            first_done = anyio.Event()

            async def first() -> None:
                await race(tasks.cancel_scope)
                first_done.set()

            tasks.start_soon(first)
            with anyio.move_on_after(late):
                await first_done.wait()
            if not first_done.is_set() and share.allows_another():
                second = True
                share.hedged += 1
                tally.hedged += 1
                tasks.start_soon(race, tasks.cancel_scope)
        if not replies:
            raise faults[0]
        return _for_both(replies[0]) if second else replies[0]

    return hedged_ask


def _for_both(reply: Reply) -> Reply:
    cost = None if reply.cost_usd is None else 2 * reply.cost_usd
    return replace(reply, usage=reply.usage + reply.usage, cost_usd=cost)
