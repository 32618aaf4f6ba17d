r"""Removes the secret of a request from its response: whole or in part, in any encoding.

Servers like to tell callers what they sent. They write it as JSON does (`\/`, `\u004b`, escaped once more within a
string), as addresses do (`%2F`, `%252F`) or as pages do (`&#47;`); they mask its beginning, cut it, or show it
in base64 (of base64), in hexadecimal, or as a list of bytes.
"""

from __future__ import annotations

import base64
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from string import ascii_letters, digits

SHORTEST_SECRET = 12
"""A key of fewer characters protects nothing (`x`, for a server that needs none), and may be any word of an answer."""

IN_MESSAGES = 8
"""Consecutive characters of a secret that count as the secret in a message."""

IN_BODIES = 16
"""The same in an answer, whose text must not change because of a word that a key happens to contain."""

_IN_BASE64 = 20
"""Consecutive characters of its base64 that count as the secret: 15 bytes."""

_IN_BYTES = 12
"""Consecutive bytes in a list that count as the secret: as many as make one."""

_BETWEEN = b" \t\r\n:,-\\xnrt"
"""What may stand between bytes that are written one by one: colons, blanks, `\\x`, `0x` (but for its 0), line ends."""

_OPAQUE = bytes(97 if chr(byte) in f"{ascii_letters}{digits}+/=_-" else 32 for byte in range(256))
_LONG_RUN = b"a" * 14
"""To see whether a body has a long run of base64 at all: most have none, and searching for each form would be slow.

The shortest secret fills as much, wherever it begins.
"""

_MOST_RUNS = 1000
"""With more pieces of our secret than this in a body, each is removed on its own: measuring runs would be slow."""

_NO_ESCAPE = b"".join(rb"(?<!\\u%s)" % (b"[0-9a-fA-F]" * digits) for digits in range(4))
"""Not among the digits of a `\\u00e9`: JSON must stay JSON."""

_FEW_PIECES = 4
"""With more pieces than this, searching for each is slower than looking up all words of the body."""

_WORD = 8
"""Size in bytes of the integers into which a body is divided."""


def without_secret(body: bytes, secret: str, shortest: int, mark: bytes) -> bytes:
    """The body with `mark` for the secret and for every run of at least `shortest` characters of it.

    Linear in the body's length, whatever its content.
    """
    if len(secret) < SHORTEST_SECRET:
        return body
    own = _own(secret, shortest)
    # The pattern for escaped forms is slow: it runs only where unescaping has shown the secret to be there.
    if own.is_escaped_in(body) and own.is_in(_unescaped(body)):
        body = own.escaped.sub(mark, body)
    body = own.replaced(body, mark)
    # Escaped slashes (`\/`) belong to a run, too.
    if _LONG_RUN in body.translate(_OPAQUE, b"\\") and own.is_encoded_in(body):
        body = own.encoded_run.sub(mark, body)
    squeezed = body.translate(None, _BETWEEN)
    if any(beginning in squeezed for beginning in own.listed):
        body = own.listed_run.sub(mark, body)
    if b"\x00" in body:  # UTF-16 or UTF-32, in either byte order: the whole secret only
        for codec in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
            body = body.replace(secret.encode(codec), mark.decode().encode(codec))
    return body


