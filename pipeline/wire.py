"""The endpoint's JSON, read into our values: completions, error bodies, hints to wait.

The shapes are those of Vertex AI's OpenAI-compatible endpoint and of OpenAI's own: errors may come wrapped in a
one-element list, a 200 may hold no completion at all, and every part of a completion may be missing or null.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from pipeline.data import Usage
from pipeline.faults import Denied, Expired, Fault, Refused, Throttled, Unavailable
from pipeline.redaction import redacted

MAX_WAIT_S = 120.0
"""No server's hint makes us wait longer than this."""

EXCERPT = 512
"""How many bytes of an unexpected body are kept in a fault's message."""

_INT64 = 2**63


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that the model asks for; `arguments` is JSON text, as it came."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Media:
    """Bytes that the model made."""

    mime_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """One choice of a completion. `refusal` says why there is none, when the server does."""

    text: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    media: tuple[Media, ...] = ()
    finish_reason: str | None = None
    refusal: str | None = None
    has_message: bool = True


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole response body: its answers in the order of their index, and what it cost."""

    answers: tuple[Answer, ...]
    id: str | None
    model: str | None
    usage: Usage
    traffic_type: str | None
    blocked: str | None


def read_completion(body: bytes) -> Completion:
    """The completion that `body` holds.

    Raises `Unavailable` when the body is not one (cut short, not JSON, an HTML page), and the fault that an error
    body stands for when a 200 carries one.
    """
    document = _parse(body)
    fault = fault_in(document)
    if fault is not None:
        raise fault
    if not isinstance(document, dict):
        raise Unavailable(f"the endpoint answered 200 with something that is no completion: {excerpt(body)}")
    choices = document.get("choices")
    found = [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []
    if len(found) > 1:
        found.sort(key=lambda choice: _int(choice.get("index")) or 0)
    usage = document.get("usage")
    return Completion(
        answers=tuple([_answer(choice) for choice in found]),
        id=_text(document.get("id")),
        model=_text(document.get("model")),
        usage=read_usage(usage),
        traffic_type=_text(_dig(usage, "extra_properties", "google", "traffic_type")),
        blocked=_blocked(document),
    )


def fault_in(document: object) -> Fault | None:
    """The fault that an error inside a 200, or inside a stream, stands for; None when there is no error."""
    error = _error_of(document)
    if error is None:
        return None
    return _fault_of(
        _int(error.get("code")) or 500, error, wait_hint({}, error), "the endpoint answered 200 with an error"
    )


def read_usage(usage: object) -> Usage:
    """Tokens in disjoint kinds.

    Vertex leaves reasoning out of `completion_tokens`, OpenAI puts it in; `total_tokens` tells which it was.
    """
    if not isinstance(usage, dict):
        return Usage()
    prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    reasoning = _count(_dig(usage, "completion_tokens_details", "reasoning_tokens"))
    cached = _count(_dig(usage, "prompt_tokens_details", "cached_tokens"))
    inside = reasoning and reasoning <= completion and _count(usage.get("total_tokens")) == prompt + completion
    return Usage(prompt, completion - reasoning if inside else completion, reasoning, cached)


def fault_of_status(status: int, body: bytes, headers: Mapping[str, str]) -> Fault:
    """The fault that an HTTP answer other than 2xx stands for, by its status and the fields of its error body."""
    try:
        error = _error_of(_parse(body)) or {}
    except Unavailable:
        error = {}
    said = f"the endpoint answered {status}" + ("" if error else f": {excerpt(body)}" if body else " with no body")
    return _fault_of(status, error, wait_hint(headers, error), said)


def wait_hint(headers: Mapping[str, str], error: Mapping[str, Any]) -> float | None:
    """Seconds that the server asks us to wait: `retry-after-ms`, `retry-after` (seconds or a date), or RetryInfo."""
    hints = (
        _seconds(headers.get("retry-after-ms"), 1000.0),
        _seconds(headers.get("retry-after"), 1.0) or _until(headers.get("retry-after"), headers.get("date")),
        _retry_info(error),
    )
    given = [hint for hint in hints if hint is not None]
    return min(max(given), MAX_WAIT_S) if given else None


def excerpt(body: bytes) -> str:
    """The first bytes of an unexpected body, on one line, with no control character and no secret in it."""
    return _told(body[: 2 * EXCERPT].decode("utf-8", "replace"))


def _told(text: str) -> str:
    """The beginning of a server's own words; redacted before it is cut, so that no half of a secret is left."""
    return redacted(text[: 2 * EXCERPT])[:EXCERPT]


