"""Every answer to a JSON schema is valid for it, whatever the text."""

from __future__ import annotations

import json
import operator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal, Optional
from uuid import UUID

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import AnyUrl, BaseModel, Field, TypeAdapter, create_model

from pipeline.emulator.answers.answers import answers
from pipeline.emulator.protocol.request import read_request
from pipeline.emulator.protocol.wire import Problem


class Color(Enum):
    RED = "red"
    DARK_BLUE = "dark_blue"


class City(BaseModel):
    city: str
    country: str | None = None


class Contact(BaseModel):
    name: Annotated[str, Field(min_length=1, max_length=40)]
    email: str | None
    age: Annotated[int, Field(ge=0, le=130)] | None


class EventRecord(BaseModel):
    """A record such as jobs extract."""

    title: str | None
    date: date | None
    start_time: time | None
    ends_at: datetime | None
    place: City | None
    participants: list[Contact]
    price: Annotated[Decimal, Field(ge=0)] | None
    color: Color
    tags: Annotated[set[str], Field(max_length=3)]
    kind: Literal["meeting", "party", 3]


class Tree(BaseModel):
    label: str
    children: list[Tree] = []
    parent: Tree | None = None


class Sum(BaseModel):
    op: Literal["sum"]
    scale: float
    left: Sum | Constant | None = None
    right: Sum | Constant | None = None


class Constant(BaseModel):
    op: Literal["leaf"]
    value: float


class EveryFormat(BaseModel):
    code: Annotated[str, Field(pattern=r"^[A-Z]{2}-\d{3,5}$")]
    ident: UUID
    url: AnyUrl
    took: timedelta
    pair: tuple[int, str]
    coordinates: Annotated[list[float], Field(min_length=2, max_length=2)]
    even: Annotated[int, Field(multiple_of=2, gt=10, lt=20)]
    ratio: Annotated[float, Field(gt=0, lt=1)]
    scores: dict[str, int]
    by_color: Annotated[dict[Color, float], Field(min_length=1)]
    flags: Annotated[set[bool], Field(min_length=2)]
    mixed: int | str | list[City]
    shape: Annotated[Sum | Constant, Field(discriminator="op")]
    anything: Any
    amount: Decimal


MODELS = (EventRecord, Tree, Sum, EveryFormat, City, Contact)
TEXTS = st.one_of(
    st.text(max_size=80),
    st.sampled_from(
        (
            "Team party at 7 pm on 12 March 2026 in Lyon with Ana Sousa (ana@x.org): 25 EUR, dark blue.",
            "Réunion le 3 avril 2026 à 14h30, prix 1 250,50 €. " * 5,
            "会議は2026年3月12日14時30分から。参加費は3000円です。",
            "sum leaf true false 1e99 99999999999999999999999 -5 31.02.2026 12:99",
            "City: Paris\nCode: AB-1234\nScores: 12\nflags: no",
        )
    ),
)


def answer_to(schema: dict[str, Any], text: str, seed: int = 0) -> str:
    payload = {
        "model": "google/gemini-test",
        "messages": [{"role": "user", "content": text}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}},
    }
    choices, _ = answers(read_request(orjson.dumps(payload), default_model=None), seed)
    assert choices[0].text is not None
    return choices[0].text


@pytest.mark.parametrize("model", MODELS)
@settings(deadline=None, max_examples=40)
@given(text=TEXTS, seed=st.integers(0, 2**32))
def test_an_answer_validates_for_its_model(model: type[BaseModel], text: str, seed: int) -> None:
    """Nested, recursive, optional, enumerated, bounded, decimal and dated fields are all filled validly."""
    model.model_validate_json(answer_to(model.model_json_schema(), text, seed))


SUBSCRIPT: Any = operator.getitem  # types made at run time are beyond the type checker
MAKE_MODEL: Any = create_model


def annotated(kind: Any, **limits: Any) -> Any:
    return SUBSCRIPT(Annotated, (kind, Field(**limits)))


def bounded(numbers: st.SearchStrategy[Any], kind: type) -> st.SearchStrategy[Any]:
    return st.tuples(numbers, numbers).map(sorted).map(lambda pair: annotated(kind, ge=pair[0], le=pair[1]))


LEAVES: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from((str, int, float, bool, date, time, datetime, Decimal, UUID, Color, Literal["a", 1] | None, None)),
    bounded(st.integers(-(10**6), 10**6), int),
    bounded(st.floats(-1000, 1000).map(lambda value: round(value, 3)), float),
    bounded(st.integers(0, 10**6), Decimal),
    st.tuples(st.integers(0, 5), st.integers(5, 30)).map(lambda it: annotated(str, min_length=it[0], max_length=it[1])),
    st.integers(1, 50).map(lambda step: annotated(int, multiple_of=step)),
)
NAMES = st.sampled_from(
    (
        "title",
        "start_date",
        "end_date",
        "price",
        "people",
        "is_online",
        "x",
        "city",
        "count",
        "notes",
    )
)


def wider(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        inner.map(lambda kind: None if kind is None else SUBSCRIPT(Optional, kind)),
        st.tuples(inner, st.integers(0, 3)).map(lambda it: annotated(SUBSCRIPT(list, it[0]), min_length=it[1])),
        inner.map(lambda kind: SUBSCRIPT(dict, (str, kind))),
        st.tuples(inner, inner).map(lambda pair: SUBSCRIPT(tuple, pair)),
        st.dictionaries(NAMES, inner, max_size=4).map(
            lambda fields: MAKE_MODEL("Made", **{name: (kind, ...) for name, kind in fields.items()})
        ),
        st.dictionaries(NAMES, inner, max_size=3).map(
            lambda fields: MAKE_MODEL("Loose", **{name: (kind, None) for name, kind in fields.items()})
        ),
    )


