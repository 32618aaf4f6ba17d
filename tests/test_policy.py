"""What governs calls: limits, retries, counting and the stop. In virtual time."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import Reply, Request
from pipeline.faults import Denied, Expired, Fault, Interrupted, Refused, Throttled, Unavailable, Unparsable
from pipeline.pace import MOST_ATTEMPTS, Gate, Weather
from pipeline.policy import Ask, Stop, counted, limited, retrying
from pipeline.tally import Tally
from tests import virtual

anyio_backend = virtual.anyio_backend
pytestmark = pytest.mark.anyio

REPLY = Reply(b"{}")

Script = Callable[[int, int], Reply | Fault]
"""What the endpoint does with a row (its ordinal) at its n-th try, from 1."""


def answering(_ordinal: int, _attempt: int) -> Reply | Fault:
    return REPLY


def failing(fault: Fault, times: float = float("inf")) -> Script:
    return lambda _, attempt: fault if attempt <= times else REPLY


@dataclass
class Endpoint:
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


@dataclass
class Rig:
    """The policies as a run composes them, around an endpoint."""

    endpoint: Endpoint
    concurrency: int = 64
    attempts: int = 5
    gate: Gate = field(default_factory=Gate)
    weather: Weather = field(default_factory=Weather)
    stop: Stop = field(default_factory=Stop)
    tally: Tally = field(default_factory=Tally)

    @property
    def limited(self) -> Ask:
        calls = counted(self.endpoint.ask, self.tally)
        return limited(calls, self.concurrency, gate=self.gate, stop=self.stop, tally=self.tally)

    @property
    def composed(self) -> Ask:
        return retrying(
            self.limited, attempts=self.attempts, weather=self.weather, stop=self.stop, tally=self.tally
        )


async def asked(ask: Ask, rows: int, workers: int | None = None) -> dict[int, Reply | Fault]:
    """What became of the rows, taken in order by so many workers (one for each row, unless told otherwise)."""
    results: dict[int, Reply | Fault] = {}
    ordinals = iter(range(rows))

    async def work(ordinals: Iterator[int]) -> None:
        for ordinal in ordinals:
            try:
                results[ordinal] = await ask(Request(ordinal, {}))
            except Fault as fault:
                results[ordinal] = fault

    async with anyio.create_task_group() as tasks:
        for _ in range(workers or rows):
            tasks.start_soon(work, ordinals)
    return results


def faults(results: dict[int, Reply | Fault]) -> dict[int, Fault]:
    return {ordinal: result for ordinal, result in results.items() if isinstance(result, Fault)}


# How many at once.


@settings(max_examples=50, deadline=None)
@given(
    concurrency=st.integers(1, 9),
    rows=st.integers(1, 40),
    outcomes=st.lists(st.sampled_from([REPLY, Refused("no"), Throttled("wait", retry_after=3.0)]), min_size=1),
)
def test_never_more_than_the_limit_are_in_flight_and_the_limit_is_used(
    concurrency: int, rows: int, outcomes: list[Reply | Fault]
):
    def script(ordinal: int, attempt: int) -> Reply | Fault:
        return outcomes[ordinal % len(outcomes)] if attempt == 1 else REPLY

    endpoint = Endpoint(script)
    rig = Rig(endpoint, concurrency)
    virtual.run(lambda: asked(rig.limited, rows))
    assert endpoint.most_in_flight == min(concurrency, rows)


async def test_a_cancelled_call_gives_its_slot_back():
    rig = Rig(Endpoint(seconds=100.0), concurrency=1)
    ask = rig.limited
    with anyio.move_on_after(5.0):
        await ask(Request(0, {}))
    await ask(Request(1, {}))
    assert rig.endpoint.moments == [0.0, 5.0]
    assert rig.tally.in_flight == 0


# Quota.


async def test_h1_after_a_429_with_a_time_nobody_asks_before_it_and_no_attempt_is_used():
    def script(ordinal: int, attempt: int) -> Reply | Fault:
        return Throttled("429", retry_after=30.0) if (ordinal, attempt) == (0, 1) else REPLY

    rig = Rig(Endpoint(script), concurrency=4)
    results = await asked(rig.composed, 40)
    assert not [moment for moment in rig.endpoint.moments if 1.0 < moment < 31.0]
    assert {reply.attempts for reply in results.values() if isinstance(reply, Reply)} == {1}
    assert len(results) == 40
    assert (rig.tally.throttled, rig.tally.retries) == (1, 0)


async def test_h1_a_row_may_be_throttled_any_number_of_times_without_failing():
    rig = Rig(Endpoint(failing(Throttled("429", retry_after=1.0), times=50)), attempts=2)
    results = await asked(rig.composed, 1)
    assert isinstance(results[0], Reply)
    assert results[0].attempts == 1
    assert rig.tally.throttled == 50


@settings(max_examples=50, deadline=None)
@given(
    throttled=st.dictionaries(st.integers(0, 59), st.sampled_from([None, 0.0, 0.2, 5.0, 119.0]), min_size=1),
    concurrency=st.integers(1, 20),
    seconds=st.sampled_from([0.0, 0.3, 2.0]),
)
def test_h1_no_request_leaves_before_any_time_that_the_server_has_named(
    throttled: dict[int, float | None], concurrency: int, seconds: float
):
    closed: list[tuple[float, float]] = []

    def script(ordinal: int, attempt: int) -> Reply | Fault:
        if attempt == 1 and ordinal in throttled:
            hint = throttled[ordinal]
            closed.append((anyio.current_time(), anyio.current_time() + (hint or 0.0)))
            return Throttled("429", retry_after=hint)
        return REPLY

    rig = Rig(Endpoint(script, seconds), concurrency)
    results = virtual.run(lambda: asked(rig.composed, 60, workers=30))
    assert not faults(results)
    for told_at, not_before in closed:
        assert not [moment for moment in rig.endpoint.moments if told_at < moment < not_before]


async def test_h2_a_429_without_a_time_makes_all_workers_wait_a_moment():
    def script(ordinal: int, attempt: int) -> Reply | Fault:
        return Throttled("429") if (ordinal, attempt) == (0, 1) else REPLY

    rig = Rig(Endpoint(script), concurrency=4)
    await asked(rig.composed, 40)
    assert not [moment for moment in rig.endpoint.moments if 1.0 < moment < 1.5]


async def test_who_waits_for_quota_holds_no_slot():
    class Loaded(Random):
        """Dice that let the row that was throttled wait for long, and everybody else go at once."""

        def uniform(self, a: float, b: float) -> float:
            return b if anyio.current_time() == 1.0 else a

    def script(ordinal: int, attempt: int) -> Reply | Fault:
        return Throttled("429", retry_after=100.0) if (ordinal, attempt) == (0, 1) else REPLY

    rig = Rig(Endpoint(script), concurrency=1, gate=Gate(dice=Loaded()))
    ask = rig.composed
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, Request(0, {}))
        await anyio.sleep(50.0)
        assert (rig.tally.waiting, rig.tally.in_flight) == (1, 0)
        tasks.start_soon(ask, Request(1, {}))
    assert rig.endpoint.came == [(0.0, 0), (101.0, 1), (151.0, 0)]
    assert rig.tally.waiting == 0


# Tries.


async def test_a_first_answer_is_one_attempt():
    rig = Rig(Endpoint())
    assert await rig.composed(Request(0, {})) == REPLY
    assert rig.tally.retries == 0


@pytest.mark.parametrize("times", [1, 2, 4])
async def test_attempts_are_counted_in_the_reply(times: int):
    rig = Rig(Endpoint(failing(Unavailable("503"), times)))
    reply = await rig.composed(Request(0, {}))
    assert reply.attempts == times + 1
    assert rig.tally.retries == times


async def test_the_last_fault_is_raised_when_no_try_succeeds():
    rig = Rig(Endpoint(lambda _, attempt: Unavailable(f"try {attempt}", http_status=503)))
    results = await asked(rig.composed, 1)
    assert repr(results[0]) == "Unavailable('try 5', http_status=503)"
    assert rig.endpoint.tries[0] == 5


@pytest.mark.parametrize("fault", [Refused("400"), Unparsable("too large"), Denied("403"), Expired("401")])
async def test_faults_that_another_try_would_not_mend_are_raised_at_once(fault: Fault):
    rig = Rig(Endpoint(failing(fault)))
    results = await asked(rig.composed, 1)
    assert results[0] is fault
    assert rig.endpoint.moments == [0.0]


async def test_a_fault_of_another_kind_at_a_later_try_ends_the_row_there():
    refused = Refused("400")
    rig = Rig(Endpoint(lambda _, attempt: Unavailable("503") if attempt == 1 else refused))
    results = await asked(rig.composed, 1)
    assert results[0] is refused
    assert rig.endpoint.tries[0] == 2


async def test_pauses_double_from_one_second_to_a_minute_with_a_second_of_jitter():
    rig = Rig(Endpoint(failing(Unavailable("503"))), attempts=10)
    await asked(rig.composed, 1)
    expected = [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert len(rig.endpoint.pauses) == len(expected)
    for pause, least in zip(rig.endpoint.pauses, expected, strict=True):
        assert least <= round(pause, 6) <= min(least + 1, 60)


async def test_rows_that_fail_together_do_not_return_together():
    rig = Rig(Endpoint(failing(Unavailable("503"), times=1)))
    await asked(rig.composed, 50)
    again = [moment for moment in rig.endpoint.moments if moment > 0.0]
    assert len(again) == len(set(again)) == 50


@settings(max_examples=30, deadline=None)
@given(hints=st.lists(st.none() | st.floats(0.0, 120.0), min_size=4, max_size=4))
def test_a_servers_own_time_is_a_floor_of_the_pause_and_never_shortens_it(hints: list[float | None]):
    def script(_: int, attempt: int) -> Reply | Fault:
        return Unavailable("503", retry_after=hints[attempt - 1]) if attempt <= 4 else REPLY

    rig = Rig(Endpoint(script))
    virtual.run(lambda: rig.composed(Request(0, {})))
    for pause, hint, least in zip(rig.endpoint.pauses, hints, (1.0, 2.0, 4.0, 8.0), strict=True):
        assert round(pause, 6) >= round(max(hint or 0.0, least), 6)


async def test_a_row_that_sleeps_before_its_next_try_holds_no_slot():
    rig = Rig(Endpoint(lambda row, attempt: Unavailable("503") if (row, attempt) == (0, 1) else REPLY), concurrency=1)
    ask = rig.composed
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, Request(0, {}))
        await anyio.sleep(0.5)
        tasks.start_soon(ask, Request(1, {}))
        await anyio.sleep(1.0)
        assert (rig.tally.retrying, rig.tally.in_flight) == (1, 1)
    assert rig.endpoint.came[1] == (1.0, 1)
    assert rig.tally.retrying == 0


# Weather.


def _dice(share: float, seed: int) -> Script:
    """Fails so many calls, by dice that depend on nothing but the row and its try."""

    def script(ordinal: int, attempt: int) -> Reply | Fault:
        failed = Random(f"{seed}/{ordinal}/{attempt}").random() < share
        return Unavailable("503", http_status=503) if failed else REPLY

    return script


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_h3_with_30_percent_of_503_no_row_is_lost_and_no_request_wasted(seed: int):
    rig = Rig(Endpoint(_dice(0.3, seed)))
    results = await asked(rig.composed, 2000, workers=128)
    assert not faults(results)
    assert rig.tally.requests == len(rig.endpoint.came) <= 2000 / (1 - 0.3) * 1.05
    assert max(rig.endpoint.tries.values()) > rig.attempts, "otherwise five tries would have been enough"


@pytest.mark.parametrize("poison", [0, 17, 299])
async def test_h11_a_poison_row_among_good_ones_gets_its_attempts_and_no_more(poison: int):
    rig = Rig(Endpoint(lambda row, _: Unavailable("500", http_status=500) if row == poison else REPLY))
    results = await asked(rig.composed, 300, workers=16)
    assert faults(results).keys() == {poison}
    assert rig.endpoint.tries[poison] == rig.attempts
    assert rig.tally.requests == 299 + rig.attempts


async def test_h11_even_when_everything_fails_the_tries_of_a_row_are_bounded():
    rig = Rig(Endpoint(failing(Unavailable("500"))))
    results = await asked(rig.composed, 300, workers=300)
    assert len(faults(results)) == 300
    assert max(rig.endpoint.tries.values()) <= MOST_ATTEMPTS


# The end.


async def test_p2_the_stop_ends_the_pause_before_a_try_at_once():
    rig = Rig(Endpoint(failing(Unavailable("503", retry_after=100.0))))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(virtual.at, 50.0, rig.stop.request, signal.SIGINT)
        with pytest.raises(Interrupted):
            await rig.composed(Request(0, {}))
        assert anyio.current_time() == 50.0
    assert rig.endpoint.tries[0] == 1
    assert rig.tally.retrying == 0


async def test_p2_the_stop_ends_the_wait_for_quota_at_once():
    rig = Rig(Endpoint(failing(Throttled("429", retry_after=100.0))))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(virtual.at, 50.0, rig.stop.request, signal.SIGINT)
        with pytest.raises(Interrupted):
            await rig.composed(Request(0, {}))
        assert anyio.current_time() == 50.0
    assert rig.endpoint.tries[0] == 1
    assert rig.tally.waiting == 0


async def test_p2_after_the_stop_calls_in_flight_finish_and_nobody_else_asks():
    rig = Rig(Endpoint(seconds=10.0), concurrency=2)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(virtual.at, 5.0, rig.stop.request, signal.SIGINT)
        results = await asked(rig.composed, 6)
    assert Counter(type(result) for result in results.values()) == {Reply: 2, Interrupted: 4}
    assert rig.endpoint.moments == [0.0, 0.0]
    assert anyio.current_time() == 10.0


async def test_p2_a_call_that_fails_after_the_stop_is_not_tried_again():
    rig = Rig(Endpoint(failing(Unavailable("503")), seconds=10.0))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(virtual.at, 5.0, rig.stop.request, signal.SIGINT)
        with pytest.raises(Interrupted):
            await rig.composed(Request(0, {}))
    assert anyio.current_time() == 10.0
    assert rig.tally.retries == 0


async def test_a_pause_without_a_stop_takes_its_time():
    await Stop().pause(7.5)
    assert anyio.current_time() == 7.5


@pytest.mark.parametrize("seconds", [0.0, 60.0])
async def test_a_pause_after_the_stop_is_refused(seconds: float):
    stop = Stop()
    stop.request(signal.SIGINT)
    with pytest.raises(Interrupted):
        await stop.pause(seconds)
    assert anyio.current_time() == 0.0


async def test_whoever_waits_for_the_stop_is_told_of_it():
    stop = Stop()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(virtual.at, 3.0, stop.request, signal.SIGINT)
        await stop.wait()
        assert anyio.current_time() == 3.0


def test_the_first_reason_to_stop_is_kept():
    stop = Stop()
    assert not stop.requested
    stop.request(signal.SIGINT)
    stop.request(Denied("later"))
    assert stop.requested
    assert stop.reason is signal.SIGINT


# Counting.


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([REPLY, Refused("no"), Throttled("429", retry_after=1.0), Unavailable("503")])))
def test_every_call_is_counted_and_none_stays_in_flight(outcomes: list[Reply | Fault]):
    rig = Rig(Endpoint(lambda row, attempt: outcomes[row] if attempt == 1 else REPLY))
    virtual.run(lambda: asked(rig.composed, len(outcomes)))
    throttled = sum(isinstance(outcome, Throttled) for outcome in outcomes)
    unavailable = sum(isinstance(outcome, Unavailable) for outcome in outcomes)
    assert rig.tally.requests == len(rig.endpoint.came) == len(outcomes) + throttled + unavailable
    assert (rig.tally.throttled, rig.tally.retries) == (throttled, unavailable)
    assert (rig.tally.in_flight, rig.tally.retrying, rig.tally.waiting) == (0, 0, 0)
