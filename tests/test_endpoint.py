"""The endpoint on the wire: what is sent, what every answer means, and that no answer whatever is more than a fault."""

from __future__ import annotations

import gc
import gzip
import socket
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import AsyncOpenAI

from pipeline.data import Reply, Request, Usage
from pipeline.emulator import Options
from pipeline.emulator.vertex import emulated
from pipeline.endpoint.auth import find_credentials, refreshing
from pipeline.endpoint.client import Endpoint, EndpointAddress, open_endpoint
from pipeline.endpoint.token_source import ApiKey, TokenSource
from pipeline.faults import Expired, Fault, InvalidRow, ProviderUnusable, Refused, Throttled, Unavailable, Unparsable
from tests.servers import (
    Answer,
    Call,
    Drip,
    Raw,
    Says,
    Script,
    Server,
    Silence,
    Stall,
    bomb,
    chat,
    error,
    scripted,
    served,
)

pytestmark = pytest.mark.anyio

PAYLOAD = {"model": "google/gemini-test", "messages": [{"role": "user", "content": "Grüß dich"}]}
REQUEST = Request(0, PAYLOAD)
STREAMED = Request(0, {**PAYLOAD, "stream": True})


@asynccontextmanager
async def connected(
    script: Script, token: TokenSource | None = None, *, timeout_s: float = 20.0, idle_timeout_s: float = 10.0
) -> AsyncIterator[tuple[Endpoint, Server]]:
    """An endpoint, and the scripted server that it asks."""
    async with (
        scripted(script) as server,
        open_endpoint(
            EndpointAddress.url(server.base_url),
            token or ApiKey("sk-canary"),
            connections=32,
            timeout_s=timeout_s,
            idle_timeout_s=idle_timeout_s,
        ) as endpoint,
    ):
        yield endpoint, server


async def fault_of(says: Says, request: Request = REQUEST, **options: Any) -> Fault:
    """The fault that an answer is turned into."""
    async with connected(lambda _: says, **options) as (endpoint, server):
        with pytest.raises(Fault) as caught:
            await endpoint.ask(request)
        assert len(server.calls) == 1
    return caught.value


class Renewable:
    """A token of which the server may have enough: `renew` makes the next one, once for all who hold the old one."""

    def __init__(self, **headers: str) -> None:
        self.headers = headers
        self.renewals: list[str] = []
        self._number = 0

    async def __call__(self) -> str:
        return f"token-{self._number}"

    async def renew(self, rejected: str) -> None:
        self.renewals.append(rejected)
        if rejected == f"token-{self._number}":
            self._number += 1


# What is sent


async def test_a_request_goes_out_as_it_is_with_token_quota_project_and_headers_of_its_own() -> None:
    token = Renewable(**{"x-goog-user-project": "billed-project"})
    request = Request(0, PAYLOAD, {"X-Vertex-AI-LLM-Shared-Request-Type": "flex"})
    async with connected(lambda _: chat("hello"), token) as (endpoint, server):
        await endpoint.ask(request)
        call = server.calls[0]
    assert (call.method, call.path) == ("POST", "/v1/chat/completions")
    assert call.body == orjson.dumps(PAYLOAD)
    assert call.headers["Authorization"] == "Bearer token-0"
    assert call.headers["Content-Type"] == "application/json"
    assert call.headers["x-goog-user-project"] == "billed-project"
    assert call.headers["X-Vertex-AI-LLM-Shared-Request-Type"] == "flex"
    assert call.headers["Host"] == server.origin.removeprefix("http://")
    assert "Cookie" not in call.headers


async def test_a_request_has_the_headers_that_the_sdk_gives_it_but_those_of_its_own_retries_and_transport() -> None:
    """Ours are merged once for all requests; the SDK's own way of building them says what they must be."""
    async with connected(lambda _: chat("hello")) as (endpoint, server):
        await endpoint.ask(REQUEST)
        async with AsyncOpenAI(base_url=server.base_url, api_key="sk-canary", max_retries=0) as plain:
            await plain.post("/chat/completions", body=PAYLOAD, cast_to=object)
        ours, theirs = ({name.lower(): value for name, value in call.headers.items()} for call in server.calls)
    own = {"x-stainless-retry-count", "x-stainless-read-timeout", "accept-encoding", "connection", "content-length"}
    assert ours["authorization"] == "Bearer sk-canary"
    assert {name: ours[name] for name in ours.keys() - own} == {name: theirs[name] for name in theirs.keys() - own}


