"""The way to an endpoint: one aiohttp session, the SDK's `http_client`; what goes wrong on it becomes a fault here.

It sends every request once. Whoever asks again counts that as a request, waits its turn and is bounded, and nobody else
may: a call that is repeated out of sight is paid out of sight.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from weakref import WeakKeyDictionary

import aiohttp
import httpx2
import yarl
from aiohttp.http_exceptions import ContentEncodingError

from pipeline.endpoint.address import chat_url
from pipeline.endpoint.network import CA_VARIABLES, Proxy, proxy_for, tls_context
from pipeline.endpoint.redaction import redact_secret_bytes, redact_tokens
from pipeline.faults import Unavailable, Unparsable

MAX_BODY = 16 * 2**20
"""Bytes of an answer, inflated, beyond which it is given up."""

MAX_HEADER = 64 * 2**10
"""Bytes of a header of an answer: gateways add policies longer than aiohttp's 8,190."""

KEEPALIVE_S = 75.0

IDLE_S = 1.0
"""How long a kept connection was idle, at least, when its end is taken for the server's tidying up.

Servers count the time that they keep a connection in whole seconds; one that ends sooner was ended for its request.
"""

ROUND_TRIP_S = 0.1
"""Within what time of the sending the end of such a connection shows: it is on its way when the request leaves."""

DNS, REFUSED, UNREACHABLE, TLS, PROXY = "dns", "refused", "unreachable", "tls", "proxy"
TIMEOUT, CLOSED, RESET, CUT, NO_HTTP, STALE = "timeout", "closed", "reset", "cut", "no http", "stale"
"""What `Unavailable.cause` may be.

`STALE`: a kept connection was found closed by its server, which has not seen the request; see
https://www.rfc-editor.org/rfc/rfc9112.html#section-9.3.1.
"""

NO_BYTES = httpx2.ByteStream(b"")

_HEADERS = ("date", "retry-after", "retry-after-ms", "x-request-id")
"""What is handed on of an answer's headers, as far as it is ASCII.

Never its encoding, which aiohttp has undone, nor its type: the SDK would decode an error by any codec named there.
"""


