"""Arithmetic of time: a clock value goes in, a decision comes out; so time here is a number that the tests turn."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice, pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.pace import (
    FIRST_RATE,
    PROBE_S,
    AdaptiveRate,
    CircuitBreaker,
    FailureRate,
    LatencyWindow,
    Pacer,
    RetryAfterHold,
    RetryBudget,
    StragglerDetector,
    TokenEstimate,
    first_rate,
)
from pipeline.pace.failure_rate import BAD_ROWS, BAD_SHARE, MOST_ATTEMPTS, UNLIKELY
from pipeline.pace.rate_state import LEAST_RATE

SEEDS = st.integers(0, 2**32)
MOMENTS = st.floats(0.0, 1e6)
HINTS = st.floats(0.0, 120.0)
STEPS = st.floats(0.0, 30.0)


# The hold.


@settings(deadline=None)
@given(MOMENTS)
def test_a_gate_is_open_at_first(now: float) -> None:
    assert RetryAfterHold().wait(now) == 0.0


@settings(deadline=None)
@given(st.lists(st.tuples(STEPS, HINTS)), SEEDS)
def test_h1_the_gate_never_opens_before_any_time_that_the_server_has_named(
    closings: list[tuple[float, float]], seed: int
) -> None:
    hold, now, not_before = RetryAfterHold(dice=Random(seed)), 0.0, 0.0
    for later, hint in closings:
        now += later
        hold.close(now, hint)
        not_before = max(not_before, now + hint)
        assert hold.wait(now) >= not_before - now


@settings(deadline=None)
@given(MOMENTS, HINTS, SEEDS)
def test_the_gate_opens_soon_after_that_time_and_for_everybody(now: float, hint: float, seed: int) -> None:
    hold = RetryAfterHold(dice=Random(seed))
    hold.close(now, hint)
    assert hold.wait(now) <= hint + 2.0 + 1e-6
    assert hold.wait(now + hint) == 0.0


def test_callers_who_wait_together_are_told_different_times() -> None:
    hold = RetryAfterHold(dice=Random(7))
    hold.close(10.0, 30.0)
    assert len({hold.wait(10.0) for _ in range(100)}) == 100


# The breaker.


def failing(breaker: CircuitBreaker, now: float, rows: range) -> bool:
    """Every one of these rows fails now; whether that opened the breaker."""
    return sum(breaker.failed(now, row) for row in rows) > 0


def opened(now: float = 100.0) -> CircuitBreaker:
    """A breaker that has opened at this moment."""
    breaker = CircuitBreaker()
    breaker.succeeded(now - 60.0)
    assert failing(breaker, now, range(10))
    assert breaker.opened_at == now
    return breaker


@pytest.mark.parametrize(("rows", "silence", "opens"), [(10, 5.0, True), (9, 999.0, False), (99, 4.9, False)])
def test_h4_the_breaker_opens_when_ten_rows_have_failed_and_nothing_succeeded_for_five_seconds(
    rows: int,
    silence: float,
    opens: bool,  # noqa: FBT001 - a table
) -> None:
    breaker = CircuitBreaker()
    breaker.succeeded(100.0)
    assert failing(breaker, 100.0 + silence, range(rows)) is opens
    assert (breaker.opened_at is not None) is opens


def test_h4_before_any_success_the_silence_counts_from_the_first_request() -> None:
    breaker = CircuitBreaker()
    breaker.sent(100.0)
    assert not failing(breaker, 104.9, range(50))
    assert failing(breaker, 105.0, range(1))


@settings(deadline=None)
@given(st.lists(STEPS, min_size=1))
def test_h4_while_it_is_open_one_probe_leaves_every_fifteen_seconds(steps: list[float]) -> None:
    breaker, now = opened(100.0), 100.0
    probes = [now]
    for step in steps:
        now += step
        if breaker.wait(now) == 0.0:
            breaker.sent(now)
            probes.append(now)
            assert breaker.wait(now) == pytest.approx(PROBE_S)
    assert all(later - earlier >= PROBE_S - 1e-9 for earlier, later in pairwise(probes))


def test_h4_the_first_success_closes_the_breaker() -> None:
    breaker = opened(100.0)
    assert breaker.succeeded(115.0)
    assert breaker.opened_at is None
    assert breaker.wait(115.0) == 0.0
    assert not breaker.succeeded(116.0)


def test_h4_failures_before_a_success_are_forgotten() -> None:
    breaker = CircuitBreaker()
    breaker.sent(0.0)
    assert not failing(breaker, 50.0, range(9))
    breaker.succeeded(51.0)
    assert not failing(breaker, 60.0, range(9, 18))
    assert failing(breaker, 60.0, range(18, 19))


@settings(deadline=None)
@given(st.lists(st.floats(0.0, 1000.0)))
def test_h11_one_row_that_always_fails_never_opens_it(steps: list[float]) -> None:
    breaker, now = CircuitBreaker(), 0.0
    breaker.sent(now)
    for step in steps:
        now += step
        assert not breaker.failed(now, 7)


@settings(deadline=None)
@given(st.integers(1, 2000), st.integers(1, 100))
def test_h11_rows_that_failed_while_others_went_well_never_open_it(poison: int, rounds: int) -> None:
    """Also when they alone are left at the end of the run."""
    breaker = CircuitBreaker()
    breaker.sent(0.0)
    failing(breaker, 1.0, range(poison))
    breaker.succeeded(2.0)
    assert not any(failing(breaker, 1000.0 * n, range(poison)) for n in range(1, min(rounds, 20_000 // poison) + 1))


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["sent", "succeeded", "failed"]), st.integers(0, 30), st.floats(0, 3))))
def test_h4_it_opens_for_nothing_less_than_ten_rows_and_five_seconds(events: list[tuple[str, int, float]]) -> None:
    breaker, now, last, rows = CircuitBreaker(), 0.0, 0.0, set[int]()
    breaker.sent(now)
    for kind, row, step in events:
        now += step
        if kind == "sent":
            breaker.sent(now)
        elif kind == "succeeded":
            breaker.succeeded(now)
            last, rows = now, set()
        else:
            rows.add(row)
            if breaker.failed(now, row):
                assert len(rows) >= 10
                assert now - last >= 5.0


# The rate that the quota grants.


@dataclass
class Quota:
    """A server that grants so many requests a second, with room for a burst of a tenth of that, and refuses others."""

    per_second: float
    left: float = 0.0
    at: float = 0.0

    def grants(self, now: float) -> bool:
        self.left = min(max(1.0, self.per_second / 10), self.left + (now - self.at) * self.per_second)
        self.at = now
        if self.left < 1.0:
            return False
        self.left -= 1.0
        return True


def sending(rate: AdaptiveRate, quota: Quota, latency: float = 0.5) -> Iterator[tuple[float, bool]]:
    """Every request of a client that sends as fast as the rate lets it: when it left, and whether it was granted."""
    on_their_way: deque[tuple[float, float, bool]] = deque()
    now = 0.0
    while True:
        wait = rate.wait(now)
        if on_their_way and on_their_way[0][0] <= now + wait:
            now, left_at, granted = on_their_way.popleft()
            if granted:
                rate.answered(now, left_at)
            else:
                rate.throttled(now, left_at)
            continue
        now += wait
        if rate.wait(now) > 0.0:
            continue
        rate.sent(now)
        granted = quota.grants(now)
        on_their_way.append((now + latency, now, granted))
        yield now, granted


def until(sent: Iterator[tuple[float, bool]], end: float) -> list[tuple[float, bool]]:
    """What was sent before this moment."""
    found = []
    for moment, granted in sent:
        if moment >= end:
            break
        found.append((moment, granted))
    return found


@pytest.mark.parametrize("latency", [0.1, 1.0])
@pytest.mark.parametrize(("quota", "most"), [(5.0, 0.12), (30.0, 0.03), (300.0, 0.03)])
def test_h2_the_quota_is_found_used_and_hardly_passed(quota: float, most: float, latency: float) -> None:
    """One refusal an episode is how the limit is felt: of few requests a second that is a larger share."""
    sent = until(sending(AdaptiveRate(), Quota(quota), latency), 90.0)
    granted = sum(ok for moment, ok in sent if moment >= 30.0)
    refused = sum(not ok for moment, ok in sent if moment >= 30.0)
    assert granted >= 0.8 * quota * 60.0
    assert refused <= most * (granted + refused)


def test_h2_too_high_a_rate_falls_to_the_quota_in_two_cuts_although_answers_are_late() -> None:
    """What is still on its way counts neither as granted nor as refused."""
    pace = AdaptiveRate(100.0)
    sent = until(sending(pace, Quota(20.0), latency=1.0), 5.0)
    assert pace.rate <= 25.0
    assert sum(not ok for moment, ok in sent if moment > 4.0) <= 5


@pytest.mark.parametrize("concurrency", [64, 256, 1000])
def test_h2_a_start_far_above_the_quota_costs_few_refusals(concurrency: int) -> None:
    sent = until(sending(AdaptiveRate(first_rate(concurrency)), Quota(100.0), latency=0.05), 60.0)
    granted = sum(ok for _, ok in sent)
    assert granted >= 0.9 * 100.0 * 60.0
    assert len(sent) - granted <= 0.05 * granted


def test_all_calls_that_may_be_in_flight_are_on_their_way_in_little_over_a_second() -> None:
    for concurrency in (64, 1000, 5000):
        sent = until(sending(AdaptiveRate(first_rate(concurrency)), Quota(1e9), latency=10.0), 1.26)
        assert len(sent) >= concurrency


def test_h2_a_quota_that_grows_is_found_again() -> None:
    quota = Quota(20.0)
    sent = sending(AdaptiveRate(), quota)
    until(sent, 60.0)
    quota.per_second = 200.0
    until(sent, 90.0)
    assert sum(ok for _, ok in until(sent, 100.0)) >= 0.8 * 2000


def test_h2_a_quota_that_shrinks_is_respected_soon() -> None:
    quota = Quota(200.0)
    sent = sending(AdaptiveRate(), quota)
    until(sent, 30.0)
    quota.per_second = 10.0
    until(sent, 50.0)
    later = until(sent, 80.0)
    assert sum(not ok for _, ok in later) <= 0.1 * len(later)
    assert sum(ok for _, ok in later) >= 0.8 * 10.0 * 30.0


@settings(deadline=None)
@given(st.floats(1.0, 500.0), SEEDS)
def test_without_an_answer_the_rate_is_kept_in_every_second(rate: float, seed: int) -> None:
    """However late the caller wakes, it makes up for no more than what a clock's coarseness explains."""
    pace, dice, now = AdaptiveRate(rate), Random(seed), 0.0
    sent: list[float] = []
    for _ in range(200):
        now += pace.wait(now) + dice.choice([0.0, 0.001, 0.015, 2.0])
        pace.sent(now)
        sent.append(now)
    for index, moment in enumerate(sent):
        assert bisect_left(sent, moment + 1.0) - index <= rate * 1.02 + 2


