"""Every form in which an answer was seen is the value that it means, or the fault; the same streamed or not.

Each kind comes from public reports, which are named beside it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import Usage
from pipeline.endpoint.finish_reasons import Ending, ending_of
from pipeline.endpoint.stream import whole_body
from pipeline.endpoint.untrusted_json import decode, json_text, read
from pipeline.endpoint.wire import read_completion
from pipeline.faults import Expired, Fault, Refused, Throttled, Truncated, Unavailable, Unparsable
from pipeline.job.reply_parser import ReplyParser
from tests.mutations import written
from tests.replies import (
    DONE,
    GOOD,
    PLAIN,
    TEXT,
    TYPED,
    USAGE,
    Json,
    answer,
    both,
    ended,
    event,
    whole,
)

pytestmark = pytest.mark.anyio

CALL = {"id": "a", "type": "function", "function": {"name": "now", "arguments": "{}"}}
THOUGHT = {"google": {"thought": True}}
AUDIO = {"data": base64.b64encode(b"png").decode()}

# How an answer ends. bifrost#5425, genkit#6259, any-llm#1202, CLIProxyAPI#433, python-genai#1120

TABLE: dict[Ending, list[str | None]] = {
    Ending.CUT: [
        "length", "LENGTH", "max_tokens", "MAX_TOKENS", "MaxTokens", "model_length", "max_output_tokens",
        "FINISH_REASON_MAX_TOKENS", "FinishReason.MAX_TOKENS", "model_context_window_exceeded", "token_limit",
    ],
    Ending.BLOCKED: [
        "content_filter", "CONTENT_FILTER", "content-filter", "contentFilter", "SAFETY", "safety", "RECITATION",
        "recitation", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "LANGUAGE", "IMAGE_SAFETY", "IMAGE_RECITATION",
        "IMAGE_PROHIBITED_CONTENT", "MODEL_ARMOR", "refusal", "guardrail_intervened", "sensitive",
    ],
    Ending.BROKEN: [
        "error", "ERROR", "network_error", "MALFORMED_FUNCTION_CALL", "malformed_response", "UNEXPECTED_TOOL_CALL",
        "TOO_MANY_TOOL_CALLS", "MISSING_THOUGHT_SIGNATURE", "OTHER", "other", "IMAGE_OTHER", "NO_IMAGE",
        "insufficient_system_resource", "timeout", "cancelled", "abort", "internal_error",
    ],
    Ending.WHOLE: [
        "stop", "STOP", "tool_calls", "TOOL_CALLS", "function_call", "eos", "eos_token", "end_turn", "stop_sequence",
        "COMPLETE", "FINISH_REASON_UNSPECIFIED", "unknown", "", None,
    ],
}  # fmt: skip
FAULTS: dict[Ending, type[Fault]] = {Ending.CUT: Truncated, Ending.BLOCKED: Refused, Ending.BROKEN: Unavailable}
REASONS = [(reason, ending) for ending, reasons in TABLE.items() for reason in reasons]


@pytest.mark.parametrize(("reason", "ending"), REASONS)
def test_h8_a_finish_reason_means_the_same_in_every_spelling(reason: str | None, ending: Ending) -> None:
    assert ending_of(reason) is ending


@pytest.mark.parametrize(("reason", "ending"), REASONS)
@pytest.mark.parametrize("reader", [TEXT, TYPED], ids=["text", "typed"])
def test_h8_whole_looking_text_is_ok_only_if_it_ended_well(
    reader: ReplyParser, reason: str | None, ending: Ending
) -> None:
    for body in both({"content": GOOD}, reason or "stop"):
        found = ended(reader, body)
        assert type(found) is FAULTS[ending] if ending in FAULTS else not isinstance(found, Fault)


@pytest.mark.parametrize("content", [None, "", " \n", [], {}, [{"type": "text", "text": ""}]])
@pytest.mark.parametrize("reader", [TEXT, TYPED], ids=["text", "typed"])
def test_h8_an_empty_answer_is_no_value_streamed_or_not(reader: ReplyParser, content: object) -> None:
    """litellm#24442: STOP with no content. That tokens were counted all the same is said."""
    for body in both({"content": content}):
        found = ended(reader, body)
        assert type(found) is Unparsable
        assert found.message == "the answer is empty, though 4 tokens of output were counted"


