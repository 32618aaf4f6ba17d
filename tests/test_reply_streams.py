"""Streams in every form, the endpoint that reads them, and the time that reading takes."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import Usage
from pipeline.endpoint.server_sent_events import EventReader
from pipeline.endpoint.stream import Arriving, whole_body
from pipeline.endpoint.wire import read_completion
from pipeline.faults import Fault, Throttled, Unavailable
from tests.mutations import MESSAGES, mutated, written
from tests.replies import (
    DONE,
    PLAIN,
    TEXT,
    USAGE,
    Json,
    connected,
    ended,
    event,
    plain,
    request,
    streamed,
    whole,
)
from tests.servers import Answer as Says

pytestmark = pytest.mark.anyio

# Streams. openai-python#2721, openai-python#2722, llmgateway#2334, ark#2519, one-api#1408


def feed(stream: bytes, cuts: Sequence[int]) -> bytes:
    """The body of a stream that comes in pieces."""
    arriving = Arriving()
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    for start, end in itertools.pairwise(places):
        arriving.feed(stream[start:end])
    arriving.end()
    return arriving.body()


A = event({"id": "x", "choices": [{"index": 0, "delta": {"content": "The refund was NOT "}}]})
B = event(
    {"id": "x", "choices": [{"index": 0, "delta": {"content": "granted."}, "finish_reason": "stop"}], "usage": USAGE}
)
STREAMS = {
    "plain": A + B + DONE,
    "control characters": A.replace(b'"id"', b'"a\x0b\x85\x0c\t": 1, "id"') + B + DONE,
    "byte order mark": b"\xef\xbb\xbf" + A + B + DONE,
    "blank lines first": b"\n\n\n" + A + B + DONE,
    "byte order mark and blank lines": b"\xef\xbb\xbf\n\n" + A + B + DONE,
    "carriage returns": (A + B + DONE).replace(b"\n", b"\r\n"),
    "only carriage returns": (A + B + DONE).replace(b"\n", b"\r"),
    "comments": b": ping\n\n" + A + b":\n\n" + B + b": bye\n\n" + DONE,
    "ids and pings": b"id: 1\n" + A + b": ping\n\n" + b"id: 2\n" + B + DONE,
    "a time to reconnect": b"retry: 3000\n\n" + A + B + DONE,
    "empty data": b"data:\n\ndata: \n\n" + A + b"event: ping\ndata: \n\n" + B + DONE,
    "an empty object": A + b"event: ping\ndata: {}\n\n" + B + DONE,
    "null": A + b"data: null\n\n" + B + DONE,
    "no blank after the colon": (A + B + DONE).replace(b"data: ", b"data:"),
    "data over two lines": A.replace(b', "choices"', b',\ndata: "choices"') + B + DONE,
    "names of events": (A + B).replace(b"data:", b"event: message\ndata:") + DONE,
    "no end": A + B,
    "not even the last line's": A + B[:-2],
    "more after the end": A + B + DONE + b"data: {oops\n\n",
    "usage in a chunk of its own": A + B + event({"choices": [], "usage": USAGE}) + DONE,
    "Azure's first chunk": event({"id": "", "choices": [], "prompt_filter_results": [{"prompt_index": 0}]}) + A + B,
    "a message": event(whole({"role": "assistant", "content": "The refund was NOT granted."})) + DONE,
    "a message that says all again": A
    + B.replace(b', "finish_reason": "stop"', b"")
    + event(whole({"content": "The refund was NOT granted."}))
    + DONE,
    "chunks in lists": (A + B).replace(b"data: {", b"data: [{").replace(b"}\n\n", b"}]\n\n") + DONE,
    "a plain body": written(whole({"content": "The refund was NOT granted."})),
    "a plain body after a blank line": b"\n" + written(whole({"content": "The refund was NOT granted."})),
    "a plain body in UTF-16": written(whole({"content": "The refund was NOT granted."})).decode().encode("utf-16"),
}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS.keys())
def test_h8a_a_stream_in_every_form_is_its_answer_wherever_it_is_cut(stream: bytes) -> None:
    dice = Random(7)
    every = [range(len(stream)), *([dice.randrange(len(stream)) for _ in range(5)] for _ in range(40)), []]
    for cuts in every:
        assert ended(TEXT, feed(stream, cuts)) == "The refund was NOT granted."


@settings(deadline=None)
@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), min_size=1).filter(str.strip), max_size=5
    ),
    st.sampled_from(["\n", "\r", "\r\n"]),
    st.lists(st.integers(0, 10**6), max_size=8),
)
def test_h8a_events_are_the_same_however_their_bytes_are_cut(lines: list[str], end: str, cuts: list[int]) -> None:
    stream = "".join(f"data: {line}{end}{end}" for line in lines).encode()
    reader, found = EventReader(), []
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    for start, stop in itertools.pairwise(places):
        found += reader.feed(stream[start:stop])
    assert [*found, *reader.end()] == [line.encode() for line in lines]


def test_h8a_a_stream_that_is_not_to_its_end_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="ended before"):
        whole_body(A + DONE)


def test_h8a_any_message_is_the_same_answer_streamed_or_not() -> None:
    """20,000 messages with something of another type in them."""
    for seed in range(20_000):
        dice = Random(seed)
        message = mutated(dice.choice(MESSAGES), dice, dice.choice([0, 1, 1, 2]))
        finish = dice.choice(["stop", "length", "SAFETY", "error", 7, True])
        error = {"error": {"code": 429, "message": "m"}} if dice.random() < 0.1 else {}
        as_one, in_pieces = (_answers(make, message, finish, error) for make in (plain, streamed))
        assert as_one == in_pieces, (seed, message)


def _answers(make: Callable[..., bytes], message: object, finish: object, error: Json) -> object:
    try:
        return read_completion(whole_body(make(message, finish, **error))).answers
    except Fault as fault:
        return type(fault)


# Through the endpoint.


@pytest.mark.parametrize("asked", [False, True], ids=["unstreamed", "streamed"])
@pytest.mark.parametrize("given", ["body", "stream"])
@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
async def test_h8a_streams_and_plain_bodies_are_read_whichever_was_asked_for(
    *, asked: bool, given: str, kind: str
) -> None:
    bodies = {"body": written(whole({"content": "Lima."})), "stream": streamed({"content": "Lima."})}
    async with connected(lambda _: Says(bodies[given], 200, {"Content-Type": kind})) as (endpoint, server):
        for _ in range(2):
            reply = await endpoint.ask(request(stream=asked))
            assert ended(TEXT, reply.body) == "Lima."
            assert reply.usage == Usage(9, 4)
        assert len({call.connection for call in server.calls}) == 1


KEY = "sk-canary-key"
TELLING: list[object] = [whole({"content": f"your {KEY}!"}), {"error": {"message": f"your {KEY}!"}}, [KEY]]


@pytest.mark.parametrize("document", TELLING, ids=["an answer", "an error", "neither"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32-le"])
@pytest.mark.parametrize("asked", [False, True], ids=["unstreamed", "streamed"])
async def test_s4_a_key_that_comes_back_in_another_encoding_is_neither_kept_nor_told(
    *, asked: bool, encoding: str, document: object
) -> None:
    async with connected(lambda _: Says(json.dumps(document).encode(encoding))) as (endpoint, _):
        try:
            kept = (await endpoint.ask(request(stream=asked))).body.decode(encoding)
        except Fault as fault:
            kept = fault.message
    assert "[redacted]" in kept
    assert "canary" not in kept


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32-le"])
@pytest.mark.parametrize("asked", [False, True], ids=["unstreamed", "streamed"])
async def test_h8a_a_body_is_kept_byte_for_byte_in_its_own_encoding(*, asked: bool, encoding: str) -> None:
    async with connected(lambda _: Says(PLAIN.encode(encoding))) as (endpoint, _):
        assert (await endpoint.ask(request(stream=asked))).body == PLAIN.encode(encoding)


@pytest.mark.parametrize("asked", [False, True], ids=["unstreamed", "streamed"])
@pytest.mark.parametrize(
    ("reason", "error", "kind"),
    [("error", None, Unavailable), ("OTHER", None, Unavailable), ("stop", {"code": 429, "message": "m"}, Throttled)],
)
async def test_h8_an_answer_worth_another_try_is_a_fault_that_carries_what_was_paid(
    *, asked: bool, reason: str, error: object, kind: type[Fault]
) -> None:
    """The kept reply, read again, is the same fault: a row whose tries are used up ends the same way."""
    make = streamed if asked else plain
    body = make({"content": "The council will"}, reason, **({"error": error} if error else {}))
    async with connected(lambda _: Says(body)) as (endpoint, _):
        with pytest.raises(kind) as caught:
            await endpoint.ask(request(stream=asked))
    reply = caught.value.reply
    assert reply.usage == Usage(9, 4)
    again = ended(TEXT, reply.body)
    assert (type(again), again.message) == (kind, caught.value.message)


@pytest.mark.parametrize("reason", ["stop", "length", "SAFETY"])
async def test_h8_what_another_try_would_not_change_is_a_reply(reason: str) -> None:
    async with connected(lambda _: Says(plain({"content": "x"}, reason))) as (endpoint, _):
        assert (await endpoint.ask(request())).usage == Usage(9, 4)


# Time. Quadratic readers would take minutes for these.

_SLOW = """
import resource
import orjson
from pipeline.data import Reply
from pipeline.job.reply_parser import ReplyParser
from pipeline.endpoint.stream import Arriving, whole_body

