"""Where the output of a job is: a folder of this machine, or an address whose run keeps its state in such a folder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.faults import UsageError
from pipeline.store.address import Address, place_of

if TYPE_CHECKING:
    from pipeline.job.job import Job
    from pipeline.storage.remote.objects import OutputObjects


def output_of(job: Job, state_dir: Path | None) -> tuple[Path, Address | None]:
    """The run folder of a job, and the address that follows it if its output is one.

    Raises `UsageError` as `place_of` does, and if there is no place for the state of a run.
    """
    place = place_of(str(job.output)) if job.output else Path("out") / job.name
    return (state_folder(place, state_dir), place) if isinstance(place, Address) else (place, None)


def state_folder(address: Address, state_dir: Path | None) -> Path:
    """The folder on this machine for the state of a run whose output is an address."""
    from pipeline.execution.rate_memory import user_state

    root = state_dir or ((found := user_state()) and found / "runs")
    if not root:
        raise UsageError(
            f"{address}: there is no home folder for the state of the run: name a folder with --state-dir or "
            f"PIPELINE_STATE_DIR"
        )
    name = str(address).rstrip("/")
    return root / hashlib.sha256(name.encode()).hexdigest()[:16]


def objects_at(address: Address) -> OutputObjects:
    """The objects below an address, inside of `opened_stores`."""
    from pipeline.storage.remote.objects import OutputObjects
    from pipeline.store.stores import store_at

    return OutputObjects(store_at(str(address))[0], address)
