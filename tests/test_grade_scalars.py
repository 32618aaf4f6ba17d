"""Graders of one value say what they promise, of the right type and of any other."""

from __future__ import annotations

import unicodedata
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipeline.evaluation
from pipeline.evaluation import Bool, Date, Enum, Exact, Function, Ignore, Number, Regex, Text, Time
from pipeline.evaluation.graders.base import Grader
from pipeline.evaluation.graders.scalars import similarity
from pipeline.evaluation.graders.values import ABSENT, plain, same
from pipeline.evaluation.graders.verdicts import Leaf
from pipeline.faults import UsageError

_TEXTS = st.text(max_size=8) | st.sampled_from(["", " ", "2026-01-02"])
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["", " ", "2026-01-02"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
SCALARS = [
    Exact(), Text(), Text(at_least=0.5), Regex(r"\d+"), Regex(r"(?P<n>\d+)", group="n"), Enum(), Bool(), Number(),
    Number(absolute=1, relative=0.1), Date(), Date(by="second"), Date(by="year"), Time(), Time(by="hour"),
]  # fmt: skip


def leaf(grader: Grader, expected: Any, got: Any) -> Leaf:
    (only,) = grader.grade(plain(expected), plain(got))
    return only


def verdict(grader: Grader, expected: Any, got: Any) -> str:
    return leaf(grader, expected, got).verdict.value


# What every one of them does.


@pytest.mark.parametrize("grader", SCALARS, ids=str)
@given(expected=JSON | st.just(ABSENT), got=JSON | st.just(ABSENT))
def test_any_json_on_both_sides_makes_one_leaf(grader: Grader, expected: Any, got: Any) -> None:
    found = leaf(grader, expected, got)
    assert 0 <= found.score <= 1
    assert found.verdict.value != "failed"
    assert (found.verdict.value in ("match", "wrong", "missed")) == grader.gives(expected)
    assert (found.verdict.value in ("match", "wrong", "invented")) == grader.gives(got)


@pytest.mark.parametrize("grader", [each for each in SCALARS if not isinstance(each, Regex)], ids=str)
@given(value=JSON)
def test_a_value_is_right_against_itself(grader: Grader, value: Any) -> None:
    assert leaf(grader, value, value).right


@pytest.mark.parametrize(
    ("nothing", "same_as_absent"),
    [("any", {None, "", " \t", "[]", "{}", "[null]"}), ("null", {None}), ("absent", set())],
)
def test_what_counts_as_nothing_is_the_fields_choice(nothing: Any, same_as_absent: set[Any]) -> None:
    values: dict[str | None, Any] = {
        None: None,
        "": "",
        " \t": " \t",
        "[]": [],
        "{}": {},
        "[null]": [None],
        "0": 0,
        "false": False,
    }
    for name, value in values.items():
        expected = "empty" if name in same_as_absent else "missed"
        assert verdict(Exact(nothing=nothing), value, ABSENT) == expected, name


def test_null_is_a_value_where_only_the_absent_is_nothing() -> None:
    field = Text(nothing="absent")
    assert verdict(field, None, None) == "match"
    assert verdict(field, None, "x") == "wrong"
    assert verdict(field, "x", None) == "wrong"
    assert verdict(field, None, ABSENT) == "missed"


def test_what_is_ignored_has_no_leaves() -> None:
    assert list(Ignore().grade("a", "b")) == []


def test_the_graders_are_offered_by_name() -> None:
    for name in pipeline.evaluation.__all__:
        assert getattr(pipeline.evaluation, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'Txt'"):
        pipeline.evaluation.Txt  # noqa: B018 - reading it is what fails


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Text(at_least=0), "Text: `at_least` is above 0 and at most 1, not 0"),
        (lambda: Text(nothing="empty"), "Text: `nothing` is one of any, null, absent"),  # type: ignore[arg-type] # wrong on purpose
        (lambda: Number(absolute=-1), "`absolute` is a tolerance from 0 on, not -1"),
        (lambda: Number(relative=float("nan")), "`relative` is a tolerance from 0 on, not nan"),
        (lambda: Regex("("), r"Regex: the pattern '\(' is not valid"),
        (lambda: Regex("a", group="b"), "the pattern 'a' has no group 'b'"),
        (lambda: Date(by="week"), "Date: `by` is one of year, month, day"),  # type: ignore[arg-type] # wrong on purpose
        (lambda: Time(by="day"), "Time: `by` is one of hour, minute, second"),  # type: ignore[arg-type] # wrong on purpose
        (lambda: Function(lambda a: a), r"must take \(expected, got\)"),
        (lambda: Function(max, right="ok"), r"`right` holds labels: write \('ok',\)"),
        (lambda: Function(3), "give a function"),  # type: ignore[arg-type] # wrong on purpose
    ],
)  # fmt: skip
def test_a_mistake_is_found_when_the_grader_is_made(make: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


# Exact.


@pytest.mark.parametrize(
    ("expected", "got", "equal"),
    [
        (1, 1.0, True), (1, True, False), (0, False, False), (1, "1", False), (10**17, 10**17 + 1, False),
        ({"a": 1, "b": [1, 2]}, {"b": [1, 2], "a": 1}, True), ([1, 2], [2, 1], False), ({"a": 1}, {"a": True}, False),
        ("Straße", "straße", False), ([True], [1], False),
    ],
)  # fmt: skip
def test_exact_is_equality_of_json(expected: Any, got: Any, equal: Any) -> None:
    assert leaf(Exact(), expected, got).right is equal


# Text.


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Café  Müller", "cafe\u0301 mu\u0308ller"), ("STRASSE", "straße"), ("fi \ufb01", "FI fi"),
        ("well-known", "well known"),
        ("Don't!", "don\u2019t"), ("U.S.A.", "u. s. a"), ("\uff11\uff12\uff13", "123"),
        ("«Quoted»", '"quoted"'), ("a\u00a0b\n", "a b"),
    ],
)  # fmt: skip
def test_text_is_compared_in_its_normal_form(one: str, other: str) -> None:
    assert verdict(Text(), one, other) == "match"


