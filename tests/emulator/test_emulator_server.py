"""The chat endpoint over HTTP, asked by aiohttp and by the OpenAI client."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import date
from typing import Any

import aiohttp
import anyio
import openai
import pytest
from pydantic import BaseModel

from pipeline.emulator import EmulatorAddress, Options, serve
from pipeline.emulator.vertex import Vertex, emulated
from tests.emulator.requests import MODEL, asking, content, until

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def asked_by_openai(vertex: Vertex) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        api_key=await vertex.token(), base_url=vertex.address.base_url, max_retries=0
    ) as client:
        yield client


class Meeting(BaseModel):
    title: str | None
    date: date | None
    place: str | None


async def test_the_openai_client_parses_an_answer_into_its_model() -> None:
    """`chat.completions.parse` works unchanged, with facts from the prompt."""
    async with emulated(Options()) as vertex, asked_by_openai(vertex) as client:
        text = "We meet for “Spring review” on 12 March 2026 in Lisbon."
        messages: Any = [{"role": "user", "content": text}]
        completion = await client.chat.completions.parse(model=MODEL, messages=messages, response_format=Meeting)
        expected = Meeting(title="Spring review", date=date(2026, 3, 12), place="Lisbon")
        assert completion.choices[0].message.parsed == expected


async def test_a_body_is_written_as_vertex_writes_it() -> None:
    """Sorted keys, an id of base64url, an empty fingerprint, null logprobs, no reasoning without thinking."""
    async with emulated(Options()) as vertex:
        answered = await vertex.ask(asking())
        body = answered.json()
        assert list(body) == sorted(body)
        assert re.fullmatch(r"[\w-]{23}", body["id"])
        assert (body["object"], body["model"], body["system_fingerprint"]) == ("chat.completion", MODEL, "")
        assert body["choices"][0]["logprobs"] is None
        assert "completion_tokens_details" not in body["usage"]
        assert body["usage"]["extra_properties"] == {"google": {"traffic_type": "ON_DEMAND"}}
        assert answered.headers["Content-Type"] == "application/json; charset=UTF-8"


@pytest.mark.parametrize("extra", [{}, {"reasoning_effort": "low"}, {"reasoning_effort": "high", "n": 3}])
async def test_usage_adds_up_as_vertex_counts(extra: dict[str, Any]) -> None:
    """The total is prompt, completion and reasoning; completion excludes reasoning."""
    async with emulated(Options()) as vertex:
        answered = await vertex.ask(asking("x" * 400, **extra))
        usage = answered.json()["usage"]
        texts = [choice["message"]["content"] for choice in answered.json()["choices"]]
        reasoning = usage.get("completion_tokens_details", {}).get("reasoning_tokens", 0)
        assert usage["prompt_tokens"] == 100
        assert usage["completion_tokens"] == sum(-(-len(text) // 4) for text in texts)
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] + reasoning
        stats = await vertex.stats()
        assert (stats["input_tokens"], stats["reasoning_tokens"]) == (100, reasoning)


async def test_more_effort_thinks_more_and_none_not_at_all() -> None:
    """Reasoning tokens grow with the effort, and a thinking budget of 0 or effort `none` has none."""
    async with emulated(Options()) as vertex:

        async def reasoning(**extra: Any) -> int:
            usage = (await vertex.ask(asking(**extra))).json()["usage"]
            return int(usage.get("completion_tokens_details", {}).get("reasoning_tokens", 0))

        efforts = [await reasoning(reasoning_effort=effort) for effort in ("none", "low", "medium", "high")]
        assert efforts == sorted(set(efforts))
        assert efforts[0] == 0
        config = {"thinking_config": {"thinking_budget": 0}}
        assert await reasoning(extra_body={"google": config}) == 0
        config = {"thinking_config": {"thinking_budget": 500}}
        assert 0 < await reasoning(extra_body={"google": config}) <= 500


async def test_the_same_request_gets_the_same_answer_and_another_seed_another() -> None:
    """Answers are a function of request and seed, across servers."""
    payload = asking(n=8)
    texts = []
    for seed in (1, 1, 2):
        async with emulated(Options(seed=seed)) as vertex:
            choices = (await vertex.ask(payload)).json()["choices"]
            texts.append([choice["message"]["content"] for choice in choices])
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]
    assert len(set(texts[0])) > 1


async def test_max_tokens_cuts_and_stop_ends() -> None:
    """A cut answer is a prefix with finish_reason length; a stop text is left out, with finish_reason stop."""
    async with emulated(Options()) as vertex:
        whole = content(await vertex.ask(asking()))
        cut = await vertex.ask(asking(max_tokens=3))
        assert content(cut) == whole[:12]
        assert cut.json()["choices"][0]["finish_reason"] == "length"
        assert cut.json()["usage"]["completion_tokens"] == 3
        stopped = await vertex.ask(asking(stop=["rivers"]))
        assert content(stopped) == whole[: whole.index("rivers")]
        assert stopped.json()["choices"][0]["finish_reason"] == "stop"


async def test_thinking_can_eat_all_the_tokens() -> None:
    """A small cap with much effort leaves a choice without content."""
    async with emulated(Options()) as vertex:
        body = (await vertex.ask(asking(max_completion_tokens=10, reasoning_effort="high"))).json()
        assert body["choices"][0]["finish_reason"] == "length"
        assert "content" not in body["choices"][0]["message"]
        assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == 10


@pytest.mark.parametrize(
    "payload",
    [
        {"model": MODEL},
        {"model": MODEL, "messages": []},
        {"model": MODEL, "messages": ["hi"]},
        {"model": MODEL, "messages": [{"role": "wizard", "content": "hi"}]},
        {"model": MODEL, "messages": [{"role": "user", "content": 3}]},
        {"model": MODEL, "messages": [{"role": "user", "content": [{"text": "hi"}]}]},
        {"messages": [{"role": "user", "content": "hi"}]},
        asking(n=0),
        asking(n=9),
        asking(max_tokens="many"),
        asking(stop=3),
        asking(stream="yes"),
        asking(web_search_options=True),
        asking(modalities=["smell"]),
        asking(response_format={"type": 3}),
        asking(reasoning_effort="low", extra_body={"google": {"thinking_config": {}}}),
        asking(extra_body={"google": {"thinking_config": {"thinking_level": "none"}}}),
        asking(extra_body={"google": {"cached_content": "my cache"}}),
        asking(extra_body={"google": {"safety_settings": {"category": "HARM_CATEGORY_HARASSMENT"}}}),
        asking(extra_body={"google": {"safety_settings": [{"category": "HARM_CATEGORY_X", "threshold": "BLOCK"}]}}),
        asking(reasoning_effort="enormous"),
        asking(reasoning_effort="low", extra_body={"google": {"thinking_config": {"thinking_budget": 1}}}),
        asking(extra_body={"google": {"thinking_config": {"thinking_budget": 1, "thinking_level": "low"}}}),
        asking(response_format={"type": "json_schema"}),
        asking(response_format={"type": "json_schema", "json_schema": {"schema": {"type": "array", "minItems": "x"}}}),
    ],
)
async def test_an_invalid_request_is_refused(payload: dict[str, Any]) -> None:
    """400 INVALID_ARGUMENT, in a list, and nothing is counted as answered."""
    async with emulated(Options()) as vertex:
        refused = await vertex.ask(payload)
        error = refused.json()[0]["error"]
        assert (refused.status, error["code"], error["status"]) == (400, 400, "INVALID_ARGUMENT")
        assert (await vertex.stats())["answers"] == 0


async def test_parameters_that_vertex_does_not_know_are_ignored() -> None:
    """Like a mistyped name."""
    async with emulated(Options()) as vertex:
        plain = content(await vertex.ask(asking()))
        assert content(await vertex.ask(asking(resoning_effort="low", logprobs=True, user="me", seed=3))) == plain


async def test_an_unknown_model_is_not_found_and_a_numeric_endpoint_needs_none() -> None:
    """404 with Vertex's message; any publisher's are known but for patterns; a tuned endpoint knows its model."""
    async with emulated(Options(unknown_models=("google/palm*",))) as vertex:
        refused = await vertex.ask({**asking(), "model": "google/palm"})
        assert refused.status == 404
        named = "`projects/emulated-project/locations/global/publishers/google/models/palm` was not found"
        assert named in refused.json()[0]["error"]["message"]
        assert (await vertex.ask({**asking(), "model": "meta/llama-4-scout-17b-16e-instruct-maas"})).status == 200
        for malformed in ("gpt-5", "google/", "/gemini", "google/gemini 3", "a/b/c"):
            assert (await vertex.ask({**asking(), "model": malformed})).status == 404
        url = f"{vertex.address.origin}/v1beta1/projects/p/locations/us/endpoints/42/chat/completions"
        headers = {"Authorization": f"Bearer {await vertex.token()}"}
        messages = {"messages": asking()["messages"]}
        assert (await vertex.request("POST", url, json=messages, headers=headers)).status == 200


async def test_calls_over_the_rate_are_throttled() -> None:
    """One second's worth passes, the next call is 429 with the body of Vertex and no hint when to come again."""
    async with emulated(Options(quota_rps=0.001)) as vertex:
        token = await vertex.token()
        assert (await vertex.ask(asking(), token)).status == 200
        throttled = await vertex.ask(asking(), token)
        error = throttled.json()[0]["error"]
        assert (throttled.status, error["status"]) == (429, "RESOURCE_EXHAUSTED")
        assert "details" not in error
        assert "Retry-After" not in throttled.headers
        await vertex.control(quota_rps=None)
        assert (await vertex.ask(asking(), token)).status == 200


