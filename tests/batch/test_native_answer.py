"""Lines of Vertex AI's results: the same answer as online, a fault of the row, or nothing that is believed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import Reply, Usage
from pipeline.endpoint.batch.backend import BatchAnswer
from pipeline.endpoint.batch.native_answer import read_native_line
from pipeline.endpoint.batch.openai_lines import read_openai_line
from pipeline.endpoint.batch.replies import reply_of
from pipeline.endpoint.finish_reasons import fault_of
from pipeline.endpoint.wire import Completion, read_completion
from pipeline.faults import Fault, Halt, Refused, Throttled, Transient, Truncated, Unavailable
from tests.batch.test_native_request import json_values

LINE = rb"""
{"status":"","processed_time":"2025-09-19T21:29:47.352+00:00",
 "request":{"contents":[{"parts":[{"text":"Hello world!"}],"role":"user"}],"generationConfig":{"max_output_tokens":10},
            "labels":{"pipeline_row":"r-7"},"system_instruction":{"parts":[{"text":"..."}]}},
 "response":{"candidates":[{"avgLogprobs":-0.48,"content":{"parts":[{"text":"Hi"}],"role":"model"},
                            "finishReason":"MAX_TOKENS"}],
   "createTime":"2025-09-19T21:29:47.484619Z","modelVersion":"gemini-2.5-flash-lite","responseId":"S8vNaIvK",
   "usageMetadata":{"candidatesTokenCount":10,"promptTokenCount":9,"totalTokenCount":19,"trafficType":"ON_DEMAND"}}}
"""
"""A line that was published (LiteLLM's documentation, "Vertex Batch APIs"), with our label."""


def line_of(**fields: Any) -> bytes:
    return json.dumps({"key": "r-7", "status": "", **fields}).encode()


def answer_of(*parts: dict[str, Any], **candidate: Any) -> BatchAnswer:
    content = {"role": "model", "parts": list(parts)}
    return read_native_line(
        line_of(response={"candidates": [{"content": content, "finishReason": "STOP", **candidate}]})
    )


def completion_of(answer: BatchAnswer) -> Completion:
    assert answer.fault is None
    assert answer.body is not None
    return read_completion(answer.body)


def test_a_published_line_is_the_answer_that_it_was_online() -> None:
    answer = read_native_line(LINE)
    assert (answer.key, answer.raw) == ("r-7", LINE)
    reply = reply_of(answer, finished_at=5)
    assert reply.usage == Usage(input=9, output=10)
    assert (reply.model, reply.traffic_type, reply.finished_at) == ("google/gemini-2.5-flash-lite", "BATCH", 5)
    completion = completion_of(answer)
    assert (completion.id, completion.traffic_type) == ("S8vNaIvK", "BATCH")
    assert completion.answers[0].text == "Hi"
    assert isinstance(fault_of(completion.answers[0], completion), Truncated)


# Keys.


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"key": "r-1"}, "r-1"),
        ({"key": "r-1", "request": {"labels": {"pipeline_row": "r-1"}}}, "r-1"),
        ({"key": None, "request": {"labels": {"pipeline_row": "r-2"}}}, "r-2"),
        ({"key": "r-1", "request": {"labels": {"pipeline_row": "r-2"}}}, None),
        ({"key": None}, None),
        ({"key": ["r-1"], "request": {"labels": ["r-1"]}}, None),
    ],
)
def test_a_key_is_that_of_the_line_or_its_label_and_never_a_guess(fields: dict[str, Any], key: str | None) -> None:
    assert read_native_line(line_of(**fields)).key == key


# Answers.


def test_thoughts_are_apart_from_the_text() -> None:
    answer = completion_of(answer_of({"text": "Hm.\n", "thought": True}, {"text": "4"}, {"text": "2"}))
    assert (answer.answers[0].text, answer.answers[0].reasoning) == ("42", "Hm.")


def test_calls_have_their_arguments_with_all_digits() -> None:
    raw = b'{"key":"r-7","response":{"candidates":[{"finishReason":"STOP","content":{"parts":[{"functionCall":'
    raw += b'{"name":"f","args":{"a":0.10000000000000000001}},"thoughtSignature":"c2ln"}]}}]}}'
    completion = completion_of(read_native_line(raw))
    [call] = completion.answers[0].tool_calls
    assert (call.name, call.arguments) == ("f", '{"a":0.10000000000000000001}')
    assert call.id
    assert completion.answers[0].finish_reason == "tool_calls"


def test_a_picture_is_where_the_compatible_endpoint_has_it() -> None:
    draft = {"inlineData": {"mimeType": "image/png", "data": "AAAA"}, "thought": True}
    [medium] = (
        completion_of(answer_of(draft, {"inlineData": {"mimeType": "image/png", "data": "-_8="}})).answers[0].media
    )
    assert (medium.mime_type, medium.data) == ("image/png", b"\xfb\xff")


