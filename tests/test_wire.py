"""What the endpoint says, in every shape in which it was seen or is documented, becomes values or faults."""

from __future__ import annotations

import base64
import unicodedata
from collections.abc import Callable
from random import Random
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.data import Usage
from pipeline.endpoint.error_body import EXCERPT, MAX_WAIT_S, excerpt, fault_in, fault_of_status, wait_hint
from pipeline.endpoint.redaction import redact_tokens
from pipeline.endpoint.usage import MOST_TOKENS, read_usage
from pipeline.endpoint.wire import Completion, CompletionChoice, Media, ToolCall, read_completion
from pipeline.faults import Expired, Fault, Refused, Throttled, Unavailable

SIGNATURE = {"google": {"thought_signature": base64.b64encode(b"x" * 8000).decode()}}
USAGE = {
    "completion_tokens": 566,
    "completion_tokens_details": {"reasoning_tokens": 946},
    "extra_properties": {"google": {"traffic_type": "ON_DEMAND"}},
    "prompt_tokens": 9,
    "total_tokens": 1521,
}
EXHAUSTED = "Resource exhausted. Please try again later."
RETRY_INFO = "type.googleapis.com/google.rpc.RetryInfo"
HTML = b"<!DOCTYPE html>\n<html lang=en>\n<title>Error 502 (Server Error)!!1</title>\n"
TOKEN = "ya29.a0AfH6SMBx-very_secret/token+part"
DATE = "Sun, 22 Nov 2026 10:00:00 GMT"
DATE_LATER = "Sun, 22 Nov 2026 10:00:45 GMT"


def choice(message: object, finish_reason: object = "stop", **rest: Any) -> dict[str, Any]:
    return {"finish_reason": finish_reason, "index": 0, "logprobs": None, "message": message, **rest}


def completion(*choices: object, **rest: Any) -> dict[str, Any]:
    return {
        "choices": list(choices),
        "created": 1772141949,
        "id": "fb2gafiLBIK9odAP1tGMmQc",
        "model": "google/gemini-3.1-pro-preview",
        "object": "chat.completion",
        "system_fingerprint": "",
        "usage": USAGE,
        **rest,
    }


def read(document: object) -> Completion:
    return read_completion(orjson.dumps(document))


def answer_of(message: object, finish_reason: object = "stop") -> CompletionChoice:
    (answer,) = read(completion(choice(message, finish_reason))).answers
    return answer


FORMS = ("plain", "in a list")
"""Google's errors come as an object or as a list of one."""


def formed(error: object, form: str) -> bytes:
    return orjson.dumps([error] if form == "in a list" else error)


def rpc_error(code: int, status: str, message: str, **rest: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "status": status, **rest}}


# Completions.


def test_a_published_vertex_completion_is_read_whole() -> None:
    body = completion(choice({"content": "Hello", "role": "assistant", "extra_content": SIGNATURE}))
    assert read(body) == Completion(
        answers=(CompletionChoice(text="Hello", finish_reason="stop"),),
        id="fb2gafiLBIK9odAP1tGMmQc",
        model="google/gemini-3.1-pro-preview",
        usage=Usage(input=9, output=566, reasoning=946),
        traffic_type="ON_DEMAND",
        blocked=None,
    )


@pytest.mark.parametrize("reason", ["stop", "length", "tool_calls", "content_filter", "OTHER", "never seen before"])
def test_h8_any_finish_reason_is_handed_on_as_it_came(reason: str) -> None:
    assert answer_of({"content": "x"}, reason).finish_reason == reason


@pytest.mark.parametrize("reason", [None, 7, [], {}])
def test_h8_a_finish_reason_that_is_no_text_is_none(reason: object) -> None:
    assert answer_of({"content": "x"}, reason).finish_reason is None


@pytest.mark.parametrize("choices", [[], None, {}, "x", 3, [None], ["x"], [[]]])
def test_h8_choices_that_are_empty_null_or_of_another_type_are_no_answers(choices: object) -> None:
    assert read({**completion(), "choices": choices}).answers == ()


def test_h8_missing_choices_are_no_answers() -> None:
    assert read({"id": "x", "usage": USAGE}).answers == ()


@pytest.mark.parametrize("message", [None, "", [], 5])
def test_h8_a_choice_without_a_message_is_an_empty_answer(message: object) -> None:
    assert answer_of(message, "length") == CompletionChoice(finish_reason="length")
    assert read(completion({"index": 0, "finish_reason": "length"})).answers == (
        CompletionChoice(finish_reason="length"),
    )


