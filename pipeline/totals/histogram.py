"""Histograms that add up: over the calls of a start, and over its processes."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import ClassVar, Self


@dataclass(slots=True)
class Histogram:
    """How many values fell into each bucket, and their sum. A bucket includes its upper bound; the last has none."""

    BOUNDS: ClassVar[tuple[float, ...]] = ()

    counts: list[int] = field(default_factory=list)
    sums: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.counts:
            self.counts = [0] * (len(self.BOUNDS) + 1)
            self.sums = [0.0] * (len(self.BOUNDS) + 1)

    def observe(self, value: float) -> None:
        """Adds a value."""
        bucket = bisect_left(self.BOUNDS, value)
        self.counts[bucket] += 1
        self.sums[bucket] += value

    def __add__(self, other: Self) -> Self:
        return type(self)(
            [one + more for one, more in zip(self.counts, other.counts, strict=True)],
            [one + more for one, more in zip(self.sums, other.sums, strict=True)],
        )

    @property
    def count(self) -> int:
        """How many values there are."""
        return sum(self.counts)

    @property
    def sum(self) -> float:
        """Their sum."""
        return sum(self.sums)


class CallDurations(Histogram):
    """Seconds from when a call left until its answer had come."""

    __slots__ = ()

    BOUNDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
    """As OpenTelemetry's conventions for generative AI advise for gen_ai.client.operation.duration."""


class CallTokens(Histogram):
    """Tokens of a call."""

    __slots__ = ()

    BOUNDS = tuple(float(4**power) for power in range(14))
    """As OpenTelemetry's conventions for generative AI advise for gen_ai.client.token.usage."""
