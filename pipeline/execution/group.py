"""Several runs at once, in one process: the repeats of an evaluation, and the job at another commit beside it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.cli.host import Target, execute, exit_code, require_access
from pipeline.ledger import NOTHING, Charges, total
from pipeline.storage.run_folder import RunFolder, differences

if TYPE_CHECKING:
    from pipeline.execution.run import Run, Settings, Summary
    from pipeline.job.job import Job
    from pipeline.policy import Shutdown, SingleFlight
    from pipeline.storage.run_folder import RunIdentity


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
    place: Target,
    *,
    paid: Charges = NOTHING,
    begin: Callable[[], None] = lambda: None,
) -> Iterator[RunGroup]:
    """The runs, done or stopped, and still ours alone within the block.

    They are asked side by side in time, and share what may be in flight, what may be spent (less what others have
    `paid`), and their replies. `begin` is called when they are ours, before the first call.
    """
    from pipeline.cli.progress import stage
    from pipeline.execution.run import open_run
    from pipeline.policy import SingleFlight

    if any(settings.fresh for _, settings in jobs):
        require_access(place)
    began, flights = time.monotonic(), SingleFlight()
    with ExitStack() as stack:
        before = [None if settings.fresh else RunFolder(settings.output).load() for _, settings in jobs]
        shared = [(job, _sharing(settings, len(jobs), flights)) for job, settings in jobs]
        with stage("reading the gold data", quiet=place.quiet):
            runs = [stack.enter_context(open_run(job, settings)) for job, settings in shared]
        _tell_superseded(before[0], runs[0])
        begin()
        yield _carried_out(runs, place, paid, began)


def _tell_superseded(before: RunIdentity | None, run: Run) -> None:
    if before is None or before.run_id == run.plan.run_id:
        return
    data = [] if before.survey["files"] == run.plan.survey["files"] else ["the gold data changed"]
    for what in [*differences(before, run.plan), *data]:
        told = "starting over; what the reply cache knows is not asked again"
        print(f"note: {run.folder.output} holds another run: {what}; {told}", file=sys.stderr)


def _carried_out(runs: Sequence[Run], place: Target, paid: Charges, began: float) -> RunGroup:
    from pipeline.counters import Counters

    tally = Counters()
    for run in runs:
        if run.settings.retry_failed and (reopened := run.reopen_failed()):
            print(f"asking {reopened} failed row{'s' if reopened > 1 else ''} again", file=sys.stderr)
        run.restore_counts(tally)
    _share_purses(runs, paid)
    return RunGroup(runs, *execute(runs, place, tally, began))


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
