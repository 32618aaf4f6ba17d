"""Divides the run's limits among its workers: reports go in, leases come out. It never waits or reads a clock.

The parent holds the one rate, breaker and hold of each lane, and the budgets of the run; workers' reports are replayed
on them. Divisible limits (places among the calls in flight, rates) are leased by share; calls under a budget are
granted one by one. A place passes from one worker to another only after the first has confirmed that it is free. See
docs/limits.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pipeline.execution.processes.messages import BudgetLease, BudgetReport, LaneLease, LaneReport, Lease, WorkerReport
from pipeline.pace import Pacer
from pipeline.policy import Budget, FailurePolicy, LocalUpstream, Shutdown
from pipeline.policy.compose import ComposedAsk
from pipeline.totals.counters import Counters
from pipeline.totals.ledger import Charges

_STEADY = 0.05
"""Relative changes of a share below this are ignored: demand fluctuates, and each change costs every worker a lease."""

_UNCONFIRMED = 10
"""Leases that a worker is sent at most before it confirms the first: a busy worker must not be flooded."""


@dataclass(slots=True)
class _Granted:
    """A worker's part of one budget: all it was ever granted, what of that has not ended, and what it wants."""

    calls: int = 0
    amount: float = 0.0
    outstanding: int = 0
    reserved: float = 0.0
    charged: float = 0.0
    wanted: int = 0
    each: float = 0.0


@dataclass(slots=True)
class _WorkerState:
    """One worker's part of the run's limits, and its state as of its last report."""

    share: float = 0.0
    """Its share of the rates."""
    granted: int = 0
    held: int = 0
    """The most calls that it may have in flight, given the leases it has confirmed."""
    ceilings: deque[tuple[int, int]] = field(default_factory=deque)
    """Number and places of every lease that it may be working under."""
    sent: Lease | None = None
    confirmed: int = 0
    in_flight: int = 0
    waiting: int = 0
    retrying: int = 0
    waits_for: str | None = None
    trouble: str | None = None
    probes: list[int] = field(default_factory=list)
    comparisons: list[int] = field(default_factory=list)
    """How often it was asked, for each lane, to send an answered request again."""
    lanes: Sequence[LaneReport] = ()
    """The lanes as of its last report."""
    budgets: dict[str, _Granted] = field(default_factory=dict)
    """Its part of each budget, by unit."""

    @property
    def demand(self) -> int:
        return max(1, self.in_flight + self.waiting)


