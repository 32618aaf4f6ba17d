"""A schema's columns hold every value of the schema exactly, and nothing else gets in."""

from __future__ import annotations

import enum
import io
import json
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, Optional, TypeVar
from uuid import UUID

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.lib._pydantic import to_strict_json_schema
from pydantic import BaseModel, Field, RootModel
from typing_extensions import TypeAliasType, TypedDict

from pipeline.faults import Unparsable, UsageError
from pipeline.schema import from_pydantic as schema_module
from pipeline.schema.from_pydantic import AnswerSchema, is_strict, json_schema, shape_of


class _Unknown:
    """A value that no JSON knows; with a name that is the same in every process, for the ids of the tests."""

    def __repr__(self) -> str:
        return "unknown"


_UNKNOWN = _Unknown()


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


class Rank(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Mixed(enum.Enum):
    A = 1
    B = "b"


class Line(BaseModel):
    sku: str
    quantity: int


class Tags(RootModel[list[str]]):
    pass


class Maybe(RootModel[int | None]):
    pass


class Blank(BaseModel):
    pass


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


class Tree(BaseModel):
    name: str
    children: list[Tree] = []


class Couple(TypedDict):
    a: int


class Coordinates(NamedTuple):
    x: int
    y: int


@dataclass
class Spot:
    x: int


T = TypeVar("T")
Bounded = TypeVar("Bounded", bound=int)


class Page(BaseModel, Generic[T]):
    items: list[T]


class Counted(BaseModel, Generic[Bounded]):
    count: Bounded


Id = NewType("Id", int)
Names = TypeAliasType("Names", list[str])
Json = TypeAliasType("Json", "dict[str, Json] | list[Json] | int")
Boxed = TypeAliasType("Boxed", list[T], type_params=(T,))
Nest = TypeAliasType("Nest", "list[Nest]")

ROOT = Path(__file__).parents[1]
TEXT, INT = pa.string(), pa.int64()


def listed(element: pa.DataType, *, nullable: bool = False) -> pa.DataType:
    return pa.list_(pa.field("element", element, nullable=nullable))


def struct(**fields: pa.DataType) -> pa.DataType:
    return pa.struct([pa.field(name, kind, nullable=False) for name, kind in fields.items()])


LINE = struct(sku=TEXT, quantity=INT)

# annotation, Arrow type, nullable, one answer, what the column then holds
MAPPING: list[tuple[Any, pa.DataType, bool, str, Any]] = [
    (str, TEXT, False, '"é"', "é"),
    (int, INT, False, "9223372036854775807", 2**63 - 1),
    (float, pa.float64(), False, "0.1", 0.1),
    (bool, pa.bool_(), False, "true", True),
    (Decimal, pa.decimal128(38, 9), False, "1.10", Decimal("1.10")),
    (
        Annotated[Decimal, Field(max_digits=7, decimal_places=2)],
        pa.decimal128(7, 2),
        False,
        '"99999.99"',
        Decimal("99999.99"),
    ),
    (Annotated[Decimal | None, Field(max_digits=7, decimal_places=2)], pa.decimal128(7, 2), True, "null", None),
    (pydantic.condecimal(max_digits=4, decimal_places=3), pa.decimal128(4, 3), False, "1.5", Decimal("1.5")),
    (Annotated[Decimal, Field(decimal_places=2)], pa.decimal128(38, 2), False, "3", Decimal(3)),
    (date, pa.date32(), False, '"0001-01-01"', date(1, 1, 1)),
    (time, pa.time64("us"), False, '"23:59:59.999999"', time(23, 59, 59, 999999)),
    (time, pa.time64("us"), False, '"12:00:00.5+02:00"', time(12, 0, 0, 500000)),
    (datetime, pa.timestamp("us", "UTC"), False, '"2024-01-01T00:00:00"', datetime(2024, 1, 1, tzinfo=UTC)),
    (datetime, pa.timestamp("us", "UTC"), False, '"2024-01-01T01:00:00+01:00"', datetime(2024, 1, 1, tzinfo=UTC)),
    (
        pydantic.AwareDatetime,
        pa.timestamp("us", "UTC"),
        False,
        '"2024-01-01T00:00:00Z"',
        datetime(2024, 1, 1, tzinfo=UTC),
    ),
    (pydantic.NaiveDatetime, pa.timestamp("us"), False, '"2024-01-01T00:00:00"', datetime(2024, 1, 1)),  # noqa: DTZ001 - of no zone, as the type has it
    (pydantic.PastDate, pa.date32(), False, '"2020-02-29"', date(2020, 2, 29)),
    (timedelta, TEXT, False, '"P1DT1S"', "P1DT1S"),
    (bytes, pa.binary(), False, '"ab"', b"ab"),
    (UUID, TEXT, False, '"12345678-1234-5678-1234-567812345678"', "12345678-1234-5678-1234-567812345678"),
    (pydantic.HttpUrl, TEXT, False, '"https://example.org/"', "https://example.org/"),
    (pydantic.PostgresDsn, TEXT, False, '"postgres://a,b/db"', "postgres://a,b/db"),
    (Path, TEXT, False, '"/a/b"', "/a/b"),
    (IPv4Address, TEXT, False, '"10.0.0.1"', "10.0.0.1"),
    (pydantic.IPvAnyAddress, TEXT, False, '"::1"', "::1"),
    (Colour, TEXT, False, '"red"', "red"),
    (Rank, INT, False, "2", 2),
    (Mixed, TEXT, False, '"b"', '"b"'),
    (Literal["a", "b"], TEXT, False, '"a"', "a"),
    (Literal[1, 2], INT, False, "2", 2),
    (Literal[1, "b"], TEXT, False, "1", "1"),
    (Literal["a"] | None, TEXT, True, "null", None),
    (Literal[Colour.RED], TEXT, False, '"red"', "red"),
    (int | None, INT, True, "null", None),
    (Optional[Annotated[int, Field(gt=0)]], INT, True, "3", 3),  # noqa: UP045 - the older form, too, is read
    (list[int], listed(INT), False, "[2, 1]", [2, 1]),
    (list[int | None], listed(INT, nullable=True), False, "[2, null]", [2, None]),
    (list[int] | None, listed(INT), True, "null", None),
    (list, listed(TEXT, nullable=True), False, '[1, "a", null]', ["1", '"a"', None]),
    (Sequence[str], listed(TEXT), False, '["a"]', ["a"]),
    (deque[int], listed(INT), False, "[3, 1]", [3, 1]),
    (tuple[int, ...], listed(INT), False, "[1, 2]", [1, 2]),
    (set[str], listed(TEXT), False, '["b", "a", "c"]', ["a", "b", "c"]),
    (frozenset[int | None], listed(INT, nullable=True), False, "[10, null, 9]", None),
    (Line, LINE, False, '{"sku": "x", "quantity": 1}', {"sku": "x", "quantity": 1}),
    (Line | None, LINE, True, "null", None),
    (list[Line], listed(LINE), False, '[{"sku": "x", "quantity": 1}]', [{"sku": "x", "quantity": 1}]),
    (Tags, listed(TEXT), False, '["a"]', ["a"]),
    (Maybe, INT, True, "null", None),
    (
        Tree,
        struct(name=TEXT, children=listed(TEXT)),
        False,
        '{"name": "a", "children": [{"name": "b", "children": []}]}',
        {"name": "a", "children": ['{"name":"b","children":[]}']},
    ),
    (int | str, TEXT, False, '"5"', '"5"'),
    (int | str | None, TEXT, True, "null", None),
    (Annotated[Cat | Dog, Field(discriminator="kind")], TEXT, False, '{"kind": "cat"}', '{"kind":"cat"}'),
    (dict[str, int], TEXT, False, '{"b": 1, "a": 12345678901234567890123}', '{"b":1,"a":12345678901234567890123}'),
    (Mapping[str, Decimal], TEXT, False, '{"a": 1.50}', None),
    (dict[int, Any], TEXT, False, '{"7": [null]}', '{"7":[null]}'),
    (Any, TEXT, True, '{"a": [1, 2.5, "é"]}', '{"a":[1,2.5,"é"]}'),
    (Any, TEXT, True, "null", None),
    (tuple[int, str], TEXT, False, '[1, "a"]', '[1,"a"]'),
    (Blank, TEXT, False, "{}", "{}"),
    (Couple, TEXT, False, '{"a": 1}', '{"a":1}'),
    (Coordinates, TEXT, False, "[1, 2]", "[1,2]"),
    (Spot, TEXT, False, '{"x": 1}', '{"x":1}'),
    (Page[Line], struct(items=listed(LINE)), False, '{"items": []}', {"items": []}),
    (Page[Any], struct(items=listed(TEXT, nullable=True)), False, '{"items": [1]}', {"items": ["1"]}),
    (Page, struct(items=listed(TEXT, nullable=True)), False, '{"items": [1]}', {"items": ["1"]}),
    (Counted, struct(count=INT), False, '{"count": 1}', {"count": 1}),
    (Id, INT, False, "1", 1),
    (Names, listed(TEXT), False, '["a"]', ["a"]),
    (Boxed[int], listed(INT), False, "[1]", [1]),
    (Json, TEXT, False, '{"a": [1]}', '{"a":[1]}'),
    (Nest, TEXT, False, "[[], [[]]]", "[[],[[]]]"),
    (pydantic.JsonValue, TEXT, True, '[1, {"a": null}]', '[1,{"a":null}]'),
    (pydantic.StrictInt, INT, False, "1", 1),
    (pydantic.conint(ge=0), INT, False, "1", 1),
    (pydantic.ByteSize, INT, False, '"1KB"', 1000),
    (Annotated[str, Field(max_length=3)], TEXT, False, '"abc"', "abc"),
]


def shape_with(annotation: Any) -> AnswerSchema:
    return shape_of(pydantic.create_model("Answer", x=(annotation, ...)))


def stored(shape: AnswerSchema, *values: Any) -> list[Any]:
    """What a Parquet reader sees of these values, with a null before them as a failed row leaves it."""
    column = pa.array([None, *map(shape.plain, values)], type=shape.arrow_type())
    column.validate(full=True)
    file = io.BytesIO()
    pq.write_table(pa.table({"parsed": column}), file)
    file.seek(0)
    read: list[Any] = pq.read_table(file)["parsed"].to_pylist()
    return read[1:]


@pytest.mark.parametrize(
    ("annotation", "kind", "nullable", "answer", "held"), MAPPING, ids=[str(line[0]) for line in MAPPING]
)
def test_each_type_has_its_column_and_its_value_arrives(
    annotation: Any, kind: pa.DataType, answer: str, held: Any, *, nullable: bool
) -> None:
    shape = shape_with(annotation)
    assert shape.arrow_type() == pa.struct([pa.field("x", kind, nullable=nullable)])
    [record] = stored(shape, shape.parse('{"x": ' + answer + "}"))
    if held is not None or answer == "null":
        assert record == {"x": held}


def test_text_types_that_need_another_package_are_strings_too() -> None:
    for kind in (pydantic.EmailStr, pydantic.NameEmail):
        assert schema_module._column(kind, (), frozenset()).label == "string"


PRINT_PLAIN = """
import json, sys
from pydantic import create_model
from pipeline.schema.from_pydantic import shape_of
shape = shape_of(create_model("Answer", x=(eval(sys.argv[1]), ...)))
print(json.dumps(shape.plain(shape.parse(sys.argv[2]))))
"""


def printed(program: str, *arguments: str, hash_seed: int = 0) -> str:
    command = [sys.executable, "-c", program, *arguments]
    environment = {"PYTHONHASHSEED": str(hash_seed)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("annotation", "answer"),
    [
        ("set[str]", list("edcba")),
        ("dict[str, set[str]]", {"k": list("edcba")}),
        ("frozenset[tuple[int, str]]", [[1, letter] for letter in "edcba"]),
    ],
)
def test_a_set_has_one_order_whatever_the_hash_seed(annotation: str, answer: Any) -> None:
    answers = {printed(PRINT_PLAIN, annotation, json.dumps({"x": answer}), hash_seed=seed) for seed in (1, 2)}
    assert len(answers) == 1


def repr_of(value: Any) -> str:
    return "huge" if isinstance(value, int) and value > 2**64 else repr(value)


class Everything(BaseModel):
    text: str
    whole: int
    real: float
    flag: bool
    money: Decimal
    cents: Annotated[Decimal, Field(max_digits=12, decimal_places=2)]
    day: date
    clock: time
    instant: datetime
    wall: pydantic.NaiveDatetime
    span: timedelta
    raw: bytes
    ident: UUID
    colour: Colour
    rank: Rank
    level: Literal["a", "b"]
    perhaps: int | None
    numbers: list[float | None]
    line: Line | None
    lines: list[Line]
    bag: set[int]
    free: dict[str, int | str | None]


INT64S = st.integers(-(2**63), 2**63 - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
LINES = st.builds(Line, sku=TEXTS, quantity=INT64S)
CENTS = st.integers(-(10**12) + 1, 10**12 - 1).map(lambda n: Decimal(n).scaleb(-2))
ZONES: Any = st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(hours=-12))])
SOME_YEARS: Any = {"min_value": datetime(2, 1, 1), "max_value": datetime(9998, 1, 1)}  # noqa: DTZ001 - of no zone, as the type has it

