"""A row is graded by the graders of its schema and of the user, and is right when every required leaf is."""

from __future__ import annotations

import dataclasses
import datetime as dt
import re
import subprocess
import sys
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

import pipeline.evaluation
from pipeline.evaluation import Bool, Date, Enum, Exact, Function, Ignore, Items, Judge, Number, Object, Set, Text, Time
from pipeline.evaluation.graders import defaults  # fmt: skip
from pipeline.evaluation.graders.base import Grader
from pipeline.evaluation.graders.defaults import graders_for
from pipeline.evaluation.graders.judge import questions, ruled
from pipeline.evaluation.graders.rows import Gold, Graders, RowAnswer, grade_row
from pipeline.evaluation.graders.verdicts import Graded
from pipeline.evaluation.results import LEAVES, ROWS, write
from pipeline.faults import UsageError
from pipeline.schema.from_pydantic import shape_of
from tests.test_grade_scalars import JSON


class InvoiceLine(BaseModel):
    description: str
    amount: Decimal
    category: Literal["goods", "service"] | None


class Section(BaseModel):
    name: str
    children: list[Section] = []


class GradedInvoice(BaseModel):
    number: str = Field(description="As printed.")
    issued: dt.date | None
    at: dt.datetime
    opens: dt.time
    total: float
    copies: int
    paid: bool
    lines: list[InvoiceLine]
    tags: set[str]
    tree: Section | None
    extra: dict[str, Any]


SCHEMA = shape_of(GradedInvoice).json_schema
EXPECTED = {
    "number": "A-1", "issued": "2026-05-01", "at": "2026-05-01T10:00:00Z", "opens": "09:00", "total": 10.0, "copies": 2,
    "paid": True, "lines": [{"description": "north", "amount": "5.50", "category": "goods"}], "tags": ["x", "y"],
    "tree": {"name": "root", "children": []}, "extra": {},
}  # fmt: skip


def of(**fields: Grader) -> Graders:
    return Graders(fields)


def graded(graders: Graders, expected: Any, got: Any, **more: Any) -> Graded:
    return grade_row(graders, Gold("r1", expected, **more), RowAnswer(got))


def verdicts(row: Graded) -> dict[str, list[str]]:
    return {name: [leaf.verdict.value for leaf in leaves] for name, leaves in row.fields.items()}


# The schema's graders.


def test_every_type_of_the_schema_has_its_grader() -> None:
    graders = graders_for(SCHEMA, {})
    assert {path: grader for path, grader in graders.walk() if not grader.inner} == {
        "number": Text(), "issued": Date(), "at": Date(by="second"), "opens": Time(), "total": Number(relative=1e-9),
        "copies": Number(), "paid": Bool(), "lines[].description": Text(), "lines[].amount": Number(relative=1e-9),
        "lines[].category": Enum(("goods", "service")), "tags[]": Text(), "tree.name": Text(),
        "tree.children[]": Exact(), "extra": Exact(),
    }  # fmt: skip
    assert isinstance(graders.fields["lines"], Items)
    assert isinstance(graders.fields["tags"], Set)


def test_a_named_grader_is_completed_by_the_schema() -> None:
    named = {
        "lines": Items(fields={"description": Text(at_least=0.8)}, key="description"),
        "tree": Object({"children": Ignore()}),
    }
    graders = graders_for(SCHEMA, named)
    assert dict(graders.walk()).keys() >= {"lines[].amount", "tree.name"}
    assert dict(graders.walk())["lines[].description"] == Text(at_least=0.8)
    assert isinstance(graders.fields["lines"], Items)
    assert graders.fields["lines"].key == "description"


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"totl": Number()}, "for the field 'totl', which the schema does not have; did you mean 'total'?"),
        ({"lines": Items(fields={"amont": Number()})}, "the field 'lines' does not have; did you mean 'amount'?"),
        ({"lines": Items(key="descr")}, "'lines' has the key 'descr', which its items do not have"),
        ({"tags": Items(key="name")}, "its items are not objects"),
        ({"total": Number}, r"fields\['total'\]: Number is a class, write Number\(\)"),
        (dict.fromkeys(EXPECTED, Ignore()), "grades no field"),
    ],
    ids=str,
)
def test_a_grader_that_fits_no_field_is_a_misuse(named: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("?", r"\?")):
        graders_for(SCHEMA, named)


def test_without_a_schema_the_one_field_is_the_answer() -> None:
    assert graders_for(None, {}) == Graders({"answer": Text()}, whole=True)
    assert verdicts(graded(graders_for(None, {}), "Forty-two", "forty two.")) == {"answer": ["match"]}
    with pytest.raises(UsageError, match="its one field is 'answer'"):
        graders_for(None, {"name": Text()})


def test_of_any_object_what_is_named_is_graded() -> None:
    graders = graders_for({"type": "object"}, {"a": Text()})
    assert verdicts(graded(graders, {"a": "x", "b": 1}, {"a": "x", "b": 2})) == {"a": ["match"]}
    with pytest.raises(UsageError, match="grades no field"):
        graders_for({"type": "object"}, {})


