"""A tool's parameters are in Gemini's dialect, whatever their types, and what obeys them is a valid call."""

from __future__ import annotations

import contextlib
import datetime as dt
import enum
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, HttpUrl
from typing_extensions import TypedDict

from pipeline.emulator.protocol.dialect import check_parameters, check_structured
from pipeline.faults import UsageError
from pipeline.job.tools import ToolError, tool_of
from pipeline.schema.dialects import standard
from pipeline.schema.from_pydantic import shape_of
from pipeline.schema.tool_parameters import gemini_parameters
from tests.obedient import answers
from tests.test_obedience import ANNOTATIONS, OFTEN, Tree


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Meal(BaseModel):
    """What is eaten."""

    name: str
    grams: Annotated[int, Field(gt=0, le=900)] = 100
    extra: dict[str, int] = {}


class Choices(TypedDict, total=False):
    loud: bool


class Spot(NamedTuple):
    x: int
    y: int


@dataclass
class Box:
    sides: list[float]


class Empty(BaseModel):
    pass


def declared(annotation: Any) -> Any:
    schema = gemini_parameters(pydantic.create_model("f", x=(annotation, ...)).model_json_schema())
    assert schema is not None
    return schema["properties"]["x"]


T = TypeVar("T")
Maybe: Any = T | None

KINDS: list[Any] = [
    *(annotation for annotation in ANNOTATIONS if annotation is not Tree),
    Level, Meal, Choices, Spot, Box, Empty, HttpUrl, Path, list[Meal | None], dict[str, dict[str, Meal]],
    Annotated[float, Field(multiple_of=0.5, gt=0)], Annotated[int | str, Field(description="either")],
    Annotated[Meal | None, Field(description="one")], Mapping[str, list[int]], Literal["", "a"], Literal[1.5, "b"],
    tuple[int, Meal | None], Annotated[list[Level], Field(max_length=3)], dict[Level, str],
]  # fmt: skip


@pytest.mark.parametrize("annotation", KINDS, ids=str)
def test_no_type_makes_parameters_that_gemini_refuses(annotation: Any) -> None:
    check_parameters("f", 0, {"type": "object", "properties": {"x": declared(annotation)}})
    check_parameters("f", 0, {"type": "object", "properties": {"x": declared(Maybe[annotation])}})


@pytest.mark.parametrize(
    ("annotation", "schema"),
    [
        (Annotated[int, Field(gt=0, lt=40)], {"type": "integer", "minimum": 1, "maximum": 39}),
        (
            Annotated[float, Field(gt=0, description="How far.")],
            {"type": "number", "minimum": 0, "description": "How far. (greater than 0)"},
        ),
        (Annotated[float, Field(multiple_of=0.5)], {"type": "number", "description": "a multiple of 0.5"}),
        (set[str], {"type": "array", "items": {"type": "string"}, "description": "without repetitions"}),
        (dt.date, {"type": "string", "description": "a date, YYYY-MM-DD"}),
        (dt.datetime, {"type": "string", "format": "date-time"}),
        (uuid.UUID, {"type": "string", "description": "a UUID"}),
        (
            Annotated[int | str | None, Field(description="Either.")],
            {
                "anyOf": [
                    {"type": "integer", "description": "Either.", "nullable": True},
                    {"type": "string", "description": "Either.", "nullable": True},
                ]
            },
        ),
        (Level, {"type": "integer", "minimum": 1, "maximum": 2, "description": "one of 1, 2"}),
        (Literal["a", "b"], {"type": "string", "enum": ["a", "b"]}),
        (Literal["", "a"], {"type": "string", "description": 'one of "", "a"'}),
        (Literal["a"], {"type": "string", "enum": ["a"]}),
        (Literal[True], {"type": "boolean", "description": "always true"}),
        (Annotated[str, Field(pattern="^a")], {"type": "string", "description": "matching the regular expression ^a"}),
        (
            dict[str, int],
            {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"key": {"type": "string"}, "value": {"type": "integer"}},
                    "required": ["key", "value"],
                },
                "description": "the entries of an object, each key once",
            },
        ),
        (
            Any,
            {
                "anyOf": [
                    {"type": "string", "description": "text, or a list or an object as JSON text"},
                    {"type": "number"},
                    {"type": "boolean"},
                ]
            },
        ),
    ],
    ids=str,
)
def test_what_the_dialect_has_no_word_for_is_told_in_the_description(annotation: Any, schema: Any) -> None:
    assert declared(annotation) == schema


OF_D = {"type": "object", "properties": {"d": {"type": "string"}}}


def test_the_parameters_of_a_schema_by_hand_are_in_the_dialect() -> None:
    """Whatever a model adds to its schema: `allOf`, types in lists, words of other drafts."""

    class Handmade(BaseModel):
        a: Annotated[str, Field(json_schema_extra={"examples": ["x"], "x-note": 1, "deprecated": True})]
        b: Annotated[Any, pydantic.WithJsonSchema({"type": ["string", "null"], "contentEncoding": "base64"})]
        c: Annotated[
            Any, pydantic.WithJsonSchema({"allOf": [{"type": "object", "properties": {"d": {"type": "string"}}}]})
        ]
        d: Annotated[Any, pydantic.WithJsonSchema({"not": {"type": "string"}})]

    schema = tool_of(Handmade).definition["function"]["parameters"]
    check_parameters("f", 0, schema)
    assert schema["properties"]["b"] == {"type": "string", "nullable": True}
    assert schema["properties"]["c"]["properties"] == {"d": {"type": "string"}}


