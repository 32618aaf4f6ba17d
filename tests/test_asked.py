"""The schema in a request says what the job's schema means, in words that Gemini and OpenAI know."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Annotated, Any, Literal

import pydantic
import pytest
from pydantic import BaseModel, Field

from pipeline.faults import Unparsable
from pipeline.schema.from_pydantic import json_schema, shape_of
from pipeline.schema.shape import JsonSchema, is_strict


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


class Household(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    flag: Literal[False]


class Relative(BaseModel):
    name: str
    parent: Relative | None
    children: list[Relative] = []


def asked_of(annotation: Any) -> Any:
    schema = json_schema(pydantic.create_model("Answer", x=(annotation, ...)))["properties"]["x"]
    return {key: value for key, value in schema.items() if key != "title"}


def sent_of(inner: JsonSchema) -> Any:
    document = {"type": "object", "properties": {"x": inner}, "$defs": {"cat": {"type": "object", "properties": {}}}}
    return shape_of(document).json_schema["properties"]["x"]


@pytest.mark.parametrize(
    ("annotation", "schema"),
    [
        (Literal["EUR"], {"type": "string", "enum": ["EUR"]}),
        (Literal[True], {"type": "boolean", "enum": [True]}),
        (
            Literal["a", 1],
            {"anyOf": [{"type": "string", "enum": ["a"]}, {"type": "integer", "enum": [1]}]},
        ),
        (
            Annotated[Cat | Dog, Field(discriminator="kind")],
            {"anyOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}]},
        ),
        (
            Annotated[Decimal, Field(max_digits=6, decimal_places=2)],
            {
                "anyOf": [
                    {"type": "number", "multipleOf": 0.01, "exclusiveMinimum": -(10**4), "exclusiveMaximum": 10**4},
                    {"type": "string", "pattern": r"^-?([0-9]{1,4}(\.[0-9]{1,2})?)$"},
                ]
            },
        ),
        (Annotated[Decimal, Field(ge=0, decimal_places=2)], {"type": "number", "multipleOf": 0.01, "minimum": 0.0}),
        (bytes, {"type": "string"}),
        (
            dict[int, str],
            {
                "type": "object",
                "additionalProperties": {"type": "string"},
                "propertyNames": {"pattern": "^(0|-?[1-9][0-9]{0,17})$"},
            },
        ),
    ],
    ids=str,
)
def test_a_model_is_asked_for_in_common_words_and_with_all_that_its_types_mean(annotation: Any, schema: Any) -> None:
    assert asked_of(annotation) == schema


@pytest.mark.parametrize(
    ("inner", "sent"),
    [
        ({"const": "a"}, {"type": "string", "enum": ["a"]}),
        ({"enum": ["a", "b"]}, {"type": "string", "enum": ["a", "b"]}),
        ({"type": ["string", "null"], "enum": ["a", None]},
         {"anyOf": [{"type": "string", "enum": ["a"]}, {"type": "null"}]}),
        ({"type": "STRING", "nullable": True}, {"type": ["string", "null"]}),
        ({"enum": ["a"], "nullable": True, "description": "it"},
         {"description": "it", "anyOf": [{"type": "string", "enum": ["a"]}, {"type": "null"}]}),
        ({"$ref": "#/$defs/cat", "description": "a cat"}, {"description": "a cat", "anyOf": [{"$ref": "#/$defs/cat"}]}),
        ({"oneOf": [{"type": "string"}, {"type": "integer"}], "discriminator": {"propertyName": "kind"}},
         {"anyOf": [{"type": "string"}, {"type": "integer"}]}),
        ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, {"oneOf": [{"type": "string"}, {"type": "integer"}]}),
        ({"type": "object", "properties": {"nullable": {"type": "string"}, "const": {"type": "string"}}},
         {"type": "object", "properties": {"nullable": {"type": "string"}, "const": {"type": "string"}}}),
        ({"type": "string", "format": "date", "pattern": "^2"}, {"type": "string", "format": "date", "pattern": "^2"}),
    ],
    ids=str,
)  # fmt: skip
def test_a_file_is_sent_as_json_schema_in_common_words(inner: Any, sent: Any) -> None:
    assert sent_of(inner) == sent


def test_a_null_is_taken_where_a_file_says_nullable_and_nowhere_else() -> None:
    inner = {"type": "string", "nullable": True}
    shape = shape_of({"type": "object", "properties": {"x": inner, "y": {"type": "string"}}, "required": ["x", "y"]})
    assert shape.plain(shape.parse('{"x": null, "y": "a"}')) == {"x": None, "y": "a"}
    with pytest.raises(Unparsable):
        shape.parse('{"x": "a", "y": null}')


def test_recursion_is_asked_for_in_optional_properties_only_where_the_model_has_defaults() -> None:
    """Gemini: "may only be used within non-required properties" (responseJsonSchema)."""
    schema = json_schema(pydantic.create_model("Answer", tree=(Relative, ...), other=(int, 3)))
    assert schema["required"] == ["tree", "other"]
    assert schema["$defs"]["Relative"]["required"] == ["name", "parent"]
    assert not is_strict(schema)


def test_no_word_that_gemini_ignores_stands_for_a_value() -> None:
    """`const` and `oneOf` would leave an answer free."""
    text = json.dumps(json_schema(Household))
    assert '"const"' not in text
    assert '"oneOf"' not in text
    assert is_strict(json_schema(Household))
