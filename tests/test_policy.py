"""What governs calls: the queue and its lanes, tries, hedges, budgets, deadlines and the stop. In virtual time."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import Ask, Reply, Request, Usage
from pipeline.endpoint.prices import Price, Prices
from pipeline.faults import Fault, Interrupted, ProviderUnusable, Refused, Throttled, Unavailable, Unparsable
from pipeline.pace import PROBE_S, AdaptiveRate, FailureRate, Pacer, RetryBudget, StragglerDetector
from pipeline.pace.failure_rate import MOST_ATTEMPTS
from pipeline.policy import (
    Account,
    Dispatcher,
    Limits,
    LocalUpstream,
    Shutdown,
    charged,
    hedged,
    retrying,
    watched,
    within,
)
from pipeline.totals.counters import Counters
from tests import virtual
from tests.benchmarks.hedge import simulate

anyio_backend = virtual.anyio_backend
pytestmark = pytest.mark.anyio

REPLY = Reply(b"{}")
OUTAGE = Unavailable("503", http_status=503)

Script = Callable[[int, int], Reply | Fault]
"""What the endpoint does with a row (its ordinal) at its n-th try, from 1."""


def answering(_ordinal: int, _attempt: int) -> Reply | Fault:
    return REPLY


def failing(fault: Fault, times: float = float("inf")) -> Script:
    """Every row fails so many times, then it is answered."""
    return lambda _, attempt: fault if attempt <= times else REPLY


def failing_first(fault: Fault) -> Script:
    """Only the first try of row 0 fails."""
    return lambda ordinal, attempt: fault if (ordinal, attempt) == (0, 1) else REPLY


@dataclass
class ScriptedEndpoint:
    """A small endpoint: it does what its script says after some seconds, and remembers who came when."""

    script: Script = answering
    seconds: float = 1.0
    came: list[tuple[float, int]] = field(default_factory=list)
    tries: Counter[int] = field(default_factory=Counter)
    in_flight: int = 0
    most_in_flight: int = 0

    async def ask(self, request: Request) -> Reply:
        self.came.append((anyio.current_time(), request.ordinal))
        self.tries[request.ordinal] += 1
        attempt = self.tries[request.ordinal]
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await anyio.sleep(self.seconds)
        finally:
            self.in_flight -= 1
        what = self.script(request.ordinal, attempt)
        if isinstance(what, Fault):
            raise what
        return what

    @property
    def moments(self) -> list[float]:
        return [moment for moment, _ in self.came]

    @property
    def pauses(self) -> list[float]:
        """Seconds between the end of one call and the start of the next."""
        return [later - earlier - self.seconds for earlier, later in pairwise(self.moments)]

    def between(self, start: float, end: float) -> list[float]:
        """When requests came after `start` and before `end`."""
        return [moment for moment in self.moments if start < moment < end]


@dataclass
class Rig:
    """The policies as a run composes them, around one endpoint. The rate is free unless `rate` says otherwise."""

    endpoint: ScriptedEndpoint
    concurrency: int = 64
    attempts: int = 5
    rate: AdaptiveRate | None = None
    give_up_s: float = 1800.0
    budget: RetryBudget = field(default_factory=RetryBudget)
    stop: Shutdown = field(default_factory=Shutdown)
    counters: Counters = field(default_factory=Counters)
    dispatcher: Dispatcher = field(init=False)
    ask: Ask = field(init=False)

    def __post_init__(self) -> None:
        self.limits = Limits(self.concurrency)
        self.lane = LocalUpstream("here", self.endpoint.ask, rate=self.rate)
        self.dispatcher = Dispatcher(
            [self.lane], self.limits, stop=self.stop, counters=self.counters, give_up_s=self.give_up_s
        )
        self.ask = retrying(
            self.dispatcher.ask,
            attempts=self.attempts,
            failure_rate=FailureRate(),
            budget=self.budget,
            stop=self.stop,
            counters=self.counters,
        )


async def one(ask: Ask, ordinal: int = 0) -> Reply:
    return await ask(Request(ordinal, {}))


async def asked(ask: Ask, rows: int, workers: int | None = None) -> dict[int, Reply | Fault]:
    """What became of the rows, taken in order by so many workers (one for each row, unless told otherwise)."""
    results: dict[int, Reply | Fault] = {}
    ordinals = iter(range(rows))

    async def work(ordinals: Iterator[int]) -> None:
        for ordinal in ordinals:
            try:
                results[ordinal] = await one(ask, ordinal)
            except Fault as fault:
                results[ordinal] = fault

    async with anyio.create_task_group() as tasks:
        for _ in range(workers or rows):
            tasks.start_soon(work, ordinals)
    return results


def faults(results: dict[int, Reply | Fault]) -> dict[int, Fault]:
    return {ordinal: result for ordinal, result in results.items() if isinstance(result, Fault)}


# The queue.


@settings(max_examples=40, deadline=None)
@given(
    concurrency=st.integers(1, 9),
    rows=st.integers(1, 40),
    outcomes=st.lists(st.sampled_from([REPLY, Refused("no"), Throttled("wait", retry_after=3.0)]), min_size=1),
)
def test_never_more_than_the_limit_are_in_flight_and_the_limit_is_used(
    concurrency: int, rows: int, outcomes: list[Reply | Fault]
) -> None:
    endpoint = ScriptedEndpoint(lambda row, attempt: outcomes[row % len(outcomes)] if attempt == 1 else REPLY)
    rig = Rig(endpoint, concurrency)
    virtual.run(lambda: asked(rig.ask, rows))
    assert endpoint.most_in_flight == min(concurrency, rows)


async def test_a_hundred_rows_of_a_minute_ten_at_a_time_take_ten_minutes() -> None:
    rig = Rig(ScriptedEndpoint(seconds=60.0), concurrency=10)
    await asked(rig.ask, 100)
    assert anyio.current_time() == 600.0


async def test_first_come_first_served() -> None:
    rig = Rig(ScriptedEndpoint(), concurrency=1)
    async with anyio.create_task_group() as tasks:
        for ordinal in range(20):
            tasks.start_soon(one, rig.ask, ordinal)
            await anyio.sleep(0.001)
    assert [row for _, row in rig.endpoint.came] == list(range(20))


async def test_the_bound_may_be_changed_while_the_run_works() -> None:
    rig = Rig(ScriptedEndpoint(), concurrency=2)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(virtual.at, 9.5, setattr, rig.limits, "concurrency", 8)
        tasks.start_soon(virtual.at, 19.5, setattr, rig.limits, "concurrency", 1)
        tasks.start_soon(asked, rig.ask, 120)
    assert len(rig.endpoint.between(3.5, 8.5)) == 10
    assert len(rig.endpoint.between(13.5, 18.5)) == 40
    assert len(rig.endpoint.between(23.5, 28.5)) == 5


async def test_a_cancelled_call_gives_its_slot_back() -> None:
    rig = Rig(ScriptedEndpoint(seconds=100.0), concurrency=1)
    with anyio.move_on_after(5.0):
        await one(rig.ask)
    await one(rig.ask, 1)
    assert rig.endpoint.moments == [0.0, 5.0]
    assert rig.counters.in_flight == 0


async def test_all_who_may_leave_do_so_together() -> None:
    """Were each to wake the next, only one would leave in a round of the loop."""
    rig = Rig(ScriptedEndpoint(seconds=100.0), concurrency=1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(asked, rig.ask, 200)
        await anyio.sleep(0.5)
        rig.limits.concurrency = 200
        await anyio.sleep(0.5)
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        assert rig.endpoint.in_flight == 200
        tasks.cancel_scope.cancel()


async def test_a_turn_that_comes_as_its_row_is_given_up_goes_to_the_next() -> None:
    given_up = anyio.CancelScope()

    def script(row: int, _attempt: int) -> Reply:
        if row == 0:
            given_up.cancel()  # and then the slot is free
        return REPLY

    rig = Rig(ScriptedEndpoint(script), concurrency=1)

    async def giving_up() -> None:
        with given_up:
            await one(rig.ask, 1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one, rig.ask, 0)
        await anyio.sleep(0.1)
        tasks.start_soon(giving_up)
        await anyio.sleep(0.1)
        tasks.start_soon(one, rig.ask, 2)
    assert [row for _, row in rig.endpoint.came] == [0, 2]
    assert (rig.counters.in_flight, rig.counters.waiting, rig.lane.in_flight, rig.counters.requests) == (0, 0, 0, 2)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.integers(0, 7), st.integers(0, 9)))
def test_whoever_gives_up_waiting_the_others_leave_when_it_is_their_turn(given_up: dict[int, int]) -> None:
    """Also when it is the one that looks at the clock for all."""
    rig = Rig(ScriptedEndpoint())
    rig.limits.requests = Pacer(30.0)  # at 0, 2, 4 ...

    async def ask(row: int) -> None:
        await anyio.sleep(0.01 * row)  # so that they come in order
        with anyio.move_on_at(2.0 * given_up[row] + 1.0 if row in given_up else 1000.0):
            await one(rig.ask, row)

    async def work() -> None:
        async with anyio.create_task_group() as tasks:
            for row in range(8):
                tasks.start_soon(ask, row)

    expected: list[tuple[float, int]] = []
    for row in range(8):
        moment = 2.0 * len(expected)
        if row not in given_up or moment < 2.0 * given_up[row] + 1.0:
            expected.append((moment, row))
    virtual.run(work)
    assert [row for _, row in rig.endpoint.came] == [row for _, row in expected]
    assert rig.endpoint.moments == pytest.approx([moment for moment, _ in expected])


async def test_latencies_are_those_of_the_calls_without_their_time_in_the_queue() -> None:
    rig = Rig(ScriptedEndpoint(seconds=2.0), concurrency=1)
    await asked(rig.ask, 10)
    assert (len(rig.dispatcher.latencies), rig.dispatcher.latencies.quantile(1.0)) == (10, 2.0)


# Quota.


async def test_h1_after_a_429_with_a_time_nobody_asks_before_it_and_no_attempt_is_used() -> None:
    rig = Rig(ScriptedEndpoint(failing_first(Throttled("429", retry_after=30.0))), concurrency=4)
    results = await asked(rig.ask, 40)
    assert not rig.endpoint.between(1.0, 31.0)
    assert {reply.attempts for reply in results.values() if isinstance(reply, Reply)} == {1}
    assert len(results) == 40
    assert (rig.counters.throttled, rig.counters.retries) == (1, 0)


async def test_h1_a_row_may_be_throttled_any_number_of_times_without_failing() -> None:
    rig = Rig(ScriptedEndpoint(failing(Throttled("429", retry_after=1.0), times=50)), attempts=1)
    assert (await one(rig.ask)).attempts == 1
    assert rig.counters.throttled == 50


@settings(max_examples=40, deadline=None)
@given(
    throttled=st.dictionaries(st.integers(0, 59), st.sampled_from([None, 0.0, 0.2, 5.0, 119.0]), min_size=1),
    concurrency=st.integers(1, 20),
    seconds=st.sampled_from([0.0, 0.3, 2.0]),
    adaptive=st.booleans(),
)
def test_h1_no_request_leaves_before_any_time_that_the_server_has_named(
    throttled: dict[int, float | None],
    concurrency: int,
    seconds: float,
    adaptive: bool,  # noqa: FBT001 - hypothesis gives it
) -> None:
    closed: list[tuple[float, float]] = []

    def script(ordinal: int, attempt: int) -> Reply | Fault:
        if attempt == 1 and ordinal in throttled:
            hint = throttled[ordinal]
            closed.append((anyio.current_time(), anyio.current_time() + (hint or 0.0)))
            return Throttled("429", retry_after=hint)
        return REPLY

    rig = Rig(ScriptedEndpoint(script, seconds), concurrency, rate=AdaptiveRate() if adaptive else None)
    results = virtual.run(lambda: asked(rig.ask, 60, workers=30))
    assert not faults(results)
    for told_at, not_before in closed:
        assert not rig.endpoint.between(told_at, not_before)


async def test_h2_a_429_without_a_time_makes_its_row_wait_a_moment() -> None:
    rig = Rig(ScriptedEndpoint(failing(Throttled("429"), times=4)))
    await one(rig.ask)
    assert all(pause >= 0.25 for pause in rig.endpoint.pauses)
    assert rig.endpoint.pauses == sorted(rig.endpoint.pauses) or max(rig.endpoint.pauses) <= 30.0


@pytest.mark.parametrize("seconds", [0.2, 1.0])
async def test_h2_a_quota_without_any_hint_is_found_and_nothing_is_lost(seconds: float) -> None:
    granted: Counter[int] = Counter()

    def quota(_ordinal: int, _attempt: int) -> Reply | Fault:
        second = int(anyio.current_time())
        granted[second] += 1
        return REPLY if granted[second] <= 40 else Throttled("Resource exhausted")

    rig = Rig(ScriptedEndpoint(quota, seconds), concurrency=200, rate=AdaptiveRate())
    results = await asked(rig.ask, 2000, workers=400)
    assert not faults(results)
    assert rig.counters.throttled <= 0.15 * 2000
    assert anyio.current_time() <= 1.35 * 2000 / 40


async def test_who_waits_for_quota_holds_no_slot() -> None:
    rig = Rig(ScriptedEndpoint(failing_first(Throttled("429"))), concurrency=1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one, rig.ask, 0)
        await anyio.sleep(0.5)
        tasks.start_soon(one, rig.ask, 1)
        await anyio.sleep(0.6)
        assert rig.counters.in_flight == 1
    assert rig.endpoint.came[1] == (1.0, 1)
    assert rig.counters.waiting == 0


async def test_a_declared_number_of_requests_a_minute_is_kept() -> None:
    rig = Rig(ScriptedEndpoint())
    rig.limits.requests = Pacer(30.0)
    await asked(rig.ask, 61)
    assert rig.endpoint.moments == pytest.approx([2.0 * number for number in range(61)])


async def test_a_declared_number_of_tokens_a_minute_is_kept() -> None:
    rig = Rig(ScriptedEndpoint(lambda *_: Reply(b"{}", usage=Usage(input=800, output=150, reasoning=50))))
    rig.limits.tokens = Pacer(60_000.0)
    await asked(rig.ask, 200)
    assert 50 <= len(rig.endpoint.between(60.0, 120.0)) <= 61


# Tries.


async def test_a_first_answer_is_one_attempt() -> None:
    rig = Rig(ScriptedEndpoint())
    assert await one(rig.ask) == REPLY
    assert rig.counters.retries == 0


@pytest.mark.parametrize("times", [1, 2, 4])
async def test_attempts_are_counted_in_the_reply(times: int) -> None:
    rig = Rig(ScriptedEndpoint(failing(OUTAGE, times)))
    assert (await one(rig.ask)).attempts == times + 1
    assert rig.counters.retries == times


async def test_the_last_fault_is_raised_when_no_try_succeeds() -> None:
    rig = Rig(ScriptedEndpoint(lambda _, attempt: Unavailable(f"try {attempt}", http_status=503)))
    results = await asked(rig.ask, 1)
    assert repr(results[0]) == "Unavailable('try 5', http_status=503)"
    assert rig.endpoint.tries[0] == 5


@pytest.mark.parametrize("fault", [Refused("400"), Unparsable("too large"), ProviderUnusable("403")])
async def test_faults_that_another_try_would_not_mend_are_raised_at_once(fault: Fault) -> None:
    rig = Rig(ScriptedEndpoint(failing(fault)))
    results = await asked(rig.ask, 1)
    assert results[0] is fault
    assert rig.endpoint.moments == [0.0]


async def test_a_fault_of_another_kind_at_a_later_try_ends_the_row_there() -> None:
    refused = Refused("400")
    rig = Rig(ScriptedEndpoint(lambda _, attempt: OUTAGE if attempt == 1 else refused))
    results = await asked(rig.ask, 1)
    assert results[0] is refused
    assert rig.endpoint.tries[0] == 2


async def test_pauses_double_from_one_second_to_a_minute_with_a_second_of_jitter() -> None:
    rig = Rig(ScriptedEndpoint(failing(OUTAGE)), attempts=10)
    await asked(rig.ask, 1)
    expected = [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert len(rig.endpoint.pauses) == len(expected)
    for pause, least in zip(rig.endpoint.pauses, expected, strict=True):
        assert least <= round(pause, 6) <= min(least + 1, 60)


async def test_rows_that_fail_together_do_not_return_together() -> None:
    rig = Rig(ScriptedEndpoint(failing(OUTAGE, times=1)))
    await asked(rig.ask, 9)
    again = [moment for moment in rig.endpoint.moments if moment > 0.0]
    assert len(again) == len(set(again)) == 9


@settings(max_examples=30, deadline=None)
@given(hints=st.lists(st.none() | st.floats(0.0, 120.0), min_size=4, max_size=4))
def test_a_servers_own_time_is_a_floor_of_the_pause_and_never_shortens_it(hints: list[float | None]) -> None:
    def script(_: int, attempt: int) -> Reply | Fault:
        return Unavailable("503", retry_after=hints[attempt - 1]) if attempt <= 4 else REPLY

    rig = Rig(ScriptedEndpoint(script))
    virtual.run(lambda: one(rig.ask))
    for pause, hint, least in zip(rig.endpoint.pauses, hints, (1.0, 2.0, 4.0, 8.0), strict=True):
        assert round(pause, 6) >= round(max(hint or 0.0, least), 6)


async def test_a_row_that_sleeps_before_its_next_try_holds_no_slot() -> None:
    rig = Rig(ScriptedEndpoint(failing_first(OUTAGE)), concurrency=1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one, rig.ask, 0)
        await anyio.sleep(0.5)
        tasks.start_soon(one, rig.ask, 1)
        await anyio.sleep(1.0)
        assert (rig.counters.retrying, rig.counters.in_flight) == (1, 1)
    assert rig.endpoint.came[1] == (1.0, 1)
    assert rig.counters.retrying == 0


async def test_retries_wait_for_their_budget() -> None:
    rig = Rig(ScriptedEndpoint(failing(OUTAGE, times=2)), budget=RetryBudget(share=0.0, per_second=0.05, most=1.0))
    await one(rig.ask)
    assert rig.endpoint.pauses[1] >= 18.0


async def test_a_deadline_of_the_row_ends_it_whatever_it_waits_for() -> None:
    rig = Rig(ScriptedEndpoint(failing(Throttled("429", retry_after=60.0))))
    with pytest.raises(Unavailable, match="not answered within 100 s"):
        await one(within(rig.ask, 100.0))
    assert anyio.current_time() == 100.0
    assert (rig.counters.in_flight, rig.counters.waiting) == (0, 0)
    assert await one(within(ScriptedEndpoint().ask, 100.0)) == REPLY


# Failure rate.


def _dice(share: float, seed: int) -> Script:
    """Fails so many calls, by dice that depend on nothing but the row and its try."""

    def script(ordinal: int, attempt: int) -> Reply | Fault:
        return OUTAGE if Random(f"{seed}/{ordinal}/{attempt}").random() < share else REPLY

    return script


@pytest.mark.parametrize("seed", [1, 2])
async def test_h3_with_30_percent_of_503_no_row_is_lost_and_no_request_wasted(seed: int) -> None:
    rig = Rig(ScriptedEndpoint(_dice(0.3, seed)), rate=AdaptiveRate())
    results = await asked(rig.ask, 2000, workers=128)
    assert not faults(results)
    assert rig.counters.requests == len(rig.endpoint.came) <= 2000 / (1 - 0.3) * 1.05
    assert max(rig.endpoint.tries.values()) > rig.attempts, "otherwise five tries would have been enough"


@pytest.mark.parametrize("poison", [0, 17, 299])
async def test_h11_a_poison_row_among_good_ones_gets_its_attempts_and_no_more(poison: int) -> None:
    rig = Rig(ScriptedEndpoint(lambda row, _: OUTAGE if row == poison else REPLY))
    results = await asked(rig.ask, 300, workers=16)
    assert faults(results).keys() == {poison}
    assert rig.endpoint.tries[poison] == rig.attempts
    assert rig.counters.requests == 299 + rig.attempts


async def test_h11_a_few_poison_rows_among_many_good_ones_are_no_bad_hour_and_no_outage() -> None:
    rig = Rig(ScriptedEndpoint(lambda row, _: OUTAGE if row % 50 == 0 else REPLY))
    results = await asked(rig.ask, 1000, workers=16)
    assert len(faults(results)) == 20
    assert {rig.endpoint.tries[row] for row in faults(results)} == {rig.attempts}


async def test_h11_the_tries_of_rows_that_all_fail_are_bounded() -> None:
    rig = Rig(ScriptedEndpoint(failing(OUTAGE)))
    results = await asked(rig.ask, 9)
    assert len(faults(results)) == 9
    assert max(rig.endpoint.tries.values()) <= MOST_ATTEMPTS


# Outages.


@pytest.mark.parametrize("adaptive", [False, True])
async def test_h4_an_outage_of_ten_minutes_loses_no_row_and_is_only_probed(adaptive: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """At most a probe each 15 seconds while it lasts; full rate within a minute after its end; nothing failed."""

    def outage(_ordinal: int, _attempt: int) -> Reply | Fault:
        return OUTAGE if 60.0 <= anyio.current_time() < 660.0 else REPLY

    rig = Rig(ScriptedEndpoint(outage), concurrency=16, rate=AdaptiveRate() if adaptive else None)
    results = await asked(rig.ask, 3000, workers=32)
    assert not faults(results)
    assert len(rig.endpoint.between(80.0, 660.0)) <= 580.0 / PROBE_S + 1
    assert len(rig.endpoint.between(719.5, 729.5)) >= 0.9 * 160


@pytest.mark.parametrize("concurrency", [1, 2, 4])
async def test_h4_an_outage_loses_no_row_however_few_are_asked_at_once(concurrency: int) -> None:
    def outage(_ordinal: int, _attempt: int) -> Reply | Fault:
        return OUTAGE if 10.0 <= anyio.current_time() < 610.0 else REPLY

    rig = Rig(ScriptedEndpoint(outage), concurrency=concurrency)
    assert not faults(await asked(rig.ask, 200, workers=2 * concurrency))


async def test_h11_rows_that_the_server_fails_by_itself_end_even_when_there_are_no_others() -> None:
    """A 500 is the server's word on a row: an input of nothing but such rows fails by rows, not as an outage."""
    rig = Rig(ScriptedEndpoint(failing(Unavailable("500", http_status=500))), concurrency=16)
    results = await asked(rig.ask, 12)
    assert {type(fault) for fault in faults(results).values()} == {Unavailable}
    assert len(results) == 12


