"""Event streams that begin with anything but `data:`, and words where a stream was to be."""

from __future__ import annotations

import json

import pytest

from pipeline.endpoint.stream import Arriving, whole_body
from pipeline.endpoint.wire import read_completion
from pipeline.faults import Unavailable

CHUNKS = [
    {"choices": [{"index": 0, "delta": {"content": "on"}}]},
    {"choices": [{"index": 0, "delta": {"content": "e"}, "finish_reason": "stop"}]},
]
EVENTS = b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in CHUNKS) + b"data: [DONE]\n\n"


def arrived(body: bytes, size: int) -> bytes:
    arriving = Arriving()
    for at in range(0, len(body), size):
        arriving.feed(body[at : at + size])
    arriving.end()
    return arriving.body()


@pytest.mark.parametrize(
    "before",
    [
        b"x-request-id: 7\n",
        b"trace-of-a-gateway: {}\n\n",
        b"Event: message\n",
        b"id\n",
        b"\xef\xbb\xbf\nfoo: 1\n",
        b": ok\nfoo\n\n",
    ],
)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_h8a_fields_of_any_name_may_come_before_the_data(before: bytes, size: int) -> None:
    for body in (before + EVENTS, before + EVENTS.replace(b"data: {", before.strip(b"\xef\xbb\xbf\n") + b"\ndata: {")):
        for whole in (arrived(body, size), whole_body(body)):
            assert [answer.text for answer in read_completion(whole).answers] == ["one"]


@pytest.mark.parametrize("said", [b"upstream connect error: reset", b"Internal Server Error", b"no\n\nhealthy\n\nhost"])
def test_h7_words_in_the_place_of_a_stream_are_told_as_they_came(said: bytes) -> None:
    for size in (1, 1000):
        with pytest.raises(Unavailable, match=r"is not JSON: (upstream connect error|Internal Server|no healthy)"):
            read_completion(arrived(said, size))
    with pytest.raises(Unavailable, match=r"is not JSON"):
        read_completion(whole_body(said))


def test_h8a_a_plain_body_that_begins_late_or_with_a_mark_is_kept_as_it_came() -> None:
    body = b'{"choices": [{"message": {"content": "one"}}]}'
    for mark in (b"", b"\xef\xbb\xbf"):
        assert arrived(mark + body, 1) == mark + body
        assert arrived(b"\n \n" + mark + body, 2) == mark + body