async def test_a_reply_is_the_body_byte_for_byte_with_its_usage() -> None:
    answer = chat("hello")
    async with connected(lambda _: answer) as (endpoint, _):
        reply = await endpoint.ask(REQUEST)
    assert reply.body == answer.body
    assert reply.usage == Usage(input=10, output=5)
    assert reply.attempts == 1
    assert reply.latency_s > 0
    assert reply.finished_at > 1_700_000_000_000_000


async def test_a_compressed_answer_is_kept_inflated() -> None:
    plain = chat("hello" * 1000)
    packed = Answer(gzip.compress(plain.body), headers={"Content-Encoding": "gzip"})
    async with connected(lambda _: packed) as (endpoint, _):
        assert (await endpoint.ask(REQUEST)).body == plain.body


@pytest.mark.parametrize("value", ["\ud800", 2**64, {1, 2}])
async def test_h10_a_request_that_is_no_json_fails_its_row_and_is_not_sent(value: object) -> None:
    async with connected(lambda _: chat("hello")) as (endpoint, server):
        with pytest.raises(InvalidRow, match="cannot be written as JSON"):
            await endpoint.ask(Request(0, {**PAYLOAD, "user": value}))
        assert server.calls == []


@pytest.mark.parametrize(("old", "new"), [("127.0.0.1", "LOCALHOST"), ("http:", "HTTP:"), ("/v1", "/v1/")])
async def test_a_base_url_may_be_written_in_other_ways(old: str, new: str) -> None:
    async with scripted(lambda _: chat("hello")) as server:
        target = EndpointAddress.url(server.base_url.replace(old, new))
        async with open_endpoint(target, ApiKey("k"), connections=1, timeout_s=10) as endpoint:
            await endpoint.ask(REQUEST)
        assert server.calls[0].path == "/v1/chat/completions"


async def test_the_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted(lambda _: chat("hello")) as proxy:
        monkeypatch.setenv("http_proxy", proxy.origin)
        monkeypatch.delenv("no_proxy", raising=False)
        target = EndpointAddress.url("http://endpoint.invalid/v1")
        async with open_endpoint(target, ApiKey("k"), connections=1, timeout_s=10) as endpoint:
            await endpoint.ask(REQUEST)
        assert proxy.calls[0].headers["Host"] == "endpoint.invalid"


@pytest.mark.parametrize(
    ("location", "host"),
    [
        ("global", "aiplatform.googleapis.com"),
        ("europe-west4", "europe-west4-aiplatform.googleapis.com"),
        ("eu", "aiplatform.eu.rep.googleapis.com"),
    ],
)
def test_vertex_has_a_host_for_every_kind_of_location(location: str, host: str) -> None:
    target = EndpointAddress.vertex("a-project", location)
    assert target.base_url == f"https://{host}/v1/projects/a-project/locations/{location}/endpoints/openapi"


# What an answer means

STATUSES = {
    **dict.fromkeys((300, 301, 302, 303, 304, 307, 308), Refused),
    **dict.fromkeys((400, 413, 422), Refused),
    **dict.fromkeys((403, 404), Refused),
    **dict.fromkeys((408, 409, 499, 500, 502, 503, 504, 529), Unavailable),
    429: Throttled,
}


@pytest.mark.parametrize(("status", "kind"), STATUSES.items())
async def test_every_status_becomes_its_fault(status: int, kind: type[Fault]) -> None:
    fault = await fault_of(error(status, "SOME_CODE", "in its own words"))
    assert type(fault) is kind
    assert fault.http_status == status
    assert "in its own words" in fault.message or status == 304