@pytest.mark.parametrize("message", [{"content": None, "tool_calls": [CALL]}, {"content": "", "audio": AUDIO}])
def test_h8_an_answer_of_calls_or_media_needs_no_text(message: Json) -> None:
    for body in both(message):
        assert ended(TEXT, body) is None


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": 429, "message": "Rate limited upstream"}, Throttled),
        ({"code": "429", "message": "Rate limited upstream"}, Throttled),
        ({"code": 502, "message": "Rate limited upstream"}, Unavailable),
        ({"message": "Rate limited upstream"}, Unavailable),
        ("Rate limited upstream", Unavailable),
        ({"code": 400, "message": "Rate limited upstream"}, Refused),
        (["Rate limited upstream"], Unavailable),
        ([{"code": 429, "message": "Rate limited upstream"}], Throttled),
    ],
)
def test_h8_an_error_inside_a_choice_is_that_fault_in_the_servers_words(error: object, kind: type[Fault]) -> None:
    """OpenRouter: open-webui/computer#293."""
    for body in both({"content": "The council will"}, "error", error=error):
        found = ended(TEXT, body)
        assert type(found) is kind
        assert "Rate limited upstream" in found.message


@pytest.mark.parametrize("error", [True, 1, [5], {"a": {}}])
def test_h8_an_error_inside_a_choice_that_says_nothing_is_one_all_the_same(error: object) -> None:
    for body in both({"content": "The council will"}, "stop", error=error):
        assert type(ended(TEXT, body)) is Unavailable


def test_h8a_choices_by_number_are_the_choices() -> None:
    document = whole({"content": "Lima."})
    body = written({**document, "choices": {"0": document["choices"][0]}})
    assert answer(body).text == answer(whole_body(body)).text == "Lima."


# Errors inside a 200. inspect_ai#1536, litellm#37599, litellm#31298

ERRORS: list[tuple[object, type[Fault], str]] = [
    ({"object": "error", "message": "The model is overloaded", "code": 503}, Unavailable, "The model is overloaded"),
    ({"object": "error", "message": "too long", "code": 400}, Refused, "too long"),
    ({"detail": "Could not reach the worker"}, Unavailable, "Could not reach the worker"),
    ({"detail": [{"loc": ["body"], "msg": "field required"}]}, Unavailable, "field required"),
    ({"message": "Slow down", "code": "429"}, Throttled, "Slow down"),
    ({"message": "Slow down", "status": 429}, Throttled, "Slow down"),
    ({"error": {"code": "429", "message": "Slow down"}}, Throttled, "Slow down"),
    ({"error": {"code": 429.0, "message": "Slow down"}}, Throttled, "Slow down"),
    ({"error": {"code": "rate_limit_exceeded", "message": "Slow down"}}, Throttled, "Slow down"),
    ({"error": {"status": "RESOURCE_EXHAUSTED", "message": "Slow down"}}, Throttled, "Slow down"),
    ({"error": {"type": "invalid_request_error", "message": "bad role", "code": None}}, Refused, "bad role"),
    ({"error": {"code": 8, "message": "it broke"}}, Unavailable, "it broke"),
    ({"error": {"code": 99999999999, "message": "it broke"}}, Unavailable, "it broke"),
    ({"error": {"code": -1, "message": "it broke"}}, Unavailable, "it broke"),
    ({"error": {"code": 500, "message": {"text": 1, "message": "it broke"}}}, Unavailable, "it broke"),
    ({"error": [{"code": 400, "message": "it broke"}]}, Refused, "it broke"),
    ({"error": "it broke"}, Unavailable, "it broke"),
    ({"error": True, "message": "it broke"}, Unavailable, "it broke"),
    ({"errors": [{"message": "it broke"}]}, Unavailable, "it broke"),
    ([{"error": {"code": 403, "message": "not yours"}}], Refused, "not yours"),
    ({"response": {"error": {"code": 401, "message": "who?"}}}, Expired, "who?"),
]


