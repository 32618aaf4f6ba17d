"""Jobs: rows become requests, replies become values, and whatever shapes either shows in the fingerprint."""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from pipeline.data import Failure, Outcome, Reply, Row, Success
from pipeline.faults import Fault, InvalidRow, Refused, Truncated, Unavailable, Unparsable, UsageError
from pipeline.job.columns import OURS
from pipeline.job.job import Job

MODEL = "google/gemini-3.5-flash"
COLUMNS = ["id", "text", "note", "photo"]
TYPES = {"id": "int64", "text": "string", "note": "string", "photo": "binary"}


class Event(BaseModel):
    name: str
    year: int | None


class Venue(BaseModel):
    name: str


def job(**fields: Any) -> Job:
    return Job(**{"name": "a", "model": MODEL, "user": "{{ text }}", **fields})


def carrying(**fields: Any) -> Job:
    """A job whose rows are requests."""
    return Job(**{"name": "a", "model": MODEL, **fields})


def payload(of: Job, **values: Any) -> Mapping[str, Any]:
    return of.request(Row(7, values)).payload


def unusable(of: Job, **values: Any) -> str:
    with pytest.raises(InvalidRow) as caught:
        payload(of, **values)
    return caught.value.message


def columns(_row: Mapping[str, Any]) -> str:
    return "text"


def other_columns(_row: Mapping[str, Any]) -> str:
    return "other text"


# Requests.


def test_a_job_with_everything_makes_the_body_that_the_endpoint_documents() -> None:
    whole = job(
        system="You read {{ id }}.",
        schema=Event,
        temperature=0,
        top_p=0.9,
        max_tokens=500,
        seed=7,
        stop=["END"],
        frequency_penalty=0.1,
        presence_penalty=-0.1,
        google={"thinking_config": {"thinking_budget": 0}},
        extra={"logit_bias": {}},
    )
    body = dict(payload(whole, id=3, text="Hello"))
    response_format = body.pop("response_format")
    assert body == {
        "model": MODEL,
        "messages": [{"role": "system", "content": "You read 3."}, {"role": "user", "content": "Hello"}],
        "temperature": 0,
        "top_p": 0.9,
        "max_tokens": 500,
        "seed": 7,
        "stop": ["END"],
        "frequency_penalty": 0.1,
        "presence_penalty": -0.1,
        "extra_body": {"google": {"thinking_config": {"thinking_budget": 0}}},
        "logit_bias": {},
    }
    assert response_format["type"] == "json_schema"
    assert response_format["json_schema"]["strict"] is True
    assert response_format["json_schema"]["schema"]["required"] == ["name", "year"]


def test_what_a_job_does_not_say_is_not_sent() -> None:
    assert payload(job(), text="Hello") == {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}


@pytest.mark.parametrize("effort", ["none", "minimal", "low", "medium", "high"])
def test_every_effort_is_sent_as_it_is_called(effort: str) -> None:
    assert payload(job(reasoning_effort=effort), text="x")["reasoning_effort"] == effort


def test_extra_has_the_last_word() -> None:
    assert payload(job(temperature=0, extra={"temperature": 1}), text="x")["temperature"] == 1


def test_a_request_carries_its_ordinal_and_is_the_same_every_time() -> None:
    row = Row(41, {"text": "Hello"})
    assert job().request(row) == job().request(row)
    assert job().request(row).ordinal == 41


def test_the_tier_is_a_header() -> None:
    assert job().request(Row(0, {"text": "x"})).headers == {}
    assert job(tier="flex").request(Row(0, {"text": "x"})).headers == {
        "X-Vertex-AI-LLM-Request-Type": "shared",
        "X-Vertex-AI-LLM-Shared-Request-Type": "flex",
    }


def test_a_function_of_the_row_may_be_the_prompt() -> None:
    asked = job(user=lambda row: row["text"].upper(), system=columns)
    assert [message["content"] for message in payload(asked, text="hello")["messages"]] == ["text", "HELLO"]


@pytest.mark.parametrize("returned", [None, "", [], 5])
def test_a_function_that_returns_no_text_fails_its_row(returned: object) -> None:
    assert "the prompt's function returned" in unusable(job(user=lambda _: returned), text="x")


