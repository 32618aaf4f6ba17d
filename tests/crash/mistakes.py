"""Mistakes that a writer of files can make, as changes of what a good one has done: each must be caught.

A log of calls is what a program did; with a call left out, or in another place, it is what a program with a bug did.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tests.crash.power import Log, Step

Mistake = Callable[[Log], Log]


def no_sync(log: Log) -> Log:
    """Files are never synced."""
    return _kept(log, lambda step: not (step.name == "sync" and not step.folder))


def no_sync_of_parts(log: Log) -> Log:
    """Only the parts are never synced."""
    return _kept(log, lambda step: not (step.name == "sync" and ".part-" in step.path))


def no_sync_of_folders(log: Log) -> Log:
    """New names are never made durable."""
    return _kept(log, lambda step: not (step.name == "sync" and step.folder))


def no_sync_of_new_folders(log: Log) -> Log:
    """The names of new folders are never made durable; those of files are."""
    made = [number for number, step in enumerate(log.steps) if step.name == "mkdir"]
    left_out = {number + 2 for number in made}
    return replace(log, steps=tuple(step for number, step in enumerate(log.steps) if number not in left_out))


def sync_after_rename(log: Log) -> Log:
    """A file takes its place first, and is synced then."""
    steps = list(log.steps)
    for number in range(len(steps) - 1):
        first, second = steps[number], steps[number + 1]
        if first.name == "sync" and second.name == "replace":
            late = replace(first, path=second.target, journal=second.journal)
            steps[number], steps[number + 1] = replace(second, journal=first.journal), late
    return replace(log, steps=tuple(steps))


def no_rename(log: Log) -> Log:
    """Files are written in their place."""
    names = {step.path: step.target for step in log.steps if step.name == "replace"}
    steps = [replace(step, path=names.get(step.path, step.path)) for step in log.steps if step.name != "replace"]
    return replace(log, steps=tuple(steps))


def marker_before_parts(log: Log) -> Log:
    """The success marker is written before the last part."""
    marker = [step for step in log.steps if step.path.endswith("_SUCCESS.tmp")]
    rest = [step for step in log.steps if step not in marker]
    last = max(number for number, step in enumerate(rest) if step.name == "replace" and ".part-" in step.path)
    out = Step("sync", "out", folder=True)
    moved = [replace(step, journal=rest[last].journal) for step in [*marker, out]]
    return replace(log, steps=(*rest[:last], *moved, *rest[last:]))


def marker_before_manifest(log: Log) -> Log:
    """The success marker is written before the manifest."""
    marker = [step for step in log.steps if step.path.endswith("_SUCCESS.tmp")]
    rest = [step for step in log.steps if step not in marker]
    first = next(number for number, step in enumerate(rest) if step.path.endswith("_manifest.json.tmp"))
    return replace(log, steps=(*rest[:first], *marker, *rest[first:]))


def journal_emptied_early(log: Log) -> Log:
    """The entries of a part are deleted, and the part is recorded, while it is being written."""
    steps = list(log.steps)
    for number, step in enumerate(steps):
        if ".part-" in step.path and Path(step.path).suffix == ".tmp":
            sealed = number
            while sealed < len(steps) and "mkdir" not in steps[sealed].name:
                sealed += 1
            later = steps[sealed].journal if sealed < len(steps) else log.journal
            steps[number] = replace(step, journal=later)
    return replace(log, steps=tuple(steps))


def _kept(log: Log, keep: Callable[[Step], bool]) -> Log:
    return replace(log, steps=tuple(step for step in log.steps if keep(step)))


MISTAKES: tuple[Mistake, ...] = (
    no_sync,
    no_sync_of_parts,
    no_sync_of_folders,
    no_sync_of_new_folders,
    sync_after_rename,
    no_rename,
    marker_before_parts,
    marker_before_manifest,
    journal_emptied_early,
)
