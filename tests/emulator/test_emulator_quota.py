"""The token bucket."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.emulator.quota import Bucket

STEPS = st.lists(st.floats(0, 3), min_size=1, max_size=60)


@given(rate=st.floats(0.1, 50), steps=STEPS)
def test_no_window_grants_more_than_a_burst_and_the_rate(rate: float, steps: list[float]) -> None:
    """For any two grants at a and b, at most capacity + rate * (b - a) calls were granted from a to b."""
    bucket, now, granted = Bucket(rate, 0.0), 0.0, []
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
    bucket = Bucket(rate, 0.0)
    assert all(bucket.take((call + 1) * (1 / rate) * 1.000001) for call in range(200))


def test_an_emptied_bucket_refuses_until_it_has_refilled() -> None:
    """A burst of one second's worth passes, the next call does not, and does after its share of a second."""
    bucket = Bucket(10, 0.0)
    assert [bucket.take(0.0) for _ in range(11)] == [True] * 10 + [False]
    assert bucket.take(0.11)