@pytest.mark.parametrize(("document", "kind", "words"), ERRORS)
def test_h7_an_error_inside_a_200_is_the_right_fault_in_the_servers_words(
    document: object, kind: type[Fault], words: str
) -> None:
    for form in (lambda body: body, lambda body: whole_body(b"data: " + body + b"\n\n")):
        with pytest.raises(Fault) as caught:
            read_completion(form(written(document)))
        assert type(caught.value) is kind
        assert words in caught.value.message
        assert "blocked" not in caught.value.message
        assert caught.value.http_status is None or 400 <= caught.value.http_status <= 599


@pytest.mark.parametrize("harmless", [None, {}, "", [], False, {"code": 0, "message": ""}, {"code": None}])
def test_h7_an_error_that_says_nothing_beside_an_answer_is_none(harmless: object) -> None:
    assert answer(written({**whole({"content": "x"}), "error": harmless, "message": "ok", "code": 0})).text == "x"


@pytest.mark.parametrize(
    ("more", "kind", "says"),
    [
        ({}, Unavailable, 'no choices): {"choices"'),
        ({"promptFeedback": {"blockReason": "SAFETY"}}, Refused, "the prompt was blocked: SAFETY"),
        ({"promptFeedback": {"blockReason": "BLOCK_REASON_UNSPECIFIED"}}, Unavailable, "no choices"),
        (
            {"prompt_filter_results": [{"content_filter_results": {"hate": {"filtered": True}}}]},
            Refused,
            "the prompt was blocked: hate",
        ),
        (
            {"prompt_filter_results": [{"content_filter_results": {"hate": {"filtered": False}}}]},
            Unavailable,
            "no choices",
        ),
    ],
)
def test_h8_a_prompt_was_blocked_only_where_it_says_so(more: Json, kind: type[Fault], says: str) -> None:
    document = {"choices": [], "usage": USAGE, **more}
    for body in (written(document), whole_body(event(document) + DONE)):
        found = ended(TEXT, body)
        assert type(found) is kind
        assert says in found.message


# What a message says. litellm#16272, openinference#3761, hermes-agent#4748, and Vertex's own `extra_content`

CONTENTS: list[tuple[object, str | None, str | None]] = [
    ({"content": "Lima."}, "Lima.", None),
    ({"content": ["Li", "ma."]}, "Lima.", None),
    ({"content": [{"type": "text", "text": "Lima."}]}, "Lima.", None),
    ({"content": [{"type": "output_text", "text": "Lima."}]}, "Lima.", None),
    ({"content": [{"text": "Lima."}]}, "Lima.", None),
    ({"content": {"type": "text", "text": "Lima."}}, "Lima.", None),
    ({"content": [{"type": "text", "text": "hm", "extra_content": THOUGHT}, {"text": "Lima."}]}, "Lima.", "hm"),
    ({"content": "hm", "extra_content": THOUGHT}, None, "hm"),
    ({"content": "hm", "extra_content": {"google": {"thought": False}}}, "hm", None),
    ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, "Lima."]}, "Lima.", "hm"),
    ({"content": [{"type": "thinking", "thinking": "hm"}, {"text": "Lima."}]}, "Lima.", "hm"),
    ({"content": [{"type": "reasoning", "text": "hm"}, {"text": "Lima."}]}, "Lima.", "hm"),
    ({"content": "Lima.", "reasoning_content": "hm"}, "Lima.", "hm"),
    ({"content": "Lima.", "reasoning": [{"text": "hm"}]}, "Lima.", "hm"),
    ({"content": 5}, "5", None),
    ({"content": 0.10}, "0.1", None),
    ({"content": False}, "false", None),
    ({"content": [["Li"], [{"type": "text", "text": "ma."}]]}, "Lima.", None),
    ("Lima.", "Lima.", None),
    ([{"type": "text", "text": "Lima."}], "Lima.", None),
]


@pytest.mark.parametrize(("message", "text", "reasoning"), CONTENTS)
def test_h8a_content_in_every_form_is_the_same_text_and_thoughts_streamed_or_not(
    message: Json, text: str | None, reasoning: str | None
) -> None:
    for body in both(message):
        assert (answer(body).text, answer(body).reasoning) == (text, reasoning)


def test_h8a_a_refusal_may_be_a_part() -> None:
    for body in both({"content": [{"type": "refusal", "refusal": "I will not."}]}):
        assert ended(TEXT, body).message == "the model refused: I will not."


