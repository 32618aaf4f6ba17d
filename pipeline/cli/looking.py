"""`pipeline plan`, `status` and `show`: looking at a job before it runs, and at a run."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.estimating import estimate
from pipeline.cli.options import AsJson, Assignments, Include, Inputs, Limit, Model, Target, load
from pipeline.cli.streams import reader_gone
from pipeline.cli.tables import json_line, plain, print_table, short
from pipeline.failures import Failures
from pipeline.faults import Misuse, Unusable

if TYPE_CHECKING:
    from pipeline.data import Row
    from pipeline.job import Job
    from pipeline.plan import Plan, RunFolder

_NOT_SHOWN = {"at", "done", "lanes", "failures"}
"""What a running job says of itself that `status` shows elsewhere, or not at all."""


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
            field.name: str(field.type) if field.name not in {"response", "error"} else "struct, see docs/output.md"
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


def status(
    output: Annotated[Path, typer.Argument(help="The output folder of a run.")], *, as_json: AsJson = False
) -> int:
    """Show how far a run is, also from another terminal while it works."""
    from pipeline.dataset import SUCCESS
    from pipeline.journal import charged_in, look
    from pipeline.records import with_examples
    from pipeline.report.facts import manifest_of
    from pipeline.watching import state_of

    folder, found = _run_in(output)
    parts, pending = look(folder.journal)
    holder = folder.running()
    charged = charged_in(folder.journal, ended=holder is None)
    state = state_of(folder.run) if holder else {}
    told = manifest_of(output) or {}
    settled = not holder and told.get("ok", 0) + told.get("failed", 0) >= sum(part.rows for part in parts) + pending
    by_part = [part.failures for part in parts]
    kinds = state.get("failures") or (told.get("failures") if settled else None) or chain.from_iterable(by_part)
    failures = with_examples(Failures() + Failures.from_json(kinds), output, parts)
    total = int(found.survey["rows"])
    done = sum(part.rows for part in parts) + pending
    facts = {
        "job": found.job_name,
        "simulated": found.simulated,
        "state": "running" if holder else "complete" if (output / SUCCESS).is_file() else "stopped",
        "holder": holder,
        "rows": total,
        "done": done,
        "left": total - done,
        "reason": told.get("reason") if settled else None,
        "failures": failures.bare().to_json(),
        "sealed_parts": len(parts),
        "failed_in_sealed_parts": sum(part.failed for part in parts),
        **charged.figures("run_"),
        "run_lost_calls": charged.lost_calls,
        "created": found.created,
    }
    if holder:
        shown = {name: value for name, value in state.items() if value not in (None, [], {})}
        facts |= {f"now_{name}": value for name, value in shown.items() if name not in _NOT_SHOWN}
    if as_json:
        print(json_line(facts))
    else:
        counted = {kind.name: f"{kind.count}, {kind.said}" for kind in failures.kinds}
        _print_facts({**facts, "failures": counted or None})
    return 0


def tune(
    output: Annotated[Path, typer.Argument(help="The output folder of a running job.")],
    changes: Annotated[list[str], typer.Argument(help="NAME=NUMBER: concurrency, rpm, tpm.")],
) -> int:
    """Change the limits of a running job."""
    from pipeline.watching import ask_to_tune

    folder, _ = _run_in(output)
    if folder.running() is None:
        raise Misuse(f"nothing runs on {output}: give the limits to `pipeline run`")
    asked = ask_to_tune(folder.run, changes)
    print(f"asked for {', '.join(f'{name}={value:g}' for name, value in asked.items())}; `pipeline status` shows it")
    return 0


def show(
    output: Annotated[Path, typer.Argument(help="The output folder of a run.")],
    *,
    failed: Annotated[bool, typer.Option("--failed", help="Only failed rows.")] = False,
    rows: Annotated[int, typer.Option("-n", "--rows", help="How many rows.", min=1)] = 5,
    row: Annotated[int | None, typer.Option("--row", help="The row with this ordinal.", min=0)] = None,
    media: Annotated[
        Path | None, typer.Option("--media", help="Write the rows' media to files in this folder.")
    ] = None,
    job_file: Annotated[
        str | None, typer.Option("--job", "-j", help="The job file, to show requests (default: the one that ran).")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Show rows of a finished or running dataset: request, reply and values side by side."""
    from pipeline.records import records

    _, found = _run_in(output)
    job = None if as_json else _job_of(found, output, job_file)
    shown = 0
    for ordinal, record in records(output):
        if (failed and record["status"] != "failed") or (row is not None and ordinal != row):
            continue
        if media is not None:
            _write_media(ordinal, record, media)
        if as_json:
            print(json_line({"ordinal": ordinal, **record}, default=_plain_json))
        else:
            _print_record(ordinal, record, job)
        shown += 1
        if shown == (1 if row is not None else rows) or reader_gone():
            break
    if row is not None and not shown:
        total = found.survey["rows"]
        raise Misuse(f"row {row} is not sealed yet" if row < total else f"there is no row {row}: the run has {total}")
    if not shown:
        print(f"no {'failed ' if failed else ''}row is in the sealed parts", file=sys.stderr)
    return 0


