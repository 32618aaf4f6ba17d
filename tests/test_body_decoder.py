"""Bodies that are compressed otherwise than their Content-Encoding says: the right content, or a fault with words."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import Usage
from pipeline.endpoint.body_decoder import BodyDecoder, Undecodable
from pipeline.endpoint.transport import MAX_BODY
from pipeline.endpoint.wire import completion_of_reply
from pipeline.faults import Fault, Refused, Throttled, Unavailable
from tests.replies import DONE, PLAIN, connected, event, request
from tests.servers import Answer, chat

pytestmark = pytest.mark.anyio

BODY = chat("hello").body
STREAM = event({"choices": [{"index": 0, "delta": {"content": "hello"}, "finish_reason": "stop"}]}) + DONE


def raw(body: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(body) + packer.flush()


def twice(body: bytes) -> bytes:
    return gzip.compress(gzip.compress(body))


def members(body: bytes) -> bytes:
    return gzip.compress(body[:20]) + gzip.compress(body[20:])


def with_junk(body: bytes) -> bytes:
    return gzip.compress(body) + b"junk"


def as_it_is(body: bytes) -> bytes:
    return body


READ: list[tuple[str, Callable[[bytes], bytes]]] = [
    *(
        (said, as_it_is)
        for said in ("gzip", "deflate", "br", "zstd", "x-gzip", "GZIP", "snappy", "utf-8", "", "gzip, br")
    ),
    *((said, gzip.compress) for said in ("gzip", "GZIP", "x-gzip", "gzip;q=1", "deflate", "br", "identity", "")),
    *((said, twice) for said in ("gzip", "gzip, gzip", "")),
    *((said, zlib.compress) for said in ("deflate", "gzip")),
    ("deflate", raw),
    ("gzip", members),
    ("gzip", with_junk),
    ("deflate", lambda body: zlib.compress(body) + b"junk"),
]


@pytest.mark.parametrize(("said", "packed"), READ)
async def test_h8a_a_body_is_read_whatever_its_content_encoding_says(
    said: str, packed: Callable[[bytes], bytes]
) -> None:
    for body, stream in ((BODY, False), (BODY, True), (STREAM, True), (STREAM, False)):
        answer = Answer(packed(body), headers={"Content-Encoding": said})
        async with connected(lambda _, answer=answer: answer) as (endpoint, server):  # type: ignore[misc]
            reply = await endpoint.ask(request(stream=stream))
        assert completion_of_reply(reply).answers[0].text == "hello"
        assert len(server.calls) == 1
        if body is BODY:
            assert reply.usage == Usage(input=10, output=5)


BROKEN = {
    "br": ("br", b"\x0b\x02\x80" + BODY + b"\x03"),
    "zstd": ("zstd", b"\x28\xb5\x2f\xfd\x04\x00" + BODY),
    "no gzip": ("gzip", b"\x00\xff\xfe\x80" + BODY),
    "a flipped checksum": ("gzip", gzip.compress(BODY)[:-8] + bytes(8)),
    "many members": ("gzip", b"".join(gzip.compress(bytes([byte])) for byte in BODY)),
    "gzip of no gzip": ("gzip", gzip.compress(b"\x1f\x8b\x08 and no more of it")),
    "raw deflate that breaks off": ("deflate", raw(BODY)[:40] + b"\xff" * 40),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", BROKEN)
async def test_h7_a_body_that_cannot_be_decoded_is_a_fault_in_words(kind: str, stream: bool) -> None:  # noqa: FBT001 - a parameter
    said, body = BROKEN[kind]
    async with connected(lambda _: Answer(body, headers={"Content-Encoding": said})) as (endpoint, _):
        with pytest.raises(Unavailable, match=r"which was not asked for|not encoded as|more than 100|broken gzip"):
            await endpoint.ask(request(stream=stream))


@pytest.mark.parametrize(("status", "kind"), [(400, Refused), (403, Refused), (429, Throttled), (503, Unavailable)])
@pytest.mark.parametrize("case", [*BROKEN, "plain"])
async def test_h7_an_error_keeps_its_status_though_its_body_cannot_be_decoded(
    case: str, status: int, kind: type[Fault]
) -> None:
    said, body = BROKEN.get(case, ("gzip", b'{"error": {"message": "said the server"}}'))
    answer = Answer(body, status, {"Content-Encoding": said})
    async with connected(lambda _: answer) as (endpoint, _):
        with pytest.raises(kind) as caught:
            await endpoint.ask(request())
    assert caught.value.http_status == status
    assert ("said the server" in caught.value.message) is (case == "plain")


async def test_only_what_can_be_decoded_is_asked_for() -> None:
    async with connected(lambda _: Answer(BODY)) as (endpoint, server):
        await endpoint.ask(request())
    assert server.calls[0].headers.getall("Accept-Encoding") == ["gzip, deflate"]  # type: ignore[attr-defined]


@settings(max_examples=200, deadline=None)
@given(
    case=st.sampled_from(READ),
    cuts=st.lists(st.integers(0, 400), max_size=6),
    body=st.sampled_from([BODY, STREAM, PLAIN.encode(), b"{", b"", b"[]", b"data: ", b"x^ is text", b"error: no"]),
)
def test_h8a_where_a_body_is_cut_into_pieces_changes_nothing(
    case: tuple[str, Callable[[bytes], bytes]], cuts: list[int], body: bytes
) -> None:
    said, packed = case
    assert content(said, packed(body), cuts) == body


@settings(max_examples=300, deadline=None)
@given(
    said=st.sampled_from(["gzip", "deflate", "br", "", "zstd, gzip"]),
    body=st.binary(max_size=300),
    cut=st.integers(0, 300),
)
def test_h7_any_bytes_with_any_name_are_a_content_or_undecodable(said: str, body: bytes, cut: int) -> None:
    for start in (b"", b"\x1f\x8b\x08\x00", b"\x78\x9c", b"\x4b"):
        try:
            content(said, start + body, [cut])
        except Undecodable as error:
            assert "answer" in str(error)  # noqa: PT017 - most bytes are a content


@pytest.mark.parametrize("packed", [gzip.compress, zlib.compress, raw, twice])
def test_h9_no_more_is_decompressed_than_may_be_read(packed: Callable[[bytes], bytes]) -> None:
    decoder = BodyDecoder("deflate")
    assert len(decoder.feed(packed(bytes(2 * MAX_BODY)), 1000)) <= 1001


def content(said: str, body: bytes, cuts: list[int]) -> bytes:
    """What a body is decoded as, in pieces."""
    decoder = BodyDecoder(said)
    bounds = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    pieces = [body[start:end] for start, end in pairwise(bounds)]
    found = b"".join([decoder.feed(piece, MAX_BODY) for piece in pieces if piece] + [decoder.end()])
    assert decoder.end() == b""
    return found
