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
    """The entry that `encode` wrote. Raises `ValueError` when it is damaged."""
    try:
        known = orjson.loads(meta)
        wrong = [name for name, kinds in _KINDS.items() if not isinstance(known.get(name), kinds)]
        if wrong:
            raise ValueError(f"{wrong[0]} has no value that it can have")
        return _decoded(known, said)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _decoded(known: dict[str, Any], said: bytes) -> Entry:
    if "fault" in known:
        kind = getattr(faults, known["fault"])
        if not issubclass(kind, Fault):
            raise ValueError(f"{known['fault']} is no fault")
        fault: Fault = kind(said.decode(), http_status=known["http_status"])
        return fault
    size = known.pop("transcript")
    if not 0 <= (size or 0) <= len(said):
        raise ValueError("it is shorter than its transcript")
    body, transcript = (said, None) if size is None else (said[: len(said) - size], said[len(said) - size :].decode())
    counts: dict[str, Any] = {name: _usage(known[name]) for name in ("usage", "saved") if known.get(name)}
    return Reply(body, **{**known, **counts, "transcript": transcript})


_NOTHING = Usage()

_COUNT: tuple[type, ...] = (int, type(None))
_NUMBER: tuple[type, ...] = (int, float, type(None))
_KINDS = {
    "http_status": _COUNT,
    "attempts": _COUNT,
    "finished_at": _COUNT,
    "transcript": _COUNT,
    "latency_s": _NUMBER,
    "first_token_s": _NUMBER,
    "cost_usd": _NUMBER,
    "saved_usd": _NUMBER,
    "location": (str, type(None)),
}
"""What the fields of an entry may be, where they are there at all."""


def _usage(counts: list[int]) -> Usage:
    if not all(isinstance(count, int | None) for count in counts):
        raise ValueError("tokens are counted in whole numbers")
    return Usage(*counts)


def _counts(usage: Usage) -> list[int]:
    return [usage.input, usage.output, usage.reasoning, usage.cached]