@pytest.mark.parametrize("message", [{}, {"content": None}, {"content": []}, {"content": {}}, {"content": ""}])
def test_h8_content_that_is_missing_null_or_empty_is_no_text(message: object) -> None:
    assert answer_of(message).text is None


def test_content_in_parts_is_joined_and_parts_of_other_types_are_left_out() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "image_url"}, "l", None, 5, {"type": "text", "text": "o"}]
    assert answer_of({"content": parts}).text == "Hello"


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_is_read_under_both_names_that_servers_use(name: str) -> None:
    assert answer_of({"content": "42", name: "six times seven"}).reasoning == "six times seven"


def test_a_refusal_is_read() -> None:
    assert answer_of({"content": None, "refusal": "I will not."}).refusal == "I will not."


def test_answers_come_in_the_order_of_their_index() -> None:
    choices = [choice({"content": text}, index=index) for index, text in [(2, "c"), (0, "a"), (1, "b")]]
    assert [answer.text for answer in read(completion(*choices)).answers] == ["a", "b", "c"]


def test_tool_calls_are_read_as_they_came_whatever_the_finish_reason() -> None:
    calls = [
        {
            "id": "function-call-7f3c",
            "type": "function",
            "function": {"name": "find", "arguments": '{"city":"Köln"}'},
            "extra_content": SIGNATURE,
        },
        {"id": "", "function": {"name": "now"}},
        {"id": "", "function": {"name": "now", "arguments": ""}},
    ]
    for reason in ("tool_calls", "stop"):
        assert answer_of({"content": None, "tool_calls": calls}, reason).tool_calls == (
            ToolCall("function-call-7f3c", "find", '{"city":"Köln"}'),
            ToolCall("", "now", "{}"),
            ToolCall("", "now", "{}"),
        )


@pytest.mark.parametrize("calls", [None, {}, "x", [None, 4, {}, {"function": None}, {"function": ["x"]}]])
def test_tool_calls_of_another_type_are_none(calls: object) -> None:
    assert answer_of({"tool_calls": calls}).tool_calls == ()


def test_an_image_comes_as_audio_data_with_its_type_in_googles_extra_content() -> None:
    audio = {
        "data": base64.b64encode(b"\x89PNG").decode(),
        "extra_content": {"google": {"mime_type": "image/png"}},
    }
    assert answer_of({"content": None, "audio": audio}).media == (Media("image/png", b"\x89PNG"),)


def test_media_without_a_type_are_plain_bytes() -> None:
    assert answer_of({"audio": {"data": "eHk="}}).media == (Media("application/octet-stream", b"xy"),)


@pytest.mark.parametrize("data", ["not base64!", "é", "eHk", "", None, 5, ["eHk="]])
def test_media_data_that_are_no_base64_never_crash(data: object) -> None:
    assert answer_of({"audio": {"data": data}}).media in ((), (Media("application/octet-stream", b""),))


@pytest.mark.parametrize(
    "feedback", [{"promptFeedback": {"blockReason": "SAFETY"}}, {"prompt_feedback": {"block_reason": "SAFETY"}}]
)
def test_a_blocked_prompt_says_why(feedback: dict[str, Any]) -> None:
    assert read({"choices": [], **feedback}).blocked == "SAFETY"
    assert read({**feedback}).blocked == "SAFETY"


@pytest.mark.parametrize("feedback", [None, {}, {"blockReason": None}, {"blockReason": 3}, "SAFETY", []])
def test_a_prompt_that_was_not_blocked_is_not(feedback: object) -> None:
    assert read(completion(promptFeedback=feedback)).blocked is None


# Usage.


@pytest.mark.parametrize(
    ("prompt", "output", "reasoning", "total"), [(9, 566, 946, 1521), (27, 45, 504, 576), (7, 1120, 251, 1378)]
)
def test_vertex_leaves_reasoning_out_of_completion_tokens(prompt: int, output: int, reasoning: int, total: int) -> None:
    counts = {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "completion_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": total,
    }
    assert read_usage(counts) == Usage(prompt, output, reasoning)


def test_openai_counts_reasoning_in_completion_tokens() -> None:
    counts = {
        "prompt_tokens": 10,
        "completion_tokens": 100,
        "completion_tokens_details": {"reasoning_tokens": 64},
        "total_tokens": 110,
    }
    assert read_usage(counts) == Usage(10, 36, 64)