ANSWERS = st.builds(
    Everything,
    text=TEXTS,
    whole=INT64S,
    real=FLOATS,
    flag=st.booleans(),
    money=st.integers(-(10**38) + 1, 10**38 - 1).map(lambda n: Decimal(f"{n}e-9")),
    cents=CENTS,
    day=st.dates(),
    clock=st.times(),
    instant=st.datetimes(timezones=ZONES, **SOME_YEARS),
    wall=st.datetimes(),
    span=st.timedeltas(),
    raw=st.binary(max_size=4),
    ident=st.uuids(),
    colour=st.sampled_from(Colour),
    rank=st.sampled_from(Rank),
    level=st.sampled_from(["a", "b"]),
    perhaps=st.none() | INT64S,
    numbers=st.lists(st.none() | FLOATS, max_size=3),
    line=st.none() | LINES,
    lines=st.lists(LINES, max_size=3),
    bag=st.sets(INT64S, max_size=3),
    free=st.dictionaries(TEXTS, st.integers() | TEXTS | st.none(), max_size=3),
)
EVERYTHING = shape_of(Everything)


@settings(max_examples=60, deadline=None)
@given(ANSWERS)
def test_a_model_comes_back_from_parquet_as_it_went_in(answer: Everything) -> None:
    [record] = stored(EVERYTHING, answer)
    assert Everything.model_validate(record | {"free": json.loads(record["free"])}) == answer


