"""Chat messages as Gemini's own contents: texts, media, tool calls and their results.

https://cloud.google.com/vertex-ai/docs/reference/rest/v1/Content
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote_to_bytes

import orjson

from pipeline.endpoint.messages import calls_in, is_object, is_thought, whole_arguments
from pipeline.endpoint.untrusted_json import as_text, dig
from pipeline.faults import InvalidRow

Part = dict[str, Any]

_AUDIO = {"wav": "audio/wav", "mp3": "audio/mpeg"}
_MIME_TYPES = {
    "png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg", "webp": "image/webp", "gif": "image/gif",
    "heic": "image/heic", "heif": "image/heif", "pdf": "application/pdf", "txt": "text/plain", "md": "text/plain",
    "csv": "text/csv", "html": "text/html", "wav": "audio/wav", "mp3": "audio/mpeg", "flac": "audio/flac",
    "ogg": "audio/ogg", "m4a": "audio/mp4", "mp4": "video/mp4", "mov": "video/quicktime", "webm": "video/webm",
    "mpeg": "video/mpeg", "mpg": "video/mpeg", "avi": "video/x-msvideo", "wmv": "video/x-ms-wmv",
}  # fmt: skip
_ANY_IMAGE = "image/*"
"""What a URL without a known suffix holds, as the compatible endpoint assumes it."""

_LEVELS = {"low": "MEDIA_RESOLUTION_LOW", "high": "MEDIA_RESOLUTION_HIGH"}


def contents_of(messages: Sequence[Mapping[str, Any]]) -> tuple[list[Part], list[Part], set[str]]:
    """The parts of the system instruction, the contents, and the resolutions that images ask for.

    Consecutive messages of one role become one content. Raises `InvalidRow` for what Gemini has no form for.
    """
    system: list[Part] = []
    contents: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    resolutions: set[str] = set()
    for number, message in enumerate(messages):
        at = f"messages[{number}]"
        role, parts = message.get("role"), _parts(message, at, resolutions)
        if role in ("system", "developer"):
            system += parts
            continue
        if role == "assistant":
            parts = _said_by_model(message, parts, names, at)
        elif role in ("tool", "function"):
            parts = [_result(message, parts, names, at)]
        elif role != "user":
            raise InvalidRow(f"{at} has the role {role!r}: use system, user, assistant or tool")
        native = "model" if role == "assistant" else "user"
        if contents and contents[-1]["role"] == native:
            contents[-1]["parts"] += parts
        elif parts:
            contents.append({"role": native, "parts": parts})
    if not contents:
        raise InvalidRow("the request has no message of a user, without which no batch can ask it")
    return system, contents, resolutions


def _parts(message: Mapping[str, Any], at: str, resolutions: set[str]) -> list[Part]:
    content = message.get("content")
    if content is None and message.get("role") in ("assistant", "function"):
        return []
    if isinstance(content, str):
        return [{"text": content}] if content or message.get("role") != "assistant" else []
    if not isinstance(content, list):
        raise InvalidRow(f"{at}.content must be a text or a list of parts")
    return [_part(part, f"{at}.content[{number}]", resolutions) for number, part in enumerate(content)]


def _part(part: object, at: str, resolutions: set[str]) -> Part:
    if isinstance(part, str):
        return {"text": part}
    kind = part.get("type") if isinstance(part, dict) else None
    translated = _PARTS.get(kind) if isinstance(kind, str) else None
    if not isinstance(part, dict) or translated is None:
        raise InvalidRow(f"{at} is of the type {kind!r}, which no batch takes: use text, image_url or input_audio")
    detail = dig(part.get("image_url"), "detail")
    if isinstance(detail, str) and detail in _LEVELS:
        resolutions.add(_LEVELS[detail])
    return {**translated(part, at), **({"thought": True} if is_thought(part) else {}), **_signature(part)}


def _text(part: Mapping[str, Any], at: str) -> Part:
    text = part.get(part["type"])
    if not isinstance(text, str):
        raise InvalidRow(f"{at} has no text")
    return {"text": text}


def _image(part: Mapping[str, Any], at: str) -> Part:
    inner = part.get("image_url")
    url = inner.get("url") if isinstance(inner, dict) else inner
    if not isinstance(url, str) or not url:
        raise InvalidRow(f"{at}.image_url has no url")
    return _of_url(url, at, _ANY_IMAGE)


def _audio(part: Mapping[str, Any], at: str) -> Part:
    data, form = dig(part, "input_audio", "data"), dig(part, "input_audio", "format")
    if not isinstance(data, str) or not data:
        raise InvalidRow(f"{at}.input_audio has no data")
    mime_type = _AUDIO.get(form, form) if isinstance(form, str) and form else None
    if data.startswith(("data:", "gs://", "https://", "http://")):
        return _of_url(data, at, mime_type or "audio/wav", declared=mime_type)
    if mime_type is None:
        raise InvalidRow(f"{at}.input_audio has no format")
    return {"inlineData": {"mimeType": mime_type, "data": data}}


_PARTS: Mapping[str, Callable[[Mapping[str, Any], str], Part]] = {
    "text": _text,
    "refusal": _text,
    "image_url": _image,
    "input_audio": _audio,
}


def _of_url(url: str, at: str, default: str, declared: str | None = None) -> Part:
    if url.startswith("data:"):
        return _of_data_url(url, at)
    scheme, _, rest = url.partition("://")
    if scheme not in {"gs", "https", "http"} or not rest:
        raise InvalidRow(f"{at} names a file that is neither at gs:// nor at https://, nor a data: URL")
    suffix = PurePosixPath(rest.partition("?")[0].partition("#")[0]).suffix.lstrip(".").lower()
    return {"fileData": {"mimeType": declared or _MIME_TYPES.get(suffix, default), "fileUri": url}}


def _of_data_url(url: str, at: str) -> Part:
    """https://www.rfc-editor.org/rfc/rfc2397: text/plain, and percent-encoded, unless it says otherwise."""
    head, comma, data = url[5:].partition(",")
    mime_type, *parameters = head.split(";")
    if not comma:
        raise InvalidRow(f"{at}: a data: URL is written data:MIME;base64,DATA")
    if "base64" not in parameters:
        data = base64.b64encode(unquote_to_bytes(data)).decode()
    else:
        try:
            base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            raise InvalidRow(f"{at}: the data: URL is not base64") from None
    return {"inlineData": {"mimeType": mime_type or "text/plain", "data": data}}