@settings(deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**9), st.sampled_from([0, 1]))
def test_the_kinds_of_tokens_add_up_to_the_total_whichever_way_the_server_counts(
    prompt: int, output: int, reasoning: int, shared: int
) -> None:
    counts = {
        "prompt_tokens": prompt,
        "completion_tokens": output + shared * reasoning,
        "completion_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": prompt + output + reasoning,
    }
    assert read_usage(counts) == Usage(prompt, output, reasoning)


@pytest.mark.parametrize("details", [None, {}, {"cached_tokens": None}, {"cached_tokens": "some"}, [], 5])
def test_absent_or_null_details_count_nothing(details: object) -> None:
    counts = {
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "total_tokens": 8,
        "prompt_tokens_details": details,
        "completion_tokens_details": details,
    }
    assert read_usage(counts) == Usage(5, 3)


def test_cached_tokens_are_part_of_the_input() -> None:
    assert read_usage({"prompt_tokens": 50, "prompt_tokens_details": {"cached_tokens": 40}}) == Usage(50, cached=40)


@pytest.mark.parametrize("usage", [None, [], "x", 5, {}, {"prompt_tokens": None, "completion_tokens": "many"}])
def test_no_usage_is_unknown_and_not_nothing(usage: object) -> None:
    assert read_usage(usage) is None


@pytest.mark.parametrize("count", [2**63, 2**70, 1e300])
def test_h10_counts_that_no_column_could_hold_are_cut(count: object) -> None:
    assert read_usage({"prompt_tokens": count, "completion_tokens": 3}) == Usage(MOST_TOKENS, 3)


@pytest.mark.parametrize("properties", [None, {}, {"google": None}, {"google": {"traffic_type": 3}}])
def test_an_absent_traffic_type_is_none(properties: object) -> None:
    assert read(completion(usage={**USAGE, "extra_properties": properties})).traffic_type is None


# A 200 that is no completion.


@pytest.mark.parametrize(
    "body",
    [b"", b" ", HTML, b'{"choices":[{"mess', b"\xff\xfe", b"[]", b"null", b'"x"', b"3", b"NaN", b"[" * 5000, b"\x00"],
)
def test_h7_a_body_that_is_no_completion_is_worth_another_try(body: bytes) -> None:
    with pytest.raises(Unavailable):
        read_completion(body)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (429, Throttled),
        (503, Unavailable),
        (500, Unavailable),
        (400, Refused),
        (403, Refused),
        (404, Refused),
        (401, Expired),
    ],
)
def test_h7_a_200_with_an_error_object_is_the_fault_that_its_code_says(code: int, kind: type[Fault], form: str) -> None:
    error = rpc_error(code, "STATUS", "what happened")
    with pytest.raises(kind, match=f"{code} STATUS: what happened"):
        read_completion(formed(error, form))


@pytest.mark.parametrize("error", [{"message": "x"}, {"code": "oops", "message": "x"}, {"code": None}, "it broke"])
def test_h7_a_200_with_an_error_of_unknown_code_is_worth_another_try(error: object) -> None:
    with pytest.raises(Unavailable):
        read({"error": error})


@pytest.mark.parametrize("error", [None, {}, "", [], False])
def test_an_empty_error_beside_a_completion_is_none(error: object) -> None:
    assert read(completion(choice({"content": "x"}), error=error)).answers[0].text == "x"


def test_h1_an_error_inside_a_200_may_tell_the_time_to_wait() -> None:
    details = [{"@type": RETRY_INFO, "retryDelay": "39s"}]
    with pytest.raises(Throttled) as caught:
        read([rpc_error(429, "RESOURCE_EXHAUSTED", EXHAUSTED, details=details)])
    assert caught.value.retry_after == 39.0


@pytest.mark.parametrize("document", [None, [], {}, "x", 5, completion(), [completion()]])
def test_a_document_without_an_error_holds_no_fault(document: object) -> None:
    assert fault_in(document) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = [
    "choices", "message", "content", "text", "tool_calls", "function", "arguments", "id", "index", "finish_reason",
    "usage", "prompt_tokens", "completion_tokens", "total_tokens", "completion_tokens_details", "reasoning_tokens",
    "error", "code", "status", "details", "@type", "retryDelay", "audio", "data", "extra_content", "google",
    "promptFeedback", "blockReason", "refusal", "extra_properties", "traffic_type", "mime_type",
]  # fmt: skip
LIKELY = st.recursive(
    JSON | st.sampled_from([RETRY_INFO, "39s", 429, 0, "stop", "eHk="]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=6),
    max_leaves=25,
)


