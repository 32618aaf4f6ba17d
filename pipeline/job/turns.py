"""The answered calls of one row, identified by their requests: what repairs and tools have asked so far."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import orjson

from pipeline.data import Reply, Request
from pipeline.job.attachments import Attachment

Results = list[dict[str, Any]]
"""The messages that return tool results to the model."""


FIRST_REQUEST = b""
"""The digest of an answer to a row's first request that was not at hand when the answer came, as in a batch: a run asks
the same request of a row at every start, or is refused."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One answered call of a row, by the digest of its request; `results` is set once the tools it called have run."""

    digest: bytes
    reply: Reply
    results: Results | None = None


def digest_of(request: Request) -> bytes:
    """Identifies a request of a row: a digest of its whole body, with attachments by their location or bytes."""
    try:
        written = orjson.dumps(request.payload, default=_named, option=orjson.OPT_PASSTHROUGH_DATACLASS)
    except TypeError:  # such a request cannot be sent either
        written = b""
    return hashlib.sha256(written).digest()


def _named(value: object) -> Any:
    if isinstance(value, Attachment):
        return [value.kind, value.column, value.value if isinstance(value.value, str) else _hashed(value.value)]
    raise TypeError(type(value).__name__)


def _hashed(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