@pytest.mark.parametrize(
    ("schema", "grader"),
    [
        ({"type": ["string", "null"]}, Text()), ({"anyOf": [{"type": "null"}, {"type": "integer"}]}, Number()),
        ({"allOf": [{"$ref": "#/$defs/b"}]}, Bool()), ({"const": "a"}, Enum(("a",))), ({"enum": [1, None]}, Enum((1,))),
        ({"anyOf": [{"type": "string"}, {"type": "boolean"}]}, Exact()), ({"$ref": "#/$defs/loop"}, Exact()),
        ({"$ref": "#/$defs/gone"}, Exact()), ({}, Exact()), (True, Exact()), ({"type": "array"}, Exact()),
        ({"type": "array", "prefixItems": [{"type": "string"}], "items": {"type": "string"}}, Exact()),
        ({"$ref": "#"}, Exact()), ({"type": "string", "format": "uuid"}, Text()),
    ],
    ids=str,
)  # fmt: skip
def test_unions_references_and_circles_are_resolved(schema: Any, grader: Grader) -> None:
    defs = {"b": {"type": "boolean"}, "loop": {"anyOf": [{"$ref": "#/$defs/loop"}, {"type": "null"}]}}
    document = {"type": "object", "properties": {"field": schema}, "$defs": defs}
    assert graders_for(document, {}).fields == {"field": grader}


# Rows.


def test_python_values_are_graded_as_their_json() -> None:
    got = GradedInvoice.model_validate(EXPECTED)
    from_parquet = got.model_dump() | {"tags": ["y", "x"], "extra": "{}"}
    for answer in (got, from_parquet | {"extra": None}):
        row = graded(graders_for(SCHEMA, {}), EXPECTED, answer)
        assert row.correct, verdicts(row)


@given(expected=st.dictionaries(st.sampled_from([*EXPECTED]), JSON), got=JSON)
def test_any_answer_is_graded_in_every_field(expected: Any, got: Any) -> None:
    row = graded(graders_for(SCHEMA, {}), expected, got)
    assert row.fields.keys() == EXPECTED.keys()
    assert all(row.fields.values())
    assert row.correct == all(leaf.right for leaves in row.fields.values() for leaf in leaves)


def test_a_row_is_right_when_every_leaf_is_and_not_when_most_are() -> None:
    graders = of(items=Items(), name=Text())
    expected = {"name": "x", "items": [f"item number {n}" for n in range(99)]}
    assert graded(graders, expected, expected).correct
    assert not graded(graders, expected, {**expected, "items": expected["items"][:-1]}).correct


def test_what_is_optional_does_not_make_a_row_wrong() -> None:
    item = {"sku": Text(), "note": Object({"by": Text()}, required=False)}
    graders = of(name=Text(required=False), noted=Text(), items=Items(fields=item, key="sku"))
    expected = {"name": "a", "noted": "b", "items": [{"sku": "s", "note": {"by": "anna"}}]}
    assert graded(graders, expected, {"noted": "b", "items": [{"sku": "s", "note": {"by": "bob"}}]}).correct
    assert not graded(graders, expected, {**expected, "items": [{"sku": "t", "note": {"by": "anna"}}]}).correct
    assert not graded(graders, expected, {**expected, "noted": "c"}).correct


def test_a_field_is_not_optional_because_its_name_begins_like_one_that_is() -> None:
    assert not graded(of(a=Text(required=False), ab=Text()), {"ab": "x"}, {}).correct


def test_a_failed_row_fails_every_leaf_that_was_expected_and_every_empty_field_once() -> None:
    answer = RowAnswer(fault="Refused", repeat=2, cost_usd=0.5, latency_s=1.0)
    gold = Gold("r1", {"tags": ["a", "b"], "name": None}, slices={"language": "de"}, cluster="d1")
    row = grade_row(of(tags=Items(), name=Text(), skipped=Ignore()), gold, answer)
    assert verdicts(row) == {"tags": ["failed", "failed"], "name": ["failed"]}
    assert (row.correct, row.fault, row.repeat, row.cost_usd, row.latency_s) == (False, "Refused", 2, 0.5, 1.0)
    assert (row.row, row.slices, row.cluster) == ("r1", {"language": "de"}, "d1")


def test_a_failed_row_is_wrong_even_where_nothing_is_required() -> None:
    assert not grade_row(of(a=Text(required=False)), Gold("r", {}), RowAnswer(fault="Truncated")).correct


