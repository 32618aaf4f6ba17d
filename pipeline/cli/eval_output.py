"""Reports an evaluation's result: on screen, in files, to GitHub."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli.emulate import SIMULATED
from pipeline.cli.remedies import remedy_for
from pipeline.cli.samples import for_the_eye
from pipeline.cli.tables import json_line, print_table
from pipeline.evaluation.assessment import Assessment, Reference
from pipeline.evaluation.comparison import Comparison, MetricChange
from pipeline.evaluation.stats.metrics import Measure
from pipeline.evaluation.stats.tables import unfolded
from pipeline.report.github import annotation_lines
from pipeline.report.json_values import jsonable
from pipeline.report.markdown import markdown_summary
from pipeline.report.summary import add_to_history, facts_of, write_results
from pipeline.storage.run_folder import EVALUATION
from pipeline.text import figures, printable

if TYPE_CHECKING:
    from pipeline.evaluation.baseline import Baseline
    from pipeline.evaluation.stats.tables import FieldTable
    from pipeline.evaluation.workspace import EvalWorkspace
    from pipeline.execution.group import RunGroup

_SIGNS = {"ok": "pass", "fail": "FAIL", "warn": "warn", "info": "info"}
_IN_FILE_ONLY = ("tables", "confusions", "flaky", "consistency", "comparison")
_NAMED = 10


def report_result(assessment: Assessment, subject: EvalWorkspace, asked: Sequence[RunGroup], *, as_json: bool) -> int:
    """Writes the files, reports to GitHub, prints the result; returns the exit code. `asked`: this command's runs."""
    facts = facts_of(assessment, subject, asked)
    markdown = markdown_summary(assessment)
    write_results(assessment, subject.folder, facts, markdown)
    if asked:
        with for_the_eye("the history"):
            add_to_history(subject.folder, facts)
    _report_to_github(assessment, markdown)
    for note in assessment.notes if as_json else ():
        print(f"note: {printable(note)}", file=sys.stderr)
    if as_json:
        print(json_line(jsonable({name: value for name, value in facts.items() if name not in _IN_FILE_ONLY})))
    else:
        with for_the_eye("the evaluation"):
            _print_assessment(assessment, subject, facts)
    return int(facts["exit_code"])


def report_stopped(together: RunGroup, *, as_json: bool) -> int:
    """Reports that rows are left to ask and nothing was graded; returns the exit code."""
    first = next(summary for summary in together.summaries if summary.status == "stopped")
    code, left = together.exit_code, sum(summary.left for summary in together.summaries)
    if as_json:
        print(json_line(jsonable({"status": "stopped", "exit_code": code, "left": left, "reason": first.reason})))
    why = first.reason or "nothing was sealed"
    print(
        f"error: stopped ({printable(why)}): {left} rows are left, nothing is graded; "
        f"{remedy_for(type(together.stop.reason).__name__)}",
        file=sys.stderr,
    )
    return code


def report_noise(noise: Comparison, output: str, *, as_json: bool) -> int:
    """Prints which rows flip although nothing has changed."""
    flips = sorted([*noise.broken, *noise.fixed])
    share = len(flips) / noise.rows
    if as_json:
        print(
            json_line(jsonable({"exit_code": 0, "output": output, "rows": noise.rows, "flips": flips, "share": share}))
        )
        return 0
    print(f"noise floor  {len(flips)} of {noise.rows} rows flip by themselves ({figures.percent(share)})")
    if flips:
        print(f"flaky        {_some(flips)}")
    return 0


def report_comparison(
    comparison: Comparison, reference: Reference, scores: Baseline, notes: Sequence[str], *, as_json: bool
) -> int:
    """Prints what changed from one run to another."""
    if as_json:
        before = reference.scores.evaluation
        facts = {"exit_code": 0, "before": before, "after": scores.evaluation, "notes": notes, "comparison": comparison}
        print(json_line(jsonable(facts)))
        return 0
    for note in notes:
        print(printable(f"note: {note}"), file=sys.stderr)
    _print_comparison(comparison, reference.of)
    return 0


