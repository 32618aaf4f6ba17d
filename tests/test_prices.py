"""Prices: the arithmetic of Vertex's bill, tiers, own prices; and that an unknown price is None and never 0."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import Usage
from pipeline.endpoint.prices import Price, Prices, load_prices, prices_of
from pipeline.faults import UsageError

MILLION = 1_000_000
FLASH = "gemini-2.5-flash"
OWN = Price(input=2.0, output=10.0, cached=0.5)

counts = st.integers(0, 10**7)
usages = st.builds(
    lambda fresh, cached, output, reasoning: Usage(fresh + cached, output, reasoning, cached),
    counts,
    counts,
    counts,
    counts,
)


def cost(model: str, usage: Usage, traffic: str | None = None) -> float | None:
    return Prices().cost(model, usage, traffic)


def test_reasoning_is_billed_as_output() -> None:
    assert cost(FLASH, Usage(reasoning=1000)) == cost(FLASH, Usage(output=1000)) == pytest.approx(0.0025)


def test_cached_input_is_cheaper_and_part_of_the_input() -> None:
    assert cost(FLASH, Usage(input=1000)) == pytest.approx(0.3 / 1000)
    assert cost(FLASH, Usage(input=1000, cached=400)) == pytest.approx((600 * 0.3 + 400 * 0.03) / MILLION)


def test_a_call_is_the_sum_of_its_kinds_of_tokens() -> None:
    usage = Usage(input=1200, output=300, reasoning=500, cached=200)
    assert cost(FLASH, usage) == pytest.approx((1000 * 0.3 + 200 * 0.03 + 800 * 2.5) / MILLION)


def test_the_discounts_of_a_batch_and_of_cached_input_do_not_stack() -> None:
    usage = Usage(input=1000, output=300, cached=400)
    assert cost(FLASH, usage, "BATCH") == pytest.approx((0.5 * (600 * 0.3 + 300 * 2.5) + 400 * 0.03) / MILLION)


def test_cached_input_without_a_price_of_its_own_costs_half_in_a_batch() -> None:
    prices = Prices({"m": Price(input=2.0, output=10.0)})
    assert prices.cost("m", Usage(input=1000, cached=400), "BATCH") == pytest.approx(1000 * 1.0 / MILLION)


@pytest.mark.parametrize("model", [FLASH, "gemini-2.5-pro", "gemini-2.5-flash-lite"])
def test_the_publisher_before_a_models_name_changes_nothing(model: str) -> None:
    usage = Usage(input=1000, output=100)
    assert cost(f"google/{model}", usage) == cost(model, usage) is not None


@pytest.mark.parametrize(
    ("traffic", "factor"),
    [
        (None, 1.0),
        ("", 1.0),
        ("ON_DEMAND", 1.0),
        ("on_demand", 1.0),
        ("ON_DEMAND_FLEX", 0.5),
        ("BATCH", 0.5),
        ("ON_DEMAND_PRIORITY", 1.8),
    ],
)
def test_the_traffic_type_makes_the_tier(traffic: str | None, factor: float) -> None:
    usage = Usage(input=1000, output=100)
    assert cost(FLASH, usage, traffic) == pytest.approx((1000 * 0.3 + 100 * 2.5) / MILLION * factor)
    assert Prices({FLASH: OWN}).cost(FLASH, usage, traffic) == pytest.approx(3000 / MILLION * factor)


@pytest.mark.parametrize("traffic", ["PROVISIONED_THROUGHPUT", "TRAFFIC_TYPE_UNSPECIFIED", "ON_DEMAND_OFFPEAK", "NEW"])
def test_a_traffic_type_without_a_known_price_has_none(traffic: str) -> None:
    assert cost(FLASH, Usage(input=1), traffic) is None
    assert Prices({FLASH: OWN}).cost(FLASH, Usage(input=1), traffic) is None


@pytest.mark.parametrize(
    ("model", "short", "long"),
    [
        ("gemini-2.5-pro", (1.25, 10.0, 0.125), (2.5, 15.0, 0.25)),
        ("gemini-3.1-pro-preview", (2.0, 12.0, 0.2), (4.0, 18.0, 0.4)),
    ],
)
def test_long_contexts_cost_more_from_200000_tokens_of_input_on(
    model: str, short: tuple[float, float, float], long: tuple[float, float, float]
) -> None:
    """All tokens of such a call, output and cached ones too."""
    for tokens, prices in [(1000, short), (100_001, short), (200_000, short), (200_001, long), (900_000, long)]:
        usage = Usage(input=tokens, output=700, reasoning=300, cached=500)
        expected = (tokens - 500) * prices[0] + 1000 * prices[1] + 500 * prices[2]
        assert cost(model, usage) == pytest.approx(expected / MILLION), tokens


def test_a_model_without_tiers_costs_the_same_per_token_at_any_length() -> None:
    assert cost(FLASH, Usage(input=10**6)) == pytest.approx(0.3)


@pytest.mark.parametrize("model", [None, "", "no-such-model", "google/no-such-model"])
@pytest.mark.parametrize("usage", [Usage(), Usage(input=1000), Usage(input=10**6)])
def test_an_unknown_model_has_no_price(model: str | None, usage: Usage) -> None:
    assert Prices().cost(model, usage) is None
    assert not Prices().knows(model or "")


def test_what_is_known_is_known_under_both_names() -> None:
    assert Prices().knows(FLASH)
    assert Prices().knows(f"google/{FLASH}")


@given(usages)
def test_own_prices_are_linear_and_never_negative(usage: Usage) -> None:
    prices = Prices({"mine": OWN})
    once, twice = prices.cost("mine", usage), prices.cost("mine", usage + usage)
    assert once is not None
    assert once >= 0
    assert twice == pytest.approx(2 * once)


@given(usages)
def test_own_cached_input_costs_what_input_does_unless_told(usage: Usage) -> None:
    told = Prices({"mine": Price(input=2.0, output=1.0, cached=2.0)})
    assert Prices({"mine": Price(input=2.0, output=1.0)}).cost("mine", usage) == pytest.approx(told.cost("mine", usage))


@pytest.mark.parametrize("asked", [FLASH, f"google/{FLASH}"])
def test_own_prices_come_before_the_listed_ones(asked: str) -> None:
    assert Prices({FLASH: OWN}).cost(asked, Usage(input=MILLION)) == pytest.approx(2.0)


def test_own_prices_under_the_full_name_come_before_those_under_the_short_one() -> None:
    prices = Prices({FLASH: OWN, f"google/{FLASH}": Price(input=7.0, output=1.0)})
    assert prices.cost(f"google/{FLASH}", Usage(input=MILLION)) == pytest.approx(7.0)


def test_a_price_of_0_is_a_price() -> None:
    assert Prices({"free": Price(input=0, output=0)}).cost("free", Usage(input=1000)) == 0.0


def test_a_file_gives_a_table_for_each_model(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text('["google/mine"]\ninput = 1\noutput = 2.5\n[other]\ninput = 1\noutput = 2\ncached = 0.1\n')
    assert load_prices(path) == {
        "google/mine": Price(input=1, output=2.5),
        "other": Price(input=1, output=2, cached=0.1),
    }


@pytest.mark.parametrize("content", [b"[mine\n", b"\xff\xfe", b"input ="])
def test_a_file_that_is_not_toml_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"prices.toml is not TOML"):
        load_prices(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none.toml' cannot be read: No such file"):
        load_prices(tmp_path / "none.toml")


@pytest.mark.parametrize(
    "table",
    [
        "mine = 3",
        "[mine]\ninput = 1",
        "[mine]\noutput = 1",
        "[mine]\ninput = 1\noutput = 2\noutptu = 3",
        '[mine]\ninput = "1"\noutput = 2',
        "[mine]\ninput = true\noutput = 2",
        "[mine]\ninput = -1\noutput = 2",
        "[mine]\ninput = nan\noutput = 2",
        "[mine]\ninput = 1\noutput = inf",
        "[mine.deeper]\ninput = 1\noutput = 2",
    ],
)
def test_anything_but_amounts_by_their_names_is_refused_by_file_and_model(table: str, tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(table)
    with pytest.raises(UsageError, match=r"prices.toml: the price of 'mine' needs `input` and `output`"):
        load_prices(path)


def test_no_prices_are_prices_too() -> None:
    assert prices_of({}, "`prices`") == {}