async def test_h8_answers_that_came_and_are_no_good_are_no_outage() -> None:
    spoilt = Unavailable("the endpoint failed to make an answer")
    spoilt.reply = REPLY
    rig = Rig(ScriptedEndpoint(failing(spoilt)), concurrency=16)
    results = await asked(rig.ask, 12)
    assert list(results.values()) == [spoilt] * 12
    assert set(rig.endpoint.tries.values()) == {rig.attempts}


async def test_a_row_that_is_throttled_forever_while_others_are_answered_ends() -> None:
    rig = Rig(ScriptedEndpoint(lambda row, _: Throttled("429") if row == 7 else REPLY), concurrency=4)
    results = await asked(rig.ask, 6000, workers=8)
    assert faults(results).keys() == {7}


async def test_a_quota_of_nothing_stops_the_run_after_the_time_that_was_given() -> None:
    rig = Rig(ScriptedEndpoint(failing(Throttled("429"))), concurrency=4, give_up_s=300.0)
    assert {type(result) for result in (await asked(rig.ask, 4)).values()} == {ProviderUnusable}


async def test_h4_rows_that_wait_for_the_end_of_an_outage_use_up_no_attempt() -> None:
    rig = Rig(ScriptedEndpoint(lambda *_: OUTAGE if anyio.current_time() < 600.0 else REPLY), concurrency=16)
    results = await asked(rig.ask, 16)
    assert not faults(results)
    assert max(reply.attempts for reply in results.values() if isinstance(reply, Reply)) <= rig.attempts
    assert rig.counters.waits_for is None