def one_line(text: str) -> bool:
    """Whether this is one line without a control character, and not long."""
    return len(text) <= EXCERPT + 100 and not any(unicodedata.category(c) in {"Cc", "Zl", "Zp"} for c in text)


def fault_of(body: bytes) -> Fault | None:
    """The fault that a body stands for, if it is no completion; any other exception is not caught."""
    try:
        read_completion(body)
    except Fault as fault:
        return fault
    return None


def is_read(body: bytes) -> bool:
    fault = fault_of(body)
    return fault is None or one_line(fault.message)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=2000) | st.text(max_size=500).map(lambda text: text.encode("utf-8", "surrogatepass")))
@example(b'{"choices":' + b"[" * 100_000)
@example(b'{"a":' * 100_000)
@example(b'{"usage":{"prompt_tokens":' + b"9" * 5000 + b"}}")
@example(b'{"id":"\\ud800"}')
def test_h7_any_bytes_are_a_completion_or_a_fault(body: bytes) -> None:
    """Nothing but a fault is ever raised, and its message is one line that can be printed."""
    assert is_read(body)


@settings(max_examples=200, deadline=None)
@given(LIKELY | st.dictionaries(st.sampled_from(["choices", "usage", "error", "promptFeedback"]), LIKELY))
def test_h7_h8_any_json_is_a_completion_or_a_fault(document: object) -> None:
    """Whatever is missing, null or of another type, nothing but a fault is ever raised."""
    assert is_read(orjson.dumps(document))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(NAMES), LIKELY, max_size=6), max_size=3))
def test_h8_any_message_of_a_choice_is_an_answer(messages: list[dict[str, Any]]) -> None:
    document = completion(*(choice(message) for message in messages))
    assert len(read(document).answers) == len(messages)


def _damaged(value: Any, dice: Random) -> Any:
    """The value with something in it missing or of another type."""
    if dice.random() < 0.15:
        return dice.choice([None, [], {}, "x", -1, 2**64 - 1, 1.5, True, "\u2028\x1b[31m", {"error": {"code": 429}}])
    if isinstance(value, dict):
        return {name: _damaged(inner, dice) for name, inner in value.items() if dice.random() > 0.05}
    if isinstance(value, list):
        return [_damaged(inner, dice) for inner in value] * dice.choice([0, 1, 1, 1, 2])
    return value


def _torn(body: bytes, dice: Random) -> bytes:
    """The body with bytes cut off, changed or doubled."""
    place = dice.randrange(len(body))
    cut: list[Callable[[], bytes]] = [
        lambda: body[:place],
        lambda: body[place:],
        lambda: body[:place] + bytes([dice.randrange(256)]) + body[place + 1 :],
        lambda: body[:place] + body[place : place + 20] * 2 + body[place + 20 :],
    ]
    return dice.choice(cut)()


def test_h7_h8_ten_thousand_damaged_bodies_are_completions_or_faults() -> None:
    whole = [
        completion(choice({"content": "Hello", "role": "assistant", "refusal": None, "audio": {"data": "eHk="}})),
        completion(choice({"tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]}, "tool_calls")),
        completion(choice(None, "length"), promptFeedback={"blockReason": "SAFETY"}),
        [rpc_error(429, "RESOURCE_EXHAUSTED", EXHAUSTED, details=[{"@type": RETRY_INFO, "retryDelay": "39s"}])],
    ]
    dice = Random(20261122)
    for _ in range(5000):
        document = _damaged(dice.choice(whole), dice)
        body = orjson.dumps(document)
        assert is_read(body), body
        torn = _torn(body, dice)
        assert is_read(torn), torn


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 400))
def test_h7_a_completion_cut_short_anywhere_is_worth_another_try(cut: int) -> None:
    body = orjson.dumps(completion(choice({"content": "Hello", "role": "assistant"})))
    with pytest.raises(Unavailable):
        read_completion(body[: min(cut, len(body) - 1)])


# Error answers.


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("code", "status", "message", "kind"),
    [
        (400, "INVALID_ARGUMENT", "Function call is missing a thought_signature in functionCall parts", Refused),
        (400, "FAILED_PRECONDITION", "The specified schema has too many states for serving", Refused),
        (401, "UNAUTHENTICATED", "Request had invalid authentication credentials.", Expired),
        (403, "PERMISSION_DENIED", "Permission 'aiplatform.endpoints.predict' denied on resource", Refused),
        (404, "NOT_FOUND", "Publisher Model `projects/P/models/M` was not found", Refused),
        (429, "RESOURCE_EXHAUSTED", EXHAUSTED, Throttled),
        (499, "CANCELLED", "The operation was cancelled.", Unavailable),
        (500, "INTERNAL", "Internal error encountered.", Unavailable),
        (503, "UNAVAILABLE", "The model is overloaded.", Unavailable),
        (504, "DEADLINE_EXCEEDED", "Deadline expired", Unavailable),
    ],
)
def test_googles_errors_become_the_fault_of_their_status(
    code: int, status: str, message: str, kind: type[Fault], form: str
) -> None:
    error = rpc_error(code, status, message)
    fault = fault_of_status(code, formed(error, form), {})
    assert type(fault) is kind
    assert fault.message == f"{code} {status}: {message}"
    assert fault.http_status == code


