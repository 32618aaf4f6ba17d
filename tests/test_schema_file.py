"""A JSON Schema's columns hold every answer that it allows, and nothing else gets in."""

from __future__ import annotations

import io
from datetime import UTC, date, datetime, time
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel

from pipeline.faults import Unparsable, UsageError
from pipeline.schema.from_pydantic import AnswerSchema, json_schema, shape_of

TEXT, INT, INSTANT = pa.string(), pa.int64(), pa.timestamp("us", "UTC")
NEW_YEAR = datetime(2024, 1, 1, tzinfo=UTC)
LINE = pa.struct([pa.field("sku", TEXT, nullable=False), pa.field("quantity", INT, nullable=False)])
LINE_DOCUMENT = {
    "type": "object",
    "title": "Line",
    "properties": {"sku": {"type": "string"}, "quantity": {"type": "integer"}},
    "required": ["sku", "quantity"],
    "additionalProperties": False,
}


class Line(BaseModel):
    sku: str
    quantity: int


class Page(BaseModel):
    items: list[Line]


def listed(element: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", element, nullable=False))


def stored(shape: AnswerSchema, value: Any) -> Any:
    """What a Parquet reader sees of this value."""
    file = io.BytesIO()
    pq.write_table(pa.table({"parsed": pa.array([shape.plain(value)], type=shape.arrow_type())}), file)
    file.seek(0)
    return pq.read_table(file)["parsed"][0].as_py()


def file_shape(inner: Any, *, required: bool = True, **defs: Any) -> AnswerSchema:
    return shape_of(
        {"type": "object", "properties": {"x": inner}, "required": ["x"] if required else [], "$defs": defs}
    )


FILE_MAPPING: list[tuple[Any, pa.DataType, bool, str, Any]] = [
    ({"type": "string"}, TEXT, False, '"a"', "a"),
    ({"type": "integer"}, INT, False, "3.0", 3),
    ({"type": "number"}, pa.float64(), False, "3", 3.0),
    ({"type": "boolean"}, pa.bool_(), False, "true", True),
    ({"type": "string", "format": "date"}, pa.date32(), False, '"2024-02-29"', date(2024, 2, 29)),
    ({"type": "string", "format": "time"}, pa.time64("us"), False, '"12:30:00.5Z"', time(12, 30, 0, 500000)),
    ({"type": "string", "format": "time"}, pa.time64("us"), False, '"23:59:60+01:00"', time(23, 59, 59)),
    ({"type": "string", "format": "date-time"}, INSTANT, False, '"2024-01-01T00:00:00.0000009Z"', NEW_YEAR),
    ({"type": "string", "format": "date-time"}, INSTANT, False, '"2024-01-01t01:00:00+01:00"', NEW_YEAR),
    ({"type": "string", "format": "email"}, TEXT, False, '"a"', "a"),
    ({"enum": ["a", "b"]}, TEXT, False, '"a"', "a"),
    ({"type": ["string", "null"], "enum": ["a", None]}, TEXT, True, "null", None),
    ({"enum": [1, 2]}, INT, False, "1", 1),
    ({"enum": [1, "a"]}, TEXT, False, "1", "1"),
    ({"const": "a"}, TEXT, False, '"a"', "a"),
    ({"type": ["integer", "null"]}, INT, True, "null", None),
    ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, INT, True, "5", 5),
    ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, TEXT, True, '"a"', '"a"'),
    ({"type": ["integer", "string"]}, TEXT, False, "7", "7"),
    ({"type": "array", "items": {"type": "integer"}}, listed(INT), False, "[1]", [1]),
    ({"type": "array"}, TEXT, False, "[1, null]", "[1,null]"),
    ({"type": "array", "prefixItems": [{}], "items": {}}, TEXT, False, "[1]", "[1]"),
    (LINE_DOCUMENT, LINE, False, '{"sku": "a", "quantity": 1}', {"sku": "a", "quantity": 1}),
    ({"type": "object"}, TEXT, False, '{"b": 1, "a": 2}', '{"b":1,"a":2}'),
    ({"$ref": "#/$defs/line"}, LINE, False, '{"sku": "a", "quantity": 1}', {"sku": "a", "quantity": 1}),
    ({"$ref": "#"}, TEXT, True, '{"x": {"x": null}}', None),
    ({}, TEXT, True, "[1]", "[1]"),
    (True, TEXT, True, "null", None),
]  # fmt: skip