async def test_h4_a_refusal_shows_as_well_as_an_answer_that_the_outage_is_over() -> None:
    refused = Refused("400")
    rig = Rig(ScriptedEndpoint(lambda *_: OUTAGE if anyio.current_time() < 100.0 else refused), concurrency=16)
    assert list((await asked(rig.ask, 16)).values()) == [refused] * 16
    assert anyio.current_time() <= 100.0 + PROBE_S + 5.0


def test_h4_after_an_outage_a_lane_begins_with_a_fifth_of_its_rate() -> None:
    rate = AdaptiveRate(100.0)
    rate.rate = 100.0
    lane = LocalUpstream("here", ScriptedEndpoint().ask, rate=rate)
    lane.sent(0.0)
    for row in range(10):
        lane.failed(10.0, row)
    assert rate.rate == 100.0
    lane.answered(40.0, 39.0)
    assert rate.rate == 20.0


async def test_an_outage_without_an_end_stops_the_run_after_the_time_that_was_given() -> None:
    rig = Rig(ScriptedEndpoint(failing(OUTAGE)), concurrency=16, give_up_s=300.0)
    results = await asked(rig.ask, 16)
    assert {type(result) for result in results.values()} == {ProviderUnusable}
    assert "has failed for 300 s" in str(results[0])
    assert 300.0 <= anyio.current_time() <= 330.0


