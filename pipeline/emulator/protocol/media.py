"""Inspects media: the type, and size, length and pages from the header. No image is decoded.

The parsers read only the fields they need, by the formats' specifications. Truncated or inconsistent bytes are
`Unreadable`; nothing else is ever raised.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

TOKENS_A_TILE = 258
TOKENS_A_PAGE = 258
TOKENS_A_SECOND = 32
SMALL = 384  # pixels: an image no larger than this in both directions is one tile
TILE = 768  # pixels
MOST_STREAMS = 64
MOST_INFLATED = 2**20  # bytes of a PDF's object stream

_CHANNELS = {1: "mono", 2: "stereo"}


class Unreadable(ValueError):
    """Bytes of an unknown type, or not valid for the type they begin as."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """The findings. A field that does not apply, or is not in the header, is 0."""

    mime_type: str
    size: int = 0
    sha256: str = ""
    width: int = 0
    height: int = 0
    seconds: float = 0.0
    rate: int = 0
    channels: int = 0
    pages: int = 0

    @property
    def tokens(self) -> int:
        """Its prompt tokens: 258 per tile, page or second of video, 32 per second of audio.

        https://cloud.google.com/vertex-ai/generative-ai/docs/multimodal/image-understanding
        """
        if self.pages:
            return self.pages * TOKENS_A_PAGE
        if self.mime_type.startswith("audio/"):
            return max(1, math.ceil(self.seconds * TOKENS_A_SECOND))
        if self.mime_type.startswith("video/"):
            return max(1, math.ceil(self.seconds)) * TOKENS_A_TILE
        if max(self.width, self.height) <= SMALL:
            return TOKENS_A_TILE
        return math.ceil(self.width / TILE) * math.ceil(self.height / TILE) * TOKENS_A_TILE

    def __str__(self) -> str:
        facts = [
            f"{self.width}x{self.height}" if self.width else "",
            f"{round(self.seconds, 2):g} s" if self.seconds else "",
            f"{self.rate} Hz" if self.rate else "",
            _CHANNELS.get(self.channels, f"{self.channels} channels") if self.channels else "",
            f"{self.pages} page{'s' * (self.pages > 1)}" if self.pages else "",
            f"{self.size} bytes",
            f"sha256 {self.sha256}",
        ]
        return f"{self.mime_type} {', '.join(fact for fact in facts if fact)}"


def inspect(data: bytes) -> Inspection:
    """Inspects these bytes; `sha256` is the first 12 digits of the hash. Raises `Unreadable`."""
    parser = _parser(data)
    if parser is None:
        raise Unreadable("of no known type")
    try:
        found = parser(data)
    except (struct.error, IndexError, ValueError, ArithmeticError) as error:
        raise Unreadable(str(error)) from None
    return replace(found, size=len(data), sha256=hashlib.sha256(data).hexdigest()[:12])


Parser = Callable[[bytes], Inspection]


def _parser(data: bytes) -> Parser | None:
    for signature, parser in _SIGNATURES.items():
        if data.startswith(signature):
            return parser
    if data[:4] == b"RIFF":
        return {b"WEBP": _webp, b"WAVE": _wav}.get(data[8:12])
    if data[4:8] == b"ftyp":
        return _heic if data[8:12] in _STILL_BRANDS else _mp4
    if len(data) > 3 and data[0] == 0xFF and data[1] & 0xE6 == 0xE2:
        return _mp3
    return None


def _picture(mime_type: str, width: int, height: int) -> Inspection:
    if not width or not height:
        raise Unreadable("a picture without a size")
    return Inspection(mime_type, width=width, height=height)


def _png(data: bytes) -> Inspection:
    """https://www.w3.org/TR/png-3/#5DataRep, including checksums."""
    at, width, height = 8, 0, 0
    kind = b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at)
        body = memoryview(data)[at + 8 : at + 8 + length]
        if zlib.crc32(body, zlib.crc32(kind)) != struct.unpack_from(">I", data, at + 8 + length)[0]:
            raise Unreadable(f"a chunk with a wrong checksum: {kind!r}")
        if kind == b"IHDR":
            width, height = struct.unpack_from(">II", body)
        at += 12 + length
    return _picture("image/png", width, height)


def _gif(data: bytes) -> Inspection:
    """https://www.w3.org/Graphics/GIF/spec-gif89a.txt, sections 18 and 27."""
    if not data.rstrip(b"\0").endswith(b";"):
        raise Unreadable("without its end")
    return _picture("image/gif", *struct.unpack_from("<HH", data, 6))


