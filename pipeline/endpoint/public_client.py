"""Sends requests by the SDK's public API, for releases whose private hooks are not those that `Client` overrides.

`pipeline.endpoint.client.Client` overrides hooks that the SDK does not promise to keep. `hands_on` tests it once,
without a network; if it does not work, `PublicClient` replaces it: every request costs more, and none fails.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, Self

import httpx2
import multidict

from pipeline.endpoint.sdk import VERSION, AsyncOpenAI, AsyncStream, OpenAIError

CHANGED_SDK = (
    f"openai {VERSION} has moved the private hooks that make calls cheap: its public way is used, "
    "which costs more processor time per row and changes nothing else"
)

_TRANSPORTS = {"accept-encoding", "connection", "content-length", "host", "transfer-encoding"}
"""Headers that aiohttp sets on a request; those set by httpx2 describe another connection."""

_PROBE = {"Authorization": "Bearer probe", "X-Probe": "1"}


class Sender(Protocol):
    """What the endpoint needs from a client: it sends bytes unchanged, and returns the answer unchanged.

    Both raise `openai.APIStatusError` for a status beyond 299, and the faults of `pipeline.endpoint.transport`.
    """

    async def whole(self, body: bytes, headers: Mapping[str, str]) -> httpx2.Response:
        """An answer whose bytes are under `extensions["content"]`."""

    async def streamed(self, body: bytes, headers: Mapping[str, str]) -> AsyncStream[object]:
        """An answer that is still arriving, under `response`."""


class PublicClient:
    """A `Sender` that uses only `AsyncOpenAI.post`. Use as `async with`; the caller closes `transport`."""

    def __init__(self, base_url: str, transport: httpx2.AsyncClient, headers: Mapping[str, str]) -> None:
        self._sdk = AsyncOpenAI(
            base_url=base_url,
            api_key="given with each request",
            max_retries=0,
            timeout=None,
            http_client=_Handing(transport),
            default_headers=dict(headers),
        )

    async def __aenter__(self) -> Self:
        await self._sdk.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._sdk.close()

    async def whole(self, body: bytes, headers: Mapping[str, str]) -> httpx2.Response:
        """See `Sender`."""
        return await self._sdk.post(
            "/chat/completions", cast_to=httpx2.Response, content=body, options={"headers": dict(headers)}
        )

    async def streamed(self, body: bytes, headers: Mapping[str, str]) -> AsyncStream[object]:
        """See `Sender`."""
        return await self._sdk.post(
            "/chat/completions",
            cast_to=object,
            content=body,
            options={"headers": dict(headers)},
            stream=True,
            stream_cls=AsyncStream[object],
        )


class _Handing(httpx2.AsyncClient):
    """Passes content and headers of the SDK's own request to `pipeline.endpoint.transport.Transport`."""

    def __init__(self, transport: httpx2.AsyncClient) -> None:
        super().__init__(transport=httpx2.AsyncBaseTransport())
        self._to = transport

    async def send(self, request: httpx2.Request, *, stream: bool = False, **_: Any) -> httpx2.Response:
        headers = [(name, value) for name, value in request.headers.multi_items() if name.lower() not in _TRANSPORTS]
        request.extensions["content"] = await request.aread()
        request.extensions["headers"] = multidict.CIMultiDict(headers)
        return await self._to.send(request, stream=stream)


class _Mirror(httpx2.AsyncClient):
    """Answers a request with what `pipeline.endpoint.transport.Transport` would have sent."""

    def __init__(self) -> None:
        super().__init__(transport=httpx2.AsyncBaseTransport())

    async def send(self, request: httpx2.Request, *, stream: bool = False, **_: Any) -> httpx2.Response:
        content, headers = request.extensions["content"], request.extensions["headers"]
        if any(headers[name] != value for name, value in _PROBE.items()):
            content = b""
        extensions = {"content": content, "stream": stream}
        return httpx2.Response(200, request=request, stream=httpx2.ByteStream(b""), extensions=extensions)


_Clients = Callable[[str, httpx2.AsyncClient, Mapping[str, str]], AbstractAsyncContextManager[Sender]]


_MOVED = (ImportError, AttributeError, TypeError, LookupError, ValueError, RuntimeError, OpenAIError)
"""What is raised where a hook has another name, other parameters or another result; the SDK wraps some of it."""


async def hands_on(client: _Clients) -> bool:
    """Whether a request's body and headers reach the transport through this client with the installed SDK."""
    body = b'{"probe": 1}'
    try:
        async with client("http://localhost/v1", _Mirror(), {}) as sender:
            whole = await sender.whole(body, _PROBE)
            streamed = (await sender.streamed(body, _PROBE)).response
    except _MOVED:
        return False
    seen = [(answer.extensions["content"], answer.extensions["stream"]) for answer in (whole, streamed)]
    return seen == [(body, False), (body, True)]
