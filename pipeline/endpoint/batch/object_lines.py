"""The inputs and outputs of batches as objects: written once, and read line by line. Blocks only in threads."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from anyio import to_thread

from pipeline.endpoint.batch.backend import BatchAnswer
from pipeline.faults import Broken
from pipeline.store.object_store import AlreadyThere, NotThere, ObjectStore, StoreConflict

_BLOCK = 4 * 2**20
"""Bytes that are read, and parsed, at once."""

MOST_LINE = 64 * 2**20
"""Maximum bytes of a line: three times the largest request, which it repeats."""

_RESULTS = re.compile(r".*\.jsonl|prediction.*", re.DOTALL)
"""The names of files with answers. Some models' files have no suffix (`prediction.results-00000-of-00001`)."""


def upload_once(store: ObjectStore, key: str, file: Path) -> None:
    """Uploads a file, unless its object is there already. Raises `Broken` if that has other content."""
    try:
        store.put(key, file, only="new")
    except AlreadyThere:
        if not _is_equal(store, key, file):
            raise Broken(
                f"{store.address_of(key)} exists with other rows than this batch: delete it, or start with --fresh"
            ) from None


def _is_equal(store: ObjectStore, key: str, file: Path) -> bool:
    found = store.head(key)
    if found.size != file.stat().st_size:
        return False
    reader = store.reader(key, found.version, found.size, ahead=_BLOCK)
    with file.open("rb") as own:
        while ours := own.read(_BLOCK):
            if reader.read(len(ours)) != ours:
                return False
    return True


async def answers_below(
    store: ObjectStore, prefix: str, read: Callable[[bytes], BatchAnswer], *, complete: bool
) -> AsyncIterator[BatchAnswer]:
    """The answers in the files of a folder. With `complete` nothing may change them while they are read.

    Without it, a file that is replaced meanwhile is left where it was read to. Raises `Broken` otherwise.
    """
    try:
        keys = await to_thread.run_sync(_keys, store, prefix)
    except NotThere:
        keys = []
    for key in keys:
        blocks = _blocks(store, key, read)
        try:
            while (answers := await to_thread.run_sync(next, blocks, None)) is not None:
                for answer in answers:
                    yield answer
        except StoreConflict:
            if complete:
                raise Broken(f"{store.address_of(key)} was changed while it was read; run again to go on") from None


def _keys(store: ObjectStore, prefix: str) -> list[str]:
    found = (info.key for info in store.listing(prefix))
    return sorted(key for key in found if _RESULTS.fullmatch(key.rpartition("/")[2]))


def _blocks(store: ObjectStore, key: str, read: Callable[[bytes], BatchAnswer]) -> Iterator[list[BatchAnswer]]:
    """The answers of an object, some megabytes at a time."""
    found = store.head(key)
    reader = store.reader(key, found.version, found.size, ahead=_BLOCK)
    lines = LineSplitter(store.address_of(key))
    while block := reader.read(_BLOCK):
        yield [read(line) for line in lines.feed(block)]
    yield [read(line) for line in lines.end()]


class LineSplitter:
    """Lines from pieces that are cut anywhere, without their ends and without blank ones."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._pieces: list[bytes] = []
        self._size = 0

    def feed(self, piece: bytes) -> list[bytes]:
        """The lines that end in a piece. Raises `Broken` for one that is too long to be an answer."""
        head, newline, rest = piece.partition(b"\n")
        self._pieces.append(head)
        self._size += len(head)
        if self._size > MOST_LINE:
            raise Broken(f"{self._where} has a line of more than {MOST_LINE // 2**20} MB, which is no answer")
        if not newline:
            return []
        first = b"".join(self._pieces)
        *whole, last = rest.split(b"\n")
        self._pieces, self._size = [last], len(last)
        return [line for line in (first, *whole) if line.strip()]

    def end(self) -> list[bytes]:
        """The last line, if it has no end."""
        last = b"".join(self._pieces)
        return [last] if last.strip() else []
