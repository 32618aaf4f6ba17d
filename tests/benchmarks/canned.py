"""A server that costs next to nothing: one canned completion for every request, in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

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


class Canned(asyncio.Protocol):
    """Reads requests by their Content-Length and answers each with the same bytes."""

    def __init__(self, latency: float, sigma: float, slow: float) -> None:
        self._latency, self._sigma, self._slow = latency, sigma, slow
        self._read = bytearray()
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment] # a TCP connection can be written to

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
        if not self._latency:
            self._answer()
            return
        delay = random.lognormvariate(0, self._sigma) * self._latency if self._sigma else self._latency
        if random.random() < self._slow:
            delay *= 20
        asyncio.get_running_loop().call_later(delay, self._answer)

    def _answer(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(HEAD + BODY)


async def serve(latency: float, sigma: float, slow: float) -> None:
    """Serves on a free port of this machine until standard input closes; prints the port."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Canned(latency, sigma, slow), "127.0.0.1", 0, backlog=8192)
    print(server.sockets[0].getsockname()[1], flush=True)
    done = asyncio.Event()
    loop.add_reader(0, lambda: os.read(0, 1) or done.set())  # type: ignore[func-returns-value]
    await done.wait()


@contextmanager
def canned_server(latency: float = 0.0, sigma: float = 0.0, slow: float = 0.0) -> Iterator[str]:
    """The base URL of a canned server that lives as long as the block."""
    command = [sys.executable, "-m", "tests.benchmarks.canned", str(latency), str(sigma), str(slow)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        if child.stdout is None or child.stdin is None:
            raise RuntimeError("the server has no pipes")
        yield f"http://127.0.0.1:{int(child.stdout.readline())}/v1"
        child.stdin.close()


if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:
        asyncio.run(serve(*map(float, sys.argv[1:])))
    else:
        uvloop.run(serve(*map(float, sys.argv[1:])))
