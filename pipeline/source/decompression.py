"""The text of an input file, decompressed and converted to UTF-8."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import zlib
from collections.abc import Callable
from typing import Any, Self

import pyarrow as pa

from pipeline.source.files import BLOCK_BYTES, InputFile
from pipeline.source.format_detection import encoding_of, hidden_compression, hidden_within, missing_compression
from pipeline.source.formats import compression_of
from pipeline.text import one_line

_HEAD_BYTES = 64
_NO_UTF8 = b"\xff"


class Stream:
    """The bytes of a file, decompressed, and converted to UTF-8 from UTF-16 or UTF-32.

    Raises `fault` for damaged or truncated compressed data, and for a file whose compression is not the one that its
    name says.
    """

    def __init__(self, file: InputFile, fault: Callable[[str], Exception]) -> None:
        self.file = file
        self._fault = fault
        self._is_plain = not compression_of(file.path)
        self._stream = _decompressed(file)
        head = self._next(_HEAD_BYTES)
        while len(head) < _HEAD_BYTES and (more := self._next(_HEAD_BYTES - len(head))):
            head += more
        if problem := (hidden_compression if self._is_plain else hidden_within)(file.path, head):
            raise fault(problem)
        encoding = encoding_of(head)
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogatepass") if encoding else None
        self._ready = self._decoded(head)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def read(self, count: int) -> bytes:
        """The next bytes, `count` or slightly more; empty at the end."""
        while not self._ready:
            block = self._next(count)
            self._ready = self._decoded(block)
            if not block:
                break
        block, self._ready = self._ready, b""
        return block

    def seek(self, offset: int) -> None:
        """Moves from the start to an offset in the output of `read`: directly in plain UTF-8, otherwise by reading."""
        if self._is_plain and self._decoder is None:
            self._ready = b""
            self.file.seek(offset)
            return
        while offset and (block := self.read(min(offset, BLOCK_BYTES))):
            self._ready, offset = block[offset:], max(offset - len(block), 0)

    def _next(self, count: int) -> bytes:
        try:
            return bytes(self._stream.read(count))
        except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            problem = missing_compression(self.file.path)
            raise self._fault(problem or f"{self.file.path} is damaged or cut short: {one_line(str(error))}") from error

    def _decoded(self, block: bytes) -> bytes:
        """The block as UTF-8. An invalid character becomes bytes that are invalid in UTF-8, so only its line fails."""
        if self._decoder is None:
            return block
        try:
            return self._decoder.decode(block, final=not block).encode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            if not block:  # half a character at the end of the file
                self._decoder.reset()
                return _NO_UTF8
            raise self._fault(f"{self.file.path} is not valid {error.encoding}: {error.reason}") from error


def _decompressed(file: InputFile) -> Any:
    match compression_of(file.path):
        case ".gz":
            return gzip.GzipFile(fileobj=file)
        case ".zst":  # Arrow's, not zstandard's, whose reader accepts a truncated file as complete
            return pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")
        case ".bz2":
            return _Members(file, bz2.BZ2Decompressor)
        case ".xz":
            return _Members(file, lzma.LZMADecompressor)
    return file


class _Members:
    """Concatenated compressed streams; the standard library's files take garbage after the first for the end."""

    def __init__(
        self, file: InputFile, decompressor: Callable[[], bz2.BZ2Decompressor | lzma.LZMADecompressor]
    ) -> None:
        self._file = file
        self._new = decompressor
        self._current = decompressor()
        self._is_between = True  # nothing was read from the current stream yet

    def read(self, count: int) -> bytes:
        """Up to `count` bytes; empty at the end. Raises the decompressor's errors; `EOFError` if truncated."""
        while True:
            if self._current.eof:
                left, self._current, self._is_between = self._current.unused_data, self._new(), True
            else:
                left = b""
            if not left and self._current.needs_input:
                left = self._file.read(BLOCK_BYTES)
                if not left and self._is_between:
                    return b""
                if not left:
                    raise EOFError("compressed file ended before the end of the stream")
            if self._is_between:
                left = left.lstrip(b"\x00")  # padding
            if not left and self._is_between:
                continue
            self._is_between = False
            if block := self._current.decompress(left, count):
                return block

    def close(self) -> None:
        """Does nothing: the caller owns the file."""
