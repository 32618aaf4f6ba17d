"""What Gemini answers with a 400, the emulator answers with a 400 in the same words, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.emulator.options import Options
from pipeline.emulator.protocol.dialect import KNOWN, check_parameters, check_structured
from pipeline.emulator.protocol.wire import Problem
from pipeline.emulator.vertex import emulated

WHERE = "tools[0].function_declarations[3].parameters.properties[0].value"
ASKED = "GenerateContentRequest.tools[0].function_declarations[3].parameters.properties[a]"


def complaint(inner: Any) -> Problem:
    with pytest.raises(Problem) as refused:
        check_parameters("book", 3, {"type": "object", "properties": {"a": inner}})
    assert refused.value.http_status == 400
    return refused.value


@pytest.mark.parametrize(
    "word",
    ["exclusiveMinimum", "exclusiveMaximum", "multipleOf", "uniqueItems", "const", "$ref", "$defs",
     "additionalProperties",
     "default", "examples", "oneOf", "allOf", "not", "prefixItems", "propertyNames", "patternProperties", "$schema",
     "contentEncoding", "discriminator", "deprecated", "invented"],
)  # fmt: skip
@pytest.mark.parametrize("wrap", [lambda each: each, lambda each: {"type": "array", "items": each}])
def test_a_word_that_openapi_does_not_have_is_refused_with_its_place(word: str, wrap: Any) -> None:
    problem = complaint(wrap({"type": "string", word: 1}))
    place = WHERE if wrap({}) == {} else f"{WHERE}.items"
    line = f"Unknown name \"{word}\" at '{place}': Cannot find field."
    assert problem.message == f"Invalid JSON payload received. {line}"
    assert problem.details[0]["fieldViolations"] == [{"field": place, "description": problem.message}]


@pytest.mark.parametrize(
    ("inner", "says"),
    [
        ({"type": ["string", "null"]},
         f"Unknown name \"type\" at '{WHERE}': Proto field is not repeating, cannot start list."),
        ({"type": "strange"}, f"Invalid value at '{WHERE}.type'"),
        ({"type": "integer", "enum": [1, 2]}, f"Invalid value at '{WHERE}.enum[0]' (TYPE_STRING), 1"),
        ({"type": "string", "enum": ["x", None]}, f"Invalid value at '{WHERE}.enum[1]' (TYPE_STRING)"),
        ({"anyOf": [{"const": 1}]}, f"Unknown name \"const\" at '{WHERE}.any_of[0]'"),
        ({"type": "integer", "enum": ["1"]}, f"* {ASKED}.enum: only allowed for STRING type"),
        ({"type": "string", "enum": ["x", ""]}, f"* {ASKED}.enum[1]: cannot be empty"),
        ({"type": "string", "format": "enum"}, f"* {ASKED}.enum: should be non-empty for STRING type with enum format"),
        ({"type": "string", "format": "date"},
         f"* {ASKED}.format: only 'enum' and 'date-time' are supported for STRING type"),
        ({"anyOf": [{"type": "string"}], "description": "d"},
         "`book` functionDeclaration `parameters.a` schema specified other"),
        ({"anyOf": [{"type": "string"}], "nullable": True}, "When using any_of, it must be the only field set."),
        ({}, "`book` functionDeclaration `parameters.a` schema didn't specify the schema type field."),
        ({"type": "array", "items": {}}, "`parameters.a.items` schema didn't specify the schema type field."),
        ({"type": "array"}, f"* {ASKED}.items: missing field."),
        ({"type": "object"}, f"* {ASKED}.properties: should be non-empty for OBJECT type"),
        ({"type": "object", "properties": {"b": {"type": "string"}}, "required": ["c"]},
         f"* {ASKED}.required[0]: property is not defined"),
        ({"type": "string", "required": ["c"]}, f"* {ASKED}.required: only allowed for OBJECT type"),
        (7, f"Invalid value at '{WHERE}'"),
    ],
    ids=str,
)  # fmt: skip
def test_what_gemini_refuses_is_refused_in_its_words(inner: Any, says: str) -> None:
    assert says in complaint(inner).message


def test_parameters_of_no_properties_are_refused_and_none_at_all_are_taken() -> None:
    with pytest.raises(Problem, match=r"parameters\.properties: should be non-empty for OBJECT type"):
        check_parameters("now", 0, {"type": "object", "properties": {}})


@pytest.mark.parametrize(
    "inner",
    [
        {"type": "STRING", "format": "date-time", "nullable": True, "title": "T", "description": "d"},
        {"type": "string", "format": "enum", "enum": ["a"]},
        {"type": "integer", "format": "int64", "minimum": 1, "maximum": 3},
        {"anyOf": [{"type": "string", "nullable": True}, {"type": "array", "items": {"type": "number"}}]},
        {
            "type": "object",
            "properties": {"const": {"type": "string"}, "$ref": {"type": "string"}},
            "required": ["const"],
        },
    ],
)
def test_what_gemini_takes_is_taken(inner: Any) -> None:
    check_parameters("book", 0, {"type": "object", "properties": {"a": inner}})
    assert "pattern" in KNOWN


@pytest.mark.parametrize(
    ("schema", "served"),
    [
        ({"properties": {"a": {"const": 1, "pattern": "x", "not": {}}}}, True),
        ({"properties": {"a": {"$ref": "#/$defs/n", "title": "A"}}, "$defs": {"n": {}}}, False),
        ({"properties": {"a": {"$ref": "#/$defs/n", "description": "A"}}, "$defs": {"n": {}}}, True),
        ({"$ref": "#/$defs/n", "$defs": {"n": {"properties": {"n": {"$ref": "#/$defs/n"}}}}}, True),
        ({"$ref": "#/$defs/n", "$defs": {"n": {"properties": {"n": {"$ref": "#/$defs/n"}}, "required": ["n"]}}}, False),
        (
            {
                "$defs": {
                    "a": {"properties": {"b": {"anyOf": [{"$ref": "#/$defs/b"}, {"type": "null"}]}}, "required": ["b"]},
                    "b": {"properties": {"a": {"items": {"$ref": "#/$defs/a"}}}, "required": ["a"]},
                }
            },
            False,
        ),
    ],
)
def test_structured_output_is_refused_where_the_documentation_says_so(schema: Any, *, served: bool) -> None:
    if served:
        check_structured(schema)
        return
    with pytest.raises(Problem) as refused:
        check_structured(schema)
    assert refused.value.http_status == 400


@pytest.mark.anyio
async def test_a_refusal_is_a_list_of_an_error_with_field_violations() -> None:
    """As the compatible endpoint wraps errors."""
    function = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "string", "const": "x"}}}}
    async with emulated(Options()) as vertex:
        messages = [{"role": "user", "content": "hello"}]
        payload = {"model": "google/gemini-3.5-flash", "messages": messages}
        answered = await vertex.ask({**payload, "tools": [{"type": "function", "function": function}]})
    assert answered.status == 400
    [wrapped] = answered.json()
    assert wrapped["error"]["status"] == "INVALID_ARGUMENT"
    assert wrapped["error"]["details"][0]["@type"] == "type.googleapis.com/google.rpc.BadRequest"