@pytest.mark.parametrize("wrapped", [True, False])
async def test_errors_are_read_whether_wrapped_in_a_list_or_not(*, wrapped: bool) -> None:
    plain = {"error": {"code": 400, "message": "Unable to submit request", "status": "INVALID_ARGUMENT"}}
    body = orjson.dumps([plain] if wrapped else plain)
    fault = await fault_of(Answer(body, 400))
    assert fault.message == "400 INVALID_ARGUMENT: Unable to submit request"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"Date": "Tue, 03 Nov 2026 10:00:00 GMT", "Retry-After": "Tue, 03 Nov 2026 10:00:30 GMT"}, 30),
        ({"Retry-After": "86400"}, 120),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "ü"}, None),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
async def test_h1_the_servers_hint_to_wait_is_handed_on(
    status: int, headers: dict[str, str], seconds: float | None
) -> None:
    fault = await fault_of(error(status, **headers))
    assert isinstance(fault, Throttled | Unavailable)
    assert fault.retry_after == seconds


NONSENSE = {
    "empty": b"",
    "cut": chat("hello").body[:-20],
    "html": b"<html>It works!</html>",
    "text": b"ok",
    "a list": b"[1]",
    "null": b"null",
    "NaN": b'{"choices": [NaN]}',
    "invalid UTF-8": b'{"choices": "\xff"}',
    "depth": b"[" * 100_000,
    "a number of 5,000 digits and no more": b"9" * 5000,
}


@pytest.mark.parametrize("body", NONSENSE.values(), ids=NONSENSE.keys())
@pytest.mark.parametrize("status", [200, 500])
async def test_h7_a_body_that_is_no_completion_is_unavailable(body: bytes, status: int) -> None:
    fault = await fault_of(Answer(body, status, {"Content-Type": "text/html; charset=latin-1"}))
    assert type(fault) is Unavailable
    assert len(fault.message) < 700


@pytest.mark.parametrize(
    ("code", "kind"), [(429, Throttled), (503, Unavailable), (400, Refused), (403, Refused), (None, Unavailable)]
)
async def test_h7_an_error_inside_a_200_is_the_fault_that_it_names(code: int | None, kind: type[Fault]) -> None:
    body = orjson.dumps([{"error": {"code": code, "message": "in its own words"}}])
    fault = await fault_of(Answer(body))
    assert type(fault) is kind
    assert "in its own words" in fault.message


CODECS = ["base64", "idna", "zlib", "utf-7", "undefined", "no such codec", "\xff"]


@pytest.mark.parametrize("codec", CODECS)
async def test_h7_an_error_that_names_a_strange_codec_is_read_all_the_same(codec: str) -> None:
    head = f"HTTP/1.1 503 X\r\nContent-Type: application/json; charset={codec}\r\nContent-Length: 300\r\n\r\n"
    fault = await fault_of(Raw(head.encode("latin-1") + b"\xff" * 300))
    assert type(fault) is Unavailable
    assert fault.http_status == 503


OWN = "Zq7-a-key-of-no-known-form-Zq7"


@pytest.mark.parametrize("status", [200, 400, 403, 404, 418, 429, 500, 503])
@pytest.mark.parametrize("request_", [REQUEST, STREAMED], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    "form", ['[{{"error": {{"message": "{}"}}}}]', "<html>{}</html>", "{}"], ids=["json", "html", "text"]
)
async def test_s4_a_server_that_tells_what_it_was_sent_does_not_make_us_tell_it(
    status: int, request_: Request, form: str
) -> None:
    said = "Grüß dich heute, Zebulon Quux"
    request_ = replace(request_, payload={**request_.payload, "messages": [{"role": "user", "content": said}]})
    told = form.format(f"{'x' * 470} you sent Bearer {OWN} ({OWN}) and {said}, {OWN}")
    fault = await fault_of(Answer(told.encode(), status), request_, token=ApiKey(OWN))
    assert "x" * 400 in fault.message or "stream" in fault.message
    assert OWN[:8] not in f"{fault.message}{fault}"
    assert "Zebulon" not in f"{fault.message}{fault}"