def test_a_function_may_refuse_a_row() -> None:
    def prompt(row: Mapping[str, Any]) -> str:
        raise InvalidRow(f"no use: {row['text']}")

    assert unusable(job(user=prompt), text="x") == "no use: x"


def test_i1_a_record_that_could_not_be_read_fails_with_its_own_problem() -> None:
    with pytest.raises(InvalidRow, match="line 3 is not JSON"):
        job().request(Row(2, {}, problem="line 3 is not JSON"))


def test_i6_a_null_that_the_prompt_needs_fails_its_row() -> None:
    assert "text" in unusable(job(), text=None)


@settings(deadline=None)
@given(st.dictionaries(st.text(), st.text() | st.integers() | st.none(), max_size=5))
def test_s1_no_row_can_change_anything_but_the_text_of_its_message(values: dict[str, Any]) -> None:
    body = payload(job(user="{{ row['text'] }}", temperature=0), **{**values, "text": "{{ 1 }}"})
    assert body == {"model": MODEL, "temperature": 0, "messages": [{"role": "user", "content": "{{ 1 }}"}]}


# Rows that are requests.

MESSAGES = [{"role": "user", "content": "Hello"}]


def test_a_row_may_carry_its_messages_in_place_or_as_json_text() -> None:
    expected = {"model": MODEL, "temperature": 0.0, "messages": MESSAGES}
    assert payload(carrying(temperature=0), messages=MESSAGES) == expected
    assert payload(carrying(temperature=0), messages=json.dumps(MESSAGES)) == expected


def test_a_row_may_be_a_line_of_openais_batch_format() -> None:
    values = {
        "custom_id": "a-1",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "theirs", "messages": MESSAGES, "temperature": 1},
    }
    body = {"model": "theirs", "messages": MESSAGES, "temperature": 1}
    assert payload(carrying(model="", temperature=0), **values) == body
    assert payload(carrying(model="", temperature=0), **{**values, "body": json.dumps(values["body"])}) == body


def test_the_jobs_own_model_wins_over_the_rows() -> None:
    assert payload(carrying(), body={"model": "theirs", "messages": MESSAGES})["model"] == MODEL


def test_a_row_without_any_model_says_where_to_name_one() -> None:
    assert "give one with --model" in unusable(carrying(model=""), messages=MESSAGES)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"messages": None},
        {"messages": []},
        {"messages": "[]"},
        {"messages": {"role": "user"}},
        {"messages": "Hello"},
        {"messages": "[" * 100_000},
        {"messages": "9" * 5000},
        {"body": {}},
        {"body": "null"},
        {"body": [1]},
        {"body": {"messages": "Hello"}},
        {"body": {"messages": []}},
    ],
)
def test_a_row_that_carries_no_request_fails_alone(values: dict[str, Any]) -> None:
    assert "request" in unusable(carrying(), **values)


@pytest.mark.parametrize(
    "other", [{"url": "/v1/embeddings"}, {"method": "GET"}, {"url": "/v1/responses", "method": "POST"}, {"url": ["x"]}]
)
def test_a_batch_line_for_another_endpoint_fails_with_the_one_that_can_be_asked(other: dict[str, Any]) -> None:
    said = unusable(carrying(), body={"messages": MESSAGES, "input": "x"}, **other)
    assert said.startswith("only POST /v1/chat/completions can be asked")


@pytest.mark.parametrize("other", [{}, {"method": None, "url": None}, {"method": "post", "url": "/chat/completions"}])
def test_a_batch_line_may_leave_out_what_goes_without_saying(other: dict[str, Any]) -> None:
    assert payload(carrying(), body={"messages": MESSAGES}, **other)["messages"] == MESSAGES


@pytest.mark.parametrize("other", [{"url": "https://example.com/page"}, {"method": "phone"}, {"url": ["a", "b"]}])
def test_beside_plain_messages_the_columns_url_and_method_are_data(other: dict[str, Any]) -> None:
    assert payload(carrying(), messages=MESSAGES, **other) == {"model": MODEL, "messages": MESSAGES}


