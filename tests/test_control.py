"""Whose fault refusals are that no later answer decides about: what was answered before is asked once more."""

from __future__ import annotations

from collections import Counter

import anyio
import pytest

from pipeline.data import Reply, Request
from pipeline.faults import BudgetExhausted, Fault, ProviderUnusable, Refused, Unavailable
from pipeline.pace.attribution import FEW_ACCOUNTS, LEAST_ALIKE
from tests import virtual
from tests.test_blame import REPLY, SECONDS, PolicyRun, only, suspect

anyio_backend = virtual.anyio_backend
pytestmark = pytest.mark.anyio


def account() -> ProviderUnusable:
    return ProviderUnusable("400 said the server", http_status=400, kind="400 API_KEY_INVALID")


@pytest.mark.parametrize("concurrency", [1, 8, 64])
@pytest.mark.parametrize("poison", [0, 150, 299])
async def test_h11_one_row_that_is_told_of_the_account_fails_alone_while_others_are_answered(
    concurrency: int, poison: int
) -> None:
    run = await PolicyRun(only({poison: account()}), concurrency).over(300)
    assert run.stop.reason is None
    assert run.failed == {poison}
    assert isinstance(run.results[poison], Refused)
    assert sum(run.tries.values()) <= 301


@pytest.mark.parametrize("concurrency", [1, 8, 64])
async def test_h11a_the_accounts_trouble_from_the_start_stops_the_run_with_nothing_failed(concurrency: int) -> None:
    run = await PolicyRun(lambda *_: account(), concurrency).over(300)
    assert isinstance(run.stop.reason, ProviderUnusable)
    assert "about the account" in str(run.stop.reason)
    assert not run.results
    assert sum(run.tries.values()) <= max(concurrency, FEW_ACCOUNTS)


@pytest.mark.parametrize("rows", [1, 3])
async def test_h11a_the_accounts_trouble_of_the_last_rows_of_another_start_stops_the_run(rows: int) -> None:
    run = await PolicyRun(lambda *_: account(), ok_before=100).over(rows)
    assert isinstance(run.stop.reason, ProviderUnusable)
    assert not run.results


@pytest.mark.parametrize("concurrency", [1, 8, 64])
@pytest.mark.parametrize("fault", [suspect(403), account()])
async def test_t6_what_is_revoked_in_the_middle_costs_one_call_more_than_those_in_flight(
    concurrency: int, fault: Fault
) -> None:
    run = await PolicyRun(lambda *_: fault if anyio.current_time() >= 20.2 else REPLY, concurrency).over(3000)
    assert isinstance(run.stop.reason, ProviderUnusable)
    assert not run.failed
    assert sum(run.tries.values()) - len(run.results) <= max(concurrency, LEAST_ALIKE) + 1


@pytest.mark.parametrize("concurrency", [1, 8, 64])
@pytest.mark.parametrize(("first", "bad"), [(280, 20), (200, 80), (100, 100)])
async def test_h11_rows_of_one_bad_kind_side_by_side_are_their_own_fault(
    concurrency: int, first: int, bad: int
) -> None:
    """A sorted input has them so, at its end, too. The last answered request is asked again, and is answered."""
    poisons = dict.fromkeys(range(first, first + bad), suspect(403))
    run = await PolicyRun(only(poisons), concurrency).over(300)
    assert run.stop.reason is None
    assert run.failed == set(poisons)
    assert len(run.results) == 300
    again = sum(run.tries.values()) - 300
    assert again <= bad / min(max(concurrency, LEAST_ALIKE), 32) + 2


async def test_t6_a_permission_that_is_revoked_before_the_last_rows_leaves_them_undone() -> None:
    run = await PolicyRun(lambda row, tries: suspect(403) if row >= 290 or tries > 1 else REPLY, 8).over(300)
    assert isinstance(run.stop.reason, ProviderUnusable)
    assert not run.failed
    assert len(run.results) == 290


@pytest.mark.parametrize("fault", [Unavailable("503", http_status=503), BudgetExhausted("no money left"), suspect(404)])
async def test_t6_when_asking_again_tells_nothing_enough_refusals_alike_stop_the_run(fault: Fault) -> None:
    run = await PolicyRun(lambda row, tries: fault if tries > 1 else suspect(403) if row >= 100 else REPLY, 8).over(300)
    assert isinstance(run.stop.reason, ProviderUnusable)
    assert not run.failed


async def test_h11_a_lane_is_asked_again_for_itself_and_not_for_another() -> None:
    """Where one location refuses all from some moment on, the answers of another one do not clear it."""
    run = PolicyRun(only({}), 8, lanes=2)
    good = run.endpoints[1].ask
    asked: Counter[str] = Counter()

    async def revoked(request: object) -> Reply:
        asked["second"] += 1
        if anyio.current_time() >= 5.0:
            await anyio.sleep(0.5)
            raise suspect(403)
        return await good(request)  # type: ignore[arg-type] # a request

    run.endpoints[1].ask = revoked
    await run.over(1000)
    assert isinstance(run.stop.reason, ProviderUnusable)
    assert "by 1" in str(run.stop.reason)
    assert not run.failed


async def test_h11_another_call_of_the_row_that_is_asked_again_is_not_taken_for_the_comparison() -> None:
    """A row has several calls, of tools or repairs: one that was refused while the comparison is out says nothing."""
    run = PolicyRun(only({}), 64)
    run.counters.rows = 100
    calls = 0

    async def answer(request: Request) -> Reply:
        nonlocal calls
        if request.ordinal:
            await anyio.sleep(SECONDS)
            raise suspect(403)
        calls, number = calls + 1, calls
        await anyio.sleep((SECONDS, 5.0, 6.0)[number])
        if number == 1:
            raise suspect(403)
        return REPLY  # to the first call, and to the comparison

    run.endpoints[0].ask = answer
    ended: dict[int, Fault] = {}

    async def ask(row: int) -> None:
        try:
            await run.dispatcher.ask(Request(row, {}))
        except Fault as fault:
            ended[row] = fault

    await run.dispatcher.ask(Request(0, {}))
    async with anyio.create_task_group() as tasks:
        for row in range(41):
            tasks.start_soon(ask, row)
    assert calls == 3
    assert run.stop.reason is None
    assert {type(fault) for fault in ended.values()} == {Refused}
    assert len(ended) == 41


async def test_h11_a_lane_whose_refused_rows_are_gone_holds_up_no_row() -> None:
    """Its rows may have reached their deadline; nobody is left who would ask it again."""
    run = PolicyRun(only({}), 8, lanes=2)
    first, second = run.endpoints
    first.control.answered(Request(0, {}), 1.0)
    first.control.is_wanted = True
    judge = run.dispatcher.failure_policy
    assert judge.refused(second, 7, suspect(403), 2.0) is not None
    assert not judge.is_comparing
    assert judge.refused(first, 8, suspect(403), 2.0) is not None
    assert judge.is_comparing