# Lanes.


@dataclass
class Lanes:
    """A dispatcher over several endpoints."""

    endpoints: Sequence[ScriptedEndpoint]
    weights: Sequence[float]
    concurrency: int = 40

    def __post_init__(self) -> None:
        lanes = [
            LocalUpstream(str(number), endpoint.ask, weight, rate=None)
            for number, (endpoint, weight) in enumerate(zip(self.endpoints, self.weights, strict=True))
        ]
        self.dispatcher = Dispatcher(
            lanes, Limits(self.concurrency), stop=Shutdown(), counters=Counters(), give_up_s=1800.0
        )
        self.ask = self.dispatcher.ask


async def test_lanes_share_the_work_by_their_weights() -> None:
    lanes = Lanes([ScriptedEndpoint(), ScriptedEndpoint()], [1.0, 3.0])
    assert not faults(await asked(lanes.ask, 400))
    assert [len(endpoint.came) for endpoint in lanes.endpoints] == [100, 300]


async def test_while_one_lane_is_throttled_the_others_take_its_work() -> None:
    throttled = ScriptedEndpoint(failing(Throttled("429", retry_after=1000.0)))
    lanes = Lanes([throttled, ScriptedEndpoint()], [1.0, 1.0], concurrency=2)
    assert not faults(await asked(lanes.ask, 100))
    assert len(throttled.came) == 1
    assert anyio.current_time() < 110.0


