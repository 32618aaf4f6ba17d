"""The REST API of a batch server: JSON requests and files, with our tokens, repeated while they fail in passing."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit, urlunsplit

import anyio
import httpx2
import multidict
import orjson
import yarl

from pipeline.endpoint.error_body import fault_of_status
from pipeline.endpoint.redaction import redact_secret, redact_settings
from pipeline.endpoint.token_source import TokenSource
from pipeline.endpoint.transport import NO_BYTES, Transport
from pipeline.endpoint.untrusted_json import decode
from pipeline.faults import Broken, Expired, Fault, Permanent, ProviderUnusable, Transient, Unavailable

Sleep = Callable[[float], Awaitable[None]]
Created = TypeVar("Created")

PAUSES_S = (2.0, 4.0, 8.0, 16.0, 32.0, 60.0)
"""Pauses between the tries of one request: two minutes in all."""

SETTLING_S = 10.0
"""Seconds after a lost answer to a creation, until the server's list is believed to have it: inferred."""

_REQUEST_S = 120.0
_UPLOAD_S = 3600.0
_IDLE_S = 120.0
"""The longest silence within a file that is being read."""

_MOST_FILE = 8 * 2**30
"""Maximum bytes of a result file: many times what the input may have."""


_JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class _HttpCall:
    """A request; `content` gives its body anew for each time that it is sent."""

    method: str
    path: str
    query: Mapping[str, str]
    content: Callable[[], Any]
    headers: Mapping[str, str] = field(default_factory=lambda: _JSON)
    deadline_s: float = _REQUEST_S


