"""The cost of a reply in US dollars. An unknown price is None, never 0."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.data import Usage
from pipeline.faults import UsageError

_BATCH = "batch"
_TIERS = {"": 1.0, "on_demand": 1.0, "on_demand_flex": 0.5, "on_demand_priority": 1.8, _BATCH: 0.5}
"""Factors on the standard price by an answer's traffic type. Others (provisioned throughput, off-peak, new types) have
no known price: they are neither free nor at the standard price.

`batch` is our name: Vertex AI reports ON_DEMAND for answers by batch too.

https://cloud.google.com/vertex-ai/generative-ai/pricing
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """US dollars per million tokens. Thinking is billed as output; `cached` defaults to the price of input."""

    input: float
    output: float
    cached: float | None = None


class Prices:
    """The prices of a run: the user's own first, then those of genai-prices, which include tiers by context length.

    `assumed` is the price of calls that have no other: those of an unknown model or an unknown tier.
    """

    def __init__(self, own: Mapping[str, Price] | None = None, assumed: Price | None = None) -> None:
        self._own = dict(own or {})
        self.assumed = assumed

    def cost(self, model: str | None, usage: Usage | None, traffic_type: str | None = None) -> float | None:
        """US dollars for one call; None when its tokens or its price are unknown. Never raises, never negative."""
        if usage is None:
            return None
        tier = (traffic_type or "").strip().casefold()
        factor = _TIERS.get(tier)
        base = None if factor is None else self._standard(model, usage)
        if base is None or factor is None:
            return None if self.assumed is None else _own_cost(self.assumed, usage)
        return base * factor + (self._without_batch_discount(model, usage, factor) if tier == _BATCH else 0.0)

    def _without_batch_discount(self, model: str | None, usage: Usage, factor: float) -> float:
        """What cached input costs more than this share of its price: its own discount applies instead, if it is larger.

        https://cloud.google.com/vertex-ai/generative-ai/docs/multimodal/batch-prediction-gemini
        """
        if not usage.cached:
            return 0.0
        cached = self._standard(model, Usage(input=usage.cached, cached=usage.cached)) or 0.0
        fresh = self._standard(model, Usage(input=usage.cached)) or 0.0
        return max(0.0, min(cached, fresh * factor) - cached * factor)

    def knows(self, model: str | None) -> bool:
        """Whether calls of this model can be priced."""
        return self.cost(model, Usage(input=1, output=1)) is not None

    def _standard(self, model: str | None, usage: Usage) -> float | None:
        if model is None:
            return None
        name = model.removeprefix("google/")
        own = self._own.get(model) or self._own.get(name)
        return _own_cost(own, usage) if own else _listed_cost(name, usage)


def load_prices(path: Path) -> dict[str, Price]:
    """The prices in a TOML file: a table per model, with `input`, `output` and `cached` dollars per million tokens."""
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"the prices {str(path)!r} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from None
    return prices_of(tables, str(path))


def prices_of(tables: Mapping[str, Any], where: str) -> dict[str, Price]:
    """Prices by model. Raises `UsageError` for an unknown name or a value that is not a price."""
    known = {field.name for field in fields(Price)}
    for model, table in tables.items():
        numbers = isinstance(table, Mapping) and all(map(_is_price, table.values()))
        if not numbers or not {"input", "output"} <= set(table) <= known:
            raise UsageError(
                f"{where}: the price of {model!r} needs `input` and `output` (and may have `cached`), in numbers"
            )
    return {model: Price(**table) for model, table in tables.items()}


def parse_price(text: str) -> Price:
    """The price from `IN,OUT`, in dollars per million tokens. Raises `UsageError`."""
    try:
        read, written = (float(number) for number in text.split(","))
    except ValueError:
        read = written = math.nan
    if not (_is_price(read) and _is_price(written)):
        raise UsageError(f"{text!r} is not IN,OUT: dollars per million tokens of input and output, as in 0.30,2.50")
    return Price(input=read, output=written)


def _is_price(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _own_cost(price: Price, usage: Usage) -> float:
    cached = price.input if price.cached is None else price.cached
    fresh = max(0, usage.input - usage.cached)
    return (fresh * price.input + usage.cached * cached + (usage.output + usage.reasoning) * price.output) / 1e6


_SHORT = 100_000
"""Input tokens up to which every listed model has one price; beyond, tiers by context length begin."""


def _listed_cost(name: str, usage: Usage) -> float | None:
    short = _short_price(name)
    if short is None:
        return None
    return _own_cost(short, usage) if usage.input <= _SHORT else _looked_up(name, usage)


@lru_cache(maxsize=64)
def _short_price(name: str) -> Price | None:
    """The price of short calls, looked up once: a lookup costs more than the rest of a row's accounting."""
    kinds = (Usage(input=_SHORT), Usage(output=_SHORT), Usage(input=_SHORT, cached=_SHORT))
    costs = [cost for usage in kinds if (cost := _looked_up(name, usage)) is not None]
    if len(costs) < len(kinds):
        return None
    read, written, cached = (1e6 / _SHORT * cost for cost in costs)
    return Price(input=read, output=written, cached=cached)


def _looked_up(name: str, usage: Usage) -> float | None:
    from genai_prices import Usage as Tokens
    from genai_prices import calc_price

    try:
        tokens = Tokens(
            input_tokens=usage.input,
            output_tokens=usage.output + usage.reasoning,
            cache_read_tokens=min(usage.cached, usage.input),
        )
        return float(calc_price(tokens, name, provider_id="google").total_price)
    except (LookupError, ValueError, ArithmeticError):
        # genai-prices does not know the model, or rejects the counts: the price is unknown.
        return None
