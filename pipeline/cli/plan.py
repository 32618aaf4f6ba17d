"""`pipeline plan`: shows what a run would do, without a call."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.messages import messages_of, readable
from pipeline.cli.options import (
    AllowPartial,
    AsJson,
    Assignments,
    Include,
    InputRowsOption,
    InputsOption,
    JobFileArgument,
    LimitOption,
    ModelOption,
    load,
)
from pipeline.cli.remote_output import earlier_run
from pipeline.cli.stores import reading_stores
from pipeline.cli.tables import json_line
from pipeline.execution.estimate import ahead_of, by_batch, estimate
from pipeline.faults import InvalidRow, NothingToDo
from pipeline.store.address import place_of
from pipeline.text import figures, printable

if TYPE_CHECKING:
    from pipeline.data import Row
    from pipeline.job.job import Job


def plan(  # noqa: PLR0913 - one parameter an option
    target: JobFileArgument,
    *,
    inputs: InputsOption = None,
    include: Include = None,
    input_rows: InputRowsOption = None,
    allow_partial: AllowPartial = None,
    model: ModelOption = None,
    assignments: Assignments = None,
    limit: LimitOption = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="The run to continue, whose figures are used: a folder or an address."),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Count the failed rows too, as for run --retry-failed.")
    ] = False,
    batch: Annotated[
        bool, typer.Option("--batch", help="Show the cost by batch prediction too, and what it saves.")
    ] = False,
    rows: Annotated[int, typer.Option("--rows", "-n", help="How many requests to render.", min=0)] = 2,
    as_json: AsJson = False,
) -> int:
    """Show what a run would do, without a call: rows, columns, first requests, estimated tokens, cost and time."""
    from pipeline.cli.progress import stage
    from pipeline.execution.chunks import source_of
    from pipeline.execution.identity import survey_of
    from pipeline.source.progress import SurveyProgress
    from pipeline.storage.output_columns import output_schema

    of_input = {"include": include, "input_rows": input_rows, "allow_partial": allow_partial}
    job, _ = load(target, inputs, model, assignments, None, **of_input)
    if batch:
        from pipeline.endpoint.batch.selection import check_job

        check_job(job)
    progress = SurveyProgress()
    place = str(output or job.output or f"out/{job.name}")
    place_of(place)  # refused before the input is read
    with reading_stores():
        with stage("reading the input", quiet=as_json, reading=progress):
            found = survey_of(job, limit=limit, progress=progress)
        if not found.rows:
            raise NothingToDo("the input holds no row")
        source, kept = source_of(job, found)
        schema = output_schema(kept, job.reader)
        sample = list(_first_rows(source, max(rows, 100)))
        source.close()
        with earlier_run(place) as before:
            ahead = ahead_of(job, found, limit, before, retry_failed=retry_failed)
            estimated = estimate(job, sample, ahead.requests, before)
    facts = {
        "job": job.name,
        "model": job.model,
        "files": len(found.files),
        "rows": found.rows,
        "bad_rows": found.bad_count,
        "chunks": len(found.chunks),
        "rows_done": ahead.done,
        "rows_retried": ahead.retried,
        "requests": ahead.requests,
        **estimated,
        **(by_batch(estimated) if batch else {}),
        "columns": {
            field.name: str(field.type) if field.name not in {"response", "error"} else "struct, see docs/output.md"
            for field in schema
        },
    }
    notes = [*found.notes, *_bigquery_notes(schema), *_spark_notes(schema), *ahead.notes]
    if as_json:
        shown = [_request(job, row) for row in sample[:rows]]
        print(json_line({**facts, "notes": notes, "first_requests": shown}, default=_attachment))
        _print_notes(notes)
        return 0
    _print_facts(_for_people(facts))
    _print_notes(notes)
    for row in sample[:rows]:
        print(f"\nrequest of row {row.ordinal}:")
        print(printable(_rendered(job, row)))
    return 0


def _request(job: Job, row: Row) -> dict[str, Any]:
    """A request as JSON: its payload, or why there is none."""
    try:
        return {"row": row.ordinal, "payload": job.request(row).payload}
    except InvalidRow as fault:
        return {"row": row.ordinal, "payload": None, "problem": fault.message}


def _attachment(value: object) -> str:
    return readable([value])


def _for_people(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts as text: each range beside its figure; counts of 0 that need no mention are left out."""
    return {
        name: _shown(name, facts)
        for name, value in facts.items()
        if not name.endswith(("_low", "_high")) and (value or name not in {"rows_done", "rows_retried"})
    }


def _shown(name: str, facts: dict[str, Any]) -> Any:
    shown, value = figures.dollars if name.endswith("_usd") else figures.count, facts[name]
    if facts.get(f"{name}_low") is not None:
        return f"{shown(value)} ({shown(facts[f'{name}_low'])} to {shown(facts[f'{name}_high'])})"
    return shown(value) if name == "batch_saves_usd" and value is not None else value


def _bigquery_notes(schema: Any) -> Iterator[str]:
    from pipeline.schema.bigquery import refused_names

    if refused := list(refused_names(schema)):
        refusal = f"BigQuery refuses columns named {', '.join(refused)}"
        yield f'{refusal}; rename="bigquery" gives the input\'s columns names that it takes'


def _spark_notes(schema: Any) -> Iterator[str]:
    from pipeline.schema.spark import refused_columns

    if refused := list(refused_columns(schema)):
        own = any(name.startswith(("parsed.", "parsed (")) for name in refused)
        remedy = 'time_as="text" makes times of an answer text' if own else "`keep` leaves columns of the input out"
        yield f"Spark refuses files with the columns {', '.join(refused)}; {remedy}"


def _print_notes(notes: Sequence[str]) -> None:
    for note in notes:
        print(printable(f"note: {note}"), file=sys.stderr)


def _first_rows(source: Any, limit: int) -> Iterator[Row]:
    for batch in source.chunk(0):
        for row in batch.rows:
            if row.ordinal >= limit:
                return
            yield row


def _rendered(job: Job, row: Row) -> str:
    try:
        return messages_of(job, row)
    except InvalidRow as fault:
        return f"(it cannot be asked: {fault.message})"


def _print_facts(facts: dict[str, Any]) -> None:
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for inner, kind in value.items():
                print(printable(f"  {inner}: {kind}"))
        elif value is not None:
            print(printable(f"{name.replace('_', ' '):{width}}  {value}"))
