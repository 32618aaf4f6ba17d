"""Entries as bytes: how the journal and the kept replies store what became of a row."""

from __future__ import annotations

from typing import Any

import orjson

from pipeline import faults
from pipeline.data import Entry, Reply, Usage
from pipeline.faults import Fault


def encode(entry: Entry) -> tuple[bytes, bytes | None]:
    """An entry as its two columns: what we know of it as JSON, and the body as it came."""
    if isinstance(entry, Reply):
        known: dict[str, Any] = {
            "usage": _counts(entry.usage),
            "attempts": entry.attempts,
            "latency_s": entry.latency_s,
            "first_token_s": entry.first_token_s,
            "finished_at": entry.finished_at,
            "location": entry.location,
            "cost_usd": entry.cost_usd,
            "transcript": entry.transcript,
        }
        if entry.from_cache or entry.saved_usd or entry.saved != _NOTHING:
            known |= {"from_cache": entry.from_cache, "saved": _counts(entry.saved), "saved_usd": entry.saved_usd}
        return orjson.dumps(known), entry.body
    message = entry.message.encode("utf-8", "replace").decode()  # it may quote half a surrogate pair
    return orjson.dumps({"fault": type(entry).__name__, "message": message, "http_status": entry.http_status}), None


def decode(meta: bytes, body: bytes | None) -> Entry:
    """The entry that `encode` wrote."""
    known = orjson.loads(meta)
    if body is None:
        kind = getattr(faults, known["fault"])
        fault: Fault = kind(known["message"], http_status=known["http_status"])
        return fault
    counts = {name: Usage(*known[name]) for name in ("usage", "saved") if name in known}
    return Reply(body, **{**known, **counts})


_NOTHING = Usage()


def _counts(usage: Usage) -> list[int]:
    return [usage.input, usage.output, usage.reasoning, usage.cached]
