"""Text for runs, verdicts and figures, shared by all formats of a report."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from pipeline.evaluation.assessment import Assessment
from pipeline.evaluation.comparison import is_right
from pipeline.evaluation.graders.verdicts import Graded, Leaf
from pipeline.evaluation.stats.metrics import Measure, Unit

MOST_CHARACTERS = 200

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e0fff]"
)
_PICTURES = 0x2400
_DELETE_PICTURE = "\N{SYMBOL FOR DELETE}"


def visible(text: str) -> str:
    """The text with invisible and direction-changing characters escaped.

    Line ends and tabs stay. The result can always be encoded, even if the text has lone surrogates.
    """
    return _UNSEEN.sub(_seen, text)


def _seen(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(_PICTURES + code)
    return _DELETE_PICTURE if code == 0x7F else f"⟨U+{code:04X}⟩"


def clipped(text: str, most: int) -> str:
    """The text, or its beginning and the length of the rest."""
    if len(text) <= most:
        return text
    return f"{text[:most]}\N{HORIZONTAL ELLIPSIS} ({len(text) - most:,} more characters)"


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
    text = json.dumps(content, ensure_ascii=False)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def percent(share: float | None) -> str:
    """A share for people."""
    return "-" if share is None else f"{100 * share:.1f} %"


def figure(number: float | None, unit: Unit) -> str:
    """A metric's value for people."""
    if number is None or not math.isfinite(number):
        return "-"
    return {"share": percent(number), "usd": f"${number:.4g}", "s": f"{number:.3g} s"}[unit]


def difference(number: float | None, unit: Unit) -> str:
    """A difference of two values of a metric, with its sign; shares in percentage points."""
    if number is None or not math.isfinite(number):
        return "-"
    size = {"share": f"{100 * abs(number):.1f} pp", "usd": f"${abs(number):.4g}", "s": f"{abs(number):.3g} s"}[unit]
    return f"{'-' if number < 0 else '+' if number > 0 else ''}{size}"


def spread(found: Measure, unit: Unit) -> str:
    """A value with its interval."""
    return f"{figure(found.value, unit)}, 95 % interval {figure(found.low, unit)} to {figure(found.high, unit)}"


def chance(p: float | None) -> str:
    """A p-value for people."""
    if p is None:
        return "-"
    return f"{p:.4f}" if p >= 0.0001 else "< 0.0001"


def counted(number: int, noun: str) -> str:
    """A count with its noun, singular or plural."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
