"""Gemini as an ask: `AsyncOpenAI` over aiohttp, one per process; foreign errors become faults here and nowhere else.

The cheap road through the SDK is `AsyncOpenAI.request` with ready bytes and the raw response: it walks no TypedDicts
and builds no models, yet keeps the SDK's headers, hooks and errors. `Client` builds requests as the SDK does, the part
that is the same in all of them once. `Transport` is its `http_client`; it does only what a batch needs, with the public
methods of its class.
"""

from __future__ import annotations

import socket
import time
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
import anyio
import httpx2
import multidict
import openai
import orjson
import yarl
from openai import APIError, APIStatusError, AsyncOpenAI, AsyncStream
from openai._models import FinalRequestOptions  # what the public `request` takes

from pipeline.data import Reply, Request
from pipeline.error_body import fault_in, fault_of_status
from pipeline.faults import Denied, Expired, Fault, Unavailable, Unparsable, Unusable
from pipeline.redaction import texts_of, unquoted, unsaid, unsaid_in
from pipeline.streaming import Assembly
from pipeline.tally import resent
from pipeline.token import Token
from pipeline.wire import read_completion, usage_in

MAX_BODY = 16 * 2**20
"""Bytes of an answer, inflated, beyond which it is given up."""

KEEPALIVE_S = 75.0

MOST_STALE = 16
"""How many kept connections a call may find closed before that counts as its failure."""

_NOTHING = httpx2.ByteStream(b"")

