"""The bytes of input files, on disk or in an object store, and whether they are unchanged since the survey.

An object has a version, which every read is pinned to: it needs no check while it is read.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.faults import Broken
from pipeline.source.formats import compression_of
from pipeline.source.progress import SurveyProgress
from pipeline.source.survey import File, Partitions
from pipeline.store.address import Address, is_address
from pipeline.store.object_store import NotThere, ObjectFile, StoreConflict
from pipeline.store.stores import copy_at, store_at

BLOCK_BYTES = 1 << 20
"""Bytes read from a file at once."""


AHEAD_BYTES = 8 << 20
"""Bytes of an object that are requested at once while it is read in order."""

_OBJECTS_AT_ONCE, _FILES_AT_ONCE = 16, 4
_OPENED_AHEAD = 4  # objects whose first 8 MiB are requested before they are needed

_Result = TypeVar("_Result")

_TAIL_BYTES = 64 << 10
"""Bytes of an object that are requested at least: the end of a Parquet file is read in small pieces."""


class Located(Protocol):
    """An input file that was found: see `pipeline.source.survey.File`."""

    @property
    def path(self) -> str | Path | Address:
        """Its path or address."""

    @property
    def size(self) -> int:
        """Its bytes; of a path, unknown before it is surveyed."""

    @property
    def version(self) -> str:
        """Its version; empty for a path."""


class InputFile:
    """The bytes of an input file, in order. Raises `Broken` when it cannot be opened or read, or was replaced.

    Of an object, `ahead` bytes are requested at once.
    """

    def __init__(self, found: Located, ahead: int = AHEAD_BYTES) -> None:
        self.path = str(found.path)
        try:
            self._file = _opened(found, ahead)
        except OSError as error:
            raise Broken(f"cannot read {self.path}: {error.strerror}") from error

    def read(self, count: int) -> bytes:
        """Up to `count` bytes; empty at the end."""
        try:
            return self._file.read(count) or b""
        except OSError as error:
            raise Broken(f"cannot read {self.path}: {error.strerror}") from error
        except StoreConflict as conflict:
            raise _replaced(conflict) from None

    def seek(self, offset: int) -> None:
        """Continue at a byte offset."""
        self._file.seek(offset)

    @property
    def closed(self) -> bool:
        """Whether the file was closed."""
        return self._file.closed

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class BeginningOfFile(InputFile):
    """The first `size` bytes of an input file."""

    def __init__(self, found: Located, size: int) -> None:
        super().__init__(found)
        self._size, self._at = size, 0

    def read(self, count: int) -> bytes:
        """As `InputFile.read`."""
        block = super().read(max(0, min(count, self._size - self._at)))
        self._at += len(block)
        return block

    def seek(self, offset: int) -> None:
        """As `InputFile.seek`."""
        super().seek(offset)
        self._at = offset


class HashedFile(InputFile):
    """An input file that is hashed as it is read, from start to end; an object is not, as it has a version.

    With `ahead`, the first block of an object is requested by a thread at once, and each next one while the present one
    is used. (To read and hash files of this machine in a thread brings nothing: it waits for the interpreter as long as
    it would save.) `progress` is told how many bytes were read.
    """

    def __init__(self, found: Located, progress: SurveyProgress | None = None, *, ahead: bool = False) -> None:
        super().__init__(found)
        self._found = found
        self._progress = progress
        self._digest = hashlib.sha256()
        self._count = 0
        self._status = None if found.version else os.fstat(self._file.fileno())
        self._ahead = _ReadAhead(super().read) if found.version and ahead else None

    def read(self, count: int) -> bytes:
        """As `InputFile.read`."""
        block = super().read(count) if self._ahead is None else self._ahead.read(count)
        if self._status is not None:
            self._digest.update(block)
        self._count += len(block)
        if self._progress is not None:
            self._progress.bytes += len(block)
        return block

    def close(self) -> None:
        """As `InputFile.close`; waits for what is being read."""
        if self._ahead is not None:
            self._ahead.close()
        super().close()

    def sealed(self, name: str, partitions: Partitions, rows: int) -> File:
        """Read the rest and describe the whole file, of which `rows` rows are used.

        An object is not read to its end: it has a version. Raises `Broken` if the file changed meanwhile.
        """
        if self._status is None:
            size, version = self._found.size, self._found.version
            if self._progress is not None:
                self._progress.bytes += size - self._count
            return File(self.path, size, 0, "", rows, name, partitions, version=version)
        while self.read(BLOCK_BYTES):
            pass
        status = os.fstat(self._file.fileno())
        if status.st_mtime_ns != self._status.st_mtime_ns or not status.st_size == self._count == self._status.st_size:
            raise Broken(f"{self.path} changed while it was being read; start again once it is complete")
        return File(self.path, status.st_size, status.st_mtime_ns, self._digest.hexdigest(), rows, name, partitions)


class _ReadAhead:
    """Reads blocks of an object in a thread, one ahead of those that are used."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._thread = ThreadPoolExecutor(1)
        self._next = self._thread.submit(read, AHEAD_BYTES)
        self._block, self._at = b"", 0

    def read(self, count: int) -> bytes:
        """Up to `count` bytes; empty at the end."""
        if self._at == len(self._block):
            self._block, self._at = self._next.result(), 0
            if self._block:
                self._next = self._thread.submit(self._read, AHEAD_BYTES)
        block = self._block[self._at : self._at + count]
        self._at += len(block)
        return block

    def close(self) -> None:
        self._thread.shutdown()


