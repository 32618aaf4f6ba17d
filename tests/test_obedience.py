"""Whatever obeys the schema in the request is an answer that the job takes."""

from __future__ import annotations

import dataclasses
import enum
import ipaddress
import json
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

import pyarrow as pa
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, RootModel
from typing_extensions import TypedDict

from pipeline.schema.from_pydantic import AnswerSchema, shape_of
from tests.obedient import answers


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


class Rank(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Mixed(enum.Enum):
    A = 1
    B = "b"
    C = None


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    tricks: list[str]


class Tree(BaseModel):
    name: str
    children: list[Tree] = []


class Tags(RootModel[list[str]]):
    pass


class Blank(BaseModel):
    pass


class Piece(TypedDict, total=False):
    a: int
    b: str


class Pixel(NamedTuple):
    x: int
    y: float


@dataclasses.dataclass
class Spot:
    at: time
    note: str = ""


class Encoded(BaseModel):
    model_config = ConfigDict(val_json_bytes="base64")
    raw: bytes


class Stripped(BaseModel):
    model_config = ConfigDict(str_strip_whitespace=True)
    text: Annotated[str, Field(min_length=2)]


class Aliased(BaseModel):
    amount: Decimal = Field(alias="total amount (€)")


ANNOTATIONS: list[Any] = [
    str, int, float, bool, bytes, UUID, date, time, datetime, timedelta, Path,
    Annotated[str, Field(min_length=2, max_length=5)],
    Annotated[str, Field(pattern=r"^[A-Z]{2}-\d{3}$")],
    Annotated[str, pydantic.StringConstraints(strip_whitespace=True, min_length=1)],
    Annotated[int, Field(gt=0, lt=40)], Annotated[int, Field(ge=-3, multiple_of=3)], pydantic.StrictInt,
    pydantic.StrictFloat, pydantic.StrictStr, pydantic.StrictBool, pydantic.PositiveInt,
    Annotated[float, Field(ge=0, le=1)],
    Decimal, Annotated[Decimal, Field(max_digits=14, decimal_places=4)], Annotated[Decimal, Field(decimal_places=2)],
    Annotated[Decimal, Field(max_digits=5)], Annotated[Decimal, Field(gt=0, max_digits=9, decimal_places=2)],
    Annotated[Decimal, Field(max_digits=4, decimal_places=0)], Decimal | None,
    Annotated[Decimal, Field(max_digits=2, decimal_places=2)], Annotated[Decimal, Field(strict=True)],
    Annotated[date, Field(strict=True)], Annotated[time, Field(strict=True)], Annotated[UUID, Field(strict=True)],
    pydantic.NaiveDatetime, pydantic.AwareDatetime, pydantic.NaiveDatetime | int | None, list[pydantic.NaiveDatetime],
    dict[str, pydantic.NaiveDatetime], time | None, list[time], dict[str, time], time | int,
    pydantic.UUID1, pydantic.UUID4, pydantic.UUID5, pydantic.Base64Bytes, pydantic.Base64UrlBytes, pydantic.ByteSize,
    ipaddress.IPv4Address, ipaddress.IPv6Address, pydantic.IPvAnyAddress, ipaddress.IPv4Network, ipaddress.IPv6Network,
    ipaddress.IPv4Interface, pydantic.IPvAnyNetwork, pydantic.HttpUrl, pydantic.AnyUrl, pydantic.PostgresDsn,
    Colour, Rank, Mixed, Literal["a", "b"], Literal["a"], Literal[1, 2], Literal[True], Literal[1, "a"],
    Literal["a"] | None, Colour | None, int | None, int | str, int | str | None, float | int | bool,
    list[int], list[int | None], set[str], frozenset[int], tuple[int, str], tuple[float, ...], deque[int], list,
    Sequence[str], Annotated[list[int], Field(min_length=1, max_length=3)],
    dict[str, int], dict[str, Any], dict, dict[int, float], dict[date, int], dict[Literal["a", "b"], int],
    Mapping[UUID, str], dict[bool, int], dict[float, str], dict[str, Decimal], Any, pydantic.JsonValue, object,
    Cat, Cat | None, list[Cat], Cat | Dog, Annotated[Cat | Dog, Field(discriminator="kind")],
    list[Annotated[Cat | Dog, Field(discriminator="kind")]], Tree, Tags, Blank, Piece, Pixel, Spot, Encoded, Stripped,
    Aliased, None,
]  # fmt: skip


def taken(shape: AnswerSchema, text: str) -> None:
    """Raises when the answer does not fit the schema, or its value does not fit the columns."""
    pa.array([shape.plain(shape.parse(text))], type=shape.arrow_type())


def model_of(annotation: Any) -> AnswerSchema:
    return shape_of(pydantic.create_model("Answer", x=(annotation, ...)))


OFTEN = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow]
)


