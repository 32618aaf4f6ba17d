"""The result of an evaluation as facts: what `--json` prints, and the files in the folder of its results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.evaluation.assessment import Assessment, write
from pipeline.evaluation.at_commit import present_commit
from pipeline.evaluation.comparison import Comparison
from pipeline.evaluation.reducers import consistency
from pipeline.evaluation.stats.tables import unfolded
from pipeline.evaluation.workspace import HISTORY
from pipeline.report.json_values import jsonable, rounded
from pipeline.report.junit import junit_xml
from pipeline.storage.durable import FILES

if TYPE_CHECKING:
    from pipeline.evaluation.stats.tables import FieldTable
    from pipeline.evaluation.workspace import EvalWorkspace
    from pipeline.execution.group import RunGroup

SUMMARY, JUNIT, MARKDOWN = "summary.json", "junit.xml", "summary.md"


def facts_of(assessment: Assessment, subject: EvalWorkspace, asked: Sequence[RunGroup]) -> dict[str, Any]:
    """Everything that is reported, under plain names. `asked`: the runs of this command, whose cost is reported.

    The exit code is 4 when a gate failed, otherwise the worst of the runs.
    """
    code = 4 if assessment.failed else max((each.exit_code for each in asked), default=0)
    return {"exit_code": code, **_costs(asked), **_summary(assessment, subject)}


def write_results(assessment: Assessment, folder: Path, facts: Mapping[str, Any], markdown: str) -> None:
    """Writes the graded rows and the summary in its three forms, each atomically."""
    write(folder, assessment)
    FILES.write_atomic(folder / SUMMARY, _json(facts).encode("utf-8", "backslashreplace") + b"\n")
    FILES.write_atomic(folder / JUNIT, junit_xml(assessment, facts["seconds"]))
    FILES.write_atomic(folder / MARKDOWN, markdown.encode())


def add_to_history(folder: Path, facts: Mapping[str, Any]) -> None:
    """Appends a line to the folder's history: time, commit, figures, and the outcome of each gate."""
    copied = ("evaluation", "model", "simulated", "rows", "repeats", "requests", "cost_usd", "passed", "exit_code")
    line = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": present_commit(),
        **{name: facts[name] for name in copied},
        "measures": facts["measures"],
        "right": {field: figures["right"] for field, figures in facts["fields"].items()},
        "gates": {decision.gate: decision.outcome for decision in facts["gates"]},
    }
    with (folder / HISTORY).open("a", encoding="utf-8", errors="backslashreplace") as lines:
        lines.write(_json(line) + "\n")


def _costs(asked: Sequence[RunGroup]) -> dict[str, Any]:
    """Calls, cost and seconds of this command, summed over its rounds of questions."""
    summaries = [each.summaries[0] for each in asked]
    known = [summary.cost_usd for summary in summaries]
    return {
        "requests": sum(summary.requests for summary in summaries),
        "hedged": sum(summary.hedged for summary in summaries),
        "cache_hits": sum(summary.cache_hits for summary in summaries),
        "cost_usd": None if None in known else round(sum(cost for cost in known if cost is not None), 6),
        "seconds": round(sum(summary.seconds for summary in summaries), 3),
    }


def _summary(assessment: Assessment, subject: EvalWorkspace) -> dict[str, Any]:
    whole = assessment.tables.whole
    return {
        "status": subject.status,
        "evaluation": subject.name,
        "output": subject.place,
        "simulated": subject.simulated,
        "model": assessment.scores.model,
        "rows": len(assessment.scores.rows),
        "repeats": assessment.scores.repeats,
        "passed": not assessment.failed,
        "gates": assessment.decisions,
        "measures": {name: rounded(measure.value) for name, measure in whole.measures.items()},
        "fields": _figures(whole.fields),
        "tables": assessment.tables,
        "confusions": assessment.confusions,
        "flaky": assessment.flaky,
        "flaky_rows": [row.row for row in assessment.flaky],
        "consistency": {name: rounded(share) for name, share in consistency(assessment.graded).items()},
        "noise": assessment.scores.noise,
        "against": assessment.against,
        "comparison": assessment.comparison,
        **_moved(assessment.comparison),
        "notes": assessment.notes,
    }


def _figures(tables: Sequence[FieldTable]) -> dict[str, dict[str, float | None]]:
    """The figures of each field, and of each leaf inside it by path; where names clash, the field's own wins."""
    names = {table.field for table in tables}
    return {
        table.field: {name: rounded(measure.value) for name, measure in table.measures.items()}
        for table, inside in unfolded(tables)
        if not (inside and table.field in names)
    }


def _moved(comparison: Comparison | None) -> dict[str, Any]:
    """The main figures of a comparison; nulls without one."""
    if comparison is None:
        return dict.fromkeys(("difference", "p", "broken", "fixed"))
    overall = comparison.overall
    return {"difference": overall.difference, "p": overall.p, "broken": comparison.broken, "fixed": comparison.fixed}


def _json(facts: Mapping[str, Any]) -> str:
    """Strict JSON on one line; unknown values, such as the end of an interval, are null."""
    return json.dumps(jsonable(facts), ensure_ascii=False, allow_nan=False)