def test_the_rate_grows_only_while_it_holds_requests_back() -> None:
    idle = AdaptiveRate()
    for now in range(1, 100):
        idle.sent(now)
        idle.answered(now + 0.5, now)
    assert idle.rate == FIRST_RATE


def refused_in_a_row(pace: AdaptiveRate) -> float:
    """A hundred requests leave in a second, and the first twenty are refused at its end: the moment of the cut."""
    for now in islice(count(0.0, 0.01), 100):
        pace.sent(now)
    for number in range(20):
        pace.throttled(1.0, number * 0.01)
    return 1.0


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0.0, 2.0), st.floats(0.0, 5.0)), min_size=1))
def test_what_left_before_a_cut_says_nothing_about_the_rate_since(others: list[tuple[float, float]]) -> None:
    pace = AdaptiveRate(100.0)
    at = refused_in_a_row(pace)
    cut = pace.rate
    assert LEAST_RATE <= cut < 100.0
    for later, before in others:
        pace.throttled(at + later, at - before - 1e-9)
        assert pace.rate == cut


def test_h4_after_an_outage_the_rate_begins_anew_at_a_fifth() -> None:
    pace = AdaptiveRate(100.0)
    pace.rate = 100.0
    pace.restart(50.0)
    assert pace.rate == 20.0
    sent = [moment for moment, _ in until(sending(pace, Quota(1e9)), 55.0)]
    assert len([moment for moment in sent if moment > 54.0]) > 100


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["sent", "answered", "throttled", "failed", "restart"]), st.floats(0, 5), st.floats(0, 9)
        )
    )
)
def test_the_rate_is_always_a_rate(events: list[tuple[str, float, float]]) -> None:
    pace, now = AdaptiveRate(), 0.0
    for kind, step, on_its_way in events:
        now += step
        pace.wait(now)
        if kind in {"answered", "throttled"}:
            getattr(pace, kind)(now, now - on_its_way)
        else:
            getattr(pace, kind)(now)
        assert LEAST_RATE <= pace.rate < float("inf")
        assert 0.0 <= pace.wait(now) < float("inf")


