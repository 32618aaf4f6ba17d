"""The batch jobs of a run whose answers are not recorded yet, for starts that do not ask by batch."""

from __future__ import annotations

from dataclasses import replace

from pipeline.execution.run import Run
from pipeline.faults import UsageError


def require_collected(run: Run, *, simulated: bool) -> None:
    """Raises `UsageError` if jobs have rows that would now be asked online, and paid for twice.

    The jobs of an emulator ended with it: their rows are asked again.
    """
    book = run.context.journal.submissions
    waiting = [one for one in book.all() if one.progress == "submitted"]
    for one in waiting if simulated else ():
        book.save(replace(one, progress="void"))
    if waiting and not simulated:
        names = ", ".join(one.name for one in waiting[:3]) + (", ..." if len(waiting) > 3 else "")
        raise UsageError(
            f"the answers of {len(waiting)} batch jobs are not collected yet ({names}): run the same command with "
            f"--batch, after `pipeline cancel {run.output}` if you do not want to wait for them"
        )
