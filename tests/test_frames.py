"""The same chunks in every frame that servers put around them: one answer, or a fault where it was cut."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import Usage
from pipeline.endpoint.stream import Arriving, whole_body
from pipeline.endpoint.wire import Completion, read_completion
from pipeline.faults import Unavailable

TEXT = "Grüße 🌍\nline two }\n{ end"
USAGE = {"completion_tokens": 5, "prompt_tokens": 10, "total_tokens": 15}


def chunk(delta: Mapping[str, Any], finish_reason: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}], **more}


PIECES = [chunk({"content": TEXT[at : at + 3]}) for at in range(0, len(TEXT), 3)]
CHUNKS = [*PIECES, chunk({}, "stop", usage=USAGE)]

Frame = Callable[[list[dict[str, Any]]], str]


def events(end: str, *, apart: int = 2, done: str = "data: [DONE]") -> Frame:
    return lambda chunks: "".join(f"data: {json.dumps(one)}{end * apart}" for one in chunks) + done + end


PLAIN: Mapping[str, Frame] = {
    "a list": json.dumps,
    "a list over several lines": lambda chunks: json.dumps(chunks, indent=2, ensure_ascii=False),
    "lines": lambda chunks: "\n".join(map(json.dumps, chunks)),
    "lines that end as in Windows": lambda chunks: "\r\n".join(map(json.dumps, chunks)) + "\r\n",
    "documents with nothing between": lambda chunks: "".join(map(json.dumps, chunks)),
}
EVENTS: Mapping[str, Frame] = {
    "events": events("\n"),
    "events that end as on old Macs": events("\r"),
    "events that end as in Windows": events("\r\n"),
    "events without blank lines": events("\n", apart=1),
    "events with an end in small letters": events("\n", done="data: [done]"),
}
FRAMES = {**PLAIN, **EVENTS}


def streamed(body: bytes, size: int) -> bytes:
    arriving = Arriving()
    for at in range(0, len(body), size):
        arriving.feed(body[at : at + size])
        if arriving.ended:
            break
    else:
        arriving.end()
    return arriving.body()


def said(body: bytes) -> tuple[str | None, Usage | None]:
    completion: Completion = read_completion(body)
    return completion.answers[0].text, completion.usage


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_h8a_chunks_are_one_answer_in_every_frame_wherever_the_bytes_are_cut(frame: str, size: int) -> None:
    body = FRAMES[frame](CHUNKS).encode()
    assert said(streamed(body, size)) == (TEXT, Usage(10, 5))


@pytest.mark.parametrize("frame", FRAMES)
def test_h8a_the_same_for_a_call_that_was_not_to_be_streamed(frame: str) -> None:
    assert said(whole_body(FRAMES[frame](CHUNKS).encode())) == (TEXT, Usage(10, 5))


@pytest.mark.parametrize("frame", FRAMES)
def test_h8a_chunks_without_their_end_are_no_answer_in_any_frame(frame: str) -> None:
    body = FRAMES[frame](PIECES).encode()
    for take in (whole_body, lambda one: streamed(one, 7)):
        with pytest.raises(Unavailable, match="before the answer did"):
            take(body)


@pytest.mark.parametrize(
    "last",
    [
        chunk({}, "stop", usage=USAGE),
        chunk({}, "stop", x_groq={"id": "x", "usage": USAGE}),
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "usage": USAGE}]},
        chunk({}, "stop", usage=None, x_groq={"usage": USAGE}),
    ],
)
def test_m2_usage_is_found_where_servers_put_it(last: dict[str, Any]) -> None:
    body = EVENTS["events"]([*PIECES, last]).encode()
    assert said(streamed(body, 50)) == (TEXT, Usage(10, 5))
    whole = {"choices": [{**last["choices"][0], "message": {"content": TEXT}}]} | {
        name: value for name, value in last.items() if name != "choices"
    }
    assert said(json.dumps(whole).encode()) == (TEXT, Usage(10, 5))


@given(st.text(max_size=200), st.sampled_from(sorted(FRAMES)), st.integers(1, 50))
def test_h8a_any_text_comes_through_any_frame(text: str, frame: str, size: int) -> None:
    body = FRAMES[frame]([chunk({"content": text + "."}), chunk({}, "stop")]).encode()
    assert said(streamed(body, size))[0] == text + "."


@pytest.mark.parametrize("delta", [None, {}])
def test_h8a_a_whole_answer_is_left_as_it_came_whatever_else_is_in_it(delta: object) -> None:
    body = json.dumps({"choices": [{"message": {"content": '{"delta": 1}', "delta": 1}, "delta": delta}]}).encode()
    assert whole_body(body) == body
    assert streamed(body, 5) == body
