"""A baseline: the result of an evaluation run as a text file, kept beside the job and reviewed in diffs.

One row per line, sorted by key, without anything that changes from run to run for no reason: no times, no latencies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pipeline.evaluation.graders.verdicts import Scored, VerdictCounts
from pipeline.faults import UsageError

FORMAT = 1

_USUAL = {"right": 1, "score": 1}
"""Default values of a field, which are not written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """Scored rows with fingerprints of their origin: two baselines with equal fingerprints are comparable.

    `job` and `graders` record by field (as hashes) what was asked and how it was graded, `data` by row what the gold
    data said. `noise` is the share of rows that flipped when the same job ran twice, if measured, and `flaky` names
    them.
    """

    evaluation: str
    model: str
    version: str
    simulated: bool
    repeats: int
    job: Mapping[str, str]
    graders: Mapping[str, str]
    data: Mapping[str, str]
    rows: tuple[Scored, ...]
    noise: float | None = None
    flaky: tuple[str, ...] = ()
    measures: Mapping[str, float] = field(default_factory=dict)
    """The headline figures, for readers of the diff; no decision uses them."""


def to_text(baseline: Baseline, *, timed: bool = False) -> str:
    """The file's content; `from_text` is the inverse. With `timed`, it includes latencies."""
    head = {
        "format": FORMAT,
        **{
            name: getattr(baseline, name)
            for name in ("evaluation", "model", "version", "simulated", "repeats", "job", "graders", "noise")
        },
        "flaky": sorted(baseline.flaky),
        "measures": {name: round(value, 6) for name, value in baseline.measures.items()},
    }
    lines = [f" {_json(name)}: {_json(value)}" for name, value in sorted(head.items())]
    rows = [
        f"  {_json(row.row)}: {_json({'data': baseline.data.get(row.row, ''), **_plain(row, timed=timed)})}"
        for row in sorted(baseline.rows, key=lambda row: row.row)
    ]
    return "{\n" + ",\n".join(lines) + ',\n "rows": {\n' + ",\n".join(rows) + "\n }\n}\n"


def from_text(text: str) -> Baseline:
    """The baseline in a file's content. Raises `UsageError` when there is none, or one of another format."""
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise UsageError(f"the baseline has format {content['format']}, not {FORMAT}: bless a run again")
        known = {one.name for one in fields(Baseline)} - {"rows", "data", "flaky"}
        rows = content["rows"]
        return Baseline(
            **{name: value for name, value in content.items() if name in known},
            data={name: row["data"] for name, row in rows.items()},
            rows=tuple(_scored(name, row) for name, row in rows.items()),
            flaky=tuple(content["flaky"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"it is not a baseline ({type(error).__name__}: {error}): bless a run again") from error


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, allow_nan=False)


def _plain(row: Scored, *, timed: bool = False) -> dict[str, Any]:
    """The stored values of a row; defaults are left out."""
    values: dict[str, Any] = {
        "correct": _rounded(row.correct),
        "fields": {name: _plain_counts(counts) for name, counts in row.fields.items()},
        "slices": dict(row.slices),
        "cluster": row.cluster,
        "failed": _rounded(row.failed),
        "flaky": row.flaky,
        "cost_usd": None if row.cost_usd is None else round(row.cost_usd, 8),
        "repeats_right": row.repeats_right,
        **({"latency_s": row.latency_s} if timed else {}),
    }
    always = {
        "correct",
        "fields",
        *(name for name in ("cost_usd", "latency_s", "repeats_right") if values.get(name) is not None),
    }
    values |= {} if row.repeats == 1 else {"repeats": row.repeats}
    return {name: value for name, value in values.items() if value or name in always}


def _plain_counts(counts: VerdictCounts) -> dict[str, float]:
    values = {one.name: _rounded(getattr(counts, one.name)) for one in fields(VerdictCounts)}
    return {name: value for name, value in values.items() if value != _USUAL.get(name, 0)}


def _rounded(value: float) -> float:
    return int(value) if value == int(value) else round(value, 6)


def _scored(name: str, row: Mapping[str, Any]) -> Scored:
    return Scored(
        row=name,
        correct=row["correct"],
        fields={field: VerdictCounts(**{**_USUAL, **counts}) for field, counts in row["fields"].items()},
        slices=row.get("slices", {}),
        cluster=row.get("cluster"),
        failed=row.get("failed", 0.0),
        flaky=row.get("flaky", False),
        cost_usd=row.get("cost_usd"),
        latency_s=row.get("latency_s"),
        repeats=row.get("repeats", 1),
        repeats_right=row.get("repeats_right"),
    )