def test_an_input_without_a_prompt_and_without_requests_is_refused_with_the_remedy() -> None:
    with pytest.raises(
        UsageError, match=r"no `messages` or `body` column .*id, text, note, photo.*give the job a prompt"
    ):
        carrying().columns_needed(COLUMNS)


def test_of_an_input_of_requests_only_the_requests_are_needed() -> None:
    assert carrying().columns_needed(["custom_id", "url", "body", "method", "x"]) == ["body", "method", "url"]


# Columns.


@pytest.mark.parametrize(
    ("fields", "needed"),
    [
        ({}, ["text"]),
        ({"system": "{{ note }}"}, ["text", "note"]),
        ({"user": "nothing"}, []),
        ({"user": "{{ row['text'] }}"}, COLUMNS),
        ({"user": columns}, COLUMNS),
        ({"system": columns}, COLUMNS),
    ],
)
def test_the_columns_needed_are_those_that_the_prompt_names_in_input_order(
    fields: dict[str, Any], needed: list[str]
) -> None:
    assert job(**fields).columns_needed(COLUMNS) == needed


@pytest.mark.parametrize("name", ["range", "dict"])
def test_a_column_called_like_a_function_of_templates_is_read(name: str) -> None:
    assert name in job(user=f"{{{{ {name} }}}}").columns_needed([name, "text"])


def test_i6_an_unknown_column_in_a_prompt_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        job(system="{{ nots }}").columns_needed(COLUMNS)
    assert str(caught.value) == (
        "the template of `system` names the column 'nots', which is not in the input; did you mean 'note'?"
    )


def test_i6_an_unknown_column_like_no_other_is_refused_with_all() -> None:
    with pytest.raises(UsageError, match=r"\(known: id, text, note, photo\)"):
        job(user="{{ zzz }}").columns_needed(COLUMNS)


@pytest.mark.parametrize("fields", [{"key": "ID"}, {"keep": ["text", "nots"]}, {"rename": {"txt": "text"}}])
def test_i6_an_unknown_column_in_key_keep_or_rename_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"the job names the column '.*', which is not in the input"):
        job(**fields).columns_kept(TYPES)


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({}, {"id": "id", "text": "text", "note": "note"}),
        ({"keep": ["photo", "id"]}, {"id": "id", "photo": "photo"}),
        ({"keep": []}, {}),
        ({"keep": ["note"], "key": "id"}, {"id": "id", "note": "note"}),
        ({"rename": {"text": "question"}}, {"id": "id", "text": "question", "note": "note"}),
    ],
)
def test_the_columns_kept_are_all_but_binary_ones_unless_the_job_says_which(
    fields: dict[str, Any], kept: dict[str, str]
) -> None:
    assert job(**fields).columns_kept(TYPES) == kept
    assert list(job(**fields).columns_kept(TYPES)) == list(kept)


@pytest.mark.parametrize("kind", ["binary", "large_binary", "fixed_size_binary[16]"])
def test_binary_columns_of_every_kind_are_left_out(kind: str) -> None:
    assert job().columns_kept({"a": kind, "b": "string"}) == {"b": "b"}


