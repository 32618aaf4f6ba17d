"""The reply cache: reuses answers of earlier runs, so that the same request is not paid for twice."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import anyio
import orjson
from anyio import to_thread

from pipeline.data import Ask, Reply, Request, Usage
from pipeline.faults import InvalidRow, Permanent
from pipeline.job.attachments import Attachment, content_id
from pipeline.totals.counters import Counters

_FORM = 1
"""Incremented when keys are composed differently, so that older entries no longer match."""

KeyOf = Callable[[Request], Awaitable[bytes]]


class Store(Protocol):
    """Stores replies by key: see `pipeline.storage.reply_cache`."""

    async def find(self, ordinal: int, key: bytes) -> Reply | None:
        """The reply with this key, for this row; None if there is none."""

    def hold(self, ordinal: int, key: bytes, reply: Reply) -> None:
        """Holds a reply, to be stored once the outcome of its row is known."""


def cached(ask: Ask, store: Store, key_of: KeyOf, counters: Counters, shared: SingleFlight | None = None) -> Ask:
    """Ask, unless the store has the reply to the same request.

    Identical concurrent requests are sent once: the others wait for that reply, or for the fault if the endpoint
    refuses it permanently. If it fails otherwise, the next of them is sent. A reused reply says so (`from_cache`), and
    what it cost originally. Concurrent runs with `shared` flights send once too: an answer to one of them is available
    to the others at once, before it is stored.
    """
    flights = SingleFlight() if shared is None else shared

    async def cached_ask(request: Request) -> Reply:
        key = await key_of(request)
        while (flight := flights.get(key)) is not None:
            await flight.landed.wait()
            if flight.fault is not None:
                raise type(flight.fault)(flight.fault.message, http_status=flight.fault.http_status)
            if flight.reply is not None:
                return _recalled(flight.reply, counters)
        flight = flights[key] = _Flight()
        try:
            return await _found_or_asked(request, key, flight)
        finally:
            if shared is None or flight.reply is None:
                del flights[key]
            flight.landed.set()

    async def _found_or_asked(request: Request, key: bytes, flight: _Flight) -> Reply:
        flight.reply = await store.find(request.ordinal, key)
        if flight.reply is not None:
            return _recalled(flight.reply, counters)
        try:
            flight.reply = await ask(request)
        except Permanent as fault:
            flight.fault = fault
            raise
        store.hold(request.ordinal, key, flight.reply)
        return flight.reply

    return cached_ask


class SingleFlight(dict[bytes, "_Flight"]):
    """Requests in flight, by key."""


@dataclass(slots=True)
class _Flight:
    """A request in flight, for those that wait for the same reply."""

    landed: anyio.Event = field(default_factory=anyio.Event)
    reply: Reply | None = None
    fault: Permanent | None = None


def _recalled(reply: Reply, counters: Counters) -> Reply:
    counters.cache_hits += 1
    return replace(reply, from_cache=True, saved=reply.usage or Usage(), saved_usd=reply.cost_usd or 0.0)


@dataclass(frozen=True, slots=True)
class Keys:
    """Cache keys: digests of everything that shapes the answer.

    That is the `endpoint`, the body of the request with local media replaced by their content hash, and the number of
    the repeat. The order of the top-level parameters does not matter; the order within them does, because a model
    fills in a schema in its order. Headers are left out: a tier affects price and latency, not the answer.
    """

    endpoint: str
    root: Path | None = None
    """The folder of local media."""
    repeat: int = 0

    async def of(self, request: Request) -> bytes:
        """The key of a request. Raises `InvalidRow` if the request cannot be sent."""
        payload: Mapping[str, Any] = request.payload
        if any(map(_has_attachment, payload["messages"])):
            messages = await to_thread.run_sync(_identified, payload["messages"], self.root)
            payload = {**payload, "messages": messages}
        try:
            text = orjson.dumps([_FORM, self.endpoint, self.repeat, sorted(payload.items())])
        except TypeError as error:
            raise InvalidRow(f"the request cannot be written as JSON: {error}") from None
        return hashlib.sha256(text).digest()


def _has_attachment(message: object) -> bool:
    content = message.get("content") if isinstance(message, Mapping) else None
    return isinstance(content, list) and any(isinstance(part, Attachment) for part in content)


def _identified(messages: Sequence[Mapping[str, Any]], root: Path | None) -> list[Mapping[str, Any]]:
    """The messages, with attachments replaced by their content hash."""
    return [
        {**message, "content": [_identity(part, root) for part in message["content"]]}
        if _has_attachment(message)
        else message
        for message in messages
    ]


def _identity(part: Any, root: Path | None) -> Any:
    return {"attachment": part.kind, "content": content_id(part, root)} if isinstance(part, Attachment) else part
