"""Gemini's own form of a request: it means the same as OpenAI's, in any spelling, and wrong fields are refused."""

from __future__ import annotations

import base64
from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.emulator.answers.answers import answers
from pipeline.emulator.answers.made_media import picture, tone
from pipeline.emulator.answers.seeded import Dice
from pipeline.emulator.batch.native_bodies import response_of
from pipeline.emulator.protocol.fingerprint import digest_of
from pipeline.emulator.protocol.native import read_native
from pipeline.emulator.protocol.native_fields import camel, snake
from pipeline.emulator.protocol.request import ChatRequest, read_request
from pipeline.emulator.protocol.tools import signature_of
from pipeline.emulator.protocol.wire import Problem
from pipeline.emulator.server.bodies import choices_of, counted
from tests.emulator.native import native_of
from tests.emulator.requests import MODEL, Json

PNG = base64.b64encode(picture(Dice(b"a"))).decode()
WAV = base64.b64encode(tone(Dice(b"b"))).decode()
SCHEMA = {
    "type": "object",
    "properties": {"day": {"type": "string", "format": "date"}, "of_whom": {"$ref": "#/$defs/name"}},
    "required": ["day", "of_whom"],
    "$defs": {"name": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
}
WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city_name": {"type": "string"}}, "required": ["city_name"]},
}


def asked_online(payload: Json) -> ChatRequest:
    return read_request(orjson.dumps(payload), default_model=None)


def user(*parts: Json, role: str = "user") -> Json:
    return {"role": role, "parts": list(parts)}


def request(**changes: Any) -> Json:
    return {"contents": [user({"text": "Tell me about rivers."})], **changes}


TEXTS = st.text(min_size=1, max_size=30) | st.sampled_from(
    ["Ada met Bo on 3 May 2024.", "What is the weather in Paris and Oslo?", "It cost $12.50 [unsafe]"]
)
PARTS = st.one_of(
    TEXTS.map(lambda text: {"type": "text", "text": text}),
    st.just({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}),
    st.just({"type": "input_audio", "input_audio": {"data": WAV, "format": "wav"}}),
    st.just({"type": "image_url", "image_url": {"url": "gs://bucket/a.png"}}),
)
CONTENTS = TEXTS | st.lists(PARTS, min_size=1, max_size=3)
MESSAGES = st.lists(
    st.builds(lambda role, content: {"role": role, "content": content}, st.sampled_from(["system", "user"]), CONTENTS)
    | st.builds(lambda text: {"role": "assistant", "content": text}, TEXTS),
    max_size=4,
)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "n": st.integers(1, 3),
        "stop": st.lists(TEXTS, max_size=2),
        "max_tokens": st.integers(1, 2000),
        "temperature": st.sampled_from([0, 0.5, 1]),
        "response_format": st.sampled_from(
            [{"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}]
        ),
        "modalities": st.sampled_from([["text", "image"], ["audio"]]),
        "extra_body": st.sampled_from(
            [
                {"google": {"thinking_config": {"include_thoughts": True, "thinking_budget": 2000}}},
                {"google": {"thinking_config": {"thinking_level": "low"}}},
                {"google": {"cached_content": "projects/p/locations/l/cachedContents/1"}},
            ]
        ),
    },
)
TOOLS = st.fixed_dictionaries(
    {"tools": st.just([{"type": "function", "function": WEATHER}])},
    optional={"tool_choice": st.sampled_from(["auto", "none", "required"])},
)


def _texts_alone(messages: list[Json]) -> list[Json]:
    """Instructions have texts only."""
    return [
        {**each, "content": [part for part in each["content"] if part["type"] == "text"] or "Be brief."}
        if each["role"] == "system" and isinstance(each["content"], list)
        else each
        for each in messages
    ]


@st.composite
def payloads(draw: st.DrawFn) -> Json:
    messages = [*_texts_alone(draw(MESSAGES)), {"role": "user", "content": draw(CONTENTS)}]
    more = draw(OPTIONS) | draw(TOOLS | st.just({}))
    return {"model": MODEL, "messages": messages, **more}


@settings(max_examples=100, deadline=None)
@given(payload=payloads(), spelt=st.sampled_from([camel, snake]), seed=st.integers(0, 3))
def test_both_forms_of_a_request_get_the_same_answer(payload: Json, spelt: Any, seed: int) -> None:
    """The answers depend on what is meant: text, media, options, schema and tools."""
    online, native = asked_online(payload), read_native(native_of(payload, spelt), MODEL)
    assert native.digest == online.digest
    assert (native.prompt, native.media) == (online.prompt, online.media)
    assert answers(native, seed) == answers(online, seed)


