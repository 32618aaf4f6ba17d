"""An exported file whose place is an address: written to a temporary file, and uploaded when it is complete."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pipeline.data import PARTS
from pipeline.faults import Broken, UsageError
from pipeline.storage.remote.objects import OutputObjects
from pipeline.storage.run_folder import RUN
from pipeline.store.address import Address
from pipeline.store.object_store import AlreadyThere
from pipeline.store.stores import store_at

ONE_REQUEST_BYTES = 1 << 30
"""The largest file that is uploaded only if there is none of its name: in one request, with all of it in memory."""


def require_free_object(output: str, to: Address, *, force: bool) -> None:
    """Raises `UsageError` if an object must not be written: it exists, has no name, or is among those of the run."""
    if not to.name:
        raise UsageError(f"--to names a folder, {to}: name a file in it")
    if any(str(to).startswith(f"{output}/{folder}/") for folder in (PARTS, RUN)):
        raise UsageError(f"--to names a file among those of the run, {to}: name one elsewhere")
    if _objects(to).head(to.name) is not None and not force:
        raise _exists(to)


@contextmanager
def uploaded(to: Address, *, force: bool) -> Iterator[BinaryIO]:
    """A temporary file, which is uploaded when the block exits without an error; without `force` only as a new object.

    Raises `UsageError` if there is one now, or the file is too large for that, and `Broken` when the disk fails.
    """
    with tempfile.TemporaryDirectory(prefix="export-") as folder:
        path = Path(folder) / "file"
        try:
            with path.open("wb") as file:
                yield file
        except OSError as error:
            reason = error.strerror or error
            raise Broken(f"no room for a copy of {to}: {reason}; set TMPDIR to another disk") from error
        if force:
            store, key = store_at(str(to))
            store.put(key, path)
            return
        if (size := path.stat().st_size) > ONE_REQUEST_BYTES:
            raise UsageError(
                f"{to} would have {size:,} bytes, and up to {ONE_REQUEST_BYTES:,} can be uploaded without replacing "
                f"what somebody else writes meanwhile: --force uploads it in pieces, and replaces what is there"
            )
        try:
            _objects(to).create(to.name, path)
        except AlreadyThere:
            raise _exists(to) from None


def object_size(to: Address) -> int:
    """Bytes of an object that was written."""
    found = _objects(to).head(to.name)
    return found.size if found else 0


def _objects(to: Address) -> OutputObjects:
    return OutputObjects(store_at(str(to))[0], to.folder)


def _exists(to: Address) -> UsageError:
    return UsageError(f"{to} exists: name another file, or replace it with --force")