async def test_while_one_lane_has_failed_the_others_take_its_work() -> None:
    failed = ScriptedEndpoint(failing(OUTAGE), seconds=6.0)
    lanes = Lanes([failed, ScriptedEndpoint()], [1.0, 1.0], concurrency=40)
    results = await asked(lanes.ask, 1000)
    assert len(failed.came) <= 20 + anyio.current_time() / PROBE_S + 1
    assert len(faults(results)) <= 10


# Hedges.


def calm(share: float = 0.05, calls: int = 100) -> StragglerDetector:
    """What is known after so many calls of a second each."""
    stragglers = StragglerDetector(share)
    for call in [stragglers.begin(-1.0) for _ in range(calls)]:
        stragglers.end(call, 0.0)
    return stragglers


@dataclass
class Hedging:
    """A hedge around endpoints that have answered a hundred calls in a second each, and the queue between."""

    endpoints: Sequence[ScriptedEndpoint]
    concurrency: int = 64
    stragglers: StragglerDetector = field(default_factory=calm)
    counters: Counters = field(default_factory=Counters)

    def __post_init__(self) -> None:
        lanes = [
            LocalUpstream(str(number), watched(endpoint.ask, self.stragglers), rate=None)
            for number, endpoint in enumerate(self.endpoints)
        ]
        limits = Limits(self.concurrency)
        self.dispatcher = Dispatcher(lanes, limits, stop=Shutdown(), counters=self.counters, give_up_s=1800.0)
        self.ask = hedged(self.dispatcher.ask, self.stragglers, self.counters)