@pytest.mark.parametrize("name", [*OURS, "Status", "ERROR"])
def test_a_reserved_name_is_refused_with_a_remedy_that_works(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        job().columns_kept({**TYPES, name: "string"})
    message = str(caught.value)
    assert f"the input column {name!r} has the name of an output column" in message
    rename = json.loads(message.partition("rename=")[2])
    assert job(rename=rename).columns_kept({**TYPES, name: "string"})[name] == f"input_{name}"
    assert name not in job(keep=["id"]).columns_kept({**TYPES, name: "string"})


def test_a_name_given_by_rename_may_be_no_reserved_one_either() -> None:
    with pytest.raises(UsageError, match="has the name of an output column"):
        job(rename={"text": "response"}).columns_kept(TYPES)


def test_a_name_with_nul_is_refused_unless_it_is_renamed() -> None:
    """DuckDB takes what comes before it for the name, and Polars ends with a panic."""
    with pytest.raises(UsageError, match=r"'a\\x00b' has a NUL character in its name.*`keep`.*`rename`"):
        Job(name="a", user="x").columns_kept({"a\0b": "string"})
    assert Job(name="a", user="x", rename={"a\0b": "ab"}).columns_kept({"a\0b": "string"}) == {"a\0b": "ab"}
    assert Job(name="a", user="x", rename="bigquery").columns_kept({"a\0b": "string"}) == {"a\0b": "a_b"}


@pytest.mark.parametrize("types", [{"Text": "string", "text": "string"}, {"a": "string", "b": "string"}])
def test_two_output_columns_of_the_same_name_are_refused(types: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="two output columns would have the same name"):
        Job(name="a", user="x", rename={"a": "B"} if "a" in types else {}).columns_kept(types)


# Outcomes.


def reply(
    message: object = None, finish_reason: object = "stop", usage: Mapping[str, Any] | None = None, **rest: Any
) -> Reply:
    choice = {"index": 0, "finish_reason": finish_reason, "message": message}
    return Reply(orjson.dumps({"choices": [choice], "usage": usage, **rest}))


def outcome(of: Job, answered: Reply) -> Outcome:
    return of.outcome(7, answered)


def value(of: Job, answered: Reply) -> Any:
    result = outcome(of, answered)
    assert isinstance(result, Success), result
    assert (result.ordinal, result.reply) == (7, answered)
    return result.value


def fault(of: Job, answered: Reply) -> Fault:
    result = outcome(of, answered)
    assert isinstance(result, Failure), result
    assert (result.ordinal, result.reply) == (7, answered)
    return result.fault


CALLS = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
EVENT = '{"name": "Fair", "year": 2026}'
WHOLE = ["stop", "STOP", "tool_calls", "function_call", "eos", "never seen before", None, 7]


@pytest.mark.parametrize("reason", WHOLE)
def test_h8_an_answer_with_any_other_finish_reason_is_whole(reason: object) -> None:
    assert value(job(), reply({"content": "Hello"}, reason)) == "Hello"
    assert value(job(schema=Event), reply({"content": EVENT}, reason)) == {"name": "Fair", "year": 2026}


@pytest.mark.parametrize("message", [{"content": "Hal"}, {"content": None}, {}, None])
@pytest.mark.parametrize("fields", [{}, {"schema": Event}, {"schema": "json_object"}])
def test_h8_an_answer_that_ended_at_the_limit_is_cut_whatever_is_there(fields: dict[str, Any], message: object) -> None:
    found = fault(job(**fields), reply(message, "length"))
    assert type(found) is Truncated


def test_an_answer_that_was_cut_says_how_much_went_into_thinking() -> None:
    usage = {"completion_tokens": 18, "completion_tokens_details": {"reasoning_tokens": 478}, "total_tokens": 505}
    assert fault(job(), reply({"content": "x"}, "length", usage)).message == (
        "the answer was cut at max_tokens after 496 tokens, 478 of them on thinking"
    )


@pytest.mark.parametrize("message", [{"content": "Hal"}, {"content": None}, {}, None])
@pytest.mark.parametrize("fields", [{}, {"schema": Event}, {"schema": "json_object"}])
def test_h8_an_answer_that_was_filtered_is_refused_whatever_is_there(fields: dict[str, Any], message: object) -> None:
    assert type(fault(job(**fields), reply(message, "content_filter"))) is Refused


@pytest.mark.parametrize("reason", ["stop", None, "unheard_of"])
def test_h8_a_choice_without_a_message_is_an_empty_answer(reason: object) -> None:
    assert type(fault(job(), reply(None, reason))) is Unparsable


@pytest.mark.parametrize("body", [b'{"choices":[]}', b'{"choices":null}', b"{}", b'{"choices":["x"]}'])
def test_h8_a_completion_without_an_answer_is_unavailable_and_never_called_blocked(body: bytes) -> None:
    found = fault(job(), Reply(body))
    assert type(found) is Unavailable
    assert "blocked" not in found.message


def test_a_blocked_prompt_is_refused_with_the_reason() -> None:
    blocked = reply({"content": "x"}, promptFeedback={"blockReason": "PROHIBITED\nCONTENT"})
    assert fault(job(), blocked).message == "the prompt was blocked: PROHIBITED CONTENT"


def test_a_refusal_is_told_on_one_line() -> None:
    found = fault(job(), reply({"content": None, "refusal": "I will\nnot.\x1b[31m" + "x" * 1000}))
    assert type(found) is Refused
    assert found.message.startswith("the model refused: I will not. [31mxxx")
    assert len(found.message) < 400


@pytest.mark.parametrize("fields", [{}, {"schema": Event}, {"schema": "json_object"}])
@pytest.mark.parametrize("content", [None, "", " "])
def test_h8_null_or_blank_content_is_unparsable(fields: dict[str, Any], content: object) -> None:
    assert type(fault(job(**fields), reply({"content": content}))) is Unparsable


@pytest.mark.parametrize("schema", [Event, "json_object"])
def test_tool_calls_without_text_are_ok_with_null(schema: object) -> None:
    assert value(job(schema=schema), reply({"content": None, "tool_calls": CALLS}, "tool_calls")) is None


def test_an_answer_beside_tool_calls_is_read() -> None:
    assert value(job(schema=Venue), reply({"content": '{"name": "x"}', "tool_calls": CALLS})) == {"name": "x"}


@pytest.mark.parametrize("content", ["prose", '{"name": "Fair"}', '{"name": 1, "year": 2}', "[]", EVENT + "x"])
def test_an_answer_that_does_not_fit_the_schema_is_unparsable(content: str) -> None:
    assert type(fault(job(schema=Event), reply({"content": content}))) is Unparsable


@pytest.mark.parametrize("content", ["prose", "[]", "3", "NaN", '{"a": NaN}', "[" * 100_000])
def test_an_answer_that_is_no_json_object_is_unparsable_where_one_was_asked_for(content: str) -> None:
    assert type(fault(job(schema="json_object"), reply({"content": content}))) is Unparsable


def test_any_json_object_is_kept_as_text() -> None:
    assert value(job(schema="json_object"), reply({"content": ' {"a": 1.10}\n'})) == '{"a": 1.10}'


def test_several_answers_are_a_list_with_null_where_one_is_no_good() -> None:
    contents: list[tuple[object, str]] = [({"content": '{"name": "a"}'}, "stop"), ({"content": "x"}, "stop")]
    contents.append(({"content": '{"name": "b'}, "length"))
    choices = [{"index": i, "message": m, "finish_reason": r} for i, (m, r) in enumerate(contents)]
    body = Reply(orjson.dumps({"choices": choices}))
    assert value(job(schema=Venue, n=3), body) == [{"name": "a"}, None, None]


def test_several_answers_that_are_all_no_good_fail_the_row_with_the_first_fault() -> None:
    choices = [{"index": i, "message": {"content": "x"}, "finish_reason": r} for i, r in enumerate(["length", "stop"])]
    assert type(fault(job(schema=Venue, n=2), Reply(orjson.dumps({"choices": choices})))) is Truncated


def test_thoughts_between_their_tags_are_no_part_of_the_answer() -> None:
    thinking = job(schema=Venue, google={"thinking_config": {"include_thoughts": True}})
    assert payload(thinking, text="x")["extra_body"]["google"]["thought_tag_marker"] == "thinking"
    assert value(thinking, reply({"content": '<thinking>{"no"</thinking>\n{"name": "x"}'})) == {"name": "x"}


def test_a_fault_stays_what_it_is() -> None:
    ended = Unavailable("503", http_status=503)
    assert job(schema=Event).outcome(3, ended) == Failure(3, ended)


def test_media_come_with_a_value_of_null() -> None:
    audio = {"data": base64.b64encode(b"x").decode()}
    assert value(job(), reply({"content": None, "audio": audio})) is None


_JSON = st.recursive(
    st.none() | st.integers(-(2**63), 2**63) | st.text(max_size=5) | st.sampled_from([EVENT, "length", "stop"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["content", "tool_calls", "refusal", "text", "function", "name"]), inner)
    ),
    max_leaves=10,
)


