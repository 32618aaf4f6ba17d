"""Images, audio, video and documents in messages: a job names their columns; they are read when a row is asked.

A value may be a path below the job's media root, the bytes themselves (a binary column), the struct of bytes and path
that Hugging Face writes, a `data:` URL, a `gs://` URI, or an https URL, which is fetched by the endpoint and never by
us.
"""

from __future__ import annotations

import base64
import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pipeline.endpoint.redaction import quoted
from pipeline.faults import InvalidRow

INLINE_LIMIT = 20_000_000
"""Maximum bytes of a request with inline data, as documented by Vertex AI."""

_URLS = ("gs://", "https://", "data:")

MediaKind = Literal["image", "audio", "media"]


@dataclass(frozen=True, slots=True)
class MediaColumn:
    """A message part with content from a column; a list in the column gives several parts."""

    kind: MediaKind
    column: str


def image(column: str) -> MediaColumn:
    """The column's image: PNG, JPEG, WebP, GIF or HEIC."""
    return MediaColumn("image", column)


def audio(column: str) -> MediaColumn:
    """The column's recording: WAV, MP3, FLAC, OGG, M4A."""
    return MediaColumn("audio", column)


def media(column: str) -> MediaColumn:
    """The column's file, of any kind that the endpoint accepts, including PDF and video."""
    return MediaColumn("media", column)


@dataclass(frozen=True, slots=True)
class Attachment:
    """One value of a media column: a placeholder for the message part that `load` makes from it."""

    kind: MediaKind
    column: str
    value: str | bytes


def attachments(part: MediaColumn, values: Mapping[str, Any]) -> list[Attachment]:
    """The attachments of a row. Raises `InvalidRow` when the column holds none."""
    value = values.get(part.column)
    items = [_content(item) for item in (value if isinstance(value, list) else [value])]
    if not items or not all(isinstance(item, str | bytes) and item for item in items):
        raise InvalidRow(f"column {part.column!r} holds no {part.kind}: it is null, empty or of another type")
    return [Attachment(part.kind, part.column, item) for item in items]


def _content(item: Any) -> Any:
    """The value itself; for the struct in which Hugging Face stores media, its bytes, or its path if it has none."""
    if isinstance(item, Mapping) and "bytes" in item and item.keys() <= {"bytes", "path"}:
        return item.get("path") if item["bytes"] is None else item["bytes"]
    return item


def load(attachment: Attachment, root: Path | None, budget: int = INLINE_LIMIT) -> dict[str, Any]:
    """The message part, including the bytes if we have to send them. Blocking: call it in a thread.

    Raises `InvalidRow` for a file that is missing, unreadable, empty, outside `root`, of unknown type, or that would
    take more than `budget` bytes of the request.
    """
    value = attachment.value
    if isinstance(value, str) and value.startswith(_URLS):
        if len(value) > budget:
            raise _too_large(attachment, len(value))
        if attachment.kind == "audio" and value.startswith("data:") and ";base64," not in value:
            raise InvalidRow(f"column {attachment.column!r}: a data: URL of a recording has to be in base64")
        return _part(attachment, value, _type_of_uri(value))
    if isinstance(value, str) and "://" in value:
        raise InvalidRow(f"column {attachment.column!r}: only gs:// and https:// URLs can be handed to the endpoint")
    content = value if isinstance(value, bytes) else _read(attachment, value, root, budget)
    if not content:
        raise InvalidRow(f"column {attachment.column!r}: the {attachment.kind} is empty")
    if encoded_size(len(content)) > budget:
        raise _too_large(attachment, encoded_size(len(content)))
    mime_type = sniff(content)
    if mime_type is None or not _fits(attachment.kind, mime_type):
        found = mime_type or "of no known type"
        raise InvalidRow(f"column {attachment.column!r}: {_name(value)} is {found}, which is no {attachment.kind}")
    return _part(attachment, f"data:{mime_type};base64,{base64.b64encode(content).decode()}", mime_type)


def content_id(attachment: Attachment, root: Path | None) -> str:
    """Identifies an attachment: its URL, or the digest of its bytes. Blocking: call it in a thread.

    Raises `InvalidRow` for a file that cannot be read, as `load` does.
    """
    value = attachment.value
    if isinstance(value, str) and (value.startswith(_URLS) or "://" in value):
        return value
    content = value if isinstance(value, bytes) else _read(attachment, value, root, INLINE_LIMIT)
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def encoded_size(size: int) -> int:
    """The size of `size` bytes in base64, in bytes."""
    return (size + 2) // 3 * 4


