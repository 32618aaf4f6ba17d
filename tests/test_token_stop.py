"""A run that waits for a token has nothing in flight: its end need not be waited for."""

from __future__ import annotations

import anyio
import pytest
from google.auth.credentials import Credentials
from google.auth.exceptions import TransportError

from pipeline.data import Request
from pipeline.endpoint.auth import GoogleTokenSource
from pipeline.faults import Broken, Interrupted
from pipeline.policy import Dispatcher, Limits, LocalUpstream, Shutdown
from pipeline.totals.counters import Counters
from tests import virtual

anyio_backend = virtual.anyio_backend
pytestmark = pytest.mark.anyio


class Down(Credentials):
    """Credentials whose token server cannot be reached."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # google-auth leaves it so

    def refresh(self, request: object) -> None:  # noqa: ARG002 - part of google-auth's interface
        raise TransportError("connection refused")  # type: ignore[no-untyped-call] # google-auth leaves it so


async def test_p2_calls_that_wait_for_a_token_end_with_the_run_and_were_no_requests() -> None:
    token, stop, counters = GoogleTokenSource(Down(), clock=anyio.current_time), Shutdown(), Counters()

    async def ask(_: Request) -> object:
        return await token()

    dispatcher = Dispatcher([LocalUpstream("one", ask)], Limits(4), stop=stop, counters=counters, give_up_s=60.0)  # type: ignore[arg-type] # it never answers
    stop.then(token.leave)
    interrupted: list[int] = []

    async def row(ordinal: int) -> None:
        with pytest.raises(Interrupted):
            await dispatcher.ask(Request(ordinal, {}))
        interrupted.append(ordinal)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(token.keep)
        async with anyio.create_task_group() as rows:
            for ordinal in range(10):
                rows.start_soon(row, ordinal)
            await anyio.sleep(5.0)
            assert counters.in_flight == 4
            stop.request(Broken("the end"))
        assert anyio.current_time() < 6.0
        tasks.cancel_scope.cancel()
    assert len(interrupted) == 10
    assert (counters.in_flight, counters.requests) == (0, 0)


async def test_p2_a_token_that_lives_still_serves_when_the_run_is_stopping() -> None:
    token = GoogleTokenSource(Down(), clock=anyio.current_time)
    token._token, token._expires = "alive", anyio.current_time() + 100.0
    token.leave()
    assert await token() == "alive"


def test_what_follows_the_stop_is_done_once_also_when_it_was_asked_for_before() -> None:
    stop, done = Shutdown(), list[str]()
    stop.then(lambda: done.append("before"))
    stop.request(Interrupted("one"))
    stop.request(Broken("another"))
    stop.then(lambda: done.append("after"))
    assert done == ["before", "after"]
