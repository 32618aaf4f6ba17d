"""Whether what was taken for background loss still is: what a check at a far lower rate shows, and what it says."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from pipeline.pace.background_check import BackgroundCheck
from pipeline.pace.loss_evidence import Trial
from pipeline.pace.rate_trials import Checks
from pipeline.pace.refusal_counts import Background

RATE = 10.0


def checked(refused: Sequence[int], requests: int) -> bool | None:
    """What a check says of so many requests, of which those with these numbers were refused; None if nothing."""
    check = BackgroundCheck(rate=RATE)
    check.begin(RATE, RATE, 0)
    for number in range(1, requests + 1):
        if number in refused:
            check.refuse(number)
        found = check.is_background(Trial(RATE / 2, number, sum(one <= number for one in refused)), number / RATE)
        if found is not None:
            return found
    return None


@pytest.mark.parametrize("every", [3, 6, 10])
def test_h2a_refusals_that_go_on_at_a_far_lower_rate_are_still_the_weather(every: int) -> None:
    assert checked(range(every, 120, every), 119) is True


def test_h2a_when_nothing_is_refused_at_a_far_lower_rate_it_was_no_weather() -> None:
    assert checked([], 80) is False


@pytest.mark.parametrize("size", [2, 4])
def test_h2a_a_burst_of_refusals_is_another_client_and_no_weather(size: int) -> None:
    """Two bursts, of as many refusals as would be background loss if they came singly."""
    refused = [*range(10, 10 + size), *range(60, 60 + size)]
    assert checked(refused, 119) is not True
    assert checked(refused, 300) is False


def test_h2a_when_nearly_all_is_refused_it_is_no_weather() -> None:
    assert checked(range(1, 40), 39) is False


def test_h2a_a_check_ends_also_when_it_cannot_tell() -> None:
    check = BackgroundCheck(rate=RATE)
    check.begin(RATE, RATE, 0)
    assert check.is_background(Trial(1.0, 2, 0), 11.0) is None
    assert check.is_background(Trial(1.0, 2, 0), 13.0) is False


def test_h2a_a_check_is_due_when_the_rate_has_grown_and_never_before_weather_was_found() -> None:
    assert not BackgroundCheck().is_due(1e9)
    assert not BackgroundCheck(rate=RATE).is_due(2.0 * RATE)
    assert BackgroundCheck(rate=RATE).is_due(3.0 * RATE)


def test_h2a_a_check_is_far_below_what_was_sent_and_below_what_was_checked_before() -> None:
    check = BackgroundCheck(rate=RATE)
    assert check.begin(100.0, 12.0, 0) == 6.0
    assert check.begin(100.0, 80.0, 0) == 7.5
    assert check.back == 100.0
    assert BackgroundCheck(rate=math.inf).begin(100.0, 80.0, 0) == 40.0


@pytest.mark.parametrize(("share", "kept"), [(0.005, 0.005), (0.3, 0.02)])
def test_h2a_of_what_a_quota_may_have_refused_little_is_kept_as_the_background(share: float, kept: float) -> None:
    background = Background()
    background.believe(share, 500.0)
    background.doubt()
    assert background.share == pytest.approx(kept)
    background.learn(50, 0, most=0.1, memory=300.0)
    assert background.share == pytest.approx(kept / 2)


def test_h2a_checks_of_a_new_belief_come_soon_again() -> None:
    checks = Checks()
    for _ in range(5):
        checks.later(0.0)
    assert checks.at > 10.0
    checks.restart()
    checks.later(0.0)
    assert checks.at == 2.0
