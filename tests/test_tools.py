"""Tools are described by signatures and docstrings in the schema that the endpoint takes, and called with care."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from pipeline.faults import UsageError
from pipeline.job.tools import ToolError, parameters, result_text, tool_of

Json = dict[str, Any]


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Location(BaseModel):
    """A place."""

    x: float
    label: str | None = None


class Circle(BaseModel):
    kind: Literal["circle"]
    centre: Location


class Square(BaseModel):
    kind: Literal["square"]
    corners: list[Location]


class Tree(BaseModel):
    children: list[Tree]


POINT = {
    "type": "object",
    "description": "A place.",
    "properties": {"x": {"type": "number"}, "label": {"type": "string", "nullable": True}},
    "required": ["x"],
}


async def weather(  # noqa: D417 - two are not told on purpose
    city: str,
    unit: Literal["c", "f"] = "c",
    days: Annotated[int, Field(ge=1, le=7, description="How far ahead.")] = 1,
    note: str | None = None,
) -> dict[str, int]:
    """Says how warm it is.

    Only for towns.

    Args:
        city: The town's name,
            in English.
        unit: Of the degrees.

    Returns:
        Degrees by day.
    """
    return {city: days, unit: len(note or "")}


def properties_of(function: Callable[..., Any]) -> Json:
    schema = tool_of(function).definition["function"]["parameters"]
    found: Json = schema["properties"]
    return found


def words(schema: object) -> set[str]:
    """Every keyword of a schema, but not the names of properties."""
    if isinstance(schema, list):
        return set().union(*map(words, schema))
    if not isinstance(schema, Mapping):
        return set()
    inner = [words(list(value.values()) if key == "properties" else value) for key, value in schema.items()]
    return set(schema).union(*inner)


def test_a_function_is_described_by_its_signature_and_its_docstring() -> None:
    assert tool_of(weather).definition == {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Says how warm it is.\nOnly for towns.\nReturns: Degrees by day.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "The town's name,\nin English."},
                    "unit": {"type": "string", "enum": ["c", "f"], "description": "Of the degrees."},
                    "days": {"type": "integer", "minimum": 1, "maximum": 7, "description": "How far ahead."},
                    "note": {"type": "string", "nullable": True},
                },
                "required": ["city"],
            },
        },
    }


def test_a_function_without_parameters_or_docstring_is_a_tool() -> None:
    def now() -> str:
        return "noon"

    function = tool_of(now).definition["function"]
    assert function == {"name": "now", "description": ""}


def test_models_inside_are_put_in_place() -> None:
    def draw(at: Location, path: list[Location], maybe: Location | None = None) -> None:
        """Draws."""

    assert properties_of(draw) == {
        "at": POINT,
        "path": {"type": "array", "items": POINT},
        "maybe": {**POINT, "nullable": True},
    }


def test_nothing_is_left_that_the_endpoint_answers_with_a_400() -> None:
    def draw(
        shape: Annotated[Circle | Square, Field(discriminator="kind")],
        pair: tuple[Location, int],
        other: Circle | Square | None,
        named: dict[str, Location],
        colour: Colour = Colour.RED,
        few: Annotated[list[str], Field(examples=[["a"]])] = [],  # noqa: B006 - a default to be left out
    ) -> None:
        """Draws."""

    schema = tool_of(draw).definition["function"]["parameters"]
    refused = {"$defs", "$ref", "default", "title", "examples", "const", "discriminator", "oneOf", "prefixItems"}
    assert not words(schema) & (refused | {"additionalProperties"})
    found = schema["properties"]
    assert [one["properties"]["kind"]["enum"] for one in found["shape"]["anyOf"]] == [["circle"], ["square"]]
    assert found["pair"]["items"] == {"anyOf": [POINT, {"type": "integer"}]}
    assert [one["nullable"] for one in found["other"]["anyOf"]] == [True, True]
    assert found["colour"]["enum"] == ["red", "blue"]


def test_a_property_may_have_the_name_of_a_keyword() -> None:
    def show(title: str, default: str, examples: int) -> None:
        """Shows."""

    assert list(properties_of(show)) == ["title", "default", "examples"]


def test_a_model_is_a_tool_without_a_function() -> None:
    tool = tool_of(Location)
    assert (tool.name, tool.description, tool.function) == ("Location", "A place.", None)
    assert parameters(Location) == POINT


def untyped(city) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Says nothing."""


def many(*cities: str) -> None:
    """Says nothing."""


def named(**cities: str) -> None:
    """Says nothing."""


def calling_back(back: Callable[[], int]) -> None:
    """Says nothing."""


def climbing(tree: Tree) -> None:
    """Says nothing."""


def private(_city: str) -> None:
    """Says nothing."""


@pytest.mark.parametrize("function", [untyped, many, named, calling_back, climbing, private])
def test_a_parameter_that_cannot_be_described_is_misuse(function: Callable[..., Any]) -> None:
    with pytest.raises(UsageError):
        _ = tool_of(function).definition


def test_a_recursive_model_is_misuse() -> None:
    with pytest.raises(UsageError, match="recursive"):
        parameters(Tree)


def test_arguments_are_validated_into_the_types_of_the_parameters() -> None:
    def draw(at: Location, colour: Colour, size: int = 2) -> None:
        """Draws."""

    arguments = tool_of(draw).validated('{"at": {"x": 1}, "colour": "blue"}')
    assert arguments == {"at": Location(x=1.0), "colour": Colour.BLUE, "size": 2}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("{}", "city: Field required"),
        ("", "city: Field required"),
        ('{"city": 3}', "city: "),
        ('{"city": "Rome", "days": 8}', "days: "),
        ('{"city": "Rome", "unit": "k"}', "unit: "),
        ('{"city": "Rome", "where": 1}', "where: "),
        ('{"city": "Ro', "arguments: Invalid JSON"),
        ("null", "arguments: "),
        ("[]", "arguments: "),
    ],
)
def test_wrong_arguments_are_a_tool_error_that_names_them(arguments: str, says: str) -> None:
    with pytest.raises(ToolError) as caught:
        tool_of(weather).validated(arguments)
    assert str(caught.value).startswith(f"wrong arguments for weather: {says}")


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ("as it is é", "as it is é"),
        (None, "null"),
        ({"é": [1, True]}, '{"é": [1, true]}'),
        (Location(x=1), '{"x":1.0,"label":null}'),
        (Colour.RED, '"Colour.RED"'),
    ],
)
def test_a_result_is_text_as_it_is_or_json(result: object, text: str) -> None:
    assert result_text(result) == text


def test_a_definition_is_json() -> None:
    definition = tool_of(weather).definition
    assert json.loads(json.dumps(definition)) == definition
