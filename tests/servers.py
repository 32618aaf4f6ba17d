"""Small servers on the loopback interface that answer by a script: one answer for each request, however broken."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
from aiohttp import web
from anyio.from_thread import BlockingPortal, start_blocking_portal

HOST = "127.0.0.1"
PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Call:
    """A request as it arrived; `number` counts from 0, `connection` is the client's port."""

    number: int
    connection: int
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def prompt(self) -> str:
        """The text of the last message."""
        return str(self.json()["messages"][-1]["content"])


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. With `hangs_up` the connection is closed after it, without a word of it in the headers."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    hangs_up: bool = False


@dataclass(frozen=True, slots=True)
class Raw:
    """Bytes as they are, after which the connection is closed, or reset."""

    content: bytes = b""
    resets: bool = False


@dataclass(frozen=True, slots=True)
class Silence:
    """No answer until the client leaves."""


@dataclass(frozen=True, slots=True)
class Drip:
    """Headers, and then a byte now and then, until the client leaves."""


@dataclass(frozen=True, slots=True)
class Stall:
    """The beginning of a stream, and then nothing until the client leaves."""

    beginning: bytes


@dataclass(frozen=True, slots=True)
class Held:
    """An answer that is sent once `Server.release` was called."""

    answer: Answer


Says = Answer | Raw | Silence | Drip | Stall | Held
Script = Callable[[Call], Says]


def chat(content: str | None, *, finish_reason: str = "stop", **message: Any) -> Answer:
    """A completion as Vertex writes it, of 10 tokens in and 5 out."""
    document = {
        "choices": [
            {"finish_reason": finish_reason, "index": 0, "message": {"content": content, "role": "assistant"} | message}
        ],
        "id": "an-id",
        "model": "google/gemini-test",
        "object": "chat.completion",
        "usage": {"completion_tokens": 5, "prompt_tokens": 10, "total_tokens": 15},
    }
    return Answer(json.dumps(document).encode())


def error(status: int, code: str = "", message: str = "said the server", **headers: str) -> Answer:
    """An error as Vertex's compatible endpoint writes it: wrapped in a list."""
    body = [{"error": {"code": status, "message": message, "status": code}}]
    return Answer(json.dumps(body).encode(), status, {"Content-Type": "application/json", **headers})


def bomb(megabytes: int) -> bytes:
    """That many MB of blanks, gzipped: one deflate block, repeated."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    head = packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)
    first, block = (packer.compress(b" " * 2**20) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    return head + first + block * (megabytes - 1)


class Server:
    """A running scripted server, and what it has seen."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.calls: list[Call] = []
        self.answered: list[str] = []
        """The prompts of the chat completions that were sent whole."""
        self.origin = ""
        self._released = anyio.Event()
        self._news = anyio.Event()

    @property
    def base_url(self) -> str:
        return f"{self.origin}/v1"

    async def arrived(self, calls: int) -> None:
        """Returns when so many requests have come."""
        with anyio.fail_after(PATIENCE_S):
            while len(self.calls) < calls:
                await self._news.wait()

    async def release(self) -> None:
        """Lets the held answers go."""
        self._released.set()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        port = _transport(request).get_extra_info("peername")[1]
        call = Call(len(self.calls), port, request.method, request.path_qs, request.headers, body)
        self.calls.append(call)
        self._news.set()
        self._news = anyio.Event()
        says = self.script(call)
        if isinstance(says, Held):
            await self._released.wait()
            says = says.answer
        return await self._say(says, request, call)

    async def _say(
        self, says: Answer | Raw | Silence | Drip | Stall, request: web.BaseRequest, call: Call
    ) -> web.StreamResponse:
        match says:
            case Answer():
                return await self._answer(says, request, call)
            case Raw():
                return _raw(says, request)
            case Drip():
                return await _drip(request)
            case Stall():
                await _begun(request, says.beginning)
                await anyio.sleep_forever()
            case Silence():
                await anyio.sleep_forever()
        raise AssertionError(says)

    async def _answer(self, answer: Answer, request: web.BaseRequest, call: Call) -> web.StreamResponse:
        response = web.Response(body=answer.body, status=answer.status, headers=answer.headers)
        await response.prepare(request)
        await response.write_eof()
        if answer.status == 200 and call.path.endswith("/chat/completions"):
            self.answered.append(call.prompt)
        if answer.hangs_up:
            _transport(request).close()
        return response


def _raw(says: Raw, request: web.BaseRequest) -> web.StreamResponse:
    transport = _transport(request)
    transport.write(says.content)
    hang_up(transport, resets=says.resets)
    return web.Response()


def hang_up(transport: asyncio.WriteTransport, *, resets: bool) -> None:
    """Closes a connection, or resets it."""
    if resets:
        linger = struct.pack("ii", 1, 0)  # on, for 0 seconds: closing is then a reset
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        transport.abort()
    else:
        transport.close()


async def _begun(request: web.BaseRequest, beginning: bytes) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(beginning)
    return response


async def _drip(request: web.BaseRequest) -> web.StreamResponse:
    response = await _begun(request, b" ")
    while True:
        await response.write(b" ")
        await anyio.sleep(0.01)


def _transport(request: web.BaseRequest) -> asyncio.Transport:
    assert isinstance(request.transport, asyncio.Transport)
    return request.transport


@asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[Server]:
    """A server in the event loop of the test (asyncio only)."""
    server = Server(script)
    runner = web.ServerRunner(
        web.Server(server.handle, handler_cancellation=True, access_log=None), shutdown_timeout=0.01
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, 0).start()
        server.origin = "http://{}:{}".format(*runner.addresses[0])
        yield server
    finally:
        await runner.cleanup()


@dataclass(frozen=True, slots=True)
class Served:
    """A scripted server in a thread of its own."""

    server: Server
    _portal: BlockingPortal

    @property
    def calls(self) -> list[Call]:
        return self.server.calls

    @property
    def answered(self) -> list[str]:
        return self.server.answered

    @property
    def base_url(self) -> str:
        return self.server.base_url

    def follow(self, script: Script) -> None:
        """Answers by another script from now on."""
        self.server.script = script

    def arrived(self, calls: int) -> None:
        self._portal.call(self.server.arrived, calls)

    def release(self) -> None:
        self._portal.call(self.server.release)


@contextmanager
def served(script: Script) -> Iterator[Served]:
    """A server beside the test: for commands in processes of their own, and for tests that are not async."""
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(scripted(script)) as server:
        yield Served(server, portal)
