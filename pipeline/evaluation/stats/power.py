"""The smallest change that a paired test can detect.

McNemar's test when a share `churn` of the rows differs between two runs (Connor 1987, Connett et al. 1987): an effect
is detected with probability `POWER` once it is `(z(1 - alpha/2) + z(POWER))` standard errors of `sqrt(churn / rows)`.
An effect cannot exceed the share of rows that differ, so a larger effect implies at least as much churn.
"""

from __future__ import annotations

import math
from statistics import NormalDist

POWER = 0.8
"""The probability of detecting an effect of the reported size."""


def smallest_effect(rows: float, churn: float, *, alpha: float = 0.05) -> float:
    """The smallest difference of shares detected with probability `POWER`; 1 when there are too few rows for any."""
    if rows <= 0:
        return 1.0
    errors = standard_errors(alpha)
    return min(1.0, errors * math.sqrt(max(churn, errors**2 / rows) / rows))


def standard_errors(alpha: float = 0.05) -> float:
    """The size of a detectable effect in standard errors: 2.8 for a power of 80 % at two-sided 5 %."""
    normal = NormalDist()
    return normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(POWER)
