"""The limits of a run among its workers: leases in, reports out, and never more than the run may have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import Reply, Request, Usage
from pipeline.endpoint.connection import OpenEndpoint
from pipeline.endpoint.prices import Prices
from pipeline.execution.processes.lease_allocator import LeaseAllocator, divided
from pipeline.execution.processes.leased_limits import LeasedBudget, LeasedUpstream
from pipeline.execution.processes.messages import BudgetLease, BudgetReport, LaneLease, LaneReport, Lease, WorkerReport
from pipeline.faults import BudgetExhausted, ProviderUnusable
from pipeline.job.job import Job
from pipeline.pace import PROBE_S, Pacer, Refusal, RetryAfterHold
from pipeline.policy import Account, LocalBudget, LocalUpstream, Shutdown
from pipeline.policy.account import Bid
from pipeline.policy.compose import ComposedAsk, RunLimits, compose
from pipeline.totals.counters import Counters
from pipeline.totals.ledger import NOTHING, Charges
from tests import virtual

anyio_backend = virtual.anyio_backend


async def never(_: Request) -> Reply:
    raise AssertionError("the parent asks nothing")


Shared = tuple[LeaseAllocator, ComposedAsk[LocalUpstream], Counters, Shutdown]


def sharing(*budgets: LocalBudget, **bounds: object) -> Shared:
    counters, stop = Counters(), Shutdown()
    job = Job(name="j", model="m", user="{{ a }}")
    known: dict[str, Any] = {"concurrency": 10, "adaptive": False, **bounds}
    composed = compose(
        job, RunLimits(**known), [OpenEndpoint("here", 1.0, never)], budgets, counters=counters, stop=stop
    )
    return LeaseAllocator(composed, counters, stop), composed, counters, stop


def report(lease: int = 0, *, in_flight: int = 0, waiting: int = 0, **more: object) -> WorkerReport:
    fields: dict[str, Any] = {"lanes": [LaneReport()], **more}
    return WorkerReport(lease=lease, in_flight=in_flight, waiting=waiting, retrying=0, **fields)


# Shares.


@given(st.integers(1, 10_000), st.lists(st.integers(1, 10_000), min_size=1, max_size=9), st.integers(0, 99))
def test_places_sum_up_and_whoever_needs_less_than_an_even_part_has_what_it_needs(
    most: int, demands: list[int], first: int
) -> None:
    places = divided(most, demands, first=first)
    assert sum(places) == most
    for demand, count in zip(demands, places, strict=True):
        assert count >= min(demand, most // len(demands))


def test_who_has_less_than_it_needs_gets_the_places_that_another_gives_up() -> None:
    """Also while the other's needs go on changing, and its confirmations are late."""
    shared, _, _, _ = sharing(concurrency=100)
    shared.join(0)
    latest = {0: shared.leases(0.0)[0], 1: Lease(number=0, concurrency=0)}
    under = [latest[0].number] * 3
    shared.report(0, report(1, in_flight=100), 0.1)
    shared.join(1)
    for step in range(1, 40):
        latest |= shared.leases(float(step))
        under.append(latest[0].number)
        shared.report(0, report(under[-3], in_flight=max(10, 100 - 10 * step)), step + 0.1)
        shared.report(1, report(latest[1].number, in_flight=latest[1].concurrency, waiting=200), step + 0.2)
    mine = latest[1].concurrency
    assert mine >= 80


def test_one_idle_worker_cannot_keep_the_only_place_from_the_last_row_of_another() -> None:
    """Fewer places than workers, as after `pipeline tune concurrency=1`: each has a place in turn."""
    shared, _, _, _ = sharing(concurrency=1)
    latest = {0: Lease(number=0, concurrency=0), 1: Lease(number=0, concurrency=0)}
    for number in latest:
        shared.join(number)
    places = []
    for tick in range(30):
        latest |= shared.leases(tick / 10)
        for number, lease in latest.items():
            shared.report(number, report(lease.number, waiting=1 - number), tick / 10 + 0.05)
        places.append((latest[0].concurrency, latest[1].concurrency))
    assert {(1, 0), (0, 1)} <= set(places)
    assert all(sum(pair) <= 1 for pair in places)