@settings(deadline=None)
@given(_JSON, _JSON, st.sampled_from([None, Event, "json_object"]), st.sampled_from([1, 3]))
def test_h8_any_message_becomes_an_outcome(message: object, reason: object, schema: object, n: int) -> None:
    """Nothing is raised, and a failure is one that a reply can mean."""
    result = outcome(job(schema=schema, n=n), reply(message, reason))
    assert isinstance(result, Success) or isinstance(result.fault, Refused | Truncated | Unparsable | Unavailable)


# Fingerprints.

SHAPING: dict[str, Any] = {
    "model": "google/other",
    "system": "Be brief.",
    "user": "{{ text }}!",
    "messages": [{"role": "user", "content": "Read {{ text }}"}],
    "examples": "examples.jsonl",
    "schema": Event,
    "temperature": 0.5,
    "top_p": 0.5,
    "max_tokens": 5,
    "seed": 1,
    "stop": "END",
    "frequency_penalty": 0.5,
    "presence_penalty": 0.5,
    "n": 2,
    "reasoning_effort": "low",
    "stream": True,
    "modalities": ["image"],
    "web_search": True,
    "tier": "flex",
    "google": {"safety_settings": []},
    "extra": {"logit_bias": {}},
    "tools": [Venue],
    "tool_choice": "none",
    "execute_tools": False,
    "max_turns": 3,
    "transcript": True,
    "key": "id",
    "keep": ["id"],
    "rename": {"id": "number"},
    "add": ["source_row"],
    "time_as": "time",
    "types": {"n": "integer"},
}
"""A change of every field that shapes the answers or the columns."""