# Declared limits.


@settings(deadline=None)
@given(st.floats(1.0, 3000.0), st.lists(st.tuples(st.floats(0.0, 20.0), st.integers(1, 9)), max_size=200))
def test_a_declared_rate_is_never_passed_in_any_minute(per_minute: float, calls: list[tuple[float, int]]) -> None:
    spacing, now = Pacer(per_minute), 0.0
    taken: list[tuple[float, int]] = []
    for late, units in calls:
        now += spacing.wait(now) + (late if late > 10.0 else 0.0)
        assert spacing.wait(now) <= 1e-6
        spacing.take(now, units)
        taken.append((now, units))
    for index, (start, _) in enumerate(taken):
        inside = [units for moment, units in taken[index:] if moment < start + 60.0 - 1e-6]
        assert sum(inside) <= per_minute + inside[-1]


def test_a_declared_rate_is_used_to_the_full() -> None:
    spacing, now = Pacer(60.0), 0.0
    for _ in range(100):
        now += spacing.wait(now)
        spacing.take(now)
    assert now == pytest.approx(99.0)


@settings(deadline=None)
@given(st.floats(1.0, 1e6), st.floats(0.0, 1e5), st.floats(0.0, 1e5))
def test_an_estimate_that_is_settled_leaves_the_limit_as_if_it_had_been_known(
    per_minute: float, estimated: float, actual: float
) -> None:
    guessed, known = Pacer(per_minute), Pacer(per_minute)
    guessed.take(0.0, estimated)
    guessed.settle(estimated, actual)
    known.take(0.0, actual)
    assert guessed.wait(-1.0) == pytest.approx(known.wait(-1.0), abs=1e-6)


