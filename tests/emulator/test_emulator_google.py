"""What Google adds: thinking and its summaries, safety settings, cached content, tiers, locations; and nonces."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pipeline.emulator import Options
from pipeline.emulator.protocol.fingerprint import digest_of
from pipeline.emulator.protocol.tiers import SHARED_TYPE, TYPE
from pipeline.emulator.vertex import emulated
from tests.emulator.requests import Json, asking, content, message, refusal

pytestmark = pytest.mark.anyio
CACHED = "projects/p/locations/global/cachedContents/42"
STRICT = [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_LOW_AND_ABOVE"}]


def google(text: str = "Tell me about rivers.", **options: Any) -> Json:
    return asking(text, extra_body={"google": options})


def test_summaries_of_thoughts_stand_before_the_text() -> None:
    """Bare without a marker, in its tags with one; the answer itself is the same as without."""
    plain = message(asking())["content"]
    bare = message(google(thinking_config={"include_thoughts": True}))["content"]
    tagged = message(google(thinking_config={"includeThoughts": True}, thought_tag_marker="think"))["content"]
    assert bare.endswith(plain)
    assert "**" in bare.removesuffix(plain)
    thoughts, _, text = tagged.removeprefix("<think>").partition("</think>")
    assert (text, thoughts.strip()) == (plain, bare.removesuffix(plain).strip())


@pytest.mark.parametrize(
    "options",
    [
        {"thinking_config": {"include_thoughts": False}, "thought_tag_marker": "think"},
        {"thinking_config": {"include_thoughts": True, "thinking_budget": 0}, "thought_tag_marker": "think"},
        {"thought_tag_marker": "think"},
    ],
)
def test_without_thinking_there_are_no_summaries(options: Json) -> None:
    """Neither when they are not requested nor when there are no thoughts."""
    assert message(google(**options))["content"] == message(asking())["content"]


async def test_thoughts_that_are_shown_are_counted_as_thoughts() -> None:
    """Completion tokens are those of the text alone; showing needs no budget."""
    async with emulated(Options()) as vertex:
        plain = (await vertex.ask(asking())).json()["usage"]
        shown = (await vertex.ask(google(thinking_config={"include_thoughts": True}))).json()["usage"]
        assert shown["completion_tokens"] == plain["completion_tokens"]
        assert shown["completion_tokens_details"]["reasoning_tokens"] > 0


@pytest.mark.parametrize("level", ["minimal", "LOW", "medium", "high", "xhigh"])
async def test_a_level_of_thinking_is_taken_in_either_case(level: str) -> None:
    """As the native API names them."""
    async with emulated(Options()) as vertex:
        usage = (await vertex.ask(google(thinking_config={"thinking_level": level}))).json()["usage"]
        assert usage["completion_tokens_details"]["reasoning_tokens"] > 0


async def test_the_strictest_setting_blocks_what_is_called_unsafe() -> None:
    """In one of the three forms; under other settings, and for other prompts, an answer comes."""
    off = [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "OFF"}]
    async with emulated(Options()) as vertex:
        for number in range(6):
            blocked = (await vertex.ask(google(f"Prompt {number} [unsafe]", safety_settings=STRICT))).json()
            choices = blocked.get("choices")
            assert not choices or choices[0]["finish_reason"] == "content_filter"
        assert content(await vertex.ask(google("Prompt [unsafe]", safety_settings=off)))
        assert content(await vertex.ask(google("Prompt", safety_settings=STRICT)))


async def test_cached_content_is_counted_as_part_of_the_prompt() -> None:
    """With its own number beside; a name of another form is refused."""
    async with emulated(Options()) as vertex:
        plain = (await vertex.ask(asking())).json()["usage"]
        usage = (await vertex.ask(google(cached_content=CACHED))).json()["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] - plain["prompt_tokens"] > 0
        assert "cachedContents" in refusal(await vertex.ask(google(cached_content="cachedContents/42")))


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, "ON_DEMAND"),
        ({TYPE: "shared"}, "ON_DEMAND"),
        ({TYPE: "dedicated"}, "PROVISIONED_THROUGHPUT"),
        ({SHARED_TYPE: "priority"}, "ON_DEMAND_PRIORITY"),
        ({TYPE: "shared", SHARED_TYPE: "flex"}, "ON_DEMAND_FLEX"),
    ],
)
async def test_the_usage_tells_the_tier(headers: dict[str, str], expected: str) -> None:
    """As requested by the headers."""
    async with emulated(Options()) as vertex:
        answered = await vertex.ask(asking(), headers=headers)
        assert answered.json()["usage"]["extra_properties"]["google"]["traffic_type"] == expected


@pytest.mark.parametrize("tier", ["flex", "priority"])
async def test_flex_and_priority_are_of_the_global_location_only(tier: str) -> None:
    """Elsewhere 400 FAILED_PRECONDITION; an unknown tier is invalid anywhere."""
    async with emulated(Options()) as vertex:
        elsewhere = await vertex.ask(asking(), headers={SHARED_TYPE: tier}, location="us-central1")
        assert (elsewhere.status, elsewhere.json()[0]["error"]["status"]) == (400, "FAILED_PRECONDITION")
        assert "Invalid value of the header" in refusal(await vertex.ask(asking(), headers={SHARED_TYPE: "x"}))
        assert "Invalid value of the header" in refusal(await vertex.ask(asking(), headers={TYPE: "x"}))


async def test_a_location_can_be_down_while_another_answers() -> None:
    """503 there; the counters tell the locations apart; what was down comes back."""
    async with emulated(Options(down_locations=("us-central1",))) as vertex:
        assert (await vertex.ask(asking(), location="us-central1")).status == 503
        assert (await vertex.ask(asking())).status == 200
        await vertex.control(down_locations=["global"])
        assert (await vertex.ask(asking())).status == 503
        assert (await vertex.ask(asking(), location="us-central1")).status == 200
        stats = await vertex.stats()
        assert stats["by_location"] == {"global": {"200": 1, "503": 1}, "us-central1": {"200": 1, "503": 1}}
        assert stats["by_status"] == {"200": 2, "503": 2}


async def test_a_location_can_have_a_latency_of_its_own() -> None:
    """The others answer while it would not for an hour."""
    async with emulated(Options(latency=3600, location_latency={"global": 0.0})) as vertex:
        assert (await vertex.ask(asking())).status == 200


async def test_capacity_follows_its_schedule() -> None:
    """Nothing is granted at a rate of 0, and all that the window holds at a higher one; a new schedule starts anew."""
    async with emulated(Options(capacity_schedule=((0.0, 0.0),))) as vertex:
        token = await vertex.token()
        assert (await vertex.ask(asking(), token)).status == 429
        await vertex.control(capacity_schedule="0:0.001,3600:100", quota_window_s=3000)
        assert [(await vertex.ask(asking(), token)).status for _ in range(4)] == [200, 200, 200, 429]
        await vertex.control(capacity_schedule=[])
        assert (await vertex.ask(asking(), token)).status == 200


async def test_every_answer_has_a_nonce_of_which_the_server_keeps_a_list() -> None:
    """Ids never come again, streamed or not; the list has each answer that was sent whole, with the prompt's digest."""
    async with emulated(Options(nonce=True, poison={"bad": "500"})) as vertex:
        payloads = [asking("one"), asking("one"), asking("two"), asking("bad")]
        answered = [await vertex.ask(payload) for payload in payloads]
        ids = [each.json()["id"] for each in answered[:3]]
        assert len(set(ids)) == 3
        assert all(re.fullmatch(r"[\w-]{23}", ident) for ident in ids)
        given = await vertex.answers()
        digests = [digest_of(payload["messages"]).hex() for payload in payloads[:3]]
        assert [(each["prompt"], each["id"]) for each in given] == list(zip(digests, ids, strict=True))
        assert sorted(each["at"] for each in given) == [each["at"] for each in given]
        await vertex.request("POST", f"{vertex.address.stats_url}/reset")
        assert await vertex.answers() == []


@pytest.mark.parametrize("changes", [{"down_locations": "global"}, {"capacity_schedule": "soon"}, {"nonce": "yes"}])
async def test_a_change_of_the_new_options_that_cannot_be_is_refused(changes: Json) -> None:
    """By /control, with the reason."""
    async with emulated(Options()) as vertex:
        with pytest.raises(ValueError, match=r"not|written"):
            await vertex.control(**changes)