def test_h10_an_answer_that_came_as_an_object_is_its_json_with_every_digit() -> None:
    text = '{"content": {"word": "one", "size": 12345678901234567890123, "half": 12345678901234567.89}}'
    for body in (
        b'{"choices": [{"message": %s}]}' % text.encode(),
        whole_body(b'data: {"choices": [{"delta": %s, "finish_reason": "stop"}]}\n\n' % text.encode()),
    ):
        found = answer(body).text or ""
        assert "12345678901234567890123" in found
        assert "12345678901234567.89" in found


@pytest.mark.parametrize(
    "wrap", [lambda d: [d], lambda d: {"response": d}, lambda d: {**d, "choices": d["choices"][0]}]
)
def test_h8a_a_completion_inside_a_list_or_an_object_is_read(wrap: Callable[[Json], object]) -> None:
    body = written(wrap(whole({"content": "Lima."})))
    assert ended(TEXT, body) == "Lima."
    assert read_completion(body).usage == Usage(9, 4)


def test_h8a_older_endpoints_answer_with_a_bare_text() -> None:
    assert answer(written({"choices": [{"text": "Lima.", "finish_reason": "stop"}]})).text == "Lima."


# How a body is written. agent-zero#1773, evidenceloom#50, one-api#1408

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_h8a_a_body_in_any_encoding_of_unicode_is_read(encoding: str) -> None:
    assert ended(TEXT, PLAIN.encode(encoding)) == "Gr\u00fc\u00dfe \U0001f600"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "-" + "9" * 30])
def test_h10_a_number_in_a_field_that_nobody_reads_costs_nothing(number: str) -> None:
    body = written(whole({"content": "Lima."}))[:-1] + b', "timings": {"per_token_ms": %s}}' % number.encode()
    assert ended(TEXT, body) == "Lima."


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (b'"a\\ud83d b"', "a\ufffd b"),
        (b'"a\\ude00 b"', "a\ufffd b"),
        (b'"a\\ud83d\\ude00 b"', "a\U0001f600 b"),
        (b'"a\xff b"', "a\ufffd b"),
        (b'"a\x0b\x1b b"', "a\x0b\x1b b"),
        (b'"a\xf0\x9f\x98 b"', "a\ufffd b"),
    ],
)
def test_h10_what_is_no_character_is_the_replacement_character(said: bytes, text: str) -> None:
    body = b'{"choices": [{"message": {"content": %s}, "finish_reason": "stop"}]}' % said
    stream = b'data: {"choices": [{"delta": {"content": %s}, "finish_reason": "stop"}]}\n\n' % said
    assert ended(TEXT, body) == text
    assert ended(TEXT, whole_body(stream)) == text


def test_h10_a_pair_that_a_stream_cuts_in_two_is_one_character() -> None:
    pieces = [b"a\\ud83d", b"\\ude00 b"]
    events = [b'data: {"choices": [{"delta": {"content": "%s"}}]}\n\n' % piece for piece in pieces]
    body = whole_body(b"".join(events) + event({"choices": [{"delta": {}, "finish_reason": "stop"}]}))
    assert ended(TEXT, body) == "a\U0001f600 b"


@pytest.mark.parametrize("depth", [10, 300, 100_000])
def test_h10_depth_is_a_value_or_a_fault(depth: int) -> None:
    deep = b"[" * depth + b"]" * depth
    for path in (b'"logprobs": %s', b'"message": {"content": %s}', b'"message": {"tool_calls": %s}', b'"error": %s'):
        found = ended(TEXT, b'{"choices": [{"finish_reason": "stop", %s}]}' % (path % deep))
        assert isinstance(found, Fault)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
        max_leaves=20,
    )
)
@settings(deadline=None, max_examples=200)
def test_h10_foreign_json_written_again_is_the_same_json(value: Any) -> None:
    """Every digit of every number included."""
    document = json.dumps({"a": value})
    again = read(document.encode(), json_text)
    assert json.loads(again or "", parse_int=str, parse_float=_shortest) == json.loads(
        document, parse_int=str, parse_float=_shortest
    )


def _shortest(literal: str) -> str:
    return literal.lower().replace("e+", "e")


def test_h10_the_tolerant_decoder_has_a_bottom() -> None:
    with pytest.raises(ValueError, match="too deeply"):
        decode(b"[" * 400 + b"NaN" + b"]" * 400)