@settings(deadline=None)
@given(st.integers(1, 10**6), st.integers(0, 10**5), st.integers(0, 10**5))
def test_tokens_of_a_request_are_learned_from_the_answers(size: int, asked: int, answered: int) -> None:
    estimate = TokenEstimate()
    for _ in range(300):
        estimate.learn(size, asked, answered)
    assert estimate.of(size) == pytest.approx(asked + answered, rel=0.01, abs=1e-6)


# Failure rate.


def seen(outcomes: list[bool]) -> FailureRate:
    failure_rate = FailureRate()
    for failed in outcomes:
        failure_rate.saw(failed=failed)
    return failure_rate


def test_nothing_seen_is_no_failure() -> None:
    assert FailureRate().share == 0.0
    assert FailureRate().attempts(5) == 5


@settings(deadline=None)
@given(st.lists(st.booleans(), max_size=400), st.integers(1, 30))
def test_a_row_gets_at_least_its_attempts_and_at_most_twenty_or_those(outcomes: list[bool], least: int) -> None:
    assert least <= seen(outcomes).attempts(least) <= max(least, MOST_ATTEMPTS)


@settings(deadline=None)
@given(st.lists(st.booleans(), max_size=400))
def test_the_share_of_failures_is_a_share(outcomes: list[bool]) -> None:
    assert 0.0 <= seen(outcomes).share < 1.0


