"""Entries as bytes: how the journal and the kept replies store what became of a row."""

from __future__ import annotations

from typing import Any

import orjson

from pipeline import faults
from pipeline.data import Entry, Reply, Usage
from pipeline.faults import Fault


def encode(entry: Entry) -> tuple[bytes, bytes]:
    """An entry as its two columns: what we know of it as JSON, and what others said, as it came.

    Text of rows is in the second one only: the body, and the transcript after it; or a fault's message.
    """
    if isinstance(entry, Reply):
        transcript = (entry.transcript or "").encode()
        known: dict[str, Any] = {
            "usage": entry.usage and _counts(entry.usage),
            "attempts": entry.attempts,
            "latency_s": entry.latency_s,
            "first_token_s": entry.first_token_s,
            "finished_at": entry.finished_at,
            "location": entry.location,
            "cost_usd": entry.cost_usd,
            "transcript": None if entry.transcript is None else len(transcript),
        }
        if entry.from_cache or entry.saved_usd or entry.saved != _NOTHING:
            known |= {"from_cache": entry.from_cache, "saved": _counts(entry.saved), "saved_usd": entry.saved_usd}
        return orjson.dumps(known), entry.body + transcript if transcript else entry.body
    message = entry.message.encode("utf-8", "replace")  # it may quote half a surrogate pair
    return orjson.dumps({"fault": type(entry).__name__, "http_status": entry.http_status}), message


def decode(meta: bytes, said: bytes) -> Entry:
    """The entry that `encode` wrote."""
    known = orjson.loads(meta)
    if "fault" in known:
        kind = getattr(faults, known["fault"])
        fault: Fault = kind(said.decode(), http_status=known["http_status"])
        return fault
    size = known.pop("transcript")
    body, transcript = (said, None) if size is None else (said[: len(said) - size], said[len(said) - size :].decode())
    counts = {name: Usage(*known[name]) for name in ("usage", "saved") if known.get(name)}
    return Reply(body, **{**known, **counts, "transcript": transcript})


_NOTHING = Usage()


def _counts(usage: Usage) -> list[int]:
    return [usage.input, usage.output, usage.reasoning, usage.cached]
