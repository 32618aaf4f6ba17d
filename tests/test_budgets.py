"""Budgets: reserved by size, learned from answers, and passed by no more than one call. In virtual time."""

from __future__ import annotations

import math
import random
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import Reply, Request, Usage
from pipeline.endpoint.connection import OpenEndpoint
from pipeline.endpoint.prices import Price
from pipeline.faults import BudgetExhausted, Fault, Halt, Unavailable
from pipeline.job.job import Job
from pipeline.policy import LocalBudget, Shutdown
from pipeline.policy.compose import RunLimits, budgets_for, compose
from pipeline.policy.estimates import ANSWER_TOKENS, BYTES_PER_TOKEN, CallEstimate, Size, size_of, usage_by_size
from pipeline.totals.counters import Counters
from pipeline.totals.ledger import NOTHING, Charges
from tests import virtual

anyio_backend = virtual.anyio_backend
pytestmark = pytest.mark.anyio

JOB = Job(name="j", model="m", user="{{ t }}", attempts=2, repairs=0, prices={"m": {"input": 1.0, "output": 1.0}})
BODY = b'{"choices": [{"index": 0, "finish_reason": "stop", "message": {"content": "x"}}]}'
MILLION = 1e6
"""A token costs a millionth of a dollar, so that both budgets count alike."""


