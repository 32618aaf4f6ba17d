"""Figures for people look the same, however they were summed."""

from __future__ import annotations

import math

import pytest

from pipeline.text.figures import cost

HALF = 0.0049255
"""Half a millionth of a dollar above a whole one."""


@pytest.mark.parametrize("usd", [HALF, math.nextafter(HALF, 0), math.nextafter(HALF, 1)])
def test_a_cost_does_not_depend_on_the_order_in_which_it_was_summed(usd: float) -> None:
    assert cost(usd) == "$0.004926"
