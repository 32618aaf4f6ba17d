"""The command as the supervisor of runs: shows their progress, and ends them on signals."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.cli.garbage import tune_gc
from pipeline.faults import Broken
from pipeline.text import printable

if TYPE_CHECKING:
    from pipeline.cli.progress import Progress
    from pipeline.execution.run import Run
    from pipeline.source.progress import SurveyProgress


@dataclass(frozen=True, slots=True)
class Terminal:
    """Supervises runs from a terminal or a log; see `pipeline.execution.target.Supervisor`."""

    quiet: bool = False

    def stage(self, text: str, reading: SurveyProgress | None = None) -> AbstractContextManager[None]:
        """Shows what is happening before the first call, or how far a survey is, while the block runs."""
        from pipeline.cli.progress import stage

        return stage(text, quiet=self.quiet, reading=reading)

    def note(self, text: str) -> None:
        """Prints a line on stderr."""
        print(printable(text), file=sys.stderr)

    def prepare(self, concurrency: int) -> None:
        """Makes the garbage collector of this process run rarely."""
        tune_gc(concurrency)

    async def supervise(self, runs: Sequence[Run], cut_off: Callable[[], None]) -> None:  # noqa: ARG002 - it exits instead
        """Shows the progress, and ends the runs on signals, until it is cancelled."""
        import anyio

        from pipeline.cli.progress import Progress

        progress = Progress(runs[0].context.counters, quiet=self.quiet)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_watch_signals, runs, progress)
            tasks.start_soon(progress.show)


async def _watch_signals(runs: Sequence[Run], progress: Progress) -> None:
    """Ends runs on SIGINT, SIGTERM and SIGHUP: drains on the first, exits on the second; no received reply is lost.

    SIGHUP stays ignored if it already is, as under nohup.
    """
    import anyio

    context = runs[0].context
    hang_up = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, *hang_up) as signals:
        draining = False
        async for number in signals:
            if draining:
                for run in runs:
                    with suppress(Broken):  # the process ends here, so there is no other chance to store it
                        run.context.journal.commit()
                progress.close()
                os._exit(128 + number)
            draining = True
            name, calls, grace = signal.Signals(number).name, context.counters.in_flight, context.settings.grace_s
            progress.say(f"{name}: finishing {calls} calls in flight, {grace:g} s at most; again to stop now")
            context.stop.request(signal.Signals(number))