@pytest.mark.parametrize(
    ("one", "other"),
    [("3.14", "314"), ("-5", "5"), ("1,000", "1000"), ("!!!", "???"), ("कि", "का"), ("5 €", "5 $"), ("a b", "ab")],
)
def test_text_that_means_something_else_is_wrong(one: str, other: str) -> None:
    assert verdict(Text(), one, other) == "wrong"


@pytest.mark.parametrize(
    ("switch", "one", "other"),
    [
        ({"case": True}, "Anna", "anna"), ({"space": True}, "a  b", "a b"), ({"punctuation": True}, "a!", "a"),
        ({"form": True}, "\uff11", "1"),
    ],
)  # fmt: skip
def test_each_part_of_the_normal_form_can_be_made_to_matter(switch: Any, one: str, other: str) -> None:
    assert verdict(Text(), one, other) == "match"
    assert verdict(Text(**switch), one, other) == "wrong"


@given(st.text(max_size=20))
def test_the_normal_form_is_its_own_normal_form(text: str) -> None:
    normal = Text().normal(text)
    assert Text().normal(normal) == normal
    assert unicodedata.is_normalized("NFKC", normal)


def test_similar_text_is_right_from_its_threshold_on() -> None:
    found = leaf(Text(at_least=0.8), "Jon Smith", "john smith")
    assert found.verdict.value == "match"
    assert found.score == pytest.approx(0.9)
    assert leaf(Text(at_least=0.95), "Jon Smith", "john smith").verdict.value == "wrong"
    assert leaf(Text(), "Jon Smith", "john smith").score == pytest.approx(0.9)


@given(st.text(max_size=12), st.text(max_size=12))
def test_similarity_is_one_minus_the_edits_for_each_character_of_the_longer_text(one: str, other: str) -> None:
    longer = max(len(one), len(other)) or 1
    assert similarity(one, other) == pytest.approx(1 - edits(one, other) / longer)


def edits(one: str, other: str) -> int:
    """Levenshtein's distance, by Wagner and Fischer's table."""
    above = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        line = [i]
        for j, b in enumerate(other, 1):
            line.append(min(above[j] + 1, line[-1] + 1, above[j - 1] + (a != b)))
        above = line
    return above[-1]


# Patterns, names, booleans.


def test_a_pattern_is_found_in_the_answer() -> None:
    assert verdict(Regex(r"^INV-\d+$"), "INV-1", "INV-77") == "match"
    assert verdict(Regex(r"^INV-\d+$"), "INV-1", "77") == "wrong"
    assert verdict(Regex(r"\d"), "1", 1) == "wrong"


def test_a_group_is_captured_from_both() -> None:
    number = Regex(r"(?P<number>\d+)", group="number")
    assert verdict(number, "No. 17", "17/a") == "match"
    assert verdict(number, "No. 17", "No. 18") == "wrong"
    assert verdict(number, "No. 17", "none") == "wrong"
    assert verdict(number, "none", "none") == "match"


def test_booleans_are_no_numbers_and_no_text() -> None:
    found = [
        verdict(Bool(), *sides) for sides in ((False, False), (True, False), (True, 1), (True, "true"), (False, None))
    ]
    assert found == ["match", "wrong", "wrong", "wrong", "missed"]


# Numbers.


