"""The content of messages: texts, and media that are inline or named by a URL."""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pipeline.emulator.protocol.media import TOKENS_A_TILE, Unreadable, inspect
from pipeline.emulator.protocol.wire import Problem, invalid

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
CHARACTERS_PER_TOKEN = 4

_FORMATS = {"wav": "audio/wav", "mp3": "audio/mpeg"}
_SAME = {
    "image/jpg": "image/jpeg",
    "image/heif": "image/heic",
    "audio/mp3": "audio/mpeg",
    "audio/mpga": "audio/mpeg",
    "audio/x-wav": "audio/wav",
    "audio/wave": "audio/wav",
    "audio/vnd.wave": "audio/wav",
    "audio/x-flac": "audio/flac",
    "audio/opus": "audio/ogg",
    "audio/m4a": "audio/mp4",
    "audio/x-m4a": "audio/mp4",
    "video/quicktime": "video/mp4",
    "video/mov": "video/mp4",
}
_ONE_CONTAINER = frozenset({"audio/mp4", "video/mp4"})  # only the tracks distinguish the two
_KNOWN = ("image/", "audio/", "video/", "text/", "application/pdf")


@dataclass(frozen=True, slots=True)
class Medium:
    """A file in a message: a description of it, and its number of tokens."""

    description: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Spoken:
    """A parsed message: `text` is all its text parts, one per line."""

    role: str
    text: str
    media: tuple[Medium, ...] = ()


def read_message(message: Any, index: int) -> Spoken:
    """Reads one of `messages`. Raises a 400."""
    if not isinstance(message, dict):
        raise invalid(f"messages[{index}] is not an object.")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or role not in ROLES:
        raise invalid(f"Please use a valid role: system, user, assistant, tool. messages[{index}] has role {role!r}.")
    if content is None and role in {"assistant", "function"}:
        return Spoken(role, "")
    if isinstance(content, str):
        return Spoken(role, content)
    if not isinstance(content, list) or not content:
        raise invalid(f"messages[{index}].content must be a string or a list of parts, and not empty.")
    parts = [_read_part(part, f"messages[{index}].content[{number}]") for number, part in enumerate(content)]
    texts = [part for part in parts if isinstance(part, str)]
    return Spoken(role, "\n".join(texts), tuple(part for part in parts if isinstance(part, Medium)))


def _read_part(part: Any, at: str) -> str | Medium:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise invalid(f"{at} is a part without a type.")
    match part["type"]:
        case "text" | "refusal" as kind:
            if not isinstance(part.get(kind), str):
                raise invalid(f"{at} is a {kind} part without text.")
            return str(part[kind])
        case "image_url":
            inner = part.get("image_url")
            url = inner.get("url") if isinstance(inner, dict) else inner
            if not isinstance(url, str) or not url:
                raise invalid(f"{at}.image_url needs a url.")
            return _of_url(url, at)
        case "input_audio":
            return _of_audio(part.get("input_audio"), at)
        case other:
            raise invalid(f"Unsupported content part type: {other!r} ({at}).")


def _of_audio(inner: Any, at: str) -> Medium:
    data, form = (inner.get("data"), inner.get("format")) if isinstance(inner, dict) else (None, None)
    if not isinstance(data, str) or not data or not isinstance(form, str | None):
        raise invalid(f"{at}.input_audio needs data, and a format of text.")
    if data.startswith(("data:", "gs://", "https://", "http://")):
        return _of_url(data, at)
    if not form:
        raise invalid(f"{at}.input_audio needs a format.")
    return _of_bytes(_decoded(data, at), _FORMATS.get(form, form))


def _of_url(url: str, at: str) -> Medium:
    if url.startswith("data:"):
        head, comma, data = url[5:].partition(",")
        mime_type, *parameters = head.split(";")
        if not comma or "base64" not in parameters:
            raise invalid(f"{at}: a data URL is written data:MIME;base64,DATA.")
        return _of_bytes(_decoded(data, at), mime_type)
    scheme, _, rest = url.partition("://")
    if scheme not in {"gs", "https", "http"} or not rest.partition("/")[0]:
        raise invalid(f"Unsupported file uri: {url[:200]} ({at}). Use gs://, https:// or data:.")
    if scheme == "gs" and not rest.partition("/")[2]:
        raise invalid(f"Invalid Cloud Storage uri: {url[:200]} ({at}).")
    kind = PurePosixPath(rest.partition("?")[0]).suffix.lstrip(".") or "no suffix"
    return Medium(f"{url[:200]} ({kind}, not fetched)", TOKENS_A_TILE)


def _of_bytes(data: bytes, declared: str) -> Medium:
    declared = declared.lower()
    if not declared.startswith(_KNOWN):
        raise invalid(f"Unsupported MIME type: {declared}")
    if declared.startswith("text/"):
        return _of_text(data, declared)
    try:
        found = inspect(data)
    except Unreadable:
        raise _unprocessable(declared) from None
    if not _same(declared, found.mime_type):
        raise invalid(f"The data is {found.mime_type}, but was declared as {declared}.")
    return Medium(str(found), found.tokens)


def _of_text(data: bytes, declared: str) -> Medium:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise _unprocessable(declared) from None
    digest = hashlib.sha256(data).hexdigest()[:12]
    tokens = math.ceil(len(text) / CHARACTERS_PER_TOKEN)
    return Medium(f"{declared} {len(text)} characters, {len(data)} bytes, sha256 {digest}", tokens)


def _decoded(data: str, at: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise invalid(f"Base64 decoding failed ({at}).") from None


def _same(declared: str, found: str) -> bool:
    one, other = (_SAME.get(mime_type, mime_type) for mime_type in (declared, found))
    return one == other or {one, other} == _ONE_CONTAINER


def _unprocessable(declared: str) -> Problem:
    kind = declared.partition("/")[0]
    noun = {"application": "document", "text": "document"}.get(kind, kind)
    return invalid(
        f"Unable to process input {noun}. Please retry or report in "
        "https://developers.generativeai.google/guide/troubleshooting"
    )
