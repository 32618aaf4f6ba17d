"""The HTTP transport: one aiohttp session, used as the SDK's `http_client`; its errors become faults here.

It sends every request once. Only the queue may repeat one, because it counts requests and limits them: a call that is
repeated here would be paid for without being counted.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self
from weakref import WeakKeyDictionary

import aiohttp
import httpx2
import yarl

from pipeline.endpoint.address import chat_url
from pipeline.endpoint.body_decoder import ACCEPTED, BodyDecoder, Undecodable
from pipeline.endpoint.connection_errors import NO_HTTP, STALE, is_unanswered, lost
from pipeline.endpoint.network import proxy_for, tls_context
from pipeline.endpoint.redaction import redact_secret_bytes, redact_settings
from pipeline.faults import Unavailable, Unparsable

MAX_BODY = 16 * 2**20
"""Maximum decompressed bytes of an answer; a larger one is abandoned."""

MAX_HEADER = 64 * 2**10
"""Maximum bytes of a response header: gateways add policies longer than aiohttp's limit of 8,190."""

KEEPALIVE_S = 75.0

IDLE_S = 1.0
"""Minimum idle time in seconds after which a closed connection counts as closed by the server for being idle.

Servers measure keep-alive in whole seconds; a connection that closes sooner was closed because of its request.
"""

ROUND_TRIP_S = 0.1
"""Seconds after sending within which such a close is seen: it is already on its way when the request is sent."""

NO_BYTES = httpx2.ByteStream(b"")

_HEADERS = ("date", "retry-after", "retry-after-ms", "x-request-id")
"""The response headers that are passed on, if they are ASCII.

Never the encoding, which aiohttp has undone, nor the type: the SDK would decode an error with any codec named there.
"""