def test_several_candidates_are_choices_in_order() -> None:
    candidates = [
        {"index": index, "content": {"parts": [{"text": text}]}, "finishReason": "STOP"}
        for index, text in ((1, "b"), (0, "a"))
    ]
    completion = completion_of(read_native_line(line_of(response={"candidates": candidates})))
    assert [answer.text for answer in completion.answers] == ["a", "b"]


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("STOP", None),
        ("FINISH_REASON_UNSPECIFIED", None),
        ("MAX_TOKENS", Truncated),
        ("SAFETY", Refused),
        ("RECITATION", Refused),
        ("BLOCKLIST", Refused),
        ("PROHIBITED_CONTENT", Refused),
        ("SPII", Refused),
        ("LANGUAGE", Refused),
        ("IMAGE_SAFETY", Refused),
        ("MODEL_ARMOR", Refused),
        ("MALFORMED_FUNCTION_CALL", Unavailable),
        ("UNEXPECTED_TOOL_CALL", Unavailable),
        ("OTHER", Unavailable),
    ],
)
def test_a_finish_reason_means_what_it_does_online(reason: str, kind: type[Fault] | None) -> None:
    completion = completion_of(answer_of({"text": "a"}, finishReason=reason))
    fault = fault_of(completion.answers[0], completion)
    assert fault is None if kind is None else type(fault) is kind


def test_a_blocked_prompt_is_refused_and_its_tokens_count() -> None:
    response = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {"promptTokenCount": 5}}
    reply = reply_of(read_native_line(line_of(response=response)), finished_at=0)
    assert reply.usage == Usage(input=5)
    assert isinstance(reply.completion, Completion)
    assert reply.completion.blocked == "PROHIBITED_CONTENT"


def test_no_candidate_is_worth_another_try_and_was_paid() -> None:
    usage = {"promptTokenCount": "5", "candidatesTokenCount": 0, "totalTokenCount": 5}
    with pytest.raises(Unavailable) as fault:
        reply_of(read_native_line(line_of(response={"candidates": [], "usageMetadata": usage})), finished_at=0)
    assert fault.value.reply.usage == Usage(input=5)


def test_tokens_are_counted_as_online() -> None:
    usage = {
        "promptTokenCount": 100,
        "toolUsePromptTokenCount": 20,
        "candidatesTokenCount": "30",
        "thoughtsTokenCount": 40,
        "cachedContentTokenCount": 10,
        "totalTokenCount": 190,
    }
    reply = reply_of(
        read_native_line(
            line_of(response={"candidates": [{"content": {"parts": [{"text": "a"}]}}], "usageMetadata": usage})
        ),
        finished_at=0,
    )
    assert reply.usage == Usage(input=120, output=30, reasoning=40, cached=10)


# Rows that failed.

QUOTA = {"error": {"code": 429, "message": "Online prediction request quota exceeded", "status": "RESOURCE_EXHAUSTED"}}


@pytest.mark.parametrize(
    ("status", "kind", "http_status"),
    [
        (f"RESOURCE_EXHAUSTED error occurred: {json.dumps(QUOTA)}", Throttled, 429),
        (f"RESOURCE_EXHAUSTED error occurred: {json.dumps(QUOTA)[:-3]}", Throttled, 429),
        ('Bad Request: {"error": {"code": 400, "message": "Wrong."}}', Refused, 400),
        ("INVALID_ARGUMENT: the schema has too many states", Refused, 400),
        ("Internal error encountered.", Unavailable, 500),
        ("code: 503", Unavailable, 503),
        ("DEADLINE_EXCEEDED", Unavailable, 504),
        ("UNAUTHENTICATED", Unavailable, 401),
        ("PERMISSION_DENIED", Refused, 403),
        ("something {new", Unavailable, 500),
        ('{"error": ' * 2000, Unavailable, 500),
    ],
)
def test_a_status_is_a_fault_of_the_row_alone(status: str, kind: type[Fault], http_status: int) -> None:
    answer = read_native_line(line_of(status=status, response={}))
    assert answer.body is None
    assert answer.key == "r-7"
    assert type(answer.fault) is kind
    assert answer.fault is not None
    assert answer.fault.http_status == http_status


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"status": {"code": 429, "message": "Wait."}}, Throttled),
        ({"error": {"code": 400, "message": "Wrong."}}, Refused),
        ({"response": {"error": {"code": 503, "message": "Later."}}}, Unavailable),
        ({"response": None}, Unavailable),
        ({}, Unavailable),
    ],
)
def test_an_error_elsewhere_is_one_too(fields: dict[str, Any], kind: type[Fault]) -> None:
    assert type(read_native_line(line_of(**fields)).fault) is kind


