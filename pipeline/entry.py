"""Entries as bytes: how the journal and the kept replies store what became of a row."""

from __future__ import annotations

from typing import Any

import orjson

from pipeline import faults
from pipeline.data import Entry, Reply, Usage
from pipeline.faults import Fault


def encode(entry: Entry) -> tuple[bytes, bytes]:
    """An entry as its two columns: what we know of it as JSON, and what others said, as it came.

    Text of rows is in the second one only: the body, and the transcript after it; or a fault's message, after the body
    of the row's last reply, if there was one.
    """
    if isinstance(entry, Reply):
        known, said = _encoded(entry)
        return orjson.dumps(known), said
    message = entry.message.encode("utf-8", "replace")  # it may quote half a surrogate pair
    known = {"fault": type(entry).__name__, "http_status": entry.http_status}
    if not isinstance(entry.reply, Reply):
        return orjson.dumps(known), message
    reply, said = _encoded(entry.reply)
    return orjson.dumps({**known, "message": len(message), "reply": reply}), said + message


def decode(meta: bytes, said: bytes) -> Entry:
    """The entry that `encode` wrote."""
    known = orjson.loads(meta)
    if "fault" not in known:
        return _decoded(known, said)
    size = known.get("message", len(said))
    kind = getattr(faults, known["fault"])
    fault: Fault = kind(said[len(said) - size :].decode(), http_status=known["http_status"])
    if "reply" in known:
        fault.reply = _decoded(known["reply"], said[: len(said) - size])
    return fault


def _encoded(reply: Reply) -> tuple[dict[str, Any], bytes]:
    transcript = (reply.transcript or "").encode()
    known: dict[str, Any] = {
        "usage": reply.usage and _counts(reply.usage),
        "attempts": reply.attempts,
        "latency_s": reply.latency_s,
        "first_token_s": reply.first_token_s,
        "finished_at": reply.finished_at,
        "location": reply.location,
        "cost_usd": reply.cost_usd,
        "transcript": None if reply.transcript is None else len(transcript),
    }
    if reply.from_cache or reply.saved_usd or reply.saved != _NOTHING:
        known |= {"from_cache": reply.from_cache, "saved": _counts(reply.saved), "saved_usd": reply.saved_usd}
    return known, reply.body + transcript if transcript else reply.body


def _decoded(known: dict[str, Any], said: bytes) -> Reply:
    size = known.pop("transcript")
    body, transcript = (said, None) if size is None else (said[: len(said) - size], said[len(said) - size :].decode())
    counts = {name: Usage(*known[name]) for name in ("usage", "saved") if known.get(name)}
    return Reply(body, **{**known, **counts, "transcript": transcript})


_NOTHING = Usage()


def _counts(usage: Usage) -> list[int]:
    return [usage.input, usage.output, usage.reasoning, usage.cached]
