"""The input file of a batch job: a line for each row, with its media, written to the disk before it is submitted."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.data import Request, Row
from pipeline.endpoint.batch.backend import BatchBackend, BatchLimits
from pipeline.faults import Broken, InvalidRow
from pipeline.job.job import Job
from pipeline.policy.media import attached
from pipeline.storage.durable import PRIVATE_FILE, FileSystem
from pipeline.storage.submissions import OrdinalSet

_KEY = "r-"
_BUFFER_BYTES = 1 << 20


def key_of(ordinal: int) -> str:
    """The key of a row's line; an answer comes back with it."""
    return f"{_KEY}{ordinal:09d}"


def ordinal_of(key: str) -> int | None:
    """The row of a key; None for one that this program does not write."""
    digits = key.removeprefix(_KEY)
    if not digits.isascii() or not digits.isdecimal() or len(digits) > 18:
        return None
    ordinal = int(digits)
    return ordinal if key_of(ordinal) == key else None


class InputFile:
    """The input of one job while it is written. Blocks; raises `Broken` when the disk fails."""

    def __init__(self, path: Path, limits: BatchLimits, files: FileSystem) -> None:
        self.path = path
        self.ordinals = OrdinalSet()
        self.size = 0
        self._limits = limits
        self._files = files
        self._hash = hashlib.sha256()
        self._buffer = bytearray()
        with _on_disk(path):
            self._descriptor = files.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, PRIVATE_FILE)

    def add(self, ordinal: int, line: bytes) -> bool:
        """Adds the line of a row; False if the job would become larger than its server allows."""
        if len(self.ordinals) >= self._limits.rows or self.size + len(line) > self._limits.bytes:
            return False
        self.ordinals.add(ordinal)
        self.size += len(line)
        self._hash.update(line)
        self._buffer += line
        if len(self._buffer) >= _BUFFER_BYTES:
            self._flush()
        return True

    def finish(self) -> str:
        """Makes the file durable; returns its hash."""
        self._flush()
        with _on_disk(self.path):
            self._files.sync(self._descriptor)
            self._files.sync_folder(self.path.parent)
        self.close()
        return self._hash.hexdigest()

    def close(self) -> None:
        """Closes the file as it is."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _flush(self) -> None:
        with _on_disk(self.path):
            content = memoryview(bytes(self._buffer))
            while content:
                content = content[self._files.write(self._descriptor, content) :]
        self._buffer.clear()


@dataclass(slots=True)
class Written:
    """What became of rows whose lines were to be written."""

    invalid: list[tuple[int, InvalidRow]] = field(default_factory=list)
    """Rows that cannot be asked at all, and why."""
    unsuited: list[str] = field(default_factory=list)
    """Why rows cannot be asked by batch: these are asked online."""
    stopped_at: Row | None = None
    """The first row that had no room in the file."""


class LineWriter:
    """Turns rows into lines, one after the other: media of one row at a time are in memory."""

    def __init__(self, job: Job, backend: BatchBackend) -> None:
        self._job = job
        self._backend = backend
        self._root = None if job.media_root is None else Path(job.media_root)

    def write(self, rows: Iterable[Row], file: InputFile) -> Written:
        """Adds the lines of rows, until one has no room any more. Blocks."""
        written = Written()
        for row in rows:
            try:
                request = self._with_media(self._job.request(row))
            except InvalidRow as fault:
                written.invalid.append((row.ordinal, fault.without_trace()))
                continue
            try:
                line = self._line(row.ordinal, request)
            except InvalidRow as fault:
                written.unsuited.append(fault.message)
                continue
            if not file.add(row.ordinal, line):
                written.stopped_at = row
                break
        return written

    def _line(self, ordinal: int, request: Request) -> bytes:
        line = self._backend.line(key_of(ordinal), request)
        if len(line) > self._backend.limits.bytes:
            raise InvalidRow(f"the request takes {len(line)} bytes, more than a whole batch job may")
        return line

    def _with_media(self, request: Request) -> Request:
        if not self._job.conversation.has_media:
            return request
        return replace(
            request, payload={**request.payload, "messages": attached(request.payload["messages"], self._root)}
        )


@contextmanager
def _on_disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Broken(f"{path} cannot be written: {error}; fix the disk, then run again") from error
