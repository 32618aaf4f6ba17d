"""What a run will take: from an earlier run of the same job where there is one, else from its first rows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data import Usage
from pipeline.faults import Broken, Unusable

if TYPE_CHECKING:
    from pipeline.data import Row
    from pipeline.job import Job

CHARACTERS_PER_TOKEN = 4.0
GUESSED_OUTPUT_TOKENS = 200.0
CONCURRENCY = 64


@dataclass(frozen=True, slots=True)
class Means:
    """Of one row: tokens in and out (thinking included), and seconds; where they were measured, or None if guessed."""

    input: float
    output: float
    seconds: float | None
    measured_in: Path | None


def estimate(job: Job, sample: list[Row], rows: int, output: Path) -> dict[str, Any]:
    """Tokens, dollars and minutes for all rows; a figure that cannot be told is None."""
    from pipeline.composition import Bounds, prices_for

    means = measured(output) or guessed(job, sample)
    usage = Usage(input=round(means.input * rows), output=round(means.output * rows))
    one = Usage(input=round(means.input), output=round(means.output))
    cost = prices_for(job, Bounds()).cost(job.model, one) if job.model else None
    minutes = None if means.seconds is None else round(rows * means.seconds / CONCURRENCY / 60, 1)
    return {
        "estimated_from": f"the run in {means.measured_in}" if means.measured_in else "the first rows",
        "input_tokens": usage.input,
        "output_tokens": usage.output,
        "cost_usd": None if cost is None else round(cost * rows, 6),
        f"minutes_at_{CONCURRENCY}_in_flight": minutes,
    }


def measured(output: Path) -> Means | None:
    """The means of the rows that an earlier run has paid; None when there is none."""
    from pipeline.journal import look
    from pipeline.slices import part_file

    parts, _ = look(output / "_run" / "journal.sqlite")
    answered = sum(max(0, part.ok - part.from_cache) for part in parts)
    if not answered:
        return None
    read = sum(part.input_tokens for part in parts) / answered
    written = sum(part.output_tokens + part.reasoning_tokens for part in parts) / answered
    try:
        with part_file(output / parts[0].files[0].path) as file:
            column = file.read(columns=["response.latency_s"])["response"].combine_chunks()
    except Broken:  # an estimate is no place to tell of it
        return None
    seconds = [value for value in column.field("latency_s").to_pylist() if value is not None]
    return Means(read, written, sum(seconds) / len(seconds) if seconds else None, output)


def guessed(job: Job, rows: list[Row]) -> Means:
    """Input at four characters a token; output at a guess that only an earlier run can better."""
    sizes = []
    for row in rows:
        try:
            sizes.append(len(json.dumps(job.request(row).payload["messages"], ensure_ascii=False, default=str)))
        except Unusable:
            continue
    mean = sum(sizes) / len(sizes) if sizes else 0.0
    return Means(mean / CHARACTERS_PER_TOKEN, GUESSED_OUTPUT_TOKENS, None, None)
