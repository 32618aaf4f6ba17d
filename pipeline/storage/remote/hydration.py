"""Fills a run folder from the bucket that follows it, and brings both to the same state after a kill.

Parts are not downloaded: a run needs only what their records say.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from pipeline.data import is_part_name
from pipeline.faults import Broken, UsageError
from pipeline.source import Survey
from pipeline.storage.durable import PRIVATE_FILE
from pipeline.storage.integrity import PartCheck
from pipeline.storage.journal import Journal
from pipeline.storage.journal_reader import read_state
from pipeline.storage.remote.folder_copy import download, index_of
from pipeline.storage.remote.lease import holder_of
from pipeline.storage.remote.objects import (
    BATCH,
    DATA,
    LEDGER,
    PLAN_NAME,
    RECORDS,
    OutputObjects,
    chunk_of,
    is_submission,
    record_name,
)
from pipeline.storage.remote.records import RemotePartCheck, contents_of, records_in, settle_unrecorded
from pipeline.storage.remote.segments import segments_in
from pipeline.storage.remote.shards import (
    Portion,
    Shard,
    SignOfLife,
    ledger_at,
    portion_of,
    signs_of_life,
    whole_ledger,
)
from pipeline.storage.run_folder import ADDRESS, LOCK, MANIFEST, PAGE, PLAN, RUN, SUCCESS, RunFolder
from pipeline.storage.submissions import Submission


def fill(objects: OutputObjects, folder: RunFolder, shard: Shard | None = None) -> None:
    """Replaces what a run folder holds by what the bucket holds: plan, sealed parts, entries, charges.

    With `shard`, by its part of them. Raises `Broken` if something in the bucket is damaged.
    """
    folder.clear()
    plan = objects.read(PLAN_NAME)
    if plan is not None:
        portion = portion_of(shard, _survey_in(plan.data)) if shard else None
        settle_unrecorded(objects, portion.chunks if portion else None)
        copy(objects, folder, plan.data, portion=portion)


def _survey_in(plan: bytes) -> Survey:
    """The survey of a plan; one that cannot be read raises `UsageError`."""
    try:
        content = orjson.loads(plan)
    except ValueError:
        content = None
    return Survey.from_json(content.get("survey", {}) if isinstance(content, dict) else {})


def snapshot(objects: OutputObjects, output: Path, *, held: bool = False) -> RemoteView:
    """Copies a run into an empty folder, to be read there; its parts are read in the bucket, which is not changed.

    With `held`, this process holds the lease. The copy of an evaluation is whole, with its parts. Raises `UsageError`
    if there is no run below the address.
    """
    plan, holder, shards = require_plan(objects), None if held else holder_of(objects), signs_of_life(objects)
    if (index := index_of(objects)) is not None and index.holds_the_run:
        download(objects, index, output)
        return RemoteView(PartCheck(output), objects.address, None if holder is None else str(holder))
    folder = RunFolder(output, name=objects.address)
    folder.prepare()
    working = [sign.holder for sign in shards.values() if sign.alive]
    copy(objects, folder, plan, ended=holder is None and not working)
    for name in (MANIFEST, SUCCESS):
        if (found := objects.read(name)) is not None:
            folder.files.write_atomic(output / name, found.data)
    if holder is not None or working:
        started = holder.started if holder else min(one.started for one in working)
        (folder.run / LOCK).touch()
        os.utime(folder.run / LOCK, (started, started))
    folder.files.write_atomic(folder.run / ADDRESS, objects.address.encode())
    count = next(iter(shards)).count if shards else 0
    work = str(holder) if holder else f"{len(working)} of {count} shards" if working else None
    return RemoteView(RemotePartCheck(objects), objects.address, work, shards)


def require_plan(objects: OutputObjects) -> bytes:
    """The plan of the run at an address. Raises `UsageError` if there is none."""
    if (plan := objects.read(PLAN_NAME)) is None:
        raise UsageError(f"there is no run at {objects.address}: {objects.address}/{PLAN_NAME} does not exist")
    return plan.data


@dataclass(frozen=True, slots=True)
class RemoteView:
    """What a copy of a run does not tell: whether the parts are whole, its address, and who works on it, if anybody."""

    part_check: RemotePartCheck | PartCheck
    address: str
    holder: str | None = None
    shards: Mapping[Shard, SignOfLife] = field(default_factory=dict)
    """The shards that ever started, if the run is divided."""


def copy(
    objects: OutputObjects, folder: RunFolder, plan: bytes, *, ended: bool = True, portion: Portion | None = None
) -> None:
    """Copies plan, records, entries and charges into a run folder without any. Changes nothing in the bucket.

    With `portion`, only what belongs to it.
    """
    charged = ledger_at(objects, portion.shard.ledger) if portion else whole_ledger(objects)
    folder.files.make_folder(folder.parts)
    names = [info.key for info in objects.listing(RECORDS)]
    parts = records_in(objects, [name for name in names if portion is None or chunk_of(name) in portion.chunks])
    with closing(Journal(folder.journal, folder.files)) as journal:
        try:
            journal.restore(parts, segments_in(objects, portion.rows if portion else None), charged, ended=ended)
        except (ValueError, AttributeError) as error:
            remedy = "restore it, or delete it: the run then forgets what it was charged"
            raise Broken(f"{objects.address}/{LEDGER} cannot be read ({error}): {remedy}") from error
        for submission in submissions_at(objects):
            journal.submissions.save(submission)
    # Last: a folder without a plan holds no run.
    folder.files.write_atomic(folder.run / PLAN, plan, mode=PRIVATE_FILE)


def submissions_at(objects: OutputObjects) -> list[Submission]:
    """The records of a run's batch jobs, the later ones of each last. Raises `Broken` for a damaged record."""
    found = (info.key for info in objects.listing(BATCH) if is_submission(info.key))
    names = sorted(found, key=lambda name: (name.endswith(".ended.json"), name))
    try:
        return [Submission.from_json(content.data) for content in contents_of(objects, names) if content is not None]
    except ValueError as error:
        raise Broken(f"{objects.address}/{BATCH} has a damaged record ({error}): restore it, or use --fresh") from error


