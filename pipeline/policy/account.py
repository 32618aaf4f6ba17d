"""Charges calls: every answered call exactly once, at the innermost wrapper, whatever happens to it later.

The queue asks before a call leaves (`Bid`), and the lane reports what it cost (`charged`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from pipeline.data import Ask, Reply, Request, Usage
from pipeline.endpoint.prices import Prices
from pipeline.faults import BudgetExhausted, Fault
from pipeline.policy.budget import Budget
from pipeline.policy.estimates import CallEstimate, Maxima, Size, size_of, usage_by_size
from pipeline.policy.shutdown import Shutdown
from pipeline.totals.counters import Counters
from pipeline.totals.ledger import Charges

ASSUME = "--assume-price IN,OUT (dollars per million tokens) counts such calls by an assumed price"


class Books(Protocol):
    """Records charges durably: the journal."""

    def charge(self, one: Charges) -> None:
        """Records an answered call."""

    def hold(self, held: Charges) -> None:
        """Records the total reserved for calls in flight."""

    async def secured(self) -> None:
        """Returns once the current reservations are durable."""


@dataclass(slots=True)
class Account:
    """What calls cost, and whether one more may leave: prices, budgets, and the books in which both are recorded."""

    prices: Prices
    counters: Counters
    stop: Shutdown
    budgets: Sequence[Budget] = ()
    books: Books | None = None
    estimate: CallEstimate = field(default_factory=CallEstimate)
    _held: dict[int, Bid] = field(default_factory=dict)
    _held_sums: dict[str, float] = field(default_factory=dict)
    """The sum of their reservations by the unit of the budget: maintained, because thousands may be in flight."""

    def bid(self, request: Request) -> Bid | None:
        """The bid of a call; None without budgets.

        Raises `BudgetExhausted` if there is a budget in dollars and the price is unknown.
        """
        if not self.budgets:
            return None
        size = size_of(request)
        if any(budget.unit == "USD" for budget in self.budgets) and not self.prices.knows(size.model):
            raise BudgetExhausted(
                f"the price of {size.model or 'a row that names no model'} is not known, and a budget in dollars needs "
                f"it: give it in the job's `prices` or with --prices; {ASSUME}"
            )
        return Bid(self, size)

    def amounts(self, size: Size) -> dict[str, float]:
        """What each budget must reserve for a call of this size, by its unit."""
        usage = self.estimate.of(size)
        return {
            budget.unit: self.estimate.factor * (self.prices.cost(size.model, usage) or 0.0)
            if budget.unit == "USD"
            else float(usage.input + usage.output)
            for budget in self.budgets
        }

    def charge(self, request: Request, reply: Reply, location: str | None) -> Reply:
        """Enters an answered call in ledger, progress and budgets; returns the reply with its location and cost."""
        usage, asked = reply.usage, request.payload.get("model")
        model = asked if isinstance(asked, str) else reply.model
        size = size_of(request) if self.budgets or usage is None else None
        estimated = usage_by_size(size, reply.body) if size is not None and usage is None else _NONE
        metered = usage if usage is not None or self.prices.assumed is None else estimated
        cost = self.prices.cost(model, metered, reply.traffic_type)
        one = Charges.of_call(usage, cost, estimated)
        self._enter(one)
        if size is not None:
            self._learn(size, model, metered, cost)
            self._pay(one, replace(reply, usage=metered, cost_usd=cost), self.amounts(size))
        return reply.charged(location, cost)

    def charge_again(self, reply: Reply) -> None:
        """Charges the call abandoned in favour of this reply, assumed to have cost as much."""
        one = Charges.of_call(reply.usage, reply.cost_usd, _NONE)
        self._enter(one)
        self._pay(one, reply, {})

    def hold(self, bid: Bid) -> None:
        """Notes that a call is in flight."""
        self._held[id(bid)] = bid
        self._change_held(bid.amounts)

    def let_go(self, bid: Bid) -> None:
        """The call has ended."""
        if self._held.pop(id(bid), None) is not None:
            self._change_held({unit: -amount for unit, amount in bid.amounts.items()})

    def learn_all(self, maxima: Maxima) -> None:
        """Merges what another process has learned."""
        if self.estimate.learn_all(maxima):
            self._reserve_anew()

    def _enter(self, one: Charges) -> None:
        if self.books is not None:
            self.books.charge(one)
        self._count_tokens(one)
        self.counters.cost_usd += one.cost_usd
        self.counters.unpriced += one.unpriced_calls

    def _count_tokens(self, one: Charges) -> None:
        if not one.unmetered_calls:
            self.counters.input_tokens.observe(one.input_tokens)
            self.counters.output_tokens.observe(one.output_tokens)
            self.counters.reasoning_tokens += one.reasoning_tokens
            self.counters.cached_tokens += one.cached_tokens

    def _learn(self, size: Size, model: str | None, usage: Usage | None, cost: float | None) -> None:
        if usage is None:
            return
        standard = self.prices.cost(model, usage)
        factor = cost / standard if cost is not None and standard else 0.0
        if self.estimate.learn(size, usage, factor):
            self._reserve_anew()

    def _reserve_anew(self) -> None:
        """Calls in flight may cost more than estimated when they left."""
        for bid in self._held.values():
            bid.renew()
        held = [bid.amounts for bid in self._held.values()]
        self._held_sums = {budget.unit: sum(amounts[budget.unit] for amounts in held) for budget in self.budgets}

    def _pay(self, one: Charges, reply: Reply, reserved: Mapping[str, float]) -> None:
        for budget in self.budgets:
            if budget.unit == "USD" and reply.cost_usd is None:
                self._fail(budget, _unpriced(reply))
            elif reply.usage is None:
                self._fail(budget, f"a call was answered without usage; {ASSUME}, and their tokens by their size")
            budget.charge(one.cost_usd if budget.unit == "USD" else one.tokens, reserved.get(budget.unit))

    def _fail(self, budget: Budget, why: str) -> None:
        fault = BudgetExhausted(f"the budget in {budget.unit} cannot be kept: {why}")
        budget.fail(fault)
        self.stop.request(fault)

    def _change_held(self, by: Mapping[str, float]) -> None:
        if not self._held:
            self._held_sums = {}  # drop accumulated rounding errors
        else:
            self._held_sums = {unit: self._held_sums.get(unit, 0.0) + more for unit, more in by.items()}
        if self.books is None:
            return
        known = self._held_sums
        self.books.hold(
            Charges(
                lost_calls=len(self._held),
                lost_usd=max(0.0, known.get("USD", 0.0)),
                lost_tokens=max(0.0, known.get("tokens", 0.0)),
            )
        )


_NONE = Usage()


@dataclass(slots=True, eq=False)
class Bid:
    """A call under a budget: what it asks for before it leaves, and what it reserves while in flight."""

    account: Account
    size: Size
    amounts: Mapping[str, float] = field(default_factory=dict)
    """What is reserved for it, by the unit of the budget."""

    def is_afforded(self) -> bool:
        """Whether it may leave now."""
        amounts = self.account.amounts(self.size)
        return all(budget.affords(amounts[budget.unit]) for budget in self.account.budgets)

    def refusal(self) -> BudgetExhausted | None:
        """Why it never may; None as long as it still could."""
        amounts = self.account.amounts(self.size)
        refusals = (budget.refusal(amounts[budget.unit]) for budget in self.account.budgets)
        return next(filter(None, refusals), None)

    def reserve(self) -> None:
        """The call leaves."""
        self.amounts = self.account.amounts(self.size)
        for budget in self.account.budgets:
            budget.reserve(self.amounts[budget.unit])
        self.account.hold(self)

    async def secured(self) -> None:
        """Returns once the reservation is durable in the books: no crash can then lose track of the call."""
        if self.account.books is not None:
            await self.account.books.secured()

    def release(self, *, is_lost: bool = False) -> None:
        """The call has ended. One cut off by the end of the run stays in the books as lost: it may be billed."""
        for budget in self.account.budgets:
            budget.release(self.amounts[budget.unit])
        if not is_lost:
            self.account.let_go(self)

    def renew(self) -> None:
        """Updates the reservation to what is known now."""
        before, self.amounts = self.amounts, self.account.amounts(self.size)
        for budget in self.account.budgets:
            budget.change(self.amounts[budget.unit], before[budget.unit])


def charged(ask: Ask, account: Account, location: str | None = None) -> Ask:
    """Ask, with every answered call charged; the reply says where it came from and what it cost.

    A fault that was paid for carries its reply (`Fault.reply`), and is charged like an answer.
    """

    async def charged_ask(request: Request) -> Reply:
        try:
            reply = await ask(request)
        except Fault as fault:
            if isinstance(fault.reply, Reply):
                fault.reply = account.charge(request, fault.reply, location)
                if request.calls is not None:
                    request.calls.paid_in_vain(fault.reply)
            raise
        return account.charge(request, reply, location)

    return charged_ask


def _unpriced(reply: Reply) -> str:
    if reply.usage is None:
        return f"a call was answered without usage; {ASSUME}, and their tokens by their size"
    tier = f" at {reply.traffic_type!r}" if reply.traffic_type else ""
    return (
        f"the price of {reply.model or 'the model'}{tier} is not known: give it in the job's `prices` or with "
        f"--prices; {ASSUME}"
    )
