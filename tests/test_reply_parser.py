"""From a reply to its value: whole answers are values, everything else is the fault that names its reason."""

from __future__ import annotations

import base64
from typing import Any

import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from pipeline.data import Failure, Reply, Success
from pipeline.endpoint.wire import CompletionChoice
from pipeline.faults import Fault, Refused, Truncated, Unavailable, Unparsable
from pipeline.job.reply_parser import ReplyParser
from pipeline.schema.from_pydantic import shape_of

Json = dict[str, Any]


class Line(BaseModel):
    sku: str


TEXT, OBJECT, TYPED = ReplyParser(None), ReplyParser(None, json_object=True), ReplyParser(shape_of(Line))
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
AUDIO = {"data": base64.b64encode(b"png").decode(), "extra_content": {"google": {"mime_type": "image/png"}}}
READERS = pytest.mark.parametrize("reader", [TEXT, OBJECT, TYPED], ids=["text", "object", "typed"])


def choice(content: object = None, finish: str = "stop", **message: Any) -> Json:
    return {"finish_reason": finish, "message": {"role": "assistant", "content": content, **message}}


def replying(*choices: Json, **more: Any) -> Reply:
    return Reply(orjson.dumps({"choices": [{"index": at, **one} for at, one in enumerate(choices)], **more}))


def value(reader: ReplyParser, reply: Reply) -> Any:
    outcome = reader.outcome(7, reply)
    assert isinstance(outcome, Success), outcome
    assert (outcome.ordinal, outcome.reply) == (7, reply)
    return outcome.value


def fault(reader: ReplyParser, reply: Reply) -> Fault:
    outcome = reader.outcome(7, reply)
    assert isinstance(outcome, Failure), outcome
    assert (outcome.ordinal, outcome.reply) == (7, reply)
    return outcome.fault


def test_a_fault_stays_that_fault_without_a_reply() -> None:
    gone = Unavailable("gone")
    assert TYPED.read(7, gone) == (Failure(7, gone), None)


@READERS
@pytest.mark.parametrize(
    ("reply", "kind", "says"),
    [
        (replying(choice('{"sku": "a"}', "content_filter")), Refused, "content filter"),
        (replying({"finish_reason": "content_filter"}), Refused, "content filter"),
        (replying(choice(refusal="I will not")), Refused, "I will not"),
        (replying(choice('{"sku": "a"}', "length")), Truncated, "max_tokens"),
        (replying({"finish_reason": "length"}), Truncated, "max_tokens"),
        (replying(choice(finish="length", tool_calls=[CALL])), Truncated, "max_tokens"),
        (replying({"finish_reason": "stop"}), Unparsable, "the answer is empty"),
        (replying({"finish_reason": "stop", "message": None}), Unparsable, "the answer is empty"),
        (replying(), Unavailable, 'no choices): {"choices":[]}'),
        (Reply(b'{"choices": null}'), Unavailable, "no choices"),
        (Reply(b"{}"), Unavailable, "no choices"),
        (replying(promptFeedback={"blockReason": "SAFETY"}), Refused, "blocked: SAFETY"),
        (Reply(b'{"choices"'), Unavailable, "not JSON"),
    ],
)
def test_what_is_no_whole_answer_is_the_fault_of_its_reason(
    reader: ReplyParser, reply: Reply, kind: type[Fault], says: str
) -> None:
    found = fault(reader, reply)
    assert type(found) is kind
    assert says in found.message


def test_a_cut_answer_says_how_many_tokens_went_where() -> None:
    details = {"reasoning_tokens": 478}
    usage = {"completion_tokens": 18, "prompt_tokens": 4, "total_tokens": 500, "completion_tokens_details": details}
    message = fault(TEXT, replying(choice("", "length"), usage=usage)).message
    assert message == "the answer was cut at max_tokens after 496 tokens, 478 of them on thinking"


def test_a_refusal_is_told_without_secrets_and_in_short() -> None:
    message = fault(TEXT, replying(choice(refusal="no ya29.secretsecret " + "x" * 1000))).message
    assert "[redacted]" in message
    assert "secretsecret" not in message
    assert len(message) < 400


@pytest.mark.parametrize("content", [None, "", " \n"])
@READERS
def test_h8_an_empty_answer_is_no_value_of_any_job(reader: ReplyParser, content: str | None) -> None:
    assert type(fault(reader, replying(choice(content)))) is Unparsable


@READERS
@pytest.mark.parametrize("message", [{"tool_calls": [CALL]}, {"audio": AUDIO}], ids=["calls", "media"])
@pytest.mark.parametrize("finish", ["stop", "tool_calls"])
def test_an_answer_of_only_calls_or_media_has_no_value_and_is_no_failure(
    reader: ReplyParser, message: Json, finish: str
) -> None:
    assert value(reader, replying(choice(finish=finish, **message))) is None


def test_text_is_taken_as_it_is() -> None:
    assert value(TEXT, replying(choice(' ```json\n{"sku": 1}\n``` '))) == ' ```json\n{"sku": 1}\n``` '


