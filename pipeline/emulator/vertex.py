"""An emulator in the test's own event loop: `async with emulated(Options()) as vertex`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import aiohttp

from pipeline.emulator.options import EmulatorAddress, Options
from pipeline.emulator.protocol.wire import JsonObject
from pipeline.emulator.server.credentials import ServiceAccount
from pipeline.emulator.server.server import run


@dataclass(frozen=True, slots=True)
class ReceivedResponse:
    """A response as received."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, parsed. Raises `ValueError` when it is not JSON."""
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Vertex:
    """A running emulator and a connection to it. A broken connection raises `aiohttp.ClientError`."""

    address: EmulatorAddress
    session: aiohttp.ClientSession

    async def token(self) -> str:
        """A new access token, obtained with the authorized user's refresh token."""
        text = await asyncio.to_thread(Path(self.address.authorized_user_file).read_text, encoding="utf-8")
        form = {**json.loads(text), "grant_type": "refresh_token"}
        async with self.session.post(self.address.token_uri, data=form) as response:
            return str((await response.json())["access_token"])

    async def ask(
        self,
        payload: Mapping[str, Any],
        token: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        location: str = "global",
    ) -> ReceivedResponse:
        """One chat completion at a location, with this token or a new one."""
        sent = {"Authorization": f"Bearer {token or await self.token()}", **(headers or {})}
        base_url = self.address.base_url.replace("/locations/global/", f"/locations/{location}/")
        return await self.request("POST", f"{base_url}/chat/completions", json=payload, headers=sent)

    async def stats(self) -> JsonObject:
        """The counters."""
        return dict((await self.request("GET", self.address.stats_url)).json())

    async def answers(self) -> list[JsonObject]:
        """The answers one by one: `prompt` (the digest of the messages), `id` and `at`; needs `nonce`."""
        return list((await self.request("GET", f"{self.address.stats_url}/answers")).json())

    async def control(self, **changes: Any) -> JsonObject:
        """Changes options, or the token server (`token_server`, `token_delay`, `revoke`). Raises `ValueError`."""
        answered = await self.request("POST", f"{self.address.origin}/control", json=changes)
        if answered.status != 200:
            raise ValueError(answered.json()["error"])
        return dict(answered.json())

    async def request(self, method: str, url: str, **arguments: Any) -> ReceivedResponse:
        """Any request, with aiohttp's arguments."""
        async with self.session.request(method, url, **arguments) as response:
            return ReceivedResponse(response.status, response.headers, await response.read())


@cache
def _account(project: str) -> ServiceAccount:
    return ServiceAccount.generate(project)


@asynccontextmanager
async def emulated(options: Options) -> AsyncIterator[Vertex]:
    """An emulator that runs for the duration of the block. Raises what `pipeline.emulator.serve` raises.

    The emulators of a process share one service account per project: generating its key is the slowest step.
    """
    stop = asyncio.Event()
    announced: asyncio.Future[EmulatorAddress] = asyncio.get_running_loop().create_future()
    account = await asyncio.to_thread(_account, options.project)
    serving = asyncio.create_task(run(options, announced.set_result, stop, account))
    first: list[asyncio.Future[Any]] = [serving, announced]
    try:
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if announced.done():
            async with aiohttp.ClientSession() as session:
                yield Vertex(announced.result(), session)
    finally:
        stop.set()
        await serving
