"""Decides which job file may be run for an output folder: one that the user names, or one verified to be unchanged.

A folder is data, and may come from anyone: a job is never run merely because the folder names it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.faults import UsageError
from pipeline.job.loader import file_and_name, is_job_file, sha256_of

if TYPE_CHECKING:
    from pipeline.storage.run_folder import RunIdentity


def target_of(plan: RunIdentity, output: Path, given: str | None, *, name_it: str = "name it with --job") -> str:
    """The job file to load for a run: the one given, otherwise the one that ran, if it is unchanged.

    Raises `UsageError` if that file is in the output folder (or imported from there), is missing, or has changed.
    """
    if given is not None:
        return given
    target = plan.target
    if not is_job_file(target):
        return target
    path, folder = Path(file_and_name(target)[0]), output.resolve()
    try:
        places = (path.resolve(), Path.cwd())
    except (ValueError, OSError, RuntimeError) as error:  # a NUL, a loop of links
        raise UsageError(f"{output} names a job file that cannot be one: {name_it}") from error
    for place in places:
        if place.is_relative_to(folder):
            raise UsageError(f"{output} names {target}, and nothing out of an output folder is run unasked: {name_it}")
    if not os.path.isfile(path):  # noqa: PTH113 - pathlib raises for names that are too long
        raise UsageError(f"the job file {target} is not there: {name_it}")
    if plan.target_sha256 is None or sha256_of(target) != plan.target_sha256:
        raise UsageError(f"{target} has changed since the run: if it is the right one, {name_it}")
    return target