def several_at_once(
    function: Callable[..., _Result], files: Sequence[Located], *more: Sequence[Any]
) -> Iterator[_Result]:
    """The results for each file, in order, computed by threads. What one of them raises is raised.

    Waiting for an object takes time and no processor, so many are read at once.
    """
    most = _OBJECTS_AT_ONCE if files and files[0].version else min(_FILES_AT_ONCE, os.cpu_count() or 1)
    if min(most, len(files)) < 2:
        yield from map(function, files, *more)
        return
    context = copy_context()  # it holds the stores

    def in_context(*arguments: Any) -> _Result:
        return context.copy().run(function, *arguments)

    with ThreadPoolExecutor(most) as threads:
        try:
            yield from threads.map(in_context, files, *more)
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def opened_in_turn(
    files: Sequence[Located], progress: SurveyProgress, *, ahead: bool
) -> Generator[HashedFile, None, None]:
    """The files, each opened when its turn comes; with `ahead`, objects some turns earlier, so that none waits.

    Each is closed by its user. `progress` is told what is read of them.
    """
    opened: deque[HashedFile] = deque()
    following = iter(files)
    most = _OPENED_AHEAD if ahead and files[0].version else 1
    try:
        for _ in files:
            opened.extend(HashedFile(found, progress, ahead=ahead) for found in islice(following, most - len(opened)))
            yield opened.popleft()
    finally:
        for file in opened:
            file.close()


def difference(file: File) -> str | None:
    """How the file on disk differs from the surveyed one, in a sentence; None if it does not.

    A file with the same size and modification time counts as unchanged and is not read; any other is compared by
    content.
    """
    if file.version:
        return _replacement(file)
    now = stamp(file.path)
    if now is None:
        return f"{file.path} is missing or can no longer be read"
    if now[0] != file.size:
        return f"{file.path} had {file.size:,} bytes and now has {now[0]:,}"
    if now[1] == file.mtime_ns:
        return None
    try:
        same = digest_of(file.path) == file.sha256
    except Broken as fault:
        return fault.message
    return None if same else f"{file.path} has the same size, but different content"


def digest_of(path: str) -> str:
    """The SHA-256 of a file. Raises `Broken` when it cannot be read or changes meanwhile."""
    with HashedFile(File(path, 0, 0, "", 0)) as content:
        return content.sealed("", (), 0).sha256


class UnchangedCheck:
    """Detects when a file is no longer the one that was surveyed."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._known = (file.size, file.mtime_ns)

    def check(self) -> None:
        """Raise `Broken` if the file is missing or its content changed. Costs one `stat` while nothing touches it."""
        if self._file.version:
            return  # every read is pinned to it
        now = stamp(self._file.path)
        if now == self._known:
            return
        sentence = difference(self._file)
        if sentence or now is None:
            raise Broken(f"the input changed during the run: {sentence}")
        self._known = now  # touched, but with the same content


def stamp(path: str) -> tuple[int, int] | None:
    """Size in bytes and modification time in ns; None when there is no file."""
    try:
        status = os.stat(path)  # noqa: PTH116 - called once a batch, and a Path costs more than the call
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def parquet_file(found: Located, **options: Any) -> pq.ParquetFile:
    """A Parquet file to read; of an object, the column chunks of a row group are read in few requests.

    Raises what `pyarrow` raises for bytes that are not Parquet, and `Broken` for an object that was replaced.
    """
    if not found.version:
        return pq.ParquetFile(str(found.path), **options)
    store, key = store_at(str(found.path))
    file = _Pinned(store, key, found.version, found.size, ahead=_TAIL_BYTES)
    return pq.ParquetFile(pa.PythonFile(file, mode="r"), **{**options, "pre_buffer": True, "buffer_size": 0})


class _Pinned(ObjectFile):
    def read(self, count: int = -1, /) -> bytes:
        try:
            return super().read(count)
        except StoreConflict as conflict:
            raise _replaced(conflict) from None


def _opened(found: Located, ahead: int) -> io.RawIOBase | io.FileIO:
    path = str(found.path)
    if not is_address(path):
        return open(path, "rb", buffering=0)  # noqa: PTH123 - closed by the caller
    # What is compressed can only be read from its start: from disk, when it is read chunk by chunk.
    if compression_of(path) and found.size > AHEAD_BYTES:
        return copy_at(path, found.version, found.size)
    store, key = store_at(path)
    return store.reader(key, found.version, found.size, ahead=ahead)


def _replaced(conflict: StoreConflict) -> Broken:
    return Broken(f"the input changed: {conflict} since it was surveyed; --fresh starts over with what is there now")


def _replacement(file: File) -> str | None:
    """How an object differs from the surveyed one, in a sentence; None if it does not."""
    store, key = store_at(file.path)
    try:
        now = store.head(key)
    except NotThere:
        return f"{file.path} is missing"
    return (
        None if now.version == file.version else f"{file.path} was replaced ({now.size:,} bytes, version {now.version})"
    )
