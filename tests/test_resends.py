"""What left this process is counted: a call is sent again from the queue like any other, and bounded."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import pytest

from pipeline.data import Request
from pipeline.endpoint.client import Endpoint, EndpointAddress, open_endpoint
from pipeline.endpoint.token_source import ApiKey, TokenSource
from pipeline.endpoint.transport import IDLE_S, ROUND_TRIP_S
from pipeline.faults import Fault, ProviderUnusable, Throttled, Unavailable
from pipeline.policy import Dispatcher, Limits, LocalUpstream, Shutdown
from pipeline.totals.counters import Counters
from tests.servers import Answer, Call, Raw, Says, Script, Server, chat, error, scripted

pytestmark = pytest.mark.anyio

PAYLOAD = {"model": "google/gemini-test", "messages": [{"role": "user", "content": "hello"}]}
REQUEST = Request(0, PAYLOAD)
STREAMED = Request(0, {**PAYLOAD, "stream": True})


@dataclass
class SetClock:
    """A clock that goes on when it is told to."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class ResendRig:
    """An endpoint behind the queue of a run, the server that it asks, and what was counted."""

    endpoint: Endpoint
    server: Server
    clock: SetClock
    counters: Counters = field(default_factory=Counters)

    def __post_init__(self) -> None:
        lane = LocalUpstream("here", self.endpoint.ask, rate=None)
        self.dispatcher = Dispatcher([lane], Limits(32), stop=Shutdown(), counters=self.counters, give_up_s=1800.0)
        self.ask = self.dispatcher.ask


@asynccontextmanager
async def rig(script: Script, token: TokenSource | None = None) -> AsyncIterator[ResendRig]:
    clock = SetClock()
    async with (
        scripted(script) as server,
        open_endpoint(
            EndpointAddress.url(server.base_url),
            token or ApiKey("sk-canary"),
            connections=32,
            timeout_s=20,
            clock=clock,
        ) as endpoint,
    ):
        yield ResendRig(endpoint, server, clock)


CLOSED, RESET = Raw(), Raw(resets=True)
ENDINGS = pytest.mark.parametrize("says", [CLOSED, RESET], ids=["closed", "reset"])


def close_kept(says: Says) -> Script:
    """Says so to the second request of every connection, as a server does that has just closed it."""
    seen: set[int] = set()

    def script(call: Call) -> Says:
        kept = call.connection in seen
        seen.add(call.connection)
        return says if kept else chat("hello")

    return script


@ENDINGS
async def test_h5_a_connection_closed_while_it_was_idle_costs_one_counted_request_and_no_attempt(says: Says) -> None:
    async with rig(close_kept(says)) as to:
        for _ in range(4):
            reply = await to.ask(REQUEST)
            assert reply.attempts == 1
            to.clock.now += IDLE_S
        assert len(to.server.calls) == to.counters.requests == 7


@ENDINGS
async def test_h5_a_connection_that_ends_soon_after_its_last_use_was_ended_for_its_request(says: Says) -> None:
    async with rig(close_kept(says)) as to:
        await to.ask(REQUEST)
        to.clock.now += IDLE_S * 0.9
        with pytest.raises(Unavailable) as caught:
            await to.ask(REQUEST)
        assert caught.value.cause in {"closed", "reset"}
        assert len(to.server.calls) == to.counters.requests == 2


@ENDINGS
async def test_h5_h11_a_request_that_was_worked_on_before_its_connection_closed_is_not_sent_again(says: Says) -> None:
    """A server that dies of a request has seen it, and may bill it, however long the connection had been idle."""
    clocks: list[SetClock] = []

    def script(call: Call) -> Says:
        if call.number == 0:
            return chat("hello")
        clocks[0].now += ROUND_TRIP_S * 1.1
        return says

    async with rig(script) as to:
        clocks.append(to.clock)
        await to.ask(REQUEST)
        to.clock.now += 60
        with pytest.raises(Unavailable):
            await to.ask(REQUEST)
        assert len(to.server.calls) == to.counters.requests == 2


