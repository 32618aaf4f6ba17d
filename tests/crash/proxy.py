"""A proxy that spoils connections: each gets one toxic, or none.

What the toxics are called is what they are called elsewhere: https://github.com/Shopify/toxiproxy#toxics.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from anyio.from_thread import start_blocking_portal

from tests.servers import HOST, hang_up

PIECE = 65_536


@dataclass(frozen=True, slots=True)
class Delay:
    """Every piece of an answer comes so much later."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """An answer comes in pieces of so many bytes, with a pause between them."""

    bytes: int
    pause_s: float = 0.01


@dataclass(frozen=True, slots=True)
class SlowClose:
    """An answer is whole, and its connection is closed in the middle of the next request."""


@dataclass(frozen=True, slots=True)
class Reset:
    """The connection is reset after so many bytes of the answer."""

    after: int


@dataclass(frozen=True, slots=True)
class Cut:
    """The connection is closed after so many bytes of the answer."""

    after: int


@dataclass(frozen=True, slots=True)
class Never:
    """The request is taken, and never answered."""


@dataclass(frozen=True, slots=True)
class Flood:
    """The request is taken, and answered with so many bytes of blanks."""

    bytes: int


Toxic = Delay | Bandwidth | SlowClose | Reset | Cut | Never | Flood
Chosen = Callable[[int], Toxic | None]
"""The toxic of a connection, by its number from 0."""


@dataclass(slots=True)
class ToxicProxy:
    """A running proxy, and the toxics of the connections that it has seen."""

    upstream: str
    chosen: Chosen
    seen: list[Toxic | None] = field(default_factory=list)
    port: int = 0

    @property
    def base_url(self) -> str:
        """The upstream's, through the proxy."""
        return urlsplit(self.upstream)._replace(netloc=f"{HOST}:{self.port}").geturl()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either side leaves it."""
        toxic = self.chosen(len(self.seen))
        self.seen.append(toxic)
        with closing(writer), suppress(OSError):  # whoever has left has no use for the rest
            match toxic:
                case Never():
                    await reader.read()  # to the end
                case Flood(size):
                    await reader.read(PIECE)
                    await _flood(writer, size)
                case _:
                    await self._connected(reader, writer, toxic)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, toxic: Toxic | None) -> None:
        parts = urlsplit(self.upstream)
        from_server, to_server = await asyncio.open_connection(parts.hostname, parts.port)
        asking = asyncio.ensure_future(_ask(reader, to_server, toxic))
        answering = asyncio.ensure_future(_answer(from_server, writer, toxic))
        try:
            await asyncio.wait([asking, answering], return_when=asyncio.FIRST_COMPLETED)
        finally:
            asking.cancel()
            answering.cancel()
            await asyncio.gather(asking, answering, return_exceptions=True)
            to_server.close()


async def _ask(reader: asyncio.StreamReader, server: asyncio.StreamWriter, toxic: Toxic | None) -> None:
    requests = 0
    while piece := await reader.read(PIECE):
        requests += piece.startswith(b"POST ")
        if isinstance(toxic, SlowClose) and requests > 1:
            return
        server.write(piece)
        await server.drain()


async def _answer(server: asyncio.StreamReader, writer: asyncio.StreamWriter, toxic: Toxic | None) -> None:
    sent = 0
    while piece := await server.read(PIECE):
        match toxic:
            case Delay(seconds):
                await asyncio.sleep(seconds)
            case Bandwidth(size, pause_s):
                await _drip(piece, writer, size, pause_s)
                continue
            case Cut(after) | Reset(after) if sent + len(piece) > after:
                writer.write(piece[: after - sent])
                await writer.drain()
                hang_up(writer.transport, resets=isinstance(toxic, Reset))
                return
        writer.write(piece)
        await writer.drain()
        sent += len(piece)


async def _drip(piece: bytes, writer: asyncio.StreamWriter, size: int, pause_s: float) -> None:
    for start in range(0, len(piece), size):
        writer.write(piece[start : start + size])
        await writer.drain()
        await asyncio.sleep(pause_s)


async def _flood(writer: asyncio.StreamWriter, size: int) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % size)
    for _ in range(size // PIECE):
        writer.write(b" " * PIECE)
        await writer.drain()


@asynccontextmanager
async def proxying(upstream: str, chosen: Chosen) -> AsyncIterator[ToxicProxy]:
    """A proxy in the event loop of the caller."""
    proxy = ToxicProxy(upstream, chosen)
    server = await asyncio.start_server(proxy.handle, HOST, 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()


@contextmanager
def proxied(upstream: str, chosen: Chosen) -> Iterator[ToxicProxy]:
    """A proxy in a thread of its own."""
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(proxying(upstream, chosen)) as proxy:
        yield proxy
