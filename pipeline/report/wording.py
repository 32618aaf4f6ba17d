"""How verdicts are put into words, in every form of a report."""

from __future__ import annotations

import json
from typing import Any

from pipeline.evaluate import Assessment
from pipeline.grade.verdicts import Graded, Leaf

MOST_CHARACTERS = 200


def wrong_rows(assessment: Assessment) -> list[Graded]:
    """The answers that are not correct, newly broken rows first, then by row and repeat."""
    broken = set(assessment.comparison.broken) if assessment.comparison else set()
    wrong = [row for row in assessment.graded if not row.correct]
    return sorted(wrong, key=lambda row: (row.row not in broken, row.row, row.repeat))


def wrong_leaves(row: Graded) -> list[Leaf]:
    """What is wrong with an answer, in the order of the schema."""
    return [leaf for leaves in row.fields.values() for leaf in leaves if not leaf.right]


def leaf_told(leaf: Leaf) -> str:
    """A wrong leaf in a line: where, what was expected, what was given."""
    return f"{place(leaf)}: {leaf.verdict}, expected {value(leaf.expected)}, got {value(leaf.got)}"


def place(leaf: Leaf) -> str:
    """The leaf's path with its places in the lists: those of the expected side, or of the given one."""
    steps = leaf.path.split("[]")
    indexes = leaf.expected_index if len(leaf.expected_index) >= len(steps) - 1 else leaf.got_index
    told = [f"[{index}]" for index in indexes[: len(steps) - 1]]
    told += ["[]"] * (len(steps) - 1 - len(told))
    return "".join(step + (told[number] if number < len(told) else "") for number, step in enumerate(steps))


def value(content: Any) -> str:
    """A JSON value on one line, shortened."""
    text = json.dumps(content, ensure_ascii=False)
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 3]}..."


def percent(share: float | None) -> str:
    """A share for people."""
    return "-" if share is None else f"{100 * share:.1f} %"
