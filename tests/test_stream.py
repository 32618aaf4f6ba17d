"""A stream put together is the completion that would have come unstreamed, however it was cut into chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.endpoint.stream_assembly import Assembly
from pipeline.endpoint.wire import read_completion
from pipeline.faults import Fault, Refused, Throttled, Unavailable

Json = dict[str, Any]

HEAD = {"created": 7, "id": "abc", "model": "google/gemini", "system_fingerprint": ""}
USAGE = {"completion_tokens": 3, "prompt_tokens": 5, "total_tokens": 8}
SIGNATURE = {"google": {"thought_signature": "c2lnbmVk"}}


def chunk(delta: Json | None = None, *, index: int = 0, finish: str | None = None, **more: Any) -> Json:
    choice: Json = {"index": index, "logprobs": None, "delta": {"role": "assistant", **(delta or {})}}
    if finish is not None:
        choice["finish_reason"] = finish
    return {**HEAD, "object": "chat.completion.chunk", "choices": [choice], **more}


def last(finish: str = "stop") -> Json:
    return chunk(finish=finish, usage=USAGE)


def fragment(arguments: str, **about: Any) -> Json:
    name = {"name": about.pop("name")} if "name" in about else {}
    return chunk({"tool_calls": [{**about, "type": "function", "function": {**name, "arguments": arguments}}]})


def assembled(chunks: Iterable[object]) -> Json:
    assembly = Assembly()
    for one in chunks:
        assembly.add(orjson.dumps(one))
    body: Json = orjson.loads(assembly.body())
    return body


def unstreamed(message: Json, finish: str = "stop") -> Json:
    choice = {"finish_reason": finish, "index": 0, "logprobs": None, "message": {"role": "assistant", **message}}
    return {**HEAD, "object": "chat.completion", "choices": [choice], "usage": USAGE}


def call(name: str, key: str, arguments: str) -> Json:
    return {"id": key, "type": "function", "function": {"name": name, "arguments": arguments}}


def calls_of(body: Json) -> list[tuple[str, str, str]]:
    calls = body["choices"][0]["message"]["tool_calls"]
    return [(one["id"], one["function"]["name"], one["function"]["arguments"]) for one in calls]


@st.composite
def pieces(draw: st.DrawFn, text: str) -> list[str]:
    """The text cut at random places; some pieces may be empty."""
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=5)))
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


ARGUMENTS = st.dictionaries(
    st.text("ab", max_size=2),
    st.integers(-9, 99) | st.text('{}"a', max_size=4) | st.dictionaries(st.just("x"), st.none()),
).map(lambda value: orjson.dumps(value).decode())


@settings(max_examples=100)
@given(data=st.data(), text=st.text(min_size=1, max_size=30), thought=st.text(max_size=20))
def test_text_and_thoughts_cut_anywhere_are_the_unstreamed_message(
    data: st.DataObject, text: str, thought: str
) -> None:
    thinking = [
        chunk({"content": p, "extra_content": {"google": {"thought": True}}}) for p in data.draw(pieces(thought))
    ]
    saying = [chunk({"content": piece}) for piece in data.draw(pieces(text))]
    message = {"content": text, **({"reasoning_content": thought} if thought else {})}
    assert assembled([*thinking, *saying, last()]) == unstreamed(message)


def google(calls: Sequence[tuple[str, list[str]]]) -> list[Json]:
    """Id and name on every fragment; the first index of each call is that of another."""
    return [
        fragment(piece, id=key, name=f"f-{key}", index=number if later else (number + 1) % len(calls))
        for number, (key, cut) in enumerate(calls)
        for later, piece in enumerate(cut)
    ]


def openai(calls: Sequence[tuple[str, list[str]]]) -> list[Json]:
    """Id and name once, with no arguments, then the index alone."""
    chunks = []
    for number, (key, cut) in enumerate(calls):
        chunks.append(fragment("", id=key, name=f"f-{key}", index=number))
        chunks += [fragment(piece, index=number) for piece in cut]
    return chunks


@settings(max_examples=150)
@given(data=st.data(), arguments=st.lists(ARGUMENTS, min_size=1, max_size=3))
@pytest.mark.parametrize("style", [google, openai])
def test_arguments_of_calls_cut_anywhere_are_the_unstreamed_calls(
    style: Callable[..., list[Json]], data: st.DataObject, arguments: list[str]
) -> None:
    # Pieces without arguments after the whole would be a further call with the same id, were there one.
    cut = [(f"id-{number}", [p for p in data.draw(pieces(text)) if p]) for number, text in enumerate(arguments)]
    whole = [call(f"f-id-{number}", f"id-{number}", text) for number, text in enumerate(arguments)]
    message = {"content": None, "tool_calls": whole}
    assert assembled([*style(cut), last("tool_calls")]) == unstreamed(message, "tool_calls")


@settings(max_examples=80)
@given(data=st.data(), first=ARGUMENTS, second=ARGUMENTS)
def test_fragments_of_several_calls_may_come_in_turns(data: st.DataObject, first: str, second: str) -> None:
    one = [fragment(piece, id="a", name="f", index=0) for piece in data.draw(pieces(first))]
    two = [fragment(piece, id="b", name="g", index=1) for piece in data.draw(pieces(second))]
    mixed: list[Json] = []
    while one or two:
        mixed.append((one if one and (not two or data.draw(st.booleans())) else two).pop(0))
    assert sorted(calls_of(assembled([*mixed, last()]))) == [("a", "f", first), ("b", "g", second)]


@pytest.mark.parametrize(
    "about",
    [
        [{"id": "same", "index": 0}, {"id": "same", "index": 1}],
        [{"id": "same", "index": 0}, {"id": "same", "index": 0}],
        [{"id": "same"}, {"id": "same"}],
        [{"id": "", "index": 0}, {"id": "", "index": 0}],
        [{}, {}],
    ],
)
def test_two_whole_calls_that_share_id_or_index_stay_two(about: list[Json]) -> None:
    stream = [fragment('{"x":1}', name="f", **about[0]), fragment('{"x":2}', name="g", **about[1]), last()]
    assert [found[1:] for found in calls_of(assembled(stream))] == [("f", '{"x":1}'), ("g", '{"x":2}')]


def test_fragments_with_neither_id_nor_index_are_one_call() -> None:
    stream = [fragment('{"x"', name="f"), fragment(":1}"), last()]
    assert calls_of(assembled(stream)) == [("", "f", '{"x":1}')]


def test_the_signature_of_a_call_and_of_a_message_are_kept() -> None:
    signed = {"id": "a", "index": 0, "extra_content": SIGNATURE, "function": {"name": "f", "arguments": "{}"}}
    stream = [chunk({"tool_calls": [signed]}), chunk({"extra_content": SIGNATURE}, finish="stop"), last()]
    message = assembled(stream)["choices"][0]["message"]
    assert message["tool_calls"][0]["extra_content"] == SIGNATURE
    assert message["extra_content"] == SIGNATURE


@pytest.mark.parametrize(
    "end", [[last()], [chunk(finish="stop"), {**HEAD, "choices": [], "usage": USAGE}]], ids=["with the last", "extra"]
)
def test_usage_comes_with_the_last_chunk_or_in_an_extra_one(end: list[Json]) -> None:
    assert assembled([chunk({"content": "a"}, usage=None), *end])["usage"] == USAGE


def test_several_answers_are_put_together_apart_and_in_order() -> None:
    stream = [chunk({"content": text}, index=index) for index, text in [(1, "b"), (0, "a"), (1, "d"), (0, "c")]]
    body = assembled([*stream, chunk(index=1, finish="length"), last()])
    assert [(one["message"]["content"], one["finish_reason"]) for one in body["choices"]] == [
        ("ac", "stop"),
        ("bd", "length"),
    ]


def test_audio_is_put_together_with_its_type() -> None:
    kind = {"extra_content": {"google": {"mime_type": "image/png"}}}
    stream = [chunk({"audio": {"data": "aGVs", **kind}}), chunk({"audio": {"data": "bG8="}}), last()]
    (media,) = read_completion(orjson.dumps(assembled(stream))).answers[0].media
    assert (media.mime_type, media.data) == ("image/png", b"hello")


@pytest.mark.parametrize("stream", [[], [chunk({"content": "a"})], [chunk({"content": "a"}, usage=USAGE)]])
def test_a_stream_without_its_end_is_unavailable(stream: list[Json]) -> None:
    with pytest.raises(Unavailable):
        assembled(stream)


def test_a_stream_whose_second_answer_did_not_end_is_unavailable() -> None:
    with pytest.raises(Unavailable):
        assembled([chunk({"content": "a"}, index=1), last()])


def test_a_blocked_prompt_has_no_choices_and_is_whole() -> None:
    body = assembled([{**HEAD, "choices": [], "usage": USAGE}])
    assert (body["choices"], body["usage"]) == ([], USAGE)


@pytest.mark.parametrize(
    ("code", "fault"), [(429, Throttled), (503, Unavailable), (400, Refused)], ids=["429", "503", "400"]
)
@pytest.mark.parametrize("wrap", [lambda error: error, lambda error: [error]], ids=["object", "list"])
def test_an_error_in_the_stream_is_the_fault_of_its_code(
    wrap: Callable[[Json], object], code: int, fault: type[Fault]
) -> None:
    with pytest.raises(fault, match="over"):
        assembled([chunk({"content": "a"}), wrap({"error": {"code": code, "message": "over", "status": "X"}})])


@pytest.mark.parametrize("odd", ["text", 3, [3], True])
def test_a_chunk_that_is_no_object_is_unavailable(odd: object) -> None:
    with pytest.raises(Unavailable):
        Assembly().add(orjson.dumps(odd))


@pytest.mark.parametrize("empty", [None, [], {}])
def test_a_chunk_with_nothing_in_it_is_passed_over(empty: object) -> None:
    assert assembled([chunk({"content": "a"}), empty, last()]) == unstreamed({"content": "a"})


@pytest.mark.parametrize(
    ("odd", "found"),
    [
        (chunk({"content": "a"}), True),
        (fragment("", id="a", name="f"), True),
        (chunk({"audio": {"data": "aa"}}), True),
        (chunk({"content": ""}), False),
        (chunk({"content": None, "tool_calls": None}), False),
        (last(), False),
        ({"choices": [None, {"index": None, "delta": None}]}, False),
        ({"choices": None}, False),
        ({}, False),
    ],
)
def test_only_a_chunk_with_a_piece_of_the_answer_counts_as_one(odd: Json, found: bool) -> None:  # noqa: FBT001 - a table
    assert Assembly().add(orjson.dumps(odd)) is found