class BatchApi:
    """One server. Paths are relative to `base_url`, whose query is kept. No message of a fault has a secret."""

    def __init__(self, base_url: str, transport: Transport, token: TokenSource, sleep: Sleep = anyio.sleep) -> None:
        self._base = urlsplit(base_url)
        self._transport = transport
        self._token = token
        self.sleep = sleep

    async def call(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The JSON object that the server answers; empty for an empty answer.

        Repeated on 429, 5xx and lost connections: only for requests that change nothing when they arrive twice. Raises
        `Broken` after the last try, `ProviderUnusable` when access is denied, and the refusal of this request.
        """
        return await self._repeated(lambda: self.once(method, path, query=query, body=body))

    async def once(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """As `call`, but sent once, so that `Transient` is raised too. A rejected token is renewed, and sent again."""
        content = None if body is None else orjson.dumps(body)
        return _object_in(await self._whole(_HttpCall(method, path, query or {}, lambda: content)))

    async def create(
        self, path: str, body: Mapping[str, Any], adopted: Callable[[], Awaitable[Created | None]]
    ) -> dict[str, Any] | Created:
        """What the server answers to a creation, or what `adopted` finds after one whose answer was lost.

        A creation carries no identity: after each that failed in passing, `adopted` looks whether it was one, and only
        then it is sent again. Raises `Broken` after the last try, and the refusal.
        """
        for pause_s in (*PAUSES_S, None):
            try:
                return await self.once("POST", path, body=body)
            except Transient as fault:
                if pause_s is None:
                    raise _given_up(fault) from None
                await self.sleep(max(_pause_of(fault, pause_s), SETTLING_S))
            if (found := await adopted()) is not None:
                return found
        raise AssertionError("a creation ends in the loop")

    async def upload(
        self, path: str, content: Callable[[], AsyncIterable[bytes]], size: int, content_type: str
    ) -> dict[str, Any]:
        """Posts `size` bytes of this type, which `content` gives anew for each try. As `call` otherwise."""
        headers = {"Content-Type": content_type, "Content-Length": str(size)}
        posting = _HttpCall("POST", path, {}, content, headers, _UPLOAD_S)

        async def posted() -> dict[str, Any]:
            return _object_in(await self._whole(posting))

        return await self._repeated(posted)

    async def _repeated(self, request: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
        """The result of a request, repeated after `PAUSES_S` while it fails in passing."""
        for pause_s in (*PAUSES_S, None):
            try:
                return await request()
            except Transient as fault:
                if pause_s is None:
                    raise _given_up(fault) from None
                await self.sleep(_pause_of(fault, pause_s))
        raise AssertionError("a request ends in the loop")

    async def content(self, path: str) -> AsyncIterator[bytes]:
        """The bytes of a file as they arrive. After a lost connection it is read again, from where it was lost."""
        done = 0
        for pause_s in (*PAUSES_S, None):
            at = 0
            try:
                async with aclosing(self._pieces(path)) as pieces:
                    async for piece in pieces:
                        fresh = piece[max(0, done - at) :]
                        at += len(piece)
                        if fresh:
                            done += len(fresh)
                            yield fresh
            except Transient as fault:
                if pause_s is None:
                    raise _given_up(fault) from None
                await self.sleep(_pause_of(fault, pause_s))
            else:
                return

    async def _pieces(self, path: str) -> AsyncGenerator[bytes]:
        response = await self._authorized(_HttpCall("GET", path, {}, lambda: None), stream=True)
        pieces = response.aiter_raw()
        try:
            while (piece := await _next_piece(pieces)) is not None:
                yield piece
        finally:
            await response.aclose()

    async def _whole(self, call: _HttpCall) -> bytes:
        response = await self._authorized(call)
        body: bytes = response.extensions["content"]
        return body

    async def _authorized(self, call: _HttpCall, *, stream: bool = False) -> httpx2.Response:
        """The response of 2xx; a rejected token is renewed once. Raises the fault for any other."""
        token = await self._token()
        try:
            return await self._answered(call, token, stream=stream)
        except Expired:
            await self._token.renew(token)
        return await self._answered(call, await self._token(), stream=stream)

    async def _answered(self, call: _HttpCall, token: str, *, stream: bool) -> httpx2.Response:
        url = self._url(call.path, call.query)
        sent = {
            "headers": self._headers(token, call.headers),
            "content": call.content(),
            "address": yarl.URL(url, encoded=True),
            **({"max_body": _MOST_FILE} if stream else {}),
        }
        request = httpx2.Request(call.method, url, stream=NO_BYTES, extensions=sent)
        try:
            with anyio.move_on_after(call.deadline_s):
                response = await self._transport.send(request, stream=stream)
                if response.status_code < 300:
                    return response
                raise fault_of_status(response.status_code, response.content, response.headers)
            raise Unavailable(f"no answer within {call.deadline_s:g} s")
        except Fault as fault:
            fault.message = redact_settings(redact_secret(fault.message, token), self._transport.secrets)
            fault.args = (fault.message,)
            raise

    def _headers(self, token: str, own: Mapping[str, str]) -> multidict.CIMultiDict[str]:
        return multidict.CIMultiDict({**self._token.headers, **own, "Authorization": f"Bearer {token}"})

    def _url(self, path: str, query: Mapping[str, str]) -> str:
        parts = self._base
        whole = "&".join(filter(None, [parts.query, urlencode(query)]))
        return urlunsplit((parts.scheme, parts.netloc, f"{parts.path.rstrip('/')}/{path}", whole, ""))


async def _next_piece(pieces: AsyncIterator[bytes]) -> bytes | None:
    """The next bytes of a file; None at its end."""
    with anyio.move_on_after(_IDLE_S):
        return await anext(pieces, None)
    raise Unavailable(f"the file stood still for {_IDLE_S:g} s")


def _pause_of(fault: Transient, pause_s: float) -> float:
    """How long to wait after a fault, in seconds: longer if its server asks for it."""
    return max(pause_s, getattr(fault, "retry_after", None) or 0.0)


def _given_up(fault: Fault) -> Broken:
    """The fault after the last try of a request."""
    return Broken(
        f"batch prediction cannot be used now: {fault.message}; run again to go on", http_status=fault.http_status
    )


def refused(what: str, fault: Permanent) -> ProviderUnusable:
    """The fault that ends a run whose job the server refuses, which no other row would change."""
    return ProviderUnusable(f"{what} was refused: {fault.message}", http_status=fault.http_status)


def _object_in(body: bytes) -> dict[str, Any]:
    """The object in an answer. Raises `Unavailable` for anything else, as a gateway sends it."""
    if not body.strip():
        return {}
    try:
        document = decode(body)
    except ValueError:
        raise Unavailable("the answer is not JSON") from None
    if not isinstance(document, dict):
        raise Unavailable("the answer is JSON, but not an object")
    return document
