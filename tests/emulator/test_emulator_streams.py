"""Streams: taken apart, they are what would have come unstreamed."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import anyio
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.emulator import Options
from pipeline.emulator.server import event_stream as emulated_streaming
from pipeline.emulator.vertex import Vertex, emulated
from tests.emulator.requests import MODEL, asking, chunks, content, deltas, lines, until

pytestmark = pytest.mark.anyio
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}]  # fmt: skip
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}, "tags": {"type": "array", "items": {}}}}
THOUGHTS = {"thinking_config": {"include_thoughts": True}, "thought_tag_marker": "think"}
FRAGMENTS = {"stream_function_call_arguments": True}
CITIES = "Weather in Oslo and Graz, please"
PAYLOADS = {
    "prose": asking("We met Ana Sousa in Lisbon on 12 March 2026. It rained. 会議は東京で行われました。"),
    "schema": asking(
        "Lisbon", response_format={"type": "json_schema", "json_schema": {"name": "it", "schema": SCHEMA}}
    ),
    "thoughts": asking("Why?", extra_body={"google": THOUGHTS}),
    "cut": asking("Why on earth do rivers bend?", max_tokens=5),
    "several": asking("Why on earth do rivers bend?", n=3),
    "calls": asking(CITIES, tools=TOOLS),
    "fragments": asking(CITIES, tools=TOOLS, extra_body={"google": FRAGMENTS}),
    "image": asking("A heron.", modalities=["image"]),
    "image and text": asking("A heron.", modalities=["text", "image"]),
}


def put_together(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The choices that the chunks assemble to, with calls distinguished by their ids."""
    indices = sorted({part["index"] for chunk in found for part in chunk["choices"]})
    return [_choice(found, index) for index in indices]


def _choice(found: list[dict[str, Any]], index: int) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": None}
    calls: dict[str, dict[str, Any]] = {}
    for delta in deltas(found, index):
        if "content" in delta:
            message["content"] = (message["content"] or "") + delta["content"]
        message.update({name: delta[name] for name in ("audio", "extra_content") if name in delta})
        for call in delta.get("tool_calls", ()):
            known = calls.setdefault(call["id"], {**call, "function": {**call["function"], "arguments": ""}})
            known["function"]["arguments"] += call["function"]["arguments"]
    if calls:
        message["tool_calls"] = [{k: v for k, v in call.items() if k != "index"} for call in calls.values()]
    parts = [part for chunk in found for part in chunk["choices"] if part["index"] == index]
    return {"finish_reason": parts[-1]["finish_reason"], "index": index, "logprobs": None, "message": message}


async def test_a_stream_adds_up_to_the_answer_that_comes_unstreamed() -> None:
    """The same choices, id and usage: text, JSON, thoughts, several answers, calls whole or in fragments, pictures."""
    async with emulated(Options()) as one, emulated(Options()) as other:
        for name, payload in PAYLOADS.items():
            plain = (await one.ask(payload)).json()
            streamed = await other.ask({**payload, "stream": True, "stream_options": {"include_usage": True}})
            found = chunks(streamed.body)
            whole = [{**each, "message": {"content": None, **each["message"]}} for each in plain["choices"]]
            assert put_together(found) == whole, name
            assert {chunk["id"] for chunk in found} == {plain["id"]}
            assert found[-1]["usage"] == plain["usage"]
        assert (await one.stats())["output_tokens"] == (await other.stats())["output_tokens"]


async def test_a_stream_is_written_as_vertex_writes_it() -> None:
    """A role in every delta; finish_reason and usage in the last chunk and in no other; a few words a chunk."""
    async with emulated(Options()) as vertex:
        streamed = await vertex.ask({**PAYLOADS["prose"], "stream": True})
        found = chunks(streamed.body)
        assert streamed.headers["Content-Type"] == "text/event-stream"
        assert len(found) > 3
        assert {delta["role"] for delta in deltas(found)} == {"assistant"}
        assert all("finish_reason" not in chunk["choices"][0] for chunk in found[:-1])
        assert all("usage" not in chunk for chunk in found[:-1])
        assert found[-1]["choices"][0]["finish_reason"] == "stop"
        assert all(len(delta["content"].split()) <= 4 for delta in deltas(found))
        assert {(chunk["object"], chunk["model"]) for chunk in found} == {("chat.completion.chunk", MODEL)}
        assert all(list(chunk) == sorted(chunk) for chunk in found)


async def test_fragments_of_calls_have_googles_odd_index() -> None:
    """Id, name and type come with every fragment; the index of the first one is its neighbour's."""
    async with emulated(Options()) as vertex:
        found = chunks((await vertex.ask({**PAYLOADS["fragments"], "stream": True})).body)
        fragments = [call for delta in deltas(found) for call in delta["tool_calls"]]
        by_id = {ident: [each for each in fragments if each["id"] == ident] for ident in {f["id"] for f in fragments}}
        indices = sorted([each["index"] for each in some] for some in by_id.values())
        assert [len(set(some)) for some in indices] == [2, 2]
        assert [(some[0], set(some[1:])) for some in indices] == [(0, {1}), (1, {0})]
        assert {(each["function"]["name"], each["type"]) for each in fragments} == {("weather", "function")}