class Transport(httpx2.AsyncClient):
    """The SDK's HTTP client: requests go straight to one aiohttp session.

    No redirects are followed, bodies are capped at `MAX_BODY`, and what goes wrong on the way is raised as our faults.
    Making one raises `UsageError` when the environment's proxy or certificate authorities cannot be used.
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

    async def __aenter__(self) -> Self:
        self._connector = _Connector(
            self._clock,
            limit=self._connections,
            keepalive_timeout=KEEPALIVE_S,
            ttl_dns_cache=300,
            ssl=self._tls or True,
        )
        # The deadline of an attempt is the caller's: a total here would be a second one.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=60.0)
        self._session = aiohttp.ClientSession(
            connector=self._connector,
            timeout=timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
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
        """The whole answer, its bytes under `extensions["content"]`; or with `stream` one that is still coming in.

        Headers and content of the request are taken from its extensions, too. It goes to our one address, whatever
        URL it bears. Raises `Unavailable` when no answer arrived, `Unparsable` when it is too large.
        """
        answer = await self._begun(request)
        body = _Body(answer)
        if 200 <= answer.status < 300:
            if stream:
                return httpx2.Response(answer.status, request=request, stream=body)
            whole = {"content": await body.whole()}
            return httpx2.Response(answer.status, request=request, stream=NO_BYTES, extensions=whole)
        # An error is read at once: the SDK makes an exception of it.
        found = [(name, answer.headers.get(name, "")) for name in _HEADERS]
        headers = [(name, value) for name, value in found if value and value.isascii()]
        # Before anything reads it: the rest of a secret of which half was taken for another is not known any more.
        content = redact_secret_bytes(await body.whole(), _secret_of(request))
        return httpx2.Response(answer.status, headers=headers, request=request, content=content)

    async def _begun(self, request: httpx2.Request) -> aiohttp.ClientResponse:
        """An answer of which the head has come."""
        if self._session is None or self._connector is None:
            raise RuntimeError("the transport is not open")
        sending = _Sending()
        _SENDING.set(sending)
        proxy = self._proxy
        try:
            return await self._session.request(
                request.method,
                self._address,
                data=request.extensions["content"],
                headers=request.extensions["headers"],
                allow_redirects=False,
                proxy=None if proxy is None else proxy.url,
                # aiohttp makes a Proxy-Authorization of it, where the proxy and nobody else reads it.
                proxy_headers={"Authorization": proxy.authorization} if proxy and proxy.authorization else None,
            )
        except (aiohttp.ClientError, OSError) as error:
            fault = lost(error, proxy)
            if _is_unanswered(error) and sending.was_stale(self._clock()):
                fault.cause = STALE
                self._connector.distrust()
            raise fault from error


@dataclass(slots=True)
class _Sending:
    """What a call goes out on: since when the connection had been idle, if it was a kept one, and when it left."""

    idle_since: float | None = None
    left_at: float = 0.0

    def was_stale(self, now: float) -> bool:
        """Whether the connection ended as those do that their server has closed while they were idle."""
        if self.idle_since is None:
            return False
        return self.left_at - self.idle_since >= IDLE_S and now - self.left_at <= ROUND_TRIP_S


_SENDING: ContextVar[_Sending] = ContextVar("sending")


class _Connector(aiohttp.TCPConnector):
    """Connections of which it is known since when they are idle."""

    def __init__(self, clock: Callable[[], float], **options: Any) -> None:
        super().__init__(**options)
        self._now = clock
        self._idle_since: WeakKeyDictionary[object, float] = WeakKeyDictionary()
        self._distrusted = float("-inf")
        """Until when a connection must have been used, not to be taken for closed."""

    def distrust(self) -> None:
        """A connection was found closed by its server: those that have been idle for as long are not used either."""
        self._distrusted = self._now() - IDLE_S

    async def connect(self, *arguments: Any, **options: Any) -> aiohttp.connector.Connection:
        """A connection for a call, which is told how long it had been idle."""
        while True:
            connection = await super().connect(*arguments, **options)
            idle_since = self._idle_since.get(connection.protocol)
            if idle_since is None or idle_since > self._distrusted:
                break
            connection.close()
        sending = _SENDING.get()
        sending.idle_since, sending.left_at = idle_since, self._now()
        protocol = connection.protocol
        connection.add_callback(lambda: self._idle_since.update({protocol: self._now()}))
        return connection


class _Body(httpx2.AsyncByteStream):
    """The bytes of an answer, as they come, up to `MAX_BODY` of them inflated."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        while chunk := await self._next():
            size += len(chunk)
            self._require_bounded(size)
            yield chunk

    async def _next(self) -> bytes:
        """What has come in since; nothing at the end."""
        try:
            return await self._answer.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            raise lost(error) from error

    def _require_bounded(self, size: int) -> None:
        if size > MAX_BODY:
            raise Unparsable(f"the answer is larger than {MAX_BODY // 2**20} MB", http_status=self._answer.status)

    async def whole(self) -> bytes:
        """All of them; the connection then goes back to the pool, or is closed when something went wrong."""
        size, chunks = 0, []
        try:
            while chunk := await self._next():
                size += len(chunk)
                self._require_bounded(size)
                chunks.append(chunk)
            return b"".join(chunks)
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Gives the connection back when all was read, and closes it otherwise."""
        self._answer.release() if self._answer.content.at_eof() else self._answer.close()


class _NoTransport(httpx2.AsyncBaseTransport):
    """In place of httpx2's own connection pool, which is never used."""