NOT_SHAPING: dict[str, Any] = {
    "name": "b",
    "input": "other.jsonl",
    "include": "*.jsonl",
    "input_rows": "all",
    "allow_partial": True,
    "output": "elsewhere",
    "media_root": "/elsewhere",
    "max_calls_per_turn": 5,
    "tool_timeout_s": 5.0,
    "repairs": 3,
    "max_failed": 0.5,
    "locations": ["europe-west4"],
    "prices": {"google/other": {"input": 1.0, "output": 2.0}},
    "attempts": 9,
    "row_timeout_s": 5.0,
    "timeout_s": 5.0,
    "idle_timeout_s": 5.0,
}
"""A change of every other field: where things are, and how hard to try."""


class OpeningTime(BaseModel):
    at: dt.time


def changed(field: str, change: object, folder: Path) -> tuple[Job, Job]:
    """A job before and after the change of one field."""
    (folder / "examples.jsonl").write_text('{"user": "a", "assistant": "b"}\n')
    fields: dict[str, Any] = {"name": "a", "model": MODEL, "user": "{{ text }}"}
    if field in {"tool_choice", "execute_tools", "max_turns", "transcript"}:
        fields["tools"] = [Venue]
    if field == "time_as":
        fields["schema"] = OpeningTime
    after = fields | {field: str(folder / "examples.jsonl") if field == "examples" else change}
    return Job(**fields), Job(**(after | {"user": None} if field == "messages" else after))


def test_every_field_of_a_job_is_known_to_shape_the_answers_or_not() -> None:
    assert {field.name for field in dataclasses.fields(Job)} == SHAPING.keys() | NOT_SHAPING.keys()
    assert not SHAPING.keys() & NOT_SHAPING.keys()


@pytest.mark.parametrize("field", SHAPING)
def test_p8_what_shapes_answers_or_columns_changes_the_fingerprint(field: str, tmp_path: Path) -> None:
    before, after = changed(field, SHAPING[field], tmp_path)
    assert before.fingerprint() != after.fingerprint()


