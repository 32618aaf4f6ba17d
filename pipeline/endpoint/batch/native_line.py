"""The line of a request to Gemini in an input file of Vertex AI."""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from pipeline.data import Request
from pipeline.endpoint.batch.job_names import require_key
from pipeline.endpoint.batch.native_answer import KEY_LABEL
from pipeline.endpoint.batch.native_request import native_request
from pipeline.faults import InvalidRow


def native_line(key: str, request: Request, labels: Mapping[str, str]) -> bytes:
    """The line of a request, with these labels. Raises `InvalidRow`.

    The key is in it twice. Whether lines come back with `key` is documented for embeddings alone, and that the request
    comes back whole, with its labels, was seen.
    """
    require_key(key)
    native = native_request(request.payload, {**labels, KEY_LABEL: key})
    try:
        return orjson.dumps({"key": key, "request": native}) + b"\n"
    except TypeError as error:
        raise InvalidRow(f"the request cannot be written as JSON: {error}") from None