_HEADERS = ("date", "retry-after", "retry-after-ms", "x-request-id")
"""What is handed on of an answer's headers, as far as it is ASCII.

Never its encoding, which aiohttp has undone, nor its type: the SDK would decode an error by any codec named there.
"""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to ask."""

    base_url: str
    label: str

    @classmethod
    def vertex(cls, project: str, location: str, endpoint: str = "openapi") -> Target:
        """Vertex AI in a location, `global`, or a multi-region (`us`, `eu`); `endpoint` is a self-deployed one's id.

        https://cloud.google.com/vertex-ai/generative-ai/docs/start/openai
        """
        hosts = {"global": "aiplatform.googleapis.com"} | {
            region: f"aiplatform.{region}.rep.googleapis.com" for region in ("us", "eu")
        }
        host = hosts.get(location, f"{location}-aiplatform.googleapis.com")
        path = f"v1/projects/{project}/locations/{location}/endpoints/{endpoint}"
        return cls(f"https://{host}/{path}", location)

    @classmethod
    def url(cls, base_url: str) -> Target:
        """Any OpenAI-compatible server; one with a location in its path goes by that."""
        parts = urlsplit(base_url)
        _, _, after = parts.path.partition("/locations/")
        return cls(base_url.rstrip("/"), after.partition("/")[0] or parts.netloc)


class Transport(httpx2.AsyncClient):
    """The SDK's HTTP client: requests go straight to one aiohttp session.

    No redirects are followed, bodies are capped at `MAX_BODY`, and what goes wrong on the way is raised as our faults.
    """

    def __init__(self, base_url: str, connections: int) -> None:
        super().__init__(transport=_NoTransport())
        self._connections = connections
        self._address = yarl.URL(f"{base_url}/chat/completions")
        self._proxy = _proxy_of(base_url)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(
            limit=self._connections, keepalive_timeout=KEEPALIVE_S, ttl_dns_cache=300, socket_factory=_new_socket
        )
        # The deadline of an attempt is the caller's: a total here would be a second one.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=60.0)
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
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
            self._session = None

    async def send(self, request: httpx2.Request, *, stream: bool = False, **_: Any) -> httpx2.Response:
        """The whole answer, its bytes under `extensions["content"]`; or with `stream` one that is still coming in.

        Headers and content of the request are taken from its extensions, too. It goes to our one address, whatever
        URL it bears. Raises `Unavailable` when no answer arrived, `Unparsable` when it is too large.
        """
        try:
            answer = await self._begun(request)
        except (aiohttp.ClientError, OSError) as error:
            raise _lost(error) from error
        body = _Body(answer)
        if 200 <= answer.status < 300:
            if stream:
                return httpx2.Response(answer.status, request=request, stream=body)
            content = {"content": await body.whole()}
            return httpx2.Response(answer.status, request=request, stream=_NOTHING, extensions=content)
        # An error is read at once: the SDK makes an exception of it.
        found = [(name, answer.headers.get(name, "")) for name in _HEADERS]
        headers = [(name, value) for name, value in found if value and value.isascii()]
        return httpx2.Response(answer.status, headers=headers, request=request, content=await body.whole())

    async def _begun(self, request: httpx2.Request) -> aiohttp.ClientResponse:
        """An answer of which the head has come.

        A kept connection may be closed by its server while the request is on its way. That says nothing of the server:
        the request goes out again at once (https://www.rfc-editor.org/rfc/rfc9112.html#section-9.3.1).
        """
        if self._session is None:
            raise RuntimeError("the transport is not open")
        stale = 0
        while True:
            connection = _Connection()
            _CONNECTION.set(connection)
            try:
                return await self._session.request(
                    request.method,
                    self._address,
                    data=request.extensions["content"],
                    headers=request.extensions["headers"],
                    allow_redirects=False,
                    proxy=self._proxy,
                )
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                if connection.is_new or stale == MOST_STALE or not _is_unanswered(error):
                    raise
                stale += 1


class Client(AsyncOpenAI):
    """`AsyncOpenAI`, for one address and for bodies that are bytes already.

    For every request the SDK parses the address again, merges, normalizes and encodes the same headers, and asks
    whether a key, a workload's identity or a provider of its own wants to change them: that was three quarters of what
    it costs. Here the first is done once, and the second not at all, since a token is given with each request.
    """

    custom_auth = None

    def __init__(self, base_url: str, transport: Transport, headers: Mapping[str, str]) -> None:
        super().__init__(
            base_url=base_url,
            api_key="given with each request",
            max_retries=0,
            timeout=None,
            http_client=transport,
            # The SDK would name itself after the class.
            default_headers={"User-Agent": f"{AsyncOpenAI.__name__}/Python {openai.__version__}", **headers},
        )
        self._address = httpx2.URL(f"{base_url}/chat/completions")
        # Without a key the SDK would draw a random one for each request, and send none of them.
        self._posting = FinalRequestOptions.construct(method="post", url=str(self._address), idempotency_key="-")

    def options(self, body: bytes, headers: Mapping[str, str]) -> FinalRequestOptions:
        """What `request` takes to post `body`."""
        return self._posting.model_copy(update={"content": body, "headers": headers})

    async def _prepare_options(self, options: FinalRequestOptions) -> FinalRequestOptions:
        return options

    async def _prepare_request(self, request: httpx2.Request) -> None:
        pass

    async def _send_request(self, request: httpx2.Request, *, stream: bool, **_: Any) -> httpx2.Response:
        return await self._client.send(request, stream=stream)

    def _build_request(self, options: FinalRequestOptions, *, retries_taken: int = 0) -> httpx2.Request:  # noqa: ARG002 - there are no retries
        """The SDK's request, for `Transport.send`; the SDK's client for Azure overrides this, too.

        An httpx2 request with headers and a body of its own would cost a third of a call, for nobody to read.
        """
        headers = self._constant_headers.copy()
        headers.update(_texts(options.headers or {}))
        ready = {"headers": headers, "content": options.content}
        return httpx2.Request("POST", self._address, stream=_NOTHING, extensions=ready)

    @cached_property
    def _constant_headers(self) -> multidict.CIMultiDict[str]:
        return multidict.CIMultiDict(_texts(self.default_headers))


@dataclass(slots=True)
class _Connection:
    """What a call goes through: one that was kept, until a socket is made for it."""

    is_new: bool = False


_CONNECTION: ContextVar[_Connection] = ContextVar("connection")


def _new_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """The socket of a new connection, and the only sign that aiohttp makes one which costs a call nothing."""
    _CONNECTION.get().is_new = True
    family, kind, protocol, *_ = address
    return socket.socket(family, kind, protocol)


def _is_unanswered(error: aiohttp.ClientError) -> bool:
    """Whether the connection ended before a byte of the answer."""
    return not isinstance(error, aiohttp.ServerDisconnectedError) or isinstance(error.message, str)


class _Body(httpx2.AsyncByteStream):
    """The bytes of an answer, as they come, up to `MAX_BODY` of them inflated."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        try:
            async for chunk in self._answer.content.iter_any():
                size += len(chunk)
                if size > MAX_BODY:
                    raise Unparsable(
                        f"the answer is larger than {MAX_BODY // 2**20} MB", http_status=self._answer.status
                    )
                yield chunk
        except (aiohttp.ClientError, OSError) as error:
            raise _lost(error) from error

    async def whole(self) -> bytes:
        """All of them; the connection then goes back to the pool, or is closed when something went wrong."""
        try:
            return b"".join([chunk async for chunk in self])
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Gives the connection back when all was read, and closes it otherwise."""
        self._answer.release() if self._answer.content.at_eof() else self._answer.close()


class Endpoint:
    """Gemini as an ask. Use as `async with open_endpoint(...) as endpoint`."""

    def __init__(self, client: Client, token: Token, *, timeout_s: float, idle_timeout_s: float) -> None:
        self._client = client
        self._token = token
        self._timeout_s = timeout_s
        self._idle_timeout_s = idle_timeout_s

    async def ask(self, request: Request) -> Reply:
        """One call, repeated once with a renewed token when the first one's was not accepted.

        Raises `Throttled`, `Unavailable`, `Refused`, `Unparsable` or `Denied`.
        """
        try:
            body = orjson.dumps(request.payload)
        except TypeError as error:
            raise Unusable(f"the request cannot be written as JSON: {error}") from None
        for again in (False, True):
            token = await self._token()
            if again:
                resent()
            try:
                return await self._attempt(body, request, token)
            except Expired as fault:
                expired = _discreet(fault, token, request)
                await self._token.renew(token)
            except Fault as fault:
                raise _discreet(fault, token, request) from fault.__cause__
        raise Denied(f"the endpoint does not accept a fresh token either: {expired.message}", http_status=401)

    async def _attempt(self, body: bytes, request: Request, token: str) -> Reply:
        # Given with each request: the token that is renewed after a 401 must be the one that was sent, and nobody
        # waits for a token while the deadline runs.
        options = self._client.options(body, {**request.headers, "Authorization": f"Bearer {token}"})
        started = time.monotonic()
        answer, first_token_s = b"", None
        with anyio.move_on_after(self._timeout_s) as deadline:
            if request.payload.get("stream"):
                answer, first_token_at = await self._stream(options)
                first_token_s = first_token_at - started
            else:
                answer = await self._post(options)
        if deadline.cancelled_caught:
            raise Unavailable(f"no answer within {self._timeout_s:g} s")
        answer = unsaid_in(answer, token)  # or it would go into the journal, and into the dataset
        latency_s, finished_at = time.monotonic() - started, time.time_ns() // 1000
        try:
            completion = read_completion(answer)
        except Fault as fault:
            if (usage := usage_in(answer)) is not None:  # what it counts it bills
                fault.reply = Reply(answer, usage, latency_s=latency_s, finished_at=finished_at)
            raise
        return Reply(
            answer,
            usage=completion.usage,
            latency_s=latency_s,
            first_token_s=first_token_s,
            finished_at=finished_at,
            completion=completion,
            model=completion.model,
            traffic_type=completion.traffic_type,
        )

    async def _post(self, options: FinalRequestOptions) -> bytes:
        try:
            response = await self._client.request(httpx2.Response, options)
        except APIStatusError as error:
            raise _fault_of(error.response) from None
        content: bytes = response.extensions["content"]
        return content

    async def _stream(self, options: FinalRequestOptions) -> tuple[bytes, float]:
        """The body that the streamed chunks add up to, and when the first piece of it came."""
        assembly, first = Assembly(), None
        try:
            stream = await self._client.request(object, options, stream=True, stream_cls=AsyncStream[object])
            async with stream:
                async for chunk in self._impatiently(aiter(stream)):
                    if assembly.add(chunk) and first is None:
                        first = time.monotonic()
        except APIStatusError as error:
            raise _fault_of(error.response) from None
        except APIError as error:
            raise fault_in({"error": error.body}) or Unavailable(f"the stream broke: {error.message}") from None
        except (ValueError, RecursionError) as error:
            raise Unavailable(f"the stream holds something that is not JSON: {error}") from None
        try:
            return assembly.body(), first or time.monotonic()
        except TypeError as error:  # half a surrogate pair, an integer beyond 64 bits
            raise Unavailable(f"the stream holds something that cannot be kept as JSON: {error}") from None

    async def _impatiently(self, chunks: AsyncIterator[object]) -> AsyncIterator[object]:
        """The chunks, unless one is longer in coming than the idle deadline."""
        end = object()
        while True:
            chunk: object = end
            with anyio.move_on_after(self._idle_timeout_s) as idle:
                chunk = await anext(chunks, end)
            if idle.cancelled_caught:
                raise Unavailable(f"the stream stood still for {self._idle_timeout_s:g} s")
            if chunk is end:
                return
            yield chunk


@asynccontextmanager
async def open_endpoint(
    target: Target, token: Token, *, connections: int, timeout_s: float, idle_timeout_s: float = 60.0
) -> AsyncIterator[Endpoint]:
    """An endpoint whose one `AsyncOpenAI` is closed at the end of the block."""
    async with (
        Transport(target.base_url, connections) as transport,
        Client(target.base_url, transport, token.headers) as client,
    ):
        yield Endpoint(client, token, timeout_s=timeout_s, idle_timeout_s=idle_timeout_s)


class _NoTransport(httpx2.AsyncBaseTransport):
    """In place of httpx2's own connection pool, which is never used."""


def _texts(headers: Mapping[str, object]) -> dict[str, str]:
    """The headers that have a value: the SDK has another word for those that are to be left out."""
    return {name: value for name, value in headers.items() if isinstance(value, str)}


def _fault_of(response: httpx2.Response) -> Fault:
    return fault_of_status(response.status_code, response.content, response.headers)


def _discreet(fault: Fault, token: str, request: Request) -> Fault:
    """The fault, with neither the token nor what the request said in its message."""
    fault.message = unquoted(unsaid(fault.message, token), texts_of(request.payload))
    fault.args = (fault.message,)
    return fault


def _lost(error: Exception) -> Unavailable:
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return Unavailable(f"no whole answer: {said[:300]}")


def _proxy_of(base_url: str) -> str | None:
    """The proxy that the environment names for this URL (HTTPS_PROXY, NO_PROXY ...)."""
    parts = urlsplit(base_url)
    if parts.hostname is None or urllib.request.proxy_bypass(parts.hostname):
        return None
    return urllib.request.getproxies().get(parts.scheme)
