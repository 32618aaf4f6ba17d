"""The token bucket, and fixed windows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.emulator.server.quota import FixedWindow, TokenBucket, rate_at

STEPS = st.lists(st.floats(0, 3), min_size=1, max_size=60)


@given(rate=st.floats(0.1, 50), window=st.floats(0.05, 3), steps=STEPS)
def test_no_window_grants_more_than_a_burst_and_the_rate(rate: float, window: float, steps: list[float]) -> None:
    """For any two grants at a and b, at most capacity + rate * (b - a) calls were granted from a to b."""
    bucket, now, granted = TokenBucket(rate, 0.0, window), 0.0, []
    for step in steps:
        now += step
        if bucket.take(now):
            granted.append(now)
    for first, begin in enumerate(granted):
        for last in range(first, len(granted)):
            assert last - first + 1 <= bucket.capacity + rate * (granted[last] - begin) + 1e-6


@given(rate=st.floats(1, 50))
def test_calls_spaced_at_the_rate_are_all_granted(rate: float) -> None:
    """Who keeps to the rate is never refused."""
    bucket = TokenBucket(rate, 0.0)
    assert all(bucket.take((call + 1) * (1 / rate) * 1.000001) for call in range(200))


def test_an_emptied_bucket_refuses_until_it_has_refilled() -> None:
    """A burst of one second's worth passes, the next call does not, and does after its share of a second."""
    bucket = TokenBucket(10, 0.0)
    assert [bucket.take(0.0) for _ in range(11)] == [True] * 10 + [False]
    assert bucket.take(0.11)


@given(rates=st.lists(st.floats(0, 50), min_size=1, max_size=8), calls=st.integers(1, 80))
def test_a_moving_rate_grants_no_more_than_it_summed_up_to(rates: list[float], calls: int) -> None:
    """One second at each rate grants at most the first burst and the sum of the rates."""
    bucket, granted = TokenBucket(rates[0], 0.0), 0
    burst = bucket.capacity
    for second, rate in enumerate(rates):
        for call in range(calls):
            now = second + call / calls
            bucket.change(rate, now)
            granted += bucket.take(now)
    assert granted <= burst + sum(rates) + 1e-6


def test_a_rate_of_nothing_grants_nothing_and_a_new_rate_refills() -> None:
    """Capacity that goes away and comes back."""
    bucket = TokenBucket(10, 0.0)
    bucket.change(0, 0.5)
    assert not bucket.take(100)
    bucket.change(2, 100)
    assert not bucket.take(100.2)
    assert bucket.take(100.6)


def test_a_schedule_holds_from_each_step_to_the_next() -> None:
    """The default before the first step, the last rate for ever."""
    schedule = ((10.0, 5.0), (20.0, 0.0))
    assert [rate_at(schedule, at, 7.0) for at in (0, 9.9, 10, 19.9, 20, 1e9)] == [7, 7, 5, 5, 0, 0]
    assert rate_at((), 5, None) is None


@given(count=st.integers(1, 50), window=st.floats(0.1, 100), steps=STEPS)
def test_a_fixed_window_grants_its_calls_at_once_and_no_more_until_it_is_over(
    count: int, window: float, steps: list[float]
) -> None:
    """Counted by the windows that the first call began."""
    quota, now, granted = FixedWindow((count + 0.5) / window, 0.0, window), 0.0, dict[int, int]()
    for step in steps:
        now += step * window / 10
        for _ in range(count + 2):
            granted[int(now // window)] = granted.get(int(now // window), 0) + quota.take(now)
    assert set(granted.values()) == {count}


def test_a_fixed_window_goes_on_with_another_rate() -> None:
    """What was granted in this window counts."""
    quota = FixedWindow(1.0, 0.0, 10.0)
    assert [quota.take(1.0) for _ in range(11)] == [True] * 10 + [False]
    quota.change(1.2, 2.0)
    assert [quota.take(2.0) for _ in range(3)] == [True, True, False]
    quota.change(0.0, 20.0)
    assert not quota.take(20.0)
