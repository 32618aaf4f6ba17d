"""The conditions that an evaluation must meet: gates as users write them.

`pipeline.evaluation.decisions` evaluates them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from pipeline.evaluation.comparison import meets
from pipeline.evaluation.stats.metrics import metric_of
from pipeline.faults import UsageError
from pipeline.text import nearest

Severity = Literal["fail", "warn", "info"]
Inconclusive = Literal["warn", "fail", "pass"]


@dataclass(frozen=True, slots=True)
class AtLeast:
    """The metric, or with `on="lower"` the lower end of its 95 % interval, must be at least `value`.

    Shares are between 0 and 1. `where` limits the gate to rows with these slice values.
    """

    metric: str
    value: float
    on: Literal["value", "lower"] = "value"
    where: Mapping[str, str] | None = None
    severity: Severity = "fail"

    def __post_init__(self) -> None:
        _check_bound(self)
        _check_choice(self, "on", self.on, ("value", "lower"))

    @property
    def name(self) -> str:
        """One line that tells this gate from others."""
        on = " (lower end)" if self.on == "lower" else ""
        return f"{self.metric} at least {self.value:g}{on}{_of(self.where)}"


@dataclass(frozen=True, slots=True)
class AtMost:
    """The metric, or with `on="upper"` the upper end of its 95 % interval, must be at most `value`."""

    metric: str
    value: float
    on: Literal["value", "upper"] = "value"
    where: Mapping[str, str] | None = None
    severity: Severity = "fail"

    def __post_init__(self) -> None:
        _check_bound(self)
        _check_choice(self, "on", self.on, ("value", "upper"))

    @property
    def name(self) -> str:
        """One line that tells this gate from others."""
        on = " (upper end)" if self.on == "upper" else ""
        return f"{self.metric} at most {self.value:g}{on}{_of(self.where)}"


@dataclass(frozen=True, slots=True)
class NoWorse:
    """The metric must not be worse than the baseline's by more than `tolerance`, beyond noise.

    `alpha` is the accepted false-alarm rate of the two-sided paired test. `on_inconclusive` sets the result of an
    inconclusive comparison. Rows missing from the baseline are left out: they cannot have become worse.
    """

    metric: str
    tolerance: float = 0.0
    alpha: float = 0.05
    on_inconclusive: Inconclusive = "warn"
    where: Mapping[str, str] | None = None
    severity: Severity = "fail"

    def __post_init__(self) -> None:
        unit = metric_of(self.metric).unit
        if not 0 <= self.tolerance < (1 if unit == "share" else math.inf):
            raise UsageError(f"{self.name}: `tolerance` is 0 or more, and below 1 for a share (0.02 is two points)")
        if not 0 < self.alpha < 0.5:
            raise UsageError(f"{self.name}: alpha is a chance between 0 and 0.5, not {self.alpha:g}")
        _check_choice(self, "on_inconclusive", self.on_inconclusive, get_args(Inconclusive))
        _check_choice(self, "severity", self.severity, get_args(Severity))
        _check_where(self)

    @property
    def name(self) -> str:
        """One line that tells this gate from others."""
        return f"{self.metric} no worse (tolerance {self.tolerance:g}){_of(self.where)}"


@dataclass(frozen=True, slots=True)
class NeverBreak:
    """No row (or none with these slice values) that was right in the baseline may be wrong or missing now."""

    where: Mapping[str, str] | None = None
    severity: Severity = "fail"

    def __post_init__(self) -> None:
        _check_choice(self, "severity", self.severity, get_args(Severity))
        _check_where(self)

    @property
    def name(self) -> str:
        """One line that tells this gate from others."""
        return f"no broken row{_of(self.where)}"


Gate = AtLeast | AtMost | NoWorse | NeverBreak


def check(gates: Sequence[Gate], fields: Sequence[str], *, repeats: int = 1) -> None:
    """Rejects, before any call, gates that no run could decide.

    Raises `UsageError` for an unknown field, or for more repeats than are asked.
    """
    for name, count in Counter(gate.name for gate in gates).items():
        if count > 1:
            raise UsageError(f"the gate {name!r} is given {count} times: remove all but one")
    for gate in gates:
        if isinstance(gate, NeverBreak):
            continue
        metric = metric_of(gate.metric)
        if metric.field and metric.field not in fields:
            raise UsageError(f"{gate.name}: there is no field {metric.field!r}{nearest(metric.field, sorted(fields))}")
        if metric.family.startswith("pass_") and metric.k > repeats:
            raise UsageError(f"{gate.name}: it needs {metric.k} repeats, and there are {repeats}: raise `repeats`")


def require_rows(gates: Sequence[Gate], slices: Sequence[Mapping[str, str]]) -> None:
    """Raises `UsageError`, before any call, when no row of the gold data has the slice values of a gate."""
    for gate in gates:
        if not any(meets(each, gate.where) for each in slices):
            raise nobody(gate)


def nobody(gate: Gate) -> UsageError:
    """The error for a gate whose slice values no row has."""
    return UsageError(f"{gate.name}: no row meets it: correct `where`, or add such rows to the gold data")


def _check_bound(gate: AtLeast | AtMost) -> None:
    unit = metric_of(gate.metric).unit
    if unit == "share" and not 0 <= gate.value <= 1:
        hint = f" (write {gate.value / 100:g})" if 1 < gate.value <= 100 else ""
        raise UsageError(f"{gate.name}: a share is between 0 and 1{hint}")
    if not 0 <= gate.value < math.inf:
        raise UsageError(f"{gate.name}: a bound is a finite number of at least 0")
    _check_choice(gate, "severity", gate.severity, get_args(Severity))
    _check_where(gate)


def _check_choice(gate: Gate, name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(f"{gate.name}: {name} is one of {', '.join(known)}, not {value!r}")


def _check_where(gate: Gate) -> None:
    wrong = [value for value in (gate.where or {}).values() if not isinstance(value, str)]
    if gate.where is not None and (not gate.where or wrong):
        raise UsageError(
            f"{type(gate).__name__}: `where` maps slices to their values as text, as in {{'tier': 'golden'}}"
        )


def _of(where: Mapping[str, str] | None) -> str:
    return " where " + " and ".join(f"{name} is {value}" for name, value in where.items()) if where else ""
