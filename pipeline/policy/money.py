"""What calls cost, and how much they may."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Protocol

import anyio

from pipeline.data import Ask, Reply, Request, Usage
from pipeline.faults import Spent
from pipeline.policy.stop import Stop
from pipeline.prices import Prices

WARNING_SHARE = 0.8
LOOK_UP_S = 0.5


def priced(ask: Ask, prices: Prices, location: str | None = None) -> Ask:
    """Ask, with every reply carrying where it came from and what it cost; None where no price is known."""

    async def priced_ask(request: Request) -> Reply:
        reply = await ask(request)
        asked = request.payload.get("model")
        model = asked if isinstance(asked, str) else reply.model
        return replace(reply, location=location, cost_usd=prices.cost(model, reply.usage, reply.traffic_type))

    return priced_ask


@dataclass(slots=True)
class Purse:
    """An amount that a run may spend, of dollars or tokens, over all its starts.

    What calls in flight will cost is reserved from the mean of those that were answered (from `first_guess` before
    there are any), so that the cap holds without assuming the worst of every call.
    """

    cap: float
    unit: str
    first_guess: float
    spent: float = 0.0
    in_flight: int = 0
    _answers: int = 0
    _of_answers: float = 0.0
    _of_squares: float = 0.0
    _settled: anyio.Event = field(default_factory=anyio.Event)

    @property
    def mean(self) -> float:
        """What a call is expected to cost."""
        return self._of_answers / self._answers if self._answers else self.first_guess

    def affords_another(self) -> bool:
        """Whether one more call, on top of those in flight, is nearly certain to stay within the cap.

        What n calls will cost is their mean n times, and two standard deviations of such a sum.
        """
        calls = self.in_flight + 1
        return self.spent + calls * self.mean + 2.0 * math.sqrt(calls) * self._deviation <= self.cap

    @property
    def _deviation(self) -> float:
        if not self._answers:
            return 0.0
        return math.sqrt(max(0.0, self._of_squares / self._answers - self.mean**2))

    async def reserve(self, stop: Stop) -> None:
        """Returns when a call may leave. Raises `Spent` when none ever will."""
        while not self.affords_another():
            stop.check()
            if not self.in_flight:
                raise self.used_up()
            # Not without looking up: the run may be told to end while the calls in flight take long.
            with anyio.move_on_after(LOOK_UP_S):
                await self._settled.wait()
        self.in_flight += 1

    def used_up(self) -> Spent:
        """What to say when not one more call can be afforded."""
        return Spent(
            f"the budget is used up: {self.spent:.6g} of {self.cap:.6g} {self.unit}, and one more call may "
            f"pass it; run again with a larger one to go on"
        )

    def settle(self, cost: float | None) -> None:
        """A call has ended; None when it cost nothing."""
        self.in_flight -= 1
        if cost is not None:
            self.spent += cost
            self._answers += 1
            self._of_answers += cost
            self._of_squares += cost * cost
        self._settled.set()
        self._settled = anyio.Event()


class Budget(Protocol):
    """An amount that calls are paid from."""

    unit: str

    async def reserve(self, stop: Stop) -> None:
        """Returns when a call may leave. Raises `Halt` when none ever will."""

    def settle(self, cost: float | None) -> None:
        """A call has ended; None when it cost nothing."""


def budgeted(ask: Ask, purse: Budget, stop: Stop) -> Ask:
    """Ask, as long as the purse lasts. Raises `Spent` instead of asking when the rest would pass the cap."""

    async def budgeted_ask(request: Request) -> Reply:
        await purse.reserve(stop)
        cost: float | None = None
        try:
            reply = await ask(request)
            cost = reply.cost_usd if purse.unit == "USD" else _tokens(reply)
        finally:
            purse.settle(cost)
        return reply

    return budgeted_ask


def _tokens(reply: Reply) -> float:
    usage = reply.usage or Usage()
    return usage.input + usage.output + usage.reasoning