def _said_by_model(message: Mapping[str, Any], parts: list[Part], names: dict[str, str], at: str) -> list[Part]:
    """A message of the model: its parts and calls, with the thought signatures where Gemini had put them."""
    if is_thought(message):
        parts = [{**part, "thought": True} for part in parts]
    made = []
    for call in calls_in(message):
        arguments = whole_arguments(call.arguments)
        if not call.name or not is_object(arguments):
            raise InvalidRow(f"{at}: a tool call needs a name, and arguments that are a JSON object")
        names[call.id] = call.name
        made.append({"functionCall": {"name": call.name, "args": _on_one_line(arguments)}, **_signature(call.raw)})
    own = _signature(message)
    if own and parts and not made:
        parts = [*parts[:-1], {**parts[-1], **own}]
    elif own and made and "thoughtSignature" not in made[0]:
        made[0] |= own
    return parts + made


def _result(message: Mapping[str, Any], parts: Sequence[Part], names: Mapping[str, str], at: str) -> Part:
    """The result of a call, whose name the compatible endpoint knows by its id."""
    name = names.get(as_text(message.get("tool_call_id")) or "") or as_text(message.get("name"))
    if not name:
        raise InvalidRow(f"{at} is the result of no call of an earlier message: check its tool_call_id")
    text = "\n".join(part["text"] for part in parts if "text" in part)
    response: Any = _on_one_line(text) if is_object(text) else {"output": text}
    extra = dig(message, "extra_content", "google", "parts")
    inner = [part for part in parts if "text" not in part] + (extra if isinstance(extra, list) else [])
    return {"functionResponse": {"name": name, "response": response, **({"parts": inner} if inner else {})}}


def _on_one_line(json: str) -> orjson.Fragment:
    """JSON unchanged, with all digits of its numbers; a line break between its values would end the line of a batch."""
    return orjson.Fragment(json.replace("\n", " ").replace("\r", " "))


def _signature(thing: Mapping[str, Any]) -> Part:
    signature = dig(thing, "extra_content", "google", "thought_signature")
    return {"thoughtSignature": signature} if isinstance(signature, str) and signature else {}
