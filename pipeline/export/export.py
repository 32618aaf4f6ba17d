"""Exports the rows of a run: read part by part, batch by batch, and written to one file that is complete or absent.

The run and the file may be in an object store.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data import PARTS, Part
from pipeline.execution.run_status import run_status
from pipeline.export.formats import format_of, writer_to
from pipeline.export.selection import select
from pipeline.export.uploads import object_size, require_free_object, uploaded
from pipeline.faults import Broken, NothingToDo, UsageError
from pipeline.storage.batches import bounded_batches, part_file
from pipeline.storage.durable import FILES
from pipeline.storage.journal_reader import read_state
from pipeline.storage.remote.hydration import RemoteView
from pipeline.storage.run_folder import JOURNAL, RUN
from pipeline.store.address import Address

Rows = Literal["ok", "failed", "all"]
"""Which rows are exported, by their status."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """Which part of a run is exported, and how. `columns` as `pipeline.export.selection.select` takes them."""

    columns: Sequence[str] = ()
    rows: Rows = "all"
    force: bool = False
    """Whether an existing file is replaced."""
    allow_partial: bool = False
    """Whether a run that is not complete is exported too, as far as its rows are in parts."""
    bom: bool = False
    """Whether CSV begins with a byte order mark."""


@dataclass(frozen=True, slots=True)
class Exported:
    """The exported file. `left_out` counts rows of an unfinished run that are in no part yet."""

    file: Path | Address
    rows: int
    columns: tuple[str, ...]
    bytes: int
    left_out: int = 0


def export(output: Path, to: Path | Address, options: ExportOptions, remote: RemoteView | None = None) -> Exported:
    """Writes the selected rows of the run in `output` to the file `to`, in row order. Memory does not grow with them.

    The file appears complete or not at all; for an address it is first written to a temporary file, and uploaded then.
    `remote` belongs to an output folder that is a copy of a run in a bucket.

    Raises `UsageError` for what the user can fix: no run, a run that is not
    complete, an unknown column, a file that exists, a folder that does not; `NothingToDo` when no row is in a part;
    `Broken` for a damaged part, and when the disk fails.
    """
    kind = format_of(to.name, bom=options.bom)
    name = remote.address if remote else str(output)
    if isinstance(to, Address):
        require_free_object(name, to, force=options.force)
    else:
        _require_free(output, to, force=options.force)
    left_out = _left_out(output, name, remote, allow_partial=options.allow_partial)
    parts = sorted(read_state(output / RUN / JOURNAL)[0], key=lambda part: part.first)
    if not parts:
        raise NothingToDo(f"no row of {name} is in a part yet")
    selection = select(_schema_of(output, parts), options.columns)
    rows = 0
    with (
        _opened(to, force=options.force) as file,
        writer_to(file, kind, selection, bom=options.bom) as writer,
    ):
        for batch in _batches(output, parts, selection.columns, options.rows, selection.schema):
            writer.write(batch)
            rows += batch.num_rows
        names = tuple(writer.names)
    size = object_size(to) if isinstance(to, Address) else to.stat().st_size
    return Exported(to, rows, names, size, left_out)


def _opened(to: Path | Address, *, force: bool) -> AbstractContextManager[BinaryIO]:
    return uploaded(to, force=force) if isinstance(to, Address) else _complete_or_absent(to, force=force)


def _left_out(output: Path, name: str, remote: RemoteView | None, *, allow_partial: bool) -> int:
    """How many rows are in no part. Raises `UsageError` for a run that is not complete, unless that is allowed."""
    status = run_status(output, remote)
    if status.status == "complete":
        return 0
    if not allow_partial:
        why = f": {status.reason}" if status.reason else ""
        raise UsageError(
            f"{name} is not complete ({status.status}{why}): finish it first, or export what it has: --allow-partial"
        )
    return status.left + status.unsealed


def _require_free(output: Path, to: Path, *, force: bool) -> None:
    if to.is_dir():
        raise UsageError(f"--to names a folder, {to}: name a file in it")
    if to.exists() and not force:
        raise UsageError(f"{to} exists: name another file, or replace it with --force")
    folder = to.parent.resolve()
    if not folder.is_dir():
        raise UsageError(f"there is no folder {to.parent}: create it first")
    if any(folder.is_relative_to((output / name).resolve()) for name in (PARTS, RUN)):
        raise UsageError(f"--to names a file among those of the run, {to}: name one elsewhere")


def _schema_of(output: Path, parts: Sequence[Part]) -> pa.Schema:
    name, _, _ = next(parts[0].spans())
    with part_file(output / name) as file:
        return file.schema_arrow


def _batches(
    output: Path, parts: Sequence[Part], columns: Sequence[str], rows: Rows, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """The selected rows, in order. Raises `UsageError` for parts of different schemas, as of a re-parse cut short."""
    needed = list(dict.fromkeys([*columns, *([] if rows == "all" else ["status"])]))
    for name, _, _ in (span for part in parts for span in part.spans()):
        with part_file(output / name) as file:
            if not file.schema_arrow.equals(schema):
                raise UsageError(f"{name} has another schema than the parts before it: run `pipeline reparse` again")
            for batch in bounded_batches(file, needed):
                found = batch if rows == "all" else batch.filter(_has_status(batch, rows))
                if found.num_rows:
                    yield found


def _has_status(batch: pa.RecordBatch, status: str) -> pa.BooleanArray:
    return pc.equal(batch.column("status").cast(pa.string()), status)


@contextmanager
def _complete_or_absent(path: Path, *, force: bool) -> Iterator[BinaryIO]:
    """A new file under a name of its own, renamed to `path`, durably, when the block exits without an error."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        _sync(name)
        if path.exists() and not force:
            raise UsageError(f"{path} appeared meanwhile: name another file, or replace it with --force")
        os.replace(name, path)  # noqa: PTH105 - of two texts
        FILES.sync_folder(path.parent)
    except OSError as error:
        raise Broken(f"{path} cannot be written: {error}; fix the disk, then export again") from error
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name)  # noqa: PTH108 - of a text


def _sync(name: str) -> None:
    """Makes a file durable, and readable for whom the user's mask allows; compressors have closed it by then."""
    mask = os.umask(0)
    os.umask(mask)
    descriptor = os.open(name, os.O_RDONLY)
    try:
        os.fchmod(descriptor, 0o666 & ~mask)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
