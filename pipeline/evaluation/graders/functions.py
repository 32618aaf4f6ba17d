"""A grader that calls a user's function."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipeline.evaluation.graders.base import Finding, Scalar
from pipeline.faults import UsageError


@dataclass(frozen=True)
class Function(Scalar):
    """`function(expected, got)` or `function(expected, got, row)`, called where both sides have a value.

    The type of its result is its meaning: a bool is a check; a number from 0 to 1 is a score, right from `at_least`
    on; a string is a label, right when it is one of `right`. Anything else is a UsageError. The result must depend on
    the arguments alone. To compare the items of a list it is called for every pair of them.
    """

    function: Callable[..., bool | float | str]
    at_least: float = 1.0
    right: Collection[str] = ("correct",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(callable(self.function), "give a function of (expected, got) or (expected, got, row)")
        self._require(self._arguments in (2, 3), f"{self.name} must take (expected, got) or (expected, got, row)")
        self._require(0 <= self.at_least <= 1, f"`at_least` is a score from 0 to 1, not {self.at_least}")
        self._require(not isinstance(self.right, str), f"`right` holds labels: write ({self.right!r},)")

    @property
    def name(self) -> str:
        """The function's name."""
        return getattr(self.function, "__qualname__", repr(self.function))

    @cached_property
    def _arguments(self) -> int:
        try:
            signature = inspect.signature(self.function)
        except (TypeError, ValueError):  # some built-in functions have no signature
            return 2
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        taken = [each for each in signature.parameters.values() if each.kind in positional]
        needed = [each for each in taken if each.default is inspect.Parameter.empty]
        return 2 if len(needed) <= 2 <= len(taken) else len(needed)

    def find(self, expected: Any, got: Any, row: Mapping[str, Any]) -> Finding:
        """The function's result as a finding."""
        said = self.function(expected, got, row) if self._arguments == 3 else self.function(expected, got)
        match said:
            case bool():
                return Finding.check(said)
            case int() | float() if math.isfinite(said) and 0 <= said <= 1:
                return Finding(said >= self.at_least, float(said))
            case str():
                return Finding(said in self.right, float(said in self.right), said)
            case _:
                raise UsageError(
                    f"Function: {self.name} returned {said!r}: it must return a bool, a number from 0 to 1 or a label"
                )
