"""The batch jobs of a run whose answers are not recorded yet, for starts that do not ask by batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.execution.run import Run
from pipeline.faults import UsageError
from pipeline.storage.run_folder import RunFolder
from pipeline.storage.submissions import submissions_in

CANCELLING = "cancelling"
"""The state of a job whose end was asked for by `pipeline cancel`."""


def require_cancelled(folder: Path) -> None:
    """Raises `UsageError` if the run in a folder, which is about to be removed, has jobs that go on and are billed."""
    going_on = [
        one
        for one in submissions_in(RunFolder(folder).journal)
        if one.progress == "submitted" and one.state in ("waiting", "running")
    ]
    if going_on:
        raise UsageError(
            f"{len(going_on)} batch jobs of the run that --fresh removes may still go on, and would be billed "
            f"({going_on[0].name}): `pipeline cancel {folder}` ends them"
        )


def require_collected(run: Run, *, simulated: bool) -> None:
    """Raises `UsageError` if jobs have rows that would now be asked online, and paid for twice.

    The jobs of an emulator ended with it: their rows are asked again.
    """
    book = run.context.journal.submissions
    if not run.chunks():
        return
    waiting = [one for one in book.all() if one.progress == "submitted"]
    for one in waiting if simulated else ():
        book.save(replace(one, progress="void"))
    if waiting and not simulated:
        names = ", ".join(one.name for one in waiting[:3]) + (", ..." if len(waiting) > 3 else "")
        raise UsageError(
            f"the answers of {len(waiting)} batch jobs are not collected yet ({names}): run the same command with "
            f"--batch, after `pipeline cancel {run.output}` if you do not want to wait for them"
        )