@dataclass(frozen=True, slots=True)
class _Own:
    """A secret, and the pieces by which a run of at least `shortest` of its bytes is found."""

    secret: bytes
    shortest: int
    pieces: tuple[tuple[int, bytes], ...]
    escaped: re.Pattern[bytes]
    """The whole secret, or consecutive pieces of it, each byte plain or escaped."""
    escapes: tuple[tuple[bytes, re.Pattern[bytes]], ...]
    """Its bytes in escaped forms, by the character that begins the form."""
    words: frozenset[int]
    """Every 8 bytes of it, as integers; empty if its pieces are few or short."""
    step: int
    """In any run of `shortest` bytes, 8 bytes begin at a multiple of this many words."""
    encoded: tuple[bytes, ...]
    """How it begins in base64 or in base64 of that, wherever it stands in what was encoded (behind `user:`, say)."""
    encoded_run: re.Pattern[bytes]
    listed: tuple[bytes, ...]
    """How it begins when its bytes are written one by one, without what stands between them."""
    listed_run: re.Pattern[bytes]

    def is_escaped_in(self, body: bytes) -> bool:
        """Whether the body has one of the secret's bytes in escaped form; other escapes do not matter."""
        return any(sign in body and form.search(body) for sign, form in self.escapes)

    def is_encoded_in(self, body: bytes) -> bool:
        """Whether the body has the beginning of the secret in base64."""
        bare = body.replace(b"\\", b"") if b"\\/" in body else body
        return any(beginning in bare for beginning in self.encoded)

    def replaced(self, body: bytes, mark: bytes) -> bytes:
        """The body with `mark` for every run."""
        if not self._may_be_in(body):
            return body
        # A hostile body may repeat a piece for megabytes: each run would be measured from its every piece.
        if self._pieces_in(body) > _MOST_RUNS:
            for piece in (self.secret, *(piece for _, piece in self.pieces)):
                body = body.replace(piece, mark)
            return body
        end, kept = 0, []
        for first, last in sorted(self._runs(body)):
            if first >= end:
                kept += [body[end : _behind_escape(body, first)], mark]
            end = max(end, last)
        return b"".join([*kept, body[end:]]) if kept else body

    def is_in(self, body: bytes) -> bool:
        """Whether the body has any run, or more pieces than chance explains."""
        return self._may_be_in(body) and (self._pieces_in(body) > _MOST_RUNS or any(True for _ in self._runs(body)))

    def _may_be_in(self, body: bytes) -> bool:
        """False if there is no run, as in nearly every answer. Called for all answers, on the event loop."""
        if not self.words:
            return any(piece in body for _, piece in self.pieces)
        # Any run contains one of these words of the body: to look each up is faster than to search for every piece.
        whole_words = memoryview(body + bytes(-len(body) % _WORD)).cast("Q")
        return not self.words.isdisjoint(whole_words[:: self.step])

    def _pieces_in(self, body: bytes) -> int:
        return sum(body.count(piece) for _, piece in self.pieces)

    def _runs(self, body: bytes) -> Iterator[tuple[int, int]]:
        """The start and end of each run; runs may overlap."""
        for offset, piece in self.pieces:
            at = body.find(piece)
            while at >= 0:
                first, last = self._run(body, at, offset, len(piece))
                is_run = last - first >= self.shortest
                if is_run:
                    yield first, last
                # A run that was found covers the pieces in it; a shorter one may overlap the next.
                at = body.find(piece, last if is_run else at + 1)

    def _run(self, body: bytes, at: int, offset: int, size: int) -> tuple[int, int]:
        """The start and end of the run around a piece: the body equals the secret there."""
        first, last = at, at + size
        while first > 0 and offset > 0 and body[first - 1] == self.secret[offset - 1]:
            first, offset = first - 1, offset - 1
        shift = offset - first
        while last < len(body) and last + shift < len(self.secret) and body[last] == self.secret[last + shift]:
            last += 1
        return first, last


