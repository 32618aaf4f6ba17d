"""Decodes the bodies of responses by what their bytes are: the Content-Encoding of gateways is not always true.

Seen are bodies that are plain although they are said to be compressed (a proxy has decompressed them), compressed twice
or without a word of it (a proxy has compressed them again), and `deflate` with and without zlib's frame: RFC 9110,
section 8.4.1. Encodings other than gzip and deflate are never asked for.
"""

from __future__ import annotations

import codecs
import zlib

from pipeline.endpoint.redaction import quoted, redact_tokens

ACCEPTED = "gzip, deflate"
"""The Accept-Encoding of all requests. By default, aiohttp would name what it finds installed."""

_GZIP = b"\x1f\x8b"
_OTHER_TEXT = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

_AS_GZIP, _AS_ZLIB, _AS_RAW = 31, 15, -15
"""zlib's `wbits`."""

_MOST_MEMBERS = 100
"""Members of a gzip body that are read: each costs a copy of what follows it."""

_MOST_LAYERS = 2
"""How often a body is decompressed: no more was ever seen."""

_MOST_LABEL = 40


class Undecodable(Exception):
    """The body cannot be decoded. The message says so in words."""


class BodyDecoder:
    """The content of one body, from pieces cut anywhere. `said` is its Content-Encoding; empty if it has none."""

    def __init__(self, said: str = "", *, layers: int = _MOST_LAYERS) -> None:
        names = (name.partition(";")[0].strip() for name in said.lower().split(","))
        self._said = [name for name in names if name not in {"", "identity"}]
        self._layers = layers
        self._kept = b""
        """What has come, as long as the form is not known for certain."""
        self._is_plain = False
        self._inflater: zlib._Decompress | None = None
        self._inner: BodyDecoder | None = None
        self._members = 0
        self._has_ended = False
        """Whether the compressed data has ended, or a member of it."""

    def feed(self, piece: bytes, most: int) -> bytes:
        """The content that a piece adds: at most one byte more than `most`, which shows that it is too large.

        Raises `Undecodable`.
        """
        if self._is_plain:
            return piece
        if self._inflater is None:
            self._kept = piece = self._kept + piece
            if len(piece) < len(_GZIP):
                return b""
            if self._has_ended and not (self._members and piece.startswith(_GZIP)):
                return b""  # what follows the end is not content: gzip itself ignores it
            self._begin(piece)
            if self._inflater is None:
                return self._plain()
        elif self._kept:
            self._kept += piece
        content = self._inflated(piece, most)
        return self._inner.feed(content, most) if self._inner and content else content

    def end(self) -> bytes:
        """The rest of the content, once the body has ended; after that, nothing. Raises `Undecodable`."""
        if self._is_plain or self._has_ended or self._members or not self._kept:
            return b"" if self._inner is None else self._inner.end()
        return self._plain()  # a single byte, or what looked compressed until the end

    def _begin(self, head: bytes) -> None:
        """Chooses how to decompress, by the first bytes; not at all if they are plain."""
        form: int | None = None
        if head.startswith(_GZIP):
            form = _AS_GZIP
        elif not {"gzip", "x-gzip", "deflate"}.isdisjoint(self._said):
            if head[0] & 0xF == 8 and int.from_bytes(head[:2], "big") % 31 == 0:  # RFC 1950, section 2.2
                form = _AS_ZLIB
            elif "deflate" in self._said and head[:1] not in {b"{", b"["}:  # a deflated text begins with neither
                form = _AS_RAW
        if form is not None:
            self._inflater = zlib.decompressobj(form)
            self._members += form == _AS_GZIP
            if self._layers > 1 and self._inner is None:
                self._inner = BodyDecoder(layers=self._layers - 1)
        if self._members > _MOST_MEMBERS:
            raise Undecodable(f"the answer is gzip in more than {_MOST_MEMBERS} pieces")

    def _inflated(self, piece: bytes, most: int) -> bytes:
        contents: list[bytes] = []
        room = most + 1
        while self._inflater is not None and room > 0:
            try:
                content = self._inflater.decompress(piece, room)
            except zlib.error:
                if not self._kept or self._members:
                    raise Undecodable(self._complaint()) from None
                # Nothing has come out of it yet: that it looked compressed was chance.
                return self._plain()
            if content:
                contents.append(content)
                room -= len(content)
                self._kept = b""
            if not self._inflater.eof:
                break
            self._kept = piece = self._inflater.unused_data
            self._inflater, self._has_ended = None, True
            if self._members and piece.startswith(_GZIP):  # or in the next piece: see `feed`
                self._begin(piece)
        return b"".join(contents)

    def _plain(self) -> bytes:
        """The bytes as they came. Raises `Undecodable` if a Content-Encoding was named and they are not text."""
        head, self._kept, self._is_plain = self._kept, b"", True
        self._inflater = self._inner = None
        if self._said and not head.startswith(_OTHER_TEXT):
            try:
                codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut
            except UnicodeDecodeError:
                raise Undecodable(self._complaint()) from None
        return head

    def _complaint(self) -> str:
        said = quoted(redact_tokens(", ".join(self._said))[:_MOST_LABEL])
        if {"gzip", "x-gzip", "deflate"}.isdisjoint(self._said) and self._said:
            return f"the answer is encoded as {said}, which was not asked for (Accept-Encoding: {ACCEPTED})"
        return "the answer is not encoded as its Content-Encoding says" if self._said else "the answer is broken gzip"
