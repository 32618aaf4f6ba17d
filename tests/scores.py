"""Scored rows as a run leaves them, and pairs of runs that differ in so many."""

from __future__ import annotations

from typing import Any

import scipy.stats

from pipeline.evaluation.graders.verdicts import Scored, VerdictCounts


def scored(row: int, correct: float = 1.0, **more: Any) -> Scored:
    right = VerdictCounts(right=correct, score=correct, match=correct, wrong=1 - correct)
    return Scored(row=f"{row:03}", correct=correct, **{"fields": {"name": right}, **more})


def runs(broken: int, fixed: int, total: int, **more: Any) -> tuple[list[Scored], list[Scored]]:
    """Two runs in which the first rows break, the next ones are fixed, and the others stay right."""
    before = [scored(i, float(not broken <= i < broken + fixed), **more) for i in range(total)]
    after = [scored(i, float(i >= broken), **more) for i in range(total)]
    return before, after


def mcnemar(broken: int, fixed: int) -> float:
    """The exact two-sided p of McNemar's test, by scipy."""
    return float(scipy.stats.binomtest(broken, broken + fixed).pvalue) if broken + fixed else 1.0