async def test_hints_for_the_next_try_are_sent_when_asked_for() -> None:
    """Retry-After with 429 and 503, RetryInfo in the body of a 429, and the plain error object."""
    options = Options(faults={"429": 1.0}, retry_after="0.5", retry_info=39, error_style="object")
    async with emulated(options) as vertex:
        throttled = await vertex.ask(asking())
        assert throttled.headers["Retry-After"] == "0.5"
        assert throttled.json()["error"]["details"][0]["retryDelay"] == "39s"
        await vertex.control(faults={"503": 1.0})
        assert (await vertex.ask(asking())).headers["Retry-After"] == "0.5"
        await vertex.control(faults={"500": 1.0})
        assert "Retry-After" not in (await vertex.ask(asking())).headers


async def test_calls_in_flight_are_capped_and_a_client_that_leaves_frees_its_place() -> None:
    """The cap counts calls that wait for their answer; leaving ends the wait and is counted as 499."""
    async with emulated(Options(quota_in_flight=1, latency=3600)) as vertex:
        with anyio.fail_after(20):
            waiting = asyncio.create_task(vertex.ask(asking()))
            await until(vertex, "in_flight", 1)
            assert (await vertex.ask(asking())).status == 429
            waiting.cancel()
            await until(vertex, "in_flight", 0)
        stats = await vertex.stats()
        assert stats["by_status"] == {"429": 1, "499": 1}
        assert stats["max_in_flight"] == 2
        await vertex.control(latency=0.0)
        assert (await vertex.ask(asking())).status == 200


