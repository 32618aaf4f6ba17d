"""The reply cache as a policy: what is asked once, what makes two requests the same, and who pays. In virtual time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import Ask, Reply, Request, Usage
from pipeline.endpoint.prices import Price, Prices
from pipeline.faults import Fault, InvalidRow, Refused, Unavailable
from pipeline.job.attachments import Attachment
from pipeline.policy import Account, Keys, LocalBudget, Shutdown, cached, charged
from pipeline.totals.counters import Counters
from tests import virtual

anyio_backend = virtual.anyio_backend
pytestmark = pytest.mark.anyio

USAGE = Usage(10, 5, 3, 2)
KEYS = Keys("vertex")


class Shelf:
    """A store in memory, which takes what it is given at once."""

    def __init__(self) -> None:
        self.replies: dict[bytes, Reply] = {}

    async def find(self, _: int, key: bytes) -> Reply | None:
        await anyio.sleep(0.1)
        return self.replies.get(key)

    def hold(self, _: int, key: bytes, reply: Reply) -> None:
        self.replies[key] = reply


class NumberedEndpoint:
    """Answers after a second with the number of the call; its script says which calls fail."""

    def __init__(self, *faults: Fault | None) -> None:
        self.faults = list(faults)
        self.asked: list[int] = []

    async def ask(self, request: Request) -> Reply:
        self.asked.append(request.ordinal)
        fault = self.faults.pop(0) if self.faults else None
        await anyio.sleep(1.0)
        if fault is not None:
            raise fault
        return Reply(b"%d" % len(self.asked), USAGE, cost_usd=0.25, latency_s=1.0)


def request(text: str = "hello", ordinal: int = 0, **more: Any) -> Request:
    return Request(ordinal, {"model": "m", "messages": [{"role": "user", "content": text}], **more})


def over(endpoint: NumberedEndpoint, shelf: Shelf | None = None, counters: Counters | None = None) -> Ask:
    return cached(endpoint.ask, shelf or Shelf(), KEYS.of, counters or Counters())


# Asked once


async def test_the_same_request_is_asked_once_and_says_so_the_second_time() -> None:
    endpoint, counters = NumberedEndpoint(), Counters()
    ask = over(endpoint, counters=counters)
    first, second = await ask(request()), await ask(request(ordinal=1))
    assert endpoint.asked == [0]
    assert (first.from_cache, first.paid, first.paid_usd) == (False, USAGE, 0.25)
    assert second == replace(first, from_cache=True, saved=USAGE, saved_usd=0.25)
    assert (second.paid, second.paid_usd) == (Usage(), 0.0)
    assert counters.cache_hits == 1


async def test_another_request_is_asked() -> None:
    endpoint = NumberedEndpoint()
    ask = over(endpoint)
    await ask(request("one"))
    await ask(request("two", ordinal=1))
    assert endpoint.asked == [0, 1]


async def test_a_fault_is_not_stored() -> None:
    endpoint = NumberedEndpoint(Refused("no"))
    ask = over(endpoint)
    with pytest.raises(Refused):
        await ask(request())
    assert (await ask(request(ordinal=1))).from_cache is False


async def test_a_hit_is_not_charged() -> None:
    endpoint, counters, budget = NumberedEndpoint(), Counters(), LocalBudget(10_000, "tokens")
    account = Account(Prices(assumed=Price(input=1, output=1)), counters, Shutdown(), [budget])
    ask = cached(charged(endpoint.ask, account), Shelf(), KEYS.of, counters)
    for ordinal in range(5):
        await ask(request(ordinal=ordinal))
    assert (budget.spent, counters.unpriced) == (18, 0)
    assert counters.cost_usd == pytest.approx(18 / 1e6)


def test_a_hit_without_usage_or_a_known_price_cost_nothing_now() -> None:
    hit = Reply(b"", from_cache=True)
    assert (hit.paid, hit.paid_usd) == (Usage(), 0.0)


# At one time


async def all_at_once(ask: Ask, count: int) -> dict[int, Reply | Fault]:
    """What becomes of so many rows with the same request."""
    results: dict[int, Reply | Fault] = {}

    async def one(ordinal: int) -> None:
        try:
            results[ordinal] = await ask(request(ordinal=ordinal))
        except Fault as fault:
            results[ordinal] = fault

    async with anyio.create_task_group() as tasks:
        for ordinal in range(count):
            tasks.start_soon(one, ordinal)
    return results


async def test_requests_that_are_alike_at_one_time_are_asked_once() -> None:
    endpoint, counters = NumberedEndpoint(), Counters()
    results = await all_at_once(over(endpoint, counters=counters), 50)
    assert len(endpoint.asked) == 1
    assert {reply.body for reply in results.values() if isinstance(reply, Reply)} == {b"1"}
    assert counters.cache_hits == 49
    assert anyio.current_time() == pytest.approx(1.1)


async def test_when_the_first_fails_the_next_one_asks() -> None:
    endpoint = NumberedEndpoint(Unavailable("down"), Unavailable("down"))
    results = await all_at_once(over(endpoint), 10)
    assert len(endpoint.asked) == 3
    assert sum(isinstance(result, Unavailable) for result in results.values()) == 2
    assert {result.body for result in results.values() if isinstance(result, Reply)} == {b"3"}


async def test_a_refusal_for_good_holds_for_all_that_are_alike_and_wait() -> None:
    endpoint = NumberedEndpoint(Refused("blocked", http_status=400))
    results = await all_at_once(over(endpoint), 10)
    assert len(endpoint.asked) == 1
    assert {repr(result) for result in results.values()} == {"Refused('blocked', http_status=400)"}
    assert len({id(result) for result in results.values()}) == 10


async def test_when_the_one_that_asks_is_cancelled_another_asks() -> None:
    endpoint = NumberedEndpoint()
    ask = over(endpoint)
    replies: list[Reply] = []

    async def impatient() -> None:
        with anyio.move_on_after(0.5):
            await ask(request())

    async def patient(ordinal: int) -> None:
        replies.append(await ask(request(ordinal=ordinal)))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(impatient)
        await anyio.sleep(0.2)
        for ordinal in range(1, 4):
            tasks.start_soon(patient, ordinal)
    assert len(endpoint.asked) == 2
    assert [reply.body for reply in replies] == [b"2"] * 3


async def test_one_that_waits_may_be_cancelled_without_harm() -> None:
    endpoint = NumberedEndpoint()
    ask = over(endpoint)

    async def waiting(ordinal: int, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            await ask(request(ordinal=ordinal))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(waiting, 0, 5.0)
        await anyio.sleep(0.1)
        tasks.start_soon(waiting, 1, 0.5)
    assert endpoint.asked == [0]
    assert (await ask(request(ordinal=2))).from_cache


# What makes two requests the same


async def key(one: Request, **about: Any) -> bytes:
    return await replace(KEYS, **about).of(one)


PAYLOADS = st.dictionaries(
    st.sampled_from(["model", "temperature", "tools", "seed", "stop", "response_format", "extra_body"]),
    st.recursive(st.none() | st.integers(0, 3) | st.text(max_size=3), lambda inner: st.lists(inner, max_size=2)),
)


@given(PAYLOADS, PAYLOADS, st.randoms())
def test_keys_are_equal_when_the_payloads_are_and_only_then(
    one: dict[str, Any], other: dict[str, Any], dice: Any
) -> None:
    async def keys() -> tuple[bytes, bytes, bytes]:
        shuffled = dict(dice.sample(list(one.items()), len(one)))
        return await key(request(**one)), await key(request(**other)), await key(request(ordinal=7, **shuffled))

    first, second, again = virtual.run(keys)
    assert first == again
    assert (first == second) == (one == other)


SAME: Mapping[str, Request] = {
    "the row": replace(request(), ordinal=9),
    "the tier": replace(request(), headers={"X-Vertex-AI-LLM-Shared-Request-Type": "flex"}),
}
DIFFERENT: Mapping[str, tuple[Request, dict[str, Any]]] = {
    "the text": (request("hello!"), {}),
    "the model": (request(model="other"), {}),
    "a parameter": (request(temperature=0.5), {}),
    "a schema": (request(response_format={"type": "json_object"}), {}),
    "tools": (request(tools=[{"type": "function"}]), {}),
    "Google's options": (request(extra_body={"google": {"thinking_config": {}}}), {}),
    "who is asked": (request(), {"endpoint": "emulated"}),
    "the repeat": (request(), {"repeat": 1}),
}


@pytest.mark.parametrize("what", SAME)
async def test_what_does_not_shape_the_answer_is_not_in_the_key(what: str) -> None:
    assert await key(SAME[what]) == await key(request())


@pytest.mark.parametrize("what", DIFFERENT)
async def test_whatever_shapes_the_answer_is_in_the_key(what: str) -> None:
    other, about = DIFFERENT[what]
    assert await key(other, **about) != await key(request())


async def test_the_order_of_a_schemas_fields_is_in_the_key() -> None:
    """A model fills them in in that order: reasons before a verdict are another answer than after it."""
    one = request(response_format={"properties": {"why": {}, "verdict": {}}})
    other = request(response_format={"properties": {"verdict": {}, "why": {}}})
    assert await key(one) != await key(other)


def showing(value: str | bytes, column: str = "photo", kind: Any = "image") -> Request:
    content = [{"type": "text", "text": "What is it?"}, Attachment(kind, column, value)]
    return Request(0, {"messages": [{"role": "user", "content": content}]})


async def test_a_local_file_counts_by_its_content_and_not_by_its_name(tmp_path: Path) -> None:
    for name, content in {"a.png": b"one", "copy.png": b"one", "b.png": b"two"}.items():
        (tmp_path / name).write_bytes(content)
    keys = {name: await key(showing(name), root=tmp_path) for name in ("a.png", "copy.png", "b.png")}
    assert keys["a.png"] == keys["copy.png"] != keys["b.png"]
    assert keys["a.png"] == await key(showing(b"one", column="bytes"))
    (tmp_path / "a.png").write_bytes(b"changed")
    assert await key(showing("a.png"), root=tmp_path) != keys["a.png"]


async def test_media_elsewhere_count_by_their_address_and_kind() -> None:
    one = await key(showing("gs://bucket/a"))
    assert one == await key(showing("gs://bucket/a", column="another"))
    assert one != await key(showing("gs://bucket/b"))
    assert one != await key(showing("gs://bucket/a", kind="media"))


async def test_a_row_whose_media_cannot_be_read_fails_as_it_would_without_a_cache(tmp_path: Path) -> None:
    with pytest.raises(InvalidRow, match="cannot be read: No such file"):
        await key(showing("gone.png"), root=tmp_path)


async def test_a_request_that_is_no_json_fails_as_it_would_without_a_cache() -> None:
    with pytest.raises(InvalidRow, match="cannot be written as JSON"):
        await key(request(seed=2**70))