@settings(deadline=None)
@given(st.lists(st.booleans(), max_size=400))
def test_one_more_failure_never_grants_fewer_tries_than_one_more_success(outcomes: list[bool]) -> None:
    assert seen([*outcomes, True]).attempts(5) >= seen([*outcomes, False]).attempts(5)


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=400))
def test_h3_in_a_bad_hour_mere_chance_hardly_uses_up_all_tries(outcomes: list[bool]) -> None:
    failure_rate = seen(outcomes)
    attempts = failure_rate.attempts(5)
    bad = failure_rate.share >= BAD_SHARE and sum(outcomes) >= 3 * BAD_ROWS
    assert not bad or attempts == MOST_ATTEMPTS or failure_rate.share**attempts <= UNLIKELY * 1.000001
    assert sum(outcomes) >= BAD_ROWS or attempts == 5


@settings(deadline=None)
@given(st.integers(2, 2000), st.integers(1, 5))
def test_h11_a_single_bad_row_has_no_more_tries_than_it_was_given_however_few(rows: int, attempts: int) -> None:
    assert seen([row == 0 for row in range(rows)]).attempts(attempts) == attempts


@settings(deadline=None)
@given(st.integers(1, 2000), st.data())
def test_h11_a_single_bad_row_is_told_from_a_bad_hour(rows: int, data: st.DataObject) -> None:
    bad = data.draw(st.integers(0, rows - 1))
    assert seen([row == bad for row in range(rows)]).attempts(5) == 5


def test_a_bad_hour_passes() -> None:
    failure_rate = seen([True] * 1000)
    assert failure_rate.attempts(5) == MOST_ATTEMPTS
    for _ in range(2000):
        failure_rate.saw(failed=False)
    assert failure_rate.attempts(5) == 5


@pytest.mark.parametrize(("percent", "attempts"), [(1, 5), (5, 5), (10, 6), (30, 12), (50, 19)])
def test_the_tries_follow_from_the_share_of_failures(percent: int, attempts: int) -> None:
    dice = Random(1)
    failure_rate = seen([dice.random() * 100 < percent for _ in range(5000)])
    assert abs(failure_rate.attempts(5) - attempts) <= 2


# The retry budget.


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.floats(0.0, 3.0)), max_size=300))
def test_retries_stay_a_bounded_share_of_first_tries_and_of_time(events: list[tuple[bool, float]]) -> None:
    budget, now, firsts, retries = RetryBudget(), 0.0, 0, 0
    for is_first, step in events:
        now += step
        if is_first:
            budget.first_try()
            firsts += 1
        else:
            retries += budget.take(now) == 0.0
    assert retries <= 50 + 0.75 * firsts + now * 1.0 + 1e-6


@settings(deadline=None)
@given(st.integers(0, 200), st.floats(0.0, 100.0))
def test_who_waits_as_long_as_the_budget_says_may_retry_then(spent: int, now: float) -> None:
    budget = RetryBudget()
    for _ in range(spent):
        budget.take(now)
    wait = budget.take(now)
    assert 0.0 <= wait <= 1.0
    assert wait == 0.0 or budget.take(now + wait) == 0.0