@settings(max_examples=100, deadline=None)
@given(payload=payloads())
def test_the_response_says_what_the_completion_says(payload: Json) -> None:
    native = read_native(native_of(payload), MODEL)
    found, reasoning = answers(native, 0)
    tokens = counted(native, found, reasoning, None)
    response = response_of(native, found, reasoning, tokens, None)
    choices = choices_of(asked_online(payload), found, reasoning, None)
    for candidate, choice in zip(response["candidates"], choices, strict=True):
        parts = candidate["content"].get("parts", [])
        spoken = "".join(part["text"] + "\n" * ("thought" in part) for part in parts if "text" in part)
        calls = [part["functionCall"]["name"] for part in parts if "functionCall" in part]
        message = choice["message"]
        assert spoken.strip() == (message.get("content") or "").strip() or calls
        assert calls == [call["function"]["name"] for call in message.get("tool_calls", ())]
        media = [part["inlineData"]["data"] for part in parts if "inlineData" in part]
        assert media == ([message["audio"]["data"]] if "audio" in message else [])
    usage = response["usageMetadata"]
    parts_of_total = ("promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount")
    assert usage["totalTokenCount"] == sum(usage.get(name, 0) for name in parts_of_total)


def test_calls_and_their_results_mean_the_same_in_both_forms() -> None:
    payload: Json = {
        "model": "google/gemini-3-test",
        "tools": [{"type": "function", "function": WEATHER}],
        "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
        "tool_choice": "required",
    }
    calls = [(call, signature_of(call)) for call in answers(asked_online(payload), 0)[0][0].calls]
    assert calls
    made = [
        {
            "id": f"c{number}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.written},
            "extra_content": {"google": {"thought_signature": signature}},
        }
        for number, (call, signature) in enumerate(calls)
    ]
    told = [{"role": "tool", "tool_call_id": each["id"], "content": '{"degrees": 12}'} for each in made]
    payload["messages"] += [{"role": "assistant", "content": None, "tool_calls": made}, *told]
    online, native = asked_online(payload), read_native(native_of(payload), payload["model"])
    assert (native.turns, native.digest) == (online.turns, online.digest)
    assert answers(native, 0) == answers(online, 0)


def test_messages_are_identified_by_what_they_say() -> None:
    plain = [{"role": "system", "content": "A\nB"}, {"role": "user", "content": "C\nD"}]
    split = [
        {"role": "user", "content": [{"type": "text", "text": "C"}]},
        {"role": "developer", "content": [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]},
        {"role": "user", "content": "D", "name": "Ada"},
    ]
    assert digest_of(plain) == digest_of(split)
    others = [
        [{"role": "user", "content": "C\nD"}],
        [{"role": "system", "content": "A\nB"}, {"role": "user", "content": "C\nE"}],
        [*plain, {"role": "assistant", "content": "C"}],
    ]
    assert digest_of(plain) not in {digest_of(other) for other in others}


def test_a_schema_of_openapi_is_read_in_both_spellings() -> None:
    """`nullable` and types in capitals, as Gemini's own SDKs write them."""
    schema = {
        "type": "OBJECT",
        "properties": {"day_of": {"type": "STRING", "nullable": True}, "kinds": {"type": "ARRAY", "min_items": 1}},
        "property_ordering": ["day_of", "kinds"],
        "required": ["kinds"],
    }
    schema["properties"]["kinds"]["items"] = {"type": "STRING", "enum": ["a", "b"]}  # type: ignore[index]
    config = {"response_mime_type": "application/json", "response_schema": schema}
    asked = read_native(request(generationConfig=config), MODEL)
    assert asked.response_format is not None
    read = asked.response_format["json_schema"]["schema"]
    assert read["properties"]["kinds"]["minItems"] == 1
    assert "day_of" in read["properties"]
    text = answers(asked, 0)[0][0].text
    assert text is not None
    assert set(orjson.loads(text)["kinds"]) <= {"a", "b"}


def test_declared_functions_may_have_a_json_schema() -> None:
    """Which is not held to OpenAPI, and narrowed by the names that are allowed."""
    free = {"name": "free", "parametersJsonSchema": {"type": "object", "additionalProperties": False}}
    calling = {"mode": "ANY", "allowedFunctionNames": ["free"]}
    tools = [{"functionDeclarations": [WEATHER, free]}, {"googleSearch": {}}]
    asked = read_native(request(tools=tools, toolConfig={"functionCallingConfig": calling}), MODEL)
    (function,) = asked.functions
    assert (function.name, asked.must_call) == ("free", True)
    assert orjson.loads(function.parameters) == free["parametersJsonSchema"]


FILE = {"fileUri": "gs://bucket/a.png", "mimeType": "image/png"}


