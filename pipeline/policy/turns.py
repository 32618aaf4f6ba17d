"""The answered calls of one row, each known by its request: what repairs and tools have asked so far."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import orjson

from pipeline.data import Reply, Request
from pipeline.job.attachments import Attachment

Results = list[dict[str, Any]]
"""The messages that hand back what tools have said."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One answered call of a row, by the digest of its request; `results` once the tools that it called have run."""

    digest: bytes
    reply: Reply
    results: Results | None = None


def digest_of(request: Request) -> bytes:
    """What tells one request of a row from another: all of its body, attachments by their place or their bytes."""
    try:
        written = orjson.dumps(request.payload, default=_named, option=orjson.OPT_PASSTHROUGH_DATACLASS)
    except TypeError:  # it cannot be sent either
        written = b""
    return hashlib.sha256(written).digest()


def _named(value: object) -> Any:
    if isinstance(value, Attachment):
        return [value.kind, value.column, value.value if isinstance(value.value, str) else _hashed(value.value)]
    raise TypeError(type(value).__name__)


def _hashed(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