async def test_s4_a_key_that_comes_back_in_an_answer_is_not_kept() -> None:
    whole, parts = chat(f"your key is {OWN}"), [OWN[:5], OWN[5:]]
    chunks = [{"choices": [{"index": 0, "delta": {"content": part}}]} for part in parts]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    events = b"".join(b"data: " + orjson.dumps(chunk) + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"
    streamed = Answer(events, headers={"Content-Type": "text/event-stream"})
    for request in (REQUEST, STREAMED):
        async with connected(lambda call: streamed if "stream" in call.json() else whole, ApiKey(OWN)) as (endpoint, _):
            body = (await endpoint.ask(request)).body
        assert OWN.encode() not in body
        assert b"[redacted]" in body


async def test_s4_a_token_in_an_error_body_does_not_reach_the_message() -> None:
    fault = await fault_of(error(400, message="bad token ya29.canary-secret"))
    assert "canary" not in fault.message


HEADERS = st.sampled_from(
    [
        b"Content-Length: 5",
        b"Content-Length: -1",
        b"Content-Length: 5\r\nContent-Length: 6",
        b"Transfer-Encoding: chunked",
        b"Content-Encoding: gzip",
        b"Content-Encoding: br",
        b"Content-Type: application/json; charset=\xff",
        b"Retry-After: \xff",
        b"Date: yesterday",
        b"Location: ftp://elsewhere",
        b"Set-Cookie: a=\x00",
        b": nameless",
        b"folded:\r\n value",
    ]
)
BODIES = st.one_of(st.binary(max_size=40), st.just(chat("hello").body), st.just(b"5\r\nabcde\r\n0\r\n\r\n"))
ANSWERS = st.builds(
    lambda status, headers, body: b"HTTP/1.1 %d X\r\n%s\r\n\r\n%s" % (status, b"\r\n".join(headers), body),
    st.one_of(st.sampled_from([200, 204, 302, 401, 429, 500]), st.integers(0, 1000)),
    st.lists(HEADERS, max_size=3),
    BODIES,
)


def test_h7_no_bytes_whatever_make_more_than_a_fault() -> None:
    async def ask_all(server: Server, answers: list[bytes]) -> list[Reply | Fault]:
        server.script = lambda call: Raw(answers[call.number % len(answers)])
        target = EndpointAddress.url(server.base_url)
        async with open_endpoint(target, ApiKey("k"), connections=1, timeout_s=10) as endpoint:
            return [await outcome(endpoint) for _ in answers]

    async def outcome(endpoint: Endpoint) -> Reply | Fault:
        try:
            return await endpoint.ask(REQUEST)
        except Fault as fault:
            return fault

    with served(lambda _: Silence()) as running:

        @settings(deadline=None, max_examples=25)
        @given(st.lists(ANSWERS, min_size=10, max_size=10))
        def check(answers: list[bytes]) -> None:
            assert len(anyio.run(ask_all, running.server, answers)) == len(answers)

        check()


# Tokens


def rejecting(*tokens: str) -> Script:
    """Answers 401 to some tokens."""

    def answer(call: Call) -> Says:
        return error(401, "UNAUTHENTICATED") if call.headers["Authorization"].split()[1] in tokens else chat("hello")

    return answer


async def test_t5_a_401_renews_the_token_and_leaves_it_to_the_caller_to_send_the_call_again() -> None:
    token = Renewable()
    async with connected(rejecting("token-0"), token) as (endpoint, server):
        with pytest.raises(Expired, match="401 UNAUTHENTICATED"):
            await endpoint.ask(REQUEST)
        await endpoint.ask(REQUEST)
        assert [call.headers["Authorization"] for call in server.calls] == ["Bearer token-0", "Bearer token-1"]
    assert token.renewals == ["token-0"]


async def test_t6_a_401_to_an_api_key_is_denied_with_the_remedy() -> None:
    async with connected(rejecting("sk-canary")) as (endpoint, server):
        with pytest.raises(ProviderUnusable, match="OPENAI_API_KEY"):
            await endpoint.ask(REQUEST)
        assert len(server.calls) == 1


class Restless(Renewable):
    """A token that is refreshed at every look."""

    async def __call__(self) -> str:
        self._number += 1
        return f"token-{self._number}"


async def test_the_token_that_is_renewed_is_the_one_that_was_rejected() -> None:
    token = Restless()
    async with connected(lambda _: error(401), token) as (endpoint, server):
        with pytest.raises(Expired):
            await endpoint.ask(REQUEST)
        sent = server.calls[0].headers["Authorization"]
    assert token.renewals == [sent.removeprefix("Bearer ")]


async def test_a_wait_for_the_token_is_not_counted_against_the_deadline_of_the_attempt() -> None:
    class Late(Renewable):
        async def __call__(self) -> str:
            await anyio.sleep(0.3)
            return "token-0"

    async with connected(lambda _: chat("hello"), Late(), timeout_s=0.2) as (endpoint, _):
        await endpoint.ask(REQUEST)


async def test_t5_one_renewal_serves_all_calls_that_meet_a_revoked_token() -> None:
    async with emulated(Options()) as vertex:
        credentials, _ = find_credentials(Path(vertex.address.credentials_file))
        async with (
            refreshing(credentials) as token,
            open_endpoint(
                EndpointAddress.url(vertex.address.base_url), token, connections=50, timeout_s=20
            ) as endpoint,
        ):
            await endpoint.ask(REQUEST)
            await vertex.control(revoke=True)
            async with anyio.create_task_group() as tasks:
                for _ in range(50):
                    tasks.start_soon(_ask_again_once_renewed, endpoint)
            stats = await vertex.stats()
    assert stats["answers"] == 51
    assert stats["by_status"]["401"] <= 50
    assert stats["token_refreshes"] == token.refreshes == 2


async def _ask_again_once_renewed(endpoint: Endpoint) -> None:
    try:
        await endpoint.ask(REQUEST)
    except Expired:
        await endpoint.ask(REQUEST)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_h12_a_redirect_is_not_followed_and_our_token_goes_nowhere_else(status: int) -> None:
    async with scripted(lambda _: chat("stolen")) as thief:
        fault = await fault_of(error(status, Location=f"{thief.origin}/v1/chat/completions"))
        assert isinstance(fault, Refused)
        assert "redirects are not followed" in fault.message
        assert thief.calls == []


# Bodies without end


@pytest.mark.parametrize(
    "answer",
    [
        Answer(b" " * (17 * 2**20)),
        Answer(bomb(500), headers={"Content-Encoding": "gzip"}),
        Answer(bomb(500), 500, {"Content-Encoding": "gzip"}),
    ],
    ids=["17 MB", "bomb", "error bomb"],
)
async def test_h9_a_body_beyond_16_mb_fails_its_row_with_bounded_memory(answer: Answer) -> None:
    async with connected(lambda call: answer if call.number == 0 else chat("hello")) as (endpoint, _):
        tracemalloc.start()
        try:
            with pytest.raises(Unparsable, match="larger than 16 MB"):
                await endpoint.ask(REQUEST)
            assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
        finally:
            tracemalloc.stop()
        await endpoint.ask(REQUEST)


async def test_h9_a_body_of_just_16_mb_is_read() -> None:
    body = chat("hello").body
    async with connected(lambda _: Answer(body + b" " * (16 * 2**20 - len(body)))) as (endpoint, _):
        assert len((await endpoint.ask(REQUEST)).body) == 16 * 2**20


# Time and connections


@pytest.mark.parametrize("says", [Silence(), Drip()], ids=["silence", "drip"])
@pytest.mark.parametrize("request_", [REQUEST, STREAMED], ids=["whole", "streamed"])
async def test_h6_an_answer_that_does_not_end_is_given_up_at_the_deadline_and_others_go_on(
    says: Says, request_: Request
) -> None:
    async with (
        connected(lambda call: says if call.number == 0 else chat("hello"), timeout_s=0.3) as (endpoint, server),
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(_give_up, endpoint, request_)
        await server.arrived(1)
        for _ in range(5):
            await endpoint.ask(REQUEST)


async def _give_up(endpoint: Endpoint, request: Request) -> None:
    with pytest.raises(Unavailable, match=r"no answer within 0\.3 s"):
        await endpoint.ask(request)


async def test_h5_a_refused_connection_is_unavailable() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        target = EndpointAddress.url(f"http://127.0.0.1:{taken.getsockname()[1]}/v1")
        async with open_endpoint(target, ApiKey("k"), connections=1, timeout_s=10) as endpoint:
            with pytest.raises(Unavailable, match="refused the connection: nothing listens there") as caught:
                await endpoint.ask(REQUEST)
    assert caught.value.cause == "refused"


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
BROKEN_OFF = {
    "closed": Raw(),
    "reset": Raw(resets=True),
    "cut in the head": Raw(HEAD),
    "cut in the body": Raw(HEAD + b"Content-Length: 1000\r\n\r\n" + chat("hello").body[:50]),
    "reset in the body": Raw(HEAD + b"Content-Length: 1000\r\n\r\n" + chat("hello").body[:50], resets=True),
    "cut in a chunk": Raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n40\r\n" + chat("hello").body[:50]),
}


@pytest.mark.parametrize("says", BROKEN_OFF.values(), ids=BROKEN_OFF.keys())
async def test_h5_a_connection_that_breaks_off_is_unavailable(says: Says) -> None:
    assert type(await fault_of(says)) is Unavailable


async def test_one_connection_serves_one_call_after_the_other() -> None:
    async with connected(lambda _: chat("hello")) as (endpoint, server):
        for _ in range(10):
            await endpoint.ask(REQUEST)
        assert len({call.connection for call in server.calls}) == 1


async def test_h5_connections_that_the_server_closes_between_calls_cost_nothing() -> None:
    hangs_up = Answer(chat("hello").body, hangs_up=True)
    async with connected(lambda _: hangs_up) as (endpoint, server):
        for _ in range(20):
            await endpoint.ask(REQUEST)
            await anyio.wait_all_tasks_blocked()
        assert len({call.connection for call in server.calls}) == 20


async def test_h5_an_answer_that_has_begun_on_a_kept_connection_is_not_asked_for_twice() -> None:
    cut = Raw(b"HTTP/1.1 200 OK\r\nContent-Le")
    async with connected(lambda call: chat("hello") if call.number == 0 else cut) as (endpoint, server):
        await endpoint.ask(REQUEST)
        with pytest.raises(Unavailable):
            await endpoint.ask(REQUEST)
        assert len(server.calls) == 2


async def test_200_asks_at_once_share_the_connections_and_all_are_answered() -> None:
    replies: list[Reply] = []

    async def ask(endpoint: Endpoint, number: int) -> None:
        messages = [{"role": "user", "content": str(number)}]
        replies.append(await endpoint.ask(Request(number, {**PAYLOAD, "messages": messages})))

    async with connected(lambda call: chat(f"echo {call.prompt}")) as (endpoint, server):
        async with anyio.create_task_group() as tasks:
            for number in range(200):
                tasks.start_soon(ask, endpoint, number)
        assert len({call.connection for call in server.calls}) <= 32
    texts = {orjson.loads(reply.body)["choices"][0]["message"]["content"] for reply in replies}
    assert texts == {f"echo {number}" for number in range(200)}


async def test_everything_is_closed_at_the_end_of_the_block() -> None:
    async with scripted(lambda _: chat("hello")) as server:
        target = EndpointAddress.url(server.base_url)
        async with open_endpoint(target, ApiKey("k"), connections=4, timeout_s=10) as endpoint:
            await endpoint.ask(REQUEST)
        with pytest.raises(RuntimeError):
            await endpoint.ask(REQUEST)
    gc.collect()  # what was left open would warn now, and warnings are errors


async def test_a_cancelled_call_leaves_its_connection_to_nobody_else() -> None:
    async with connected(lambda call: Silence() if call.number == 0 else chat("hello")) as (endpoint, server):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(endpoint.ask, REQUEST)
            await server.arrived(1)
            tasks.cancel_scope.cancel()
        await endpoint.ask(REQUEST)
        assert len({call.connection for call in server.calls}) == 2


# Streams


def chunk(content: str | None = None, **more: Any) -> bytes:
    """One event of a stream as Vertex writes it."""
    choice: dict[str, Any] = {"index": 0, "delta": {"role": "assistant", "content": content}, "logprobs": None}
    return (
        b"data: " + orjson.dumps({"id": "an-id", "choices": [choice | more], "model": "google/gemini-test"}) + b"\n\n"
    )


USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
LAST = b"data: " + orjson.dumps(
    {"choices": [{"index": 0, "delta": {"content": "!"}, "finish_reason": "stop"}], "usage": USAGE}
)
END = b"\n\ndata: [DONE]\n\n"
EVENTS = {"Content-Type": "text/event-stream"}


async def test_a_stream_is_put_together_to_the_completion_that_it_spells() -> None:
    stream = Answer(chunk("Hel") + chunk("lo") + LAST + END, headers=EVENTS)
    async with connected(lambda _: stream) as (endpoint, server):
        for _ in range(3):
            reply = await endpoint.ask(STREAMED)
        assert server.calls[0].json()["stream"] is True
        assert len({call.connection for call in server.calls}) == 1
    assert orjson.loads(reply.body)["choices"][0]["message"]["content"] == "Hello!"
    assert reply.usage == Usage(input=10, output=5)
    assert reply.first_token_s is not None
    assert 0 < reply.first_token_s <= reply.latency_s


BAD_STREAMS = {
    "empty": b"",
    "only the end": END,
    "without its end": chunk("Hel"),
    "html": b"<html>It works!</html>",
    "not JSON": chunk("Hel") + b"data: {oops\n\n" + LAST + END,
    "choices that are a number": b'data: {"choices": 7}' + END,
    "choices that are text": b'data: {"choices": "all"}' + END,
    "a chunk that is a number": b"data: 7" + END,
    "depth": b"data: " + b"[" * 100_000 + END,
}


@pytest.mark.parametrize("body", BAD_STREAMS.values(), ids=BAD_STREAMS.keys())
async def test_h7_a_stream_that_spells_no_completion_is_unavailable(body: bytes) -> None:
    assert type(await fault_of(Answer(body, headers=EVENTS), STREAMED)) is Unavailable


@pytest.mark.parametrize("wrapped", [True, False])
async def test_h7_an_error_within_a_stream_is_the_fault_that_it_names(*, wrapped: bool) -> None:
    told = {"error": {"code": 429, "message": "Resource exhausted", "status": "RESOURCE_EXHAUSTED"}}
    event = b"data: " + orjson.dumps([told] if wrapped else told)
    fault = await fault_of(Answer(chunk("Hel") + event + END, headers=EVENTS), STREAMED)
    assert type(fault) is Throttled
    assert "Resource exhausted" in fault.message


@pytest.mark.parametrize(("status", "kind"), [(400, Refused), (404, Refused), (429, Throttled), (503, Unavailable)])
async def test_an_error_instead_of_a_stream_is_its_fault(status: int, kind: type[Fault]) -> None:
    fault = await fault_of(error(status, message="in its own words"), STREAMED)
    assert type(fault) is kind
    assert "in its own words" in fault.message


async def test_t5_a_401_instead_of_a_stream_renews_the_token() -> None:
    token = Renewable()
    stream = Answer(chunk("Hello") + LAST + END, headers=EVENTS)
    async with connected(lambda call: stream if call.number else error(401), token) as (endpoint, _):
        with pytest.raises(Expired):
            await endpoint.ask(STREAMED)
        await endpoint.ask(STREAMED)
    assert token.renewals == ["token-0"]


async def test_h6_a_stream_that_stands_still_is_given_up() -> None:
    fault = await fault_of(Stall(chunk("Hel")), STREAMED, idle_timeout_s=0.2)
    assert type(fault) is Unavailable
    assert fault.message == "the stream stood still for 0.2 s"


async def test_h5_a_stream_that_is_cut_is_unavailable() -> None:
    cut = Raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n400\r\n" + chunk("Hel"))
    assert type(await fault_of(cut, STREAMED)) is Unavailable


@pytest.mark.parametrize("packed", [True, False])
async def test_h9_a_stream_without_end_fails_its_row(*, packed: bool) -> None:
    answer = Answer(bomb(500), headers={"Content-Encoding": "gzip"}) if packed else Answer(b" " * (17 * 2**20))
    assert type(await fault_of(answer, STREAMED)) is Unparsable