def test_openais_own_errors_are_read_too() -> None:
    error = {"error": {"message": "Rate limit reached", "type": "requests", "code": "rate_limit_exceeded"}}
    fault = fault_of_status(429, orjson.dumps(error), {})
    assert isinstance(fault, Throttled)
    assert fault.message == "429: Rate limit reached"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, Unavailable) for status in (408, 409, 425, 502, 599)),
        *((status, Refused) for status in (413, 415, 422)),
        *((status, Refused) for status in (301, 307, 402, 405, 410)),
    ],
)
def test_h7_an_html_page_is_the_fault_of_its_status_with_its_beginning(status: int, kind: type[Fault]) -> None:
    fault = fault_of_status(status, HTML * 100, {})
    assert type(fault) is kind
    assert fault.http_status == status
    assert "Error 502 (Server Error)!!1" in fault.message
    assert len(fault.message) < EXCERPT + 150


def test_h12_a_redirect_stops_the_run_and_says_what_to_check() -> None:
    assert "check the base URL" in fault_of_status(302, b"", {}).message


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"null", b'{"error":null}', b'{"detail":"Not Found"}', b"\xff"])
def test_an_answer_without_an_error_body_is_the_fault_of_its_status_all_the_same(body: bytes) -> None:
    fault = fault_of_status(503, body, {})
    assert type(fault) is Unavailable
    assert "503" in fault.message
    assert one_line(fault.message)


@settings(max_examples=100, deadline=None)
@given(st.integers(300, 599), LIKELY | st.dictionaries(st.just("error"), LIKELY), st.sampled_from(FORMS))
def test_h7_any_error_body_is_a_fault_in_one_printable_line(status: int, document: object, form: str) -> None:
    fault = fault_of_status(status, formed(document, form), {})
    assert one_line(fault.message)


# Hints to wait.


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after": DATE_LATER, "date": DATE}, 45.0),
        ({"retry-after": DATE, "date": DATE_LATER}, 0.0),
        ({"retry-after": "2", "retry-after-ms": "9000"}, 9.0),
        ({"retry-after": "0", "retry-after-ms": "500"}, 0.5),
    ],
)
def test_h1_a_header_tells_the_wait_in_seconds_milliseconds_or_as_a_date(
    headers: dict[str, str], seconds: float
) -> None:
    assert wait_hint(headers, {}) == seconds


def test_h1_a_date_without_the_servers_own_clock_is_measured_by_ours() -> None:
    assert wait_hint({"retry-after": "Fri, 31 Dec 2199 23:59:59 GMT"}, {}) == MAX_WAIT_S


@pytest.mark.parametrize("delay", ["39s", "39", "39.000s"])
@pytest.mark.parametrize("form", FORMS)
def test_h1_retry_info_in_the_body_tells_the_wait(delay: str, form: str) -> None:
    details = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo"}, {"@type": RETRY_INFO, "retryDelay": delay}]
    error = rpc_error(429, "RESOURCE_EXHAUSTED", EXHAUSTED, details=details)
    fault = fault_of_status(429, formed(error, form), {})
    assert isinstance(fault, Throttled)
    assert fault.retry_after == 39.0


def test_h1_of_several_hints_the_longest_counts() -> None:
    details = [{"@type": RETRY_INFO, "retryDelay": "30s"}]
    assert wait_hint({"retry-after": "5", "retry-after-ms": "100"}, {"details": details}) == 30.0


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ({"retry-after": "86400"}, {}),
        ({"retry-after-ms": "1e9"}, {}),
        ({"retry-after": "Fri, 31 Dec 2199 23:59:59 GMT", "date": DATE}, {}),
        ({}, {"details": [{"@type": RETRY_INFO, "retryDelay": "7200s"}]}),
    ],
)
def test_h1_no_hint_makes_us_wait_longer_than_two_minutes(headers: dict[str, str], error: dict[str, Any]) -> None:
    assert wait_hint(headers, error) == MAX_WAIT_S == 120.0


