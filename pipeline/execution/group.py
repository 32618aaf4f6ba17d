"""Several runs at once, in one process: the repeats of an evaluation, and the job at another commit beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from pipeline.execution.exit_codes import exit_code
from pipeline.ledger import NOTHING, Charges, total
from pipeline.storage.run_folder import RunFolder, differences

if TYPE_CHECKING:
    from pipeline.counters import Counters
    from pipeline.execution.run import Run, Settings, Summary
    from pipeline.job.job import Job
    from pipeline.policy import Shutdown, SingleFlight
    from pipeline.storage.run_folder import RunIdentity


class Host(Protocol):
    """Where runs are carried out, and who hears of it: given by whoever started them."""

    def require_access(self) -> None:
        """Raises `UsageError` when credentials are missing, before anything is removed."""

    def execute(self, runs: Sequence[Run], tally: Counters, began: float) -> tuple[list[Summary], Shutdown]:
        """Asks what is left to ask in opened runs; what they came to, and what stopped them."""

    def stage(self, text: str) -> AbstractContextManager[None]:
        """Says what goes on for as long as the block."""

    def note(self, text: str) -> None:
        """Says something once."""


@dataclass(frozen=True, slots=True)
class RunGroup:
    """Runs that went side by side. Calls, tokens and cost in any of the summaries are those of all runs."""

    runs: Sequence[Run]
    summaries: Sequence[Summary]
    stop: Shutdown

    @property
    def stopped(self) -> bool:
        """Whether rows are left in any of them."""
        return any(summary.status == "stopped" for summary in self.summaries)

    @property
    def exit_code(self) -> int:
        """Why rows are left, where some are; else that of the run which went worst."""
        left = [summary for summary in self.summaries if summary.status == "stopped"]
        return max(exit_code(summary, self.stop.reason) for summary in left or self.summaries)

    @property
    def paid(self) -> Charges:
        """For all of them, in all of their starts."""
        return total(summary.run for summary in self.summaries)

    def first(self, count: int) -> RunGroup:
        """The same, of its first runs alone."""
        return replace(self, runs=self.runs[:count], summaries=self.summaries[:count])


@contextmanager
def carried_out(
    jobs: Sequence[tuple[Job, Settings]],
    host: Host,
    *,
    paid: Charges = NOTHING,
    begin: Callable[[], None] = lambda: None,
) -> Iterator[RunGroup]:
    """The runs, done or stopped, and still ours alone within the block.

    They are asked side by side in time, and share what may be in flight, what may be spent (less what others have
    `paid`), and their replies. `begin` is called when they are ours, before the first call.
    """
    from pipeline.execution.run import open_run
    from pipeline.policy import SingleFlight

    if any(settings.fresh for _, settings in jobs):
        host.require_access()
    began, flights = time.monotonic(), SingleFlight()
    with ExitStack() as stack:
        before = [None if settings.fresh else RunFolder(settings.output).load() for _, settings in jobs]
        shared = [(job, _sharing(settings, len(jobs), flights)) for job, settings in jobs]
        with host.stage("reading the gold data"):
            runs = [stack.enter_context(open_run(job, settings)) for job, settings in shared]
        for note in _superseded(before[0], runs[0]):
            host.note(note)
        begin()
        yield _carried_out(runs, host, paid, began)


def _superseded(before: RunIdentity | None, run: Run) -> list[str]:
    """What is to be said of a run whose place another takes."""
    if before is None or before.run_id == run.plan.run_id:
        return []
    data = [] if before.survey["files"] == run.plan.survey["files"] else ["the gold data changed"]
    told = "starting over; what the reply cache knows is not asked again"
    changes = [*differences(before, run.plan), *data]
    return [f"note: {run.folder.output} already holds a different run: {what}; {told}" for what in changes]


def _carried_out(runs: Sequence[Run], host: Host, paid: Charges, began: float) -> RunGroup:
    from pipeline.counters import Counters

    tally = Counters()
    for run in runs:
        if run.settings.retry_failed and (reopened := run.reopen_failed()):
            host.note(f"asking {reopened} failed row{'s' if reopened > 1 else ''} again")
        run.restore_counts(tally)
    _share_purses(runs, paid)
    return RunGroup(runs, *host.execute(runs, tally, began))


def _sharing(settings: Settings, runs: int, flights: SingleFlight) -> Settings:
    """The settings of one of several runs: its share of the rates and of the calls in flight."""
    bounds = settings.bounds
    shared = replace(
        bounds,
        concurrency=max(1, bounds.concurrency // runs),
        rpm=bounds.rpm and bounds.rpm / runs,
        tpm=bounds.tpm and bounds.tpm / runs,
        reuse=bounds.reuse and replace(bounds.reuse, flights=flights),
    )
    return replace(settings, bounds=shared)


def _share_purses(runs: Sequence[Run], paid: Charges) -> None:
    """One budget for all of them, less what all of them and others have spent."""
    from pipeline.policy.compose import budgets_for

    first = runs[0]
    if first.purses:
        charged = total([paid, *(run.charged_before for run in runs)])
        purses = budgets_for(first.job, first.settings.bounds, charged)
        for run in runs:
            run.purses = purses