class LeaseAllocator:
    """The limits of a run, divided among its workers, which are identified by number."""

    def __init__(self, composed: ComposedAsk[LocalUpstream], counters: Counters, stop: Shutdown) -> None:
        self._dispatcher = composed.dispatcher
        self._account = composed.account
        self._lanes = composed.lanes
        self._budgets = {budget.unit: budget for budget in composed.account.budgets}
        self._counters = counters
        self._stop = stop
        self._workers: dict[int, _WorkerState] = {}
        for lane in self._lanes:
            lane.hitch = self.trouble

    def trouble(self) -> str | None:
        """Why nothing is answered, if that is so for every worker."""
        troubles = [worker.trouble for worker in self._workers.values()]
        return troubles[0] if troubles and all(troubles) else None

    def join(self, number: int) -> None:
        """A worker has started, and has no lease yet."""
        self._workers[number] = _WorkerState(
            probes=[0] * len(self._lanes),
            comparisons=[0] * len(self._lanes),
            lanes=[LaneReport() for _ in self._lanes],
            budgets={unit: _Granted() for unit in self._budgets},
        )

    def leave(self, number: int, charged: Charges | None) -> None:
        """A worker is gone; its journal says what it was `charged`, reported or not, including calls in flight.

        None if its journal is out of reach: then every call that it was granted counts as made.
        """
        worker = self._workers.pop(number, None)
        if worker is None:
            return
        for unit, granted in worker.budgets.items():
            budget = self._budgets[unit]
            cost = granted.charged + granted.reserved
            if charged is not None:
                cost = charged.cost_usd + charged.lost_usd if unit == "USD" else charged.tokens
            _end(budget, granted, granted.outstanding, granted.reserved)
            # Its last report may be older than its last charges: only what was not reported is charged now.
            budget.charge(max(0.0, cost - granted.charged), None)
        self._sum_up()

    def report(self, number: int, report: WorkerReport, now: float) -> None:
        """Takes in a worker's report."""
        worker = self._workers[number]
        worker.in_flight, worker.waiting, worker.retrying = report.in_flight, report.waiting, report.retrying
        worker.waits_for, worker.trouble, worker.confirmed = report.waits_for, report.trouble, report.lease
        worker.lanes = report.lanes
        # Leases older than the confirmed one no longer apply. Until then, the most generous lease still on its way is
        # what the worker may use; and a lease with fewer places recalls none of the calls that are in flight.
        while worker.ceilings and worker.ceilings[0][0] < report.lease:
            worker.ceilings.popleft()
        worker.held = max(worker.granted, report.in_flight, *(places for _, places in worker.ceilings))
        self._counters.add(report.counted)
        self._counters.notices.extend(report.notices)
        self._counters.last_throttle = report.last_throttle or self._counters.last_throttle
        self._counters.last_failure = report.last_failure or self._counters.last_failure
        for latency in report.latencies:
            self._dispatcher.latencies.add(latency)
        self._sum_up()
        for lane, one in zip(self._lanes, report.lanes, strict=True):
            _replay(lane, one, now, self._dispatcher.failure_policy)
        self._decide(now)
        for unit, paid in report.budgets.items():
            _settle(self._budgets[unit], worker.budgets[unit], paid)
        self._account.estimate.learn_all(report.maxima)

    def leases(self, now: float) -> dict[int, Lease]:
        """The leases that differ from what their workers have."""
        if not self._workers:
            return {}
        self._decide(now)
        self._divide_rates()
        self._grant_places(now)
        self._grant_calls()
        self._grant_probes(now)
        self._ask_to_compare()
        changed = {}
        for number, worker in self._workers.items():
            lease = self._lease(worker)
            if lease is not worker.sent and lease.number <= worker.confirmed + _UNCONFIRMED:
                changed[number] = worker.sent = lease
                worker.ceilings.append((lease.number, lease.concurrency))
        return changed

    def _decide(self, now: float) -> None:
        """Stops the run if rows of any worker were refused for a reason that applies to every row."""
        for index, lane in enumerate(self._lanes):
            seen = [worker.lanes[index] for worker in self._workers.values()]
            # What another worker was answered since is unknown to the one that lost.
            lane.control.has_lost = any(one.lost_at > lane.blame.cleared_until for one in seen)
            lane.control.is_elsewhere = not lane.control.has_lost and any(one.compares for one in seen)
            lane.control.is_wanted = False
        if (denied := self._dispatcher.failure_policy.verdict(now)) is not None:
            self._stop.request(denied)

    def _sum_up(self) -> None:
        counters, workers = self._counters, list(self._workers.values())
        counters.in_flight = sum(worker.in_flight for worker in workers)
        counters.waiting = sum(worker.waiting for worker in workers)
        counters.retrying = sum(worker.retrying for worker in workers)
        counters.waits_for = max(workers, key=lambda one: one.waiting).waits_for if workers else None

    def _divide_rates(self) -> None:
        workers = list(self._workers.values())
        total = sum(worker.demand for worker in workers)
        shares = [worker.demand / total for worker in workers]
        if any(abs(share - one.share) > _STEADY * share for one, share in zip(workers, shares, strict=True)):
            for worker, share in zip(workers, shares, strict=True):
                worker.share = share

    def _grant_places(self, now: float) -> None:
        workers = list(self._workers.values())
        most = self._dispatcher.limits.concurrency
        # `first` moves on every second, so that with fewer places than workers each of equal demand has one in turn.
        places = divided(most, [worker.demand for worker in workers], first=int(now))
        steady = all(abs(n - one.granted) <= _STEADY * one.granted for n, one in zip(places, workers, strict=True))
        if steady and sum(worker.granted for worker in workers) == most:
            return
        # 1. Take back: a worker that gets fewer places learns it now, and keeps holding them until it confirms.
        for worker, count in zip(workers, places, strict=True):
            worker.granted = min(worker.granted, count)
        # 2. Give out only what nobody holds. After `tune` has lowered the concurrency, this may be negative.
        free = most - sum(worker.held for worker in workers)
        for worker, count in zip(workers, places, strict=True):
            worker.granted = max(worker.granted, min(count, worker.held + max(0, free)))
            free -= max(0, worker.granted - worker.held)
            worker.held = max(worker.held, worker.granted)

    def _grant_calls(self) -> None:
        for unit, budget in self._budgets.items():
            wanting = [granted for worker in self._workers.values() if (granted := worker.budgets[unit]).wanted]
            # Not even the smallest call will ever be affordable: the budget is exhausted.
            if wanting and (refusal := budget.refusal(min(granted.each for granted in wanting))):
                self._stop.request(refusal)
            # Round robin, one call at a time, so that the end of a budget is shared by all workers.
            while wanting:
                granted = wanting.pop(0)
                if budget.affords(granted.each):  # otherwise it waits for calls in flight to end
                    _grant(budget, granted)
                    wanting += [granted] if granted.wanted else []

    def _grant_probes(self, now: float) -> None:
        for index, lane in enumerate(self._lanes):
            if lane.opened_at is None or lane.breaker.wait(now) > 0:
                continue
            # The worker with the most waiting rows is the surest to send the probe at once.
            worker = max(self._workers.values(), key=lambda one: one.waiting, default=None)
            if worker is not None and worker.waiting:
                worker.probes[index] += 1
                lane.breaker.sent(now)

    def _ask_to_compare(self) -> None:
        """Has one worker send an answered request again, for each lane where only that shows whose fault it is."""
        for index, lane in enumerate(self._lanes):
            able = [worker for worker in self._workers.values() if worker.lanes[index].compares]
            is_asked = any(worker.comparisons[index] > worker.lanes[index].compared for worker in able)
            if lane.control.is_wanted and able and not is_asked:
                max(able, key=lambda one: one.granted).comparisons[index] += 1

    def _lease(self, worker: _WorkerState) -> Lease:
        limits = self._dispatcher.limits
        lease = Lease(
            number=_next_number(worker),
            concurrency=worker.granted,
            rpm=_part(limits.requests, worker.share),
            tpm=_part(limits.tokens, worker.share),
            lanes=[
                LaneLease(
                    rate=lane.rate.rate * worker.share if lane.rate else None,
                    opened_at=lane.opened_at,
                    failing_since=lane.failing_since if lane.opened_at is not None else None,
                    cleared_until=lane.blame.decided_until,
                    served=lane.has_served or self._counters.ok_before > 0,
                    probes=probes,
                    comparisons=comparisons,
                    hold_ends=lane.hold.opens_at,
                )
                for lane, probes, comparisons in zip(self._lanes, worker.probes, worker.comparisons, strict=True)
            ],
            budgets={unit: BudgetLease(granted.calls, granted.amount) for unit, granted in worker.budgets.items()},
            maxima=dict(self._account.estimate.maxima) if self._budgets else {},
        )
        return worker.sent if worker.sent is not None and _same(lease, worker.sent) else lease