def _fault_of(status: int, error: Mapping[str, Any], wait: float | None, said: str) -> Fault:
    message = error.get("message")
    text = _told(f"{status} {error.get('status') or ''}".strip() + f": {message}") if message else said
    match status:
        case 429:
            return Throttled(text, retry_after=wait)
        case 401:
            return Expired(text, http_status=401)
        case 402 | 403 | 404 | 405 | 407 | 410:
            return Denied(text, http_status=status)
        case 408 | 409 | 425 | 499:
            return Unavailable(text, http_status=status, retry_after=wait)
        case _ if status >= 500:
            return Unavailable(text, http_status=status, retry_after=wait)
        case _ if 300 <= status < 400:
            return Denied(f"{text} (redirects are not followed; check the base URL)", http_status=status)
        case _:
            return Refused(text, http_status=status)


def _parse(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        raise Unavailable(
            f"the endpoint's answer is not JSON: {excerpt(body)}" if body else "the answer is empty"
        ) from None


def _error_of(document: object) -> dict[str, Any] | None:
    if isinstance(document, list):
        document = document[0] if document else None
    error = document.get("error") if isinstance(document, dict) else None
    if isinstance(error, str) and error:
        return {"message": error}
    return error if isinstance(error, dict) and error else None


def _answer(choice: Mapping[str, Any]) -> Answer:
    message = choice.get("message")
    finish_reason = _text(choice.get("finish_reason"))
    if not isinstance(message, dict):
        return Answer(finish_reason=finish_reason, has_message=False)
    text, reasoning = _content(message)
    return Answer(
        text=text,
        reasoning=reasoning,
        tool_calls=tuple(_tool_calls(message.get("tool_calls"))),
        media=tuple(_media(message)),
        finish_reason=finish_reason,
        refusal=_text(message.get("refusal")),
    )


def _content(message: Mapping[str, Any]) -> tuple[str | None, str | None]:
    content = message.get("content")
    reasoning = _text(message.get("reasoning_content")) or _text(message.get("reasoning"))
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if isinstance(part, dict) and _text(part.get("text")))
    return _text(content), reasoning


def _tool_calls(calls: object) -> list[ToolCall]:
    if not isinstance(calls, list):
        return []
    read = []
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            read.append(
                ToolCall(
                    _text(call.get("id")) or "",
                    _text(function.get("name")) or "",
                    _arguments(function.get("arguments")),
                )
            )
    return read


def _arguments(value: object) -> str:
    """Arguments are JSON text; some servers send the object itself."""
    return orjson.dumps(value).decode() if isinstance(value, dict) else _text(value) or "{}"


def _media(message: Mapping[str, Any]) -> list[Media]:
    """Image output arrives as `message.audio.data`, with the MIME type in Google's extra content."""
    audio = message.get("audio")
    data = _text(audio.get("data")) if isinstance(audio, dict) else None
    if data is None:
        return []
    mime_type = _text(_dig(audio, "extra_content", "google", "mime_type")) or "application/octet-stream"
    try:
        return [Media(mime_type, base64.b64decode(data, validate=True))]
    except ValueError:
        return []


def _blocked(document: Mapping[str, Any]) -> str | None:
    for name in ("promptFeedback", "prompt_feedback"):
        reason = _dig(document, name, "blockReason") or _dig(document, name, "block_reason")
        if isinstance(reason, str):
            return reason
    return None


def _retry_info(error: Mapping[str, Any]) -> float | None:
    details = error.get("details")
    for detail in details if isinstance(details, list) else []:
        if isinstance(detail, dict) and str(detail.get("@type", "")).endswith("google.rpc.RetryInfo"):
            return _seconds(str(detail.get("retryDelay", "")).removesuffix("s"), 1.0)
    return None


def _seconds(text: str | None, unit: float) -> float | None:
    try:
        value = float(text or "") / unit
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None


def _until(date: str | None, now: str | None) -> float | None:
    """Seconds from the server's own `Date` (or, without one, our clock) to an HTTP date."""
    try:
        target = parsedate_to_datetime(date or "")
        start = parsedate_to_datetime(now) if now else datetime.now(UTC)
        return max(0.0, (target - start).total_seconds())
    except (TypeError, ValueError, OverflowError):
        return None


def _dig(value: object, *names: str) -> object:
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _int(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _count(value: object) -> int:
    number = _int(value) or 0
    return number if 0 <= number < _INT64 else 0