@pytest.mark.parametrize(
    "header",
    ["", " ", "soon", "-5", "nan", "inf", "1h", "Mon, 99 Foo 2026", "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"],
)
def test_hints_that_make_no_sense_are_none(header: str) -> None:
    assert wait_hint({"retry-after": header, "retry-after-ms": header}, {}) is None


@pytest.mark.parametrize("details", [None, {}, "x", [None], [{"@type": 5}], [{"@type": RETRY_INFO}]])
def test_details_without_a_delay_are_no_hint(details: object) -> None:
    assert wait_hint({}, {"details": details}) is None


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms", "date"]), st.text(max_size=40)), LIKELY)
def test_h1_any_hint_is_a_wait_within_bounds_or_none(headers: dict[str, str], details: object) -> None:
    wait = wait_hint(headers, {"details": details})
    assert wait is None or 0.0 <= wait <= MAX_WAIT_S


@settings(deadline=None)
@given(st.floats(0, 1e7), st.sampled_from(["seconds", "milliseconds", "RetryInfo"]))
def test_h1_a_hint_is_never_shortened_but_by_the_cap(seconds: float, form: str) -> None:
    hints: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
        "seconds": ({"retry-after": repr(seconds)}, {}),
        "milliseconds": ({"retry-after-ms": repr(seconds * 1000)}, {}),
        "RetryInfo": ({}, {"details": [{"@type": RETRY_INFO, "retryDelay": f"{seconds!r}s"}]}),
    }
    wait = wait_hint(*hints[form])
    assert (wait or 0.0) == pytest.approx(min(seconds, MAX_WAIT_S))


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_h1_the_hint_travels_in_the_fault(status: int) -> None:
    fault = fault_of_status(status, b"", {"retry-after": "12"})
    assert isinstance(fault, Throttled | Unavailable)
    assert fault.retry_after == 12.0


# Secrets.


SECRETS = [
    TOKEN,
    f"Bearer {TOKEN}",
    "bearer abc.def-ghi_jkl/mno+pqr==",
    "sk-proj-0123456789abcdef",
    "AIzaSyA-0123456789_abcdefghijklmnopqrs",
    "1//0gx0123456789abcdef-ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "GOCSPX-0123456789abcdefghijklmn",
    "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJ4In0.c2lnbmF0dXJl",
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("around", ["{}", "token={}", '{{"token":"{}"}}', "a\n{}\tb", r"a\nAuthorization:\n{}", "({})"])
def test_s4_secrets_are_redacted_wherever_they_stand(secret: str, around: str) -> None:
    kept = redact_tokens(around.format(secret))
    assert "[redacted]" in kept
    assert not any(piece in kept for piece in (secret, TOKEN, "0123456789abcdef", "eyJpc3MiOiJ4In0"))


@settings(deadline=None)
@given(st.integers(0, EXCERPT), st.sampled_from(SECRETS))
def test_s4_no_secret_survives_the_cut_of_an_excerpt(offset: int, secret: str) -> None:
    """Redaction comes before the cut, so that the first half of a secret is not left at the end."""
    text = "x" * (offset - 1) + " " + secret + " and so on" * 200
    kept = excerpt(text.encode())
    assert not any(secret[: 12 + i] in kept for i in range(8))
    message = fault_of_status(500, orjson.dumps({"error": {"message": text}}), {}).message
    assert not any(secret[: 12 + i] in message for i in range(8))


@settings(deadline=None)
@given(st.text(max_size=2000))
def test_s4_the_status_and_the_message_of_an_error_are_redacted(text: str) -> None:
    error = {"error": {"status": f"{text} {TOKEN}"[:400], "message": f"{TOKEN} {text}"}}
    assert "very_secret" not in fault_of_status(500, orjson.dumps(error), {}).message


@pytest.mark.parametrize("text", ["risk-management of the task-force", "the bearer", "Schlüssel: größer", "ya 29."])
def test_ordinary_words_are_not_redacted(text: str) -> None:
    assert redact_tokens(text) == text


@settings(deadline=None)
@given(st.binary(max_size=3000))
def test_h7_an_excerpt_is_one_short_printable_line(body: bytes) -> None:
    kept = excerpt(body)
    assert one_line(kept)
    assert len(kept) <= EXCERPT