@pytest.mark.parametrize("field", NOT_SHAPING)
def test_p8_nothing_else_changes_the_fingerprint(field: str, tmp_path: Path) -> None:
    before, after = changed(field, NOT_SHAPING[field], tmp_path)
    assert before.fingerprint() == after.fingerprint()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"keep": None}, {"keep": []}),
        ({"keep": ["id", "text"]}, {"keep": ["id"]}),
        ({"key": "id"}, {"key": "text"}),
        ({"schema": Event}, {"schema": Venue}),
        ({"schema": None}, {"schema": "json_object"}),
        ({"extra": {"response_format": {"type": "json_object"}}}, {"extra": {"response_format": {"type": "text"}}}),
        ({"extra": {"model": "a"}}, {"extra": {"model": "b"}}),
        ({"temperature": None}, {"temperature": 0}),
        ({"system": None}, {"system": ""}),
        ({"user": columns}, {"user": other_columns}),
        ({"google": {"a": 1}}, {"google": {"a": 2}}),
        ({"messages": MESSAGES, "user": None}, {"messages": [*MESSAGES, *MESSAGES], "user": None}),
    ],
)
def test_p8_a_change_between_any_two_values_is_seen(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert job(**before).fingerprint() != job(**after).fingerprint()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"stop": ["a"]}, {"stop": ("a",)}),
        ({"keep": ["a"]}, {"keep": ("a",)}),
        ({"google": {"a": 1, "b": 2}}, {"google": {"b": 2, "a": 1}}),
        ({"user": columns}, {"user": columns}),
        ({"temperature": 0}, {"temperature": 0.0}),
    ],
)
def test_p8_another_way_to_write_the_same_is_no_change(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert job(**before).fingerprint() == job(**after).fingerprint()


def test_p8_a_change_of_the_schema_alone_shows_in_no_other_field() -> None:
    """That is what allows the kept replies to be read again."""
    before, after = job(schema=Event).fingerprint(), job(schema=Venue).fingerprint()
    assert [name for name in before if before[name] != after[name]] == ["schema"]


class Greeting:
    """A prompt that is no function, but can be called."""

    def __call__(self, _row: Mapping[str, Any]) -> str:
        return "Hello"


@pytest.mark.parametrize("prompt", [Greeting(), eval("lambda row: 'x'")])  # noqa: S307 - a function without a source
def test_p8_a_prompt_without_a_source_has_a_fingerprint_too(prompt: Callable[[Mapping[str, Any]], str]) -> None:
    assert job(user=prompt).fingerprint() == job(user=prompt).fingerprint()
    assert job(user=prompt).fingerprint() != job().fingerprint()


def test_p8_a_fingerprint_is_text_by_field() -> None:
    for text in job(schema=Event, tools=[Venue], google={"a": 1}).fingerprint().values():
        assert isinstance(text, str)


# What a job refuses to be.


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"reasoning_effort": "low", "google": {"thinking_config": {}}}, "exclude each other: keep one of them"),
        ({"reasoning_effort": "low", "google": {"thinkingConfig": {}}}, "exclude each other: keep one of them"),
        ({"messages": MESSAGES}, "put the text into `messages`"),
        ({"user": None, "system": "x"}, r"need a `user` prompt \(or `messages`\)"),
        ({"n": 2, "stream": True}, "`n` answers go with neither"),
        ({"n": 2, "tools": [Venue]}, "`n` answers go with neither"),
        ({"tool_choice": "now"}, "`tool_choice` is none, auto, required, validated or a tool's name"),
        ({"user": "{{ text"}, "the template of `user` is broken at line 1"),
        ({"schema": {"type": "array"}}, "the schema's root must be an object"),
        ({"schema": "missing.json"}, r"'missing.json' cannot be read .*json_object"),
        ({"examples": "missing.jsonl"}, "the examples 'missing.jsonl' cannot be read"),
    ],
)
def test_what_cannot_go_together_is_refused_when_the_job_is_made(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        job(**fields)


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("name", "a b"),
        ("name", ""),
        ("name", "../x"),
        ("temperature", 2.1),
        ("temperature", float("nan")),
        ("top_p", -0.1),
        ("max_tokens", 0),
        ("n", 9),
        ("attempts", 0),
        ("timeout_s", 0),
        ("max_failed", -1),
        ("reasoning_effort", "maximal"),
        ("tier", "cheap"),
        ("keep", "id"),
        ("user", 5),
        ("schema", Event(name="x", year=1)),
        ("temprature", 0),
    ],
)
def test_values_out_of_bounds_are_refused(field: str, bad: object) -> None:
    with pytest.raises(ValidationError):
        job(**{field: bad})


def test_a_job_never_changes_and_replace_makes_a_checked_copy() -> None:
    first = job(temperature=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.temperature = 1.0  # type: ignore[misc] # wrong on purpose
    assert first.replace(temperature=1).temperature == 1
    assert first.temperature == 0
    with pytest.raises(ValidationError):
        first.replace(temperature=3)
    with pytest.raises(UsageError):
        first.replace(user="{{ text")
