"""Pairs the items of two lists: by optimal assignment, or in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.evaluation.extra import needs_eval

Pairs = list[tuple[int, int]]
"""Positions in the expected list, ascending, with the paired positions in the given one."""

_STEPS = 1_000_000
"""Similarities are rounded to a millionth; closer ones are ties."""


def assigned(similar: Sequence[Sequence[float | None]]) -> Pairs:
    """The pairs of the greatest total similarity; None marks items that may not be paired.

    Of several best sets of pairs it takes the one that keeps the order and the first positions: the one with the
    greatest sum of (n - i) * (m - j). So the result is a function of the lists alone.
    """
    if not similar or not similar[0]:
        return []
    with needs_eval("aligning lists"):
        import numpy as np
        from scipy.optimize import linear_sum_assignment
    rows, columns = len(similar), len(similar[0])
    tie = min(rows, columns) * rows * columns + 1  # larger than any sum of the second term
    weight = np.zeros((rows, columns))
    for i, line in enumerate(similar):
        for j, likeness in enumerate(line):
            if likeness is not None:
                weight[i, j] = round(likeness * _STEPS) * tie + (rows - i) * (columns - j)
    chosen, partners = linear_sum_assignment(weight, maximize=True)
    best = zip(chosen.tolist(), partners.tolist(), strict=True)
    return [(i, j) for i, j in best if similar[i][j] is not None]


def in_order(rows: int, columns: int, agree: Callable[[int, int], bool]) -> Pairs:
    """A longest common subsequence, the one with the lowest positions, and the items between paired in order.

    Between two agreeing pairs, the first remaining item is paired with the first of the other side, and so on: an
    inserted item shifts nothing, and a replaced item is one pair that does not agree.
    """
    pairs: Pairs = []
    i = j = 0
    for next_i, next_j in [*_common(rows, columns, agree), (rows, columns)]:
        pairs += zip(range(i, next_i), range(j, next_j), strict=False)
        pairs += [(next_i, next_j)]
        i, j = next_i + 1, next_j + 1
    return pairs[:-1]


def _common(rows: int, columns: int, agree: Callable[[int, int], bool]) -> Pairs:
    agreed = [[agree(i, j) for j in range(columns)] for i in range(rows)]
    length = [[0] * (columns + 1) for _ in range(rows + 1)]  # of the longest one from these positions to the ends
    for i in reversed(range(rows)):
        for j in reversed(range(columns)):
            here = 1 + length[i + 1][j + 1] if agreed[i][j] else 0
            length[i][j] = max(length[i + 1][j], length[i][j + 1], here)
    pairs: Pairs = []
    start = 0
    for i in range(rows):
        for j in range(start, columns):
            if agreed[i][j] and 1 + length[i + 1][j + 1] == length[i][start]:
                pairs.append((i, j))
                start = j + 1
                break
    return pairs