async def test_the_openai_client_reads_a_stream() -> None:
    """Its events add up to the text of the unstreamed answer."""
    async with emulated(Options()) as vertex:
        async with openai.AsyncOpenAI(api_key=await vertex.token(), base_url=vertex.address.base_url) as client:
            payload: Any = PAYLOADS["prose"]
            stream = await client.chat.completions.create(**payload, stream=True)
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(pieces) == content(await vertex.ask(PAYLOADS["prose"]))


async def test_a_stream_with_latency_begins_before_it_is_over() -> None:
    """The first words arrive while the call is still in flight; leaving then is counted as 499."""
    async with emulated(Options(latency=1.0)) as vertex:
        with anyio.fail_after(20):
            async with started(vertex) as response:
                assert (await response.content.readline()).startswith(b"data: {")
                assert (await vertex.stats())["in_flight"] == 1
            await until(vertex, "in_flight", 0)
        assert (await vertex.stats())["by_status"] == {"499": 1}


def started(vertex: Vertex) -> Any:
    """A stream that has not been read yet. Connections are not kept, so that leaving it closes one."""
    return _Started(vertex)


class _Started:
    def __init__(self, vertex: Vertex) -> None:
        self.vertex = vertex

    async def __aenter__(self) -> aiohttp.ClientResponse:
        headers = {"Authorization": f"Bearer {await self.vertex.token()}"}
        url = f"{self.vertex.address.base_url}/chat/completions"
        payload = {**PAYLOADS["prose"], "stream": True}
        self.response = await self.vertex.session.post(url, json=payload, headers=headers)
        return self.response

    async def __aexit__(self, *_: object) -> None:
        self.response.close()


async def test_a_stream_can_be_cut() -> None:
    """Some chunks, then a closed connection; nothing is billed."""
    async with emulated(Options(faults={"stream_cut": 1.0})) as vertex:
        async with started(vertex) as response:
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()
        stats = await vertex.stats()
        assert (stats["by_status"], stats["answers"]) == ({"dropped": 1}, 0)


async def test_a_stream_can_stall() -> None:
    """Some chunks, then nothing until the client leaves."""
    async with emulated(Options(faults={"stream_stall": 1.0})) as vertex:
        with anyio.fail_after(20):
            async with started(vertex) as response:
                assert (await response.content.readline()).startswith(b"data: {")
            await until(vertex, "in_flight", 0)
        stats = await vertex.stats()
        assert (stats["by_status"], stats["answers"]) == ({"499": 1}, 0)


async def test_a_stream_can_break_off_with_an_error() -> None:
    """In a list or as an object, after some chunks, and without `[DONE]`; or with half a chunk."""
    async with emulated(Options()) as vertex:
        for kind in ("stream_error", "stream_error_object", "truncated"):
            await vertex.control(faults={kind: 1.0})
            *before, last = lines((await vertex.ask({**PAYLOADS["prose"], "stream": True})).body)
            assert before
            assert all(json.loads(each)["choices"] for each in before)
            if kind == "truncated":
                with pytest.raises(ValueError, match=r"\w"):
                    json.loads(last)
            else:
                error = json.loads(last)
                assert isinstance(error, list) == (kind == "stream_error")
                assert (error[0] if isinstance(error, list) else error)["error"]["code"] == 503
        stats = await vertex.stats()
        assert (stats["by_status"], stats["answers"]) == ({"200": 3}, 0)


@pytest.mark.parametrize("kind", ["stream_error", "stream_error_object"])
async def test_an_error_of_a_stream_is_a_503_for_who_does_not_stream(kind: str) -> None:
    """The same faults serve both kinds of requests."""
    async with emulated(Options(faults={kind: 1.0})) as vertex:
        assert (await vertex.ask(asking())).status == 503


@pytest.mark.parametrize("kind", ["no_choices", "empty_choices", "no_message", "length", "content_filter", "no_usage"])
async def test_a_stream_can_lack_its_parts(kind: str) -> None:
    """What the completion lacks is missing from its chunks, and the stream ends as ever."""
    async with emulated(Options(faults={kind: 1.0})) as vertex:
        found = chunks((await vertex.ask({**PAYLOADS["prose"], "stream": True})).body)
        parts = [part for chunk in found for part in chunk.get("choices", ())]
        assert ("usage" in found[-1]) == (kind != "no_usage")
        assert any("choices" in chunk for chunk in found) == (kind != "no_choices")
        assert (parts == []) == (kind in {"no_choices", "empty_choices"})
        assert any(part.get("delta", {}).get("content") for part in parts) == (kind == "no_usage")


@given(text=st.text(), arguments=st.text(max_size=120))
def test_no_character_is_lost_between_chunks(text: str, arguments: str) -> None:
    """Whatever the text, its pieces put together are the text."""
    call = {"function": {"arguments": arguments, "name": "f"}, "id": "a", "type": "function"}
    message = {"role": "assistant", "content": text, "tool_calls": [call]}
    choice = {"finish_reason": "stop", "index": 0, "logprobs": None, "message": message}
    body = {"created": 1, "id": "x", "model": MODEL, "system_fingerprint": "", "choices": [choice], "usage": {}}
    for fragments in (False, True):
        found = emulated_streaming.chunks(body, fragments=fragments)
        whole = put_together(found)[0]["message"]
        assert (whole["content"] or "") == text
        assert whole["tool_calls"][0]["function"]["arguments"] == arguments