def test_no_row_can_end_a_run() -> None:
    body = {"error": {"code": 403, "status": "PERMISSION_DENIED", "message": "This API method requires billing."}}
    body["error"]["details"] = [{"reason": "BILLING_DISABLED"}]
    fault = read_native_line(line_of(status=f"failed: {json.dumps(body)}")).fault
    assert isinstance(fault, Refused)
    assert fault.suspect


def test_a_fault_quotes_neither_the_row_nor_a_line_that_cannot_be_read() -> None:
    secret = "The patient's name is Jane Doe of Springfield."
    request = {"contents": [{"role": "user", "parts": [{"text": secret}]}]}
    fault = read_native_line(line_of(status=f"Bad Request: cannot process {secret}", request=request)).fault
    assert fault is not None
    assert "Jane Doe" not in fault.message
    torn = read_native_line(line_of(request=request)[:-2])
    assert torn.fault is not None
    assert "Jane Doe" not in torn.fault.message


# OpenAI's lines.


def test_openais_line_has_the_body_as_it_is() -> None:
    body = b'{"choices":[{"message":{"content":"a"},"x":0.10000000000000000001}],"usage":{"prompt_tokens":1}}'
    answer = read_openai_line(b'{"custom_id":"r-1","response":{"status_code":200,"body":' + body + b'},"error":null}')
    assert (answer.key, answer.body, answer.fault) == ("r-1", body, None)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"response": {"status_code": 429, "body": {"error": {"message": "Wait."}}}}, Throttled),
        ({"response": {"status_code": 400, "body": {"error": {"message": "Wrong."}}}}, Refused),
        ({"response": {"status_code": 500, "body": None}}, Unavailable),
        ({"response": None, "error": {"code": "batch_expired", "message": "Not asked in time."}}, Unavailable),
        ({"response": {"status_code": 200}}, Unavailable),
        ({"response": None, "error": None}, Unavailable),
    ],
)
def test_openais_line_of_a_failed_row_has_its_fault(fields: dict[str, Any], kind: type[Fault]) -> None:
    answer = read_openai_line(json.dumps({"custom_id": "r-1", **fields}).encode())
    assert (answer.key, answer.body, type(answer.fault)) == ("r-1", None, kind)


# Anything at all.

NAMES = [
    "key", "custom_id", "status", "response", "error", "request", "candidates", "content", "parts", "text",
    "functionCall", "args", "usageMetadata", "labels", "pipeline_row", "promptTokenCount", "candidatesTokenCount",
    "finishReason", "index", "inlineData", "data", "promptFeedback", "blockReason", "responseId", "modelVersion",
    "code", "message", "status_code", "body", "thought", "role", "contents", "details",
]  # fmt: skip
fields = st.sampled_from(NAMES)
documents = st.recursive(
    json_values | st.sampled_from(["STOP", "r-1", "400", -1, 2**70, 1e300]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(fields, inner, max_size=5),
    max_leaves=25,
)


@given(st.dictionaries(fields, documents, max_size=6) | documents)
def test_no_document_is_more_than_a_fault_of_its_row(document: Any) -> None:
    line = json.dumps(document).encode()
    for read_line in (read_native_line, read_openai_line):
        _check(read_line(line), line)


@given(st.data())
def test_no_wrong_field_is_more_than_a_fault_of_its_row(data: st.DataObject) -> None:
    """A published line in which one value, at any depth, is another."""
    document = json.loads(LINE)
    at: Any = document
    while True:
        name = data.draw(st.sampled_from(list(at) if isinstance(at, dict) else list(range(len(at)))))
        if not at[name] or not isinstance(at[name], dict | list) or data.draw(st.booleans()):
            break
        at = at[name]
    at[name] = data.draw(documents)
    line = json.dumps(document).encode()
    _check(read_native_line(line), line)


@given(st.binary(max_size=60))
def test_no_bytes_are_more_than_a_fault_of_their_row(line: bytes) -> None:
    for read_line in (read_native_line, read_openai_line):
        _check(read_line(line), line)


def _check(answer: BatchAnswer, line: bytes) -> None:
    """An answer has a body or a fault of a row, and its body is read as any other is."""
    assert (answer.body is None) != (answer.fault is None)
    assert answer.raw == line
    assert answer.key is None or answer.key
    assert not isinstance(answer.fault, Halt)
    try:
        reply = reply_of(answer, finished_at=0)
    except Fault as fault:
        assert isinstance(fault, Transient) or answer.fault is not None or answer.body is not None  # noqa: PT017
    else:
        assert isinstance(reply, Reply)