@settings(max_examples=60, deadline=None)
@given(ANSWERS)
def test_what_parse_reads_is_what_the_columns_hold(answer: Everything) -> None:
    answer = answer.model_copy(update={"raw": b"ab"})
    text = answer.model_dump_json()
    assert EVERYTHING.plain(EVERYTHING.parse(text)) == EVERYTHING.plain(answer)


@settings(max_examples=150, deadline=None)
@given(st.decimals(allow_nan=True, allow_infinity=True) | st.integers(-50, 50).map(lambda e: Decimal(f"1.5e{e}")))
def test_a_decimal_arrives_exactly_or_not_at_all(number: Decimal) -> None:
    shape = shape_with(Decimal)
    try:
        [record] = stored(shape, shape.parse(json.dumps({"x": str(number)})))
    except Unparsable:
        assert not number.is_finite() or (Fraction(number) * 10**9).denominator > 1 or abs(number) >= 10**29
    else:
        assert record["x"] == number


@settings(max_examples=150, deadline=None)
@given(st.from_regex(r"\A-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,2})?\Z"))
def test_a_json_number_reaches_an_exact_column_exactly_or_not_at_all(literal: str) -> None:
    exact = Decimal(literal)
    for annotation in (Decimal, int, int | None, Decimal | None):
        shape = shape_with(annotation)
        try:
            record = shape.plain(shape.parse('{"x": ' + literal + "}"))
        except Unparsable:
            continue
        assert record["x"] == exact


