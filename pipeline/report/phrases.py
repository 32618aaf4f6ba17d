"""Sentences about evaluations and their rows, shared by all formats of a report."""

from __future__ import annotations

import json
from typing import Any

from pipeline.evaluation.assessment import Assessment
from pipeline.evaluation.comparison import is_right
from pipeline.evaluation.graders.verdicts import Graded, Leaf
from pipeline.evaluation.stats.metrics import Measure
from pipeline.text import excerpt
from pipeline.text.figures import Unit, counted, figure

MOST_CHARACTERS = 200


def verdict(assessment: Assessment) -> str:
    """The run in a sentence or two: the gates, the number of right rows, what broke."""
    scores = assessment.scores
    right = sum(is_right(row) for row in scores.rows)
    found = assessment.tables.whole.measures["row_correct"]
    text = f"{right} of {counted(len(scores.rows), 'row')} right ({spread(found, 'share')})"
    if (change := assessment.comparison) is not None:
        broken, fixed = len(change.broken), len(change.fixed)
        text += f"; {broken} newly broken, {fixed} newly fixed against {assessment.against}"
    return f"{render_gates(assessment)}: {text}."


def render_gates(assessment: Assessment) -> str:
    """The result of the gates, in a few words."""
    outcomes = [decision.outcome for decision in assessment.decisions]
    failed, warned = outcomes.count("fail"), outcomes.count("warn")
    if failed:
        return f"Failed {failed} of {counted(len(outcomes), 'gate')}"
    if not outcomes:
        return "No gates"
    return f"Passed, with {counted(warned, 'warning')}" if warned else f"Passed all {counted(len(outcomes), 'gate')}"


def wrong_rows(assessment: Assessment) -> list[Graded]:
    """The incorrect answers: newly broken rows first, then by row and repeat."""
    broken = set(assessment.comparison.broken) if assessment.comparison else set()
    wrong = [row for row in assessment.graded if not row.correct]
    return sorted(wrong, key=lambda row: (row.row not in broken, row.row, row.repeat))


def wrong_leaves(row: Graded) -> list[Leaf]:
    """The wrong leaves of an answer, in the order of the schema."""
    return [leaf for leaves in row.fields.values() for leaf in leaves if not leaf.right]


def render_row(row: Graded) -> str:
    """A summary of what is wrong with a row, on one line."""
    leaves = wrong_leaves(row)
    return row.fault or (render_leaf(leaves[0]) if leaves else "not right")


def render_leaf(leaf: Leaf) -> str:
    """A wrong leaf on one line: its place, the expected and the given value."""
    return f"{place(leaf)}: {leaf.verdict}, expected {value(leaf.expected)}, got {value(leaf.got)}"


def place(leaf: Leaf) -> str:
    """The leaf's path with its list positions on the expected side, or else on the given one."""
    steps = leaf.path.split("[]")
    indexes = leaf.expected_index if len(leaf.expected_index) >= len(steps) - 1 else leaf.got_index
    known = [f"[{index}]" for index in indexes[: len(steps) - 1]]
    known += ["[]"] * (len(steps) - 1 - len(known))
    return "".join(step + (known[number] if number < len(known) else "") for number, step in enumerate(steps))


def value(content: Any, most: int = MOST_CHARACTERS) -> str:
    """A JSON value on one line, shortened."""
    return excerpt(json.dumps(content, ensure_ascii=False), most)


def spread(found: Measure, unit: Unit) -> str:
    """A value with its interval."""
    return f"{figure(found.value, unit)}, 95 % interval {figure(found.low, unit)} to {figure(found.high, unit)}"
