"""What CI shows of an evaluation: JUnit XML, a Markdown summary, annotations."""

from __future__ import annotations

import dataclasses
import html
import re
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.assessment import Assessment
from pipeline.report.github import annotation_lines
from pipeline.report.junit import MOST_ROWS, junit_xml
from pipeline.report.markdown import SUMMARY_BYTES, markdown_summary
from pipeline.text import clipped
from tests.assessments import BROKEN, GOLD, assessed

HOSTILE = (
    "]]></failure>\x1b[31m\x00 @octocat #12 `a` | <img src=x> [a](http://b) www.evil.org"
    "\r\n::error::x \u202e\ud800 100%"
)


@pytest.fixture(scope="module")
def failed() -> Assessment:
    answers = [BROKEN if place % 3 == 0 else None if place % 7 == 0 else GOLD for place in range(30)]
    return assessed(answers, [GOLD] * 30)


@pytest.fixture(scope="module")
def hostile() -> Assessment:
    answer = {"name": HOSTILE, "kind": HOSTILE, "people": [HOSTILE]}
    found = assessed([answer, GOLD, None], [GOLD] * 3, names=[HOSTILE, "b", "c"])
    decisions = tuple(dataclasses.replace(each, gate=HOSTILE, message=HOSTILE) for each in found.decisions)
    return dataclasses.replace(found, decisions=decisions, notes=(HOSTILE,), against=HOSTILE)


def flood(rows: int = 250) -> Assessment:
    text = "<&|\n" * 5_000
    answer = {"name": text, "kind": "concert", "people": [f"{place} {text}" for place in range(40)]}
    return assessed([answer] * rows, [GOLD] * rows, names=[f"{place:03d} {text[:500]}" for place in range(rows)])


# JUnit.


def suites(assessment: Assessment) -> dict[str, ET.Element]:
    root = ET.fromstring(junit_xml(assessment, 1.5))  # noqa: S314 - our own
    return {suite.attrib["name"]: suite for suite in root}


def test_junit_has_a_case_for_every_gate_and_every_wrong_row_and_counts_them(failed: Assessment) -> None:
    found = suites(failed)
    outcomes = [decision.outcome for decision in failed.decisions]
    gates, rows = found["gates"], found["rows"]
    wrong = sum(not row.correct for row in failed.graded)
    assert [case.attrib["name"] for case in gates.iter("testcase")] == [each.gate for each in failed.decisions]
    assert int(gates.attrib["failures"]) == len(list(gates.iter("failure"))) == outcomes.count("fail") > 0
    assert int(rows.attrib["tests"]) == int(rows.attrib["failures"]) == len(list(rows.iter("testcase"))) == wrong
    assert "people[1]: invented" in str(next(rows.iter("failure")).text)


def test_junit_tells_the_verdict_and_the_headlines_as_properties(failed: Assessment) -> None:
    properties = {one.attrib["name"]: one.attrib["value"] for one in suites(failed)["gates"].iter("property")}
    assert properties["verdict"].startswith("Failed ")
    assert float(properties["row_correct"]) == pytest.approx(failed.scores.measures["row_correct"], rel=1e-5)


def test_junit_wrong_rows_break_no_build_that_the_gates_let_pass() -> None:
    found = suites(assessed([BROKEN, GOLD], gates=()))
    assert (found["rows"].attrib["failures"], found["rows"].attrib["skipped"]) == ("0", "1")


def test_junit_is_xml_whatever_a_model_wrote_and_stops_at_its_caps(hostile: Assessment) -> None:
    assert "@octocat" in ET.tostring(suites(hostile)["rows"], encoding="unicode")
    found = suites(flood())["rows"]
    assert len(list(found.iter("testcase"))) == MOST_ROWS
    assert {one.attrib["name"]: one.attrib["value"] for one in found.iter("property")} == {
        "wrong_rows": "250",
        "wrong_rows_listed": "100",
    }
    assert len(junit_xml(flood(), 0.0)) < 2_000_000


# Annotations.


def test_an_annotation_for_every_gate_that_did_not_pass_and_none_for_rows(failed: Assessment) -> None:
    lines = list(annotation_lines(failed))
    bad = [each for each in failed.decisions if each.outcome != "ok"]
    assert len(lines) == len(bad) > 0
    assert all(line.startswith(("::error title=", "::warning title=", "::notice title=")) for line in lines)


