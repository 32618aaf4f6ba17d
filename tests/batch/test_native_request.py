"""Our requests in Gemini's own form: the same question, or a refusal that names what cannot be asked."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import Request, Row
from pipeline.endpoint.batch.backend import UnsupportedInBatch
from pipeline.endpoint.batch.native_line import native_line
from pipeline.endpoint.batch.selection import check_job
from pipeline.faults import InvalidRow
from pipeline.job.job import Job
from pipeline.job.loader import load_job
from tests.batch.native_types import validate

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
"""A picture of one pixel."""
ASKED = [{"role": "user", "content": "What is it?"}]


def native(payload: Mapping[str, Any], **labels: str) -> dict[str, Any]:
    """The native request in the line of a payload."""
    line = native_line("r-1", Request(1, {"model": "google/gemini-2.5-flash", **payload}), labels)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    document = json.loads(line)
    assert document.keys() == {"key", "request"}
    assert document["key"] == document["request"]["labels"]["pipeline_row"] == "r-1"
    request: dict[str, Any] = document["request"]
    validate(request)
    return request


def config(**given: Any) -> dict[str, Any]:
    found: dict[str, Any] = native({"messages": ASKED, **given}).get("generationConfig", {})
    return found


def parts(content: Any) -> list[Any]:
    found: list[Any] = native({"messages": [{"role": "user", "content": content}]})["contents"][0]["parts"]
    return found


# Messages.


def test_system_messages_are_one_instruction_and_equal_roles_one_content() -> None:
    request = native(
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "A"},
                {"role": "user", "content": [{"type": "text", "text": "B"}]},
                {"role": "assistant", "content": "C"},
                {"role": "developer", "content": "Be exact."},
                {"role": "user", "content": "D"},
            ]
        }
    )
    assert request["systemInstruction"] == {"parts": [{"text": "Be brief."}, {"text": "Be exact."}]}
    assert request["contents"] == [
        {"role": "user", "parts": [{"text": "A"}, {"text": "B"}]},
        {"role": "model", "parts": [{"text": "C"}]},
        {"role": "user", "parts": [{"text": "D"}]},
    ]


def test_media_are_inline_or_named_by_their_address() -> None:
    inline = {"inlineData": {"mimeType": "image/png", "data": PNG}}
    assert parts([{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}]) == [inline]
    assert parts([{"type": "image_url", "image_url": f"data:image/png;base64,{PNG}"}]) == [inline]
    assert parts([{"type": "image_url", "image_url": {"url": "data:,a%20b"}}]) == [
        {"inlineData": {"mimeType": "text/plain", "data": base64.b64encode(b"a b").decode()}}
    ]
    for url, mime_type in (
        ("gs://b/a.PDF", "application/pdf"),
        ("https://x/a.jpg?v=1#f", "image/jpeg"),
        ("gs://b/a", "image/*"),
    ):
        named = [{"fileData": {"mimeType": mime_type, "fileUri": url}}]
        assert parts([{"type": "image_url", "image_url": {"url": url}}]) == named


def test_recordings_have_their_format() -> None:
    def audio(data: str, form: str | None) -> Any:
        return parts([{"type": "input_audio", "input_audio": {"data": data, "format": form}}])

    assert audio("QUJD", "wav") == [{"inlineData": {"mimeType": "audio/wav", "data": "QUJD"}}]
    assert audio("QUJD", "audio/flac") == [{"inlineData": {"mimeType": "audio/flac", "data": "QUJD"}}]
    assert audio("gs://b/a.ogg", None) == [{"fileData": {"mimeType": "audio/ogg", "fileUri": "gs://b/a.ogg"}}]
    assert audio("gs://b/a", "mp3") == [{"fileData": {"mimeType": "audio/mpeg", "fileUri": "gs://b/a"}}]


def test_earlier_calls_have_their_results_and_signatures() -> None:
    google = {"google": {"thought_signature": "c2ln"}}
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":\n 1.10}'}}
    request = native(
        {
            "messages": [
                *ASKED,
                {"role": "assistant", "content": None, "tool_calls": [{**call, "extra_content": google}]},
                {"role": "tool", "tool_call_id": "c1", "content": "It is 5."},
                {"role": "assistant", "tool_calls": [{**call, "id": "c2"}]},
                {"role": "tool", "tool_call_id": "c2", "content": '{"x": 2}'},
                {"role": "assistant", "content": "Five.", "extra_content": google},
                {"role": "user", "content": "And?"},
            ]
        }
    )
    assert request["contents"][1:] == [
        {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {"a": 1.1}}, "thoughtSignature": "c2ln"}]},
        {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"output": "It is 5."}}}]},
        {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {"a": 1.1}}}]},
        {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"x": 2}}}]},
        {"role": "model", "parts": [{"text": "Five.", "thoughtSignature": "c2ln"}]},
        {"role": "user", "parts": [{"text": "And?"}]},
    ]


def test_the_digits_of_arguments_are_kept() -> None:
    call = {"id": "c", "function": {"name": "f", "arguments": '{"a": 0.10000000000000000001, "b": 1e40}'}}
    messages = [
        *ASKED,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": ""},
    ]
    line = native_line("r-1", Request(1, {"messages": messages}), {})
    assert b'{"a": 0.10000000000000000001, "b": 1e40}' in line


# Parameters.


def test_parameters_have_their_native_names() -> None:
    assert config(
        temperature=0.5, top_p=0.9, max_tokens=10, seed=1, frequency_penalty=0.1, presence_penalty=0.2, n=2, stop="x"
    ) == {
        "temperature": 0.5,
        "topP": 0.9,
        "maxOutputTokens": 10,
        "seed": 1,
        "frequencyPenalty": 0.1,
        "presencePenalty": 0.2,
        "candidateCount": 2,
        "stopSequences": ["x"],
    }
    assert config(max_completion_tokens=5, stop=["a", "b"], modalities=["text", "image"]) == {
        "maxOutputTokens": 5,
        "stopSequences": ["a", "b"],
        "responseModalities": ["TEXT", "IMAGE"],
    }


def test_a_schema_stays_as_it_is() -> None:
    schema = {"type": "object", "properties": {"a_b": {"$ref": "#/$defs/C"}}, "$defs": {"C": {"type": "string"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    assert config(response_format=form) == {"responseMimeType": "application/json", "responseJsonSchema": schema}
    assert config(response_format={"type": "json_object"}) == {"responseMimeType": "application/json"}
    assert config(response_format={"type": "text/x.enum"}) == {"responseMimeType": "text/x.enum"}


@pytest.mark.parametrize(
    ("model", "effort", "thinking"),
    [
        ("google/gemini-2.5-flash", "none", {"thinkingBudget": 0}),
        ("google/gemini-2.5-flash", "medium", {"thinkingBudget": 8192}),
        ("google/gemini-3.5-flash-lite", "minimal", {"thinkingLevel": "LOW"}),
        ("google/gemini-3.5-flash-lite", "high", {"thinkingLevel": "HIGH"}),
    ],
)
def test_an_effort_is_a_budget_or_a_level(model: str, effort: str, thinking: dict[str, Any]) -> None:
    assert config(model=model, reasoning_effort=effort) == {"thinkingConfig": thinking}


def test_googles_own_options_are_native_ones() -> None:
    request = native(
        {
            "messages": ASKED,
            "extra_body": {
                "google": {
                    "thinking_config": {"include_thoughts": True, "thinking_level": "high"},
                    "safety_settings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}],
                    "cachedContent": "projects/p/locations/l/cachedContents/1",
                    "tools": [{"google_search": {}}],
                    "media_resolution": "MEDIA_RESOLUTION_LOW",
                    "thought_tag_marker": "thinking",
                }
            },
        }
    )
    assert request["generationConfig"] == {
        "thinkingConfig": {"includeThoughts": True, "thinkingLevel": "HIGH"},
        "mediaResolution": "MEDIA_RESOLUTION_LOW",
    }
    assert request["safetySettings"][0]["threshold"] == "BLOCK_NONE"
    assert request["cachedContent"].endswith("/1")
    assert request["tools"] == [{"google_search": {}}]


def test_tools_and_their_choice_are_declarations_and_a_mode() -> None:
    function = {"name": "f", "description": "Does.", "parameters": {"type": "object", "properties": {}}}
    tools = [{"type": "function", "function": {**function, "strict": True}}]
    request = native({"messages": ASKED, "tools": tools, "tool_choice": "validated", "web_search_options": {}})
    assert request["tools"] == [{"functionDeclarations": [function]}, {"googleSearch": {}}]
    assert request["toolConfig"] == {"functionCallingConfig": {"mode": "VALIDATED"}}
    named = native({"messages": ASKED, "tools": tools, "tool_choice": {"type": "function", "function": {"name": "f"}}})
    assert named["toolConfig"]["functionCallingConfig"] == {"mode": "ANY", "allowedFunctionNames": ["f"]}


def test_what_the_compatible_endpoint_ignores_is_left_out() -> None:
    ignored = {
        "user": "u",
        "logprobs": True,
        "stream": True,
        "stream_options": {},
        "service_tier": "auto",
        "seed": None,
    }
    assert native({"messages": ASKED, **ignored}) == native({"messages": ASKED})


def test_labels_of_the_caller_are_kept() -> None:
    assert native({"messages": ASKED}, pipeline_run="ab")["labels"] == {"pipeline_run": "ab", "pipeline_row": "r-1"}


@pytest.mark.parametrize(
    ("payload", "named"),
    [
        ({"top_k": 3}, "`top_k`"),
        ({"extra_body": {"vendor": {}}}, "`extra_body.vendor`"),
        ({"extra_body": {"google": {"voice": 1}}}, "`extra_body.google.voice`"),
        ({"extra_body": 1}, "`extra_body`"),
        ({"response_format": {"type": "grammar"}}, "`response_format`"),
        ({"response_format": 1}, "`response_format`"),
        ({"reasoning_effort": "none", "model": "google/gemini-3.5-flash"}, "`reasoning_effort`"),
        ({"reasoning_effort": "low", "extra_body": {"google": {"thinking_config": {}}}}, "exclude each other"),
        ({"tools": [{"type": "custom"}]}, "a tool of the type 'custom'"),
        ({"tools": "f"}, "`tools`"),
        ({"tool_choice": "f"}, "`tool_choice`"),
        ({"stop": True}, "`stop`"),
        ({"modalities": "text"}, "`modalities`"),
        ({"messages": "Hi"}, "`messages`"),
        ({"messages": []}, "no message of a user"),
        ({"messages": [{"role": "system", "content": "Hi"}]}, "no message of a user"),
        ({"messages": [{"role": "critic", "content": "Hi"}]}, "messages[0] has the role 'critic'"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        (
            {"messages": [{"role": "tool", "tool_call_id": "x", "content": "Hi"}]},
            "messages[0] is the result of no call",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "file"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "has no url"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "ftp://x"}]}]},
            "neither at gs://",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "data:;base64,?"}]}]}, "base64"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "["}}]}]},
            "a tool call",
        ),
    ],
)
def test_what_has_no_native_form_is_refused_by_name(payload: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRow) as refused:
        native({"messages": ASKED, **payload})
    assert named in refused.value.message


@pytest.mark.parametrize("key", ["", "A", "r 1", "x" * 64])
def test_a_key_that_no_label_can_have_is_refused(key: str) -> None:
    with pytest.raises(InvalidRow, match="cannot have the key"):
        native_line(key, Request(1, {"messages": ASKED}), {})


# Properties.

text = st.text(max_size=20)
texts = text.filter(str.strip)
media = st.sampled_from(
    [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
        {"type": "image_url", "image_url": {"url": "gs://b/a.pdf"}},
        {"type": "input_audio", "input_audio": {"data": "gs://b/a.mp3", "format": "mp3"}},
    ]
)
content = texts | st.lists(
    st.builds(lambda said: {"type": "text", "text": said}, texts) | media, min_size=1, max_size=3
)
messages = st.builds(
    lambda system, before, last: [*system, *before, {"role": "user", "content": last}],
    st.lists(st.builds(lambda said: {"role": "system", "content": said}, texts), max_size=2),
    st.lists(
        st.builds(lambda role, said: {"role": role, "content": said}, st.sampled_from(["user", "assistant"]), texts)
    ),
    content,
)
options = st.fixed_dictionaries(
    {"messages": messages},
    optional={
        "temperature": st.floats(0, 2),
        "top_p": st.floats(0, 1),
        "max_tokens": st.integers(1, 10**6),
        "seed": st.integers(0, 2**31 - 1),
        "n": st.integers(1, 8),
        "stop": texts | st.lists(texts, min_size=1, max_size=5),
        "reasoning_effort": st.sampled_from(["minimal", "low", "medium", "high"]),
        "response_format": st.sampled_from(
            [{"type": "json_object"}, {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}]
        ),
        "web_search_options": st.just({}),
        "modalities": st.lists(st.sampled_from(["text", "image", "audio"]), min_size=1, max_size=2),
    },
)


@given(options, st.sampled_from(["google/gemini-2.5-pro", "google/gemini-3.5-flash"]))
def test_every_request_that_we_make_is_one_that_googles_types_take(payload: dict[str, Any], model: str) -> None:
    request = native({**payload, "model": model})
    said = [part["text"] for each in request["contents"] for part in each["parts"] if "text" in part]
    asked = [message["content"] for message in payload["messages"] if message["role"] != "system"]
    flat = [part for each in asked for part in ([{"text": each}] if isinstance(each, str) else each)]
    assert said == [part["text"] for part in flat if "text" in part]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)
names = st.sampled_from(
    ["messages", "tools", "functions", "tool_choice", "response_format", "extra_body", "stop", "modalities", "n"]
)


@given(st.dictionaries(names, json_values, max_size=4), st.booleans())
def test_a_rows_own_request_is_translated_or_refused(payload: dict[str, Any], asks: bool) -> None:  # noqa: FBT001 - drawn
    given = {**payload, "messages": ASKED} if asks else payload
    try:
        line = native_line("r-1", Request(1, given), {})
    except InvalidRow:
        return
    assert line.count(b"\n") == 1


# The jobs.

JOBS = sorted(path for path in Path("jobs").glob("*.py") if not path.name.startswith("eval_"))


JOBS_COLUMNS = ("text", "question", "title", "body", "language")
"""What the functions and the templates of jobs use."""


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_every_job_translates_or_is_refused_by_name(path: Path) -> None:
    job = load_job(str(path))
    if job.runs_tools or job.stream or job.tier is not None:
        with pytest.raises(UnsupportedInBatch, match=r"--batch|stream=False"):
            check_job(job)
        job = job.replace(stream=False, tier=None)
    else:
        check_job(job)
    names = [*JOBS_COLUMNS, *(job.conversation.columns or ())]
    values = dict.fromkeys(names, "a value")
    request = job.request(Row(0, values))
    plain = [{**message, "content": _without_files(message["content"])} for message in request.payload["messages"]]
    assert native({**request.payload, "messages": plain})["contents"]


def _without_files(content: Any) -> Any:
    """Content whose attachments are loaded: a picture in place of each."""
    if not isinstance(content, list):
        return content
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
    return [part if isinstance(part, dict) else picture for part in content]


def now() -> str:
    """The time."""
    return "12:00"


@pytest.mark.parametrize(
    ("job", "remedy"),
    [
        (Job(name="j", user="Hi"), "--model"),
        (Job(name="j", model="google/m", user="Hi", stream=True), "stream=False"),
        (Job(name="j", model="google/m", user="Hi", tier="flex"), "tier"),
        (Job(name="j", model="google/m", user="Hi", tools=[now]), "execute_tools=False"),
    ],
)
def test_a_job_that_no_batch_can_ask_is_refused_with_the_remedy(job: Job, remedy: str) -> None:
    with pytest.raises(UnsupportedInBatch, match=remedy):
        check_job(job)
