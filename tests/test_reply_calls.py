"""Calls of tools in every form, turns that were cut or broken, and rows that carry odd requests of their own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from pipeline import Job
from pipeline.data import Request, Row, Usage
from pipeline.endpoint.wire import ToolCall
from pipeline.faults import Fault, InvalidRow, Refused, Truncated, Unparsable
from pipeline.job.tools import tool_of
from pipeline.policy import Keys, ToolLimits, repairing, with_tools
from tests.replies import (
    TEXT,
    Json,
    answer,
    both,
    connected,
    ended,
    plain,
    request,
)
from tests.servers import Answer as Says

pytestmark = pytest.mark.anyio

# Calls of tools. llama.cpp#20198, koboldcpp#1656, open-webui#29323, python-aiplatform#4472

FORMS: list[tuple[Json, ToolCall]] = [
    ({"id": "c", "function": {"name": "now", "arguments": {"city": "Oslo"}}}, ToolCall("c", "now", '{"city":"Oslo"}')),
    ({"id": "c", "function": {"name": "now", "arguments": {"x": 0.10}}}, ToolCall("c", "now", '{"x":0.1}')),
    ({"id": "c", "function": {"name": "now", "arguments": "null"}}, ToolCall("c", "now", "{}")),
    ({"id": "c", "function": {"name": "now", "arguments": None}}, ToolCall("c", "now", "{}")),
    ({"id": "c", "function": {"name": "now", "arguments": ""}}, ToolCall("c", "now", "{}")),
    ({"id": "c", "function": {"name": "now", "arguments": " "}}, ToolCall("c", "now", "{}")),
    ({"id": "c", "function": {"name": "now"}}, ToolCall("c", "now", "{}")),
    ({"id": "c", "function": {"name": "now", "arguments": '"{\\"a\\": 1}"'}}, ToolCall("c", "now", '{"a": 1}')),
    ({"id": "c", "function": {"name": "now", "arguments": '""'}}, ToolCall("c", "now", "{}")),
    ({"id": "c", "function": {"name": "now", "arguments": 5}}, ToolCall("c", "now", "5")),
    ({"id": "c", "function": {"name": "now", "arguments": ["Oslo"]}}, ToolCall("c", "now", '["Oslo"]')),
    ({"id": "c", "function": {"name": "now", "arguments": '{"a": 1}{}'}}, ToolCall("c", "now", '{"a": 1}{}')),
    ({"id": "c", "function": {"name": "default_api.now", "arguments": "{}"}}, ToolCall("c", "now", "{}")),
    ({"id": "c", "function": {"name": " now ", "arguments": "{}"}}, ToolCall("c", "now", "{}")),
    ({"id": "c", "function": "now"}, ToolCall("c", "now", "{}")),
    ({"id": "c", "name": "now", "arguments": '{"a": 1}'}, ToolCall("c", "now", '{"a": 1}')),
    ({"id": 7, "function": {"name": "now", "arguments": "{}"}}, ToolCall("7", "now", "{}")),
    ({"id": None, "function": {"name": "now", "arguments": "{}"}}, ToolCall("", "now", "{}")),
]


@pytest.mark.parametrize(("call", "expected"), FORMS)
def test_h8a_a_call_in_every_form_is_the_same_call_streamed_or_not(call: Json, expected: ToolCall) -> None:
    for calls in ([call], call, [None, call, {}], {"0": call}):
        for body in both({"content": None, "tool_calls": calls}, "tool_calls"):
            assert answer(body).tool_calls == (expected,)


@pytest.mark.parametrize("calls", [5, True, "now", [None], [[]], {}, [{}], [{"id": "c"}], [{"function": {"name": []}}]])
def test_h8a_what_names_no_tool_is_no_call_and_the_answer_is_empty(calls: object) -> None:
    for body in both({"content": None, "tool_calls": calls}, "tool_calls"):
        assert answer(body).tool_calls == ()
        assert type(ended(TEXT, body)) is Unparsable


def test_h8a_openais_older_function_call_is_a_call() -> None:
    for body in both({"content": None, "function_call": {"name": "now", "arguments": "{}"}}):
        assert answer(body).tool_calls == (ToolCall("", "now", "{}"),)


def test_h8b_arguments_that_are_nested_too_deeply_are_no_json() -> None:
    deep = b'{"a":' * 300 + b"1" + b"}" * 300
    body = b'{"choices":[{"message":{"tool_calls":[{"id":"c","function":{"name":"now","arguments":%s}}]}}]}' % deep
    (call,) = answer(body).tool_calls
    assert call.arguments == "(nested too deeply to be written)"


# Through the endpoint, tools and repairs.

ran: list[str] = []


async def note(text: str) -> str:
    """Notes a text."""
    ran.append(text)
    return "noted"


def turn(*arguments: object, finish: str = "tool_calls") -> bytes:
    calls = [
        {"id": f"c{number}", "type": "function", "function": {"name": "note", "arguments": given}}
        for number, given in enumerate(arguments)
    ]
    return plain({"role": "assistant", "content": None, "tool_calls": calls}, finish)


async def asked_with_tools(bodies: Sequence[bytes], *, calls: int = 32, **payload: Any) -> tuple[Any, list[Json]]:
    """The reply or the fault of a row with a tool, and the requests that it took."""
    ran.clear()
    async with connected(lambda call: Says(bodies[min(call.number, len(bodies) - 1)])) as (endpoint, server):
        limits = ToolLimits(turns=4, calls=calls, timeout_s=9.0)
        ask = repairing(with_tools(endpoint.ask, [tool_of(note)], limits, transcript=False), TEXT.outcome, 1)
        try:
            end: Any = await ask(request(**payload))
        except Fault as fault:
            end = fault
        return end, [call.json() for call in server.calls]


async def test_h8b_of_a_turn_that_was_cut_nothing_is_carried_out_and_it_is_asked_with_more_room() -> None:
    bodies = [
        turn('{"text": "first"}'),
        turn('{"text": "half"}', '{"te', finish="length"),
        turn('{"text": "second"}'),
        plain({"content": "done"}),
    ]
    end, asked = await asked_with_tools(bodies, max_tokens=100)
    assert ended(TEXT, end.body) == "done"
    assert end.usage == Usage(36, 16)
    assert ran == ["first", "second"]
    assert [payload["max_tokens"] for payload in asked] == [100, 100, 200, 200]
    assert asked[2]["messages"] == asked[1]["messages"]  # the first turn is neither asked nor paid again


@pytest.mark.parametrize("finish", ["SAFETY", "content_filter"])
async def test_h8b_of_a_turn_that_was_blocked_nothing_is_carried_out(finish: str) -> None:
    end, asked = await asked_with_tools([turn('{"text": "x"}', finish=finish)])
    assert type(ended(TEXT, end.body)) is Refused
    assert (ran, len(asked)) == ([], 1)


@pytest.mark.parametrize(
    "broken", ['{"te', "[1]", "nope", '{"text": "a"}{}', 5, ["x"], '{"text": NaN}', '{"a": "\\ud83d"}']
)
async def test_h8b_broken_arguments_are_not_handed_back_and_the_model_is_told(broken: object) -> None:
    end, asked = await asked_with_tools([turn(broken, '{"text": "good"}'), plain({"content": "done"})])
    assert ended(TEXT, end.body) == "done"
    _, message, error, result = asked[1]["messages"]
    assert [call["function"]["arguments"] for call in message["tool_calls"]] == ["{}", '{"text": "good"}']
    assert "wrong arguments" in json.loads(error["content"])["error"]
    assert (result["content"], ran) == ("noted", ["good"])


@pytest.mark.parametrize("given", [{"text": "x"}, '{"text": "x"}', '"{\\"text\\": \\"x\\"}"'])
async def test_h8a_arguments_that_mean_an_object_are_carried_out_in_every_form(given: object) -> None:
    end, asked = await asked_with_tools([turn(given), plain({"content": "done"})])
    assert ended(TEXT, end.body) == "done"
    assert json.loads(asked[1]["messages"][1]["tool_calls"][0]["function"]["arguments"]) == {"text": "x"}
    assert ran == ["x"]


async def test_h8b_too_many_calls_in_a_turn_fail_their_row_and_none_is_carried_out() -> None:
    end, asked = await asked_with_tools([turn(*['{"text": "x"}'] * 20_000)])
    assert type(end) is Truncated
    assert end.message == "the model calls 20000 tools in one turn (max_calls_per_turn 32)"
    assert end.reply.usage == Usage(9, 4)
    assert (ran, len(asked)) == ([], 1)


async def test_h8b_as_many_calls_as_are_allowed_are_carried_out() -> None:
    end, _ = await asked_with_tools([turn(*['{"text": "x"}'] * 5), plain({"content": "done"})], calls=5)
    assert (ended(TEXT, end.body), len(ran)) == ("done", 5)


async def test_h8_an_empty_answer_of_a_text_job_is_asked_for_once_more() -> None:
    end, asked = await asked_with_tools([plain({"content": ""}), plain({"content": "done"})])
    assert ended(TEXT, end.body) == "done"
    assert [message["content"] for message in asked[1]["messages"]] == ["Say it", "Your answer was empty. Answer now."]


async def test_a_repair_goes_on_after_the_turns_of_tools() -> None:
    bodies = [turn('{"text": "x"}'), plain({"content": ""}), plain({"content": "done"})]
    end, asked = await asked_with_tools(bodies)
    assert ended(TEXT, end.body) == "done"
    assert [message["role"] for message in asked[2]["messages"]] == ["user", "assistant", "tool", "user"]
    assert ran == ["x"]


# Rows that carry their own request.

CARRYING = Job(name="carrying", model="google/gemini-test")


@pytest.mark.parametrize("messages", [["hi"], [None], [1], [[]], [{"role": "user", "content": "x"}, "y"]])
def test_h8a_a_rows_own_messages_that_are_no_objects_fail_that_row(messages: list[Any]) -> None:
    with pytest.raises(InvalidRow, match=r"messages\[\d\] is not an object"):
        CARRYING.request(Row(0, {"body": {"messages": messages}}))


@pytest.mark.parametrize("odd", ["\ud83d", 2**70, b"bytes", object()])
def test_h10_a_rows_own_request_that_is_no_json_fails_that_row(odd: object) -> None:
    with pytest.raises(InvalidRow, match="cannot be written as JSON"):
        CARRYING.request(Row(0, {"body": {"messages": [{"role": "user", "content": odd}]}}))


@pytest.mark.parametrize("room", ["64", 64, [1], {}, True, -3, "many", 64.5, 10**9])
@pytest.mark.parametrize("effort", [None, ["low"], {"a": 1}, 5])
async def test_h8a_an_odd_request_that_was_cut_ends_in_a_value_or_a_fault(room: object, effort: object) -> None:
    payload: dict[str, Any] = {"max_tokens": room, "reasoning_effort": effort, "extra_body": [[["deep"]]]}
    end, asked = await asked_with_tools([plain({"content": "Li"}, "length")], **payload)
    assert type(ended(TEXT, end.body)) is Truncated
    assert [payload["max_tokens"] for payload in asked] == ([room, 128] if room in ("64", 64) else [room])


async def test_h8a_the_key_of_an_odd_request_is_made_or_a_fault() -> None:
    odd: list[list[Any]] = [[{"role": "user", "content": 5}], [{}], ["hi"], [None]]
    for messages in odd:
        assert len(await Keys("e").of(Request(0, {"messages": messages}))) == 32