def test_an_answer_that_is_no_object_is_wrong_in_every_field() -> None:
    row = graded(of(a=Text(), b=Text()), {"a": "x"}, ["x"])
    assert verdicts(row) == {"a": ["wrong"], "b": ["invented"]}
    assert not row.correct


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        (None, "the row r1 has no expected answer"),
        ("text", "the expected answer of the row r1 must be an object"),
        ({"numbr": "x"}, "has the unknown field 'numbr'; did you mean 'number'"),
    ],
    ids=str,
)
def test_a_row_that_cannot_be_graded_by_its_gold_is_a_misuse(expected: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        graded(graders_for(SCHEMA, {}), expected, {})


def test_a_function_sees_the_row() -> None:
    graders = of(a=Object({"b": Function(lambda expected, got, row: expected + row["unit"] == got)}))
    assert graded(graders, {"a": {"b": "3"}}, {"a": {"b": "3 kg"}}, columns={"unit": " kg"}).correct


# Judges.

JUDGED = of(summary=Judge("Does it say the same?", votes=3), notes=Items(Judge("Same?", model="m")), id=Text())
GOLD = {"summary": "The meeting is on Monday", "notes": ["bring the agenda", "bring a pen"], "id": "1"}
SAID = {"summary": "Monday is the day", "notes": ["bring pens", "Bring the agenda!"], "id": "1"}


def test_a_judge_is_asked_only_where_both_sides_differ_after_normalisation() -> None:
    row = graded(JUDGED, GOLD, SAID)
    asked = [
        (each.path, each.expected_index, each.got_index, each.got, each.judge.model)
        for each in questions(JUDGED, [row])
    ]
    assert asked == [("summary", (), (), "Monday is the day", None), ("notes[]", (1,), (0,), "bring pens", "m")]
    assert list(questions(JUDGED, [graded(JUDGED, GOLD, {**GOLD, "summary": None})])) == []


def test_what_is_pending_is_wrong_until_the_votes_decide() -> None:
    row = graded(JUDGED, GOLD, SAID)
    summary, note = (each.address for each in questions(JUDGED, [row]))
    half = ruled(JUDGED, row, {summary: [True]})
    assert not row.correct
    assert not half.correct
    assert [each.address for each in questions(JUDGED, [half])] == [note]
    whole = ruled(JUDGED, half, {note: [False, True, True]})
    assert whole.correct
    assert list(questions(JUDGED, [whole])) == []
    assert [(leaf.label, leaf.score) for leaf in whole.fields["notes"]] == [(None, 1.0), ("approved", 2 / 3)]


def test_a_rejected_leaf_is_wrong_for_good() -> None:
    row = graded(JUDGED, GOLD, SAID)
    done = ruled(JUDGED, row, {each.address: [False, False] for each in questions(JUDGED, [row])})
    assert Counter(leaf.label for leaves in done.fields.values() for leaf in leaves) == {"rejected": 2, None: 2}
    assert not done.correct


@given(st.lists(st.booleans(), max_size=7), st.sampled_from([1, 3, 5, 7]))
def test_a_vote_is_asked_for_only_while_it_can_matter(cast: list[bool], votes: int) -> None:
    """Asked as often as `needed` says, a judge reaches the first approval or the majority of all its votes."""
    judge = Judge("Same?", votes=votes)
    ballots = (cast + [True] * votes)[:votes]
    asked: list[bool] = []
    while more := judge.needed(asked):
        assert judge.ruling(asked) is None
        assert len(asked) + more <= votes
        asked = ballots[: len(asked) + more]
    assert judge.ruling(asked) == (ballots[0] or 2 * sum(ballots) > votes)


def test_making_graders_loads_neither_science_nor_arrow() -> None:
    code = "from pipeline.evaluation import Date, Items, Text; Items(fields={'a': Text(at_least=0.5), 'b': Date()})"
    program = f"import sys; {code}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"scipy", "numpy", "rapidfuzz", "pyarrow"} & set(done.stdout.split())


# What the page says.

PAGE = (Path(__file__).parent.parent / "docs" / "grading.md").read_text("utf-8")


def test_the_page_has_the_table_of_default_graders() -> None:
    assert defaults.__doc__ is not None
    table = "\n".join(line for line in defaults.__doc__.splitlines() if line.startswith("|"))
    assert f"\n\n{table}\n\n" in PAGE


def test_the_page_lists_every_grader_with_its_parameters() -> None:
    listed = dict(re.findall(r"^\| `(\w+)\(([^)]*)\)` \| ", PAGE.partition("\n## Graders\n")[2], flags=re.MULTILINE))
    known = [getattr(pipeline.evaluation, name) for name in pipeline.evaluation.__all__]
    own = {kind.__name__: [each.name for each in dataclasses.fields(kind) if not each.kw_only] for kind in known}
    assert {name: re.findall(r"\w+", parameters) for name, parameters in listed.items()} == own


def test_the_page_lists_the_columns_of_both_tables(tmp_path: Path) -> None:
    write(tmp_path, [])
    told = set(re.findall(r"`(\w+)`", PAGE.partition("\n## Tables\n")[2].partition("\n## ")[0]))
    for name in (LEAVES, ROWS):
        assert set(pq.read_schema(tmp_path / name).names) <= told
