"""Function calling: the model asks, these functions answer, until it has what it needs."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline import Job

FACTORS = {"km": 1000.0, "mile": 1609.344, "m": 1.0, "ft": 0.3048, "kg": 1.0, "lb": 0.45359237, "g": 0.001}
WEATHER = {"bergen": ("rain", 9.0), "lisbon": ("sun", 21.5), "oslo": ("snow", -2.0), "cairo": ("sun", 28.0)}


async def weather(city: str) -> dict[str, str | float]:
    """The weather in a city now, from a small made-up table.

    Args:
        city: The city's English name.
    """
    sky, celsius = WEATHER.get(city.lower(), ("clouds", 15.0))
    return {"city": city, "sky": sky, "celsius": celsius}


def convert(
    amount: float,
    source: Literal["km", "mile", "m", "ft", "kg", "lb", "g"],
    target: Literal["km", "mile", "m", "ft", "kg", "lb", "g"],
) -> float:
    """Converts an amount from one unit to another.

    Args:
        amount: How much there is.
        source: The unit that it is in.
        target: The unit that is wanted.
    """
    return round(amount * FACTORS[source] / FACTORS[target], 6)


def stock_price(symbol: Annotated[str, Field(min_length=1, max_length=6)]) -> dict[str, str | float]:
    """The last price of a share, from a small made-up table.

    Args:
        symbol: The share's ticker symbol.
    """
    return {"symbol": symbol.upper(), "price": 10.0 + sum(map(ord, symbol.upper())) % 90, "currency": "USD"}


job = Job(
    name="answer_questions",
    input="data/questions.jsonl",
    model="google/gemini-3.5-flash",
    system="Answer in one sentence. Use the tools for whatever they know.",
    user="{{ question }}",
    tools=[weather, convert, stock_price],
    max_turns=5,
    transcript=True,
    key="id",
)
