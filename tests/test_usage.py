"""What a server says that a call used, however it says it: typed, clamped or unknown; priced without an exception."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.data import Usage
from pipeline.endpoint.prices import Price, Prices, parse_price
from pipeline.endpoint.usage import MOST_TOKENS, read_usage
from pipeline.faults import UsageError

PRO = "google/gemini-2.5-pro"


def counts(prompt: object = 10, completion: object = 5, cached: object = None, **rest: object) -> dict[str, object]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        **rest,
    }


@pytest.mark.parametrize("four", ["4", " 4 ", "4.0", "4e0", 4.0, 4.7, "4.2"])
def test_m2_numbers_as_text_and_with_a_fraction_are_numbers(four: object) -> None:
    assert read_usage(counts(four, four, four)) == Usage(4, 4, 0, 4)


@pytest.mark.parametrize("odd", [-1, -0.5, "-3", True, "many", "", "nan", "inf", float("nan"), [], {}, [3], "9" * 5000])
def test_m2_half_a_usage_is_none_unless_the_total_gives_the_rest(odd: object) -> None:
    """It would price half a call, and a budget would hold by half."""
    assert read_usage(counts(odd)) is None
    assert read_usage(counts(completion=odd)) is None
    assert read_usage(counts(odd, total_tokens=19)) == Usage(14, 5)
    assert read_usage(counts(completion=odd, total_tokens="19")) == Usage(10, 9)
    assert read_usage(counts(completion=odd, total_tokens=3)) is None


def test_m2_a_completion_that_is_absent_is_none_of_the_tokens() -> None:
    """Google leaves zeros out, as for a prompt that was blocked."""
    assert read_usage({"prompt_tokens": 10}) == Usage(10)
    assert read_usage({"completion_tokens": 10}) is None
    assert read_usage({"total_tokens": 10}) is None


@pytest.mark.parametrize("cached", [11, 10**9, 2**63, "11", 1e300])
def test_m2_cached_tokens_are_never_more_than_the_input(cached: object) -> None:
    usage = read_usage(counts(cached=cached))
    assert usage == Usage(10, 5, 0, 10)
    assert (Prices().cost(PRO, usage) or 0) > 0


@pytest.mark.parametrize("cached", [-1, -(10**9), "x", None, []])
def test_m2_cached_tokens_that_are_no_number_are_none(cached: object) -> None:
    assert read_usage(counts(cached=cached)) == Usage(10, 5)


NUMBERS = st.integers() | st.floats() | st.integers().map(str) | st.floats().map(str)
ODD: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
DETAILS = ODD | st.dictionaries(st.sampled_from(["cached_tokens", "reasoning_tokens"]), ODD | NUMBERS)
USAGES = ODD | st.fixed_dictionaries(
    {},
    optional={
        "prompt_tokens": ODD | NUMBERS,
        "completion_tokens": ODD | NUMBERS,
        "total_tokens": ODD | NUMBERS,
        "prompt_tokens_details": DETAILS,
        "completion_tokens_details": DETAILS,
    },
)


@settings(max_examples=500)
@given(USAGES, st.sampled_from([PRO, "gemini-2.5-flash", "mine", "no-such-model", "", None]), st.text() | st.none())
@example(counts(200_000, 1, 300_000), PRO, None)
@example(counts(2**63 - 1, 2**63 - 1, 2**63 - 1, total_tokens=1), PRO, "ON_DEMAND")
def test_m2_whatever_a_usage_holds_is_counted_within_bounds_and_priced_without_an_exception(
    said: object, model: str | None, traffic: str | None
) -> None:
    usage = read_usage(said)
    cost = Prices({"mine": Price(input=1, output=2)}).cost(model, usage, traffic)
    if usage is None:
        assert cost is None
        return
    kinds = (usage.input, usage.output, usage.reasoning, usage.cached)
    assert all(type(kind) is int and 0 <= kind <= MOST_TOKENS for kind in kinds)
    assert usage.cached <= usage.input
    assert cost is None or 0 <= cost < float("inf")
    orjson.dumps([1000 * kind for kind in kinds])


def test_an_assumed_price_stands_in_for_every_unknown_one_and_for_no_other() -> None:
    assumed, usage = Prices(assumed=Price(input=1, output=3)), Usage(10**6, 10**6)
    assert assumed.cost("no-such-model", usage) == assumed.cost(None, usage) == pytest.approx(4.0)
    assert assumed.cost(PRO, usage, "ON_DEMAND_OFFPEAK") == pytest.approx(4.0)
    assert assumed.cost(PRO, usage) == Prices().cost(PRO, usage)
    assert assumed.cost("no-such-model", None) is None


def test_a_price_is_two_numbers() -> None:
    assert parse_price("0.3,2.5") == parse_price(" 0.30 , 2.50 ") == Price(input=0.3, output=2.5)


@pytest.mark.parametrize("text", ["", "1", "1,2,3", "a,b", "1,", "-1,2", "nan,1", "1,inf"])
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match=r"IN,OUT.*0\.30,2\.50"):
        parse_price(text)
