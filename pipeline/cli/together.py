"""Several runs at once, in one process: the repeats of an evaluation, and the job at another commit beside it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from pipeline.cli import emulation
from pipeline.cli.connecting import Connection, access
from pipeline.cli.running import emulated, exit_code, watch_signals

if TYPE_CHECKING:
    from pipeline.cli.connecting import Access
    from pipeline.execute import Run, Settings, Summary
    from pipeline.job import Job
    from pipeline.policy import Flights, Stop
    from pipeline.tally import Tally


@dataclass(frozen=True, slots=True)
class Place:
    """Where runs are carried out: an endpoint, or with arguments in `simulation` an emulator of their own."""

    connection: Connection
    simulation: list[str] | None
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class Together:
    """Runs that went side by side. Calls, tokens and cost in any of the summaries are those of all runs."""

    runs: Sequence[Run]
    summaries: Sequence[Summary]
    stop: Stop

    @property
    def stopped(self) -> bool:
        """Whether rows are left in any of them."""
        return any(summary.status == "stopped" for summary in self.summaries)

    @property
    def exit_code(self) -> int:
        """That of the run which went worst."""
        return max(exit_code(summary, self.stop.reason) for summary in self.summaries)


@contextmanager
def carried_out(jobs: Sequence[tuple[Job, Settings]], place: Place) -> Iterator[Together]:
    """The runs, done or stopped, and still ours alone within the block.

    They are asked side by side in time, and share what may be in flight, what may be spent, and their replies.
    """
    from pipeline.execute import opened
    from pipeline.policy import Flights

    flights = Flights()
    with ExitStack() as stack:
        runs = [stack.enter_context(opened(job, _sharing(settings, len(jobs), flights))) for job, settings in jobs]
        yield _carried_out(runs, place)


def _carried_out(runs: Sequence[Run], place: Place) -> Together:
    import anyio

    from pipeline.policy import Stop
    from pipeline.tally import Tally

    started = time.monotonic()
    tally, stop = Tally(), Stop()
    for run in runs:
        run.count_before(tally)
    _share_purses(runs)
    if any(run.chunks() for run in runs):
        with ExitStack() as stack:
            connection = place.connection
            if place.simulation is not None:
                connection = emulated(stack.enter_context(emulation.emulator(place.simulation)))
            options = {"use_uvloop": find_spec("uvloop") is not None}
            ask_all = partial(_ask_all, runs, access(connection), tally, stop, quiet=place.quiet)
            anyio.run(ask_all, backend_options=options)
    seconds = time.monotonic() - started
    return Together(runs, [run.conclude(tally, stop, seconds) for run in runs], stop)


async def _ask_all(runs: Sequence[Run], opening: Access, tally: Tally, stop: Stop, *, quiet: bool) -> None:
    import anyio

    from pipeline.cli.progress import show_progress
    from pipeline.composition import workers_for

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch_signals, runs, stop, tally)
        tasks.start_soon(lambda: show_progress(tally, quiet=quiet))
        async with anyio.create_task_group() as working:
            for run in runs:
                connect = partial(
                    opening.open,
                    connections=workers_for(run.settings.bounds.concurrency),
                    timeout_s=run.job.timeout_s,
                    idle_timeout_s=run.job.idle_timeout_s,
                )
                working.start_soon(run.carry_out, connect, tally, stop)
        tasks.cancel_scope.cancel()


def _sharing(settings: Settings, runs: int, flights: Flights) -> Settings:
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


def _share_purses(runs: Sequence[Run]) -> None:
    """One budget for all of them, less what all of them have spent."""
    from pipeline.composition import purses_for

    first = runs[0]
    if first.purses:
        spent = [run.spent() for run in runs]
        usd, tokens = sum(usd for usd, _ in spent), sum(tokens for _, tokens in spent)
        purses = purses_for(first.job, first.settings.bounds, spent_usd=usd, spent_tokens=tokens)
        for run in runs:
            run.purses = purses
