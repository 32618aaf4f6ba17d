"""Counters: what a worker reports as counted, and what stays with it."""

from __future__ import annotations

from pipeline.totals.counters import Counters


def test_drained_counts_leave_notices_and_state_in_place() -> None:
    """Draining takes the counts only: notices have their own way to the user and must not be taken twice."""
    counters = Counters(requests=3, in_flight=2, waiting=1, notices=["the cache is slow"])
    assert counters.drain() == {"requests": 3}
    assert (counters.requests, counters.in_flight, counters.waiting) == (0, 2, 1)
    assert counters.notices == ["the cache is slow"]