@dataclass
class Market:
    """An endpoint that bills what its script says, and knows what it has billed."""

    cost: Callable[[int], int]
    seconds: Callable[[], float] = lambda: 1.0
    billed: list[int] = field(default_factory=list)
    in_flight: int = 0
    most: int = 0
    reached: dict[int, float] = field(default_factory=dict)
    """When so many were in flight first."""
    usage: Callable[[int], Usage | None] = lambda cost: Usage(input=cost // 2, output=cost - cost // 2)

    async def ask(self, request: Request) -> Reply:
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        self.reached.setdefault(self.in_flight, anyio.current_time())
        try:
            await anyio.sleep(self.seconds())
        finally:
            self.in_flight -= 1
        cost = self.cost(request.ordinal)
        self.billed.append(cost)
        return Reply(BODY, usage=self.usage(cost))


class MemoryLedger:
    """A ledger in memory."""

    def __init__(self) -> None:
        self.charged = self.held = NOTHING

    def charge(self, one: Charges) -> None:
        self.charged += one

    def hold(self, held: Charges) -> None:
        self.held = held

    async def secured(self) -> None:
        pass


@dataclass
class BudgetedStart:
    """A start of a run of so many rows under a budget, and how it ended."""

    market: Market
    bounds: RunLimits
    text: Callable[[int], int] = lambda _: 100
    books: MemoryLedger = field(default_factory=MemoryLedger)
    stop: Shutdown = field(default_factory=Shutdown)
    counters: Counters = field(default_factory=Counters)
    budgets: Sequence[LocalBudget] = ()

    async def run(self, rows: int, first: int = 0) -> None:
        """Asks rows, by twice as many workers as may be in flight."""
        self.budgets = budgets_for(JOB, self.bounds, self.books.charged)
        endpoints = [OpenEndpoint("here", 1.0, self.market.ask)]
        composed = compose(
            JOB, self.bounds, endpoints, self.budgets, counters=self.counters, stop=self.stop, books=self.books
        )
        left = iter(range(first, first + rows))

        async def work() -> None:
            for row in left:
                if self.stop.requested:
                    return
                try:
                    await composed.ask(request(row, self.text(row)))
                except Halt as fault:
                    self.stop.request(fault)
                except Fault:
                    pass

        async with anyio.create_task_group() as tasks:
            for _ in range(2 * self.bounds.concurrency):
                tasks.start_soon(work)


def request(row: int, text: int, **more: object) -> Request:
    return Request(row, {"model": "m", "messages": [{"role": "user", "content": "x" * text}], **more})


def bounds(cap: float, unit: str = "USD", concurrency: int = 64, **more: object) -> RunLimits:
    budget = {"budget_usd": cap / MILLION} if unit == "USD" else {"budget_tokens": cap}
    return RunLimits(concurrency=concurrency, adaptive=False, **budget, **more)  # type: ignore[arg-type] # by name


KINDS: dict[str, Callable[[random.Random], int]] = {
    "uniform": lambda dice: dice.randint(1, 2000),
    "log-normal": lambda dice: 1 + int(500 * math.exp(dice.gauss(0, 1))),
    "heavy": lambda dice: 1 + int(500 * math.exp(dice.gauss(0, 2))),
    "one in a hundred a hundredfold": lambda dice: 100_000 if dice.random() < 0.01 else 1000,
    "one in twenty a hundredfold": lambda dice: 100_000 if dice.random() < 0.05 else 1000,
}


def spent_of(kind: str, unit: str, calls: float, concurrency: int, seed: int) -> tuple[float, float, int]:
    """What a budget for so many mean calls was, what was billed on it over up to four starts, and the dearest call."""
    dice = random.Random(seed)
    costs = [KINDS[kind](dice) for _ in range(1000)]
    cap = max(1.0, calls * sum(costs) / len(costs))
    market = Market(costs.__getitem__, lambda: dice.uniform(0.5, 1.5))
    books = MemoryLedger()
    for _ in range(4):
        start = BudgetedStart(market, bounds(cap, unit, concurrency), books=books)
        kill = dice.uniform(1, 60)

        async def main(start: BudgetedStart = start, kill: float = kill) -> None:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(virtual.at, kill, start.stop.request, signal.SIGTERM)
                await start.run(1000 - len(market.billed), len(market.billed))
                tasks.cancel_scope.cancel()

        virtual.run(main)
    assert books.charged.cost_usd * MILLION == pytest.approx(sum(market.billed))
    return cap, sum(market.billed), max(costs[: len(market.billed)])


@pytest.mark.parametrize("kind", KINDS)
def test_m1_a_budget_is_passed_by_at_most_one_call_whatever_calls_cost_and_however_many_go_at_once(kind: str) -> None:
    """Over stops and resumes. Two hundredfold calls, unforeseen, meet in flight in one of thousands of runs."""
    dice = random.Random(kind)
    passed = []
    for seed in range(24):
        unit, calls = dice.choice(["USD", "tokens"]), dice.choice([1.5, 5, 20, 80, 300])
        cap, billed, dearest = spent_of(kind, unit, calls, dice.choice([1, 4, 16, 64, 256]), seed)
        passed.append(billed > cap + dearest)
    assert sum(passed) <= 1


@settings(max_examples=30)
@given(
    cost=st.integers(1, 10**6),
    quarters=st.integers(2, 240),
    concurrency=st.integers(1, 300),
    unit=st.sampled_from(["USD", "tokens"]),
)
def test_m1_calls_that_all_cost_the_same_pass_a_budget_only_with_the_first(
    cost: int, quarters: int, concurrency: int, unit: str
) -> None:
    """The cap is some quarters of a call, which a float holds exactly: a budget does not end at its last bit."""
    market, cap = Market(lambda _: cost), max(1.0, quarters * cost / 4)
    virtual.run(lambda: BudgetedStart(market, bounds(cap, unit, concurrency)).run(200))
    assert sum(market.billed) <= cap or len(market.billed) == 1


@pytest.mark.parametrize("scale", [10, 1000])
def test_m1_a_call_is_reserved_by_its_own_size(scale: int) -> None:
    """One row in twenty is so many times longer, and costs so many times more."""
    sizes = [1000 * (scale if row % 20 == 19 else 1) for row in range(400)]
    market = Market(lambda row: sizes[row] // 4)
    cap = sum(sizes) / 4 / 3
    virtual.run(lambda: BudgetedStart(market, bounds(cap), sizes.__getitem__).run(400))
    assert cap - 2 * max(sizes) / 4 < sum(market.billed) <= cap


def test_a_large_budget_slows_nobody_down() -> None:
    """64 calls are in flight after seven round trips, with a budget as without."""
    budgeted = Market(lambda _: 1000)
    virtual.run(lambda: BudgetedStart(budgeted, bounds(10_000_000)).run(3000))
    assert budgeted.reached[64] <= 7.0
    assert len(budgeted.billed) == 3000


def test_a_budget_that_is_used_up_says_so_and_is_used_by_ninety_percent() -> None:
    market = Market(lambda _: 1000)
    start = BudgetedStart(market, bounds(1_000_000))
    virtual.run(lambda: start.run(3000))
    assert isinstance(start.stop.reason, BudgetExhausted)
    assert "of 1 USD" in start.stop.reason.message
    assert 900_000 <= sum(market.billed) <= 1_000_000
    assert (start.budgets[0].in_flight, start.budgets[0].reserved, start.books.held) == (0, 0.0, NOTHING)


def test_rows_that_wait_for_a_place_hold_nothing_of_the_budget() -> None:
    market = Market(lambda _: 1000)
    start = BudgetedStart(market, bounds(10_000_000, concurrency=2))
    seen = []

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(start.run, 40)
            for _ in range(10):
                await anyio.sleep(1.0)
                seen.append(start.budgets[0].in_flight)
            tasks.cancel_scope.cancel()

    virtual.run(main)
    assert max(seen) == 2


def test_m2_an_answer_without_a_usage_stops_a_budget_and_says_what_to_do() -> None:
    for unit in ("USD", "tokens"):
        market = Market(lambda _: 1000, usage=lambda _: None)
        start = BudgetedStart(market, bounds(1_000_000, unit))
        virtual.run(partial(start.run, 100))
        assert len(market.billed) == 1
        assert isinstance(start.stop.reason, BudgetExhausted)
        assert "without usage" in start.stop.reason.message
        assert "--assume-price" in start.stop.reason.message
        assert (start.books.charged.calls, start.books.charged.unmetered_calls) == (1, 1)


def test_m2_the_next_start_makes_no_call_before_the_price_is_given() -> None:
    market = Market(lambda _: 1000, usage=lambda _: None)
    books = MemoryLedger()
    for _ in range(3):
        start = BudgetedStart(market, bounds(1_000_000), books=books)
        virtual.run(partial(start.run, 100))
        assert isinstance(start.stop.reason, BudgetExhausted)
    assert len(market.billed) == 1
    assumed = bounds(1_000_000, assumed_price=Price(input=1, output=1))
    start = BudgetedStart(market, assumed, books=books)
    virtual.run(lambda: start.run(100))
    assert start.stop.reason is None
    each = usage_by_size(size_of(request(0, 100)), BODY)
    assert books.charged.tokens == len(market.billed) * (each.input + each.output)
    assert start.budgets[0].spent * MILLION == pytest.approx(books.charged.tokens)


def test_m2_a_row_whose_model_has_no_known_price_is_not_asked_on_a_budget_in_dollars() -> None:
    async def main() -> Fault | None:
        market = Market(lambda _: 1000)
        composed = compose(
            JOB,
            bounds(1000),
            [OpenEndpoint("here", 1.0, market.ask)],
            budgets_for(JOB, bounds(1000)),
            counters=Counters(),
            stop=Shutdown(),
        )
        asked = Request(0, {"model": "another", "messages": []})
        with pytest.raises(BudgetExhausted, match=r"price of another is not known.*--assume-price"):
            await composed.ask(asked)
        assert market.billed == []
        return None

    virtual.run(main)


def test_a_call_that_fails_gives_its_reserve_back_and_one_that_was_paid_counts() -> None:
    """Every try is paid for by itself."""

    class FailingMarket(Market):
        async def ask(self, request: Request) -> Reply:
            reply = await super().ask(request)
            fault = Unavailable("odd")
            if len(self.billed) % 2:
                fault.reply = reply
            raise fault

    market = FailingMarket(lambda _: 1000)
    start = BudgetedStart(market, bounds(1_000_000))
    virtual.run(lambda: start.run(1))
    paid = (len(market.billed) + 1) // 2
    assert (start.books.charged.calls, start.budgets[0].in_flight) == (paid, 0)
    assert start.budgets[0].spent == pytest.approx(paid * 1000 / MILLION)


def test_calls_that_the_end_of_the_run_cuts_off_stay_in_the_books_as_held() -> None:
    market = Market(lambda _: 1000, seconds=lambda: 10.0)
    start = BudgetedStart(market, bounds(100_000_000))

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(start.run, 40)
            await anyio.sleep(25.0)
            assert start.books.held.lost_calls == market.in_flight > 1
            start.stop.request(signal.SIGTERM)
            tasks.cancel_scope.cancel()

    virtual.run(main)
    assert start.books.held.lost_calls > 1
    assert start.books.held.lost_usd == pytest.approx(start.books.held.lost_calls * 1000 / MILLION)
    assert start.budgets[0].in_flight == 0


def test_a_call_that_is_given_up_for_another_is_charged_as_that_one_once() -> None:
    asked: list[int] = []

    def seconds() -> float:
        asked.append(1)
        return 3600.0 if len(asked) == 101 else 1.0

    market = Market(lambda _: 1000, seconds=seconds)
    start = BudgetedStart(market, bounds(10**9, hedge=0.03))
    virtual.run(lambda: start.run(101))
    assert (len(asked), len(market.billed)) == (102, 101)
    assert (start.books.charged.calls, start.books.charged.tokens) == (102, 102_000)
    assert start.budgets[0].spent == pytest.approx(102_000 / MILLION)
    assert (start.budgets[0].in_flight, start.books.held) == (0, NOTHING)


async def test_p2_after_the_stop_nobody_who_waited_for_the_budget_asks() -> None:
    market = Market(lambda _: 1000, seconds=lambda: 10.0)
    start = BudgetedStart(market, bounds(1000))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(virtual.at, 5.0, start.stop.request, signal.SIGINT)
        await start.run(3)
    assert len(market.billed) == 1
    assert start.stop.reason is signal.SIGINT


# Estimates.


def size(text: int = 100, media: int = 0, cap: int | None = None) -> Size:
    return Size("m", text, media, cap)


def test_before_any_answer_a_call_is_taken_for_its_bytes_and_a_usual_answer() -> None:
    assert CallEstimate().of(size(1000)) == Usage(round(1000 / BYTES_PER_TOKEN), round(ANSWER_TOKENS))
    assert [CallEstimate().of(size(1000, cap=cap)).output for cap in (7, 9000)] == [7, 9000]
    assert CallEstimate().of(size(0, media=3)).input > 3 * CallEstimate().of(size(0)).input


sizes = st.builds(size, st.integers(0, 10**6), st.integers(0, 5), st.none() | st.integers(1, 10**5))
usages = st.builds(Usage, st.integers(0, 10**6), st.integers(0, 10**5), st.integers(0, 10**5))


@given(st.lists(st.tuples(sizes, usages), min_size=1, max_size=20))
def test_what_was_seen_of_a_size_is_reserved_for_it_from_then_on(seen: list[tuple[Size, Usage]]) -> None:
    estimate = CallEstimate()
    for one, usage in seen:
        estimate.learn(one, usage)
    for one, usage in seen:
        reserved = estimate.of(one)
        assert reserved.input >= usage.input
        assert reserved.output >= usage.output + usage.reasoning


@given(st.lists(st.tuples(sizes, usages), max_size=20), st.integers(0, 20), sizes)
def test_what_several_processes_have_learned_is_what_one_would_have(
    seen: list[tuple[Size, Usage]], cut: int, asked: Size
) -> None:
    whole, one, other = CallEstimate(), CallEstimate(), CallEstimate()
    for number, (size, usage) in enumerate(seen):
        whole.learn(size, usage)
        (one if number < cut else other).learn(size, usage)
    one.learn_all(other.maxima)
    assert one.of(asked) == whole.of(asked)
    assert not one.learn_all(other.maxima)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.dictionaries(st.sampled_from(["messages", "model", "tools", "max_tokens", "n", "response_format"]), ANY)
    | st.builds(lambda content: {"messages": [{"content": content, "tool_calls": content}]}, ANY)
)
def test_a_request_has_a_size_whatever_a_row_has_put_into_it(payload: dict[str, object]) -> None:
    size = size_of(Request(0, payload))
    assert size.text >= 0
    assert size.media >= 0
    assert size.cap is None or size.cap > 0
