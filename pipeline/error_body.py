"""The faults that error bodies stand for, and hints to wait: error bodies may come wrapped in a one-element list."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from pipeline.faults import Expired, Fault, Throttled, Unavailable
from pipeline.foreign import as_integer
from pipeline.redaction import redacted
from pipeline.refusals import account_fault, grants_nothing, refusal

MAX_WAIT_S = 120.0
"""No server's hint makes us wait longer than this."""

EXCERPT = 512
"""How many bytes of an unexpected body are kept in a fault's message."""


def parse(body: bytes) -> object:
    """The JSON of a body. Raises `Unavailable` when it is none."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        raise Unavailable(
            f"the endpoint's answer is not JSON: {excerpt(body)}" if body else "the answer is empty"
        ) from None


def fault_in(document: object) -> Fault | None:
    """The fault that an error inside a 200, or inside a stream, stands for; None when there is no error."""
    error = _error_of(document)
    if error is None:
        return None
    return _fault_of(
        as_integer(error.get("code")) or 500, error, wait_hint({}, error), "the endpoint answered 200 with an error"
    )


def fault_of_status(status: int, body: bytes, headers: Mapping[str, str]) -> Fault:
    """The fault that an HTTP answer other than 2xx stands for, by its status and the fields of its error body."""
    try:
        error = _error_of(parse(body)) or {}
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


def _error_of(document: object) -> dict[str, Any] | None:
    if isinstance(document, list):
        document = document[0] if document else None
    error = document.get("error") if isinstance(document, dict) else None
    if isinstance(error, str) and error:
        return {"message": error}
    return error if isinstance(error, dict) and error else None


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