class Uneven(ScriptedEndpoint):
    """An endpoint whose first call of every tenth row takes ten seconds and more, and whose others take one."""

    async def ask(self, request: Request) -> Reply:
        row = request.ordinal
        self.seconds = 1.0 if self.tries[row] or row % 10 else 10.0 + row / 10
        return await super().ask(request)


USED = Reply(b"{}", usage=Usage(input=5, output=7), cost_usd=0.5, latency_s=1.0)


async def test_a_call_that_is_late_is_hedged_and_the_first_answer_wins() -> None:
    endpoint = Uneven(lambda *_: USED)
    hedging = Hedging([endpoint])
    reply = await one(hedging.ask)
    assert endpoint.moments == [0.0, 1.0]
    assert anyio.current_time() == 2.0
    assert (reply.usage, reply.cost_usd, reply.latency_s) == (Usage(input=10, output=14), 1.0, 2.0)
    assert hedging.counters.hedged == hedging.stragglers.hedged == 1
    assert endpoint.in_flight == hedging.counters.in_flight == 0


async def test_a_call_that_is_in_time_is_not_hedged() -> None:
    hedging = Hedging([ScriptedEndpoint(lambda *_: USED, seconds=0.9)])
    assert await one(hedging.ask) == USED
    assert hedging.counters.hedged == 0


