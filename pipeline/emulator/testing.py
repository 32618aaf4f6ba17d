"""An emulator inside the own event loop, for tests: `async with emulated(Options()) as vertex`."""

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

from pipeline.emulator.options import Address, Options
from pipeline.emulator.server.credentials import ServiceAccount
from pipeline.emulator.server.server import run

JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer as it came over the wire."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, parsed. Raises `ValueError` when it is not JSON."""
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Vertex:
    """A running emulator and a connection to it. `aiohttp.ClientError` comes out of every call that finds it broken."""

    address: Address
    session: aiohttp.ClientSession

    async def token(self) -> str:
        """A new access token, by the refresh token of the authorized user."""
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
    ) -> Answered:
        """One chat completion of a location, with this token or with a new one."""
        sent = {"Authorization": f"Bearer {token or await self.token()}", **(headers or {})}
        base_url = self.address.base_url.replace("/locations/global/", f"/locations/{location}/")
        return await self.request("POST", f"{base_url}/chat/completions", json=payload, headers=sent)

    async def stats(self) -> JsonObject:
        """What it has counted."""
        return dict((await self.request("GET", self.address.stats_url)).json())

    async def answers(self) -> list[JsonObject]:
        """What it has answered, one by one: `prompt` (the digest of the messages), `id` and `at`; needs `nonce`."""
        return list((await self.request("GET", f"{self.address.stats_url}/answers")).json())

    async def control(self, **changes: Any) -> JsonObject:
        """Changes options, or the token server (`token_server`, `token_delay`, `revoke`). Raises `ValueError`."""
        answered = await self.request("POST", f"{self.address.origin}/control", json=changes)
        if answered.status != 200:
            raise ValueError(answered.json()["error"])
        return dict(answered.json())

    async def request(self, method: str, url: str, **arguments: Any) -> Answered:
        """Any request, with aiohttp's arguments."""
        async with self.session.request(method, url, **arguments) as response:
            return Answered(response.status, response.headers, await response.read())


@cache
def _account(project: str) -> ServiceAccount:
    return ServiceAccount.generate(project)


@asynccontextmanager
async def emulated(options: Options) -> AsyncIterator[Vertex]:
    """An emulator that runs while the block does. Raises what `pipeline.emulator.serve` raises.

    All emulators of a process have one service account for each project: its key takes longer to make than all else.
    """
    stop = asyncio.Event()
    announced: asyncio.Future[Address] = asyncio.get_running_loop().create_future()
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
