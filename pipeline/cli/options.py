"""Options that several commands have, and the job that they describe together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipeline.job import Job

Target = Annotated[str, typer.Argument(help="A job file (FILE.py or FILE.py:NAME), or an input of ready requests.")]
Inputs = Annotated[list[str] | None, typer.Option("--input", "-i", help="File, folder or glob; may be repeated.")]
Model = Annotated[str | None, typer.Option("--model", "-m", help="The model, as in google/gemini-3.5-flash-lite.")]
Assignments = Annotated[list[str] | None, typer.Option("--set", help="FIELD=VALUE of the job, as in temperature=0.")]
Limit = Annotated[int | None, typer.Option("--limit", help="Only the first N rows.", min=1)]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as exactly one line of JSON.")]


def load(
    target: str, inputs: list[str] | None, model: str | None, assignments: list[str] | None, output: Path | None
) -> tuple[Job, str]:
    """The job that the command line describes, and the name it goes by in a plan."""
    from pipeline.jobfile import is_job_file, job_of_requests, load_job, overridden

    job = load_job(target) if is_job_file(target) else job_of_requests([target, *(inputs or ())])
    changes = {"model": model, "output": output, "input": inputs if is_job_file(target) else None}
    return overridden(job, changes, assignments or ()), target
