"""Calls of tools in pieces, as servers stream them: no piece of one call ends up in another, and none is made twice."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from pipeline.endpoint.stream import Arriving, whole_body
from pipeline.endpoint.wire import first_message, read_completion

Json = dict[str, Any]

OSLO, BERN = '{"city": "Oslo"}', '{"city": "Bern"}'


def piece(arguments: object = None, **about: Any) -> Json:
    """A fragment of a call; `name` is the function's."""
    name = about.pop("name", None)
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return {**about, "function": function}


def chunk(*calls: Json, **delta: Any) -> Json:
    return {"choices": [{"index": 0, "delta": {**delta, **({"tool_calls": list(calls)} if calls else {})}}]}


def end(**choice: Any) -> Json:
    return {"choices": [{"index": 0, "finish_reason": "tool_calls", **(choice or {"delta": {}})}]}


def assembled(chunks: list[Json]) -> bytes:
    arriving = Arriving()
    for document in chunks:
        arriving.feed(b"data: " + json.dumps(document).encode() + b"\n\n")
    arriving.end()
    return arriving.body()


def calls_of(chunks: list[Json]) -> list[tuple[str, str]]:
    """The name and the arguments of every call in a stream."""
    (answer,) = read_completion(assembled(chunks)).answers
    return [(call.name, call.arguments) for call in answer.tool_calls]


@pytest.mark.parametrize("kind", [int, float, str], ids=["integers", "floats", "text"])
def test_h8a_pieces_go_to_the_call_of_their_index_whatever_its_type(kind: type) -> None:
    first, second = kind(0), kind(1)
    begun = chunk(piece(OSLO[:5], id="a", name="f", index=first), piece(BERN[:5], id="b", name="f", index=second))
    rest = [chunk(piece(BERN[5:], index=second)), chunk(piece(OSLO[5:], index=first))]
    assert calls_of([begun, *rest, end()]) == [("f", OSLO), ("f", BERN)]


@pytest.mark.parametrize("index", ["0", 0.0, 0])
def test_h8a_answers_are_told_apart_by_their_index_whatever_its_type(index: Any) -> None:
    other = type(index)(1)
    choices = [{"index": at, "message": {"content": said}} for at, said in ((other, "second"), (index, "first"))]
    body = json.dumps({"choices": choices}).encode()
    assert [answer.text for answer in read_completion(body).answers] == ["first", "second"]
    deltas = [{"choices": [{"index": at, "delta": {"content": said}}]} for at, said in ((other, "2"), (index, "1"))]
    ends = [{"choices": [{"index": at, "delta": {}, "finish_reason": "stop"}]} for at in (other, index)]
    assert [answer.text for answer in read_completion(assembled([*deltas, *ends])).answers] == ["1", "2"]


@pytest.mark.parametrize("index", [1e30, 2**64, -1e30, "9" * 30, float("nan")])
def test_h8a_an_index_beyond_all_lists_is_none(index: Any) -> None:
    stream = [{"choices": [{"index": index, "delta": {"content": "one"}, "finish_reason": "stop"}]}]
    assert [answer.text for answer in read_completion(assembled(stream)).answers] == ["one"]
    assert calls_of([chunk(piece(OSLO, id="a", name="f", index=index)), end()]) == [("f", OSLO)]


def test_h8a_calls_of_the_same_id_in_turns_are_told_apart_by_their_index() -> None:
    begun = chunk(piece(OSLO[:9], id="a", name="f", index=0), piece(BERN[:9], id="a", name="f", index=1))
    rest = chunk(piece(OSLO[9:], id="a", index=0), piece(BERN[9:], id="a", index=1))
    assert calls_of([begun, rest, end()]) == [("f", OSLO), ("f", BERN)]


def test_h8a_an_id_drawn_for_each_piece_makes_no_further_call() -> None:
    pieces = [chunk(piece(OSLO[:9], id="a", name="f", index=0)), chunk(piece(OSLO[9:], id="b", index=0))]
    assert calls_of([*pieces, end()]) == [("f", OSLO)]


def test_h8a_calls_with_neither_id_nor_index_nor_arguments_are_told_apart_by_their_names() -> None:
    assert calls_of([chunk(piece(name="now")), chunk(piece(name="later")), end()]) == [("now", "{}"), ("later", "{}")]


@pytest.mark.parametrize("second", ["ther", "weather", "default_api.weather"])
def test_h8a_a_name_may_come_in_pieces_or_grow(second: str) -> None:
    first = "wea" if second != "default_api.weather" else second
    begun = chunk(piece("", id="a", name=first, index=0))
    assert calls_of([begun, chunk(piece(OSLO, name=second, index=0)), end()]) == [("weather", OSLO)]


