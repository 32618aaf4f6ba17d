"""Asks of several calls: tools are carried out and handed back, and what does not fit is asked for again."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from pipeline.data import Ask, Reply, Request, Usage
from pipeline.faults import Fault, Refused, Truncated, Unavailable
from pipeline.job.reply_parser import ReplyParser
from pipeline.job.tools import tool_of
from pipeline.policy.repair import MOST_TOKENS, repairing
from pipeline.policy.tool_loop import ToolLimits, with_tools
from pipeline.schema.from_pydantic import shape_of
from tests import virtual

anyio_backend = virtual.anyio_backend
pytestmark = pytest.mark.anyio

Json = dict[str, Any]

QUESTION = {"role": "user", "content": "How warm is it?"}
USAGE = Usage(10, 5, 3, 2)
SIGNATURE = {"google": {"thought_signature": "c2lnbmVk"}}


class Degrees(BaseModel):
    degrees: int


READER = ReplyParser(shape_of(Degrees))
FITS, BROKEN = '{"degrees": 3}', '{"degrees": "mi'


def reply(message: Json | None, finish: str = "stop", **more: Any) -> Reply:
    choices = [] if message is None else [{"index": 0, "finish_reason": finish, "message": message}]
    known: Json = {"usage": USAGE, "latency_s": 2.0, "cost_usd": 0.25, **more}
    return Reply(orjson.dumps({"choices": choices}), **known)


def saying(text: str, finish: str = "stop", **more: Any) -> Reply:
    return reply({"role": "assistant", "content": text}, finish, **more)


def calling(*calls: Json) -> Reply:
    return reply({"role": "assistant", "content": None, "tool_calls": list(calls)}, "tool_calls")


def call(name: str, key: str | None = "id", /, **arguments: Any) -> Json:
    return {"id": key, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


@dataclass
class Model:
    """Says one reply after the other, the last one again and again, and remembers what it was asked."""

    says: Sequence[Reply]
    asked: list[Json] = field(default_factory=list)

    async def ask(self, request: Request) -> Reply:
        self.asked.append(dict(request.payload))
        return self.says[min(len(self.asked), len(self.says)) - 1]


def request(**payload: Any) -> Request:
    return Request(4, {"messages": [QUESTION], **payload}, {"h": "1"})


def tooled(model: Model, *functions: Any, max_turns: int = 5, max_calls: int = 32, transcript: bool = False) -> Ask:
    tools = [tool_of(function) for function in functions]
    return with_tools(
        model.ask, tools, ToolLimits(turns=max_turns, calls=max_calls, timeout_s=60), transcript=transcript
    )


async def lengths(text: str) -> int:
    return len(text)


async def told(model: Model, *functions: Any) -> list[str]:
    """What the model was handed back after its first turn."""
    final = await tooled(model, *functions)(request())
    assert final.body == model.says[-1].body
    return [message["content"] for message in model.asked[1]["messages"] if message["role"] == "tool"]


async def test_results_come_back_in_the_order_of_the_calls_with_their_ids() -> None:
    async def slow(seconds: float) -> float:
        await anyio.sleep(seconds)
        return seconds

    model = Model([calling(call("slow", "a", seconds=9), call("slow", "b", seconds=1)), saying("done")])
    await tooled(model, slow)(request())
    assert model.asked[1]["messages"][2:] == [
        {"role": "tool", "tool_call_id": "a", "content": "9.0"},
        {"role": "tool", "tool_call_id": "b", "content": "1.0"},
    ]


async def test_calls_of_one_turn_run_side_by_side() -> None:
    met = anyio.Event()

    async def wait() -> str:
        await met.wait()
        return "met"

    async def meet() -> str:
        met.set()
        return "there"

    model = Model([calling(call("wait", "a"), call("meet", "b")), saying("done")])
    assert await told(model, wait, meet) == ["met", "there"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # virtual time does not wait for threads
async def test_a_synchronous_tool_runs_in_another_thread() -> None:
    ran: list[int] = []

    def work(name: str) -> dict[str, str]:
        ran.append(threading.get_ident())
        return {"name": name}

    assert await told(Model([calling(call("work", name="é")), saying("done")]), work) == ['{"name": "é"}']
    assert ran
    assert threading.get_ident() not in ran


async def test_each_call_has_its_own_deadline_and_the_model_is_told() -> None:
    async def stuck() -> None:
        await anyio.sleep_forever()

    model = Model([calling(call("stuck", "a"), call("lengths", "b", text="four")), saying("done")])
    assert await told(model, stuck, lengths) == ['{"error": "it took longer than 60 s"}', "4"]
    assert anyio.current_time() == 60


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (call("lengths", text=3), "wrong arguments for lengths: text:"),
        (call("lengths"), "wrong arguments for lengths: text: Field required"),
        (call("lengths", text="a", more=1), "wrong arguments for lengths: more:"),
        ({"id": "x", "function": {"name": "lengths", "arguments": '{"te'}}, "wrong arguments for lengths: arguments:"),
        ({"id": "x", "function": {"name": "lengths", "arguments": "[1]"}}, "wrong arguments for lengths: arguments:"),
        (call("length", text="a"), "there is no tool 'length'; there are: lengths, failing, late"),
        (call("failing"), "ValueError: no such town"),
        (call("late"), "TimeoutError: the database did not answer"),
    ],
)
async def test_what_goes_wrong_with_a_call_is_told_to_the_model_which_goes_on(wrong: Json, says: str) -> None:
    async def failing() -> None:
        raise ValueError("no such town")

    async def late() -> None:
        raise TimeoutError("the database did not answer")

    (error,) = await told(Model([calling(wrong), saying("done")]), lengths, failing, late)
    assert json.loads(error)["error"].startswith(says)


async def test_a_fault_raised_by_a_tool_is_the_fault_of_the_row() -> None:
    async def refusing() -> None:
        raise Refused("not this one")

    with pytest.raises(Refused, match="not this one"):
        await tooled(Model([calling(call("refusing"), call("lengths", "b", text="a"))]), refusing, lengths)(request())


async def test_the_models_message_is_handed_back_as_it_came() -> None:
    signed = {**call("lengths", "a", text="x"), "extra_content": SIGNATURE, "unknown": [None, 1.5]}
    message = {"role": "assistant", "content": "é", "tool_calls": [signed], "extra_content": SIGNATURE, "z": {}}
    model = Model([reply(message), saying("done")])
    await tooled(model, lengths)(request(temperature=0))
    assert json.dumps(model.asked[1]["messages"][1]) == json.dumps(message)
    assert model.asked[0] == {"messages": [QUESTION], "temperature": 0}
    assert model.asked[1]["temperature"] == 0


async def test_the_request_is_not_changed() -> None:
    asked = request(tool_choice="required")
    await tooled(Model([calling(call("lengths", text="a")), saying("done")]), lengths)(asked)
    assert asked == request(tool_choice="required")


@settings(max_examples=60)
@given(keys=st.lists(st.sampled_from([None, "", "a", "b", "call-0-0", "call-0-1", "call-0-2"]), min_size=1, max_size=4))
def test_missing_and_repeated_ids_are_mended_alike_in_calls_and_results(keys: list[str | None]) -> None:
    calls = [call("lengths", key, text="x" * number) for number, key in enumerate(keys)]
    model = Model([calling(*calls), saying("done")])
    virtual.run(lambda: tooled(model, lengths)(request()))
    _, message, *results = model.asked[1]["messages"]
    mended = [one["id"] for one in message["tool_calls"]]
    assert len(set(mended)) == len(keys)
    assert all(mended)
    assert [(one["tool_call_id"], one["content"]) for one in results] == [
        (key, str(number)) for number, key in enumerate(mended)
    ]
    kept = [key for number, key in enumerate(keys) if key and key not in keys[:number]]
    assert set(kept) <= set(mended)
    assert [{**one, "id": 0} for one in message["tool_calls"]] == [{**one, "id": 0} for one in calls]


@pytest.mark.parametrize(
    ("choice", "later"),
    [
        ("required", "auto"),
        ({"type": "function", "function": {"name": "lengths"}}, "auto"),
        ("auto", "auto"),
        ("validated", "validated"),
        (None, None),
    ],
)
async def test_a_call_that_is_required_is_required_once(choice: object, later: object) -> None:
    model = Model([calling(call("lengths", text="a")), saying("done")])
    await tooled(model, lengths)(request(tool_choice=choice))
    assert [payload["tool_choice"] for payload in model.asked] == [choice, later]


async def test_a_model_that_never_stops_calling_is_cut_after_max_turns() -> None:
    model = Model([calling(call("lengths", text="a"))])
    with pytest.raises(Truncated, match="max_turns"):
        await tooled(model, lengths, max_turns=3)(request())
    assert len(model.asked) == 3


async def test_usage_cost_attempts_and_latency_are_sums_over_the_turns() -> None:
    model = Model([calling(call("lengths", text="a")), calling(call("lengths", text="b")), saying("done", attempts=3)])
    final = await tooled(model, lengths)(request())
    assert (final.usage, final.cost_usd, final.attempts, final.latency_s) == (Usage(30, 15, 9, 6), 0.75, 5, 6.0)


async def test_the_cost_is_unknown_when_that_of_one_turn_is() -> None:
    model = Model([calling(call("lengths", text="a")), saying("done", cost_usd=None)])
    assert (await tooled(model, lengths)(request())).cost_usd is None


async def test_the_transcript_holds_every_message_when_it_is_asked_for() -> None:
    first = call("lengths", "a", text="x")
    model = Model([calling(first), saying("done")])
    final = await tooled(model, lengths, transcript=True)(request())
    assert json.loads(final.transcript or "") == [
        QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [first]},
        {"role": "tool", "tool_call_id": "a", "content": "1"},
        {"role": "assistant", "content": "done"},
    ]


async def test_there_is_no_transcript_unless_it_is_asked_for() -> None:
    assert (await tooled(Model([saying("done")]), lengths)(request())).transcript is None


async def test_a_call_of_a_model_without_a_function_is_recorded_as_the_answer() -> None:
    model = Model([calling(call("lengths", "a", text="x")), calling(call("Degrees", "b", degrees=3))])
    final = await tooled(model, lengths, Degrees)(request())
    assert (final.body, len(model.asked)) == (model.says[1].body, 2)


async def test_an_answer_without_choices_is_returned_as_it_is() -> None:
    model = Model([reply(None)])
    assert await tooled(model, lengths)(request()) == model.says[0]


def repaired(model: Model, repairs: int) -> Ask:
    return repairing(model.ask, READER.outcome, repairs)


async def test_an_answer_that_does_not_fit_is_asked_for_again_with_the_complaint_and_the_old_text() -> None:
    model = Model([saying(BROKEN), saying(FITS)])
    final = await repaired(model, 1)(request(temperature=0))
    assert final.body == model.says[1].body
    question, old, complaint = model.asked[1]["messages"]
    assert (question, old) == (QUESTION, {"role": "assistant", "content": BROKEN})
    assert complaint["role"] == "user"
    assert "not JSON" in complaint["content"]
    assert model.asked[1]["temperature"] == 0


async def test_an_empty_answer_is_asked_for_again_without_an_empty_message() -> None:
    model = Model([saying(""), saying(FITS)])
    await repaired(model, 1)(request())
    assert [message["role"] for message in model.asked[1]["messages"]] == ["user", "user"]


@pytest.mark.parametrize("repairs", [0, 1, 2, 3])
async def test_an_answer_that_never_fits_is_asked_for_again_so_many_times(repairs: int) -> None:
    model = Model([saying(BROKEN)])
    final = await repaired(model, repairs)(request())
    assert len(model.asked) == 1 + repairs
    assert final.usage == Usage(*(count * (1 + repairs) for count in (10, 5, 3, 2)))
    assert (final.attempts, final.cost_usd) == (1 + repairs, 0.25 * (1 + repairs))


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_a_cut_answer_is_asked_for_once_more_with_more_room_and_without_the_broken_text(name: str) -> None:
    model = Model([saying(BROKEN, "length")])
    final = await repaired(model, 3)(request(**{name: 100}))
    assert model.asked == [{"messages": [QUESTION], name: 100}, {"messages": [QUESTION], name: 203}]
    assert final.usage == USAGE + USAGE


async def test_the_room_of_a_cut_answer_has_a_limit() -> None:
    model = Model([saying(BROKEN, "length")])
    await repaired(model, 1)(request(max_tokens=MOST_TOKENS - 1))
    await repaired(model, 1)(request(max_tokens=MOST_TOKENS))
    assert [payload["max_tokens"] for payload in model.asked] == [MOST_TOKENS - 1, MOST_TOKENS, MOST_TOKENS]


@pytest.mark.parametrize("thinking", [None, "medium", "high"])
async def test_an_answer_cut_by_the_endpoints_own_limit_is_asked_for_with_less_thinking(thinking: str | None) -> None:
    model = Model([saying(BROKEN, "length"), saying(FITS)])
    given = {"reasoning_effort": thinking} if thinking else {}
    assert (await repaired(model, 1)(request(**given))).body == model.says[1].body
    assert model.asked[1] == {"messages": [QUESTION], "reasoning_effort": "low"}


@pytest.mark.parametrize(
    ("payload", "usage"),
    [
        ({}, Usage(10, 5)),
        ({"reasoning_effort": "low"}, USAGE),
        ({"reasoning_effort": "none"}, USAGE),
        ({"extra_body": {"google": {"thinking_config": {"thinking_budget": 9}}}}, USAGE),
        ({"extra_body": {"google": {"thinkingConfig": {"thinkingBudget": 9}}}}, USAGE),
    ],
)
async def test_a_cut_answer_is_final_when_neither_room_nor_thinking_can_change(payload: Json, usage: Usage) -> None:
    model = Model([saying(BROKEN, "length", usage=usage)])
    await repaired(model, 2)(request(**payload))
    assert len(model.asked) == 1


@pytest.mark.parametrize("order", [("length", "stop"), ("stop", "length")])
async def test_being_cut_uses_up_no_repair(order: tuple[str, str]) -> None:
    model = Model([*(saying(BROKEN, finish) for finish in order), saying(FITS)])
    assert (await repaired(model, 1)(request(max_tokens=100))).body == model.says[2].body


@pytest.mark.parametrize(
    ("answer", "repairs"),
    [
        (saying(FITS), 3),
        (saying("", "content_filter"), 3),
        (reply(None), 3),
        (saying(BROKEN), 0),
        (saying(BROKEN, "length"), 0),
    ],
    ids=["fits", "blocked", "no choices", "no repairs", "cut, no repairs"],
)
async def test_nothing_is_asked_again_for_a_value_a_refusal_or_without_repairs(answer: Reply, repairs: int) -> None:
    model = Model([answer])
    assert await repaired(model, repairs)(request(max_tokens=100)) == answer
    assert len(model.asked) == 1


@pytest.mark.parametrize(
    "wrap",
    [
        lambda ask: repairing(ask, READER.outcome, 2),
        lambda ask: with_tools(ask, [tool_of(lengths)], ToolLimits(turns=2, calls=9, timeout_s=1), transcript=False),
    ],
    ids=["repairing", "with_tools"],
)
async def test_a_fault_of_the_ask_passes_through(wrap: Callable[[Ask], Ask]) -> None:
    fault: Fault = Unavailable("gone")

    async def failing(_request: Request) -> Reply:
        raise fault

    with pytest.raises(Unavailable) as caught:
        await wrap(failing)(request())
    assert caught.value is fault