@pytest.mark.parametrize(
    ("annotation", "answer", "message"),
    [
        (int, "12345678901234567890123", "x: 12345678901234567890123 does not fit int64"),
        (int, "9223372036854775808", "x: 9223372036854775808 does not fit int64"),
        (Decimal, '"0.0000000001"', "x: 1E-10 does not fit decimal128(38, 9)"),
        (Decimal, "123456789012345678901234567890", "does not fit decimal128(38, 9)"),
        (Decimal, '"1e999999999999"', "does not fit decimal128(38, 9)"),
        (int, "1.2345678901234568e18", "x: "),  # float64 prints these digits, and holds others
        (datetime, '"0001-01-01T00:00:00+23:00"', "outside the years 1 to 9999"),
        (dict[str, int], '{"a": "b"}', "x.a: "),
        (
            list[Line],
            '[{"sku": "a", "quantity": 1}, {"sku": "b", "quantity": 9223372036854775808}]',
            "x[1].quantity: 9223",
        ),
        (list[int], '["a", "b", "c", "d", "e"]', "and 2 more"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_path(annotation: Any, answer: str, message: str) -> None:
    shape = shape_with(annotation)
    with pytest.raises(Unparsable) as caught:
        shape.plain(shape.parse('{"x": ' + answer + "}"))
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, None),
        (int, "5"),
        (int, 10**5000),
        (float, float("nan")),
        (float, float("-inf")),
        (float, 10**400),
        (float, 2**53 + 1),
        (str, "\ud800"),
        (str, b"a"),
        (bool, 1),
        (bytes, "a"),
        (date, datetime(2024, 1, 1, tzinfo=UTC)),
        (time, "12:00"),
        (datetime, date(2024, 1, 1)),
        (pydantic.NaiveDatetime, datetime(2024, 1, 1, tzinfo=UTC)),
        (pydantic.NaiveDatetime, 5),
        (Decimal, 1.5),
        (Decimal, Decimal("NaN")),
        (Decimal, Decimal("Infinity")),
        (list[int], "12"),
        (list[int], None),
        (list[int], [1, None]),
        (Line, {"sku": "a", "quantity": 1}),
        (Line, None),
        (UUID, None),
        (Any, float("nan")),
        (Any, {"a": [float("inf")]}),
        (Any, "\ud800"),
        (Any, {"\ud800": 1}),
        (Any, _UNKNOWN),
        (Any, b"\xff"),
        (dict[str, int], None),
    ],
    ids=repr_of,
)
def test_a_validator_that_lets_a_wrong_value_in_costs_the_row_and_not_the_part(annotation: Any, value: Any) -> None:
    shape = shape_with(annotation)
    model = pydantic.create_model("Answer", x=(annotation, ...))
    foreign = shape_of(model)
    with pytest.raises(Unparsable) as caught:
        foreign.plain(model.model_construct(x=value))
    assert caught.value.message.startswith("x")
    assert shape.fingerprint == foreign.fingerprint


