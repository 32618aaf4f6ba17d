"""`pipeline report`: writes the HTML report of a run, and of its evaluation."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import AsJson
from pipeline.cli.remote_output import output_to_read, put_remote_page
from pipeline.cli.tables import json_line
from pipeline.faults import InvalidRow, UsageError
from pipeline.store.address import local_path, local_text
from pipeline.text import printable

if TYPE_CHECKING:
    from pipeline.data import Row
    from pipeline.evaluation.assessment import Assessment
    from pipeline.evaluation.workspace import EvalWorkspace
    from pipeline.job.job import Job
    from pipeline.storage.remote.hydration import RemoteView


def report(
    output: Annotated[str, typer.Argument(help="The output folder of a run or an evaluation, or a run's address.")],
    *,
    to: Annotated[
        Path | None,
        typer.Option("--to", help="The file to write (default: OUTPUT/_report.html).", parser=local_path),
    ] = None,
    job: Annotated[
        str | None,
        typer.Option(
            "--job",
            "-j",
            metavar="FILE.py",
            help="An evaluation's file (default: the one that ran).",
            parser=local_text,
        ),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Write the report of a run: one HTML file that opens offline. The run may still be working."""
    with output_to_read(output) as (folder, remote):
        assessment, prompts = _evaluated(folder, job)
        path = put_page(folder, to, remote, assessment=assessment, prompts=prompts)
        shown, size = str(path), path.stat().st_size
        if remote is not None and to is None:
            shown = put_remote_page(path, output)
    print(json_line({"report": shown, "bytes": size}) if as_json else printable(shown))
    return 0


def put_page(
    output: Path,
    to: Path | None = None,
    remote: RemoteView | None = None,
    *,
    assessment: Assessment | None = None,
    prompts: Mapping[str, str] | None = None,
) -> Path:
    """Writes the report and returns its path. Raises `UsageError` if there is no run, or the file cannot be written."""
    from pipeline.report.facts import run_facts
    from pipeline.report.page import page_of, write_page
    from pipeline.storage.run_folder import PAGE

    path = to or output / PAGE
    page = page_of(run_facts(output, remote), assessment, prompts)
    try:
        write_page(page, path)
    except OSError as error:
        raise UsageError(f"the page cannot be written to {path}: {error.strerror or error}") from error
    return path


def prompts_of(subject: EvalWorkspace) -> dict[str, str]:
    """The request for every row of the gold data, as text."""
    from pipeline.data import Row

    job = subject.evaluation.job
    return {gold.row: _prompt(job, Row(ordinal, gold.columns)) for ordinal, gold in enumerate(subject.gold)}


def _prompt(job: Job, row: Row) -> str:
    from pipeline.cli.messages import messages_of

    try:
        return messages_of(job, row)
    except InvalidRow as fault:
        return f"cannot be asked: {fault.message}"


def _evaluated(output: Path, job: str | None) -> tuple[Assessment | None, dict[str, str]]:
    """The folder's evaluation with its gates applied again; nothing if there is none, or it cannot be read."""
    from pipeline.evaluation.assessment import SCORES
    from pipeline.storage.run_folder import EVALUATION

    if not (output / EVALUATION / SCORES).is_file():
        return None, {}
    from pipeline.evaluation import workspace
    from pipeline.evaluation.results import read

    try:
        subject = workspace.subject_in(output, job)
        workspace.same_graders(subject)
        reference = workspace.reference_in(subject, common=False)
        return subject.assessed(tuple(read(subject.folder)), reference), prompts_of(subject)
    except UsageError as error:
        print(f"the evaluation is not shown: {printable(str(error))}", file=sys.stderr)
        return None, {}
