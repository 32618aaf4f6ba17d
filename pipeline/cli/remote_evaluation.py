"""Evaluations in object stores: worked on in a folder of this machine, and uploaded when the command has ended."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pipeline.execution.output_place import objects_at, state_folder
from pipeline.faults import UsageError
from pipeline.store.address import Address, place_of

if TYPE_CHECKING:
    from pipeline.storage.remote.objects import OutputObjects


@contextmanager
def evaluation_at(place: str) -> Iterator[Path]:
    """The folder of an evaluation, or a temporary copy of it, to be read; inside of `reading_stores`.

    Raises `UsageError` if there is nothing at an address.
    """
    address = place_of(place)
    if isinstance(address, Path):
        yield address
        return
    with TemporaryDirectory() as folder:
        output = Path(folder) / "out"
        _fetch(objects_at(address), output)
        yield output


@contextmanager
def graded_at(place: str) -> Iterator[Path]:
    """The same for a command that writes results, which are uploaded when the block exits without an error."""
    address = place_of(place)
    if isinstance(address, Path):
        yield address
        return
    from pipeline.storage.remote.folder_copy import index_of, upload
    from pipeline.storage.remote.follower import leased
    from pipeline.storage.remote.hydration import require_plan
    from pipeline.storage.run_folder import EVALUATION

    objects = objects_at(address)
    require_plan(objects)  # a lease is not left where there is nothing
    with leased(objects) as lease, TemporaryDirectory() as folder:
        output = Path(folder) / "out"
        _fetch(objects, output, held=True)
        yield output
        before = index_of(objects)
        whole = before is not None and before.holds_the_run
        upload(objects, lease, output, before, _all if whole else lambda name: name.startswith(f"{EVALUATION}/"))


@contextmanager
def evaluated_at(address: Address, state_dir: Path | None) -> Iterator[Path]:
    """The folder of this machine in which an evaluation is run; it is uploaded when the block exits without an error.

    It holds what the bucket does, or more, if a command on this machine was killed. Raises `UsageError` if there is
    something else at the address, and `OutputInUse` if another command works on it.
    """
    from pipeline.storage.remote.folder_copy import download, index_of, upload
    from pipeline.storage.remote.follower import leased
    from pipeline.storage.remote.hydration import require_ours
    from pipeline.storage.remote.objects import PLAN_NAME

    objects, folder = objects_at(address), state_folder(address, state_dir)
    known = folder.with_name(f"{folder.name}.copy")
    with leased(objects) as lease:
        index = index_of(objects)
        if (index is None or not index.holds_the_run) and objects.head(PLAN_NAME) is not None:
            raise UsageError(f"{objects.address} holds a run and no evaluation: choose another --output")
        if index is None:
            require_ours(objects)
        elif not known.is_file() or known.read_text(encoding="ascii") != index.id:
            shutil.rmtree(folder, ignore_errors=True)
            download(objects, index, folder)
            known.write_text(index.id, encoding="ascii")
        yield folder
        known.write_text(upload(objects, lease, folder, index, _all).id, encoding="ascii")


def _fetch(objects: OutputObjects, output: Path, *, held: bool = False) -> None:
    """Downloads an evaluation, or a run with its parts and the results of its evaluation."""
    from pipeline.storage.remote.folder_copy import download, index_of
    from pipeline.storage.remote.hydration import fetch_parts, snapshot

    index = index_of(objects)
    if index is None or not index.holds_the_run:
        snapshot(objects, output, held=held)
        fetch_parts(objects, output)
    if index is not None:
        download(objects, index, output)


def _all(_: str) -> bool:
    return True