@pytest.mark.parametrize("none", ["{}", {}, "null", None, "", " {} "])
def test_h8a_no_arguments_at_first_make_no_call_of_their_own(none: object) -> None:
    begun = chunk(piece(none, id="a", name="f", index=0))
    for rest in ([OSLO], [OSLO[:4], OSLO[4:]]):
        pieces = [chunk(piece(text, id="a", name="f", index=0)) for text in rest]
        assert calls_of([begun, *pieces, end()]) == [("f", OSLO)]


def test_h8a_a_call_that_is_sent_whole_once_more_is_made_once() -> None:
    again = chunk(piece(OSLO, id="a", name="f", index=0))
    assert calls_of([again, again, end()]) == [("f", OSLO)]


@pytest.mark.parametrize("said", [None, "Let me see."])
def test_h8a_a_message_at_the_end_that_repeats_calls_adds_none(said: str | None) -> None:
    message = {"role": "assistant", "content": said, "tool_calls": [piece(json.loads(OSLO), id="a", name="f")]}
    pieces = [chunk(content=said), chunk(piece(OSLO[:4], id="a", name="f", index=0)), chunk(piece(OSLO[4:], index=0))]
    assert len(calls_of([*pieces, end(message=message)])) == 1
    (answer,) = read_completion(assembled([*pieces, end(message=message)])).answers
    assert answer.text == said


def test_h8a_a_message_at_the_end_that_repeats_the_text_keeps_its_calls() -> None:
    message = {"role": "assistant", "content": "Let me see.", "tool_calls": [piece(OSLO, id="a", name="f")]}
    assert calls_of([chunk(content="Let me see."), end(message=message)]) == [("f", OSLO)]


@pytest.mark.parametrize("name", ["args", "input", "parameters"])
def test_h8a_arguments_under_another_servers_name_are_not_overlooked(name: str) -> None:
    function = {"name": "f", name: json.loads(OSLO)}
    for call in ({"id": "a", "function": function}, {"id": "a", **function}):
        body = json.dumps({"choices": [{"message": {"tool_calls": [call]}, "finish_reason": "tool_calls"}]}).encode()
        (answer,) = read_completion(whole_body(body)).answers
        assert [json.loads(found.arguments) for found in answer.tool_calls] == [json.loads(OSLO)]
        handed_back = first_message(body)["tool_calls"][0]["function"]
        assert handed_back.keys() == {"name", "arguments"}


def test_h8b_a_hundred_calls_are_a_hundred_with_index_id_or_neither() -> None:
    for about in (
        lambda n: {"id": f"c{n}", "index": n},
        lambda n: {"id": f"c{n}"},
        lambda _: {"index": 0},
        lambda _: {},
    ):
        apart = [chunk(piece(json.dumps({"n": n}), name="f", **about(n))) for n in range(100)]
        assert [json.loads(found)["n"] for _, found in calls_of([*apart, end()])] == [*range(100)]


@pytest.mark.parametrize("alias", ["args", "input", "parameters"])
def test_h8b_a_call_with_null_arguments_beside_others_goes_back_with_one_set_of_them(alias: str) -> None:
    """What is sent back must not say two things: OpenAI's schema knows no other name than `arguments`."""
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": None, alias: json.loads(OSLO)}}
    body = json.dumps({"choices": [{"message": {"tool_calls": [call]}}]}).encode()
    (sent_back,) = first_message(body)["tool_calls"]
    assert sent_back["function"] == {"name": "f", "arguments": json.dumps(json.loads(OSLO), separators=(",", ":"))}


@pytest.mark.parametrize("place", ["message", "call"])
@pytest.mark.parametrize("arguments", [OSLO, {"city": "Oslo", "share": 0.1}])
def test_h8a_a_turn_with_odd_fields_of_the_servers_own_goes_back_without_what_cannot_be_written(
    place: str, arguments: object
) -> None:
    """Fields that nobody reads are nested 400 deep, or numbers beside arguments that came as an object."""
    odd: Json = {"score": 0.25, "extra_content": {"google": {"thought_signature": "c2ln"}}}
    if arguments is OSLO:
        odd["deep"] = json.loads("[" * 400 + "]" * 400)
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    (message if place == "message" else call).update(odd)
    sent_back = first_message(json.dumps({"choices": [{"message": message}]}).encode())
    assert orjson.dumps(sent_back)
    (found,) = sent_back["tool_calls"]
    assert found["function"]["name"] == "f"
    assert json.loads(found["function"]["arguments"])["city"] == "Oslo"
    kept = sent_back if place == "message" else found
    assert (kept["score"], kept["extra_content"]) == (0.25, odd["extra_content"])
    assert "deep" not in kept