@pytest.mark.parametrize(("inner", "kind", "nullable", "answer", "held"), FILE_MAPPING)
def test_each_schema_of_a_file_has_its_column_and_its_value_arrives(
    inner: Any, kind: pa.DataType, answer: str, held: Any, *, nullable: bool
) -> None:
    shape = file_shape(inner, line=LINE_DOCUMENT)
    assert shape.arrow_type() == pa.struct([pa.field("x", kind, nullable=nullable)])
    if inner != {"$ref": "#"}:
        record = stored(shape, shape.parse('{"x": ' + answer + "}"))
        assert record == {"x": held}


def test_a_property_that_is_not_required_is_null_when_it_is_missing() -> None:
    shape = file_shape({"type": "integer"}, required=False)
    assert stored(shape, shape.parse("{}")) == {"x": None}


@pytest.mark.parametrize(
    ("inner", "answer"),
    [
        ({"type": "string", "format": "date"}, '"20240229"'),
        ({"type": "string", "format": "date"}, '"2023-02-29"'),
        ({"type": "string", "format": "time"}, '"25:00:00"'),
        ({"type": "string", "format": "time"}, '"12:00:00+1"'),
        ({"anyOf": [{"type": "string", "format": "date"}, {"type": "integer"}]}, '"soon"'),
        ({"type": "integer"}, "9007199254740993.0"),
        ({"type": "integer"}, "9223372036854775808"),
        ({"type": "integer"}, "true"),
        ({"type": "number"}, "9007199254740993"),
        ({"type": "integer", "maximum": 3}, "4"),
        ({"enum": ["a"]}, '"b"'),
        ({"type": "object"}, '{"a": "\\ud800"}'),
        ({"multipleOf": 0.01}, "1e308"),
    ],
)
def test_an_answer_that_breaks_a_file_s_schema_is_unparsable(inner: Any, answer: str) -> None:
    shape = file_shape(inner)
    with pytest.raises(Unparsable) as caught:
        shape.plain(shape.parse('{"x": ' + answer + "}"))
    assert caught.value.message.startswith("x")


def test_a_recursive_file_meets_a_deep_answer_with_unparsable() -> None:
    node = {"type": "object", "properties": {"child": {"$ref": "#/$defs/node"}}}
    shape = file_shape({"$ref": "#/$defs/node"}, node=node)
    deep = '{"x": ' + '{"child": ' * 700 + "{}" + "}" * 701
    with pytest.raises(Unparsable):
        shape.plain(shape.parse(deep))


def test_a_file_s_schema_is_sent_as_it_is_written() -> None:
    document = LINE_DOCUMENT | {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    response_format = shape_of(document).response_format
    assert response_format == {
        "type": "json_schema",
        "json_schema": {"name": "Line", "schema": LINE_DOCUMENT, "strict": True},
    }
    optional = {"type": "object", "properties": {"x": {"type": "string"}}, "additionalProperties": False}
    assert shape_of(optional).response_format["json_schema"]["strict"] is False


def test_a_model_and_its_own_json_schema_make_the_same_columns() -> None:
    from_model, from_file = shape_of(Page), shape_of(json_schema(Page))
    assert from_file.arrow_type() == from_model.arrow_type()


@pytest.mark.parametrize(
    ("document", "remedy"),
    [
        ({"type": "array", "items": {}}, "an object with properties"),
        ({"type": "object"}, "an object with properties"),
        ({"type": "object", "properties": {}}, "an object with properties"),
        ({"type": "nonsense"}, "not valid JSON Schema"),
        ({"type": "object", "properties": {"a": {}, "A": {}}}, "rename one"),
        ({"type": "object", "properties": {"a": {"$ref": "https://example.org/x"}}}, "copy it into $defs"),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}}, "leads nowhere"),
    ],
)
def test_a_document_that_is_no_table_is_misuse_with_the_remedy(document: Any, remedy: str) -> None:
    with pytest.raises(UsageError) as caught:
        shape_of(document)
    assert remedy in str(caught.value)
