"""The one limiter of a run over a cluster: tasks report what they did, and take away what they may do.

It is asked, and never calls: a task that is gone is noticed by its silence, or because it was started again. It has no
row, no reply, no token and no key.
"""

from __future__ import annotations

import copy
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

from pipeline.execution.processes.lease_allocator import LeaseAllocator
from pipeline.execution.processes.messages import Lease, WorkerReport
from pipeline.faults import Fault
from pipeline.policy import LocalUpstream, Shutdown
from pipeline.policy.compose import ComposedAsk
from pipeline.totals.counters import Counters
from pipeline.totals.ledger import Charges

LEASE_S = 0.2
"""How often a task reports and takes its lease, in seconds; a change of its share takes about as long to reach it."""

LOST_S = 30.0
"""A task that was silent for so many seconds is gone: its places and rates pass to others."""

StopReason = Fault | signal.Signals


@dataclass(frozen=True, slots=True)
class Terms:
    """What a task is told: its lease, if that has changed, why the run stops, if it does, and the limiter's time."""

    now: float
    lease: Lease | None = None
    stop: StopReason | None = None
    is_known: bool = True
    """False to a task that was silent for too long: others have what it was leased, so it must make no call."""


@dataclass(frozen=True, slots=True)
class RunProgress:
    """What the run has done so far, for its display: the values of `Counters` that change, by name."""

    counted: Mapping[str, Any]
    notices: Sequence[str] = ()
    stop: StopReason | None = None


class LimiterLink(Protocol):
    """The limiter, as a task reaches it. Every method raises `Broken` when it is gone."""

    async def join(self, task: str) -> int:
        """The number of a task that begins."""

    async def exchange(self, number: int, report: WorkerReport, stop: Fault | None) -> Terms:
        """Reports, and returns the terms that apply from now on."""

    async def leave(self, number: int, charged: Charges) -> None:
        """The task has ended; it was charged so much."""


@dataclass(slots=True)
class _Member:
    task: str
    heard_at: float
    lease: Lease | None = None
    """A lease that it has not taken yet."""


@dataclass(slots=True)
class RunLimiter:
    """The limits of a run, asked by its tasks. It never waits or reads a clock; the caller gives the time."""

    composed: ComposedAsk[LocalUpstream]
    counters: Counters
    stop: Shutdown
    _members: dict[int, _Member] = field(default_factory=dict)
    _joined: int = 0
    _allocator: LeaseAllocator = field(init=False)

    def __post_init__(self) -> None:
        self._allocator = LeaseAllocator(self.composed, self.counters, self.stop)

    def join(self, task: str, now: float) -> int:
        """The number of a task that begins. An earlier start of the same task is gone, or works for nothing."""
        for number in [number for number, member in self._members.items() if member.task == task]:
            self.counters.notices.append(f"{task} was lost; another start goes on from what it recorded")
            self._lose(number)
        self._joined += 1
        self._members[self._joined] = _Member(task, now)
        self._allocator.join(self._joined)
        return self._joined

    def exchange(self, number: int, report: WorkerReport, stop: Fault | None, now: float) -> Terms:
        """Takes in a report, and returns what applies from now on."""
        self._drop_silent(now)
        member = self._members.get(number)
        if member is None:
            return Terms(now, stop=self.stop.reason, is_known=False)
        member.heard_at = now
        self._allocator.report(number, report, now)
        if stop is not None:
            self.stop.request(stop)
        for changed, one in self._allocator.leases(now).items():
            self._members[changed].lease = one
        lease, member.lease = member.lease, None
        return Terms(now, lease, self.stop.reason)

    def leave(self, number: int, charged: Charges) -> None:
        """A task has ended, with everything in its journal."""
        if self._members.pop(number, None) is not None:
            self._allocator.leave(number, charged)

    def progress(self, stop: StopReason | None, now: float) -> RunProgress:
        """What the run has done so far; `stop` is why it has to stop, if its driver knows a reason."""
        self._drop_silent(now)
        if stop is not None:
            self.stop.request(stop)
        counters = self.counters
        notices, counters.notices[:] = list(counters.notices), []
        counters.trouble = self._allocator.trouble()
        return RunProgress(counted_in(counters), notices, self.stop.reason)

    def _drop_silent(self, now: float) -> None:
        for number in [n for n, member in self._members.items() if now - member.heard_at > LOST_S]:
            self.counters.notices.append(f"{self._members[number].task} is silent; others have its share of the limits")
            self._lose(number)

    def _lose(self, number: int) -> None:
        del self._members[number]
        # Its journal is on another machine, or in the bucket: until the next start reads it, nothing is spent again.
        self._allocator.leave(number, None)


_BEFORE = ("rows", "done_before", "ok_before", "failures_before", "cost_before_usd", "notices")


def counted_in(counters: Counters) -> dict[str, Any]:
    """What has changed in the counters since the start began, without what may quote a row."""
    counted = {one.name: getattr(counters, one.name) for one in fields(counters) if one.name not in _BEFORE}
    return {**counted, "failures": counters.failures.bare()}


def take_over(counters: Counters, progress: RunProgress) -> None:
    """Sets counters to what is known of the run."""
    for name, value in progress.counted.items():
        setattr(counters, name, value)
    counters.notices.extend(progress.notices)


def bare_report(report: WorkerReport) -> WorkerReport:
    """A report without what may quote a row."""
    failures = report.counted.get("failures")
    return report if failures is None else replace(report, counted={**report.counted, "failures": failures.bare()})


def bare_counters(counters: Counters) -> Counters:
    """Counters without what may quote a row: those that a limiter begins with."""
    failures, before = counters.failures.bare(), counters.failures_before.bare()
    return replace(counters, notices=[], failures=failures, failures_before=before)


def bare_fault(fault: Fault) -> Fault:
    """A fault without the answer that it came with, and without its trace."""
    told = copy.copy(fault).without_trace()
    told.reply = None
    return told
