"""How small a change a paired test can see, and how many rows it takes to see one.

The test of McNemar with the share `churn` of rows that differ between two runs (Connor 1987, Connett et al. 1987): an
effect is seen with chance `power` once it is `(z(1 - alpha/2) + z(power))` standard errors, `sqrt(churn / rows)` each.
An effect cannot be larger than the share of rows that differ, so a larger one brings its own churn.
"""

from __future__ import annotations

import math
from statistics import NormalDist


def smallest_effect(rows: float, churn: float, *, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest difference of shares that is seen with this chance; at most 1, which no test of so few rows sees."""
    if rows <= 0:
        return 1.0
    errors = standard_errors(power, alpha)
    return min(1.0, errors * math.sqrt(max(churn, errors**2 / rows) / rows))


def rows_needed(effect: float, churn: float, *, power: float = 0.8, alpha: float = 0.05) -> int:
    """How many rows it takes to see a difference of shares with this chance."""
    if not 0 < effect <= 1:
        raise ValueError(f"an effect lies between 0 and 1: {effect}")
    return math.ceil(standard_errors(power, alpha) ** 2 * max(churn, effect) / effect**2 - 1e-9)


def standard_errors(power: float = 0.8, alpha: float = 0.05) -> float:
    """How many standard errors of a difference an effect must be: 2.8 for a chance of 80 % at two-sided 5 %."""
    normal = NormalDist()
    return normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)