def catch_up(objects: OutputObjects, folder: RunFolder, shard: Shard | None = None) -> None:
    """Takes over the parts that are sealed in the bucket and, since this machine was killed then, not here.

    The run folder is that of the last owner, and otherwise holds at least what the bucket does.
    """
    if (plan := objects.read(PLAN_NAME)) is None:
        return
    within = portion_of(shard, _survey_in(plan.data)).chunks if shard else None
    settle_unrecorded(objects, within)
    with closing(Journal(folder.journal, folder.files)) as journal:
        # A re-parse that was killed has replaced parts that are known here as they were before.
        known = set() if b'"reparsing": true' in plan.data else {part.chunk for part in journal.parts()}
        names = [info.key for info in objects.listing(RECORDS) if within is None or chunk_of(info.key) in within]
        new = [name for name in names if chunk_of(name) not in known]
        for part in records_in(objects, new):
            if all(objects.head(file.path) is not None for file in part.files):
                journal.seal(part)
            else:
                objects.remove(record_name(part.chunk))  # its withdrawal was not finished


def fetch_parts(objects: OutputObjects, output: Path) -> None:
    """Downloads the sealed parts of a copy, for commands that read all of their rows several times."""
    parts, _ = read_state(RunFolder(output).journal)
    for file in (file for part in parts for file in part.files):
        objects.download(file.path, output / file.path)


def require_ours(objects: OutputObjects) -> None:
    """Raises `UsageError` if there is no run below the address, but something else."""
    if (index := index_of(objects)) is not None and index.holds_the_run:
        raise UsageError(f"{objects.address} holds an evaluation: choose another --output")
    if objects.head(PLAN_NAME) is not None:
        return
    for info in objects.listing():
        ours = info.key.startswith(f"{RUN}/") or info.key in {MANIFEST, SUCCESS, PAGE}
        if info.key.startswith(DATA) and is_part_name(info.key.removeprefix(DATA)):
            raise UsageError(
                f"{objects.address} holds a dataset without its run state ({RUN}/{PLAN}): choose another --output"
            )
        if not ours and not (info.key.endswith("/") and not info.size):  # consoles make such objects as folders
            raise UsageError(f"{objects.address} holds other objects ({info.key}): choose an empty place")
