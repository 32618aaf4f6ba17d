"""Reduces the graded repeats of a row to its score, and finds rows whose repeats disagree."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from pipeline.evaluation.graders.verdicts import Graded, Leaf, Scored, Verdict, VerdictCounts
from pipeline.evaluation.stats.intervals import pass_at_k, pass_hat_k
from pipeline.faults import UsageError

Reducer = Callable[[Sequence[bool]], float]
"""Maps which repeats of a row are right to the correctness of the row, from 0 to 1."""


def mean(right: Sequence[bool]) -> float:
    """The share of repeats that are right."""
    return sum(right) / len(right)


def majority(right: Sequence[bool]) -> float:
    """1 when more than half of the repeats are right."""
    return float(2 * sum(right) > len(right))


def any_right(right: Sequence[bool]) -> float:
    """1 when at least one repeat is right."""
    return float(any(right))


def all_right(right: Sequence[bool]) -> float:
    """1 when all repeats are right."""
    return float(all(right))


def at_least(k: int) -> Reducer:
    """1 when at least `k` repeats are right."""
    return lambda right: float(sum(right) >= _of(k, right))


def pass_at(k: int) -> Reducer:
    """The probability that at least one of `k` repeats is right, unbiased, from all repeats (Chen et al. 2021)."""
    return lambda right: pass_at_k(len(right), sum(right), _of(k, right))


def pass_hat(k: int) -> Reducer:
    """The probability that all of `k` repeats are right (pass^k), unbiased, from all repeats."""
    return lambda right: pass_hat_k(len(right), sum(right), _of(k, right))


def _of(k: int, right: Sequence[bool]) -> int:
    if not 1 <= k <= len(right):
        raise UsageError(
            f"{k} of {len(right)} repeats cannot be computed: give the evaluation at least {max(k, 1)} repeats"
        )
    return k


def reducer_of(name: str) -> Reducer:
    """The reducer with this name: `mean`, `majority`, `any`, `all`, `at_least_K`, `pass_at_K`, `pass_hat_K`."""
    if name in _PLAIN:
        return _PLAIN[name]
    family, _, k = name.rpartition("_")
    if family in _COUNTED and k.isascii() and k.isdigit() and int(k) > 0:
        return _COUNTED[family](int(k))
    known = [*_PLAIN, *(f"{family}_K" for family in _COUNTED)]
    raise UsageError(f"there is no reducer {name!r} (known: {', '.join(known)})")


_PLAIN: Mapping[str, Reducer] = {"mean": mean, "majority": majority, "any": any_right, "all": all_right}
_COUNTED: Mapping[str, Callable[[int], Reducer]] = {"at_least": at_least, "pass_at": pass_at, "pass_hat": pass_hat}


def by_row(graded: Iterable[Graded]) -> dict[str, list[Graded]]:
    """The repeats of every row, in order; rows by first appearance. Raises UsageError for a duplicate repeat."""
    rows: dict[str, list[Graded]] = {}
    for each in graded:
        rows.setdefault(each.row, []).append(each)
    for row, repeats in rows.items():
        repeats.sort(key=lambda each: each.repeat)
        if len({each.repeat for each in repeats}) < len(repeats):
            raise UsageError(f"two rows of the gold data are named {row!r}: use a column with unique values")
    return rows


def scored(graded: Iterable[Graded], reduce: Reducer = mean) -> list[Scored]:
    """The score of every row. Each row counts once, whatever its number of repeats: means are over its own repeats."""
    return [_scored(repeats, reduce) for repeats in by_row(graded).values()]


def _scored(repeats: Sequence[Graded], reduce: Reducer) -> Scored:
    first, right = repeats[0], [each.correct for each in repeats]
    costs = [each.cost_usd for each in repeats if each.cost_usd is not None]
    latencies = [each.latency_s for each in repeats if each.latency_s is not None]
    return Scored(
        row=first.row,
        correct=reduce(right),
        fields={name: counts([each.fields[name] for each in repeats]) for name in first.fields},
        slices=first.slices,
        cluster=first.cluster,
        failed=sum(each.fault is not None for each in repeats) / len(repeats),
        flaky=len(set(right)) > 1,
        cost_usd=sum(costs) if len(costs) == len(repeats) else None,
        latency_s=sum(latencies) / len(latencies) if latencies else None,
        repeats=len(repeats),
        repeats_right=sum(right),
    )


def counts(repeats: Sequence[Sequence[Leaf]]) -> VerdictCounts:
    """The leaves of one field of one row, as means over the repeats."""
    n = len(repeats)
    found = Counter(leaf.verdict for leaves in repeats for leaf in leaves)
    right = sum(all(leaf.right for leaf in leaves) for leaves in repeats) / n
    score = sum(sum(leaf.score for leaf in leaves) / len(leaves) for leaves in repeats if leaves) / n
    return VerdictCounts(right=right, score=score, **{verdict.value: found[verdict] / n for verdict in Verdict})


@dataclass(frozen=True, slots=True)
class Flaky:
    """A row whose repeats disagree: whether each is right, in order, and the fields whose verdict varies."""

    row: str
    right: tuple[bool, ...]
    fields: tuple[str, ...]


def flaky(graded: Iterable[Graded]) -> list[Flaky]:
    """The rows that are right in some repeats and wrong in others."""
    return [
        Flaky(row, tuple(each.correct for each in repeats), _flipping(repeats))
        for row, repeats in by_row(graded).items()
        if len({each.correct for each in repeats}) > 1
    ]


def _flipping(repeats: Sequence[Graded]) -> tuple[str, ...]:
    def is_right(each: Graded, name: str) -> bool:
        return all(leaf.right for leaf in each.fields[name])

    return tuple(name for name in repeats[0].fields if len({is_right(each, name) for each in repeats}) > 1)


def consistency(graded: Iterable[Graded]) -> dict[str, float]:
    """How often two repeats give the same value, right or wrong, for every field: the mean over rows with repeats.

    Values are compared as JSON, lists regardless of order. A failed repeat equals no other.
    """
    rows = [repeats for repeats in by_row(graded).values() if len(repeats) > 1]
    names = dict.fromkeys(name for repeats in rows for name in repeats[0].fields)
    return {name: sum(_consistency(repeats, name) for repeats in rows) / len(rows) for name in names}


def _consistency(repeats: Sequence[Graded], name: str) -> float:
    given = [None if each.fault is not None else _given(each.fields[name]) for each in repeats]
    pairs = [one is not None and one == other for one, other in combinations(given, 2)]
    return sum(pairs) / len(pairs)


def _given(leaves: Sequence[Leaf]) -> list[tuple[str, str]]:
    said = (leaf for leaf in leaves if leaf.verdict in (Verdict.match, Verdict.wrong, Verdict.invented))
    return sorted((leaf.path, _canonical(leaf.got)) for leaf in said)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
