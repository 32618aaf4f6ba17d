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
    from pipeline.storage.remote.hydration import RemoteView


@contextmanager
def output_to_read(place: str, *, parts: bool) -> Iterator[tuple[Path, RemoteView | None]]:
    """The output folder that a text names or, for an address, a temporary copy of the run: with its parts or without.

    Raises `UsageError` as `place_of` does, and if there is no run at the address.
    """
    address = place_of(place)
    if isinstance(address, Path):
        yield address, None
        return
    from pipeline.storage.remote.hydration import snapshot

    with reading_stores(), TemporaryDirectory() as folder:
        output = Path(folder) / "out"
        yield output, snapshot(objects_at(address), output, parts=parts)


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
