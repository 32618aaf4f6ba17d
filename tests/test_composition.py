"""The ask of a run as it is composed of a job and its bounds: what stands around what. In virtual time."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import anyio
import pytest
from pydantic import BaseModel

from pipeline.data import Reply, Request, Row, Usage
from pipeline.endpoint.connection import OpenEndpoint
from pipeline.endpoint.prices import Price
from pipeline.faults import BudgetExhausted, InvalidRow, Unavailable, UsageError
from pipeline.job.attachments import image
from pipeline.job.job import Job
from pipeline.policy import Shutdown
from pipeline.policy.compose import RunLimits, budgets_for, compose, prices_for, workers_for
from pipeline.totals.counters import Counters
from pipeline.totals.ledger import Charges
from tests import virtual

anyio_backend = virtual.anyio_backend
pytestmark = pytest.mark.anyio

FLASH = "google/gemini-2.5-flash"
CALL = {"id": "1", "type": "function", "function": {"name": "look_up", "arguments": '{"word": "x"}'}}
USAGE = Usage(input=900, output=400, reasoning=200)
"""1500 tokens a call."""


class Fact(BaseModel):
    word: str


async def look_up(word: str) -> str:
    """What the word means."""
    await anyio.sleep(1.0)
    return word


def completion(content: str | None, *calls: dict[str, Any]) -> Reply:
    message = {"role": "assistant", "content": content} | ({"tool_calls": list(calls)} if calls else {})
    choice = {"index": 0, "finish_reason": "tool_calls" if calls else "stop", "message": message}
    body = {"id": "an-id", "object": "chat.completion", "created": 0, "model": FLASH, "choices": [choice]}
    return Reply(json.dumps(body).encode(), USAGE)


class SlowEndpoint:
    """Does what its script says after 4 s."""

    def __init__(self, *script: Reply | Exception) -> None:
        self.script = script or (completion("fine"),)
        self.requests: list[Request] = []

    async def ask(self, request: Request) -> Reply:
        answer = self.script[min(len(self.requests), len(self.script) - 1)]
        self.requests.append(request)
        await anyio.sleep(4.0)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Setup:
    """A job composed over endpoints, with the budgets of its bounds."""

    def __init__(
        self, job: Job, bounds: RunLimits, *endpoints: SlowEndpoint, weights: tuple[float, ...] = (1.0,)
    ) -> None:
        self.job = job
        self.counters = Counters()
        opened = [
            OpenEndpoint(f"place-{number}", weight, endpoint.ask)
            for number, (endpoint, weight) in enumerate(zip(endpoints, weights, strict=True))
        ]
        self.budgets = budgets_for(job, bounds)
        self.composed = compose(job, bounds, opened, self.budgets, counters=self.counters, stop=Shutdown())

    async def answer(self, ordinal: int = 0, **values: Any) -> Reply:
        return await self.composed.ask(self.job.request(Row(ordinal, {"word": "x", **values})))


def job(**fields: Any) -> Job:
    return Job(name="j", **{"model": FLASH, "user": "{{ word }}"} | fields)


def bounds(**fields: Any) -> RunLimits:
    return RunLimits(**{"adaptive": False} | fields)


async def test_a_budget_that_affords_no_call_stops_before_any() -> None:
    endpoint = SlowEndpoint()
    with pytest.raises(BudgetExhausted, match="USD"):
        await Setup(job(), bounds(budget_usd=1e-9), endpoint).answer()
    assert endpoint.requests == []


async def test_every_budget_counts() -> None:
    """The one in tokens stops the run, whatever the one in dollars still affords."""
    endpoint = SlowEndpoint()
    with pytest.raises(BudgetExhausted, match="tokens"):
        await Setup(job(), bounds(budget_usd=100.0, budget_tokens=400), endpoint).answer()
    assert endpoint.requests == []


async def test_turns_of_tools_are_counted_priced_and_paid_from_the_budget() -> None:
    endpoint = SlowEndpoint(completion(None, CALL), completion(None, CALL), completion("done"))
    setup = Setup(job(tools=[look_up]), bounds(budget_usd=1.0, budget_tokens=10_000), endpoint)
    reply = await setup.answer()
    one = (900 * 0.3 + 600 * 2.5) / 1e6
    assert (setup.counters.requests, len(endpoint.requests)) == (3, 3)
    assert reply.usage == Usage(input=2700, output=1200, reasoning=600)
    assert reply.cost_usd == pytest.approx(3 * one)
    assert [budget.spent for budget in setup.budgets] == pytest.approx([3 * one, 4500])


async def test_a_turn_that_the_budget_does_not_afford_is_not_asked() -> None:
    endpoint = SlowEndpoint(completion(None, CALL))
    with pytest.raises(BudgetExhausted):
        await Setup(job(tools=[look_up]), bounds(budget_tokens=2000), endpoint).answer()
    assert len(endpoint.requests) == 1


async def test_repairs_are_counted_and_paid_from_the_budget() -> None:
    endpoint = SlowEndpoint(completion("no JSON"), completion('{"word": "x"}'))
    setup = Setup(job(schema=Fact, repairs=1), bounds(budget_tokens=10_000), endpoint)
    reply = await setup.answer()
    assert json.loads(reply.body)["choices"][0]["message"]["content"] == '{"word": "x"}'
    assert (setup.counters.requests, setup.budgets[0].spent) == (2, 3000)


async def test_a_repair_that_the_budget_does_not_afford_is_not_asked() -> None:
    endpoint = SlowEndpoint(completion("no JSON"))
    with pytest.raises(BudgetExhausted):
        await Setup(job(schema=Fact, repairs=1), bounds(budget_tokens=2000), endpoint).answer()
    assert len(endpoint.requests) == 1


async def test_without_repairs_an_answer_that_does_not_fit_is_the_answer() -> None:
    endpoint = SlowEndpoint(completion("no JSON"))
    await Setup(job(schema=Fact, repairs=0), bounds(), endpoint).answer()
    assert len(endpoint.requests) == 1


async def test_a_repair_goes_through_the_tools_too() -> None:
    script = [completion(None, CALL), completion("no JSON"), completion(None, CALL), completion('{"word": "x"}')]
    endpoint = SlowEndpoint(*script)
    await Setup(job(schema=Fact, repairs=1, tools=[look_up]), bounds(), endpoint).answer()
    assert len(endpoint.requests) == 4


async def test_the_deadline_of_a_row_bounds_all_its_turns() -> None:
    """Turns of 5 s with their tool, which never end."""
    endpoint = SlowEndpoint(completion(None, CALL))
    setup = Setup(job(tools=[look_up], row_timeout_s=12.0), bounds(), endpoint)
    with pytest.raises(Unavailable, match="row_timeout_s"):
        await setup.answer()
    assert (anyio.current_time(), len(endpoint.requests)) == (12.0, 3)
    assert setup.counters.in_flight == 0


async def test_the_deadline_of_a_row_bounds_all_its_tries_too() -> None:
    endpoint = SlowEndpoint(Unavailable("503", http_status=503))
    with pytest.raises(Unavailable, match="row_timeout_s"):
        await Setup(job(attempts=100, row_timeout_s=20.0), bounds(), endpoint).answer()
    assert anyio.current_time() == 20.0
    assert len(endpoint.requests) > 1


async def test_a_try_that_failed_is_repeated_within_one_turn() -> None:
    """And only the answered call is paid for."""
    endpoint = SlowEndpoint(Unavailable("503", http_status=503), completion("fine"))
    setup = Setup(job(), bounds(budget_tokens=10_000), endpoint)
    await setup.answer()
    assert (setup.counters.requests, setup.counters.retries, setup.budgets[0].spent) == (2, 1, 1500)


async def test_media_are_read_when_the_call_leaves_and_their_faults_fail_the_row_before_it() -> None:
    endpoint = SlowEndpoint()
    setup = Setup(job(user=["{{ word }}", image("photo")]), bounds(), endpoint)
    with pytest.raises(InvalidRow, match="holds no image"):
        await setup.answer(photo=None)
    with pytest.raises(InvalidRow, match="media_root"):
        await setup.answer(photo="a.png")
    await setup.answer(photo=b"\x89PNG\r\n\x1a\n")
    (request,) = endpoint.requests
    assert [part["type"] for part in request.payload["messages"][0]["content"]] == ["text", "image_url"]


async def test_endpoints_get_work_by_their_weight_and_the_row_says_which_answered() -> None:
    endpoints = [SlowEndpoint(), SlowEndpoint()]
    setup = Setup(job(), bounds(concurrency=8), *endpoints, weights=(1.0, 3.0))
    places: Counter[str | None] = Counter()

    async def answer(ordinal: int) -> None:
        places[(await setup.answer(ordinal)).location] += 1

    async with anyio.create_task_group() as tasks:
        for ordinal in range(80):
            tasks.start_soon(answer, ordinal)
    assert places == {f"place-{number}": len(endpoint.requests) for number, endpoint in enumerate(endpoints)}
    assert 2.5 <= len(endpoints[1].requests) / len(endpoints[0].requests) <= 3.5


async def test_an_endpoint_that_fails_leaves_the_work_to_the_other() -> None:
    endpoints = [SlowEndpoint(Unavailable("503", http_status=503)), SlowEndpoint()]
    setup = Setup(job(attempts=20), bounds(concurrency=4), *endpoints, weights=(1.0, 1.0))
    replies: list[Reply] = []

    async def answer(ordinal: int) -> None:
        replies.append(await setup.answer(ordinal))

    async with anyio.create_task_group() as tasks:
        for ordinal in range(40):
            tasks.start_soon(answer, ordinal)
    assert {reply.location for reply in replies} == {"place-1"}
    assert len(endpoints[0].requests) < len(endpoints[1].requests)


async def test_calls_leave_no_faster_than_the_declared_rate_whatever_makes_them() -> None:
    """Turns of tools, at 6 a minute: one every 10 s."""
    times: list[float] = []

    class TimedEndpoint(SlowEndpoint):
        async def ask(self, request: Request) -> Reply:
            times.append(anyio.current_time())
            return await super().ask(request)

    endpoint = TimedEndpoint(*[completion(None, CALL)] * 3, completion("done"))
    await Setup(job(tools=[look_up]), bounds(rpm=6), endpoint).answer()
    assert all(later - earlier >= 10.0 - 1e-9 for earlier, later in pairwise(times))
    assert len(times) == 4


def test_a_budget_in_dollars_needs_the_models_price() -> None:
    with pytest.raises(UsageError, match=r"--prices.*--assume-price.*--budget-tokens"):
        budgets_for(job(model="no-such-model"), RunLimits(budget_usd=1.0))
    assert budgets_for(job(model="no-such-model"), RunLimits(budget_usd=1.0, assumed_price=Price(input=1, output=1)))
    assert budgets_for(job(model=""), RunLimits(budget_usd=1.0))


def test_a_budget_in_tokens_needs_no_price() -> None:
    earlier = Charges(cost_usd=1.0, input_tokens=1, reasoning_tokens=2)
    (budget,) = budgets_for(job(model="no-such-model"), RunLimits(budget_tokens=5), earlier)
    assert (budget.unit, budget.cap, budget.spent) == ("tokens", 5, 3)


def test_an_own_price_is_enough_for_a_budget() -> None:
    mine = Price(input=1.0, output=3.0)
    for own, limits in [
        (job(model="mine", prices={"mine": {"input": 1, "output": 3}}), RunLimits(budget_usd=1.0)),
        (job(model="mine"), RunLimits(budget_usd=1.0, prices={"mine": mine})),
    ]:
        (budget,) = budgets_for(own, limits, Charges(cost_usd=0.25, input_tokens=9))
        assert (budget.unit, budget.cap, budget.spent) == ("USD", 1.0, 0.25)


def test_the_command_lines_prices_come_before_the_jobs() -> None:
    own = job(model="mine", prices={"mine": {"input": 1, "output": 3}, "other": {"input": 9, "output": 9}})
    prices = prices_for(own, RunLimits(prices={"mine": Price(input=5.0, output=5.0)}))
    assert prices.cost("mine", Usage(input=10**6)) == pytest.approx(5.0)
    assert prices.cost("other", Usage(input=10**6)) == pytest.approx(9.0)


def test_without_a_budget_nothing_needs_a_price() -> None:
    assert budgets_for(job(model="no-such-model"), RunLimits()) == []


async def test_a_reply_without_a_known_price_says_so() -> None:
    reply = await Setup(job(model="no-such-model"), bounds(), SlowEndpoint()).answer()
    assert (reply.cost_usd, reply.location) == (None, "place-0")
    paid = await Setup(job(), bounds(), SlowEndpoint(replace(completion("x"), traffic_type="NEW"))).answer()
    assert paid.cost_usd is None


@pytest.mark.parametrize(("concurrency", "workers"), [(1, 64), (64, 128), (512, 1024), (4000, 4512)])
def test_there_are_more_workers_than_calls_in_flight(concurrency: int, workers: int) -> None:
    assert workers_for(concurrency) == workers


class DraggingEndpoint(SlowEndpoint):
    """Answers after 4 s, and the hundred-and-first request only an hour later."""

    came = 0

    async def ask(self, request: Request) -> Reply:
        self.came += 1
        await anyio.sleep(3600.0 if self.came == 101 else 0.0)
        return await super().ask(request)


@pytest.mark.parametrize(("hedge", "requests", "seconds"), [(0.0, 101, 3608.0), (0.03, 102, 13.0)])
async def test_a_call_that_drags_is_asked_again_where_the_bounds_say_so(
    hedge: float, requests: int, seconds: float
) -> None:
    endpoint = DraggingEndpoint()
    setup = Setup(job(), bounds(hedge=hedge, concurrency=100), endpoint)
    async with anyio.create_task_group() as tasks:
        for ordinal in range(100):
            tasks.start_soon(setup.answer, ordinal)
    reply = await setup.answer(100)
    assert endpoint.came == requests
    assert anyio.current_time() <= seconds
    assert reply.usage == (USAGE + USAGE if hedge else USAGE)
