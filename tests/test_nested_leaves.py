"""The values inside a field have their own figures, equal in every form of a report and in leaves.parquet."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from pipeline import Eval, Job
from pipeline.evaluation.assessment import Assessment, assess, scores_of
from pipeline.evaluation.graders.rows import Gold, RowAnswer, grade_row
from pipeline.evaluation.graders.verdicts import Verdict
from pipeline.evaluation.results import write
from pipeline.evaluation.stats.tables import FieldTable, unfolded
from tests.commands import Done, Shell
from tests.test_report_page import Reader


class Line(BaseModel):
    """An item of an order."""

    sku: str
    quantity: int | None = None


class Party(BaseModel):
    """Who ordered."""

    name: str | None = None
    tags: list[str] = []


class Order(BaseModel):
    """Values three levels deep."""

    number: str
    party: Party = Party()
    lines: list[Line] = []


def assessed(expected: list[Any], answers: list[list[Any]]) -> Assessment:
    """`answers` has a list for each repeat; None in it is a refused row."""
    job = Job(name="a", model="m", user="{{ text }}", schema=Order, key="id")
    evaluation = Eval(job=job, repeats=len(answers), least=2)
    gold = [Gold(f"r{place}", each) for place, each in enumerate(expected)]
    graded = [
        grade_row(evaluation.graders, one, RowAnswer(got, None if got is not None else "Refused", repeat))
        for repeat, given in enumerate(answers)
        for one, got in zip(gold, given, strict=True)
    ]
    scores = scores_of(evaluation, gold, graded, name="eval", job=job.fingerprint(), simulated=True)
    return assess(evaluation, scores, graded)


def nested_of(assessment: Assessment) -> dict[str, FieldTable]:
    return {table.field: table for table, inside in unfolded(assessment.tables.whole.fields) if inside}


def order(quantity: int | None, **more: Any) -> dict[str, Any]:
    lines = [{"sku": "a", "quantity": quantity}, {"sku": "b", "quantity": 2}]
    return {"number": "1", "party": {"name": "Ada", "tags": []}, "lines": lines, **more}


def test_a_change_inside_of_a_list_is_told_at_its_leaf_and_the_others_are_right() -> None:
    found = nested_of(assessed([order(1)] * 4, [[order(1), order(9), order(None), order(1)]]))
    assert list(found) == ["party.name", "party.tags", "lines[].sku", "lines[].quantity"]
    quantity = found["lines[].quantity"]
    assert (quantity.counts["match"], quantity.counts["wrong"], quantity.counts["missed"]) == (6, 1, 1)
    assert quantity.measures["right"].value == 0.5
    assert quantity.measures["recall"].value == 6 / 8
    assert found["lines[].sku"].measures["right"].value == 1.0


def test_rows_without_the_leaf_are_not_among_those_of_which_it_is_right() -> None:
    empty = order(1, lines=[])
    found = nested_of(assessed([order(1), empty, empty], [[order(2), empty, empty]]))
    right = found["lines[].quantity"].measures["right"]
    assert (right.value, right.n) == (0.0, 1)
    assert "lines" not in found


def test_a_failed_row_counts_in_every_leaf_that_was_expected() -> None:
    found = nested_of(assessed([order(1)] * 2, [[None, order(1)]]))
    assert found["lines[].quantity"].counts["failed"] == 2
    assert found["lines[].quantity"].measures["right"].value == 0.5


def test_a_leaf_that_only_one_repeat_has_counts_by_half() -> None:
    extra = order(1, lines=[*order(1)["lines"], {"sku": "z", "quantity": 3}])
    found = nested_of(assessed([order(1, lines=[])], [[order(1, lines=[])], [extra]]))
    assert found["lines[].quantity"].counts["invented"] == 3 / 2
    assert found["lines[].quantity"].measures["right"].value == 0.0


def test_a_field_without_anything_inside_has_no_further_rows() -> None:
    assert next(table.nested for table in assessed([order(1)], [[order(1)]]).tables.whole.fields) == ()


LINES = st.lists(
    st.fixed_dictionaries({"sku": st.sampled_from("abc"), "quantity": st.one_of(st.none(), st.integers(0, 3))}),
    max_size=3,
)
ORDERS = st.builds(
    lambda lines, name, tags: order(1, lines=lines, party={"name": name, "tags": tags}),
    LINES,
    st.sampled_from(["Ada", "Bob", ""]),
    st.lists(st.sampled_from("xy"), max_size=2),
)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(ORDERS, ORDERS, st.one_of(st.none(), ORDERS)), min_size=1, max_size=4))
def test_the_counts_are_those_of_the_leaves_table_by_path(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[Any, Any, Any]]
) -> None:
    found = assessed([row[0] for row in rows], [[row[1] for row in rows], [row[2] for row in rows]])
    folder = tmp_path_factory.mktemp("leaves")
    write(folder, found.graded)
    lines = pq.read_table(folder / "leaves.parquet", columns=["field", "path", "verdict"]).to_pylist()
    counted = Counter((line["path"], line["verdict"]) for line in lines if line["path"] != line["field"])
    nested = nested_of(found)
    assert set(nested) == {path for path, _ in counted}
    for path, table in nested.items():
        for verdict in Verdict:
            assert table.counts[verdict.value] == pytest.approx(counted[path, verdict.value] / 2)


EVALUATION = """
from pydantic import BaseModel