def stream(deltas):
    chunks = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    return b"".join(b"data: " + orjson.dumps(chunk) + b"\\n\\n" for chunk in chunks)

def calls(**call):
    return {"tool_calls": [call]}

N = 25_000
BODIES = [
    stream([{"audio": {"data": "A" * 48}}] * N),
    stream([{"tool_calls": [{"id": "a", "function": {"arguments": "}"}}]}] * (4 * N)),
    stream([calls(id="a", function={"name": "f", "arguments": '{"a": "' + "x" * 50})] * N),
    stream([calls(id=str(n), function={"name": "f", "arguments": "{}"}) for n in range(N)]),
    stream([calls(index=n, function={"name": "f", "arguments": "{}"}) for n in range(N)]),
    stream([{"content": "x"}] * N),
    b"data: " + b"\\ndata: ".join([b" "] * N) + b"\\n\\n" + stream([{"content": "x"}]),
    b"data:\\n" * (4 * N) + b"\\n" + stream([{"content": "x"}]),
    b"\\n" * (16 * 2**20 - 200) + stream([{"content": "x"}]),
    orjson.dumps({"choices": [{"message": {"content": "<thought></thought>" * (32 * N)}}]}),
    orjson.dumps({"choices": [{"message": {"content": "<thought>" * N}}]}),
    orjson.dumps({"choices": [{"message": {"content": [{"text": "x"}] * N}}]}),
    orjson.dumps({"choices": [{"message": {"content": " " * (10 * N)}}]}),
    orjson.dumps({"choices": [{"message": {"refusal": "eyJ-" * N}}]}),
    orjson.dumps({"choices": [], "promptFeedback": {"blockReason": "eyJ-" * N}}),
    orjson.dumps({"choices": [{"message": {"content": "x"}, "finish_reason": "sk-" * N}]}),
    b'{"choices": [{"message": {"content": "' + b"\\\\ud83d" * N + b'"}}]}',
]
for body in BODIES:
    used = resource.getrusage(resource.RUSAGE_SELF)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + 20, resource.RLIM_INFINITY))
    ReplyParser(None, marker="thought").outcome(0, Reply(whole_body(body)))
arriving = Arriving()
for at in range(0, len(BODIES[0]), 7):
    arriving.feed(BODIES[0][at : at + 7])
arriving.end()
"""


def test_s10_what_a_server_sends_is_read_in_linear_time() -> None:
    """Seventeen replies of up to 16 MB, each within 20 s of processor time: a quadratic reader takes hours."""
    done = subprocess.run(
        [sys.executable, "-c", _SLOW], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
