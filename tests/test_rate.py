"""The adaptive rate in the real dispatcher, in virtual time: moving quotas, weather, windows, memory."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.pace import AdaptiveRate, first_rate
from tests.benchmarks.quota import RAINY, SCENARIOS, SLOW, weather, windows
from tests.benchmarks.quotas import Bucket, Client, Server, Weather, lognormal, simulate

NAMED = {scenario.name: scenario for scenario in SCENARIOS}


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(
    ("name", "depth_s"),
    [
        ("40, 80, 20", 0.25),
        ("20, 60", 0.25),
        ("10, 30, 10", 0.25),
        ("50, another by 20 % each second", 0.25),
        ("30, 90, 45, answers in 0.2 to 5 s", 1.0),
    ],
)
def test_h2_a_quota_that_moves_is_used_and_hardly_passed(name: str, depth_s: float, seed: int) -> None:
    """94 % of it are granted, and 6 refusals a hundred granted are what finding it costs at the most."""
    granted, waste = NAMED[name].run(depth_s, seed)
    assert granted >= 0.94
    assert waste <= 0.06


@pytest.mark.parametrize("depth_s", [0.25, 1.0])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_h2_three_clients_use_the_quota_that_they_share_and_do_not_run_away(seed: int, depth_s: float) -> None:
    """None sees what the others send, and may take their refusals for background; soon it finds that it was wrong."""
    granted, waste = NAMED["100, three clients"].run(depth_s, seed)
    assert granted >= 0.95
    assert waste <= 0.1


def test_h2_refusals_that_take_their_time_cost_no_more_than_their_time() -> None:
    """What leaves before the first of them arrives cannot be helped."""
    granted, waste = SLOW.run(0.25, seed=1)
    assert granted >= 0.95
    assert waste <= 0.08


@pytest.mark.parametrize(("share", "kept"), [(0.01, 0.95), (0.05, 0.93), (0.1, 0.88), (0.3, 0.65)])
def test_h2a_refusals_that_do_not_depend_on_the_rate_do_not_slow_a_run_down(share: float, kept: float) -> None:
    """Next to the same run without adaptation and with the same refusals, in the middle one of three runs."""
    assert median(weather(share, seed=seed, rows=2500) for seed in (1, 2, 3)) >= kept


def test_h2a_a_quota_is_used_although_some_refusals_have_nothing_to_do_with_it() -> None:
    granted, _ = RAINY.run(0.25, seed=1)
    assert granted >= 0.93


def test_h2a_weather_that_begins_in_the_midst_of_a_run_does_not_stay_a_limit() -> None:
    """A quota of 50 a second is given up; then ten percent are refused at any rate."""
    dice, late = random.Random(1), Counter[bool]()
    bucket, rain = Bucket(((0.0, 50.0),), 0.25, dice), Weather(0.1, dice)

    def grants(now: float) -> bool:
        granted = bucket(now) if now < 20.0 else rain(now)
        late[now >= 40.0] += granted
        return granted

    simulate([Client(Server(grants, dice, lognormal(0.2, 0.3)), 64)], 60.0)
    assert late[True] / 20.0 >= 200.0


@pytest.mark.parametrize("offset", [0.0, 35.0])
def test_h2a_windows_of_a_minute_are_learned(offset: float) -> None:
    """Sixty are granted at once, and then none until the minute is over: every row is done all the same."""
    done, waste, _ = windows(seed=1, rows=240, offset=offset)
    assert done == 240
    assert waste <= 0.15


def test_a_rate_that_was_granted_before_is_kept_to_from_the_start() -> None:
    dice = random.Random(1)
    server = Server(Bucket(((0.0, 50.0),), 0.25, dice), dice)
    simulate([Client(server, 256, known=49.0)], 10.0)
    assert server.granted >= 0.95 * 10 * 50
    assert server.refused <= 15


@pytest.mark.parametrize("known", [0.5, 8.0, 3000.0])
def test_a_rate_that_is_no_more_true_costs_a_second_at_most(known: float) -> None:
    """Compared with a start that knows nothing, of a quota of 100 a second."""

    def granted(known: float | None) -> int:
        dice = random.Random(1)
        server = Server(Bucket(((0.0, 100.0),), 0.25, dice), dice)
        simulate([Client(server, 128, known=known)], 15.0)
        assert server.refused <= 0.1 * server.granted
        return server.granted

    assert granted(known) >= granted(None) - 100


def test_what_a_run_was_granted_is_where_the_next_one_begins() -> None:
    dice = random.Random(1)
    client = Client(Server(Bucket(((0.0, 50.0),), 0.25, dice), dice), 128)
    simulate([client], 20.0)
    assert client.rate is not None
    assert client.rate.granted == pytest.approx(50.0, rel=0.1)


def test_a_run_that_was_never_refused_remembers_how_fast_it_was() -> None:
    dice = random.Random(1)
    client = Client(Server(Weather(0.0, dice), dice, lognormal(0.1, 0.2)), 64)
    simulate([client], 10.0)
    assert client.rate is not None
    assert 300.0 <= (client.rate.granted or 0.0) <= 1300.0


def test_nothing_is_remembered_of_a_run_that_asked_nothing() -> None:
    assert AdaptiveRate().granted is None


def sends(pace: AdaptiveRate, dice: random.Random, share: float, latency: float) -> Iterator[tuple[float, float]]:
    """A client that sends only twenty a second, whatever it may: each moment, and the rate then."""
    now, on_their_way = 0.0, list[tuple[float, float, bool]]()
    while True:
        now += max(0.05, pace.wait(now))
        while on_their_way and on_their_way[0][0] <= now:
            ended, left_at, refused = on_their_way.pop(0)
            (pace.throttled if refused else pace.answered)(ended, left_at)
        pace.held_back(now)
        pace.sent(now)
        on_their_way.append((now + latency, now, dice.random() < share))
        yield now, pace.rate


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.01, 0.3]), st.floats(0.01, 2.0))
def test_the_rate_does_not_grow_beyond_twice_what_is_sent(seed: int, share: float, latency: float) -> None:
    """Also where it is said to hold requests back all the time, as workers' reports may say it."""
    pace = AdaptiveRate(first_rate(64))
    for now, rate in islice(sends(pace, random.Random(seed), share, latency), 1500):
        if now > 5.0:
            assert rate <= 2.0 * max(64.0, 1.05 * 20.0)


def test_h2_why_the_rate_was_cut_can_be_told() -> None:
    dice = random.Random(1)
    client = Client(Server(Bucket(((0.0, 30.0),), 0.25, dice), dice), 128)
    simulate([client], 3.0)
    assert client.rate is not None
    assert client.rate.change is not None
    assert "requests were refused" in client.rate.change.text
    assert "cut from" in client.rate.change.text


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_h2a_that_refusals_are_the_weather_can_be_told(seed: int) -> None:
    dice, rain, told = random.Random(seed), Weather(0.3, random.Random(seed)), list[str]()

    def grants(now: float) -> bool:
        if client.rate is not None and client.rate.change is not None:
            told.append(client.rate.change.text)
        return rain(now)

    client = Client(Server(grants, dice, lognormal(0.3, 0.2)), 64)
    simulate([client], 20.0)
    assert any("at any rate" in text for text in told)
