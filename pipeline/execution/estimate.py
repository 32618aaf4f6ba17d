"""What a run would ask, and an estimate of what that takes: from an earlier run of the job, or else its first rows."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data import Usage
from pipeline.faults import Broken, InvalidRow

if TYPE_CHECKING:
    from pipeline.data import Part, Row
    from pipeline.endpoint.prices import Prices
    from pipeline.job.job import Job
    from pipeline.source import Survey
    from pipeline.storage.remote.hydration import RemoteView

CHARACTERS_PER_TOKEN = 4.0
FEWEST_PER_TOKEN, MOST_PER_TOKEN = 2.5, 5.0
"""Other languages and JSON take more tokens than English prose; Chinese and Japanese more still."""

GUESSED_OUTPUT_TOKENS = 200.0
LEAST_OUTPUT_TOKENS, MOST_OUTPUT_TOKENS, MOST_WITH_THINKING = 50.0, 600.0, 2000.0
"""The range of common jobs: a few fields of a schema, or a long paragraph; and thinking, if it is enabled."""

CONCURRENCY = 64
_SAMPLE = 20_000
"""The most rows of the first part from which the spread is computed."""

_SHORT_CALL, _MANY = 500, 100
"""A shorter call (in tokens) is priced as a hundredth of a hundred calls, so that rounding does not distort it."""

_ROUGH = 0.3
"""The relative error assumed for a mean of unknown spread: the journal has sums, not single rows."""


@dataclass(frozen=True, slots=True)
class MeanAndRange:
    """A figure per row: the mean, and its range (two standard errors, or the span of a guess)."""

    mean: float
    low: float
    high: float

    def of(self, rows: int) -> tuple[int, int, int]:
        """Mean, low and high of the sum over `rows` rows."""
        return round(self.mean * rows), round(self.low * rows), round(self.high * rows)


@dataclass(frozen=True, slots=True)
class RowMeans:
    """Means per row: input and output tokens (with thinking), seconds; where they were measured, None if guessed."""

    input: MeanAndRange
    output: MeanAndRange
    cached_share: float
    """The share of input tokens that are cached."""
    seconds: float | None
    measured_in: str | None


@dataclass(frozen=True, slots=True)
class EarlierRun:
    """Where an earlier run may be: an output folder, or the copy of a run in a bucket."""

    output: Path
    remote: RemoteView | None = None

    @property
    def name(self) -> str:
        """What its user calls it."""
        return self.remote.address if self.remote else str(self.output)


def estimate(job: Job, sample: list[Row], rows: int, earlier: EarlierRun) -> dict[str, Any]:
    """Tokens, dollars and minutes for `rows` rows; a figure that cannot be estimated is None."""
    means = measured(earlier.output, earlier.name) or guessed(job, sample)
    read, read_low, read_high = means.input.of(rows)
    written, written_low, written_high = means.output.of(rows)
    minutes = None if means.seconds is None else round(rows * means.seconds / CONCURRENCY / 60, 1)
    return {
        "estimated_from": f"the run in {means.measured_in}" if means.measured_in else "the first rows",
        "input_tokens": read,
        "input_tokens_low": read_low,
        "input_tokens_high": read_high,
        "output_tokens": written,
        "output_tokens_low": written_low,
        "output_tokens_high": written_high,
        "cost_usd": _cost(job, means, means.input.mean, means.output.mean, rows),
        "cost_usd_low": _cost(job, means, means.input.low, means.output.low, rows),
        "cost_usd_high": _cost(job, means, means.input.high, means.output.high, rows),
        f"minutes_at_{CONCURRENCY}_in_flight": minutes,
    }


def by_batch(figures: dict[str, Any]) -> dict[str, Any]:
    """What the rows of an estimate cost by batch, and what that saves; None where the price is unknown."""
    from pipeline.endpoint.batch.backend import PRICE_FACTOR

    costs = {suffix: figures[f"cost_usd{suffix}"] for suffix in ("", "_low", "_high")}
    half = {
        f"batch_cost_usd{suffix}": None if cost is None else round(cost * PRICE_FACTOR, 6)
        for suffix, cost in costs.items()
    }
    saved = None if costs[""] is None else round(costs[""] * (1 - PRICE_FACTOR), 6)
    return {**half, "batch_saves_usd": saved}


def _cost(job: Job, means: RowMeans, read: float, written: float, rows: int) -> float | None:
    """The cost of `rows` rows in USD; None if the price of the model is unknown."""
    from pipeline.policy.compose import RunLimits, prices_for

    return cost_at(prices_for(job, RunLimits()), job, means, read, written, rows)


def most_used(job: Job, means: RowMeans, prices: Prices, rows: int) -> tuple[float | None, float]:
    """The upper end of the estimate for `rows` rows: US dollars, None if the price is unknown, and tokens."""
    read, written = means.input.high, means.output.high
    return cost_at(prices, job, means, read, written, rows), rows * (read + written)


def cost_at(prices: Prices, job: Job, means: RowMeans, read: float, written: float, rows: int) -> float | None:
    """The cost of `rows` rows in USD, of so many tokens each; None if the price of the model is unknown."""
    if not job.model:
        return None
    calls = (
        _MANY if read < _SHORT_CALL else 1
    )  # tokens are integers, and the price of a long call depends on its length
    usage = Usage(
        input=round(read * calls), output=round(written * calls), cached=round(read * calls * means.cached_share)
    )
    cost = prices.cost(job.model, usage)
    return None if cost is None else round(cost * rows / calls, 6)


def measured(output: Path, name: str) -> RowMeans | None:
    """The means over the rows that an earlier run asked, ok or failed; None if there is no such run."""
    from pipeline.storage.journal_reader import charged_in, read_state
    from pipeline.storage.run_folder import RunFolder

    journal = RunFolder(output).journal
    parts, pending = read_state(journal)
    asked = sum(max(0, part.rows - part.from_cache - part.unmetered) for part in parts)
    if asked:
        read, written, seconds = _spread(output, parts)
        total = sum(part.input_tokens for part in parts)
        cached = sum(part.cached_tokens for part in parts) / total if total else 0.0
        outs = sum(part.output_tokens + part.reasoning_tokens for part in parts)
        return RowMeans(_figure(total / asked, read), _figure(outs / asked, written), cached, seconds, name)
    if not pending:
        return None
    charged = charged_in(journal, ended=True)
    if not charged.input_tokens:
        return None
    cached = charged.cached_tokens / charged.input_tokens
    outs = charged.output_tokens + charged.reasoning_tokens
    return RowMeans(_figure(charged.input_tokens / pending, None), _figure(outs / pending, None), cached, None, name)


def _figure(mean: float, error: float | None) -> MeanAndRange:
    off = mean * _ROUGH if error is None else 2 * error
    return MeanAndRange(mean, max(0.0, mean - off), mean + off)


def _spread(output: Path, parts: Sequence[Part]) -> tuple[float | None, float | None, float | None]:
    """Standard errors of the input and output tokens per row, and the mean seconds, from the first part."""
    from pipeline.storage.batches import part_file

    columns = ["response.latency_s", "response.input_tokens", "response.output_tokens", "response.reasoning_tokens"]
    name = next(name for part in parts for name, _, _ in part.spans())
    try:
        with part_file(output / name) as file:
            rows = next(file.iter_batches(_SAMPLE, columns=columns)).column(0).to_pylist()
    except Broken:  # an estimate is not the place to report damage
        return None, None, None
    rows = [row or {} for row in rows]  # a row that failed without an answer used nothing
    seconds = [row["latency_s"] for row in rows if row.get("latency_s")]  # 0 is that of an answer by batch
    read = [row.get("input_tokens") or 0 for row in rows]
    written = [(row.get("output_tokens") or 0) + (row.get("reasoning_tokens") or 0) for row in rows]
    return _error_of(read), _error_of(written), sum(seconds) / len(seconds) if seconds else None


def _error_of(values: Sequence[float]) -> float | None:
    """The standard error of a mean; None for too few values."""
    import statistics

    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def guessed(job: Job, rows: list[Row]) -> RowMeans:
    """Means by the characters of the input, and a guess at the output, which only an earlier run can improve."""
    sizes = []
    for row in rows:
        try:
            sizes.append(len(json.dumps(job.request(row).payload["messages"], ensure_ascii=False, default=str)))
        except InvalidRow:
            continue
    mean = sum(sizes) / len(sizes) if sizes else 0.0
    read = MeanAndRange(mean / CHARACTERS_PER_TOKEN, mean / MOST_PER_TOKEN, mean / FEWEST_PER_TOKEN)
    return RowMeans(read, _guessed_output(job), 0.0, None, None)


def _guessed_output(job: Job) -> MeanAndRange:
    thinks = job.reasoning_effort not in (None, "none", "minimal") or bool(job.google)
    most = MOST_WITH_THINKING if thinks else MOST_OUTPUT_TOKENS
    if job.max_tokens is not None:  # it bounds thinking and answer together
        most = min(most, float(job.max_tokens))
    answers = job.n or 1
    return MeanAndRange(
        min(GUESSED_OUTPUT_TOKENS, most) * answers, min(LEAST_OUTPUT_TOKENS, most) * answers, most * answers
    )


@dataclass(frozen=True, slots=True)
class Ahead:
    """What `run` would ask: `requests` rows, of which `retried` were asked before; `done` rows are not asked again."""

    requests: int
    done: int = 0
    retried: int = 0
    notes: tuple[str, ...] = ()


def ahead_of(job: Job, found: Survey, limit: int | None, earlier: EarlierRun, *, retry_failed: bool) -> Ahead:
    """What is left of an earlier run, if this plan would resume it."""
    from pipeline.execution.identity import found_input, growth_in
    from pipeline.execution.run_status import run_status
    from pipeline.source import Survey
    from pipeline.storage.run_folder import RunFolder, RunIdentity, differences

    everything = Ahead(found.rows - found.bad_count)
    before = RunFolder(earlier.output).load()
    if before is None:
        return everything
    status = run_status(earlier.output, earlier.remote)
    if not status.done:
        return everything
    now = RunIdentity(
        job_name=job.name, job=job.fingerprint(), target="", survey={}, limit=limit, simulated=before.simulated
    )
    known = Survey.from_json(before.survey)
    _, moved = found_input(job, known)
    different = [*differences(before, now), *moved]
    notes: tuple[str, ...] = ()
    # A survey of the first rows alone says nothing of what came after them.
    if moved and different == moved and before.limit is None and not growth_in(job, known).differences:
        held = f"{earlier.name} holds {known.rows:,} of these rows"
        notes = (f"{held}: `pipeline run` takes in the others with --append",)
    elif different:
        refused = (
            f"{earlier.name} holds a different run ({different[0]}): `pipeline run` needs --fresh or another --output"
        )
        return replace(everything, notes=(f"{refused}; the figures are for all rows",))
    retried = status.failed if retry_failed else 0
    left = found.rows - status.done
    bad = round(found.bad_count * left / found.rows)  # bad rows fail without a call; some of them may be done already
    return Ahead(max(0, left - bad) + retried, status.done - retried, retried, notes)