@dataclass
class Worker:
    """A worker as the parent sees it: leases and reports are under way for a while."""

    granted: int = 0
    in_flight: int = 0
    number: int = 0
    coming: list[Lease] = field(default_factory=list)


KINDS = ("tick", "receive", "send", "end", "report")
Step = tuple[str, int, int]


@settings(max_examples=300)
@given(
    st.integers(1, 12),
    st.lists(
        st.tuples(
            st.sampled_from(["tick", "receive", "send", "end", "report", "tune"]), st.integers(0, 2), st.integers(0, 20)
        ),
        max_size=120,
    ),
)
def test_never_more_calls_are_in_flight_than_the_run_may_have(most: int, steps: Sequence[Step]) -> None:
    shared, composed, _, _ = sharing(concurrency=most)
    workers = [Worker() for _ in range(3)]
    for number in range(3):
        shared.join(number)
    for now, (kind, number, amount) in enumerate(steps):
        worker = workers[number]
        match kind:
            case "tick":
                for one, lease in shared.leases(float(now)).items():
                    workers[one].coming.append(lease)
            case "receive" if worker.coming:
                lease = worker.coming.pop(0)
                worker.granted, worker.number = lease.concurrency, lease.number
            case "send":
                worker.in_flight = max(worker.in_flight, min(worker.granted, worker.in_flight + amount))
            case "end":
                worker.in_flight = max(0, worker.in_flight - amount)
            case "report":
                now_in_flight = report(worker.number, in_flight=worker.in_flight, waiting=amount)
                shared.report(number, now_in_flight, float(now))
        assert sum(one.in_flight for one in workers) <= composed.dispatcher.limits.concurrency


def test_the_places_of_one_that_is_gone_go_to_the_others() -> None:
    shared, _, _, _ = sharing(concurrency=10)
    shared.join(0)
    shared.join(1)
    assert {n: lease.concurrency for n, lease in shared.leases(0.0).items()} == {0: 5, 1: 5}
    shared.leave(1, NOTHING)
    assert shared.leases(1.0)[0].concurrency == 10


def test_nobody_is_told_what_they_know() -> None:
    shared, _, _, _ = sharing()
    shared.join(0)
    assert list(shared.leases(0.0)) == [0]
    assert shared.leases(0.1) == {}


def test_one_that_confirms_nothing_is_not_flooded() -> None:
    shared, composed, _, _ = sharing(rpm=600.0)
    shared.join(0)
    told = 0
    for step in range(100):
        composed.dispatcher.limits.requests = Pacer(600.0 + step)
        told += len(shared.leases(float(step)))
    assert told == 10


# Rates.


@given(st.floats(1.0, 1e5), st.lists(st.integers(0, 500), min_size=1, max_size=5))
def test_declared_rates_sum_up_to_those_of_the_run(rpm: float, waiting: list[int]) -> None:
    shared, _, _, _ = sharing(rpm=rpm, tpm=10 * rpm)
    for number, rows in enumerate(waiting):
        shared.join(number)
        shared.report(number, report(waiting=rows), 0.0)
    leases = shared.leases(1.0).values()
    assert math.isclose(sum(lease.rpm or 0.0 for lease in leases), rpm)
    assert math.isclose(sum(lease.tpm or 0.0 for lease in leases), 10 * rpm)


