"""Standard output and error that never fail, even if closed, without a reader, or unable to encode a character."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import re
import stat
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


_TIME = re.compile(rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d|\{\"severity\":")
"""The beginning of a line that has its time already; of a line of JSON, in a field."""


def secure() -> None:
    """Makes standard input, output and error safe to use; called at the start of a program.

    A closed stream is opened on /dev/null, so that no file of ours gets its number. Characters that the encoding lacks
    are escaped. Once the reader has gone, output is discarded. Lines on stderr carry the time if they go to a log.
    Replacements for the streams (in tests) are left alone.
    """
    for descriptor in range(3):
        _occupy(descriptor)
    sys.stdout = _steadfast(sys.stdout, 1)
    sys.stderr = _steadfast(sys.stderr, 2)


def one_place() -> bool:
    """Whether stdout and stderr go to the same terminal, pipe or file, so that one reader sees both."""
    try:
        out, err = (os.fstat(stream.fileno()) for stream in (sys.stdout, sys.stderr))
    except (OSError, ValueError):  # a replacement has no descriptor
        return False
    return (out.st_dev, out.st_ino) == (err.st_dev, err.st_ino)


def reader_gone() -> bool:
    """Whether standard output can no longer be written, so that a long listing may stop."""
    return _failure() is not None


def result_lost() -> str | None:
    """Why standard output could not be written, such as a full disk; None if it was, or the reader has gone."""
    failure = _failure()
    return None if failure is None or failure.errno == errno.EPIPE else failure.strerror


def _failure() -> OSError | None:
    """The first error of writing to standard output."""
    buffer = getattr(sys.stdout, "buffer", None)
    raw = getattr(buffer, "raw", buffer)
    return raw.failure if isinstance(raw, _Steadfast) else None


class _Steadfast(io.RawIOBase):
    """A descriptor that accepts every write in full; after the first failure, data is discarded."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.failure: OSError | None = None

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        while rest and self.failure is None:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                self._wait()
            except OSError as error:
                self.failure = error
        return size

    def _wait(self) -> None:
        """Waits until a pipe that another program has made non-blocking can be written."""
        import select

        select.select([], [self._descriptor], [])


class _Log(_Steadfast):
    """A file opened for appending, as by cron jobs: each line begins with the time in UTC, unless it already does.

    Pipes are left alone, because their readers (a container's log, systemd, Airflow) record the time; so are files
    that are not appended to, which hold one command's errors.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor)
        self._line_begins = True

    def write(self, data: ReadableBuffer, /) -> int:
        content = bytes(data)
        moment = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} ".encode()
        stamped = b""
        for line in content.splitlines(keepends=True):
            if self._line_begins and line.strip() and not _TIME.match(line):
                stamped += moment
            stamped += line
            self._line_begins = line.endswith(b"\n")
        super().write(stamped)
        return len(content)


def _is_log(descriptor: int) -> bool:
    appends = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND
    return bool(appends) and stat.S_ISREG(os.fstat(descriptor).st_mode)


def _occupy(descriptor: int) -> None:
    try:
        os.fstat(descriptor)
    except OSError:
        opened = os.open(os.devnull, os.O_RDONLY if descriptor == 0 else os.O_WRONLY)
        if opened != descriptor:
            os.dup2(opened, descriptor)
            os.close(opened)


def _steadfast(stream: TextIO | None, descriptor: int) -> TextIO:
    if stream is not None and not (isinstance(stream, io.TextIOWrapper) and _number(stream) == descriptor):
        return stream  # a replacement for the real stream
    if stream is not None:
        stream.flush()
    raw = (_Log if descriptor == 2 and _is_log(2) else _Steadfast)(descriptor)
    unbuffered = stream is not None and stream.write_through
    # Unbuffered if Python itself is (PYTHONUNBUFFERED): a buffer would delay lines until the end.
    buffer: Any = raw if unbuffered else io.BufferedWriter(raw)
    return io.TextIOWrapper(
        buffer,
        encoding=stream.encoding if stream is not None else "utf-8",
        errors="backslashreplace",
        line_buffering=stream is None or stream.line_buffering,
        write_through=unbuffered,
    )


def _number(stream: io.TextIOWrapper) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return None
