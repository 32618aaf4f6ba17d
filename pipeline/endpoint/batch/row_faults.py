"""Why a row of a batch has no answer: from a status text, an error object, or an error inside a sentence."""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

from pipeline.endpoint.error_body import fault_of_status
from pipeline.endpoint.untrusted_json import as_integer, as_position, as_text, dig, whole_text
from pipeline.faults import Fault, ProviderUnusable, Refused, Transient, Unavailable

_STATUSES = {
    "CANCELLED": 499, "UNKNOWN": 500, "INVALID_ARGUMENT": 400, "DEADLINE_EXCEEDED": 504, "NOT_FOUND": 404,
    "PERMISSION_DENIED": 403, "RESOURCE_EXHAUSTED": 429, "FAILED_PRECONDITION": 400, "ABORTED": 409,
    "OUT_OF_RANGE": 400, "UNIMPLEMENTED": 501, "INTERNAL": 500, "UNAVAILABLE": 503, "DATA_LOSS": 500,
    "UNAUTHENTICATED": 401, "BAD REQUEST": 400, "TOO MANY REQUESTS": 429,
}  # fmt: skip
"""The words by which a status begins that has no error in it, by HTTP status."""

_STATUS_WORD = re.compile(r"[A-Z]{3,}(?:_[A-Z]+)*|bad request|too many requests", re.IGNORECASE)
_STATUS_NUMBER = re.compile(r"\b[45]\d\d\b")
_LONGEST_STATUS = 20_000


def fault_in_status(status: str) -> Fault:
    """The fault in a row's status: a sentence, often with an error body inside it, or the name of a code.

    One of unknown meaning is `Unavailable`: asked online, the endpoint itself says what it is.
    """
    status = status[:_LONGEST_STATUS]
    body = _error_inside(status)
    if body is not None:
        code = as_integer(dig(body, "error", "code")) or _status_of(as_text(dig(body, "error", "status")) or status)
        return of_row(fault_of_status(code if 400 <= code <= 599 else 500, orjson.dumps(body, default=float), {}))
    error = {"error": {"message": status}}
    return of_row(fault_of_status(_status_of(status), orjson.dumps(error), {}))


def of_row(fault: Fault) -> Fault:
    """The fault of one row of a batch: nothing that a single row says ends a run.

    A refusal that may concern all rows is `suspect`; an expired token, which is not ours, is worth another try.
    """
    if isinstance(fault, ProviderUnusable):
        return Refused(fault.message, http_status=fault.http_status, suspect=True, kind=fault.kind)
    if isinstance(fault, Transient) and fault.http_status == 401:
        return Unavailable(fault.message, http_status=401)
    return fault


def fault_in(error: object) -> Fault:
    """The fault in a row's error: an object, or a status text."""
    if isinstance(error, str):
        return fault_in_status(error)
    code = as_position(dig(error, "code")) or 0
    if not 400 <= code <= 599:
        code = _status_of(as_text(dig(error, "status")) or "")
    return of_row(fault_of_status(code, orjson.dumps({"error": _flat(error)}, default=float), {}))


def _flat(error: object) -> dict[str, object]:
    """The plain fields of an error, whose others may be nested too deeply to be written."""
    fields = error.items() if isinstance(error, dict) else ()
    numbers = {name: value for name, value in fields if isinstance(value, int | float) and abs(value) < 2**63}
    return numbers | {name: whole_text(value) for name, value in fields if isinstance(value, str)}


def _error_inside(status: str) -> dict[str, Any] | None:
    """The error body inside a sentence: `RESOURCE_EXHAUSTED error occurred: {"error": {"code": 429, ...}}`."""
    at = status.find("{")
    while at >= 0:
        try:
            found, _ = json.JSONDecoder().raw_decode(status, at)
        except (ValueError, RecursionError):
            return None
        inner = dig(found, "error")
        if isinstance(inner, dict):
            return {"error": _flat(inner)}
        if isinstance(found, dict) and ("message" in found or "code" in found):
            return {"error": _flat(found)}
        at = status.find("{", at + 1)
    return None


def _status_of(text: str) -> int:
    """The HTTP status that a text names by its word or number; 500 if it names none."""
    words = (_STATUSES.get(found[0].upper()) for found in _STATUS_WORD.finditer(text[:500]))
    known = next((status for status in words if status is not None), None)
    if known is not None:
        return known
    number = _STATUS_NUMBER.search(text[:500])
    return int(number[0]) if number else 500