@given(st.lists(st.tuples(st.floats(0.0, 5.0), st.floats(1.0, 600.0)), min_size=1, max_size=50))
def test_a_rate_that_changes_lets_through_no_more_than_its_sum_over_time(changes: list[tuple[float, float]]) -> None:
    spacing, now, allowed, sent, rate = Pacer(60.0), 0.0, 1.0, 0, 60.0
    for passed, per_minute in changes:
        until = now + passed
        while (wait := spacing.wait(now)) <= until - now:
            now += wait
            spacing.take(now)
            sent += 1
        now = until
        allowed += passed * rate / 60.0
        spacing.change(now, per_minute)
        rate = per_minute
        assert sent <= allowed + 1e-6


def test_the_rate_that_was_found_is_the_runs_and_a_429_of_any_worker_lowers_it_for_all() -> None:
    shared, composed, _, _ = sharing(adaptive=True, concurrency=100)
    for number in (0, 1):
        shared.join(number)
    before = [lease.lanes[0].rate or 0.0 for lease in shared.leases(0.0).values()]
    assert before == [16.0, 16.0]
    sent = [at / 100 for at in range(100)]
    refused = LaneReport(sent=sent, events=[("throttled", at, None) for at in sent[50:]])
    shared.report(0, report(1, lanes=[refused]), 1.0)
    after = [lease.lanes[0].rate or 0.0 for lease in shared.leases(1.1).values()]
    assert len(after) == 2
    assert sum(after) < 97.5
    rate = composed.lanes[0].rate
    assert rate is not None
    assert math.isclose(sum(after), rate.rate)


def test_a_time_that_the_server_named_to_one_holds_for_all() -> None:
    shared, _, _, _ = sharing()
    shared.join(0)
    shared.join(1)
    shared.report(0, report(lanes=[LaneReport(events=[("throttled", 0.9, 30.0)])]), 1.0)
    assert [lease.lanes[0].hold_ends for lease in shared.leases(1.0).values()] == [31.0, 31.0]
    lane = LeasedUpstream("here", never, hold=RetryAfterHold())
    lane.renew(LaneLease(hold_ends=31.0), 1.0)
    assert lane.wait(1.0) >= 30.0
    assert lane.wait(31.0) == 0.0


# The breaker.


def test_an_endpoint_that_fails_the_rows_of_several_workers_has_failed_for_all_and_one_probe_leaves() -> None:
    shared, composed, _, _ = sharing()
    for number in (0, 1):
        shared.join(number)
        shared.report(number, report(in_flight=5, waiting=5, lanes=[LaneReport(sent=[0.0])]), 0.0)
    for number in (0, 1):
        failed = LaneReport(events=[("failed", 10 * number + row, 5.0, None) for row in range(5)])
        shared.report(number, report(in_flight=5, waiting=5, lanes=[failed]), 6.0)
    assert composed.lanes[0].opened_at == 6.0
    assert [lease.lanes[0].probes for lease in shared.leases(6.1).values()] == [0, 0]
    probing = shared.leases(6.0 + PROBE_S)
    assert sum(lease.lanes[0].probes for lease in probing.values()) == 1
    shared.report(1, report(lanes=[LaneReport(events=[("answered", 20.0, True)])]), 22.0)
    assert {lease.lanes[0].opened_at for lease in shared.leases(22.1).values()} == {None}


def test_a_worker_sends_only_the_probes_that_it_was_granted() -> None:
    lane = LeasedUpstream("here", never)
    lane.renew(LaneLease(opened_at=5.0), 5.0)
    assert lane.wait(6.0) == math.inf
    lane.renew(LaneLease(opened_at=5.0, probes=1), 20.0)
    assert lane.wait(20.0) == 0.0
    lane.sent(20.0)
    assert lane.wait(20.0) == math.inf
    lane.renew(LaneLease(probes=1), 21.0)
    assert lane.wait(21.0) == 0.0


# Whose fault.


def refusals(*rows: int, at: float) -> list[tuple[Any, ...]]:
    return [("refused", Refusal(row, "403", True, "403 said the server", at, at)) for row in rows]  # noqa: FBT003 - a suspect status