def test_a_typed_answer_is_a_plain_value() -> None:
    assert value(TYPED, replying(choice('{"sku": "a"}'))) == {"sku": "a"}
    assert type(fault(TYPED, replying(choice('{"sku": 1}')))) is Unparsable


@pytest.mark.parametrize("text", ['{"b": 1, "a": [2.50]}', '```json\n{"b": 1, "a": [2.50]}\n```'])
def test_a_json_object_is_kept_as_its_own_text_out_of_its_fence(text: str) -> None:
    assert value(OBJECT, replying(choice(text))) == '{"b": 1, "a": [2.50]}'


@pytest.mark.parametrize("text", ["[]", "1", "null", '"{}"', "{", "{} {}", '{"a": NaN}', "[" * 100_000, "no"])
def test_what_is_no_json_object_is_unparsable(text: str) -> None:
    assert type(fault(OBJECT, replying(choice(text)))) is Unparsable


SEVERAL = ReplyParser(shape_of(Line), several=True)


def test_of_several_answers_those_that_are_no_good_are_null_in_their_place() -> None:
    good = choice('{"sku": "a"}')
    reply = replying(
        choice("{"), good, choice(finish="content_filter"), {**good, "index": 3}, choice(tool_calls=[CALL])
    )
    assert value(SEVERAL, reply) == [None, {"sku": "a"}, None, {"sku": "a"}, None]


def test_several_answers_are_in_the_order_of_their_index() -> None:
    reply = replying({**choice("b"), "index": 1}, {**choice("a"), "index": 0})
    assert value(ReplyParser(None, several=True), reply) == ["a", "b"]


def test_when_all_of_several_answers_fail_the_first_fault_is_the_rows() -> None:
    assert type(fault(SEVERAL, replying(choice("{", "length"), choice("{")))) is Truncated
    assert type(fault(SEVERAL, replying())) is Unavailable


def test_the_column_is_a_list_when_there_are_several_answers() -> None:
    assert ReplyParser(None).parsed_type() == pa.string()
    assert ReplyParser(None, several=True).parsed_type() == pa.list_(pa.field("element", pa.string()))
    assert SEVERAL.parsed_type().value_type == TYPED.parsed_type()


def split(text: str | None, marker: str | None = "think", **message: Any) -> CompletionChoice:
    """The answer with thoughts and text told apart."""
    return ReplyParser(None, marker=marker).completion(replying(choice(text, **message))).answers[0]


@pytest.mark.parametrize(
    ("text", "thoughts", "said"),
    [
        ("<think>a</think>b", "a", "b"),
        (" \n<think>\na\n</think>\n\nb\n", "a", "b\n"),
        ("<think>a</think>\n<think>c</think>b", "a\n\nc", "b"),
        ("<think>a", "a", None),
        ("<think>a</think>", "a", None),
        ("<think>a</think>b<think>c</think>", "a", "b<think>c</think>"),
        ("b", None, "b"),
        (" b <think>a</think>", None, " b <think>a</think>"),
        ("<thinking>a</thinking>b", None, "<thinking>a</thinking>b"),
        (None, None, None),
    ],
)
def test_blocks_at_the_front_are_thoughts_and_the_rest_is_text(
    text: str | None, thoughts: str | None, said: str | None
) -> None:
    answer = split(text)
    assert (answer.reasoning, answer.text) == (thoughts, said)


def test_without_a_marker_text_is_not_looked_into() -> None:
    answer = split("<think>a</think>b", None)
    assert (answer.reasoning, answer.text) == (None, "<think>a</think>b")


def test_thoughts_of_their_own_field_come_before_those_in_the_text() -> None:
    assert split("<think>a</think>b", reasoning_content="z").reasoning == "z\n\na"


def test_a_marker_is_taken_literally() -> None:
    assert split("<.*>a</.*>b", ".*").text == "b"
    assert split("<x>a</x>b", ".*").text == "<x>a</x>b"


@settings(max_examples=100)
@given(thought=st.text(max_size=20), said=st.text(max_size=20))
def test_what_was_thought_is_never_in_the_text(thought: str, said: str) -> None:
    thought, said = thought.replace("<", ""), said.replace("<", "").strip()
    answer = split(f"<think>{thought}</think>{said}")
    assert ((answer.reasoning or ""), (answer.text or "")) == (thought.strip(), said)


def test_the_value_is_read_from_what_was_not_thought() -> None:
    reader = ReplyParser(shape_of(Line), marker="think")
    assert value(reader, replying(choice('<think>{"sku": "z"}</think>{"sku": "a"}'))) == {"sku": "a"}
    assert type(fault(reader, replying(choice('<think>{"sku": "z"}')))) is Unparsable


def test_a_body_is_not_read_twice() -> None:
    read = TEXT.completion(replying(choice("a")))
    assert value(TEXT, Reply(b"not looked at", completion=read)) == "a"
