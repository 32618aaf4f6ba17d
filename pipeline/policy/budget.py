"""Amounts that calls are paid from.

A budget must hold although nobody knows what a call will cost until it is answered. Three rules see to that:

1. Every call in flight has an amount reserved: the most that calls of its size have cost (see `estimates`). For many of
   them at once that is more than they will cost together, so the mean share of the reserved that calls have used
   counts, and three standard deviations, and one more for the shape of the distribution.
2. Nothing is known before the first answer, and little of what is rare before many. One call leaves first, and no more
   than one above the number of those answered are ever in flight. Calls that cost a hundred times the mean, and of
   which none was seen, may yet meet in flight: beside the reserved there must be room for all but one of as many as
   that is likely for. Of a large budget this takes nothing; the last hundred calls of one are made by few at a time.
3. A call that is alone may leave if what is reserved for it is left.

So a budget is passed, if at all, by one call that nobody could foresee.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from pipeline.faults import BudgetExhausted

WARNING_SHARE = 0.8

SURPRISE = 100.0
"""What a rare call may cost, to the mean."""

CHANCE = 0.0005
"""How likely it may be, at worst, that more surprises meet in flight than there is room for."""


class Budget(Protocol):
    """An amount that calls are paid from, in `unit`: USD or tokens."""

    @property
    def unit(self) -> str:
        """What it is counted in."""

    def affords(self, amount: float) -> bool:
        """Whether one more call may leave now for which this is to be reserved."""

    def refusal(self, amount: float) -> BudgetExhausted | None:
        """Why no such call will ever leave; None as long as one may."""

    def reserve(self, amount: float) -> None:
        """A call leaves."""

    def release(self, amount: float) -> None:
        """It has ended, and was charged before, if it was answered."""

    def charge(self, cost: float, reserved: float | None) -> None:
        """A call was answered, for which `reserved` would have been reserved by all that is known now.

        None for one that was given up, and of which nothing is learned.
        """

    def fail(self, why: BudgetExhausted) -> None:
        """What was paid is not known, so that nothing holds any more."""


@dataclass(slots=True)
class LocalBudget:
    """An amount that a run may spend, of dollars or tokens, over all its starts."""

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
        """It has ended, and was charged before, if it was answered."""
        self.in_flight -= 1
        self.change(0.0, amount)

    def change(self, amount: float, before: float) -> None:
        """Another amount is reserved for a call in flight."""
        if not self.in_flight:  # what rounding left over
            self.reserved = self._squares = 0.0
            return
        self.reserved = max(0.0, self.reserved + amount - before)
        self._squares = max(0.0, self._squares + amount * amount - before * before)

    def charge(self, cost: float, reserved: float | None) -> None:
        """A call was answered, for which `reserved` would have been reserved by all that is known now."""
        self.spent += cost
        if reserved is not None:
            share = min(1.0, cost / reserved) if reserved else 1.0
            self._answered += 1
            self._costs += cost
            self._shares += share
            self._squared_shares += share * share

    def fail(self, why: BudgetExhausted) -> None:
        """What was paid is not known, so that nothing holds any more."""
        self.failure = self.failure or why

    def _need(self, reserved: float, squares: float) -> float:
        """What calls in flight will cost together, nearly certainly: what is reserved for them, or less for many."""
        if not self._answered:
            return reserved
        mean = self._shares / self._answered
        deviation = math.sqrt(max(0.0, self._squared_shares / self._answered - mean * mean))
        return min(reserved, mean * reserved + (3.0 * deviation + 1.0) * math.sqrt(squares))


def likely_surprises(calls: int, answered: int) -> int:
    """How many others of a kind that none of so many answered calls was of may be in flight beside the first of it.

    Whatever its share of all calls: that none was seen and the next meets another in flight is likeliest for a share
    of one in `answered`, and then about `(calls - 1) / (e * answered)`; several are the tail of a Poisson variable.
    """
    expected = (calls - 1) / (math.e * answered)
    others, chance = 0, expected
    while chance > CHANCE:
        others += 1
        chance *= expected / (others + 1)
    return others
