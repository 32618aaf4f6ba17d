"""Markdown for GitHub: a step summary, or a comment.

Model output is put in HTML code spans, with every Markdown character as a character reference: none of it is markup,
and no name or number in it becomes a mention or a reference.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from pipeline.evaluation.assessment import Assessment
from pipeline.evaluation.comparison import Comparison, MetricChange
from pipeline.evaluation.decisions import Decision
from pipeline.evaluation.graders.verdicts import Graded, Leaf
from pipeline.evaluation.stats.metrics import metric_of
from pipeline.evaluation.stats.tables import unfolded
from pipeline.report.evaluation import unit_of
from pipeline.report.phrases import place, value, verdict, wrong_leaves, wrong_rows
from pipeline.text import clipped, visible
from pipeline.text.figures import chance, difference, figure, some

SUMMARY_BYTES = 500_000
"""GitHub drops a step summary of more than 1 MiB entirely."""

MOST_LEAVES = 30
MOST_ROWS = 100
MOST_NAMES = 50

_MARKUP = re.compile(r"[\\`*{}\[\]<>#|~&@!$\"']|(?<!\w)_|_(?!\w)|:(?=\S)|(?i:(?<=www)\.)")
_ICONS: Mapping[str, str] = {"ok": "✅", "warn": "⚠️", "fail": "❌", "info": "💬"}
_FIGURES = ("right", "accuracy", "precision", "recall", "f1")
_INDENT = "&nbsp;" * 4
_LEFT_OUT = "\n_The rest is left out: it would be too long for GitHub._\n"


def markdown_summary(assessment: Assessment, *, most_bytes: int = SUMMARY_BYTES) -> str:
    """The summary, shorter than `most_bytes`: if need be, whole blocks at its end are left out, with a note."""
    kept: list[str] = []
    room = most_bytes - len(_LEFT_OUT.encode()) - 1
    for block in _blocks(assessment):
        room -= len(block.encode()) + 1
        if room < 0:
            kept.append(_LEFT_OUT)
            break
        kept.append(block)
    return "\n".join(kept)


def _blocks(assessment: Assessment) -> Iterator[str]:
    """The summary in blocks that make sense alone, the most important first."""
    icon = _ICONS["fail" if assessment.failed else "ok"]
    yield f"## {icon} {_plain(assessment.scores.evaluation)}\n\n{_plain(verdict(assessment))}\n"
    if assessment.scores.simulated:
        yield "> **Simulated**: the built-in emulator answered, not a model.\n"
    for note in assessment.notes:
        yield f"> {_plain(note)}\n"
    if assessment.decisions:
        yield _table(("", "gate", "found", "what it says"), map(_gate_line, assessment.decisions))
    yield _fields(assessment)
    if assessment.comparison is not None:
        yield from _comparison(assessment.comparison, str(assessment.against))
    yield from _rows(assessment)


def _gate_line(decision: Decision) -> tuple[str, ...]:
    unit = unit_of(decision.metric)
    found = figure(decision.value, unit) if decision.metric else f"{len(decision.rows)} broken"
    return _ICONS[decision.outcome], _plain(decision.gate), found, _plain(decision.message)


def _fields(assessment: Assessment) -> str:
    lines = []
    for field, inside in unfolded(assessment.tables.whole.fields):
        right = field.measures["right"]
        interval = f"{figure(right.low, 'share')} to {figure(right.high, 'share')}"
        rest = (figure(field.measures[name].value, "share") for name in _FIGURES[1:])
        name = (_INDENT if inside else "") + _code(field.field)
        lines.append((name, figure(right.value, "share"), interval, *rest))
    head = ("field", "rows right", "95 % interval", *_FIGURES[1:])
    return "### Fields\n\n" + _table(head, lines)


def _comparison(found: Comparison, against: str) -> Iterator[str]:
    yield f"### Compared with {_code(against)}\n"
    changes = [found.overall, *(change for change in (*found.fields, *found.slices) if change.changed)]
    yield _table(("", "before", "after", "difference", "interval", "p", "q"), map(_change_line, changes))
    if any(change.torn() for change in changes):
        yield "Where interval and p disagree about noise, p decides: the interval is an approximation.\n"
    same = len(found.fields) + len(found.slices) - len(changes) + 1
    if same:
        yield f"No row changed in {same} more of the fields and slices.\n"
    if found.fixed:
        yield f"Newly fixed ({len(found.fixed)}): {some(list(map(_code, found.fixed)), MOST_NAMES)}\n"


def _change_line(change: MetricChange) -> tuple[str, ...]:
    unit = metric_of(change.metric).unit
    where = ", ".join(f"{name} = {wanted}" for name, wanted in change.where.items())
    interval = f"{difference(change.low, unit)} to {difference(change.high, unit)}"
    return (
        _code(where or change.metric),
        figure(change.before, unit),
        figure(change.after, unit),
        difference(change.difference, unit) if change.difference is not None else _plain(change.why),
        interval if change.difference is not None else "",
        chance(change.p if change.difference is not None else None),
        chance(change.q),
    )


def _rows(assessment: Assessment) -> Iterator[str]:
    """The newly broken rows with their differences; without a comparison, all wrong rows."""
    broken = set(assessment.comparison.broken) if assessment.comparison else None
    rows = [row for row in wrong_rows(assessment) if broken is None or row.row in broken]
    if not rows:
        return
    yield f"### {'Wrong' if broken is None else 'Newly broken'} rows ({len(rows)})\n"
    for row in rows[:MOST_ROWS]:
        yield _row(row)
    if len(rows) > MOST_ROWS:
        yield f"And {len(rows) - MOST_ROWS} more.\n"


def _row(row: Graded) -> str:
    leaves = wrong_leaves(row)
    paths = ", ".join(dict.fromkeys(leaf.path for leaf in leaves))
    summary = row.fault or paths
    repeat = f" (repeat {row.repeat})" if row.repeat else ""
    table = _table(("where", "expected", "given", "verdict"), map(_leaf_line, leaves[:MOST_LEAVES]))
    more = f"\nAnd {len(leaves) - MOST_LEAVES} more.\n" if len(leaves) > MOST_LEAVES else ""
    return f"<details><summary>{_code(row.row)}{repeat}: {_code(summary)}</summary>\n\n{table}{more}\n</details>\n"


def _leaf_line(leaf: Leaf) -> tuple[str, ...]:
    given = (_code(value(each)) if each is not None else "" for each in (leaf.expected, leaf.got))
    return (_code(place(leaf)), *given, leaf.verdict.value)


def _table(head: Sequence[str], lines: Iterator[tuple[str, ...]] | Sequence[tuple[str, ...]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _code(text: str) -> str:
    """Text on one line, in a span in which GitHub does not look for mentions."""
    line = " ".join(_escaped(clipped(text, 300)).split())
    return f"<code>{line}</code>" if line else ""


def _plain(text: str) -> str:
    """Our own text, which may quote users or models, on one line.

    GitHub looks for mentions and references in the rendered text: an HTML comment after their sign breaks them.
    """
    line = " ".join(_escaped(text).split())
    return line.replace("&#64;", "&#64;<!-- -->").replace("&#35;", "&#35;<!-- -->")


def _escaped(text: str) -> str:
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", visible(text))