@pytest.mark.parametrize(
    ("grader", "expected", "got", "right"),
    [
        (Number(), 3, 3.0, True), (Number(), 3, 4, False), (Number(), 1, True, False), (Number(), "12.50", 12.5, True),
        (Number(), 12.5, " 12.50 ", True), (Number(text=True), 12.5, "12.5", False), (Number(), 1000, "1,000", False),
        (Number(absolute=0.1), 1.0, 1.1, True), (Number(absolute=0.1), 1.0, 1.1000001, False),
        (Number(relative=0.01), 100, 101, True), (Number(relative=0.01), -100, -101.1, False),
        (Number(relative=0.01), 0, 0.0001, False), (Number(absolute=1, relative=0.1), 100, 110, True),
        (Number(), 0.1 + 0.2, 0.3, False), (Number(relative=1e-9), 0.1 + 0.2, 0.3, True),
        (Number(absolute=1), float("nan"), 1, False), (Number(absolute=1), float("nan"), float("nan"), True),
        (Number(absolute=1), float("inf"), 1e308, False), (Number(relative=1), float("inf"), float("-inf"), False),
        (Number(), 2**63, 2**63 + 1, False), (Number(), "1e999999999", "1e-999999999", False),
        (Number(), Decimal("12.5000"), 12.5, True),
        (Number(), Decimal("0.12345678901234567891"), "0.12345678901234567891", True),
        (Number(), "n/a", "n/a", True), (Number(), "n/a", 3, False), (Number(), 3, [3], False),
    ],
)  # fmt: skip
def test_numbers_match_within_their_tolerance(grader: Number, expected: Any, got: Any, right: Any) -> None:
    assert leaf(grader, expected, got).right is right


# Dates and times.


@pytest.mark.parametrize(
    ("grader", "expected", "got", "right"),
    [
        (Date(), "2026-05-01", "2026-05-01", True), (Date(), "2026-05-01", "2026-05-02", False),
        (Date(), date(2026, 5, 1), "2026-05-01T23:59", True), (Date(by="month"), "2026-05", "2026-05-31", True),
        (Date(by="year"), "2026", "2026-12-31", True), (Date(), "2026-05", "2026-05-01", False),
        (Date(), "2026-05-01T23:30:00-05:00", "2026-05-02T04:30:00Z", True),
        (Date(), "2026-05-01T23:30:00-05:00", "2026-05-01T18:00:00-05:00", True),
        (Date(), "2026-05-01", "2026-05-01T23:30:00-05:00", True),
        (Date(by="second"), "2026-05-01T10:00:00", datetime(2026, 5, 1, 10, tzinfo=UTC), True),
        (Date(by="second"), "2026-05-01T12:00:00+02:00", "2026-05-01T10:00:00.9Z", True),
        (Date(by="second"), "2026-05-01T10:00:01Z", "2026-05-01T10:00:00Z", False),
        (Date(by="minute"), "2026-05-01T10:00:01Z", "2026-05-01T10:00:59Z", True),
        (Date(by="second"), "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", False),
        (Date(), "soon", "soon", True), (Date(), "soon", "2026-05-01", False),
        (Date(), "2026-05-01", "01.05.2026", False),
        (Date(), "2026-05-01", 20260501, False), (Date(), "2026-02-30", "2026-02-28", False),
        (Time(), "10:00", "10:00:00", True), (Time(), time(10), "10:00:01", False),
        (Time(by="minute"), "10:00:59", "10:00", True),
        (Time(), "10:00:00+02:00", "08:00:00Z", True), (Time(), "00:30:00+02:00", "22:30:00Z", True),
        (Time(), "10:00:00", "10:00:00Z", True), (Time(), "10:00:00.7", "10:00:00", True),
        (Time(by="hour"), "10:59", "11:00", False),
        (Time(), "noon", "12:00", False), (Time(), "25:00", "25:00", True),
    ],
)  # fmt: skip
def test_moments_match_down_to_their_granularity(grader: Grader, expected: Any, got: Any, right: Any) -> None:
    assert leaf(grader, expected, got).right is right


# Functions.


def test_what_a_function_returns_is_what_it_means() -> None:
    check = leaf(Function(lambda expected, got: got.startswith(expected)), "a", "ab")
    score = leaf(Function(lambda _, __: 0.7, at_least=0.7), "a", "b")
    label = leaf(Function(lambda _, __: "close", right=("close", "same")), "a", "b")
    assert (check.verdict.value, check.score, check.label) == ("match", 1.0, None)
    assert (score.verdict.value, score.score, score.label) == ("match", 0.7, None)
    assert (label.verdict.value, label.score, label.label) == ("match", 1.0, "close")
    assert leaf(Function(lambda _, __: "far"), "a", "b").verdict.value == "wrong"


def test_a_function_is_not_called_where_one_side_gives_nothing() -> None:
    never = Function(lambda _, __: 1 / 0)
    assert [verdict(never, *sides) for sides in (("a", None), (None, "a"), (None, None))] == [
        "missed",
        "invented",
        "empty",
    ]


@pytest.mark.parametrize("said", [None, 1.5, float("nan"), -1, [True]], ids=str)
def test_a_function_that_means_nothing_is_a_misuse(said: Any) -> None:
    with pytest.raises(UsageError, match="it must return a bool, a number from 0 to 1 or a label"):
        leaf(Function(lambda _, __: said), "a", "b")


# Values.


@given(JSON)
def test_json_is_plain_already(value: Any) -> None:
    assert same(plain(value), value)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=4))
def test_a_decimal_keeps_its_digits(value: Decimal) -> None:
    assert Decimal(str(plain(value))) == value
