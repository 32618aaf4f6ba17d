"""`pipeline plan`: what a run would do, before it makes a call."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.estimating import estimate
from pipeline.cli.messages import messages_of
from pipeline.cli.options import AsJson, Assignments, Include, Inputs, Limit, Model, Target, load
from pipeline.cli.tables import json_line, plain
from pipeline.faults import Unusable

if TYPE_CHECKING:
    from pipeline.data import Row
    from pipeline.job import Job


def plan(  # noqa: PLR0913 - one parameter an option
    target: Target,
    *,
    inputs: Inputs = None,
    include: Include = None,
    model: Model = None,
    assignments: Assignments = None,
    limit: Limit = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="An earlier run, whose figures are used.")
    ] = None,
    rows: Annotated[int, typer.Option("--rows", "-n", help="How many requests to render.", min=0)] = 2,
    as_json: AsJson = False,
) -> int:
    """Show what a run would do, offline: rows, columns, the first requests, an estimate of tokens, money and time."""
    from pipeline.dataset import output_schema
    from pipeline.execute import inputs_of
    from pipeline.source import survey
    from pipeline.working import source_of

    job, _ = load(target, inputs, model, assignments, None, include=include)
    found = survey(inputs_of(job), limit=limit, include=job.include)
    source, kept = source_of(job, found)
    schema = output_schema(kept, job.reader)
    sample = list(_first_rows(source, max(rows, 100))) if found.rows else []
    source.close()
    facts = {
        "job": job.name,
        "model": job.model,
        "files": len(found.files),
        "rows": found.rows,
        "bad_rows": found.bad_count,
        "chunks": len(found.chunks),
        "requests": found.rows - found.bad_count,
        **estimate(job, sample, found.rows, output or Path(job.output or Path("out") / job.name)),
        "columns": {
            field.name: str(field.type) if field.name not in {"response", "error"} else "struct, see the README"
            for field in schema
        },
    }
    notes = [*found.notes, *_bigquery_notes(schema)]
    if as_json:
        print(json_line(facts))
        _print_notes(notes)
        return 0
    _print_facts(facts)
    _print_notes(notes)
    for row in sample[:rows]:
        print(f"\nrequest of row {row.ordinal}:")
        print(plain(_rendered(job, row)))
    return 0


def _bigquery_notes(schema: Any) -> Iterator[str]:
    from pipeline.bigquery import refused_names

    if refused := list(refused_names(schema)):
        told = f"BigQuery refuses columns named {', '.join(refused)}"
        yield f'{told}; rename="bigquery" gives the input\'s columns names that it takes'


def _print_notes(notes: Sequence[str]) -> None:
    for note in notes:
        print(plain(f"note: {note}"), file=sys.stderr)


def _first_rows(source: Any, limit: int) -> Iterator[Row]:
    for batch in source.chunk(0):
        for row in batch.rows:
            if row.ordinal >= limit:
                return
            yield row


def _rendered(job: Job, row: Row) -> str:
    try:
        return messages_of(job, row)
    except Unusable as fault:
        return f"(it cannot be asked: {fault.message})"


def _print_facts(facts: dict[str, Any]) -> None:
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for inner, kind in value.items():
                print(plain(f"  {inner}: {kind}"))
        elif value is not None:
            print(plain(f"{name.replace('_', ' '):{width}}  {value}"))