def test_a_long_number_is_kept_in_a_decimal_and_taken_as_a_float_elsewhere() -> None:
    class Mixture(BaseModel):
        exact: Decimal
        real: Annotated[float, Field(strict=True)]
        free: Any

    shape = shape_of(Mixture)
    value = shape.parse('{"exact": 1.5, "real": 48.858370199999998, "free": 3.14159265358979323846}')
    assert shape.plain(value) == {"exact": Decimal("1.5"), "real": 48.858370199999996, "free": "3.14159265358979323846"}
    exact = shape_with(Decimal).parse('{"x": 12345678901234567890.123456789}')
    assert exact.x == Decimal("12345678901234567890.123456789")


def test_a_validator_s_long_complaint_is_cut() -> None:
    class Complaining(BaseModel):
        x: str

        @pydantic.field_validator("x")
        @classmethod
        def complain(cls, value: str) -> str:
            raise ValueError(f"bad\n{value}")

    with pytest.raises(Unparsable) as caught:
        shape_of(Complaining).parse(json.dumps({"x": "word " * 1000}))
    assert len(caught.value.message) == 300
    assert "\n" not in caught.value.message


def test_json_goes_by_alias_and_columns_by_python_name() -> None:
    class Aliased(BaseModel):
        unit_price: int = Field(alias="unitPrice")
        choice: int = Field(validation_alias=pydantic.AliasChoices("first choice", "second"))
        inner: dict[str, Any] | Line = Field(serialization_alias="out")

    shape = shape_of(Aliased)
    assert list(shape.json_schema["properties"]) == ["unitPrice", "first choice", "inner"]
    assert shape.arrow_type().names == ["unit_price", "choice", "inner"]
    value = shape.parse('{"unitPrice": 1, "first choice": 2, "inner": {}}')
    assert shape.plain(value) == {"unit_price": 1, "choice": 2, "inner": "{}"}


