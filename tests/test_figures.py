"""Figures for people look the same, however they were summed."""

from __future__ import annotations

import math

import pytest

from pipeline.text.figures import cost


@pytest.mark.parametrize(
    ("half", "shown"), [(0.0049255, "$0.004926"), (0.0079105, "$0.007911"), (12.0000005, "$12.000001")]
)
def test_a_cost_does_not_depend_on_the_order_in_which_it_was_summed(half: float, shown: str) -> None:
    assert {cost(usd) for usd in (half, math.nextafter(half, 0), math.nextafter(half, 100))} == {shown}