def _jpeg(data: bytes) -> Inspection:
    """https://www.w3.org/Graphics/JPEG/itu-t81.pdf, annex B: the first frame header."""
    at = 2
    while True:
        if data[at] != 0xFF:
            raise Unreadable("a segment without its marker")
        kind = data[at + 1]
        if kind in {0xFF, 0x01} or 0xD0 <= kind <= 0xD8:
            at += 1 if kind == 0xFF else 2
            continue
        if 0xC0 <= kind <= 0xCF and kind not in {0xC4, 0xC8, 0xCC}:
            break
        if kind in {0xD9, 0xDA}:
            raise Unreadable("without a frame header")
        at += 2 + max(2, struct.unpack_from(">H", data, at + 2)[0])
    if data.rfind(b"\xff\xd9") < at:
        raise Unreadable("without its end")
    height, width = struct.unpack_from(">HH", data, at + 5)
    return _picture("image/jpeg", width, height)


def _webp(data: bytes) -> Inspection:
    """https://developers.google.com/speed/webp/docs/riff_container."""
    if struct.unpack_from("<I", data, 4)[0] + 8 > len(data):
        raise Unreadable("shorter than it says")
    match data[12:16]:
        case b"VP8 ":
            if data[23:26] != b"\x9d\x01\x2a":
                raise Unreadable("without a start code")
            width, height = struct.unpack_from("<HH", data, 26)
            return _picture("image/webp", width & 0x3FFF, height & 0x3FFF)
        case b"VP8L":
            bits = struct.unpack_from("<I", data, 21)[0]
            return _picture("image/webp", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
        case b"VP8X":
            width = int.from_bytes(data[24:27], "little") + 1
            return _picture("image/webp", width, int.from_bytes(data[27:30], "little") + 1)
    raise Unreadable("of no known coding")


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """The boxes of an ISO media file (ISO/IEC 14496-12, 4.2), each with the extent of its body."""
    while start < end:
        size, kind = struct.unpack_from(">I4s", data, start)
        body = start + 8
        if size == 1:
            size, body = struct.unpack_from(">Q", data, body)[0], body + 8
        stop = end if size == 0 else start + size
        if stop < body or stop > end:
            raise Unreadable(f"a box of a wrong size: {kind!r}")
        yield kind, body, stop
        start = stop


def _inside(data: bytes, path: tuple[bytes, ...], start: int, end: int) -> Iterator[tuple[int, int]]:
    """The extents of all boxes at the end of a path of types. The body of `meta` begins with 4 extra bytes."""
    for kind, body, stop in _boxes(data, start, end):
        if kind == path[0]:
            if len(path) == 1:
                yield body, stop
            else:
                yield from _inside(data, path[1:], body + (4 if kind == b"meta" else 0), stop)


def _heic(data: bytes) -> Inspection:
    """ISO/IEC 23008-12: the largest of the image extents."""
    spans = _inside(data, (b"meta", b"iprp", b"ipco", b"ispe"), 0, len(data))
    sizes = [struct.unpack_from(">II", data, body + 4) for body, _ in spans]
    width, height = max(sizes, default=(0, 0))
    return _picture(_STILL_BRANDS[data[8:12]], width, height)


def _mp4(data: bytes) -> Inspection:
    """ISO/IEC 14496-12, 8.2.2: the movie header's duration; a track's size, if one has it."""
    header = next(_inside(data, (b"moov", b"mvhd"), 0, len(data)), None)
    if header is None:
        raise Unreadable("without a movie header")
    start, _ = header
    wide = data[start] == 1  # version 1 has 64-bit times
    scale, duration = struct.unpack_from(">IQ" if wide else ">II", data, start + (20 if wide else 12))
    spans = _inside(data, (b"moov", b"trak", b"tkhd"), 0, len(data))
    tracks = [struct.unpack_from(">II", data, stop - 8) for _, stop in spans]
    width, height = max(tracks, default=(0, 0))
    mime_type = _MOVING_BRANDS.get(data[8:12], "video/mp4" if width else "audio/mp4")
    return Inspection(mime_type, width=width >> 16, height=height >> 16, seconds=duration / scale)


def _wav(data: bytes) -> Inspection:
    """http://soundfile.sapp.org/doc/WaveFormat. A stream of unknown length has 2^32 - 1 as its length."""
    at, channels, rate, speed = 12, 0, 0, 0
    while True:
        kind, length = struct.unpack_from("<4sI", data, at)
        at += 8
        if kind == b"fmt ":
            _, channels, rate, speed = struct.unpack_from("<HHII", data, at)
        if kind == b"data":
            break
        at += length + length % 2
    left = len(data) - at
    if length > left and length != 0xFFFFFFFF:
        raise Unreadable("shorter than it says")
    return Inspection("audio/wav", seconds=min(length, left) / speed, rate=rate, channels=channels)


def _flac(data: bytes) -> Inspection:
    """https://www.rfc-editor.org/rfc/rfc9639#section-8.2: the stream's own description."""
    if data[4] & 0x7F or len(data) < 42:
        raise Unreadable("without a description of the stream")
    packed = int.from_bytes(data[18:26], "big")
    rate, samples = packed >> 44, packed & (1 << 36) - 1
    return Inspection("audio/flac", seconds=samples / rate, rate=rate, channels=(packed >> 41 & 7) + 1)


def _ogg(data: bytes) -> Inspection:
    """https://www.rfc-editor.org/rfc/rfc3533#section-6: the last page has the number of samples."""
    head = data[27 + data[26] :]
    last = data.rfind(b"OggS")
    samples = max(0, struct.unpack_from("<q", data, last + 6)[0])
    if head.startswith(b"\x01vorbis"):
        channels, rate = struct.unpack_from("<BI", head, 11)
        return Inspection("audio/ogg", seconds=samples / rate, rate=rate, channels=channels)
    if head.startswith(b"OpusHead"):
        channels, skipped, rate = struct.unpack_from("<BHI", head, 9)
        return Inspection("audio/ogg", seconds=max(0, samples - skipped) / 48_000, rate=rate, channels=channels)
    return Inspection("audio/ogg")


_RATES = (44_100, 48_000, 32_000)
_BITRATES = {  # of layer III, in kbit/s, by whether it is MPEG 1
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def _mp3(data: bytes) -> Inspection:
    """http://www.mp3-tech.org/programmer/frame_header.html: the first frame, and the number of frames if given."""
    at = 0
    if data.startswith(b"ID3"):
        at = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))
    while data[at] != 0xFF or data[at + 1] & 0xE6 != 0xE2:
        at = data.index(b"\xff", at + 1)
    version, coding, layout = data[at + 1] >> 3 & 3, data[at + 2], data[at + 3]
    first = version == 3
    rate = _RATES[coding >> 2 & 3] // {3: 1, 2: 2, 0: 4}.get(version, 1)
    bits = _BITRATES[first][coding >> 4] * 1000
    seconds = (len(data) - at) * 8 / bits
    tag = max(data.find(b"Xing", at, at + 200), data.find(b"Info", at, at + 200))
    if tag >= 0 and data[tag + 7] & 1:
        seconds = struct.unpack_from(">I", data, tag + 8)[0] * (1152 if first else 576) / rate
    return Inspection("audio/mpeg", seconds=seconds, rate=rate, channels=1 if layout >> 6 == 3 else 2)