def test_json_text_keeps_aliases_and_digits() -> None:
    class Inner(BaseModel):
        unit_price: Decimal = Field(alias="unitPrice")

    shape = shape_with(Inner | int)
    assert shape.plain(shape.parse('{"x": {"unitPrice": "1.50"}}')) == {"x": '{"unitPrice":"1.50"}'}


def test_computed_fields_and_extra_keys_are_no_columns() -> None:
    class Loose(BaseModel, extra="allow"):
        a: int

        @pydantic.computed_field  # type: ignore[prop-decorator] # as pydantic has it
        @property
        def double(self) -> int:
            return 2 * self.a

    shape = shape_of(Loose)
    assert shape.plain(shape.parse('{"a": 1, "b": 2}')) == {"a": 1}


def test_enum_values_may_already_be_bare() -> None:
    class Bare(BaseModel, use_enum_values=True):
        colour: Colour

    shape = shape_of(Bare)
    assert shape.plain(shape.parse('{"colour": "red"}')) == {"colour": "red"}


class Twins(BaseModel):
    name: int
    Name: int


class Secretive(BaseModel):
    x: pydantic.SecretStr


class Huge(BaseModel):
    x: Annotated[Decimal, Field(max_digits=39, decimal_places=2)]


class Unnamed(BaseModel, arbitrary_types_allowed=True):
    x: io.BytesIO


@pytest.mark.parametrize(
    ("schema", "remedy"),
    [
        (Blank, "give it one"),
        (Tags, "put its value in a field"),
        (Twins, "rename one"),
        (Secretive, "use str or bytes"),
        (Huge, "max_digits=38"),
        (Unnamed, "no JSON schema"),
        (int, "must be a pydantic model"),
    ],
)
def test_a_schema_that_is_no_table_is_misuse_with_the_remedy(schema: Any, remedy: str) -> None:
    with pytest.raises(UsageError) as caught:
        shape_of(schema)
    assert remedy in str(caught.value)


class Described(BaseModel):
    """An order."""

    line: Line = Field(description="the first line")
    colour: Colour | None = None
    lines: list[Annotated[Line, Field(description="one of them")]]
    free: dict[str, Any]
    root: Tags
    default: str
    properties: Line


@pytest.mark.parametrize("model", [Line, Described, Page[Line], Blank])
def test_the_endpoint_s_schema_is_the_one_openai_would_send(model: type[BaseModel]) -> None:
    """But for what Gemini does not know and for what pydantic does not tell: tests/test_asked.py has those."""
    assert json_schema(model) == to_strict_json_schema(model)


def test_a_recursive_reference_with_a_description_does_not_recurse_for_ever() -> None:
    class Branch(BaseModel):
        children: list[Annotated[Branch, Field(description="a child")]]

    Branch.model_rebuild(_types_namespace={"Branch": Branch, "Annotated": Annotated, "Field": Field})
    assert "a child" in json.dumps(json_schema(Branch))