@pytest.mark.parametrize("annotation", ANNOTATIONS, ids=str)
def test_an_answer_that_obeys_the_schema_of_a_model_is_taken(annotation: Any) -> None:
    shape = model_of(annotation)

    @OFTEN
    @given(answers(shape.json_schema))
    def obedient(text: str) -> None:
        taken(shape, text)

    obedient()


TEXT, NUMBER = {"type": "string"}, {"type": "number"}
CAT = {"type": "object", "properties": {"kind": {"const": "cat"}, "lives": {"type": "integer"}}, "required": ["kind"]}
DOG = {"type": "object", "properties": {"kind": {"const": "dog"}, "name": TEXT}, "required": ["kind", "name"]}
DEFS = {"cat": CAT, "dog": DOG, "node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}}
DOCUMENTS: list[Any] = [
    TEXT, NUMBER, {"type": "integer"}, {"type": "boolean"}, {"type": "null"}, {}, True,
    *({"type": "string", "format": name} for name in ("date", "time", "date-time", "uuid", "email", "duration")),
    *({"type": ["string", "null"], "format": name} for name in ("date", "time", "date-time")),
    {"type": "string", "format": "time", "nullable": True}, {"type": "INTEGER", "nullable": True},
    {"type": "string", "pattern": "^[a-z]+$", "maxLength": 5}, {"type": "integer", "exclusiveMinimum": 0, "maximum": 9},
    {"enum": ["a", "b"]}, {"enum": [1, "a", None]}, {"type": ["string", "null"], "enum": ["a", None]},
    {"enum": [1, 2]}, {"enum": [1, 2.5]}, {"const": "a"}, {"const": 3}, {"const": True}, {"const": None},
    {"const": {"a": 1}}, {"type": "string", "enum": ["a"], "nullable": True},
    {"anyOf": [TEXT, {"type": "null"}]}, {"anyOf": [TEXT, NUMBER]}, {"type": ["string", "integer"]},
    {"oneOf": [TEXT, NUMBER]},
    {"oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}], "discriminator": {"propertyName": "kind"}},
    {"oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}], "nullable": True},
    {"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/cat", "description": "a cat"}, {"$ref": "#/$defs/cat", "nullable": True},
    {"$ref": "#/$defs/node"}, {"allOf": [{"$ref": "#/$defs/cat"}], "nullable": True},
    {"type": "array", "items": TEXT}, {"type": "array"},
    {"type": "array", "items": {"type": "string", "nullable": True}},
    {"type": "array", "prefixItems": [TEXT, NUMBER], "minItems": 2, "items": False},
    {"type": "object"}, {"type": "object", "additionalProperties": NUMBER}, CAT,
    {"type": "object", "properties": {"nullable": {"type": "boolean"}, "const": TEXT}, "required": ["nullable"]},
]  # fmt: skip


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("inner", DOCUMENTS, ids=str)
def test_an_answer_that_obeys_the_sent_schema_of_a_file_is_taken(inner: Any, *, required: bool) -> None:
    document = {"type": "object", "properties": {"x": inner}, "required": ["x"] if required else [], "$defs": DEFS}
    shape = shape_of(document)

    @OFTEN
    @given(answers(shape.json_schema))
    def obedient(text: str) -> None:
        taken(shape, text)

    obedient()


NUMBERS = st.from_regex(r"\A-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?\Z")


@settings(max_examples=300, deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=4))
def test_h10_json_text_holds_every_number_as_it_was_written(numbers: list[str]) -> None:
    """Free-form objects of models and of files, and unions: the number is the literal's, with every digit."""
    text = "{" + ", ".join(f'"k{at}": {number}' for at, number in enumerate(numbers)) + "}"
    for shape in FREE:
        parsed = shape.plain(shape.parse('{"x": ' + text + "}"))["x"]
        held = json.loads(parsed, parse_float=Decimal)
        assert [Decimal(value) for value in held.values()] == [Decimal(number) for number in numbers]


class Loose(BaseModel, extra="allow"):
    pass


FREE = [
    *map(model_of, (dict[str, Any], dict, Any, pydantic.JsonValue, dict[str, float | int] | int, Loose | int)),
    shape_of({"type": "object", "properties": {"x": {"type": "object"}}, "required": ["x"]}),
    shape_of({"type": "object", "properties": {"x": {}}, "required": ["x"]}),
]
