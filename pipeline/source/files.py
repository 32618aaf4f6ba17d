"""The bytes of input files, and whether they are unchanged since the survey."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Self

from pipeline.faults import Broken
from pipeline.source.survey import File, Partitions

BLOCK_BYTES = 1 << 20
"""Bytes read from a file at once."""


class InputFile:
    """The bytes of a file on disk, in order. Raises `Broken` when it cannot be opened or read."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: PTH123, SIM115 - closed by `close`
        except OSError as error:
            raise Broken(f"cannot read {path}: {error.strerror}") from error

    def read(self, count: int) -> bytes:
        """Up to `count` bytes; empty at the end."""
        try:
            return self._file.read(count) or b""
        except OSError as error:
            raise Broken(f"cannot read {self.path}: {error.strerror}") from error

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


class HashedFile(InputFile):
    """An input file that is hashed as it is read."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._digest = hashlib.sha256()
        self._count = 0
        self._status = os.fstat(self._file.fileno())

    def read(self, count: int) -> bytes:
        """As `InputFile.read`."""
        block = super().read(count)
        self._digest.update(block)
        self._count += len(block)
        return block

    def sealed(self, name: str, partitions: Partitions, rows: int) -> File:
        """Read the rest and describe the whole file, of which `rows` rows are used.

        Raises `Broken` if the file changed meanwhile.
        """
        while self.read(BLOCK_BYTES):
            pass
        status = os.fstat(self._file.fileno())
        if status.st_mtime_ns != self._status.st_mtime_ns or not status.st_size == self._count == self._status.st_size:
            raise Broken(f"{self.path} changed while it was being read; start again once it is complete")
        return File(self.path, status.st_size, status.st_mtime_ns, self._digest.hexdigest(), rows, name, partitions)


def difference(file: File) -> str | None:
    """How the file on disk differs from the surveyed one, in a sentence; None if it does not.

    A file with the same size and modification time counts as unchanged and is not read; any other is compared by
    content.
    """
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
    with HashedFile(path) as content:
        return content.sealed("", (), 0).sha256


class UnchangedCheck:
    """Detects when a file is no longer the one that was surveyed."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._known = (file.size, file.mtime_ns)

    def check(self) -> None:
        """Raise `Broken` if the file is missing or its content changed. Costs one `stat` while nothing touches it."""
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
