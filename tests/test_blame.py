"""Whose fault: the row's own, the account's, the endpoint's. In virtual time, with the policies as a run has them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import Ask, Reply, Request
from pipeline.faults import Fault, ProviderUnusable, Refused, Throttled, Unavailable
from pipeline.pace import FEW, AdaptiveRate, Blame, CircuitBreaker, FailureRate, Refusal, RetryBudget
from pipeline.pace.attribution import LEAST_ALIKE, MOST_ALIKE
from pipeline.policy import Dispatcher, Limits, LocalUpstream, Shutdown, retrying
from pipeline.policy.failure_policy import LAST_WAIT_S, THROTTLES, UNREACHABLE_S
from pipeline.totals.counters import Counters
from tests import virtual

anyio_backend = virtual.anyio_backend
pytestmark = pytest.mark.anyio

REPLY = Reply(b"{}")
SECONDS = 0.5
"""How long a call takes."""

Script = Callable[[int, int], Reply | Fault]


def suspect(status: int, kind: str | None = None) -> Refused:
    return Refused(f"{status} said the server", http_status=status, suspect=True, kind=kind or str(status))


def bad_request(words: str = "too many states") -> Refused:
    return Refused(f"400: {words}", http_status=400, kind=f"400 {words}")


POISONS: Mapping[str, Callable[[], Fault]] = {
    "302": lambda: suspect(302),
    "400": bad_request,
    "402": lambda: suspect(402),
    "403": lambda: suspect(403),
    "404": lambda: suspect(404),
    "405": lambda: suspect(405),
    "407": lambda: suspect(407),
    "410": lambda: suspect(410),
    "429": lambda: Throttled("429 too large for the quota"),
    "429 with a time": lambda: Throttled("429 too large for the quota", retry_after=7.0),
    "500": lambda: Unavailable("500", http_status=500),
    "503": lambda: Unavailable("503", http_status=503),
    "closed": lambda: Unavailable("the connection was closed without a byte"),
}


@dataclass
class PolicyRun:
    """Rows through the policies that a run has, with workers as a run has them."""

    script: Script
    concurrency: int = 8
    lanes: int = 1
    give_up_s: float = 1800.0
    attempts: int = 5
    ok_before: int = 0
    rows: int = 0
    results: dict[int, Reply | Fault] = field(default_factory=dict)
    tries: Counter[int] = field(default_factory=Counter)
    came: list[tuple[float, int]] = field(default_factory=list)
    hangs: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        self.stop, self.counters = Shutdown(), Counters(ok_before=self.ok_before, done_before=self.ok_before)
        self.endpoints = [
            LocalUpstream(str(number), self._answer_of(number), rate=AdaptiveRate(100.0), breaker=CircuitBreaker())
            for number in range(self.lanes)
        ]
        self.dispatcher = Dispatcher(
            self.endpoints, Limits(self.concurrency), stop=self.stop, counters=self.counters, give_up_s=self.give_up_s
        )
        self.ask = retrying(
            self.dispatcher.ask,
            attempts=self.attempts,
            failure_rate=FailureRate(),
            budget=RetryBudget(),
            stop=self.stop,
            counters=self.counters,
        )

    def _answer_of(self, _lane: int) -> Ask:
        async def answer(request: Request) -> Reply:
            self.tries[request.ordinal] += 1
            self.came.append((anyio.current_time(), request.ordinal))
            if request.ordinal in self.hangs:
                await anyio.sleep(30.0)
                raise Unavailable("no answer within 30 s")
            await anyio.sleep(SECONDS)
            what = self.script(request.ordinal, self.tries[request.ordinal])
            if isinstance(what, Fault):
                raise what
            return what

        return answer

    async def over(self, rows: int) -> PolicyRun:
        """Asks the rows, as the engine does: a halt requests the stop, and rows that it interrupts stay undone."""
        self.rows = rows
        self.counters.rows = self.ok_before + rows
        ordinals = iter(range(rows))

        async def work() -> None:
            for ordinal in ordinals:
                try:
                    self.results[ordinal] = await self.ask(Request(ordinal, {}))
                    self.counters.ok += 1
                except ProviderUnusable as fault:
                    self.stop.request(fault)
                except Fault as fault:
                    if not self.stop.requested:
                        self.results[ordinal] = fault
                        self.counters.failed += 1

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._look)
            async with anyio.create_task_group() as workers:
                for _ in range(max(64, 2 * self.concurrency)):
                    workers.start_soon(work)
            tasks.cancel_scope.cancel()
        return self

    async def _look(self) -> None:
        while True:
            await anyio.sleep(1.0)
            if (denied := self.dispatcher.failure_policy.look(anyio.current_time())) is not None:
                self.stop.request(denied)

    def moments_but(self, row: int) -> list[float]:
        """When the calls of all rows but one came."""
        return [moment for moment, ordinal in self.came if ordinal != row]

    @property
    def failed(self) -> set[int]:
        return {row for row, result in self.results.items() if isinstance(result, Fault)}


def only(rows: Mapping[int, Fault | Sequence[Fault]]) -> Script:
    """These rows always fail so; the others are answered."""
    return lambda row, _: rows.get(row, REPLY)  # type: ignore[return-value] # faults only


# One row's own fault.


@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize("poison", [0, 17, 299])
@pytest.mark.parametrize("kind", POISONS)
async def test_h11_one_row_that_always_fails_ends_as_a_failed_row_and_all_others_are_answered(
    kind: str, poison: int, concurrency: int
) -> None:
    run = await PolicyRun(only({poison: POISONS[kind]()}), concurrency).over(300)
    assert run.stop.reason is None
    assert len(run.results) == 300
    assert run.failed == {poison}
    assert run.tries[poison] <= 20
    assert sum(run.tries.values()) == 299 + run.tries[poison]


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("concurrency", [1, 4, 64])
@pytest.mark.parametrize("first", [0, 150, 300 - len(POISONS)])
async def test_h11_a_bad_row_of_every_kind_side_by_side_costs_no_other_row(
    first: int, concurrency: int, lanes: int
) -> None:
    poisons = {first + number: make() for number, make in enumerate(POISONS.values())}
    run = await PolicyRun(only(poisons), concurrency, lanes).over(300)
    assert run.stop.reason is None
    assert run.failed == set(poisons)
    assert len(run.results) == 300


async def test_h11_two_rows_that_always_hang_end_by_their_attempts_when_all_others_are_done() -> None:
    """They are all that is left, and fail together: that is no failure of the endpoint."""
    run = await PolicyRun(only({}), hangs=frozenset({3, 4})).over(100)
    assert run.stop.reason is None
    assert run.failed == {3, 4}
    assert {run.tries[row] for row in run.failed} == {5}


async def test_a_single_last_row_is_its_own_fault_when_earlier_starts_were_answered() -> None:
    run = await PolicyRun(only({0: suspect(403)}), ok_before=299).over(1)
    assert run.stop.reason is None
    assert run.failed == {0}


async def test_h11_with_two_attempts_a_bad_row_is_asked_twice_whatever_came_before() -> None:
    run = await PolicyRun(only({0: Unavailable("503")}), attempts=2).over(50)
    assert run.tries[0] == 2


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(40, 120),
    poisons=st.dictionaries(st.integers(0, 39), st.sampled_from(sorted(POISONS)), max_size=2),
    concurrency=st.integers(1, 40),
    lanes=st.integers(1, 2),
)
def test_h11_wherever_one_or_two_bad_rows_are_the_others_are_answered(
    rows: int, poisons: dict[int, str], concurrency: int, lanes: int
) -> None:
    run = PolicyRun(only({row: POISONS[kind]() for row, kind in poisons.items()}), concurrency, lanes)
    virtual.run(lambda: run.over(rows))
    assert run.stop.reason is None
    assert run.failed == set(poisons)


# Everybody's.


@pytest.mark.parametrize("concurrency", [1, 4, 8, 64])
@pytest.mark.parametrize("status", [302, 402, 403, 404, 405, 410])
async def test_t6_when_nobody_is_answered_the_run_stops_with_nothing_failed_and_few_calls_wasted(
    status: int, concurrency: int
) -> None:
    run = await PolicyRun(lambda *_: suspect(status), concurrency).over(300)
    assert isinstance(run.stop.reason, ProviderUnusable)
    assert f"{status} said the server" in str(run.stop.reason)
    assert not run.results
    assert sum(run.tries.values()) <= max(concurrency, FEW)


@pytest.mark.parametrize("concurrency", [1, 8, 64])
async def test_t6_a_permission_that_is_revoked_in_the_middle_leaves_every_later_row_undone(concurrency: int) -> None:
    run = await PolicyRun(lambda *_: suspect(403) if anyio.current_time() >= 20.2 else REPLY, concurrency).over(3000)
    assert isinstance(run.stop.reason, ProviderUnusable)
    assert not run.failed
    assert 0 < len(run.results) < 3000
    asked_again = 1  # what was answered before is asked once more, which tells a revocation from many bad rows
    assert sum(run.tries.values()) - len(run.results) <= max(concurrency, LEAST_ALIKE) + asked_again


@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize("last", [2, 3, 4])
async def test_t6_a_permission_that_is_revoked_before_the_last_few_rows_fails_none_of_them(
    last: int, concurrency: int
) -> None:
    """What was answered before is asked once more: it is refused too."""

    def script(row: int, a_try: int) -> Reply | Fault:
        return suspect(403) if row >= 100 - last or a_try > 1 else REPLY

    run = await PolicyRun(script, concurrency).over(100)
    assert isinstance(run.stop.reason, ProviderUnusable)
    assert not run.failed
    assert len(run.results) == 100 - last
    assert sum(run.tries.values()) == 101


@pytest.mark.parametrize("last", [1, 2, 4])
async def test_h11_a_few_bad_rows_at_the_end_cost_one_more_call_at_most(last: int) -> None:
    run = await PolicyRun(only({row: suspect(403) for row in range(100 - last, 100)})).over(100)
    assert run.stop.reason is None
    assert run.failed == set(range(100 - last, 100))
    assert sum(run.tries.values()) == 100 + (last > 1)


async def test_t6_slow_calls_that_left_before_a_revocation_clear_no_row_refused_after_it() -> None:
    """They end later, and are answered; their leaving is what counts."""

    def script(row: int, tries: int) -> Reply | Fault:
        return REPLY if row < 8 and tries == 1 else suspect(403)

    run = PolicyRun(script, concurrency=12)
    slow = run.endpoints[0].ask

    async def ask(request: Request) -> Reply:
        if request.ordinal < 8:
            await anyio.sleep(5.0)
        return await slow(request)

    run.endpoints[0].ask = ask
    await run.over(300)
    assert isinstance(run.stop.reason, ProviderUnusable)
    assert not run.failed


async def test_t6_a_run_of_one_row_whose_model_is_unknown_stops() -> None:
    run = await PolicyRun(lambda *_: suspect(404)).over(1)
    assert isinstance(run.stop.reason, ProviderUnusable)
    assert not run.results


@pytest.mark.parametrize("concurrency", [1, 8, 64])
async def test_h11a_the_same_400_for_each_of_the_first_rows_stops_the_run(concurrency: int) -> None:
    run = await PolicyRun(lambda *_: bad_request(), concurrency).over(300)
    assert isinstance(run.stop.reason, ProviderUnusable)
    assert "too many states" in str(run.stop.reason)
    assert not run.results
    assert sum(run.tries.values()) <= max(concurrency, FEW)


async def test_h11a_once_a_row_was_answered_a_400_is_its_rows_own_however_many_there_are() -> None:
    run = await PolicyRun(lambda row, _: REPLY if row == 0 else bad_request(), concurrency=1).over(300)
    assert run.stop.reason is None
    assert len(run.failed) == 299


async def test_h11a_different_400s_are_their_rows_own() -> None:
    run = await PolicyRun(lambda row, _: bad_request(f"column {'abcdefgh'[row]}")).over(8)
    assert run.stop.reason is None
    assert len(run.failed) == 8


async def test_a_location_that_refuses_everybody_stops_the_run_and_is_named() -> None:
    run = PolicyRun(only({}), lanes=2)

    async def refusing(_: Request) -> Reply:
        raise suspect(404)

    run.endpoints[1].ask = refusing
    await run.over(300)
    assert isinstance(run.stop.reason, ProviderUnusable)
    assert "by 1" in str(run.stop.reason)
    assert not run.failed


# Throttled rows.


async def test_h2b_the_time_that_a_row_is_told_holds_the_others_once() -> None:
    run = await PolicyRun(only({0: Throttled("429", retry_after=20.0)}), concurrency=4).over(1000)
    assert run.failed == {0}
    moments = run.moments_but(0)
    assert [later - earlier > 15.0 for earlier, later in pairwise(moments)].count(True) == 1
    assert moments[-1] <= 1.2 * (1000 * SECONDS / 4) + 25.0


async def test_h2b_a_row_that_is_always_throttled_does_not_slow_the_others_down() -> None:
    run = await PolicyRun(only({0: Throttled("429")}), concurrency=32).over(2000)
    alone = await PolicyRun(only({}), concurrency=32).over(2000)
    assert run.failed == {0}
    assert run.moments_but(0)[-1] <= 1.2 * alone.moments_but(0)[-1] + 3.0


async def test_h2b_the_last_row_fails_rather_than_stopping_the_run_when_patience_ends() -> None:
    run = await PolicyRun(only({299: Throttled("429")}), give_up_s=10.0).over(300)
    assert run.stop.reason is None
    assert run.failed == {299}


@pytest.mark.parametrize("concurrency", [1, 8, 64])
@pytest.mark.parametrize("poison", [0, 100])
async def test_h2b_a_row_that_others_overtook_is_not_waited_for_longer_than_its_tries_take(
    poison: int, concurrency: int
) -> None:
    """A quota that is used up throttles the others too: that none of them was shows whose fault it is."""
    run = await PolicyRun(only({poison: Throttled("429")}), concurrency).over(300)
    assert run.failed == {poison}
    assert run.came[-1][0] - run.moments_but(poison)[-1] <= (THROTTLES + 1) * (SECONDS + 2.0)


@pytest.mark.parametrize("many", [FEW + 1, 20])
async def test_h2b_many_rows_that_are_always_throttled_end_too(many: int) -> None:
    """Too large for the quota by the minute, for instance: all others are done, and they still end."""
    poisons = {7 * row: Throttled("429") for row in range(many)}
    run = await PolicyRun(only(poisons)).over(300)
    assert run.stop.reason is None
    assert run.failed == set(poisons)
    last = max(moment for moment, row in run.came if row not in poisons)
    assert run.came[-1][0] - last <= 2 * LAST_WAIT_S


async def test_h2b_a_row_that_is_told_a_long_time_again_and_again_is_not_waited_for_a_quarter_of_an_hour() -> None:
    run = await PolicyRun(only({0: Throttled("429", retry_after=60.0)})).over(300)
    assert run.failed == {0}
    assert run.came[-1][0] - run.moments_but(0)[-1] <= 200.0


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(70, 200), concurrency=st.integers(1, 64), granted=st.integers(30, 60))
def test_h2_wherever_a_quota_by_the_minute_ends_none_of_its_rows_fails(
    rows: int, concurrency: int, granted: int
) -> None:
    sent: Counter[int] = Counter()

    def script(_row: int, _try: int) -> Reply | Fault:
        minute = int(anyio.current_time() // 60)
        sent[minute] += 1
        return Throttled("429") if sent[minute] > granted else REPLY

    run = PolicyRun(script, concurrency)
    virtual.run(lambda: run.over(rows))
    assert run.stop.reason is None
    assert not run.failed


async def test_h2_a_quota_by_the_minute_that_is_used_up_before_the_last_rows_fails_none_of_them() -> None:
    sent: Counter[int] = Counter()

    def script(_row: int, _try: int) -> Reply | Fault:
        minute = int(anyio.current_time() // 60)
        sent[minute] += 1
        return Throttled("429") if sent[minute] > 60 else REPLY

    run = await PolicyRun(script, concurrency=4).over(122)
    assert run.stop.reason is None
    assert not run.failed


async def test_h2_a_quota_that_is_gone_for_everybody_is_waited_for_and_costs_no_row() -> None:
    def script(_row: int, _try: int) -> Reply | Fault:
        return Throttled("429") if 10.0 < anyio.current_time() < 600.0 else REPLY

    run = await PolicyRun(script, concurrency=4).over(500)
    assert run.stop.reason is None
    assert not run.failed


async def test_a_quota_of_nothing_says_the_servers_words_when_patience_ends() -> None:
    run = await PolicyRun(lambda *_: Throttled("429: Daily limit"), give_up_s=60.0).over(50)
    assert "Daily limit" in str(run.stop.reason)
    assert not run.results
    assert run.counters.trouble == "429: Daily limit"


@pytest.mark.parametrize("share", [0.1, 0.3])
async def test_h2_a_constant_share_of_429s_fails_no_row(share: float) -> None:
    every = round(1 / share)
    count = iter(range(10**9))
    run = await PolicyRun(lambda *_: Throttled("429") if next(count) % every == 0 else REPLY, concurrency=16).over(1000)
    assert not run.failed


# The endpoint as a whole.


def out_of_reach(cause: str) -> Unavailable:
    fault = Unavailable(f"no answer: {cause}")
    fault.cause = cause
    return fault


@pytest.mark.parametrize("rows", [1, 300])
@pytest.mark.parametrize("cause", ["dns", "refused", "unreachable", "tls", "proxy"])
async def test_h13_an_endpoint_that_was_never_reached_ends_the_run_within_a_minute_and_says_why(
    cause: str, rows: int
) -> None:
    run = await PolicyRun(lambda *_: out_of_reach(cause)).over(rows)
    assert isinstance(run.stop.reason, ProviderUnusable)
    assert f"cannot be reached: no answer: {cause}" in str(run.stop.reason)
    assert UNREACHABLE_S <= anyio.current_time() <= 60.0
    assert not run.results
    assert run.counters.trouble == f"no answer: {cause}"


async def test_h13_an_endpoint_that_starts_up_within_half_a_minute_is_waited_for() -> None:
    run = await PolicyRun(lambda *_: out_of_reach("refused") if anyio.current_time() < 30.0 else REPLY).over(100)
    assert run.stop.reason is None
    assert not run.failed
    assert run.counters.trouble is None


async def test_h13_once_it_was_reached_an_endpoint_that_is_gone_is_waited_for() -> None:
    def script(_row: int, _try: int) -> Reply | Fault:
        return out_of_reach("refused") if 5.0 <= anyio.current_time() < 400.0 else REPLY

    run = await PolicyRun(script, concurrency=16).over(2000)
    assert run.stop.reason is None
    assert not run.failed


async def test_a_server_on_which_every_request_hangs_ends_the_run_when_patience_ends_and_says_so() -> None:
    run = await PolicyRun(only({}), hangs=frozenset(range(300)), give_up_s=100.0).over(300)
    assert isinstance(run.stop.reason, ProviderUnusable)
    assert str(run.stop.reason).startswith("the endpoint has failed for 100 s (--give-up-after): no answer within 30 s")
    assert anyio.current_time() <= 100.0 + 30.0 + 2.0
    assert not run.results


async def test_a_paid_answer_that_cannot_be_used_counts_as_an_attempt_and_as_a_sign_of_life() -> None:
    def script(_row: int, _try: int) -> Reply | Fault:
        fault = Unavailable("malformed_function_call")
        fault.reply = REPLY
        return fault

    run = await PolicyRun(script, attempts=3).over(20)
    assert run.stop.reason is None
    assert set(run.tries.values()) == {3}


# The arithmetic.


def refusal(row: int, at: float, kind: str = "403", *, suspect: bool = True) -> Refusal:
    return Refusal(row, kind, suspect, f"{kind} for {row}", at, at + 1.0)


def test_a_refusal_is_its_rows_own_once_a_later_call_is_answered() -> None:
    blame = Blame()
    blame.refused(refusal(1, 0.0))
    blame.served(0.5)
    blame.served(1.0)
    assert (blame.is_open, blame.decided_until) == (True, float("-inf"))
    blame.served(1.1)
    assert (blame.is_open, blame.decided_until) == (False, 1.0)


@given(st.integers(1, 1000), st.booleans())
def test_how_many_refusals_alike_are_enough_depends_on_the_calls_in_flight(concurrency: int, served: bool) -> None:  # noqa: FBT001 - hypothesis gives it
    blame = Blame()
    if served:
        blame.served(-1.0)
    rows = 0
    while blame.everybodys(concurrency) is None:
        blame.refused(refusal(rows, float(rows)))
        rows += 1
    assert rows == max(LEAST_ALIKE if served else FEW, min(concurrency, MOST_ALIKE))


def test_refusals_before_the_last_call_that_was_answered_do_not_count() -> None:
    blame = Blame()
    blame.served(-1.0)
    for row in range(LEAST_ALIKE - 1):
        blame.refused(refusal(row, float(row)))
    blame.served(2.5)
    blame.refused(refusal(LEAST_ALIKE, 4.0))
    assert blame.everybodys(1) is None


@pytest.mark.parametrize(
    ("kinds", "served", "condemned"),
    [
        (["403"] * FEW, False, True),
        (["403", "404", "402"], False, False),
        (["403"] * (LEAST_ALIKE - 1), True, False),
        (["403"] * LEAST_ALIKE, True, True),
    ],
)
def test_the_last_rows_are_everybodys_when_enough_are_alike(
    kinds: list[str],
    served: bool,  # noqa: FBT001 - a parameter of the test
    condemned: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """A few bad rows at the end of the input keep no run from ending."""
    blame = Blame()
    if served:
        blame.served(0.0)
    for row, kind in enumerate(kinds):
        blame.refused(refusal(row, 1.0, kind))
    assert blame.last_word(2.0, others=1, answered=True) is None
    assert blame.last_word(3.0, others=0, answered=True) is None
    assert blame.is_open
    assert (blame.last_word(4.0, others=0, answered=True) is not None) is condemned
    assert blame.is_open is condemned