VALUES = st.sampled_from([None, True, 0, 1, 2.5, "", "a", [1], {"a": 1}])
WORDS = {
    "type": st.sampled_from(
        [*["string", "integer", "number", "boolean", "array", "object", "null", "STRING"], ["string", "null"]]
    ),
    "enum": st.lists(VALUES, min_size=1, max_size=3, unique_by=repr),
    "const": VALUES,
    "$ref": st.sampled_from(["#/$defs/text", "#/$defs/point"]),
    "nullable": st.booleans(),
    "format": st.sampled_from(["date", "date-time", "time", "uuid", "x"]),
    "pattern": st.just("^a"),
    "minimum": st.integers(0, 3),
    "exclusiveMaximum": st.integers(4, 9),
    "minItems": st.integers(0, 2),
    "maxLength": st.integers(0, 2),
    "uniqueItems": st.booleans(),
    "required": st.lists(st.sampled_from("ab"), unique=True),
    "description": st.just("d"),
    "default": VALUES,
    "discriminator": st.just({"propertyName": "a"}),
}


def _wider(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(inner, min_size=1, max_size=2)
    nested = {
        "properties": st.dictionaries(st.sampled_from(["a", "b", "nullable", "const"]), inner, max_size=2),
        "patternProperties": st.dictionaries(st.just("^a"), inner, max_size=1),
        **dict.fromkeys(("items", "additionalProperties", "not", "if"), inner),
        **dict.fromkeys(("anyOf", "oneOf", "allOf", "prefixItems"), several),
    }
    return st.fixed_dictionaries({}, optional={**WORDS, **nested}) | st.booleans()


SCHEMAS = st.recursive(st.fixed_dictionaries({}, optional=WORDS), _wider, max_leaves=6)
POINT = {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(SCHEMAS)
def test_any_schema_makes_parameters_that_gemini_takes_and_an_answer_s_schema_or_misuse(inner: Any) -> None:
    document = {"type": "object", "properties": {"x": inner}, "$defs": {"text": {"type": "string"}, "point": POINT}}
    with contextlib.suppress(UsageError):
        check_parameters("f", 0, gemini_parameters(document) or {})
    with contextlib.suppress(UsageError):
        check_structured(json.loads(json.dumps(shape_of(document).json_schema)))


ENTRIES = [{"key": "a", "value": 1}, {"key": "b", "value": 2}]


def test_the_entries_of_an_object_are_an_object_again() -> None:
    def keep(sizes: dict[str, int], meals: list[Meal], more: dict[str, dict[str, int]], box: Empty | None) -> None:
        """Keeps."""

    meal = {"name": "soup", "extra": ENTRIES}
    more = [{"key": "x", "value": ENTRIES}]
    arguments = {"sizes": ENTRIES, "meals": [meal], "more": more, "box": []}
    assert tool_of(keep).validated(json.dumps(arguments)) == {
        "sizes": {"a": 1, "b": 2},
        "meals": [Meal(name="soup", extra={"a": 1, "b": 2})],
        "more": {"x": {"a": 1, "b": 2}},
        "box": Empty(),
    }
    assert tool_of(keep).validated(json.dumps({**arguments, "sizes": {"a": 1}}))["sizes"] == {"a": 1}


@pytest.mark.parametrize(
    "sizes", [[{"key": "a"}], [*ENTRIES, {"key": "a", "value": 3}], [{"key": [], "value": 1}], ["a"], "a", [[1, 2]]]
)
def test_entries_that_make_no_object_are_a_tool_error(sizes: Any) -> None:
    def keep(sizes: dict[str, int]) -> None:
        """Keeps."""

    with pytest.raises(ToolError, match="sizes: "):
        tool_of(keep).validated(json.dumps({"sizes": sizes}))


EXACT: list[Any] = [
    int, str, bool, float, dict[str, int], dict[str, Any], dict, list, Any, Meal, list[Meal], int | str | None, Level,
    Literal["a", "b"], Literal[1, 2], Annotated[int, Field(gt=0, lt=40)], tuple[int, ...], list[dict[str, int]], Empty,
    Choices, dt.datetime, pydantic.NaiveDatetime, dict[str, dict[str, int]] | None, dict[str, list[str]],
]  # fmt: skip


@pytest.mark.parametrize("annotation", EXACT, ids=str)
def test_arguments_that_obey_the_parameters_are_valid(annotation: Any) -> None:
    def f(x: Any) -> None:
        """Takes anything."""

    f.__annotations__["x"] = annotation
    tool = tool_of(f)
    schema = standard(tool.definition["function"]["parameters"])

    @OFTEN
    @given(answers(schema).filter(_has_keys_once))
    def obedient(arguments: str) -> None:
        tool.validated(arguments)

    obedient()


def _has_keys_once(text: str) -> bool:
    """JSON Schema cannot say that no key comes twice."""

    def once(value: Any) -> bool:
        if isinstance(value, list):
            keys = [each["key"] for each in value if isinstance(each, dict) and "key" in each]
            return len(set(keys)) == len(keys) and all(map(once, value))
        return all(map(once, value.values())) if isinstance(value, dict) else True

    return once(json.loads(text))


@pytest.mark.parametrize("name", ["wëather", "<lambda>", "a" * 65])
def test_a_name_that_gemini_refuses_is_misuse(name: str) -> None:
    def function() -> None:
        """Has a name that is Python's and not Gemini's."""

    function.__name__ = name
    with pytest.raises(UsageError, match="cannot have the name"):
        tool_of(function)


def test_decimals_of_a_tool_keep_their_digits() -> None:
    def pay(amount: Decimal) -> None:
        """Pays."""

    assert tool_of(pay).validated('{"amount": "12345678901234567.89"}') == {"amount": Decimal("12345678901234567.89")}
