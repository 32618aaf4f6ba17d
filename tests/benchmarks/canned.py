"""A server that costs next to nothing: one canned completion for every request, in a process of its own.

Where no latency is wanted and nginx is installed, that is nginx. Else it is an asyncio protocol on uvloop: some 30 us a
request, with a latency, and it counts its connections and its requests.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from tests.benchmarks.nginx import NGINX, nginx_server

ANSWER = {"name": "Harvest supper", "date": "2026-09-26", "place": "Guildhall", "guests": 40}
BODY = json.dumps(
    {
        "choices": [
            {
                "finish_reason": "stop",
                "index": 0,
                "logprobs": None,
                "message": {"content": json.dumps(ANSWER), "role": "assistant"},
            }
        ],
        "created": 1772141949,
        "id": "fb2gafiLBIK9odAP1tGMmQc",
        "model": "google/gemini-3.5-flash-lite",
        "object": "chat.completion",
        "system_fingerprint": "",
        "usage": {"completion_tokens": 31, "prompt_tokens": 120, "total_tokens": 151},
    }
).encode()
HEAD = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()


@dataclass(frozen=True, slots=True)
class CannedLatency:
    """How long an answer takes, in seconds: log-normal around its mean when `sigma` is given.

    A share of the answers, `slow`, takes `factor` times as long.
    """

    mean: float = 0.0
    sigma: float = 0.0
    slow: float = 0.0
    factor: float = 1.0

    def draw(self, dice: random.Random) -> float:
        """One answer's latency."""
        spread = dice.lognormvariate(-(self.sigma**2) / 2, self.sigma) if self.sigma else 1.0
        return self.mean * spread * (self.factor if dice.random() < self.slow else 1.0)


@dataclass(slots=True)
class Counts:
    """What the server has seen so far."""

    connections: int = 0
    requests: int = 0
    most_in_flight: int = 0
    first_request: float = 0.0
    """When it arrived, on the monotonic clock; the last answer's time likewise."""
    last_answer: float = 0.0


class CannedServer:
    """Says how long each answer takes, and counts."""

    def __init__(self, latency: CannedLatency) -> None:
        self.latency = latency
        self.counts = Counts()
        self.in_flight = 0
        self.dice = random.Random(1)

    def began(self) -> None:
        """A request has arrived."""
        self.counts.first_request = self.counts.first_request or time.monotonic()
        self.counts.requests += 1
        self.in_flight += 1
        self.counts.most_in_flight = max(self.counts.most_in_flight, self.in_flight)


class CannedConnection(asyncio.Protocol):
    """Reads requests by their Content-Length and answers each with the same bytes."""

    def __init__(self, server: CannedServer) -> None:
        self._server = server
        self._read = bytearray()
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment] # a TCP connection can be written to
        self._server.counts.connections += 1

    def data_received(self, data: bytes) -> None:
        self._read += data
        while (end := self._read.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._read[:end]).lower()
            start = head.find(b"content-length:")
            length = int(head[start + 15 :].split(b"\r\n", 1)[0]) if start >= 0 else 0
            if len(self._read) < end + 4 + length:
                return
            del self._read[: end + 4 + length]
            self._answer_later()

    def _answer_later(self) -> None:
        self._server.began()
        if not self._server.latency.mean:
            self._answer()
            return
        asyncio.get_running_loop().call_later(self._server.latency.draw(self._server.dice), self._answer)

    def _answer(self) -> None:
        self._server.in_flight -= 1
        self._server.counts.last_answer = time.monotonic()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(HEAD + BODY)


async def serve(latency: CannedLatency) -> None:
    """Serves on a free port of this machine until standard input closes; prints the port, and the counts when asked."""
    loop = asyncio.get_running_loop()
    server = CannedServer(latency)
    listening = await loop.create_server(lambda: CannedConnection(server), "127.0.0.1", 0, backlog=8192)
    print(listening.sockets[0].getsockname()[1], flush=True)
    done = asyncio.Event()

    def told() -> None:
        if os.read(0, 1):
            print(json.dumps(asdict(server.counts)), flush=True)
        else:
            done.set()

    loop.add_reader(0, told)
    await done.wait()


class Canned:
    """A running canned server."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        if child.stdin is None or child.stdout is None:
            raise RuntimeError("the server has no pipes")
        self._asks, self._says = child.stdin, child.stdout
        self.url = f"http://127.0.0.1:{int(self._says.readline())}/v1"

    def counts(self) -> Counts:
        """What it has seen so far."""
        self._asks.write("?")
        self._asks.flush()
        return Counts(**json.loads(self._says.readline()))


@contextmanager
def prompt_server() -> Iterator[str]:
    """The address of the canned server that costs least, and answers at once."""
    if NGINX:
        with nginx_server(BODY) as url:
            yield url
    else:
        with canned_server() as server:
            yield server.url


@contextmanager
def canned_server(latency: CannedLatency | None = None) -> Iterator[Canned]:
    """A canned server that lives as long as the block."""
    drawn = latency or CannedLatency()
    command = [sys.executable, "-m", "tests.benchmarks.canned", *map(str, asdict(drawn).values())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        yield Canned(child)
        if child.stdin is not None:
            child.stdin.close()


if __name__ == "__main__":
    latency = CannedLatency(*map(float, sys.argv[1:]))
    try:
        import uvloop
    except ImportError:
        asyncio.run(serve(latency))
    else:
        uvloop.run(serve(latency))
