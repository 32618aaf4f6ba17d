"""Files that are complete or absent: written under a temporary name, synced, renamed, and the folder synced."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

PRIVATE_FOLDER = 0o700
PRIVATE_FILE = 0o600
TEMPORARY = ".tmp"
"""The suffix of a file that is not complete; such files may be deleted when no run is active."""


def stamp_of(path: Path) -> str:
    """Size, modification times and inode of a file: writing, replacing, copying or restoring it changes the stamp.

    A file with an unchanged stamp need not be read again, unless the disk itself corrupts data.
    Raises `OSError`.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise FileNotFoundError(f"{path} is not a regular file")
    return f"{found.st_size}-{found.st_mtime_ns}-{found.st_ctime_ns}-{found.st_ino}"


@dataclass(frozen=True, slots=True)
class FileSystem:
    """The system calls that durability depends on, and operations built from them; a failed sync is never retried.

    Every method raises `OSError`. Tests can pass other functions in place of the system calls, to record them, to
    fail, or to end the process at the N-th call.
    """

    open: Callable[[Path, int, int], int] = os.open
    write: Callable[[int, Any], int] = os.write
    sync: Callable[[int], None] = os.fsync
    replace: Callable[[Path, Path], None] = os.replace
    unlink: Callable[[Path], None] = os.unlink
    mkdir: Callable[[Path, int], None] = os.mkdir

    @contextmanager
    def atomic_writer(self, path: Path, *, mode: int = 0o644, written_in: Path | None = None) -> Iterator[BinaryIO]:
        """A new file that durably replaces `path` when the block exits without an error; otherwise nothing changes.

        Until then it has a temporary name in the same folder, or in `written_in`, which must be on the same file
        system. Only the folder of `path` is synced: a temporary name that reappears after a power cut is swept later.
        """
        temporary = (written_in or path.parent) / f".{path.name}{TEMPORARY}"
        descriptor = self.open(temporary, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, mode)
        with io.BufferedWriter(_Written(descriptor, self.write)) as file:
            yield file
            file.flush()
            self.sync(descriptor)
        self.replace(temporary, path)
        self.sync_folder(path.parent)

    def write_atomic(self, path: Path, content: bytes, *, mode: int = 0o644) -> None:
        """Replaces `path` with `content`, durably and atomically."""
        with self.atomic_writer(path, mode=mode) as file:
            file.write(content)

    def remove(self, paths: Iterable[Path]) -> None:
        """Removes the files that exist, durably."""
        gone = list(paths)
        for path in gone:
            with suppress(FileNotFoundError):
                self.unlink(path)
        for folder in dict.fromkeys(path.parent for path in gone):
            self.sync_folder(folder)

    def sync_folder(self, folder: Path) -> None:
        """Makes the names in a folder durable."""
        descriptor = self.open(folder, os.O_RDONLY | os.O_DIRECTORY, 0)
        try:
            self.sync(descriptor)
        finally:
            os.close(descriptor)

    def make_folder(self, folder: Path, *, mode: int = 0o777) -> None:
        """Creates a folder and its parents, durably, if they do not exist."""
        if not folder.parent.is_dir():
            self.make_folder(folder.parent)
        try:
            self.mkdir(folder, mode)
        except FileExistsError:
            if not folder.is_dir():
                raise
        # Even if it existed: the process that created it may have been killed before its name was durable.
        with suppress(PermissionError):  # a folder without read permission cannot be opened for a sync
            self.sync_folder(folder.parent)

    def make_private(self, folder: Path) -> None:
        """Creates a folder that only its owner can enter, durably."""
        self.make_folder(folder, mode=PRIVATE_FOLDER)
        folder.chmod(PRIVATE_FOLDER)


FILES = FileSystem()
"""The real system calls."""


class _Written(io.RawIOBase):
    """An open file whose bytes are written by the given call."""

    def __init__(self, descriptor: int, write: Callable[[int, Any], int]) -> None:
        self._descriptor = descriptor
        self._write = write

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return os.lseek(self._descriptor, 0, os.SEEK_CUR)

    def write(self, data: Any) -> int:
        return self._write(self._descriptor, data)

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()
