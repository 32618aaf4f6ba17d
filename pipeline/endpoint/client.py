"""Gemini as an ask: `AsyncOpenAI` over aiohttp, one per process; foreign errors become faults here and nowhere else.

The cheap path through the SDK is `AsyncOpenAI.request` with encoded bytes and the raw response: it traverses no
TypedDicts and builds no models, yet keeps the SDK's headers, hooks and errors. `Client` builds requests as the SDK
does, but builds the constant part only once. Its `http_client` is `pipeline.endpoint.transport.Transport`, which does
only what a batch needs.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import anyio
import httpx2
import multidict
import orjson

from pipeline.data import Reply, Request
from pipeline.endpoint.address import base_url_of, chat_url
from pipeline.endpoint.error_body import fault_of_status
from pipeline.endpoint.finish_reasons import worth_another_try
from pipeline.endpoint.public_client import PublicClient, Sender, hands_on
from pipeline.endpoint.redaction import (
    redact_quotes,
    redact_secret,
    redact_secret_bytes,
    redact_settings,
    user_texts,
)
from pipeline.endpoint.sdk import VERSION, APIStatusError, AsyncOpenAI, AsyncStream
from pipeline.endpoint.stream import Arriving, whole_body
from pipeline.endpoint.token_source import TokenSource
from pipeline.endpoint.transport import NO_BYTES, Transport
from pipeline.endpoint.wire import read_completion, usage_in
from pipeline.faults import Expired, Fault, InvalidRow, ProviderUnusable, Unavailable

if TYPE_CHECKING:
    from pipeline.endpoint.sdk import FinalRequestOptions

_DRAIN_S = 0.1
"""Seconds to wait for the rest of a stream after its last event, as the SDK does."""


@dataclass(frozen=True, slots=True)
class EndpointAddress:
    """Where requests are sent."""

    base_url: str
    label: str

    @classmethod
    def vertex(cls, project: str, location: str, endpoint: str = "openapi") -> EndpointAddress:
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
    def url(cls, base_url: str) -> EndpointAddress:
        """Any OpenAI-compatible server; if its path contains a location, that is its name.

        Raises `UsageError` when it is not a base URL, without repeating it.
        """
        base_url = base_url_of(base_url)
        parts = urlsplit(base_url)
        _, _, after = parts.path.partition("/locations/")
        return cls(base_url, after.partition("/")[0] or parts.netloc)


class Client(AsyncOpenAI):
    """`AsyncOpenAI`, for one address and for bodies that are already bytes.

    For every request, the SDK parses the address again, merges, normalizes and encodes the same headers, and checks
    whether a key, a workload identity or a custom provider changes them: three quarters of its cost. Here the former is
    done once, and the latter not at all, since each request carries a token.
    """

    custom_auth = None

    def __init__(self, base_url: str, transport: httpx2.AsyncClient, headers: Mapping[str, str]) -> None:
        from pipeline.endpoint.sdk import FinalRequestOptions  # other releases may have moved it: see `hands_on`

        super().__init__(
            base_url=base_url,
            api_key="given with each request",
            max_retries=0,
            timeout=None,
            http_client=transport,
            # By default the SDK identifies itself by the class name.
            default_headers={"User-Agent": f"{AsyncOpenAI.__name__}/Python {VERSION}", **headers},
        )
        self._address = httpx2.URL(chat_url(base_url))
        # Without this, the SDK would generate a random key for each request and not send it.
        self._posting = FinalRequestOptions.construct(method="post", url=str(self._address), idempotency_key="-")

    async def whole(self, body: bytes, headers: Mapping[str, str]) -> httpx2.Response:
        """See `Sender`."""
        return await self.request(httpx2.Response, self._options(body, headers))

    async def streamed(self, body: bytes, headers: Mapping[str, str]) -> AsyncStream[object]:
        """See `Sender`."""
        options = self._options(body, headers)
        return await self.request(object, options, stream=True, stream_cls=AsyncStream[object])

    def _options(self, body: bytes, headers: Mapping[str, str]) -> FinalRequestOptions:
        """The options with which `request` posts `body`."""
        return self._posting.model_copy(update={"content": body, "headers": headers})

    async def _prepare_options(self, options: FinalRequestOptions) -> FinalRequestOptions:
        return options

    async def _prepare_request(self, request: httpx2.Request) -> None:
        pass

    def _should_stream_response_body(self, request: httpx2.Request) -> bool:  # noqa: ARG002 - it has no headers
        return False

    async def _send_request(self, request: httpx2.Request, *, stream: bool, **_: Any) -> httpx2.Response:
        return await self._client.send(request, stream=stream)

    def _build_request(self, options: FinalRequestOptions, *, retries_taken: int = 0) -> httpx2.Request:  # noqa: ARG002 - there are no retries
        """The SDK's request, for `Transport.send`; the SDK's Azure client overrides this method too.

        An httpx2 request with its own headers and body would cost a third of a call, and nothing would read them.
        """
        headers = self._constant_headers.copy()
        headers.update(_texts(options.headers or {}))
        ready = {"headers": headers, "content": options.content}
        return httpx2.Request("POST", self._address, stream=NO_BYTES, extensions=ready)

    @cached_property
    def _constant_headers(self) -> multidict.CIMultiDict[str]:
        return multidict.CIMultiDict(_texts(self.default_headers))


class Endpoint:
    """Gemini as an ask. Use as `async with open_endpoint(...) as endpoint`."""

    def __init__(
        self,
        client: Sender,
        token: TokenSource,
        *,
        timeout_s: float,
        idle_timeout_s: float,
        secrets: Sequence[str] = (),
    ) -> None:
        self._client = client
        self._token = token
        self._timeout_s = timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._secrets = secrets

    async def ask(self, request: Request) -> Reply:
        """One request, sent once.

        Raises `Throttled`, `Unavailable`, `Refused`, `Unparsable` or `ProviderUnusable`; `Expired` when the token was
        rejected and has been renewed. An answer that is worth another attempt is the `reply` of its fault.
        """
        try:
            body = orjson.dumps(request.payload)
        except TypeError as error:
            raise InvalidRow(f"the request cannot be written as JSON: {error}") from None
        token = await self._token()
        try:
            return await self._attempt(body, request, token)
        except Fault as fault:
            if isinstance(fault, Expired):
                await self._renew(token, fault, request)
            raise self._discreet(fault, token, request) from fault.__cause__

    async def _renew(self, token: str, expired: Expired, request: Request) -> None:
        """Gets another token. If there can be none, raises the rejection as the fault that ends the run or the row."""
        try:
            await self._token.renew(token)
        except ProviderUnusable as fault:
            denied = ProviderUnusable(f"{fault.message} ({expired.message})", http_status=401, kind=fault.kind)
            denied.reply = expired.reply
            raise self._discreet(denied, token, request) from None

    def _discreet(self, fault: Fault, token: str, request: Request) -> Fault:
        """The fault, with neither the token nor the proxy's password nor the request's texts in its message."""
        message = redact_settings(redact_secret(fault.message, token), self._secrets)
        fault.message = redact_quotes(message, user_texts(request.payload))
        fault.args = (fault.message,)
        return fault

    async def _attempt(self, body: bytes, request: Request, token: str) -> Reply:
        # Passed in: the token that is renewed after a 401 must be the one that was sent, and waiting for a token must
        # not count against the deadline.
        headers = {**request.headers, "Authorization": f"Bearer {token}"}
        started = time.monotonic()
        answer, first_token_s = b"", None
        with anyio.move_on_after(self._timeout_s) as deadline:
            if request.payload.get("stream"):
                answer, first_token_at = await self._stream(body, headers)
                first_token_s = first_token_at - started
            else:
                answer = await self._post(body, headers)
        if deadline.cancelled_caught:
            raise Unavailable(f"no answer within {self._timeout_s:g} s")
        # Or they would be stored in the journal and the dataset.
        for secret in (token, *self._secrets):
            answer = redact_secret_bytes(answer, secret)
        latency_s, finished_at = time.monotonic() - started, time.time_ns() // 1000
        try:
            completion = read_completion(answer)
        except Fault as fault:
            if (usage := usage_in(answer)) is not None:  # reported usage is billed
                fault.reply = Reply(answer, usage, latency_s=latency_s, finished_at=finished_at)
            raise
        reply = Reply(
            answer,
            usage=completion.usage,
            latency_s=latency_s,
            first_token_s=first_token_s,
            finished_at=finished_at,
            completion=completion,
            model=completion.model,
            traffic_type=completion.traffic_type,
        )
        again = worth_another_try(completion)
        if again is not None:
            again.reply = reply
            raise again
        return reply

    async def _post(self, body: bytes, headers: Mapping[str, str]) -> bytes:
        try:
            response = await self._client.whole(body, headers)
        except APIStatusError as error:
            raise _fault_of(error.response) from None
        return whole_body(response.extensions["content"])

    async def _stream(self, body: bytes, headers: Mapping[str, str]) -> tuple[bytes, float]:
        """The body assembled from the streamed chunks, and the time of its first piece."""
        arriving, first = Arriving(), None
        try:
            stream = await self._client.streamed(body, headers)
        except APIStatusError as error:
            raise _fault_of(error.response) from None
        async with stream:
            pieces = stream.response.aiter_raw()
            while not arriving.ended:
                await self._advance(arriving, pieces)
                if first is None and arriving.has_begun:
                    first = time.monotonic()
            # Read to the end so that the connection can be reused; the answer is complete even if that fails.
            with suppress(Fault), anyio.move_on_after(_DRAIN_S):
                while await anext(pieces, None) is not None:
                    pass
        return arriving.body(), first or time.monotonic()

    async def _advance(self, arriving: Arriving, pieces: AsyncIterator[bytes]) -> None:
        """Reads the next piece of the answer within the idle deadline, which comments do not extend."""
        with anyio.move_on_after(self._idle_timeout_s):
            while (piece := await anext(pieces, None)) is not None:
                if arriving.feed(piece):
                    return
            arriving.end()
            return
        raise Unavailable(f"the stream stood still for {self._idle_timeout_s:g} s")


@asynccontextmanager
async def open_endpoint(
    target: EndpointAddress,
    token: TokenSource,
    *,
    connections: int,
    timeout_s: float,
    idle_timeout_s: float = 60.0,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[Endpoint]:
    """An endpoint whose `AsyncOpenAI` is closed at the end of the block. `clock` measures idle connections."""
    client_of = Client if await hands_on(Client) else PublicClient
    async with (
        Transport(target.base_url, connections, clock) as transport,
        client_of(target.base_url, transport, token.headers) as client,
    ):
        yield Endpoint(client, token, timeout_s=timeout_s, idle_timeout_s=idle_timeout_s, secrets=transport.secrets)


def _texts(headers: Mapping[str, object]) -> dict[str, str]:
    """The headers with a text value: the SDK marks those to be omitted with another type."""
    return {name: value for name, value in headers.items() if isinstance(value, str)}


def _fault_of(response: httpx2.Response) -> Fault:
    return fault_of_status(response.status_code, response.content, response.headers)
