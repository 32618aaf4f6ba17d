"""Arithmetic of time: when the gate opens, and how many tries the weather grants."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.pace import FIRST_PAUSE_S, LONGEST_PAUSE_S, MOST_ATTEMPTS, UNLIKELY, Gate, Weather

SEEDS = st.integers(0, 2**32)
MOMENTS = st.floats(0.0, 1e6)
HINTS = st.none() | st.floats(0.0, 120.0)


class Low(Random):
    """Dice that always fall to the lower end: then `Gate.wait` is exactly how long the gate stays closed."""

    def uniform(self, a: float, _b: float) -> float:
        return a


class High(Random):
    """Dice that always fall to the upper end."""

    def uniform(self, _a: float, b: float) -> float:
        return b


@dataclass(frozen=True)
class Throttling:
    """A 429 that comes `later` seconds after the event before, to a request that had been on its way so long."""

    later: float
    on_its_way: float
    hint: float | None


throttlings = st.lists(
    st.builds(Throttling, later=st.floats(0.0, 200.0), on_its_way=st.floats(0.0, 100.0), hint=HINTS), max_size=30
)


@given(MOMENTS)
def test_a_gate_is_open_at_first(now: float):
    assert Gate().wait(now) == 0.0


@given(throttlings, SEEDS, MOMENTS)
def test_h1_the_gate_never_opens_before_a_time_that_a_server_has_named(events: list[Throttling], seed: int, now: float):
    gate = Gate(dice=Random(seed))
    not_before = now
    for event in events:
        now += event.later
        gate.close(now, now - event.on_its_way, event.hint)
        not_before = max(not_before, now + (event.hint or 0.0))
        assert now + gate.wait(now) >= not_before or now >= not_before


@given(throttlings, SEEDS)
def test_no_event_ever_lets_the_gate_open_earlier(events: list[Throttling], seed: int):
    gate = Gate(dice=Low(seed))
    now = opens = 0.0
    for event in events:
        now += event.later
        gate.close(now, now - event.on_its_way, event.hint)
        gate.opened(now - event.on_its_way)
        assert now + gate.wait(now) >= opens - 1e-6 or now >= opens
        opens = max(opens, now + gate.wait(now))


@given(SEEDS, MOMENTS, st.lists(st.tuples(st.floats(0.0, 50.0), st.floats(0.0, 0.4)), max_size=20))
def test_requests_of_one_episode_close_the_gate_once(seed: int, now: float, others: list[tuple[float, float]]):
    """Whatever left before the gate closed says nothing new when it comes back throttled, too."""
    once, often = Gate(dice=Random(seed)), Gate(dice=Random(seed))
    once.close(now, now - 1.0, None)
    often.close(now, now - 1.0, None)
    for left_before, came_after in others:
        often.close(now + came_after, now - left_before, None)
    assert often == once


@given(MOMENTS, st.integers(2, 100))
def test_requests_that_all_came_back_in_the_same_instant_are_one_episode(now: float, calls: int):
    gate = Gate(dice=High())
    for _ in range(calls):
        gate.close(now, now, None)
    assert gate.wait(now) <= 1.5 * FIRST_PAUSE_S + 1e-6


@given(SEEDS, st.integers(1, 40))
def test_the_pause_doubles_from_episode_to_episode_up_to_a_minute(seed: int, episodes: int):
    gate = Gate(spread=0.0, dice=Random(seed))
    now = 0.0
    for episode in range(episodes):
        gate.close(now, now, None)
        most = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**episode)
        pause = gate.wait(now)
        assert 0.5 * most - 1e-6 <= pause <= most + 1e-6
        now += pause + 0.001


@given(st.integers(1, 10), st.floats(0.001, 100.0))
def test_an_answer_to_a_request_that_left_after_the_gate_had_closed_forgets_the_episodes(episodes: int, later: float):
    gate = Gate(spread=0.0, dice=High())
    now = 0.0
    for _ in range(episodes):
        gate.close(now, now, None)
        now += gate.wait(now) + later
    gate.opened(now)
    now += 1.0
    gate.close(now, now, None)
    assert gate.wait(now) == pytest.approx(FIRST_PAUSE_S)


@given(st.floats(0.0, 100.0))
def test_an_answer_to_a_request_that_left_before_the_gate_closed_forgets_nothing(earlier: float):
    gate = Gate(spread=0.0, dice=High())
    gate.close(0.0, -1.0, None)
    gate.close(100.0, 50.0, None)
    gate.opened(100.0 - earlier)
    gate.close(200.0, 150.0, None)
    assert gate.wait(200.0) == pytest.approx(4 * FIRST_PAUSE_S)


@given(SEEDS, MOMENTS, st.floats(0.01, 120.0), st.floats(0.0, 2.0))
def test_callers_are_let_in_over_the_spread_and_not_later(seed: int, now: float, hint: float, spread: float):
    exact, gate = Gate(dice=Low()), Gate(spread=spread, dice=Random(seed))
    exact.close(now, now, hint)
    gate.close(now, now, hint)
    assume(exact.wait(now) > 0)
    waits = [gate.wait(now) for _ in range(20)]
    longest = max(hint, FIRST_PAUSE_S)
    assert all(hint - 1e-6 <= wait <= longest + spread * max(longest, 0.1) + 1e-6 for wait in waits)


def test_callers_who_wait_together_are_let_in_one_after_the_other():
    gate = Gate(dice=Random(7))
    gate.close(10.0, 9.0, 30.0)
    waits = [gate.wait(10.0) for _ in range(100)]
    assert len(set(waits)) == 100


@given(MOMENTS, HINTS)
def test_the_gate_is_open_for_everybody_once_its_time_has_come(now: float, hint: float | None):
    gate = Gate(dice=Low())
    gate.close(now, now, hint)
    assert gate.wait(now + gate.wait(now) + 1e-3) == 0.0


# Weather.


def seen(outcomes: list[bool]) -> Weather:
    weather = Weather()
    for failed in outcomes:
        weather.saw(failed=failed)
    return weather


def test_nothing_seen_is_good_weather():
    assert Weather().share == 0.0
    assert Weather().attempts(5) == 5


@given(st.lists(st.booleans(), max_size=400), st.integers(1, 30))
def test_a_row_gets_at_least_its_attempts_and_at_most_twenty_or_those(outcomes: list[bool], least: int):
    assert least <= seen(outcomes).attempts(least) <= max(least, MOST_ATTEMPTS)


@given(st.lists(st.booleans(), max_size=400))
def test_the_share_of_failures_is_a_share(outcomes: list[bool]):
    assert 0.0 <= seen(outcomes).share < 1.0


@given(st.lists(st.booleans(), max_size=400))
def test_one_more_failure_never_grants_fewer_tries_than_one_more_success(outcomes: list[bool]):
    assert seen([*outcomes, True]).attempts(5) >= seen([*outcomes, False]).attempts(5)


@given(st.lists(st.booleans(), min_size=1, max_size=400))
def test_mere_chance_hardly_uses_up_all_tries(outcomes: list[bool]):
    weather = seen(outcomes)
    attempts = weather.attempts(5)
    assert attempts == MOST_ATTEMPTS or weather.share**attempts <= UNLIKELY * 1.000001


@given(st.integers(1, 2000), st.data())
def test_h11_a_single_bad_row_is_told_from_bad_weather(rows: int, data: st.DataObject):
    bad = data.draw(st.integers(0, rows - 1))
    assert seen([row == bad for row in range(rows)]).attempts(5) == 5


def test_bad_weather_passes():
    weather = seen([True] * 1000)
    assert weather.attempts(5) == MOST_ATTEMPTS
    for _ in range(2000):
        weather.saw(failed=False)
    assert weather.attempts(5) == 5


@pytest.mark.parametrize(("percent", "attempts"), [(1, 5), (5, 5), (10, 6), (30, 12), (50, 19)])
def test_the_tries_follow_from_the_share_of_failures(percent: int, attempts: int):
    dice = Random(1)
    weather = seen([dice.random() * 100 < percent for _ in range(5000)])
    assert abs(weather.attempts(5) - attempts) <= 2