def test_what_is_known_and_changes_nothing_is_accepted() -> None:
    config = {"topK": 5, "seed": 7, "frequency_penalty": 0.1, "logprobs": 2, "audioTimestamp": True}
    parts: list[Json] = [
        {"text": "Hm", "thought": True},
        {"text": "Look"},
        {"fileData": FILE, "videoMetadata": {"fps": 2}},
    ]
    asked = read_native(request(contents=[user(*parts)], generationConfig=config, labels={"a": "1"}), MODEL)
    assert (asked.prompt, len(asked.media)) == ("Look", 1)


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (None, "an object is expected"),
        ({}, "at least one contents field"),
        ({"contents": user({"text": "a"})}, "a list is expected"),
        ({"contents": [user({"text": "a"}, role="assistant")]}, "valid role: user, model"),
        ({"contents": [{"parts": [{"text": "a"}]}]}, "valid role: user, model"),
        ({"contents": [user()]}, "at least one parts field"),
        ({"contents": [user({})]}, "has no data"),
        ({"contents": [user({"text": 5})]}, "Invalid value at 'contents[0].parts[0].text' (TYPE_STRING)"),
        ({"contents": [user({"txt": "a"})]}, "Unknown name \"txt\" at 'contents[0].parts[0]': Cannot find field."),
        ({"contents": [user({"text": "a", "fileData": FILE})]}, "oneof field"),
        ({"contents": [user({"fileData": {"fileUri": "gs://b/a"}})]}, "mimeType parameter"),
        ({"contents": [user({"inlineData": {"mimeType": "image/png", "data": "%"}})]}, "Base64 decoding failed"),
        ({"contents": [user({"inlineData": {"mimeType": "image/gif", "data": PNG}})]}, "was declared as image/gif"),
        ({"contents": [user({"functionResponse": {"name": "f", "response": {}}})]}, "equal to the number"),
        (request(messages=[]), 'Unknown name "messages": Cannot find field.'),
        (request(systemInstruction={"parts": [{"fileData": FILE}]}), "text parts"),
        (request(system_instruction=None, generation_config={"max_tokens": 5}), 'Unknown name "max_tokens"'),
        (request(generationConfig={"temperature": "hot"}), "generation_config.temperature' (TYPE_FLOAT)"),
        (request(generationConfig={"maxOutputTokens": 1.5}), "generation_config.max_output_tokens' (TYPE_INT32)"),
        (request(generationConfig={"maxOutputTokens": True}), "(TYPE_INT32)"),
        (request(generationConfig={"topP": 1, "top_p": 1}), "given twice"),
        (request(generationConfig={"responseSchema": SCHEMA}), "only allowed when response_mime_type"),
        (request(generationConfig={"responseSchema": SCHEMA, "responseJsonSchema": SCHEMA}), "Only one of"),
        (request(generationConfig={"responseMimeType": 5}), "TYPE_STRING"),
        (request(generationConfig={"thinkingConfig": {"budget": 5}}), 'Unknown name "budget"'),
        (request(generationConfig={"thinkingConfig": {"thinkingBudget": 5, "thinkingLevel": "LOW"}}), "Only one of"),
        (request(generationConfig={"candidateCount": 9}), "between 1 and 8"),
        (request(safetySettings=[{"category": "RUDE", "threshold": "OFF"}]), "safety_settings[0].category"),
        (request(cachedContent="mine"), "cachedContents"),
        (request(labels={"Upper": "a"}), "Invalid label"),
        (request(labels={"a": "x" * 64}), "Invalid label"),
        (request(labels={"a": 5}), "a map of texts"),
        (request(labels={f"l{n}": "" for n in range(65)}), "At most 64 labels"),
        (request(tools={}), "a list is expected"),
        (request(tools=[{"functions": []}]), "Unknown name \"functions\" at 'tools[0]'"),
        (request(tools=[{"functionDeclarations": {}}]), "a list is expected"),
        (request(tools=[{"functionDeclarations": [{**WEATHER, "parametersJsonSchema": {}}]}]), "Only one of"),
        (request(tools=[{"functionDeclarations": [{"name": "f", "parameters": {"type": "thing"}}]}]), "Invalid value"),
        (request(toolConfig={"functionCallingConfig": {"mode": "SOME"}}), "function_calling_config.mode"),
        (request(toolConfig={"functionCallingConfig": {"allowedFunctionNames": ["f"]}}), "when function calling mode"),
        (request(toolConfig={"functionCallingConfig": {"mode": "ANY"}}), "without function_declarations"),
    ],
)
def test_wrong_requests_are_refused(sent: Any, said: str) -> None:
    with pytest.raises(Problem) as refused:
        read_native(sent, MODEL)
    assert refused.value.http_status == 400
    assert said in refused.value.message


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def mutated(draw: st.DrawFn) -> Json:
    """A whole request in which one value is anything."""
    sent: Json = orjson.loads(orjson.dumps(native_of(draw(payloads()))))
    places = [(holder, name) for holder in _holders(sent) for name in _names(holder)]
    holder, name = draw(st.sampled_from(places))
    holder[name] = draw(JSONS)
    return sent


def _holders(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [value, *(each for one in inner for each in _holders(one))] if isinstance(value, dict | list) else []


def _names(holder: Any) -> list[Any]:
    return list(holder) if isinstance(holder, dict) else list(range(len(holder)))


@settings(max_examples=100, deadline=None)
@given(sent=mutated())
def test_any_request_is_answered_or_refused(sent: Json) -> None:
    with suppress(Problem):
        answers(read_native(sent, MODEL), 0)
