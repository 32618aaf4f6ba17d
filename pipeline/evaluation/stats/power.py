"""How small a change a paired test can see.

The test of McNemar with the share `churn` of rows that differ between two runs (Connor 1987, Connett et al. 1987): an
effect is seen with chance `POWER` once it is `(z(1 - alpha/2) + z(POWER))` standard errors, `sqrt(churn / rows)` each.
An effect cannot be larger than the share of rows that differ, so a larger one brings its own churn.
"""

from __future__ import annotations

import math
from statistics import NormalDist

POWER = 0.8
"""The chance with which an effect of the size that is told is seen."""


def smallest_effect(rows: float, churn: float, *, alpha: float = 0.05) -> float:
    """The smallest difference of shares that is seen with that chance; at most 1, which no test of so few rows sees."""
    if rows <= 0:
        return 1.0
    errors = standard_errors(alpha)
    return min(1.0, errors * math.sqrt(max(churn, errors**2 / rows) / rows))


def standard_errors(alpha: float = 0.05) -> float:
    """How many standard errors of a difference an effect must be: 2.8 for a chance of 80 % at two-sided 5 %."""
    normal = NormalDist()
    return normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(POWER)