@settings(deadline=None, max_examples=250, suppress_health_check=[HealthCheck.too_slow])
@given(kind=st.recursive(LEAVES, wider, max_leaves=8), text=TEXTS)
def test_an_answer_validates_for_any_type_that_pydantic_describes(kind: Any, text: str) -> None:
    """The law behind structured output: schema in, valid value out."""
    adapter = TypeAdapter(kind)
    adapter.validate_json(answer_to(adapter.json_schema(), text))


@given(text=st.text(max_size=60), seed=st.integers(0, 10))
def test_the_same_request_and_seed_get_the_same_answer(text: str, seed: int) -> None:
    """Nothing but request and seed decides."""
    schema = EventRecord.model_json_schema()
    assert answer_to(schema, text, seed) == answer_to(schema, text, seed)


def test_facts_come_from_the_text() -> None:
    """Each field of an event is filled with what the text says about it."""
    text = (
        "Workshop “Reading Water” on 2 April 2026 at 10:00 in Lisbon with Ana Sousa and Tom Berg. "
        "Cost $1,200.50 for 25 people, in dark blue. Party dress."
    )
    event = json.loads(answer_to(EventRecord.model_json_schema(), text))
    assert event["title"] == "Reading Water"
    assert event["date"] == "2026-04-02"
    assert event["start_time"] == "10:00:00Z"
    assert event["place"]["city"] == "Lisbon"
    assert [person["name"] for person in event["participants"]] == ["Ana Sousa", "Tom Berg"]
    assert event["price"] == 1200.5
    assert event["color"] == "dark_blue"
    assert event["kind"] == "party"


def test_labels_come_before_what_merely_looks_right() -> None:
    """`Label: value` lines fill the fields of that name."""

    class Note(BaseModel):
        title: str
        venue: str
        attendees: list[str]
        reference: str | None

    text = (
        "Subject: \u201cQ3 plans\u201d\nLocation: Room 7\nAttendees: Ana, Tom Berg and Li\nReference: X-17\n"
        "Oscar Wilde says hi."
    )
    note = Note.model_validate_json(answer_to(Note.model_json_schema(), text))
    assert note == Note(title="Q3 plans", venue="Room 7", attendees=["Ana", "Tom Berg", "Li"], reference="X-17")


def test_what_is_not_found_is_null_or_empty_where_the_schema_allows_it() -> None:
    """A text without an event gives no event."""
    event = json.loads(answer_to(EventRecord.model_json_schema(), "so be it"))
    assert [event[name] for name in ("title", "date", "start_time", "ends_at", "price")] == [None] * 5
    assert event["participants"] == []


def test_a_list_of_records_has_one_for_each_dated_sentence() -> None:
    """Several events in a text become several records."""

    class Agenda(BaseModel):
        events: list[EventRecord]

    text = "Opening in Lyon on 1 May 2026.\nClosing in Bern on 3 May 2026 at 5 pm."
    agenda = Agenda.model_validate_json(answer_to(Agenda.model_json_schema(), text))
    assert [(event.date, event.place and event.place.city) for event in agenda.events] == [
        (date(2026, 5, 1), "Lyon"),
        (date(2026, 5, 3), "Bern"),
    ]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "wish"},
        {"$ref": "#/$defs/missing"},
        {"type": "object", "properties": [], "required": ["a"]},
        {"anyOf": []},
        {"allOf": [{"$ref": "#"}]},
        {
            "$ref": "#/$defs/a",
            "$defs": {"a": {"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#/$defs/a"}}}},
        },
        {"type": "object", "required": ["a"], "properties": {"a": {"type": "array", "items": {"$ref": "#"}}}},
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/a", "title": "A"}}, "$defs": {"a": {}}},
    ],
)
def test_a_schema_that_cannot_be_served_is_refused(schema: dict[str, Any]) -> None:
    """Unknown types, dangling references and definitions without an end are answered 400."""
    with pytest.raises(Problem) as refusal:
        answer_to(schema, "text")
    assert refusal.value.http_status == 400


@pytest.mark.parametrize(
    ("schema", "valid"),
    [
        ({"type": ["string", "null"], "enum": ["a", None]}, {"a", None}),
        ({"const": 7}, {7}),
        ({"type": "string", "nullable": True, "enum": ["b"]}, {"b", None}),
        ({"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 3}]}, {3}),
        ({"oneOf": [{"const": "x"}, {"const": "y"}]}, {"x", "y"}),
        ({"type": "integer", "exclusiveMinimum": 4, "exclusiveMaximum": 6}, {5}),
        ({"type": "STRING", "minLength": 2, "maxLength": 2, "pattern": "^[a-c]b$"}, {"ab", "bb", "cb"}),
    ],
)
def test_keywords_that_pydantic_rarely_writes(schema: dict[str, Any], valid: set[Any]) -> None:
    """Type lists, const, nullable, allOf, oneOf, open bounds and short patterns are honoured."""
    assert json.loads(answer_to(schema, "nothing here")) in valid