def asked(shared: LeaseAllocator, now: float, latest: dict[int, Lease]) -> list[int]:
    """How many comparisons each worker was asked for, over all leases."""
    latest |= shared.leases(now)
    return [latest[number].lanes[0].comparisons for number in sorted(latest)]


def test_one_worker_at_a_time_is_asked_to_compare_and_its_answer_clears_the_rows_of_all() -> None:
    shared, composed, _, stop = sharing()
    for number in (0, 1):
        shared.join(number)
        before = LaneReport(events=[("answered", 1.0, True)], compares=True)
        shared.report(number, report(in_flight=5, waiting=5, lanes=[before]), 1.5)
    latest: dict[int, Lease] = {}
    assert asked(shared, 1.6, latest) == [0, 0]
    for number in (0, 1):
        bad = LaneReport(events=refusals(*range(10 * number, 10 * number + 8), at=2.0), compares=True)
        shared.report(number, report(waiting=5, lanes=[bad]), 2.1)
    assert sum(asked(shared, 2.2, latest)) == 1
    assert sum(asked(shared, 2.3, latest)) == 1
    assert not stop.requested
    (number,) = (number for number, lease in latest.items() if lease.lanes[0].comparisons)
    proved = LaneReport(events=[("answered", 3.0, True)], compares=True, compared=1)
    shared.report(number, report(waiting=5, lanes=[proved]), 3.5)
    latest |= shared.leases(3.6)
    assert {lease.lanes[0].cleared_until for lease in latest.values()} == {2.0}
    assert not stop.requested
    assert not composed.lanes[0].blame.is_open


@pytest.mark.parametrize("has_lost", [False, True])
def test_a_comparison_that_proves_nothing_is_left_to_another_worker_and_one_that_is_refused_ends_the_run(
    has_lost: bool,  # noqa: FBT001 - a parameter
) -> None:
    shared, _, _, stop = sharing()
    for number in (0, 1):
        shared.join(number)
        shared.report(number, report(lanes=[LaneReport(events=[("answered", 1.0, True)], compares=True)]), 1.5)
    shared.report(0, report(waiting=5, lanes=[LaneReport(events=refusals(*range(16), at=2.0), compares=True)]), 2.1)
    latest: dict[int, Lease] = {}
    (first,) = (number for number, count in enumerate(asked(shared, 2.2, latest)) if count)
    shared.report(first, report(waiting=5, lanes=[LaneReport(compared=1, lost_at=2.5 if has_lost else -math.inf)]), 3.0)
    assert sum(asked(shared, 3.1, latest)) == (1 if has_lost else 2)
    assert stop.requested == has_lost
    shared.report(1 - first, report(waiting=5, lanes=[LaneReport(compared=1)]), 4.0)
    shared.leases(4.1)
    assert isinstance(stop.reason, ProviderUnusable)


def test_after_an_answer_to_one_worker_a_comparison_that_another_has_lost_before_says_nothing() -> None:
    shared, _, _, stop = sharing()
    for number in (0, 1):
        shared.join(number)
        shared.report(number, report(lanes=[LaneReport(events=[("answered", 1.0, True)], compares=True)]), 1.5)
    shared.report(0, report(lanes=[LaneReport(events=refusals(0, at=2.0), lost_at=2.5)]), 3.0)
    shared.report(1, report(lanes=[LaneReport(events=[("answered", 3.5, True)], compares=True)]), 4.0)
    shared.report(0, report(waiting=5, lanes=[LaneReport(events=refusals(*range(16), at=5.0), lost_at=2.5)]), 5.5)
    assert asked(shared, 5.6, {}) == [0, 1]
    assert not stop.requested


# Money.


def taught(cap: float = 100.0, cost: float = 10.0) -> LocalBudget:
    """A budget that knows well what a call costs."""
    budget = LocalBudget(cap + 10_000 * cost, "tokens")
    for _ in range(10_000):
        budget.charge(cost, cost)
    return budget