def lost(error: Exception, proxy: Proxy | None = None) -> Unavailable:
    """The fault that an error of aiohttp's stands for, which says in plain words what did not work."""
    cause, said = _cause(error, proxy)
    fault = Unavailable(f"no whole answer: {redact_tokens(said)[:300]}")
    fault.cause = cause
    return fault


def _cause(error: Exception, proxy: Proxy | None) -> tuple[str, str]:
    """A word for machines and a sentence for people, without `str` of aiohttp's errors: it may hold addresses whole."""
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return PROXY, f"the proxy {_named(proxy)} refused the connection: {error.status} {error.message}"
    nameless = isinstance(error, aiohttp.ClientConnectorDNSError)
    if isinstance(error, aiohttp.ClientProxyConnectionError) or (nameless and proxy is not None):
        return PROXY, f"the proxy {_named(proxy)} cannot be reached: {_reason(error)}"
    return _unconnected(error) if isinstance(error, aiohttp.ClientConnectorError) else _broken_off(error)


def _unconnected(error: aiohttp.ClientConnectorError) -> tuple[str, str]:
    place = f"{error.host}:{error.port}"
    match error:
        case aiohttp.ClientConnectorDNSError():
            return DNS, f"the name {error.host} cannot be resolved (DNS): {_reason(error)}"
        case aiohttp.ClientConnectorCertificateError():
            return TLS, f"the certificate of {place} is not trusted: {_certificate(error.certificate_error)}"
        case aiohttp.ClientSSLError():
            return TLS, f"{place} makes no TLS connection: {_reason(error)}"
        case aiohttp.ClientConnectorError() if error.os_error.errno == errno.ECONNREFUSED:
            return REFUSED, f"{place} refused the connection: nothing listens there"
        case aiohttp.ClientConnectorError() if error.os_error.errno == errno.ETIMEDOUT:
            return TIMEOUT, f"{place} did not take the connection in time"
        case _:
            return UNREACHABLE, f"{place} cannot be reached: {_reason(error)}"


def _broken_off(error: Exception) -> tuple[str, str]:
    match error:
        case TimeoutError():
            return TIMEOUT, "no connection in time"
        case aiohttp.ServerDisconnectedError():
            return CLOSED, "the connection was closed without a whole answer"
        case aiohttp.ClientOSError() | ConnectionError():
            return RESET, f"the connection was lost: {_reason(error)}"
        case aiohttp.ClientPayloadError() if isinstance(error.__cause__, ContentEncodingError):
            return NO_HTTP, "the answer is not encoded as its Content-Encoding says"
        case aiohttp.ClientPayloadError():
            return CUT, "the connection was closed within the answer"
        case aiohttp.ClientResponseError():
            return NO_HTTP, f"what came is no HTTP: {error.message}"
        case _:
            return CUT, f"the connection was lost: {_reason(error)}"


def _certificate(error: Exception) -> str:
    reason = getattr(error, "verify_message", "") or str(error)
    return f"{reason} (the authorities to trust can be named in {' or '.join(CA_VARIABLES[::2])})"


def _reason(error: Exception) -> str:
    """The reason that the system gives."""
    inner = getattr(error, "os_error", error)
    if isinstance(inner, ssl.SSLError):
        return inner.reason or "the handshake failed"
    if isinstance(inner, OSError) and inner.errno and not isinstance(inner, socket.gaierror):
        return os.strerror(inner.errno)  # asyncio's own words for it are a call that failed
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror
    return type(inner).__name__


def _is_unanswered(error: Exception) -> bool:
    """Whether the connection ended before a byte of the answer."""
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return isinstance(error.message, str)
    return isinstance(error, aiohttp.ClientOSError | aiohttp.ClientConnectionResetError)


def _secret_of(request: httpx2.Request) -> str:
    """The token that the request bears."""
    secret: str = request.extensions["headers"].get("Authorization", "")
    return secret.removeprefix("Bearer ")


def _named(proxy: Proxy | None) -> str:
    return "of the environment" if proxy is None else proxy.url