_PAGE = re.compile(rb"/Type\s*/Page(?![A-Za-z])")
_OBJECT_STREAM = re.compile(rb"/ObjStm\b[^>]*>>\s*stream\r?\n")


def _pdf(data: bytes) -> Inspection:
    """ISO 32000-1, 7.7.3: page objects, also those inside compressed object streams."""
    if b"%%EOF" not in data[-2048:]:
        raise Unreadable("without its end")
    pages = len(_PAGE.findall(data))
    for number, stream in enumerate(_OBJECT_STREAM.finditer(data)):
        if number >= MOST_STREAMS:
            break
        try:
            inflated = zlib.decompressobj().decompress(memoryview(data)[stream.end() :], MOST_INFLATED)
        except zlib.error:
            continue
        pages += len(_PAGE.findall(inflated))
    if not pages:
        raise Unreadable("without pages")
    return Inspection("application/pdf", pages=pages)


def _webm(_: bytes) -> Inspection:
    return Inspection("video/webm")


_SIGNATURES: Mapping[bytes, Parser] = {
    b"\x89PNG\r\n\x1a\n": _png,
    b"\xff\xd8\xff": _jpeg,
    b"GIF87a": _gif,
    b"GIF89a": _gif,
    b"%PDF-": _pdf,
    b"fLaC": _flac,
    b"OggS": _ogg,
    b"ID3": _mp3,
    b"\x1aE\xdf\xa3": _webm,
}
_STILL_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"hevx"), "image/heic"),
    **dict.fromkeys((b"mif1", b"msf1"), "image/heif"),
    **dict.fromkeys((b"avif", b"avis"), "image/avif"),
}
_MOVING_BRANDS = {b"M4A ": "audio/mp4", b"M4B ": "audio/mp4", b"qt  ": "video/quicktime"}
