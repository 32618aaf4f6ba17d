"""Faults from error bodies, and hints to wait. Error bodies may be wrapped in a one-element list."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from pipeline.endpoint.account_errors import account_fault, grants_nothing, refusal
from pipeline.endpoint.redaction import redact_tokens
from pipeline.endpoint.untrusted_json import as_integer, as_name, as_text, decode, decoded, objects
from pipeline.faults import Expired, Fault, Throttled, Unavailable

MAX_WAIT_S = 120.0
"""Maximum wait in seconds, whatever a server's hint says."""

EXCERPT = 512
"""Bytes of an unexpected body that a fault's message quotes."""


def fault_in(document: object) -> Fault | None:
    """The fault for an error inside a 200 or a stream; None when there is no error."""
    error = _error_of(document)
    if error is None:
        return None
    code = next((code for name in _CODED_IN if (code := _http_status(error.get(name)))), 500)
    return _fault_of(code, error, wait_hint({}, error), "the endpoint answered 200 with an error")


def fault_of_status(status: int, body: bytes, headers: Mapping[str, str]) -> Fault:
    """The fault for an HTTP response other than 2xx, by its status and the fields of its error body."""
    try:
        error = _error_of(decode(body)) or {}
    except ValueError:
        error = {}
    wait = wait_hint(headers, error)
    if error or not body:
        said = f"the endpoint answered {status}" + ("" if error else " with no body")
        return _fault_of(status, error, wait, said)
    beginning = excerpt(body)
    said = f"the endpoint answered {status}: {beginning}"
    known = account_fault(status, {"message": beginning}, said) if status != 401 else None
    return known or _fault_of(status, {}, wait, said)


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
    """The first bytes of an unexpected body, on one line, without control characters and secrets."""
    return _server_text(decoded(body[: 2 * EXCERPT]))


def _server_text(text: str) -> str:
    """The beginning of a server's text; redacted before it is cut, so that no partial secret is left."""
    return redact_tokens(text[: 2 * EXCERPT])[:EXCERPT]


def _fault_of(status: int, error: Mapping[str, Any], wait: float | None, said: str) -> Fault:
    message = error.get("message")
    text = _server_text(f"{status} {error.get('status') or ''}".strip() + f": {message}") if message else said
    if 300 <= status < 400:
        text = f"{text} (redirects are not followed; check the base URL)"
    if status != 401 and (account := account_fault(status, error, text)) is not None:
        return account
    match status:
        case 429 if not grants_nothing(error):
            return Throttled(text, retry_after=wait)
        case 401:
            return Expired(text, http_status=401)
        case 408 | 409 | 425 | 499:
            return Unavailable(text, http_status=status, retry_after=wait)
        case _ if status >= 500:
            return Unavailable(text, http_status=status, retry_after=wait)
        case _:
            return refusal(status, error, text)


def unwrapped(document: object) -> object:
    """A document without the wrapper of some servers: a list, as in Google's errors, or an object with one name."""
    if isinstance(document, list):
        document = document[0] if document else None
    if isinstance(document, dict) and "choices" not in document and "error" not in document:
        inner = next((document[name] for name in _WRAPPERS if name in document), None)
        if isinstance(inner, dict) and ("choices" in inner or "error" in inner):
            return inner
    return document


_WRAPPERS = ("response", "result", "data", "body")
_TOLD_IN = ("message", "detail", "msg", "error_message", "error_msg", "error_description", "errors", "title")
_CODED_IN = ("code", "status_code", "statusCode", "http_status", "error_code", "status", "type")
_HTTP_STATUSES = {
    # https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto
    "ABORTED": 409, "ALREADY_EXISTS": 409, "CANCELLED": 499, "DATA_LOSS": 500, "DEADLINE_EXCEEDED": 504,
    "FAILED_PRECONDITION": 400, "INTERNAL": 500, "INVALID_ARGUMENT": 400, "NOT_FOUND": 404, "OUT_OF_RANGE": 400,
    "PERMISSION_DENIED": 403, "RESOURCE_EXHAUSTED": 429, "UNAUTHENTICATED": 401, "UNAVAILABLE": 503,
    "UNIMPLEMENTED": 501, "UNKNOWN": 500,
    # https://platform.openai.com/docs/guides/error-codes and the types of compatible servers
    "AUTHENTICATION_ERROR": 401, "CONTEXT_LENGTH_EXCEEDED": 400, "INSUFFICIENT_QUOTA": 429,
    "INTERNAL_SERVER_ERROR": 500, "INVALID_API_KEY": 401, "INVALID_REQUEST_ERROR": 400, "MODEL_NOT_FOUND": 404,
    "NOT_FOUND_ERROR": 404,
    "OVERLOADED_ERROR": 503, "PERMISSION_ERROR": 403, "RATE_LIMIT_ERROR": 429, "RATE_LIMIT_EXCEEDED": 429,
    "SERVER_ERROR": 500, "SERVICE_UNAVAILABLE": 503, "TOO_MANY_REQUESTS": 429,
}  # fmt: skip
"""The HTTP statuses for codes in words."""


def _error_of(document: object) -> dict[str, Any] | None:
    """The error in a document, or the document itself if it is one; None otherwise.

    Its `message` and `status` are always text or None; everything else is unchanged. An error is under `error`, or is
    the document itself if that has no choices: `{"object": "error"}`, `{"detail": ...}`,
    `{"message": ..., "code": ...}`.
    """
    document = unwrapped(document)
    if not isinstance(document, dict):
        return None
    error = document.get("error")
    if error and isinstance(error, str | list | dict):
        found = _typed(error)
        if found is not None:
            return found
    if objects(document.get("choices")):
        return None
    if error or document.get("object") == "error" or any(document.get(name) for name in _TOLD_IN):
        return _typed(document) or {}
    return None


def _typed(error: str | list[Any] | dict[str, Any]) -> dict[str, Any] | None:
    """An error with its message and status typed; None when it contains no information."""
    if isinstance(error, str):
        return {"message": error}
    if isinstance(error, list):
        return next((found for item in error if isinstance(item, str | dict) and (found := _typed(item))), None)
    if not any(error.values()):
        return None
    message = next((words for name in _TOLD_IN if (words := _words(error.get(name)))), None)
    status = as_text(error.get("status"))
    known = {"message": message, "status": status}
    return {**error, **known} if status is not None else {"http_status": error.get("status"), **error, **known}


def _words(value: object, levels: int = 3) -> str:
    """The text in a server's message, which may be a list or an object."""
    if isinstance(value, list) and levels:
        return "; ".join(filter(None, [_words(item, levels - 1) for item in value[:5]]))
    if isinstance(value, dict) and levels:
        return next((words for name in _TOLD_IN if (words := _words(value.get(name), levels - 1))), "")
    return as_name(value)


def _http_status(value: object) -> int | None:
    """The HTTP status for an error code: a number, digits in text, or a status in words."""
    if isinstance(value, str):
        bare = value.strip()
        value = int(bare) if bare.isdecimal() and len(bare) == 3 else _HTTP_STATUSES.get(bare.upper())
    elif isinstance(value, float) and value.is_integer():
        value = int(value)
    number = as_integer(value)
    return number if number is not None and 400 <= number <= 599 else None


def _retry_info(error: Mapping[str, Any]) -> float | None:
    for detail in objects(error.get("details")):
        if (as_text(detail.get("@type")) or "").endswith("google.rpc.RetryInfo"):
            return _seconds((as_text(detail.get("retryDelay")) or "").removesuffix("s"), 1.0)
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