async def test_nothing_is_hedged_before_a_hundred_calls_have_shown_what_late_is() -> None:
    endpoint = ScriptedEndpoint(seconds=50.0)
    await one(Hedging([endpoint], stragglers=calm(calls=98)).ask)
    assert endpoint.moments == [0.0]


async def test_hedges_stay_below_their_share() -> None:
    endpoint = Uneven()
    hedging = Hedging([endpoint])
    await asked(hedging.ask, 200, workers=20)
    assert 0 < hedging.counters.hedged <= hedging.stragglers.hedged < 0.05 * 300
    assert len(endpoint.came) == 200 + hedging.counters.hedged


async def test_a_fault_of_one_call_counts_only_when_the_other_fails_too() -> None:
    endpoint = ScriptedEndpoint(failing(OUTAGE, times=1), seconds=5.0)
    hedging = Hedging([endpoint])
    assert (await one(hedging.ask)).body == REPLY.body
    assert endpoint.moments == [0.0, 1.0]
    endpoint.script = failing(OUTAGE)
    with pytest.raises(Unavailable):
        await one(hedging.ask, 1)


async def test_a_call_that_fails_in_time_fails() -> None:
    endpoint = ScriptedEndpoint(failing(OUTAGE), seconds=0.5)
    with pytest.raises(Unavailable):
        await one(Hedging([endpoint]).ask)
    assert endpoint.moments == [0.0]


async def test_waiting_for_a_turn_makes_no_call_late() -> None:
    endpoint = ScriptedEndpoint(failing_first(Throttled("429", retry_after=30.0)), seconds=0.9)
    hedging = Hedging([endpoint], concurrency=1)
    await asked(hedging.ask, 3)
    assert anyio.current_time() > 30.0
    assert hedging.counters.hedged == 0


async def test_a_second_request_that_was_never_sent_costs_nothing() -> None:
    endpoint = ScriptedEndpoint(lambda *_: USED, seconds=10.0)
    hedging = Hedging([endpoint], concurrency=1)
    assert await one(hedging.ask) == USED
    assert endpoint.moments == [0.0]
    assert hedging.counters.hedged == 0


async def test_the_second_request_goes_down_another_lane() -> None:
    slow, quick = ScriptedEndpoint(seconds=100.0), ScriptedEndpoint(seconds=0.9)
    hedging = Hedging([slow, quick])
    await asked(hedging.ask, 4)
    assert sorted(row for _, row in slow.came) == sorted(row for at, row in quick.came if at == 1.0)
    assert len(slow.came) == 2


@pytest.mark.parametrize("sigma", [0.7, 1.0])
def test_hedging_halves_the_99_9th_percentile_at_under_three_percent_more_calls(sigma: float) -> None:
    rows = 3000
    (without, _), (with_hedges, calls) = [simulate(sigma, share, rows=rows, in_flight=100) for share in (0.0, 0.03)]
    assert with_hedges[int(0.999 * rows)] < 0.5 * without[int(0.999 * rows)]
    assert calls < 1.03 * rows


# Money.


def account(prices: Prices | None = None) -> Account:
    return Account(prices or Prices(), Counters(), Shutdown())


