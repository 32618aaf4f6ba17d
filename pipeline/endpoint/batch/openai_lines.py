"""Lines of OpenAI's batch format: requests as they are, and responses with their HTTP status.

https://platform.openai.com/docs/guides/batch. Open models on Vertex AI take the same lines; that their results have the
same form is inferred.
"""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from pipeline.data import Request
from pipeline.endpoint.batch.backend import BatchAnswer
from pipeline.endpoint.batch.job_names import require_key
from pipeline.endpoint.batch.row_faults import fault_in, of_row
from pipeline.endpoint.error_body import fault_of_status
from pipeline.endpoint.untrusted_json import as_name, as_position, dig, json_text, read
from pipeline.faults import InvalidRow, Unavailable

URL = "/v1/chat/completions"

_DROPPED = frozenset({"stream", "stream_options"})


def openai_line(key: str, request: Request) -> bytes:
    """The line of a request. Raises `InvalidRow` if it cannot be written."""
    require_key(key)
    body = {name: value for name, value in request.payload.items() if name not in _DROPPED}
    try:
        return orjson.dumps({"custom_id": key, "method": "POST", "url": URL, "body": body}) + b"\n"
    except TypeError as error:
        raise InvalidRow(f"the request cannot be written as JSON: {error}") from None


def read_openai_line(line: bytes) -> BatchAnswer:
    """The answer in a line. Never raises: a line that cannot be read is an answer without a key, with its fault."""
    try:
        return read(line, lambda document: _answer(document, line))
    except ValueError:
        # Not quoted: it may have texts of a row.
        return BatchAnswer(None, None, Unavailable(f"a result line of {len(line)} bytes is not JSON"), line)


def _answer(document: object, line: bytes) -> BatchAnswer:
    key = as_name(dig(document, "custom_id")) or None
    if not isinstance(document, Mapping):
        return BatchAnswer(None, None, Unavailable("a result line is JSON, but not an object"), line)
    error, response = document.get("error"), document.get("response")
    if error and isinstance(error, str | dict):
        return BatchAnswer(key, None, fault_in(error), line)
    body = dig(response, "body")
    written = json_text(body) if isinstance(body, dict | list) else None
    status = as_position(dig(response, "status_code"))
    if status is not None and not 200 <= status < 300:
        fault = of_row(fault_of_status(status, (written or "").encode(), {}))
        return BatchAnswer(key, None, fault, line)
    if written is None:
        return BatchAnswer(key, None, Unavailable("the batch gave this row no response"), line)
    return BatchAnswer(key, written.encode(), None, line)