from pipeline import Eval, Job


class Line(BaseModel):
    sku: str
    quantity: int


class Order(BaseModel):
    number: str
    lines: list[Line]


job = Job(name="orders", model="google/gemini-test", input="gold.jsonl", user="Read {{ text }}", schema=Order, key="id")
evaluation = Eval(job=job)
"""


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    shell = Shell(tmp_path_factory.mktemp("nested"), {})
    shell.write("eval.py", EVALUATION)
    lines = [{"sku": "a", "quantity": 1}, {"sku": "b", "quantity": 2}]
    gold = [{"id": f"g{n}", "text": f"text {n}", "expected": {"number": str(n), "lines": lines}} for n in range(12)]
    shell.write("gold.jsonl", "".join(json.dumps(row) + "\n" for row in gold))
    return shell


@pytest.fixture(scope="module")
def evaluated(shell: Shell) -> Done:
    return shell.pipeline("eval", "eval.py", "--emulate", "--field-error", "lines=0.5", "--report", "--quiet")


def test_terminal_markdown_summary_and_page_have_the_same_row_for_each_nested_leaf(
    shell: Shell, evaluated: Done
) -> None:
    assert evaluated.code == 0, evaluated.err
    folder: Path = shell.folder / "out" / "eval"
    facts = json.loads((folder / "_eval" / "summary.json").read_bytes())
    assert list(facts["fields"]) == ["number", "lines", "lines[].sku", "lines[].quantity"]
    recall = facts["fields"]["lines[].quantity"]["recall"]
    leaves = pq.read_table(folder / "_eval" / "leaves.parquet", columns=["path", "verdict"]).to_pylist()
    own = [line["verdict"] for line in leaves if line["path"] == "lines[].quantity"]
    expected = sum(verdict != "invented" for verdict in own)
    assert recall == pytest.approx(own.count("match") / expected, abs=1e-6)
    assert recall < 1
    shown = f"{100 * recall:.1f} %"
    (line,) = [line for line in evaluated.out.splitlines() if line.startswith("   lines[].quantity ")]
    assert shown in line
    markdown = (folder / "_eval" / "summary.md").read_text("utf-8")
    (line,) = [line for line in markdown.splitlines() if "<code>lines&#91;&#93;.quantity</code>" in line]
    assert line.startswith("| &nbsp;")
    assert shown in line
    page = (folder / "_report.html").read_text("utf-8")
    (row,) = re.findall(r'<tr class=inside><th scope="row">lines\[\]\.quantity</th>.*?</tr>', page, flags=re.DOTALL)
    assert shown in Reader(row).text