def test_an_annotation_stays_on_its_line_and_in_its_place(hostile: Assessment) -> None:
    for line in annotation_lines(hostile):
        found = re.match(r"^(::)(\w+) (title=[^,:]*)::(.*)$", line)
        assert found is not None, line
        head, command, properties, message = found.groups()
        assert (head, command) == ("::", "error") or command in {"warning", "notice"}
        assert "%3A" in properties
        assert "%0A%3A%3Aerror" in properties
        assert "100%25" in message
        assert len(line.splitlines()) == 1
        line.encode()


def test_no_more_annotations_of_a_kind_than_github_shows(failed: Assessment) -> None:
    many = dataclasses.replace(failed, decisions=failed.decisions * 20)
    lines = list(annotation_lines(many))
    assert sum(line.startswith("::error") for line in lines) == 10


# Markdown.


def cells(text: str) -> list[list[str]]:
    """The rows of all tables."""
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in text.splitlines() if line.startswith("|")]


def test_the_summary_begins_with_the_verdict_and_tells_gates_fields_comparison_and_broken_rows(
    failed: Assessment,
) -> None:
    text = markdown_summary(failed)
    first, _, verdict, *_ = text.splitlines()
    assert first == "## \N{CROSS MARK} eval_events"
    assert verdict.startswith("Failed ")
    rows = cells(text)
    assert {row[1] for row in rows} >= {each.gate for each in failed.decisions}
    for field in failed.tables.whole.fields:
        assert any(row[0] == f"<code>{field.field}</code>" and row[1].endswith("%") for row in rows)
    assert failed.comparison is not None
    assert text.count("<details>") == text.count("</details>") == len(failed.comparison.broken)
    assert "| <code>name</code> | <code>&#34;Fair&#34;</code> | <code>&#34;Fear&#34;</code> | wrong |" in text


def test_nothing_in_a_summary_is_markup_or_mentions_anybody(hostile: Assessment) -> None:
    text = markdown_summary(hostile)
    text.encode()
    for sign in ("@octocat", " #12", "`", "<img", "](", "http://", "www.evil", "\x1b", "\u202e", "\r"):
        assert sign not in text
    outside = re.sub(r"<(code)>.*?</\1>", "", text)
    assert "@octocat" in html.unescape(text)
    assert "&#64;<!-- -->octocat" in outside
    assert "&#64;octocat" not in outside
    widths = [len(row) for row in cells(text)]
    heads = [len(row) for row in cells(text) if set(row) == {"---"}]
    assert set(widths) == set(heads)


@settings(max_examples=25, deadline=None)
@given(st.text(st.characters(), max_size=40))
def test_any_answer_stays_in_its_cell(text: str) -> None:
    summary = markdown_summary(assessed([{**GOLD, "name": text + "?"}], [GOLD], names=["r"]))
    (row,) = [row for row in cells(summary) if row[0] == "<code>name</code>" and len(row) == 4]
    assert row[3] == "wrong"
    assert re.fullmatch(r"<code>[^<>|`@]*</code>", row[2])


@pytest.mark.parametrize("most_bytes", [2_000, 64_000, SUMMARY_BYTES])
def test_a_summary_stays_below_its_size_with_whole_blocks_and_says_what_it_left_out(most_bytes: int) -> None:
    text = markdown_summary(flood(), most_bytes=most_bytes)
    assert len(text.encode()) < most_bytes
    assert text.count("<details>") == text.count("</details>")
    assert "left out" in text or "more." in text


def test_a_summary_without_a_comparison_tells_the_wrong_rows() -> None:
    text = markdown_summary(assessed([BROKEN, GOLD], gates=()))
    assert "## \N{WHITE HEAVY CHECK MARK} eval_events" in text
    assert "No gates: 1 of 2 rows right" in text
    assert "### Wrong rows (1)" in text


@pytest.mark.parametrize(("text", "most", "told"), [("abc", 3, "abc"), ("abcd", 3, "abc\u2026 (1 more characters)")])
def test_a_clipped_text_says_how_much_is_missing(text: Any, most: int, told: str) -> None:
    assert clipped(text, most) == told
