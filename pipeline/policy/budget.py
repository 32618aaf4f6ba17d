"""Budgets: the amounts that calls are paid from.

A budget must hold although the cost of a call is unknown until it is answered. Three rules ensure that:

1. Every call in flight reserves an amount: the most that calls of its size have cost (see `estimates`). For many calls
   at once that exceeds what they will cost together, so what counts is the mean share of reservations that calls have
   used, plus three standard deviations, and one more for the shape of the distribution.
2. Nothing is known before the first answer, and little about rare calls before many. One call leaves first, and at most
   one more than the number answered so far may be in flight. Calls that cost a hundred times the mean, none of them
   seen yet, may coincide in flight: beside the reservations there must be room for as many of them as are likely to,
   less one. In a large budget this is negligible; the last hundred calls of a budget are made a few at a time.
3. A call that is alone in flight may leave if its own reservation fits.

So a budget is exceeded, if at all, by a single call whose cost could not be foreseen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from pipeline.faults import BudgetExhausted

WARNING_SHARE = 0.8
"""The share of a budget at which the user is warned."""

SURPRISE = 100.0
"""What a rare call may cost, as a multiple of the mean."""

CHANCE = 0.0005
"""The accepted probability that more such calls coincide in flight than there is room for."""


class Budget(Protocol):
    """An amount that calls are paid from, in `unit`: USD or tokens."""

    @property
    def unit(self) -> str:
        """USD or tokens."""

    def affords(self, amount: float) -> bool:
        """Whether one more call may leave now for which this is to be reserved."""

    def refusal(self, amount: float) -> BudgetExhausted | None:
        """Why no such call will ever leave; None as long as one may."""

    def reserve(self, amount: float) -> None:
        """A call leaves."""

    def release(self, amount: float) -> None:
        """A call has ended; if it was answered, it has been charged already."""

    def change(self, amount: float, before: float) -> None:
        """The reservation of a call in flight changes from `before` to `amount`."""

    def charge(self, cost: float, reserved: float | None) -> None:
        """A call was answered; `reserved` is what would be reserved for it by what is known now.

        None for an abandoned call, from which nothing is learned.
        """

    def fail(self, why: BudgetExhausted) -> None:
        """What was paid is unknown, so the budget can no longer be kept."""


@dataclass(slots=True)
class LocalBudget:
    """An amount that a run may spend, in dollars or tokens, over all its starts."""

    cap: float
    unit: str
    spent: float = 0.0
    in_flight: int = 0
    reserved: float = 0.0
    failure: BudgetExhausted | None = None
    _squares: float = 0.0
    _answered: int = 0
    _costs: float = 0.0
    _shares: float = 0.0
    _squared_shares: float = 0.0

    def affords(self, amount: float) -> bool:
        """Whether one more call may leave now for which this is to be reserved."""
        if self.failure is not None or self.spent >= self.cap:
            return False
        if not self.in_flight:
            return self.spent + amount <= self.cap
        calls = self.in_flight + 1
        need = self._need(self.reserved + amount, self._squares + amount * amount)
        if calls > 1 + self._answered or self.spent + need > self.cap:
            return False
        surprise = max(0.0, SURPRISE * self._costs / self._answered - amount)
        return self.spent + need + likely_surprises(calls, self._answered) * surprise <= self.cap

    def refusal(self, amount: float) -> BudgetExhausted | None:
        """Why no such call will ever leave; None as long as one may."""
        if self.in_flight or self.affords(amount):
            return None
        return self.failure or BudgetExhausted(
            f"the budget is used up: {self.spent:.6g} of {self.cap:.6g} {self.unit}, and one more call may "
            f"pass it (at up to {amount:.6g}, for its size); run again with a larger one to go on"
        )

    def reserve(self, amount: float) -> None:
        """A call leaves."""
        self.in_flight += 1
        self.change(amount, 0.0)

    def release(self, amount: float) -> None:
        """A call has ended; if it was answered, it has been charged already."""
        self.in_flight -= 1
        self.change(0.0, amount)

    def change(self, amount: float, before: float) -> None:
        """The reservation of a call in flight changes from `before` to `amount`."""
        if not self.in_flight:  # drop rounding errors
            self.reserved = self._squares = 0.0
            return
        self.reserved = max(0.0, self.reserved + amount - before)
        self._squares = max(0.0, self._squares + amount * amount - before * before)

    def charge(self, cost: float, reserved: float | None) -> None:
        """A call was answered; `reserved` is what would be reserved for it now, None for an abandoned call."""
        self.spent += cost
        if reserved is not None:
            share = min(1.0, cost / reserved) if reserved else 1.0
            self._answered += 1
            self._costs += cost
            self._shares += share
            self._squared_shares += share * share

    def fail(self, why: BudgetExhausted) -> None:
        """What was paid is unknown, so the budget can no longer be kept."""
        self.failure = self.failure or why

    def _need(self, reserved: float, squares: float) -> float:
        """A near-certain upper bound on what the calls in flight will cost together: at most their reservations."""
        if not self._answered:
            return reserved
        mean = self._shares / self._answered
        deviation = math.sqrt(max(0.0, self._squared_shares / self._answered - mean * mean))
        return min(reserved, mean * reserved + (3.0 * deviation + 1.0) * math.sqrt(squares))


def likely_surprises(calls: int, answered: int) -> int:
    """How many calls of a kind not yet seen among `answered` calls may be in flight beside the first one of that kind.

    The worst case over all shares of that kind: the probability that none was seen and two then coincide is highest
    for a share of one in `answered`, about `(calls - 1) / (e * answered)`; more than two are a Poisson tail.
    """
    expected = (calls - 1) / (math.e * answered)
    others, chance = 0, expected
    while chance > CHANCE:
        others += 1
        chance *= expected / (others + 1)
    return others
