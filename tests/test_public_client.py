"""A release of the SDK that has moved its private hooks costs time, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI, AsyncStream

from pipeline.endpoint.client import Client
from pipeline.endpoint.public_client import CHANGED_SDK, PublicClient, hands_on
from tests.commands import JOB, Shell, ended
from tests.moved_sdk import HOOKS, moved
from tests.servers import chat, served

ROOT = Path(__file__).parents[1]
ON_THE_WIRE = (
    "test_endpoint.py",
    "test_replies.py",
    "test_reply_calls.py",
    "test_reply_streams.py",
    "test_network.py",
    "test_resends.py",
)
"""The tests of what is sent, and of what every answer means."""

OFF_THE_WIRE = "linear_time or foreign_json"
"""Those among them that ask nobody, and take long."""

IN_USE = """
import asyncio
from pipeline.endpoint.client import Client
from pipeline.endpoint.public_client import hands_on
print(asyncio.run(hands_on(Client)))
"""

pytestmark = pytest.mark.anyio


class Careless(AsyncOpenAI):
    """A client of the SDK that gets a request's body or headers wrong."""

    def __init__(self, base_url: str, transport: httpx2.AsyncClient, headers: Mapping[str, str]) -> None:
        super().__init__(base_url=base_url, api_key="k", http_client=transport, default_headers=headers)

    async def whole(self, body: bytes, headers: Mapping[str, str]) -> httpx2.Response:
        return await self._client.send(self.made(body, headers))

    async def streamed(self, body: bytes, headers: Mapping[str, str]) -> AsyncStream[object]:
        answer = await self._client.send(self.made(body, headers), stream=True)
        return AsyncStream(cast_to=object, response=answer, client=self)

    def made(self, body: bytes, headers: Mapping[str, str]) -> httpx2.Request:
        return httpx2.Request("POST", self.base_url, extensions={"content": body, "headers": dict(headers)})


class Bodiless(Careless):
    def made(self, body: bytes, headers: Mapping[str, str]) -> httpx2.Request:
        return super().made(body[:-1], headers)


class Headless(Careless):
    def made(self, body: bytes, headers: Mapping[str, str]) -> httpx2.Request:
        return super().made(body, {**headers, "Authorization": "Bearer k"})


class Waiting(Careless):
    """It waits for the whole answer of a stream."""

    async def streamed(self, body: bytes, headers: Mapping[str, str]) -> AsyncStream[object]:
        return AsyncStream(cast_to=object, response=await self.whole(body, headers), client=self)


@pytest.mark.parametrize("client", [Client, PublicClient, Careless])
async def test_a_client_that_hands_a_request_on_as_it_was_given_is_used(client: Any) -> None:
    assert await hands_on(client)


@pytest.mark.parametrize("client", [Bodiless, Headless, Waiting, AsyncOpenAI])
async def test_a_client_that_changes_a_request_or_its_answer_is_not_used(client: Any) -> None:
    assert not await hands_on(client)


@pytest.mark.parametrize("hooks", [("_build_request",), ("FinalRequestOptions",), HOOKS], ids=" ".join)
def test_hooks_that_have_moved_are_noticed(hooks: tuple[str, ...], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_USE],
        env=under(moved(tmp_path, *hooks)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout == "False\n", done.stderr


@pytest.mark.soak
def test_everything_on_the_wire_is_the_same_when_the_sdk_has_moved_all_its_hooks(tmp_path: Path) -> None:
    """The whole of the tests of the wire, on the public way of an SDK whose every hook has another name."""
    files = [str(ROOT / "tests" / name) for name in ON_THE_WIRE]
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *files]
    command += ["-k", f"not ({OFF_THE_WIRE})"]
    done = subprocess.run(
        command,
        env=under(moved(tmp_path, *HOOKS)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout


def test_a_run_says_once_that_the_sdk_has_moved_its_hooks_and_is_the_same_run(tmp_path: Path) -> None:
    (tmp_path / "sdk").mkdir()
    ahead = under(moved(tmp_path / "sdk", "_build_request"))["PYTHONPATH"]
    shell = Shell(tmp_path, {"OPENAI_API_KEY": "k", "PYTHONPATH": ahead, "PYTHONDONTWRITEBYTECODE": "1"})
    shell.write("job.py", JOB)
    shell.rows(40)
    with (
        served(lambda _: chat('{"answer": "x"}')) as server,
        shell.started("run", "job.py", "--base-url", server.base_url, "--quiet", "--json", "--processes", "2") as child,
    ):
        done = ended(child, within_s=300.0)
    assert done.json.items() >= {"ok": 40, "failed": 0, "exit_code": 0}.items()
    assert done.err.count(f"note: {CHANGED_SDK}") == 1
    assert len(shell.output()) == len(server.calls) == 40


def under(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), "PYTHONDONTWRITEBYTECODE": "1"}