def _write_media(ordinal: int, record: dict[str, Any], folder: Path) -> None:
    """Puts what the model made into files named by row and number."""
    import mimetypes

    folder.mkdir(parents=True, exist_ok=True)
    for number, item in enumerate((record["response"] or {}).get("media") or ()):
        suffix = mimetypes.guess_extension(item["mime_type"]) or ".bin"
        path = folder / f"row-{ordinal:06d}-{number}{suffix}"
        path.write_bytes(item["data"])
        print(path, file=sys.stderr)


def _plain_json(value: object) -> Any:
    """Bytes have no JSON: their size stands for them."""
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)


def _run_in(output: Path) -> tuple[RunFolder, Plan]:
    from pipeline.plan import RunFolder

    folder = RunFolder(output)
    found = folder.load()
    if found is None:
        raise Misuse(f"{output} holds no run (no {output / '_run' / 'plan.json'})")
    return folder, found


def _job_of(plan: Plan, output: Path, given: str | None) -> Job | None:
    """The job as its file is now, to render requests with; None, and a note, when it may not be run or has changed.

    Raises `Misuse` when the one that was given is not the run's.
    """
    from pipeline.cli.trusted import target_of
    from pipeline.jobfile import is_job_file, job_of_requests, load_job

    try:
        target = target_of(plan, output, given)
        job = load_job(target) if is_job_file(target) else job_of_requests([target])
        if job.fingerprint()["prompt"] == plan.job.get("prompt"):
            return job
        problem = Misuse(f"the prompt of {target} is not the one that was asked")
    except Misuse as error:
        problem = error
    if given is not None:
        raise problem
    print(f"note: requests are not shown: {plain(str(problem))}", file=sys.stderr)
    return None


def _first_rows(source: Any, limit: int) -> Iterator[Row]:
    for batch in source.chunk(0):
        for row in batch.rows:
            if row.ordinal >= limit:
                return
            yield row


def _rendered(job: Job, row: Row) -> str:
    try:
        messages = job.request(row).payload["messages"]
    except Unusable as fault:
        return f"  cannot be asked: {fault.message}"
    return "\n".join(f"  [{message['role']}] {short(readable(message.get('content')), 2000)}" for message in messages)


def readable(content: Any) -> Any:
    """A message's content for people: text as it is, attachments by name."""
    from pipeline.attachments import Attachment

    if not isinstance(content, list):
        return content
    pieces = []
    for part in content:
        if isinstance(part, Attachment):
            value = part.value if isinstance(part.value, str) else f"{len(part.value)} bytes"
            pieces.append(f"<{part.kind}: {short(value, 80)}>")
        else:
            pieces.append(str(part.get("text", part)) if isinstance(part, dict) else str(part))
    return " ".join(pieces)


def _print_facts(facts: dict[str, Any]) -> None:
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for inner, kind in value.items():
                print(plain(f"  {inner}: {kind}"))
        elif value is not None:
            print(plain(f"{name.replace('_', ' '):{width}}  {value}"))


def _print_record(ordinal: int, record: dict[str, Any], job: Job | None) -> None:
    from pipeline.data import Row

    response = record["response"] or {}
    unusable = (record["error"] or {}).get("type") == "Unusable"
    added = job.add if job is not None and job.add is not None else ("row",)
    asked = {name: value for name, value in record.items() if name not in added}
    request = "(it was not asked)" if unusable else _rendered(job, Row(ordinal, asked)) if job else ""
    values = record["parsed"] if record["status"] == "ok" else record["error"]
    inputs = {k: v for k, v in record.items() if k not in {"status", "parsed", "response", "error"}}
    print_table(
        [
            {
                f"row {ordinal}: request": request or short(inputs, 2000),
                "reply": short(response.get("text") or "", 2000),
                record["status"]: json.dumps(values, ensure_ascii=False, indent=1, default=str),
            }
        ]
    )
