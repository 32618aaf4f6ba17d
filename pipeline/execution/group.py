"""Several concurrent runs in one process: the repeats of an evaluation, and the job at another commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from pipeline.execution.exit_codes import exit_code
from pipeline.storage.run_folder import differences
from pipeline.totals.ledger import NOTHING, Charges, total

if TYPE_CHECKING:
    from pipeline.execution.finish import Summary
    from pipeline.execution.run import Run
    from pipeline.execution.settings import Settings
    from pipeline.job.job import Job
    from pipeline.policy import Shutdown, SingleFlight
    from pipeline.source.progress import SurveyProgress


class Host(Protocol):
    """Executes runs and shows their progress; supplied by the caller."""

    def require_access(self) -> None:
        """Raises `UsageError` if credentials are missing, before anything is removed."""

    def execute(self, runs: Sequence[Run]) -> list[Summary]:
        """Executes opened runs that share their counters and their stop; returns their summaries."""

    def stage(self, text: str, reading: SurveyProgress | None = None) -> AbstractContextManager[None]:
        """Shows what is going on, or how far a survey is, for the duration of the block."""

    def note(self, text: str) -> None:
        """Shows a message."""


@dataclass(frozen=True, slots=True)
class RunGroup:
    """Runs that were executed concurrently. Each summary has the calls, tokens and cost of all of them."""

    runs: Sequence[Run]
    summaries: Sequence[Summary]
    stop: Shutdown

    @property
    def stopped(self) -> bool:
        """Whether any of them has rows left."""
        return any(summary.status == "stopped" for summary in self.summaries)

    @property
    def exit_code(self) -> int:
        """The code for why rows are left, if any are; otherwise the worst of all runs."""
        left = [summary for summary in self.summaries if summary.status == "stopped"]
        return max(exit_code(summary, self.stop.reason) for summary in left or self.summaries)

    @property
    def paid(self) -> Charges:
        """The charges of all runs, over all their starts."""
        return total(summary.run for summary in self.summaries)

    def first(self, count: int) -> RunGroup:
        """The group of its first `count` runs."""
        return replace(self, runs=self.runs[:count], summaries=self.summaries[:count])


@contextmanager
def execute_group(
    jobs: Sequence[tuple[Job, Settings]],
    host: Host,
    *,
    paid: Charges = NOTHING,
    begin: Callable[[], None] = lambda: None,
) -> Iterator[RunGroup]:
    """Executes the runs; yields them done or stopped, and still locked within the block.

    They run concurrently, and share the concurrency, the budget (less what others have `paid`) and their replies.
    `begin` is called once all are locked, before the first call.
    """
    from pipeline.execution.start import open_run
    from pipeline.policy import Shutdown, SingleFlight
    from pipeline.totals.counters import Counters

    if any(settings.fresh for _, settings in jobs):
        host.require_access()
    counters, stop, flights = Counters(), Shutdown(), SingleFlight()
    with ExitStack() as stack:
        shared = [(job, _sharing(settings, len(jobs), flights)) for job, settings in jobs]
        with host.stage("reading the gold data"):
            opened = [stack.enter_context(open_run(job, one, counters=counters, stop=stop)) for job, one in shared]
        for note in _superseded(opened[0]):
            host.note(note)
        begin()
        for run in opened:
            if run.reopened:
                host.note(f"asking {run.reopened} failed row{'s' if run.reopened > 1 else ''} again")
        runs = _with_one_budget(opened, paid)
        yield RunGroup(runs, host.execute(runs), stop)


def _superseded(run: Run) -> list[str]:
    """The notes about the run that this one replaces, if it does."""
    before, plan, output = run.replaced, run.context.plan, run.context.folder.output
    if before is None:
        return []
    data = [] if before.survey["files"] == plan.survey["files"] else ["the gold data changed"]
    effect = "starting over; what the reply cache knows is not asked again"
    changes = [*differences(before, plan), *data]
    return [f"note: {output} already holds a different run: {what}; {effect}" for what in changes]


def _sharing(settings: Settings, runs: int, flights: SingleFlight) -> Settings:
    """The settings of one of several runs, with its share of the rates and the concurrency."""
    bounds = settings.bounds
    shared = replace(
        bounds,
        concurrency=max(1, bounds.concurrency // runs),
        rpm=bounds.rpm and bounds.rpm / runs,
        tpm=bounds.tpm and bounds.tpm / runs,
        reuse=bounds.reuse and replace(bounds.reuse, flights=flights),
    )
    return replace(settings, bounds=shared)


def _with_one_budget(runs: Sequence[Run], paid: Charges) -> list[Run]:
    """The runs with one budget for all of them, less what they and others have spent."""
    from pipeline.policy.compose import budgets_for

    first = runs[0].context
    charged = total([paid, *(run.charged_before for run in runs)])
    budgets = budgets_for(first.job, first.settings.bounds, charged)
    return [replace(run, context=replace(run.context, budgets=budgets)) for run in runs]