def test_no_default_reaches_the_endpoint() -> None:
    class Defaults(BaseModel):
        a: int = 5
        b: str | None = None
        default: str = "x"

    document = json_schema(Defaults)
    assert document["required"] == ["a", "b", "default"]
    assert not any("default" in prop for prop in document["properties"].values())


@pytest.mark.parametrize(
    ("annotation", "strict"),
    [
        (int, True),
        (Line, True),
        (Tree, False),
        (list[Line | None], True),
        (dict[str, int], False),
        (Any, False),
        (Blank, True),
    ],
)
def test_only_what_the_strict_subset_expresses_is_strict(annotation: Any, *, strict: bool) -> None:
    shape = shape_with(annotation)
    assert is_strict(shape.json_schema) is strict
    assert shape.response_format["json_schema"]["strict"] is strict


def test_the_response_format_has_a_name_that_endpoints_accept() -> None:
    assert shape_of(Page[Line]).response_format["json_schema"]["name"] == "Page_Line_"
    assert shape_of(Line, name="order line " * 9).response_format["json_schema"]["name"] == ("order_line_" * 9)[:64]


def test_the_fingerprint_changes_with_the_schema_and_with_the_columns() -> None:
    class Line2(BaseModel):
        code: str = Field(alias="sku", title="Sku")
        quantity: int

    renamed = Line2.model_json_schema() | {"title": "Line"}
    assert renamed == Line.model_json_schema()
    Line2.__name__ = "Line"
    assert shape_of(Line).fingerprint == shape_of(Line, name="other").fingerprint
    assert shape_of(Line).fingerprint != shape_of(Line2).fingerprint
    assert shape_of(Line).fingerprint != shape_of(Page[Line]).fingerprint


def test_importing_the_schema_layer_loads_neither_pyarrow_nor_openai_nor_jsonschema() -> None:
    program = (
        "import sys, pydantic; from pipeline.schema.from_pydantic import shape_of;"
        "shape_of(pydantic.create_model('A', x=(int, ...))).fingerprint;"
        "print(sorted({'pyarrow', 'openai', 'jsonschema'} & sys.modules.keys()))"
    )
    assert printed(program) == "[]\n"


NOON = datetime(2024, 1, 1, 12)  # noqa: DTZ001 - of no zone, as the type has it


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    line = Line(sku="a", quantity=1)
    answer = Everything(
        text="é",
        whole=2**63 - 1,
        real=0.1,
        flag=True,
        money=Decimal("0.1"),
        cents=Decimal("0.01"),
        day=date(2024, 1, 1),
        clock=time(1),
        instant=datetime(2024, 1, 1, tzinfo=UTC),
        wall=NOON,
        span=timedelta(1),
        raw=b"\xff",
        ident=UUID(int=1),
        colour=Colour.RED,
        rank=Rank.LOW,
        level="a",
        perhaps=None,
        numbers=[None, 1.0],
        line=None,
        lines=[line],
        bag={2, 1},
        free={"a": None},
    )
    column = pa.array([EVERYTHING.plain(answer), None], type=EVERYTHING.arrow_type())
    path = tmp_path / "part.parquet"
    pq.write_table(pa.table({"parsed": column}), path)
    return path


def test_duckdb_reads_every_column(parquet: Path) -> None:
    query = (
        "select parsed.whole, parsed.money::varchar, parsed.lines[1].sku, parsed.instant::varchar from read_parquet(?)"
    )
    with duckdb.connect() as connection:
        connection.execute("set timezone = 'UTC'")
        rows = connection.execute(query, [str(parquet)]).fetchall()
        connection.execute("create table copy as select * from read_parquet(?)", [str(parquet)])
    assert rows[0][:3] == (2**63 - 1, "0.100000000", "a")
    assert rows[0][3].startswith("2024-01-01 00:00:00")
    assert rows[1] == (None, None, None, None)


def test_polars_reads_every_column(parquet: Path) -> None:
    frame = pl.read_parquet(parquet).unnest("parsed")
    assert frame.columns == list(Everything.model_fields)
    assert frame["money"].to_list() == [Decimal("0.1"), None]
    assert frame["lines"].to_list()[0] == [{"sku": "a", "quantity": 1}]