class Transport(httpx2.AsyncClient):
    """The SDK's HTTP client: requests go straight to one aiohttp session.

    Redirects are not followed, bodies are limited to `MAX_BODY`, and transport errors are raised as our faults. The
    constructor raises `UsageError` when the environment's proxy or certificate authorities cannot be used.
    """

    def __init__(self, base_url: str, connections: int, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(transport=_NoTransport())
        self._connections = connections
        self._clock = clock
        self._address = yarl.URL(chat_url(base_url))
        self._proxy = proxy_for(base_url)
        self._tls = tls_context() if self._address.scheme == "https" else None
        self._session: aiohttp.ClientSession | None = None
        self._connector: _Connector | None = None

    @property
    def secrets(self) -> tuple[str, ...]:
        """What signs in to the proxy, which may repeat it: no answer and no message may contain it."""
        return () if self._proxy is None else self._proxy.secrets

    async def __aenter__(self) -> Self:
        self._connector = _Connector(
            self._clock,
            limit=self._connections,
            keepalive_timeout=KEEPALIVE_S,
            ttl_dns_cache=300,
            ssl=self._tls or True,
        )
        # The caller sets the deadline of an attempt: a total timeout here would be a second one.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=60.0)
        self._session = aiohttp.ClientSession(
            connector=self._connector,
            timeout=timeout,
            # No cookies: a proxy's or a balancer's would be sent with calls of all other rows.
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept-Encoding": ACCEPTED},
            auto_decompress=False,  # bodies are decoded here: see `pipeline.endpoint.body_decoder`
            max_line_size=MAX_HEADER,
            max_field_size=MAX_HEADER,
        )
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = self._connector = None

    async def send(self, request: httpx2.Request, *, stream: bool = False, **_: Any) -> httpx2.Response:
        """The whole answer, its bytes under `extensions["content"]`; or, with `stream`, one that is still arriving.

        Headers and content of the request are also in its extensions. It is sent to our one address, whatever its URL,
        unless another one of the same server is under `address` there; `max_body` replaces `MAX_BODY`. Raises
        `Unavailable` when no answer arrived, `Unparsable` when it is too large.
        """
        answer = await self._begun(request)
        body = _Body(answer, request.extensions.get("max_body", MAX_BODY))
        if 200 <= answer.status < 300:
            if stream:
                return httpx2.Response(answer.status, request=request, stream=body)
            whole = {"content": await body.whole()}
            return httpx2.Response(answer.status, request=request, stream=NO_BYTES, extensions=whole)
        # An error is read at once: the SDK turns it into an exception.
        found = [(name, answer.headers.get(name, "")) for name in _HEADERS]
        headers = [(name, value) for name, value in found if value and value.isascii()]
        # Before anything else reads it: if half of a secret were redacted as another one, the rest would be missed.
        content = redact_secret_bytes(await body.whole_error(), _secret_of(request))
        if self.secrets:
            text = content.decode("utf-8", "surrogateescape")
            content = redact_settings(text, self.secrets).encode("utf-8", "surrogateescape")
        return httpx2.Response(answer.status, headers=headers, request=request, content=content)

    def _checked(self, address: yarl.URL | None) -> yarl.URL:
        """The address of a request. A token goes to no other server than the one that it is for."""
        if address is not None and address.origin() != self._address.origin():
            raise RuntimeError("a request to another server")
        return self._address if address is None else address

    async def _begun(self, request: httpx2.Request) -> aiohttp.ClientResponse:
        """An answer whose headers have arrived."""
        if self._session is None or self._connector is None:
            raise RuntimeError("the transport is not open")
        # A context variable, because aiohttp hands nothing of ours to its connector.
        sending = _Sending()
        _SENDING.set(sending)
        proxy = self._proxy
        try:
            return await self._session.request(
                request.method,
                self._checked(request.extensions.get("address")),
                data=request.extensions["content"],
                headers=request.extensions["headers"],
                # A redirect would take the token to another host.
                allow_redirects=False,
                proxy=None if proxy is None else proxy.url,
                # aiohttp turns it into a Proxy-Authorization header, which only the proxy sees.
                proxy_headers={"Authorization": proxy.authorization} if proxy and proxy.authorization else None,
            )
        except (aiohttp.ClientError, OSError) as error:
            fault = lost(error, proxy)
            # Only such a call is repeated at once and for free: the server cannot have seen, nor billed, it.
            if is_unanswered(error) and sending.was_stale(self._clock()):
                fault.cause = STALE
                # Those connections are as old: the other calls need not find it out one by one.
                self._connector.distrust()
            raise fault from error


@dataclass(slots=True)
class _Sending:
    """A call being sent: since when its connection had been idle, if it was a kept one, and when the call was sent."""

    idle_since: float | None = None
    left_at: float = 0.0

    def was_stale(self, now: float) -> bool:
        """Whether the connection ended like one that the server closed while it was idle."""
        if self.idle_since is None:
            return False
        return self.left_at - self.idle_since >= IDLE_S and now - self.left_at <= ROUND_TRIP_S


_SENDING: ContextVar[_Sending] = ContextVar("sending")


class _Connector(aiohttp.TCPConnector):
    """A connector that records since when connections have been idle."""

    def __init__(self, clock: Callable[[], float], **options: Any) -> None:
        super().__init__(**options)
        self._now = clock
        self._idle_since: WeakKeyDictionary[object, float] = WeakKeyDictionary()
        self._distrusted = float("-inf")
        """Connections last used before this time count as closed."""

    def distrust(self) -> None:
        """Records that a server had closed a connection: those that were idle as long are not used either."""
        self._distrusted = self._now() - IDLE_S

    async def connect(self, *arguments: Any, **options: Any) -> aiohttp.connector.Connection:
        """A connection for a call; records how long it had been idle."""
        while True:
            connection = await super().connect(*arguments, **options)
            # By the protocol, since aiohttp makes a new `Connection` for each call over the same socket.
            idle_since = self._idle_since.get(connection.protocol)
            # A new connection, or one that was in use since a server was seen to close idle ones.
            if idle_since is None or idle_since > self._distrusted:
                break
            connection.close()
        sending = _SENDING.get()
        sending.idle_since, sending.left_at = idle_since, self._now()
        connection.add_callback(partial(self._is_idle, connection.protocol))
        return connection

    def _is_idle(self, protocol: object) -> None:
        """Records that a call's connection has nothing to do from now on."""
        self._idle_since[protocol] = self._now()


class _Body(httpx2.AsyncByteStream):
    """The decompressed bytes of an answer as they arrive, up to `most`."""

    def __init__(self, answer: aiohttp.ClientResponse, most: int) -> None:
        self._answer = answer
        self._most = most
        self._decoder = BodyDecoder(answer.headers.get("Content-Encoding", ""))
        self._size = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while chunk := await self._next():
            yield chunk

    async def _next(self) -> bytes:
        """The content that has arrived since the last call; empty at the end."""
        while piece := await self._received():
            content = self._decoded(piece)
            self._size += len(content)
            if self._size > self._most:
                raise Unparsable(f"the answer is larger than {self._most // 2**20} MB", http_status=self._answer.status)
            if content:
                return content
        return self._decoded(b"")

    def _decoded(self, piece: bytes) -> bytes:
        """What a piece adds to the content; an empty one ends it."""
        try:
            return self._decoder.feed(piece, self._most - self._size) if piece else self._decoder.end()
        except Undecodable as error:
            fault = Unavailable(f"no whole answer: {error}")
            fault.cause = NO_HTTP
            raise fault from None

    async def _received(self) -> bytes:
        try:
            return await self._answer.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            raise lost(error) from error

    async def whole(self) -> bytes:
        """All bytes; the connection then returns to the pool, or is closed on an error."""
        chunks = []
        try:
            while chunk := await self._next():
                chunks.append(chunk)
            return b"".join(chunks)
        finally:
            await self.aclose()

    async def whole_error(self) -> bytes:
        """All bytes of an error's body, or words in their place if it cannot be decoded: its status says enough."""
        try:
            return await self.whole()
        except Unavailable as fault:
            if fault.cause != NO_HTTP:
                raise
            return fault.message.encode()

    async def aclose(self) -> None:
        """Returns the connection to the pool if everything was read, else closes it."""
        # A connection with unread bytes cannot be used again: they would be taken for the next answer.
        self._answer.release() if self._answer.content.at_eof() else self._answer.close()


class _NoTransport(httpx2.AsyncBaseTransport):
    """In place of httpx2's own connection pool, which is never used."""


def _secret_of(request: httpx2.Request) -> str:
    """The token in the request."""
    secret: str = request.extensions["headers"].get("Authorization", "")
    return secret.removeprefix("Bearer ")