async def test_every_reply_says_where_it_came_from() -> None:
    assert (await one(charged(ScriptedEndpoint().ask, account(), "europe-west4"))).location == "europe-west4"


async def test_every_reply_carries_its_price_and_none_where_no_price_is_known() -> None:
    prices = Prices({"google/known": Price(input=2.0, output=4.0)})
    endpoint = ScriptedEndpoint(
        lambda *_: Reply(b"{}", usage=Usage(input=1_000_000, output=500_000, reasoning=500_000))
    )
    ask = charged(endpoint.ask, account(prices))
    assert (await ask(Request(0, {"model": "google/known"}))).cost_usd == 6.0
    assert (await ask(Request(0, {"model": "google/nobody-knows-this"}))).cost_usd is None


# The end.


async def test_p2_the_stop_ends_the_pause_before_a_try_at_once() -> None:
    rig = Rig(ScriptedEndpoint(failing(Unavailable("503", retry_after=100.0))))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(virtual.at, 50.0, rig.stop.request, signal.SIGINT)
        with pytest.raises(Interrupted):
            await one(rig.ask)
        assert anyio.current_time() == 50.0
    assert rig.endpoint.tries[0] == 1
    assert rig.counters.retrying == 0


@pytest.mark.parametrize("script", [failing(Throttled("429", retry_after=100.0)), failing(OUTAGE)])
async def test_p2_the_stop_ends_the_wait_of_every_row_within_a_second(script: Script) -> None:
    rig = Rig(ScriptedEndpoint(script), concurrency=16)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(virtual.at, 50.0, rig.stop.request, signal.SIGINT)
        results = await asked(rig.ask, 40)
        assert anyio.current_time() <= 51.0
    assert {type(result) for result in results.values()} == {Interrupted}
    assert not rig.endpoint.between(50.0, 99.0)
    assert (rig.counters.waiting, rig.counters.in_flight) == (0, 0)


async def test_p2_after_the_stop_calls_in_flight_finish_and_nobody_else_asks() -> None:
    rig = Rig(ScriptedEndpoint(seconds=10.0), concurrency=2)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(virtual.at, 5.0, rig.stop.request, signal.SIGINT)
        results = await asked(rig.ask, 6)
    assert Counter(type(result) for result in results.values()) == {Reply: 2, Interrupted: 4}
    assert rig.endpoint.moments == [0.0, 0.0]
    assert anyio.current_time() == 10.0


async def test_p2_a_call_that_fails_after_the_stop_is_not_tried_again() -> None:
    rig = Rig(ScriptedEndpoint(failing(OUTAGE), seconds=10.0))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(virtual.at, 5.0, rig.stop.request, signal.SIGINT)
        with pytest.raises(Interrupted):
            await one(rig.ask)
    assert anyio.current_time() == 10.0
    assert rig.counters.retries == 0


async def test_a_pause_without_a_stop_takes_its_time() -> None:
    await Shutdown().pause(7.5)
    assert anyio.current_time() == 7.5


@pytest.mark.parametrize("seconds", [0.0, 60.0])
async def test_a_pause_after_the_stop_is_refused(seconds: float) -> None:
    stop = Shutdown()
    stop.request(signal.SIGINT)
    with pytest.raises(Interrupted):
        await stop.pause(seconds)
    assert anyio.current_time() == 0.0


async def test_whoever_waits_for_the_stop_is_told_of_it() -> None:
    stop = Shutdown()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(virtual.at, 3.0, stop.request, signal.SIGINT)
        await stop.wait()
        assert anyio.current_time() == 3.0


def test_the_first_reason_to_stop_is_kept() -> None:
    stop = Shutdown()
    stop.request(signal.SIGINT)
    stop.request(ProviderUnusable("later"))
    assert stop.requested
    assert stop.reason is signal.SIGINT


def test_a_run_that_nobody_stops_goes_on() -> None:
    assert not Shutdown().requested


# Counting.


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([REPLY, Refused("no"), Throttled("429", retry_after=1.0), OUTAGE]), max_size=9))
def test_every_call_is_counted_and_none_stays_in_flight(outcomes: list[Reply | Fault]) -> None:
    rig = Rig(ScriptedEndpoint(lambda row, attempt: outcomes[row] if attempt == 1 else REPLY))
    virtual.run(lambda: asked(rig.ask, len(outcomes)))
    throttled = sum(isinstance(outcome, Throttled) for outcome in outcomes)
    unavailable = sum(isinstance(outcome, Unavailable) for outcome in outcomes)
    assert rig.counters.requests == len(rig.endpoint.came) == len(outcomes) + throttled + unavailable
    assert (rig.counters.throttled, rig.counters.retries) == (throttled, unavailable)
    assert (rig.counters.in_flight, rig.counters.retrying, rig.counters.waiting) == (0, 0, 0)