def sniff(content: bytes) -> str | None:
    """The MIME type according to the bytes, never the file name.

    Containers that share a signature are distinguished by their brands; general libraries take HEIC and M4A for MP4
    video.
    """
    head = content[:16]
    for signature, mime_type in _SIGNATURES.items():
        if head.startswith(signature):
            return mime_type
    if head[:4] == b"RIFF":
        return {b"WEBP": "image/webp", b"WAVE": "audio/wav"}.get(content[8:12])
    if head[4:8] == b"ftyp":
        return _BRANDS.get(content[8:12], "video/mp4")
    if head[0:1] == b"\xff" and len(head) > 1 and head[1] & 0xE6 in {0xE2, 0xE4, 0xE6}:
        return "audio/mpeg"
    return None


_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
    b"%PDF-": "application/pdf",
    b"fLaC": "audio/flac",
    b"OggS": "audio/ogg",
    b"ID3": "audio/mpeg",
    b"\x1aE\xdf\xa3": "video/webm",
}
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"hevx"), "image/heic"),
    **dict.fromkeys((b"mif1", b"msf1"), "image/heif"),
    **dict.fromkeys((b"avif", b"avis"), "image/avif"),
    **dict.fromkeys((b"M4A ", b"M4B "), "audio/mp4"),
    b"qt  ": "video/quicktime",
}
_SUFFIXES = {
    ".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp", ".gif": "image/gif",
    ".heic": "image/heic", ".pdf": "application/pdf", ".wav": "audio/wav", ".mp3": "audio/mpeg",
    ".flac": "audio/flac", ".ogg": "audio/ogg", ".m4a": "audio/mp4", ".mp4": "video/mp4", ".mov": "video/quicktime",
    ".webm": "video/webm",
}  # fmt: skip
_AUDIO_FORMATS = {"audio/wav": "wav", "audio/mpeg": "mp3"}
"""OpenAI's names for the two formats that it supports; Vertex also accepts any MIME type."""


def _read(attachment: Attachment, name: str, root: Path | None, budget: int) -> bytes:
    """The content of a regular file below the root; no link or path may lead outside."""
    column = attachment.column
    if root is None:
        raise InvalidRow(f"column {column!r} names a file, but the job has no `media_root`")
    try:
        path = os.path.realpath(root / name)
    except ValueError as error:  # a null byte, or half of a surrogate pair: no file can have such a name
        raise InvalidRow(f"column {column!r}: {quoted(name)} cannot be read: {error}") from None
    if not Path(path).is_relative_to(os.path.realpath(root)):
        raise InvalidRow(f"column {column!r}: {quoted(name)} is outside the job's media root")
    try:
        # Non-blocking, so that a FIFO in place of a file does not hang the thread.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise InvalidRow(f"column {column!r}: {quoted(name)} cannot be read: {error.strerror}") from None
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)  # here, because a file object cannot be made for a folder
        raise InvalidRow(f"column {column!r}: {quoted(name)} is not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        if encoded_size(found.st_size) > budget:
            raise _too_large(attachment, encoded_size(found.st_size))
        return file.read()


def _part(attachment: Attachment, url: str, mime_type: str | None) -> dict[str, Any]:
    if attachment.kind != "audio":
        return {"type": "image_url", "image_url": {"url": url}}
    data = url.partition(";base64,")[2] if url.startswith("data:") else url
    name = _AUDIO_FORMATS.get(mime_type or "", mime_type or "audio/wav")
    return {"type": "input_audio", "input_audio": {"data": data, "format": name}}


def _type_of_uri(uri: str) -> str | None:
    if uri.startswith("data:"):
        return uri[5:].partition(";")[0].partition(",")[0] or None
    return _SUFFIXES.get(PurePosixPath(uri.partition("?")[0]).suffix.lower())


def _fits(kind: MediaKind, mime_type: str) -> bool:
    return kind == "media" or mime_type.startswith(f"{kind}/")


def _too_large(attachment: Attachment, size: int) -> InvalidRow:
    return InvalidRow(
        f"column {attachment.column!r}: the {attachment.kind} takes {size} bytes of the request, more than the "
        f"{INLINE_LIMIT} that can be sent inline; put it on gs://"
    )


def _name(value: str | bytes) -> str:
    return quoted(value) if isinstance(value, str) else "the value"
