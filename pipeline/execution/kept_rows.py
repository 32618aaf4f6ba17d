"""Rows given in memory, kept as a file in the run folder: a resume finds the same input, and refuses another one."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.faults import UsageError
from pipeline.source import Survey
from pipeline.source.files import digest_of
from pipeline.source.frames import row_differences, write_rows
from pipeline.storage.durable import TEMPORARY
from pipeline.storage.journal_reader import read_state
from pipeline.storage.run_folder import RunFolder, RunIdentity


@contextmanager
def kept_rows(rows: Any, folder: RunFolder, *, replaces: bool) -> Iterator[Path]:
    """Writes rows to a file in the run folder, named by its content, and yields its path. The block opens the run.

    If the folder's run has the same rows, the file is the one that it has. If the block fails, a file that no run
    needs is removed again. Raises `UsageError` when the run has other rows, with the difference of each column,
    unless it is replaced; and what `write_rows` raises.
    """
    folder.prepare()
    folder.files.make_private(folder.inputs)
    temporary = folder.inputs / f".{uuid.uuid4().hex}{TEMPORARY}"
    try:
        with temporary.open("xb") as file:
            write_rows(rows, file)
            file.flush()
            os.fsync(file.fileno())
        before = None if replaces else _rows_before(folder)
        if before is not None and before.name != _name_of(temporary):
            _require_same(before, temporary, folder)
            path = before
        else:
            path = _kept(temporary, folder)
    finally:
        temporary.unlink(missing_ok=True)
    try:
        yield path
    finally:  # also after an error: a run that was opened names it in its plan
        plan = _plan_in(folder)
        if plan is None or path.name not in {Path(file.path).name for file in Survey.from_json(plan.survey).files}:
            path.unlink(missing_ok=True)


def _kept(temporary: Path, folder: RunFolder) -> Path:
    """The file under its final name. One that is there already is the same."""
    path = folder.inputs / _name_of(temporary)
    if not path.exists():
        folder.files.replace(temporary, path)
        folder.files.sync_folder(folder.inputs)
    return path


def _name_of(file: Path) -> str:
    return f"rows-{digest_of(str(file))[:32]}.parquet"


def _rows_before(folder: RunFolder) -> Path | None:
    """The file of the rows that the run in the folder was given, if it still is there."""
    plan = _plan_in(folder)
    if plan is None or read_state(folder.journal) == ([], 0):
        return None  # a start that recorded nothing does not commit the run to its rows
    files = Survey.from_json(plan.survey).files
    path = folder.inputs / Path(files[0].path).name
    return path if len(files) == 1 and path.exists() else None


def _require_same(before: Path, now: Path, folder: RunFolder) -> None:
    """Raises `UsageError` unless two files have the same rows; their bytes differ between versions of pyarrow."""
    if different := row_differences(before, now):
        listed = "".join(f"\n  - {text}" for text in different)
        raise UsageError(
            f"{folder.name} already holds a different run:{listed}\n--fresh starts over, or choose another --output"
        )


def _plan_in(folder: RunFolder) -> RunIdentity | None:
    with suppress(UsageError):  # opening the run says it
        return folder.load()
    return None
