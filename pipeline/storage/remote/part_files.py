"""Part files of a run whose output is in an object store, read by ranges where this machine does not have them.

A run folder that follows an output, or is a copy of one, says in a file whose it is; its parts may be missing then.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.data import PARTS
from pipeline.faults import Broken
from pipeline.storage.run_folder import ADDRESS, RUN
from pipeline.store.object_store import NotThere, ObjectFile, StoreConflict
from pipeline.store.stores import store_at

_TAIL_BYTES = 64 << 10
"""The least that a request fetches: the footer of most parts, with one request."""


def part_object(path: Path) -> ObjectFile | None:
    """The object of a part file that is not on this machine; None if the file's folder follows no output.

    Raises `FileNotFoundError` if the bucket does not have it either, and what the store raises.
    """
    place = _place_of(path)
    if place is None:
        return None
    store, key = store_at(place)
    try:
        info = store.head(key)
    except NotThere as missing:
        raise FileNotFoundError(str(missing)) from None
    return _Pinned(store, key, info.version, info.size, ahead=_TAIL_BYTES)


def is_readable(path: Path) -> bool:
    """Whether a part file is on this machine, or is an object by the record of its folder. Sends nothing."""
    return path.is_file() or _place_of(path) is not None


def _place_of(path: Path) -> str | None:
    folder = path.parent
    try:
        place = (folder.parent / RUN / ADDRESS).read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return f"{place}/{PARTS}/{path.name}" if folder.name == PARTS and place else None


class _Pinned(ObjectFile):
    def read(self, count: int = -1, /) -> bytes:
        try:
            return super().read(count)
        except StoreConflict as conflict:
            raise Broken(f"{conflict} while it was being read; try again") from None