def test_calls_are_granted_as_far_as_the_budget_reaches_and_the_run_ends_when_it_does_not() -> None:
    budget = taught()
    shared, _, _, stop = sharing(budget)
    for number in (0, 1):
        shared.join(number)
        shared.report(number, report(waiting=50, budgets={"tokens": BudgetReport(wanted=50, each=10.0)}), 0.0)
    leases = shared.leases(0.1)
    assert {number: lease.budgets for number, lease in leases.items()} == {
        0: {"tokens": BudgetLease(5, 50.0)},
        1: {"tokens": BudgetLease(5, 50.0)},
    }
    assert not stop.requested
    for number in (0, 1):
        paid = BudgetReport(costs=[(10.0, 10.0)] * 5, ended=5, freed=50.0, granted=5, wanted=45, each=10.0)
        shared.report(number, report(1, waiting=45, budgets={"tokens": paid}), 1.0)
    assert (budget.spent, budget.in_flight, budget.reserved) == (budget.cap, 0, 0.0)
    shared.leases(1.1)
    assert isinstance(stop.reason, BudgetExhausted)


def test_a_call_too_large_for_the_rest_does_not_end_the_run_while_a_smaller_one_fits() -> None:
    shared, _, _, stop = sharing(taught())
    for number, each in ((0, 500.0), (1, 20.0)):
        shared.join(number)
        shared.report(number, report(waiting=1, budgets={"tokens": BudgetReport(wanted=1, each=each)}), 0.0)
    assert [lease.budgets["tokens"].calls for lease in shared.leases(0.1).values()] == [0, 1]
    assert not stop.requested


def test_calls_that_are_given_back_are_granted_to_others() -> None:
    shared, _, _, stop = sharing(taught())
    for number in (0, 1):
        shared.join(number)
    shared.report(0, report(waiting=10, budgets={"tokens": BudgetReport(wanted=10, each=10.0)}), 0.0)
    assert shared.leases(0.1)[0].budgets["tokens"].calls == 10
    shared.report(1, report(waiting=3, budgets={"tokens": BudgetReport(wanted=3, each=10.0)}), 0.2)
    none = Lease(number=0, concurrency=0, budgets={"tokens": BudgetLease()})
    assert shared.leases(0.3).get(1, none).budgets["tokens"].calls == 0
    shared.report(0, report(1, budgets={"tokens": BudgetReport(granted=10, returned=10, given_back=100.0)}), 0.4)
    assert shared.leases(0.5)[1].budgets["tokens"].calls == 3
    assert not stop.requested


def test_what_a_dead_worker_was_charged_and_had_in_flight_counts_once() -> None:
    budget = taught()
    before = budget.spent
    shared, _, _, _ = sharing(budget)
    shared.join(0)
    shared.report(0, report(waiting=6, budgets={"tokens": BudgetReport(wanted=6, each=10.0)}), 0.0)
    shared.leases(0.1)
    paid = BudgetReport(costs=[(7.0, 10.0)], ended=1, freed=10.0, granted=6)
    shared.report(0, report(1, in_flight=4, budgets={"tokens": paid}), 0.2)
    shared.leave(0, Charges(calls=2, input_tokens=14, lost_calls=3, lost_tokens=30.0))
    assert (budget.spent - before, budget.in_flight, budget.reserved) == (44.0, 0, 0.0)


def test_what_one_worker_learns_of_costs_reaches_the_others() -> None:
    shared, _, _, _ = sharing(taught())
    shared.join(0)
    shared.join(1)
    learned = {("output", 0, 0): 700.0}
    shared.report(0, report(budgets={"tokens": BudgetReport()}, maxima=learned), 0.0)
    assert shared.leases(0.1)[1].maxima == learned


