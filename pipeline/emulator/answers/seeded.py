"""Pseudo-random choices that are a function of a seed."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeVar

T = TypeVar("T")


class Dice:
    """A sequence of numbers that depends only on the seed: equal seeds give equal sequences."""

    __slots__ = ("_round", "_seed")

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._round = 0

    def below(self, bound: int) -> int:
        """A whole number from 0 to `bound` - 1; `bound` is at least 1."""
        material = self._seed + self._round.to_bytes(4, "big")
        self._round += 1
        size = max(8, bound.bit_length() // 8 + 2)
        return int.from_bytes(blake2b(material, digest_size=min(64, size)).digest(), "big") % bound

    def share(self) -> float:
        """A number in [0, 1)."""
        return self.below(2**53) / 2**53

    def pick(self, values: Sequence[T]) -> T:
        """One of the values, which must not be empty."""
        return values[self.below(len(values))]
