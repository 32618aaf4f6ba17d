"""Standard output and error that never fail: whoever reads them may go, be closed, or not know our letters."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def secure() -> None:
    """Makes standard input, output and error fit for what comes, at the start of a program.

    A closed one is opened to nowhere, lest a file of ours takes its number. Text that the encoding lacks is escaped;
    once a reader has gone, what is written goes nowhere. What stands in for them (in tests) stays as it is.
    """
    for descriptor in range(3):
        _occupy(descriptor)
    sys.stdout = _steadfast(sys.stdout, 1)
    sys.stderr = _steadfast(sys.stderr, 2)


def reader_gone() -> bool:
    """Whether nobody reads standard output any more, so that a long listing may end."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return isinstance(raw, _Steadfast) and raw.failure is not None


def result_lost() -> str | None:
    """Why standard output could not be written, where that is no reader's choice, such as a full disk."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    failure = raw.failure if isinstance(raw, _Steadfast) else None
    return None if failure is None or failure.errno == errno.EPIPE else failure.strerror


class _Steadfast(io.RawIOBase):
    """A descriptor that takes whatever is written; after a first failure to nowhere."""

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
        size = memoryview(data).nbytes
        if self.failure is not None:
            return size
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:
            return self._wait(data)
        except OSError as error:
            self.failure = error
            return size

    def _wait(self, data: ReadableBuffer) -> int:
        """Writes to a pipe that another program has made non-blocking."""
        import select

        select.select([], [self._descriptor], [])
        return self.write(data)


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
        return stream  # it stands in for the real one
    if stream is not None:
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Steadfast(descriptor)),
        encoding=stream.encoding if stream is not None else "utf-8",
        errors="backslashreplace",
        # With PYTHONUNBUFFERED a stream writes through, but only to the buffer beneath: lines would wait there.
        line_buffering=stream is None or stream.line_buffering or stream.write_through,
        write_through=stream is not None and stream.write_through,
    )


def _number(stream: io.TextIOWrapper) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return None
