"""JUnit XML: a test case for every gate, and for every wrong row up to a cap."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from pipeline.evaluation.assessment import Assessment
from pipeline.evaluation.decisions import Decision
from pipeline.evaluation.graders.verdicts import Graded
from pipeline.report.phrases import render_leaf, render_row, verdict, wrong_leaves, wrong_rows
from pipeline.text import clipped

MOST_ROWS = 100
"""Maximum wrong rows with their own test case: viewers cannot handle thousands."""

MOST_CHARACTERS = 4_000
"""Maximum characters of the text about a row."""

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(assessment: Assessment, seconds: float) -> bytes:
    """The JUnit document of an evaluation; `seconds` is how long its runs took.

    Wrong rows are failures if a gate failed too, and otherwise skipped: a wrong row alone does not break a build.
    """
    root = ET.Element("testsuites", name=_clean(assessment.scores.evaluation))
    gates = [_gate_case(decision) for decision in assessment.decisions]
    decided = _suite(root, "gates", gates, seconds)
    _property(decided, "verdict", verdict(assessment))
    for name, number in assessment.scores.measures.items():
        _property(decided, name, f"{number:.6g}")
    wrong = wrong_rows(assessment)
    rows = [_row_case(row, "failure" if assessment.failed else "skipped") for row in wrong[:MOST_ROWS]]
    suite = _suite(root, "rows", rows, 0.0)
    _property(suite, "wrong_rows", str(len(wrong)))
    _property(suite, "wrong_rows_listed", str(len(rows)))
    ET.indent(root)
    content: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return content + b"\n"


def _suite(root: ET.Element, name: str, cases: Sequence[ET.Element], seconds: float) -> ET.Element:
    failed = sum(case.find("failure") is not None for case in cases)
    skipped = sum(case.find("skipped") is not None for case in cases)
    counts = {"tests": str(len(cases)), "failures": str(failed), "errors": "0", "skipped": str(skipped)}
    suite = ET.SubElement(root, "testsuite", {"name": name, **counts, "time": f"{seconds:.3f}"})
    suite.append(ET.Element("properties"))
    suite.extend(cases)
    return suite


def _property(suite: ET.Element, name: str, value: str) -> None:
    properties = suite.find("properties")
    if properties is not None:
        ET.SubElement(properties, "property", name=_clean(name), value=_clean(value))


def _gate_case(decision: Decision) -> ET.Element:
    case = ET.Element("testcase", classname="gates", name=_clean(decision.gate), time="0")
    if decision.outcome == "fail":
        ET.SubElement(case, "failure", message=_clean(decision.message), type=_clean(decision.answer))
    elif decision.outcome != "ok":
        ET.SubElement(case, "skipped", message=_clean(f"{decision.outcome}: {decision.message}"))
    return case


def _row_case(row: Graded, outcome: str) -> ET.Element:
    name = row.row if row.repeat == 0 else f"{row.row} (repeat {row.repeat})"
    case = ET.Element("testcase", classname="rows", name=_clean(name), time=f"{row.latency_s or 0.0:.3f}")
    element = ET.SubElement(case, outcome, message=_clean(clipped(render_row(row), MOST_CHARACTERS)))
    element.text = _clean(clipped("\n".join(map(render_leaf, wrong_leaves(row))), MOST_CHARACTERS))
    return case


def _clean(text: str) -> str:
    """The text without characters that XML 1.0 does not allow."""
    return _FORBIDDEN.sub("\ufffd", text)