def _report_to_github(assessment: Assessment, markdown: str) -> None:
    """Writes annotations and the step summary when run by a GitHub workflow."""
    if os.environ.get("GITHUB_ACTIONS"):
        print("\n".join(annotation_lines(assessment)), file=sys.stderr)
    if path := os.environ.get("GITHUB_STEP_SUMMARY"):
        with for_the_eye("the summary of the step"), Path(path).open("a", encoding="utf-8") as summary:
            summary.write(markdown + "\n")


def _print_assessment(assessment: Assessment, subject: EvalWorkspace, facts: Mapping[str, Any]) -> None:
    whole = assessment.tables.whole
    if subject.simulated:
        print(SIMULATED)
    print(f"evaluation  {subject.name}: {whole.rows} rows, {_times(facts['repeats'])}, model {facts['model']}")
    cost = "unknown" if facts["cost_usd"] is None else figures.cost(facts["cost_usd"])
    print(f"calls       {facts['requests']}, and {facts['cache_hits']} answers from the cache; cost {cost}")
    for name in ("row_correct", "schema_valid", "f1", "f1_macro"):
        print(f"{name:11} {_measure(whole.measures[name])}")
    print_table([_field_line(field, inside=inside) for field, inside in unfolded(whole.fields)])
    if assessment.comparison is not None:
        _print_comparison(assessment.comparison, str(assessment.against))
    for row in assessment.flaky[:_NAMED]:
        print(f"flaky       {printable(row.row)}: right in {sum(row.right)} of {len(row.right)} repeats")
    if len(assessment.flaky) > _NAMED:
        print(f"flaky       {len(assessment.flaky)} rows in all")
    for note in assessment.notes:
        print(f"note        {printable(note)}")
    for decision in assessment.decisions:
        print(f"{_SIGNS[decision.outcome]:11} {printable(decision.message)}")
    print(f"files       {subject.place}/{EVALUATION}/")


def _times(repeats: int) -> str:
    return "once each" if repeats == 1 else f"{repeats} times each"


def _field_line(field: FieldTable, *, inside: bool) -> dict[str, str]:
    shown = ("right", "precision", "recall", "f1", "missed", "invented")
    name = f"  {field.field}" if inside else field.field
    return {"field": name, **{name: _share(field.measures[name].value) for name in shown}}


def _print_comparison(comparison: Comparison, against: str) -> None:
    overall = comparison.overall
    print(f"compared    with {against}: {comparison.rows} rows, {_change(overall)}")
    if comparison.broken:
        print(f"broken      {len(comparison.broken)}: {_some(comparison.broken)}")
    if comparison.fixed:
        print(f"fixed       {len(comparison.fixed)}: {_some(comparison.fixed)}")
    moved = [change for change in (*comparison.fields, *comparison.slices) if change.changed]
    print_table(
        [
            {
                "changed": _what(change),
                "before": _share(change.before),
                "after": _share(change.after),
                "worse": str(change.worse),
                "better": str(change.better),
                "p": figures.chance(change.p),
                "q": "" if change.q is None else figures.chance(change.q),
            }
            for change in moved
        ]
    )


def _what(change: MetricChange) -> str:
    where = ", ".join(f"{name} = {value}" for name, value in change.where.items())
    return printable(f"{change.metric} where {where}" if where else change.metric)


def _change(change: MetricChange) -> str:
    if change.difference is None:
        return change.why
    points = f"{figures.difference(change.difference, 'share')} ({figures.points_range(change.low, change.high)})"
    p = f"{figures.p_is(change.p)}{', which decides whether it is noise' if change.torn() else ''}"
    return f"row_correct {points}, {p}; {change.worse} rows worse, {change.better} better"


def _measure(measure: Measure) -> str:
    if measure.value is None:
        return measure.why
    return f"{figures.percent(measure.value)} ({figures.percent_range(measure.low, measure.high)})"


def _share(value: float | None) -> str:
    return "" if value is None else figures.percent(value)


def _some(rows: Sequence[str]) -> str:
    return printable(figures.some(rows, _NAMED))
