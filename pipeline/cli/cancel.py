"""`pipeline cancel`: asks for the end of a run's batch jobs; what they have answered is collected by the next start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.options import AsJson, CredentialsFile
from pipeline.cli.remote_output import output_to_read
from pipeline.cli.tables import json_line
from pipeline.execution.batch.setup import BatchSetup, opened_backend
from pipeline.faults import UsageError
from pipeline.store.address import Address, place_of
from pipeline.text import printable

if TYPE_CHECKING:
    from pipeline.storage.run_folder import RunIdentity
    from pipeline.storage.submissions import Submission


def cancel(
    output: Annotated[str, typer.Argument(help="The output folder of a run, or its address.")],
    *,
    credentials: CredentialsFile = None,
    as_json: AsJson = False,
) -> int:
    """Cancel the batch jobs of a run; its next start collects what they have answered."""
    from pipeline.execution.run_status import require_run
    from pipeline.storage.submissions import submissions_in

    with output_to_read(output) as (folder, remote):
        run_folder, plan = require_run(folder)
        if plan.simulated:
            raise UsageError(f"the jobs of {output} ended with the emulator: nothing is there to cancel")
        waiting = [one for one in submissions_in(run_folder.journal) if one.progress == "submitted"]
        states = _cancelled(waiting, plan, credentials)
        if waiting and remote is None and run_folder.running() is None:
            _note(waiting, states, run_folder.journal)
    if as_json:
        print(json_line({"cancelled": [{"name": name, "state": state} for name, state in states.items()]}))
        return 0
    for name, state in states.items():
        print(printable(f"{name}  {_SAID.get(state, state)}"))
    if not states:
        print("no batch job of this run is open")
    elif any(state != "unknown" for state in states.values()):
        print("the same `pipeline run` with --batch collects what they have answered, and goes on with the rest")
    return 0


_SAID = {"unknown": "was never created, or is gone: its rows are open again"}


def _cancelled(waiting: Sequence[Submission], plan: RunIdentity, credentials: Path | None) -> dict[str, str]:
    """Cancels these jobs; returns their states by name, `unknown` for one that its server does not know."""
    import anyio

    from pipeline.execution.batch.open_jobs import CANCELLING

    states: dict[str, str] = {}

    async def cancel_at(place: dict[str, Any], jobs: Sequence[Submission]) -> None:
        from pipeline.endpoint.connection import Connection, access

        connection = Connection(
            project=place.get("project"),
            locations=place.get("locations") or ["global"],
            base_urls=place.get("base_urls") or (),
            credentials=credentials,
        )
        setup = BatchSetup(settings=_unused(), place=_address(place.get("bucket")), credentials=credentials)
        async with opened_backend(access(connection), str(plan.job["model"]), setup, plan.run_id) as backend:
            for job in jobs:
                known = await backend.find(job.name)
                states[job.name] = "unknown" if known is None else known.state
                if known is not None and not known.ended:
                    await backend.cancel(known.handle)
                    states[job.name] = CANCELLING

    async def cancel_all() -> None:
        for place in {repr(sorted(one.place.items())): one.place for one in waiting}.values():
            await cancel_at(place, [one for one in waiting if one.place == place])

    if waiting:
        anyio.run(cancel_all)
    return states


def _address(text: str | None) -> Address | None:
    place = None if text is None else place_of(text)
    return place if isinstance(place, Address) else None


def _unused() -> Any:
    from pipeline.execution.batch.settings import BatchSettings

    return BatchSettings()


def _note(submissions: Sequence[Submission], states: Mapping[str, str], journal: Path) -> None:
    """Records these states. Jobs that do not exist have no rows any more: these are submitted, or asked, again."""
    from pipeline.storage.durable import FILES
    from pipeline.storage.journal_database import JournalDatabase
    from pipeline.storage.submissions import SubmissionBook

    with closing(JournalDatabase(journal, FILES)) as database:
        book = SubmissionBook(database, journal)
        for one in submissions:
            state = states[one.name]
            book.save(replace(one, progress="void") if state == "unknown" else replace(one, state=state))
