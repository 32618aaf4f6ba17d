"""A run as it is opened: complete, unchangeable, and with all that earlier starts did."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import anyio
import pytest

from pipeline.endpoint.prices import Price
from pipeline.execution.finish import finish
from pipeline.execution.start import open_run
from pipeline.faults import UsageError
from pipeline.policy import Shutdown
from pipeline.policy.compose import RunLimits
from pipeline.storage.run_folder import SUCCESS
from pipeline.totals.counters import Counters
from pipeline.totals.ledger import Charges
from tests.crash.small import RunPlace, start

LIMITS = RunLimits(
    concurrency=3, adaptive=False, budget_usd=10.0, budget_tokens=10_000, assumed_price=Price(input=1e6, output=1e6)
)
"""A dollar for each token."""


@pytest.fixture
def place(tmp_path: Path) -> RunPlace:
    return RunPlace(tmp_path).prepare()


def test_nothing_of_an_opened_run_can_be_set(place: RunPlace) -> None:
    with open_run(place.job(), place.settings()) as run:
        for value in (run, run.context):
            for field in fields(value):
                with pytest.raises(FrozenInstanceError):
                    setattr(value, field.name, None)


def test_an_opened_run_has_what_earlier_starts_did_and_spent(place: RunPlace) -> None:
    before = start(place, stop_after=9)
    with open_run(place.job(), place.settings(bounds=LIMITS)) as run:
        counters = run.context.counters
        assert (counters.rows, counters.done) == (before.rows, before.ok + before.failed)
        assert (counters.ok_before, counters.failures_before.count) == (before.ok, before.failed)
        assert run.charged_before == before.run
        assert {budget.unit: budget.spent for budget in run.context.budgets} == {
            "USD": pytest.approx(8.0 * before.run.calls),
            "tokens": before.run.tokens,
        }
        assert sum(chunk.rows for chunk in run.chunks()) >= run.context.survey.rows - counters.done > 0
        assert run.charged == Charges()


def test_failed_rows_are_reopened_as_the_run_is_opened(place: RunPlace) -> None:
    before = start(place)
    assert before.failed > 0
    with open_run(place.job(), place.settings(retry_failed=True)) as run:
        counters = run.context.counters
        assert (run.reopened, counters.done, counters.failures_before.count) == (before.failed, before.ok, 0)


def test_an_opened_run_is_executed_by_one_call(place: RunPlace) -> None:
    with open_run(place.job(), place.settings()) as run:
        anyio.run(run.execute, place.connect(run.context.stop, None))
        [summary] = finish([run])
    assert (summary.status, summary.left, summary.requests) == ("complete", 0, summary.rows)


def test_runs_opened_with_the_same_counters_and_stop_share_them(tmp_path: Path) -> None:
    first, second = (RunPlace(tmp_path / name).prepare() for name in ("first", "second"))
    counters, stop = Counters(), Shutdown()
    with ExitStack() as stack:
        runs = [
            stack.enter_context(open_run(one.job(), one.settings(), counters=counters, stop=stop))
            for one in (first, second)
        ]
        assert [run.context.counters for run in runs] == [counters, counters]
        assert [run.context.stop for run in runs] == [stop, stop]
        assert counters.rows == sum(run.context.survey.rows for run in runs)


def test_a_run_knows_which_one_it_replaces(place: RunPlace) -> None:
    start(place)
    other = place.with_job(model="google/gemini-other")
    with open_run(other.job(), other.settings(supersede=True)) as run:
        assert run.replaced is not None
        assert run.replaced.job["model"] == place.job().model
    start(other)
    with open_run(other.job(), other.settings()) as run:
        assert run.replaced is None


def test_fresh_removes_nothing_when_the_price_for_the_budget_is_unknown(place: RunPlace) -> None:
    start(place)
    limits = replace(LIMITS, assumed_price=None)
    other = place.with_job(model="no-such/model")
    with (
        pytest.raises(UsageError, match="needs the price of no-such/model"),
        open_run(other.job(), other.settings(bounds=limits, fresh=True)),
    ):
        pass
    assert (place.output / SUCCESS).exists()
    assert start(place).requests == 0