@dataclass
class Payer:
    """A worker process that has `most` calls in flight under a budget of tokens, as far as its parent grants them."""

    allocator: LeaseAllocator
    most: int
    bids: list[Bid] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.budget = LeasedBudget("tokens")
        self.account = Account(Prices(), Counters(), Shutdown(), [self.budget])
        self.now = 0.0
        self.number = 0
        self.allocator.join(0)

    def send(self) -> None:
        """Sends what it may."""
        while len(self.bids) < self.most and (bid := self.account.bid(REQUEST)) and bid.is_afforded():
            bid.reserve()
            self.bids.append(bid)

    def tick(self) -> None:
        """Receives its lease, sends what it then may, and reports."""
        self.now += 0.02
        if (lease := self.allocator.leases(self.now).get(0)) is not None:
            self.budget.renew(lease.budgets["tokens"])
            self.number = lease.number
        self.send()
        paid = {"tokens": self.budget.take()}
        self.allocator.report(0, report(self.number, in_flight=len(self.bids), waiting=50, budgets=paid), self.now)

    def answered(self, tokens: int) -> None:
        """Its oldest call is answered."""
        self.account.charge(REQUEST, Reply(b"{}", usage=Usage(input=tokens)), None)
        self.bids.pop(0).release()


REQUEST = Request(0, {"model": "m", "messages": [{"role": "user", "content": "x"}]})


def test_m1_calls_in_flight_that_turn_out_to_cost_more_are_reserved_at_that_in_worker_processes_too() -> None:
    """The parent would otherwise release more for a call that ended than it had reserved, and grant calls for it."""
    budget = taught(cap=5000.0)
    allocator, _, _, _ = sharing(budget, concurrency=40)
    payer = Payer(allocator, most=14)
    payer.account.learn_all({("input", 0, 1): 10.0, ("output", 0, 0): 0.0})
    for _ in range(5):
        payer.tick()
    assert (budget.in_flight, budget.reserved) == (14, 140.0)
    payer.answered(20)
    for _ in range(3):
        payer.tick()
    assert budget.reserved == pytest.approx(20.0 * budget.in_flight)


def test_m1_calls_in_flight_that_turn_out_to_cost_less_leave_room_for_others_in_worker_processes_too() -> None:
    """Before the first answer a call is taken for its bytes and a usual answer, which is far more than most cost."""
    budget = taught(cap=1_000_000.0)
    allocator, _, _, _ = sharing(budget, concurrency=4)
    payer = Payer(allocator, most=4)
    for _ in range(5):
        payer.tick()
    assert budget.in_flight == 4
    assert budget.reserved > 100.0 * budget.in_flight
    payer.answered(20)
    for _ in range(3):
        payer.tick()
    assert budget.reserved == pytest.approx(20.0 * budget.in_flight)


def test_a_worker_wants_what_it_needs_and_gives_back_what_it_does_not() -> None:
    budget = LeasedBudget("USD")
    assert budget.take().wanted == 0
    budget.renew(BudgetLease(30, 60.0))
    for _ in range(3):
        assert budget.affords(1.5)
        budget.reserve(1.5)
    budget.charge(0.5, 1.0)
    budget.release(1.5)
    first = budget.take()
    assert (first.costs, first.ended, first.freed, first.granted) == ([(0.5, 1.0)], 1, 1.5, 30)
    assert first.returned == 27 - (2 * 3 + 8)
    assert first.given_back == pytest.approx(55.5 * 13 / 27)
    second = budget.take()
    assert (second.costs, second.returned) == ([], 14)
    assert second.given_back == pytest.approx(55.5 * 14 / 27)
    assert not budget.affords(0.1)


def test_a_worker_whose_next_call_is_too_large_gives_all_back_and_asks_for_more() -> None:
    """Else the run could not grant it the one call that it may have."""
    budget = LeasedBudget("USD")
    budget.renew(BudgetLease(1, 2.0))
    assert not budget.affords(5.0)
    report = budget.take()
    assert (report.returned, report.given_back, report.each) == (1, 2.0, 5.0)
    assert report.wanted > 0
