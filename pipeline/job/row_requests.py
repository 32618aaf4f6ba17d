"""Requests that rows bring along: a `messages` column, or OpenAI's batch format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from pipeline.endpoint.redaction import quoted
from pipeline.faults import InvalidRow, UsageError

_BATCH_URLS = ("/v1/chat/completions", "/chat/completions")


def request_columns(available: Sequence[str], model: str) -> list[str]:
    """The columns that rows' own requests are in. Raises `UsageError` if there are none, or no `model` can be known."""
    if not {"body", "messages"} & set(available):
        raise UsageError(
            f"the job has no `user` prompt, and the input has no `messages` or `body` column "
            f"(its columns: {', '.join(available)}): give the job a prompt"
        )
    if not model and "body" not in available:
        raise UsageError("rows with `messages` name no model: give one with --model")
    return [name for name in ("body", "messages", "method", "url") if name in available]


def request_of(values: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The request of a row; `model`, if given, overrides the row's. Raises `InvalidRow` when it has none to send."""
    body = _json_value(values.get("body"))
    if body is None:
        body = {"messages": _json_value(values.get("messages"))}
    else:
        _refuse_other_calls(values)
    if not isinstance(body, dict) or not isinstance(body.get("messages"), list) or not body["messages"]:
        raise InvalidRow("the row carries no request: `messages` must be a list with at least one message")
    if not (model or body.get("model")):
        raise InvalidRow("neither the row nor the job names a model: give one with --model")
    _require_writable(body)
    return {**body, "model": model} if model else body


def _refuse_other_calls(values: Mapping[str, Any]) -> None:
    """Rejects other endpoints in OpenAI's batch format; in other inputs `url` and `method` are plain data."""
    url, method = values.get("url"), values.get("method")
    if url not in (None, *_BATCH_URLS) or str(method or "POST").upper() != "POST":
        other = f"{quoted(str(method or 'POST'))} {quoted(str(url))}"
        raise InvalidRow(f"only POST {_BATCH_URLS[0]} can be asked, not {other}")


def _require_writable(body: Mapping[str, Any]) -> None:
    """Raises `InvalidRow` for a row's own request that cannot be sent: policies rely on its messages and JSON."""
    for number, message in enumerate(body["messages"]):
        if not isinstance(message, dict):
            raise InvalidRow(f"the row's request is not one: messages[{number}] is not an object")
    try:
        orjson.dumps(body)
    except TypeError as error:
        raise InvalidRow(f"the row's request cannot be written as JSON: {error}") from None


def _json_value(value: object) -> Any:
    """Requests in Parquet, and nested values of mixed types, are stored as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise InvalidRow("the row's request is not JSON") from None