async def test_counters_tell_what_was_paid_for() -> None:
    """Prompts are identified independently of key order; each has the number of its paid answers."""
    async with emulated(Options(poison={"bad": "500"})) as vertex:
        await vertex.ask(asking("one"))
        await vertex.ask({"messages": [{"content": "one", "role": "user"}], "model": MODEL})
        await vertex.ask(asking("two"))
        await vertex.ask(asking("bad"))
        stats = await vertex.stats()
        assert stats["simulated"] is True
        assert stats["by_status"] == {"200": 3, "500": 1}
        named = ("requests", "distinct_prompts", "answered_prompts", "answers")
        assert [stats[name] for name in named] == [4, 3, 2, 3]
        prompts = (await vertex.request("GET", f"{vertex.address.stats_url}/prompts")).json()
        assert sorted(prompts.values()) == [1, 2]
        await vertex.request("POST", f"{vertex.address.stats_url}/reset")
        emptied = await vertex.stats()
        assert [emptied[name] for name in (*named, "token_refreshes")] == [0] * 5


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/nothing"),
        ("GET", "/stats"),
        ("POST", "/token"),
        ("POST", "/control"),
        ("GET", "/computeMetadata/v1/project/project-id"),
        ("POST", "/v1/projects/p/locations/l/endpoints/openapi/chat/completions"),
        ("GET", "/v1/projects/p/locations/l/endpoints/openapi/models"),
    ],
)
async def test_every_answer_says_that_it_is_simulated(method: str, path: str) -> None:
    """Nobody can take it for the real thing."""
    async with emulated(Options()) as vertex:
        answered = await vertex.request(method, vertex.address.origin + path)
        assert answered.headers["X-Simulated"] == "vertex-emulator"


@pytest.mark.parametrize(
    "changes",
    [
        {"colour": "red"},
        {"port": 80},
        {"faults": {"teapot": 1}},
        {"faults": 3},
        {"quota_rps": "many"},
        {"token_server": "asleep"},
        {"token_life": -1},
        {"models": 3},
        {"retry_after": 5},
        {"retry_info": "soon"},
    ],
)
async def test_a_change_that_cannot_be_is_refused_and_changes_nothing(changes: dict[str, Any]) -> None:
    """All or nothing: what stands beside the mistake is not done either."""
    async with emulated(Options()) as vertex:
        with pytest.raises(ValueError, match=r"\w"):
            await vertex.control(latency=7.0, **changes)
        assert (await vertex.control())["latency"] == 0.0


async def test_a_body_over_the_limit_is_refused_by_the_front_end() -> None:
    """413 with an HTML page."""
    async with emulated(Options()) as vertex:
        url = f"{vertex.address.base_url}/chat/completions"
        headers = {"Authorization": f"Bearer {await vertex.token()}"}
        refused = await vertex.request("POST", url, data=io.BytesIO(b"x" * 20_000_001), headers=headers)
        assert refused.status == 413
        assert b"<html" in refused.body


async def test_stopping_cuts_the_calls_that_wait() -> None:
    """`serve` returns although a call hangs, and that call ends with a broken connection."""
    stop = asyncio.Event()
    announced: asyncio.Future[EmulatorAddress] = asyncio.get_running_loop().create_future()
    with anyio.fail_after(20):
        serving = asyncio.create_task(serve(Options(faults={"hang": 1.0}), announced.set_result, stop))
        async with aiohttp.ClientSession() as session:
            vertex = Vertex(await announced, session)
            hanging = asyncio.create_task(vertex.ask(asking()))
            await until(vertex, "in_flight", 1)
            stop.set()
            await serving
            with pytest.raises(aiohttp.ClientError):
                await hanging


async def test_a_port_that_is_taken_is_an_error() -> None:
    """The caller sees the OSError of the system."""
    async with emulated(Options()) as vertex:
        port = int(vertex.address.origin.rpartition(":")[2])
        with pytest.raises(OSError, match=r"(?i)address"):
            async with emulated(Options(port=port)):
                pass