def divided(most: int, demands: Sequence[int], *, first: int = 0) -> list[int]:
    """Divides `most` places by demand, max-min fair: a demand below an equal share is met in full.

    Places that nobody needs are divided evenly, as room to grow. Remainders go to `first` and those after it.
    """
    # Water-filling: by ascending demand, each gets at most an equal share of what is left. Among equal demands the last
    # one gets the remainder, so that is `first`: were it always the same one, an idle worker, which counts as a demand
    # of one, could keep the only place from the last row of another.
    count = len(demands)
    places, left = [0] * count, most
    order = sorted(range(count), key=lambda index: (demands[index], (first - index - 1) % count))
    for rank, index in enumerate(order):
        places[index] = min(demands[index], left // (count - rank))
        left -= places[index]
    even, odd = divmod(left, count)
    turns = {(first + extra) % count for extra in range(odd)}
    return [needed + even + (index in turns) for index, needed in enumerate(places)]


def _settle(budget: Budget, granted: _Granted, report: BudgetReport) -> None:
    """Enters a worker's report of its calls in the run's budget."""
    for cost, reserved in report.costs:
        budget.charge(cost, reserved)
        granted.charged += cost
    _change(budget, granted, report.changed)
    _end(budget, granted, report.ended + report.returned, report.freed + report.given_back)
    # The report may have crossed with newer grants: those are no longer wanted.
    granted.wanted = max(0, report.wanted - (granted.calls - report.granted))
    granted.each = report.each


def _grant(budget: Budget, granted: _Granted) -> None:
    budget.reserve(granted.each)
    granted.outstanding += 1
    granted.reserved += granted.each
    granted.calls += 1
    granted.amount += granted.each
    granted.wanted -= 1


def _change(budget: Budget, granted: _Granted, by: float) -> None:
    """Changes what is reserved for granted calls that have not ended, by so much in all, which is spread evenly."""
    if not by or not granted.outstanding:
        return
    before = granted.reserved / granted.outstanding
    granted.reserved = max(0.0, granted.reserved + by)
    for _ in range(granted.outstanding):
        budget.change(granted.reserved / granted.outstanding, before)


def _end(budget: Budget, granted: _Granted, calls: int, amount: float) -> None:
    """Releases granted calls, with `amount` reserved in all, that have ended or will not be made."""
    for _ in range(calls):
        budget.release(amount / calls)
    granted.outstanding -= calls
    granted.reserved -= amount


def _replay(lane: LocalUpstream, report: LaneReport, now: float, judge: FailurePolicy) -> None:
    """Replays the events of a worker's lane on the run's own lane; with the current time, which must never decrease."""
    if lane.rate:
        lane.rate.held_back(report.held_back_at)
    for at in report.sent:
        lane.sent(at)
    for event in report.events:
        match event:
            case ("answered", left_at, served):
                lane.answered(now, left_at, served=served)
            case ("refused", refusal):
                lane.refused(refusal)
            case ("throttled", left_at, retry_after):
                lane.throttled(now, left_at, retry_after)
            case ("failed", row, left_at, cause):
                lane.failed(now, row, judge.rows_in_play(cause), left_at)


def _part(limit: Pacer | None, share: float) -> float | None:
    return None if limit is None else limit.per_minute * share


def _next_number(worker: _WorkerState) -> int:
    return 1 if worker.sent is None else worker.sent.number + 1


def _same(lease: Lease, sent: Lease) -> bool:
    """Whether a lease repeats what the worker already has."""
    return replace(lease, number=sent.number) == sent