@pytest.mark.parametrize("request_", [REQUEST, STREAMED], ids=["whole", "streamed"])
async def test_h5_h11_a_server_that_closes_every_connection_sees_what_is_counted(request_: Request) -> None:
    """Kept connections, however many, give a row no unseen tries: 36 requests were once sent for two attempts."""
    async with rig(lambda call: CLOSED if b"poison" in call.body else chat("hello")) as to:
        async with anyio.create_task_group() as tasks:
            for number in range(16):
                tasks.start_soon(to.ask, Request(number, PAYLOAD))
        poison = {**request_.payload, "messages": [{"role": "user", "content": "poison"}]}
        for attempt in range(1, 4):
            to.clock.now += 5
            with pytest.raises(Unavailable):
                await to.ask(Request(99, poison))
            sent = [call for call in to.server.calls if b"poison" in call.body]
            assert len(sent) <= 2 * attempt
            assert len(to.server.calls) == to.counters.requests


async def test_h5_after_one_stale_connection_the_others_as_old_are_not_tried() -> None:
    """A server that was restarted knows none of them: one request finds out, and the rest begin new connections."""
    old: set[int] = set()

    def script(call: Call) -> Says:
        return CLOSED if call.connection in old else chat("hello")

    async with rig(script) as to:
        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(to.ask, Request(number, PAYLOAD))
        old |= {call.connection for call in to.server.calls}
        to.clock.now += 30
        for _ in range(9):
            await to.ask(REQUEST)
        assert len(to.server.calls) == to.counters.requests == 8 + 1 + 9


async def test_h5_an_answer_that_has_begun_is_not_sent_again() -> None:
    cut = Raw(b"HTTP/1.1 200 OK\r\nContent-Le")
    async with rig(lambda call: cut if call.number else chat("hello")) as to:
        await to.ask(REQUEST)
        to.clock.now += 60
        with pytest.raises(Unavailable):
            await to.ask(REQUEST)
        assert len(to.server.calls) == to.counters.requests == 2


class RenewedToken:
    """A token of which the server may have enough."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.number = 0

    async def __call__(self) -> str:
        return f"token-{self.number}"

    async def renew(self, rejected: str) -> None:
        self.number += rejected == f"token-{self.number}"


def rejecting(*tokens: str) -> Script:
    return lambda call: (
        error(401, "UNAUTHENTICATED") if call.headers["Authorization"].split()[1] in tokens else chat("hello")
    )


async def test_t5_a_call_whose_token_was_revoked_is_sent_again_once_counted_and_uses_no_attempt() -> None:
    async with rig(rejecting("token-0"), RenewedToken()) as to:
        assert (await to.ask(REQUEST)).attempts == 1
        assert len(to.server.calls) == to.counters.requests == 2


async def test_t6_a_401_to_the_renewed_token_is_denied_with_the_servers_words() -> None:
    async with rig(rejecting("token-0", "token-1"), RenewedToken()) as to:
        with pytest.raises(ProviderUnusable, match="does not accept a fresh token either: 401 UNAUTHENTICATED"):
            await to.ask(REQUEST)
        assert len(to.server.calls) == to.counters.requests == 2


async def test_a_stale_connection_a_revoked_token_and_a_throttle_in_one_call_are_three_counted_requests() -> None:
    says: list[Says] = [chat("hello"), CLOSED, error(401), error(429, "RESOURCE_EXHAUSTED"), chat("hello")]
    async with rig(lambda call: says[call.number], RenewedToken()) as to:
        await to.ask(REQUEST)
        to.clock.now += 60
        await to.ask(REQUEST)
        assert len(to.server.calls) == to.counters.requests == 5


# Why there was no answer


async def _cause(script: Script) -> Fault:
    async with rig(script) as to:
        with pytest.raises(Fault) as caught:
            await to.ask(REQUEST)
    return caught.value


async def test_h5_a_header_of_60_kb_is_borne() -> None:
    head = {"Content-Type": "application/json", "Content-Security-Policy": "x" * 60_000}
    async with rig(lambda _: Answer(chat("hello").body, headers=head)) as to:
        await to.ask(REQUEST)


async def test_a_header_without_end_is_unavailable() -> None:
    head = {"Content-Type": "application/json", "Content-Security-Policy": "x" * 80_000}
    assert type(await _cause(lambda _: Answer(chat("hello").body, headers=head))) is Unavailable


async def test_throttled_is_no_failure_of_the_connection() -> None:
    async with rig(lambda call: chat("hello") if call.number else error(429)) as to:
        with pytest.raises(Throttled):
            await to.endpoint.ask(REQUEST)
