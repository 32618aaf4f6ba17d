"""Faults on demand."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.emulator import Options
from pipeline.emulator.server.faults import chosen, fitting
from pipeline.emulator.vertex import ReceivedResponse, Vertex, emulated

pytestmark = pytest.mark.anyio
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
PAYLOAD = {
    "model": "google/gemini-test",
    "messages": [{"role": "user", "content": "Who is Ana Sousa?"}],
    "response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": SCHEMA}},
}
PAGES = ("408", "413", "502")
ERRORS = ("400", "401", "403", "404", "429", "499", "500", "503", "504")
BROKEN = ("drop", "partial", "stream_cut")
LACKING = ("no_choices", "empty_choices", "no_message", "length", "content_filter", "no_usage")
DIGESTS = st.binary(min_size=16, max_size=16)


async def met(kind: str) -> tuple[ReceivedResponse, dict[str, Any]]:
    async with emulated(Options(faults={kind: 1.0})) as vertex:
        return await vertex.ask(PAYLOAD), await vertex.stats()


def first_choice(answered: ReceivedResponse) -> Any:
    return answered.json()["choices"][0]


@pytest.mark.parametrize("kind", ERRORS)
async def test_an_error_status_comes_with_its_canonical_code(kind: str) -> None:
    """The body names the same status as the header."""
    answered, stats = await met(kind)
    error = answered.json()[0]["error"]
    assert (answered.status, error["code"]) == (int(kind), int(kind))
    assert error["status"].isupper()
    assert (stats["by_status"], stats["answers"]) == ({kind: 1}, 0)


@pytest.mark.parametrize("kind", PAGES)
async def test_the_front_end_answers_in_html(kind: str) -> None:
    """No JSON to be found."""
    answered, stats = await met(kind)
    assert (answered.status, answered.headers["Content-Type"]) == (int(kind), "text/html; charset=UTF-8")
    assert stats["answers"] == 0


@pytest.mark.parametrize("kind", BROKEN)
async def test_a_broken_connection_is_not_an_answer(kind: str) -> None:
    """The client sees an error of the transport; the prompt counts as unanswered."""
    async with emulated(Options(faults={kind: 1.0})) as vertex:
        with pytest.raises(aiohttp.ClientError):
            await vertex.ask(PAYLOAD)
        stats = await vertex.stats()
        assert (stats["by_status"], stats["answers"]) == ({"dropped": 1}, 0)


async def test_bodies_that_are_no_completion_come_with_status_200() -> None:
    """HTML, a list with an error, broken JSON and nothing; none of them counts as an answer."""
    bodies = {kind: await met(kind) for kind in ("html200", "list200", "truncated", "empty")}
    assert {answered.status for answered, _ in bodies.values()} == {200}
    assert {stats["answers"] for _, stats in bodies.values()} == {0}
    assert bodies["html200"][0].headers["Content-Type"].startswith("text/html")
    assert bodies["list200"][0].json()[0]["error"]["code"] == 429
    assert bodies["empty"][0].body == b""
    with pytest.raises(ValueError, match=r"\w"):
        bodies["truncated"][0].json()


async def test_completions_can_lack_their_parts() -> None:
    """No choices, empty choices, a choice without message, without content, without usage."""
    bodies = {kind: (await met(kind))[0] for kind in LACKING}
    assert "choices" not in bodies["no_choices"].json()
    assert bodies["empty_choices"].json()["choices"] == []
    assert "message" not in first_choice(bodies["no_message"])
    assert first_choice(bodies["length"])["finish_reason"] == "length"
    assert "content" not in first_choice(bodies["length"])["message"]
    assert first_choice(bodies["content_filter"])["finish_reason"] == "content_filter"
    assert first_choice(bodies["content_filter"])["message"]["content"] is None
    assert "usage" not in bodies["no_usage"].json()
    assert bodies["length"].json()["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0


async def test_answers_can_be_of_the_wrong_form() -> None:
    """Fenced, no JSON, another schema's; a signature of 10 kB beside a right answer."""
    fenced = first_choice((await met("fenced"))[0])["message"]["content"]
    assert fenced.startswith("```json\n")
    assert json.loads(fenced.removeprefix("```json\n").removesuffix("\n```"))["name"] == "Ana Sousa"
    with pytest.raises(ValueError, match=r"\w"):
        json.loads(first_choice((await met("invalid_json"))[0])["message"]["content"])
    assert "name" not in json.loads(first_choice((await met("wrong_schema"))[0])["message"]["content"])
    signed = first_choice((await met("big_signature"))[0])["message"]
    assert json.loads(signed["content"])["name"] == "Ana Sousa"
    assert len(signed["extra_content"]["google"]["thought_signature"]) > 10_000