@lru_cache(maxsize=8)
def _own(secret: str, shortest: int) -> _Own:
    """Any run of `2 * size - 1` bytes contains a complete aligned piece of `size` bytes of the secret."""
    whole = secret.encode("utf-8", "surrogatepass")
    # For a long token, only longer runs are searched for, so that there are few pieces to find in each answer.
    shortest = min(len(whole), max(shortest, len(whole) // 8 if shortest >= IN_BODIES else 0))
    size = (shortest + 1) // 2
    offsets = [*range(0, len(whole) - size + 1, size)]
    pieces = tuple((offset, whole[offset : offset + size]) for offset in offsets)
    any_piece = b"|".join(_tolerant(piece) for piece in {*(piece for _, piece in pieces), whole[-size:]})
    escaped = re.compile(_NO_ESCAPE + rb"(?:%s|(?:%s)+)" % (_tolerant(whole), any_piece))
    has_words = len(pieces) > _FEW_PIECES and shortest >= 2 * _WORD - 1
    starts = range(len(whole) - _WORD + 1 if has_words else 0)
    words = frozenset(int.from_bytes(whole[start : start + _WORD], sys.byteorder) for start in starts)
    step = max(1, (shortest - _WORD + 1) // _WORD)
    encoded = tuple(dict.fromkeys(_in_base64(whole)))
    return _Own(
        secret=whole,
        shortest=shortest,
        pieces=pieces,
        escaped=escaped,
        escapes=_escapes_of(whole),
        words=words,
        step=step,
        encoded=encoded,
        encoded_run=re.compile(_base64_run(encoded)),
        listed=tuple(_in_bytes(whole[:_IN_BYTES])),
        listed_run=re.compile(_byte_run(whole[:_IN_BYTES])),
    )


def _in_base64(secret: bytes) -> Iterator[bytes]:
    """How a secret begins in base64, in both alphabets, at each of the three places that its bytes may have.

    The beginnings of these, encoded in base64 a second time.
    """
    for once in _base64_of(secret):
        yield once[:_IN_BASE64]
        for twice in _base64_of(once):
            yield twice[:_IN_BASE64]


def _base64_of(text: bytes) -> Iterator[bytes]:
    """The base64 characters that depend on the text alone, whatever is encoded before and after it."""
    for before in range(3):
        first, end = (8 * before + 5) // 6, 8 * (before + len(text)) // 6
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            yield encode(bytes(before) + text)[first:end]


def _base64_run(encoded: Sequence[bytes]) -> bytes:
    """A pattern for what was encoded, from the beginning of the secret to the end, even over several lines."""
    begins = b"|".join(re.escape(one).replace(b"/", rb"\\{0,8}/") for one in encoded)
    return rb"(?:%s)(?:[\w+/=-]|\\/|(?:\\[nr]|[\r\n]){1,2}(?=[\w+/=-]{8}))*+" % begins


def _in_bytes(first: bytes) -> Iterator[bytes]:
    """How a secret begins in hexadecimal of either case, also with a 0 from each `0x`; and in decimal numbers."""
    for pairs in ([f"{byte:02x}" for byte in first], [f"{byte:02X}" for byte in first]):
        yield "".join(pairs).encode()
        yield "0".join(pairs).encode()
    yield "".join(map(str, first)).encode()


def _byte_run(first: bytes) -> bytes:
    """A pattern for a list of bytes, from the beginning of the secret to the end of the list."""
    between = rb"(?:[\s:,-]|\\{1,2}[xnrt]|0x){0,6}+"
    hexadecimal = between.join(b"%02x" % byte for byte in first)
    decimal = between.join(b"%d" % byte for byte in first)
    return rb"(?i:(?:%s|%s)(?:[0-9a-f]{2})*+(?:%s[0-9a-f]{2,3}(?![0-9a-z]{2}))*+)" % (hexadecimal, decimal, between)


def _escapes_of(secret: bytes) -> tuple[tuple[bytes, re.Pattern[bytes]], ...]:
    """Patterns of the escaped bytes of the secret, each with its first character: searching for one byte is fast."""
    own = sorted(set(secret))
    # A backslash before any of these stands for the character itself; before others, JSON means another character.
    bare = b"".join([re.escape(bytes([byte])) for byte in own if byte not in b'bfnrtu"\\'])
    codes = _codes_of(own)
    numbers = b"|".join(b"%d" % byte for byte in own)
    return (
        (b"\\", re.compile(rb"\\(?:u00(?:%s)%s)" % (codes, b"|[%s]" % bare if bare else b""))),
        (b"%", re.compile(rb"%%(?:25){0,4}(?:%s)" % codes)),
        (b"&", re.compile(b"&#(?:%s|[xX](?:%s));" % (numbers, codes))),
    )


def _codes_of(own: Sequence[int]) -> bytes:
    """A pattern for the bytes in hexadecimal digits of either case, grouped by first digit to limit the branches."""
    seconds: dict[bytes, bytes] = {}
    for byte in own:
        first, second = b"%x" % (byte >> 4), b"%x" % (byte & 15)
        seconds[first] = seconds.get(first, b"") + second + second.upper()
    return b"|".join(b"[%s%s][%s]" % (first, first.upper(), second) for first, second in seconds.items())


def _behind_escape(body: bytes, first: int) -> int:
    """The start of a run, moved past digits that belong to an escape before it: JSON must stay JSON."""
    escape = body.rfind(b"\\u", max(0, first - 5), first)
    return first if escape < 0 else escape + 6


def _tolerant(piece: bytes) -> bytes:
    return b"".join(_written(byte) for byte in piece)


def _written(byte: int) -> bytes:
    """Every way to write an ASCII byte."""
    plain = re.escape(bytes([byte]))
    code = b"%x" % byte
    coded = b"".join(b"[%s%s]" % (bytes([digit]), bytes([digit]).upper()) for digit in code)
    return rb"(?:\\{0,8}%s|\\{1,8}u00%s|%%(?:25){0,4}%s|&#(?:%d|[xX]%s);)" % (plain, coded, coded, byte, coded)


_PERCENTS = re.compile(rb"%(?:25)+(?=[0-9a-fA-F]{2})")
"""A percent sign that was escaped itself, as `%252F` for `/` in an address within an address."""

_ASCII = range(0x20, 0x7F)
_HEX = {code: bytes([byte]) for byte in _ASCII for code in (b"%02x" % byte, b"%02X" % byte)}
_ENTITIES = (
    {b"%d" % byte: bytes([byte]) for byte in _ASCII}
    | {b"x" + code: byte for code, byte in _HEX.items()}
    | {b"X" + code: byte for code, byte in _HEX.items()}
)


def _unescaped(body: bytes) -> bytes:
    """The body with every escaped character of ASCII as itself, and without backslashes: to look for a secret in."""
    body = _PERCENTS.sub(b"%", body.replace(b"\\", b""))
    for sign in (b"u00", b"%"):
        if sign in body:
            first, *rest = body.split(sign)
            known = [_HEX[one[:2]] + one[2:] if one[:2] in _HEX else sign + one for one in rest]
            body = b"".join([first, *known])
    if b"&#" in body:
        first, *rest = body.split(b"&#")
        coded = [one.partition(b";") for one in rest]
        body = b"".join([first, *(_ENTITIES.get(code, b"&#" + code + end) + more for code, end, more in coded)])
    return body
