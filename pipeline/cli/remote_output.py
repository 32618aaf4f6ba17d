"""Outputs in object stores, for commands: written by `run`, read by `status`, `show` and `report`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pipeline.cli.stores import reading_stores
from pipeline.execution.output_place import objects_at
from pipeline.store.address import place_of

if TYPE_CHECKING:
    from pipeline.execution.estimate import EarlierRun
    from pipeline.storage.remote.hydration import RemoteView
    from pipeline.storage.remote.objects import OutputObjects


def address_of(place: str) -> str | None:
    """The address that a text names, as messages have it; None for a path."""
    address = place_of(place)
    return None if isinstance(address, Path) else str(address).rstrip("/")


def view_of(objects: OutputObjects) -> RemoteView:
    """The view of a run that this process has finished."""
    from pipeline.storage.remote.hydration import RemoteView
    from pipeline.storage.remote.records import RemotePartCheck

    return RemoteView(RemotePartCheck(objects), objects.address)


@contextmanager
def output_to_read(place: str) -> Iterator[tuple[Path, RemoteView | None]]:
    """The output folder that a text names or, for an address, a temporary copy of the run without its parts.

    Those are read in the bucket, as far as they are needed, within the block.
    Raises `UsageError` as `place_of` does, and if there is no run at the address.
    """
    address = place_of(place)
    if isinstance(address, Path):
        yield address, None
        return
    from pipeline.storage.remote.hydration import snapshot

    with reading_stores(), TemporaryDirectory() as folder:
        output = Path(folder) / "out"
        yield output, snapshot(objects_at(address), output)


@contextmanager
def earlier_run(place: str) -> Iterator[EarlierRun]:
    """What there is of the run in an output folder or at an address; inside of `reading_stores`.

    Raises `UsageError` as `place_of` does, and for a bucket that does not exist.
    """
    from pipeline.execution.estimate import EarlierRun
    from pipeline.storage.remote.objects import PLAN_NAME

    address = place_of(place)
    if isinstance(address, Path) or objects_at(address).head(PLAN_NAME) is not None:
        with output_to_read(place) as (folder, remote):
            yield EarlierRun(folder, remote)
    else:
        with TemporaryDirectory() as empty:
            yield EarlierRun(Path(empty))


def put_remote_page(page: Path, place: str) -> str:
    """Uploads the report of a run to its address, and returns its own."""
    from pipeline.storage.run_folder import PAGE

    address = place_of(place)
    if isinstance(address, Path):
        raise TypeError(f"{place} is a path")
    objects = objects_at(address)
    found = objects.head(PAGE)
    objects.replace(PAGE, page.read_bytes(), found.version if found else None)
    return f"{objects.address}/{PAGE}"
