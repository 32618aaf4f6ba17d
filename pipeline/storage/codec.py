"""Entries as bytes: how the journal and the kept replies store the result of a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from zlib import crc32

import orjson

from pipeline import faults
from pipeline.data import Entry, Reply, Usage
from pipeline.faults import Fault


def encode(entry: Entry) -> tuple[bytes, bytes]:
    """An entry as its two columns: our metadata as JSON, and the text received, byte for byte.

    Text of rows is in the second one only: the body, and the transcript after it; or a fault's message, after the body
    of the row's last reply, if there was one. The first one ends with a checksum of both: SQLite has none of its pages,
    and a bit that flips in an answer would make another answer of it.
    """
    known, said = _parted(entry)
    return b"%b%b%d}" % (known[:-1], _CHECKSUM, crc32(said, crc32(known))), said


_CHECKSUM = b',"crc32":'


def _parted(entry: Entry) -> tuple[bytes, bytes]:
    if isinstance(entry, Reply):
        known, said = _encoded(entry)
        return orjson.dumps(known), said
    message = entry.message.encode("utf-8", "replace")  # it may quote a lone surrogate
    known = {"fault": type(entry).__name__, "http_status": entry.http_status}
    if not isinstance(entry.reply, Reply):
        return orjson.dumps(known), message
    reply, said = _encoded(entry.reply)
    return orjson.dumps({**known, "message": len(message), "reply": reply}), said + message


def decode(meta: bytes, said: bytes) -> Entry:
    """The entry that `encode` wrote, also before it had a checksum. Raises `ValueError` when it is damaged."""
    content, signed, checksum = meta.rpartition(_CHECKSUM)
    if signed:
        meta = content + b"}"
        if checksum != b"%d}" % crc32(said, crc32(meta)):
            raise ValueError("it does not have the checksum that it was written with")
    try:
        return _entry(orjson.loads(meta), said)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _entry(known: dict[str, Any], said: bytes) -> Entry:
    if "fault" not in known:
        return _decoded(known, said)
    _require_kinds(known)
    size, kind = known.get("message", len(said)), getattr(faults, known["fault"])
    if not issubclass(kind, Fault) or not 0 <= size <= len(said):
        raise ValueError(f"{known['fault']} is not a fault, or is truncated")
    fault: Fault = kind(said[len(said) - size :].decode(), http_status=known["http_status"])
    if "reply" in known:
        fault.reply = _decoded(known["reply"], said[: len(said) - size])
    return fault


def _require_kinds(known: dict[str, Any]) -> None:
    for name, value in known.items():
        if name in _KINDS and type(value) not in _KINDS[name]:
            raise ValueError(f"{name} has an invalid value")


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
    _require_kinds(known)
    size = known.pop("transcript")
    if not 0 <= (size or 0) <= len(said):
        raise ValueError("it is shorter than its transcript")
    body, transcript = (said, None) if size is None else (said[: len(said) - size], said[len(said) - size :].decode())
    for name in ("usage", "saved"):
        if counts := known.get(name):
            known[name] = _usage(counts)
    return Reply(body, transcript=transcript, **known)


_NOTHING = Usage()

_COUNT: frozenset[type] = frozenset({int, type(None)})
_NUMBER: frozenset[type] = frozenset({int, float, type(None)})
_KINDS: Mapping[str, frozenset[type]] = {
    "http_status": _COUNT,
    "attempts": _COUNT,
    "finished_at": _COUNT,
    "transcript": _COUNT,
    "latency_s": _NUMBER,
    "first_token_s": _NUMBER,
    "cost_usd": _NUMBER,
    "saved_usd": _NUMBER,
    "location": frozenset({str, type(None)}),
}
"""The types allowed for the fields of an entry; a missing field counts as None."""


def _usage(counts: list[int]) -> Usage:
    if not _COUNT.issuperset(map(type, counts)):
        raise ValueError("tokens are counted in whole numbers")
    return Usage(*counts)


def _counts(usage: Usage) -> list[int]:
    return [usage.input, usage.output, usage.reasoning, usage.cached]
