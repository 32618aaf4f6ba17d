"""HTTP responses, each labelled as simulated."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from aiohttp import web

from pipeline.emulator.protocol.wire import HTML_TYPE, JSON_TYPE, SIMULATED

STREAM_TYPE = "text/event-stream"


def json(
    body: bytes, status: int = 200, headers: Mapping[str, str] | None = None, content_type: str = JSON_TYPE
) -> web.Response:
    """A JSON body."""
    return _response(body, status, content_type, headers)


def html(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """An HTML page."""
    return _response(body, status, HTML_TYPE, headers)


def plain(text: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """Plain text, as the metadata server returns its values."""
    return _response(text.encode(), 200, "application/text", headers)


def closed(request: web.BaseRequest) -> web.Response:
    """Closes the connection; the returned response is never sent."""
    if request.transport is not None:
        request.transport.close()
    return web.Response()


async def half(request: web.BaseRequest, body: bytes) -> web.StreamResponse:
    """Announces the whole body, sends its first half and closes the connection."""
    response = web.StreamResponse(headers=_headers(JSON_TYPE, None))
    response.content_length = len(body)
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    return cut(request, response)


async def stream(request: web.BaseRequest, events: Sequence[bytes], *, first: float, gap: float) -> web.StreamResponse:
    """Sends events, the first after `first` seconds and the others `gap` seconds apart; the caller ends the stream."""
    if first:
        await asyncio.sleep(first)
    response = web.StreamResponse(headers=_headers(STREAM_TYPE, None))
    await response.prepare(request)
    for number, event in enumerate(events if gap else [b"".join(events)]):
        if number and gap:
            await asyncio.sleep(gap)
        if event:
            await response.write(event)
    return response


def cut(request: web.BaseRequest, response: web.StreamResponse) -> web.StreamResponse:
    """Closes the connection in the middle of a response."""
    if request.transport is not None:
        request.transport.close()
    return response


async def silence() -> web.StreamResponse:
    """Waits until the client disconnects or the server stops."""
    forever: asyncio.Future[web.StreamResponse] = asyncio.get_running_loop().create_future()
    return await forever


def _response(body: bytes, status: int, content_type: str, headers: Mapping[str, str] | None) -> web.Response:
    return web.Response(body=body, status=status, headers=_headers(content_type, headers))


def _headers(content_type: str, headers: Mapping[str, str] | None) -> dict[str, str]:
    return {"Content-Type": content_type, SIMULATED[0]: SIMULATED[1], "Server": SIMULATED[1], **(headers or {})}