# Latencies.


@settings(deadline=None)
@given(st.lists(st.floats(0.0, 1000.0), max_size=60), st.integers(1, 20), st.floats(0.0, 1.0))
def test_quantiles_are_those_of_the_latest_latencies(values: list[float], size: int, share: float) -> None:
    latencies = LatencyWindow(size)
    for value in values:
        latencies.add(value)
    latest = sorted(values[-size:])
    assert len(latencies) == len(latest)
    expected = latest[min(len(latest) - 1, int(share * len(latest)))] if latest else None
    assert latencies.quantile(share) == expected


# Stragglers.


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(1.0, 1000.0), min_size=100, max_size=400, unique=True), st.floats(0.01, 0.5))
def test_of_calls_that_begin_together_the_slowest_are_hedged(took: list[float], share: float) -> None:
    stragglers = StragglerDetector(share)
    calls = {seconds: stragglers.begin(0.0) for seconds in took}
    hedged = []
    for now in sorted(took):
        stragglers.end(calls.pop(now), now)
        for seconds, call in calls.items():
            if call.took is None and stragglers.may_hedge(call, now):
                stragglers.hedge(call)
                hedged.append(seconds)
    slowest = sorted(took)[-int(share * len(took)) :]
    assert set(hedged) <= set(slowest)
    assert share * len(took) - 2 <= len(hedged) < share * len(took)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0.0, 10.0), max_size=300), st.floats(0.01, 1.0), st.integers(100, 200))
def test_hedges_are_always_less_than_their_share_of_the_calls(took: list[float], share: float, size: int) -> None:
    stragglers = StragglerDetector(share, size)
    for now, seconds in enumerate(took):
        call = stragglers.begin(float(now))
        if stragglers.may_hedge(call, now + seconds):
            stragglers.hedge(call)
        stragglers.end(call, now + seconds)
        assert stragglers.hedged == 0 or stragglers.hedged < share * stragglers.begun


def test_a_call_is_not_late_because_younger_ones_were_quick() -> None:
    stragglers = StragglerDetector(0.03, size=20_000)
    wave = [stragglers.begin(0.0) for _ in range(1000)]
    for call in wave[50:]:
        stragglers.end(call, 1.0)
    for _ in range(9000):
        stragglers.end(stragglers.begin(1.0), 2.0)
    assert not any(stragglers.may_hedge(call, 10.0) for call in wave[:50])
    for call in wave[30:50]:
        stragglers.end(call, 12.0)
    assert all(stragglers.may_hedge(call, 12.0) for call in wave[:30])


def test_a_call_that_is_older_than_a_late_one_is_late() -> None:
    stragglers = StragglerDetector(0.03)
    oldest = stragglers.begin(0.0)
    for _ in range(99):
        stragglers.end(stragglers.begin(0.1), 1.0)
    assert not stragglers.may_hedge(oldest, 5.0)
    assert stragglers.may_hedge(stragglers.begin(0.2), 5.0)
    assert stragglers.may_hedge(oldest, 5.0)


def test_a_call_that_outlasts_all_that_are_remembered_is_late() -> None:
    stragglers = StragglerDetector(0.03, size=100)
    oldest = stragglers.begin(0.0)
    for now in range(100):
        stragglers.end(stragglers.begin(float(now)), now + 200.0)
    assert stragglers.may_hedge(oldest, 150.0)


def test_one_looks_again_when_the_call_takes_longer_than_usual_and_then_now_and_again() -> None:
    stragglers = StragglerDetector(0.05)
    assert stragglers.look_again(stragglers.begin(0.0), 0.0) == 0.1
    for _ in range(100):
        stragglers.end(stragglers.begin(0.0), 8.0)
    call = stragglers.begin(10.0)
    assert stragglers.look_again(call, 11.0) == 7.0
    assert stragglers.look_again(call, 26.0) == 1.0
