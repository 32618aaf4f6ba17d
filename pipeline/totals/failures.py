"""Failed rows by kind, each with a count and an example; and when there are too many to continue."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.data import Failure
from pipeline.faults import InvalidRow, TooManyFailures

ALIKE = 100
"""When this many rows all fail alike before any succeeds, it is not by chance: the others would fail, too."""

_SHOWN = 3
"""Maximum number of kinds named in a message."""


@dataclass(frozen=True, slots=True)
class FailureKind:
    """Rows that failed with the same fault and HTTP status; `row` is the ordinal of one, `example` its message."""

    type: str
    http_status: int | None
    count: int
    row: int
    example: str = ""

    @property
    def name(self) -> str:
        """The kind's name for people."""
        return self.type if self.http_status is None else f"{self.type} ({self.http_status})"

    @property
    def said(self) -> str:
        """The row and its message, as an example for people."""
        return f"as in row {self.row}: {self.example}" if self.example else f"as in row {self.row}"


@dataclass(frozen=True, slots=True)
class Failures:
    """Failed rows by kind, most frequent first."""

    kinds: tuple[FailureKind, ...] = ()

    @classmethod
    def of(cls, outcomes: Iterable[object]) -> Failures:
        """The failures among the outcomes."""
        found = cls()
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                fault = outcome.fault
                found += cls((FailureKind(type(fault).__name__, fault.http_status, 1, outcome.ordinal, fault.message),))
        return found

    @classmethod
    def from_json(cls, kinds: Iterable[Mapping[str, Any]]) -> Failures:
        """The inverse of `to_json`."""
        return cls(tuple(FailureKind(**kind) for kind in kinds))

    def __add__(self, other: Failures) -> Failures:
        if not other.kinds:
            return self
        both = {(kind.type, kind.http_status): kind for kind in self.kinds}
        for kind in other.kinds:
            known = both.get((kind.type, kind.http_status))
            both[kind.type, kind.http_status] = kind if known is None else _together(known, kind)
        return Failures(tuple(sorted(both.values(), key=_rank)))

    @property
    def count(self) -> int:
        """The number of failed rows."""
        return sum(kind.count for kind in self.kinds)

    def examples_for(self, failures: Failures) -> Failures:
        """The given failures, with missing examples filled in from these."""
        known = {(kind.type, kind.http_status): kind for kind in self.kinds if kind.example}
        return Failures(
            tuple(
                replace(kind, example=found.example, row=found.row)
                if not kind.example and (found := known.get((kind.type, kind.http_status)))
                else kind
                for kind in failures.kinds
            )
        )

    def bare(self) -> Failures:
        """The failures as they may be written outside the dataset: the message of an invalid row may quote the row."""
        quoting = InvalidRow.__name__
        return Failures(tuple(replace(kind, example="") if kind.type == quoting else kind for kind in self.kinds))

    def to_json(self) -> list[dict[str, Any]]:
        """The kinds as JSON."""
        return [asdict(kind) for kind in self.kinds]

    def in_words(self) -> str:
        """The most frequent kinds with counts and examples, on one line."""
        shown = [f"{kind.name} {kind.count}, {kind.said}" for kind in self.bare().kinds[:_SHOWN]]
        return "; ".join([*shown, *(["..."] if len(self.kinds) > _SHOWN else [])])


def _rank(kind: FailureKind) -> tuple[int, int, str, int]:
    """The most frequent first. A total order, so that the order in which workers report does not matter."""
    return -kind.count, kind.row, kind.type, kind.http_status or 0


def _together(one: FailureKind, other: FailureKind) -> FailureKind:
    first, second = sorted((one, other), key=lambda kind: (not kind.example, kind.row, kind.example))
    return replace(first, count=first.count + second.count)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How many failed rows a run tolerates: `allowed` in total, but fewer than `alike` when every row failed alike."""

    allowed: float = math.inf
    alike: float = math.inf

    def passed(self, ok: int, failures: Failures, rows: int) -> TooManyFailures | None:
        """Why the run stops, given `ok` rows with a value and these failures, out of `rows`; None if it continues."""
        failed = failures.count
        if failed > self.allowed:
            allowed = f"{failed} of {rows} rows failed, more than the job allows (at most {math.floor(self.allowed)})"
            return TooManyFailures(f"{allowed}: {failures.in_words()}")
        if not ok and failed >= self.alike and len(failures.kinds) == 1:
            return TooManyFailures(f"the first {failed} rows all failed alike: {failures.in_words()}")
        return None
