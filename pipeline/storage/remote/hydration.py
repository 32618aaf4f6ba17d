"""Fills a run folder from the bucket that follows it, and brings both to the same state after a kill.

Parts are not downloaded: a run needs only what their records say.
"""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import orjson

from pipeline.data import is_part_name
from pipeline.faults import Broken, UsageError
from pipeline.storage.durable import PRIVATE_FILE
from pipeline.storage.journal import Journal
from pipeline.storage.journal_reader import read_state
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
from pipeline.storage.run_folder import LOCK, MANIFEST, PAGE, PLAN, RUN, SUCCESS, RunFolder
from pipeline.storage.submissions import Submission


def fill(objects: OutputObjects, folder: RunFolder) -> None:
    """Replaces what a run folder holds by what the bucket holds: plan, sealed parts, entries, charges.

    Raises `Broken` if something in the bucket is damaged.
    """
    folder.clear()
    plan = objects.read(PLAN_NAME)
    if plan is not None:
        settle_unrecorded(objects)
        copy(objects, folder, plan.data)


def snapshot(objects: OutputObjects, output: Path, *, parts: bool) -> RemoteView:
    """Copies a run into an empty folder, to be read there, with its parts or without. Changes nothing in the bucket.

    Raises `UsageError` if there is no run below the address.
    """
    plan, holder = objects.read(PLAN_NAME), holder_of(objects)
    if plan is None:
        raise UsageError(f"there is no run at {objects.address}: {objects.address}/{PLAN_NAME} does not exist")
    folder = RunFolder(output, name=objects.address)
    folder.prepare()
    copy(objects, folder, plan.data, ended=holder is None)
    for name in (MANIFEST, SUCCESS):
        if (found := objects.read(name)) is not None:
            folder.files.write_atomic(output / name, found.data)
    if holder is not None:
        (folder.run / LOCK).touch()
        os.utime(folder.run / LOCK, (holder.started, holder.started))
    if parts:
        fetch_parts(objects, output)
    return RemoteView(RemotePartCheck(objects), None if holder is None else str(holder))


@dataclass(frozen=True, slots=True)
class RemoteView:
    """What a copy of a run does not tell: whether the parts are whole, and who works on it; None if nobody does."""

    part_check: RemotePartCheck
    holder: str | None


def copy(objects: OutputObjects, folder: RunFolder, plan: bytes, *, ended: bool = True) -> None:
    """Copies plan, records, entries and charges into a run folder without any. Changes nothing in the bucket."""
    charged = objects.read(LEDGER)
    folder.files.make_folder(folder.parts)
    parts = records_in(objects, [info.key for info in objects.listing(RECORDS)])
    with closing(Journal(folder.journal, folder.files)) as journal:
        try:
            journal.restore(parts, segments_in(objects), orjson.loads(charged.data) if charged else {}, ended=ended)
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


def catch_up(objects: OutputObjects, folder: RunFolder) -> None:
    """Takes over the parts that are sealed in the bucket and, since this machine was killed then, not here.

    The run folder is that of the last owner, and otherwise holds at least what the bucket does.
    """
    if objects.head(PLAN_NAME) is None:
        return
    settle_unrecorded(objects)
    with closing(Journal(folder.journal, folder.files)) as journal:
        known = {part.chunk for part in journal.parts()}
        new = [info.key for info in objects.listing(RECORDS) if chunk_of(info.key) not in known]
        for part in records_in(objects, new):
            if all(objects.head(file.path) is not None for file in part.files):
                journal.seal(part)
            else:
                objects.remove(record_name(part.chunk))  # its withdrawal was not finished


def fetch_parts(objects: OutputObjects, output: Path) -> None:
    """Downloads the sealed parts that an output folder does not have, for commands that read rows."""
    folder = RunFolder(output)
    folder.files.make_folder(folder.parts)
    parts, _ = read_state(folder.journal)
    for file in (file for part in parts for file in part.files):
        path = output / file.path
        if not path.is_file() or path.stat().st_size != file.bytes:
            objects.download(file.path, path)


def require_ours(objects: OutputObjects) -> None:
    """Raises `UsageError` if there is no run below the address, but something else."""
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