async def test_a_prompt_is_blocked_in_one_of_three_forms() -> None:
    """Without choices, with none, or filtered: each form occurs, and always the same for a prompt."""

    def form(answered: ReceivedResponse) -> str:
        choices = answered.json().get("choices")
        return "missing" if choices is None else str(choices[0]["finish_reason"]) if choices else "empty"

    async with emulated(Options(faults={"blocked": 1.0})) as vertex:
        prompts = [{**PAYLOAD, "messages": [{"role": "user", "content": f"prompt {i}"}]} for i in range(20)]
        forms = [form(await vertex.ask(prompt)) for prompt in prompts]
        assert set(forms) == {"missing", "empty", "content_filter"}
        assert [form(await vertex.ask(prompt)) for prompt in prompts] == forms


async def test_poison_strikes_every_time_and_only_its_prompt() -> None:
    """The same row fails forever; its neighbours do not."""
    async with emulated(Options(poison={"Ana": "500"})) as vertex:
        assert [(await vertex.ask(PAYLOAD)).status for _ in range(5)] == [500] * 5
        other = {**PAYLOAD, "messages": [{"role": "user", "content": "Who is Tom?"}]}
        assert (await vertex.ask(other)).status == 200


async def statuses(vertex: Vertex, rounds: int) -> list[int]:
    token = await vertex.token()
    return [(await vertex.ask(PAYLOAD, token)).status for _ in range(rounds)]


async def test_a_retry_may_pass_and_a_rerun_meets_the_same_faults() -> None:
    """The faults of a prompt differ from try to try, and are the same in the next emulator with this seed."""
    runs = []
    for _ in range(2):
        async with emulated(Options(faults={"503": 0.5}, seed=3)) as vertex:
            runs.append(await statuses(vertex, 12))
    assert runs[0] == runs[1]
    assert set(runs[0]) == {200, 503}


def test_shares_are_kept() -> None:
    """Over many prompts each kind gets its share, within five standard deviations."""
    shares = {"503": 0.2, "hang": 0.05}
    count: Counter[str | None] = Counter(
        chosen(shares, {}, prompt="", digest=number.to_bytes(16, "big"), repeat=0, seed=0) for number in range(10_000)
    )
    for kind, share in shares.items():
        assert abs(count[kind] - 10_000 * share) < 5 * (10_000 * share * (1 - share)) ** 0.5


@given(digest=DIGESTS, repeat=st.integers(0, 2**32 - 1), seed=st.integers(-(2**63), 2**63 - 1))
def test_a_share_of_one_strikes_always_and_of_zero_never(digest: bytes, repeat: int, seed: int) -> None:
    """The ends of the scale are exact."""
    always = chosen({"500": 0.0, "503": 1.0}, {}, prompt="", digest=digest, repeat=repeat, seed=seed)
    assert always == "503"
    assert chosen({}, {}, prompt="", digest=digest, repeat=repeat, seed=seed) is None


@pytest.mark.parametrize(
    ("kind", "streamed", "unstreamed"),
    [
        ("stream_cut", "stream_cut", "partial"),
        ("stream_stall", "stream_stall", "hang"),
        ("stream_error", "stream_error", "503"),
        ("partial", "stream_cut", "partial"),
        ("429", "429", "429"),
        (None, None, None),
    ],
)
def test_faults_of_streams_have_their_likes_outside(kind: str | None, streamed: str, unstreamed: str) -> None:
    """One kind serves requests that stream and those that do not."""
    assert (fitting(kind, stream=True), fitting(kind, stream=False)) == (streamed, unstreamed)
