"""`pipeline show`: rows of a finished or running job with request, reply and values."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.messages import messages_of
from pipeline.cli.options import AsJson
from pipeline.cli.remote_output import output_to_read
from pipeline.cli.stores import reading_stores
from pipeline.cli.streams import reader_gone
from pipeline.cli.tables import json_line
from pipeline.faults import Broken, InvalidRow, UsageError
from pipeline.store.address import local_path, local_text
from pipeline.text import in_words, printable

if TYPE_CHECKING:
    from pipeline.execution.input_rows import InputRows
    from pipeline.execution.run_rows import RunRow, Selection
    from pipeline.job.job import Job
    from pipeline.storage.run_folder import RunIdentity

_MOST = 2000
"""Maximum characters shown per text when several rows are shown."""

_OURS = ("status", "parsed", "response", "error")


def show(  # noqa: PLR0913 - one parameter an option
    output: Annotated[str, typer.Argument(help="The output folder of a run, or its address.")],
    *,
    failed: Annotated[bool, typer.Option("--failed", help="Only failed rows.")] = False,
    rows: Annotated[int, typer.Option("-n", "--rows", help="How many rows.", min=1)] = 5,
    row: Annotated[int | None, typer.Option("--row", help="The row with this ordinal.", min=0)] = None,
    key: Annotated[str | None, typer.Option("--key", help="The rows with this value in the job's key column.")] = None,
    media: Annotated[
        Path | None,
        typer.Option("--media", help="Write the rows' media to files in this folder.", parser=local_path),
    ] = None,
    job_file: Annotated[
        str | None,
        typer.Option(
            "--job",
            "-j",
            metavar="FILE.py",
            help="The job file, to show requests (default: the one that ran).",
            parser=local_text,
        ),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Show rows of a finished or running job: the request as it was sent, the reply, the values."""
    with output_to_read(output) as (folder, _):
        return _show(folder, failed, rows, row, key, media, job_file, as_json=as_json)


def _show(  # noqa: PLR0913 - as above
    output: Path,
    failed: bool,  # noqa: FBT001 - as above
    rows: int,
    row: int | None,
    key: str | None,
    media: Path | None,
    job_file: str | None,
    *,
    as_json: bool,
) -> int:
    from pipeline.execution.run_rows import RunRows, Selection, key_column
    from pipeline.execution.run_status import require_run

    folder, plan = require_run(output)
    column = key_column(plan.job)
    if key is not None and column is None:
        raise UsageError("the job names no `key` column to find rows by: use --row ORDINAL")
    selection = Selection(failed=failed, ordinal=row, key=key, key_column=column)
    shown = 0
    needed = not as_json or _has_unsealed(folder.journal)
    with reading_stores(), _asked(plan, output, job_file, needed=needed) as asked:
        view = _View(asked, column, most=None if row is not None or key is not None else _MOST)
        for one in RunRows(output, asked.job, asked.inputs).select(selection):
            if media is not None:
                _write_media(one.ordinal, one.record, media)
            if as_json:
                print(json_line({"ordinal": one.ordinal, **one.record}, default=in_words))
            else:
                view.print(one)
            shown += 1
            if shown == (1 if row is not None else rows) or reader_gone():
                break
    if not shown:
        _explain_nothing(selection, plan)
    return 0


def _explain_nothing(selection: Selection, plan: RunIdentity) -> None:
    """Raises `UsageError` where a row was named that is not there; else says that there is none."""
    from pipeline.source import Survey

    total = Survey.from_json(plan.survey).rows
    if selection.ordinal is not None:
        if selection.ordinal >= total:
            raise UsageError(f"there is no row {selection.ordinal}: the run has {total} rows, and the first is row 0")
        if not selection.failed:
            raise UsageError(f"row {selection.ordinal} has not been answered yet")
    if selection.key is not None and not selection.failed:
        raise UsageError(f"no row that was answered has {selection.key!r} as its {selection.key_column}")
    print(f"no {'failed ' if selection.failed else ''}rows so far", file=sys.stderr)


@dataclass(frozen=True, slots=True)
class _RequestSource:
    """What requests are rendered from: the job that ran, and its input; None if unavailable."""

    job: Job | None
    inputs: InputRows | None
    from_output: bool = False
    """Whether the columns copied to the output include all that the prompt needs."""


@contextmanager
def _asked(plan: RunIdentity, output: Path, job_file: str | None, *, needed: bool) -> Iterator[_RequestSource]:
    job = _job_of(plan, output, job_file) if needed else None
    if job is None:
        yield _RequestSource(None, None)
        return
    from pipeline.execution.input_rows import InputRows
    from pipeline.source import Survey

    survey = Survey.from_json(plan.survey)
    try:
        inputs = InputRows(job, survey)
    except (UsageError, Broken) as error:
        columns = job.projection(survey.columns)
        from_output = all(columns.kept.get(name) == name and name not in survey.json_columns for name in columns.needed)
        instead = "requests are shown with the columns that are in the output" if from_output else "no request is shown"
        print(f"note: {instead}: {printable(str(error))}", file=sys.stderr)
        yield _RequestSource(job, None, from_output)
        return
    try:
        yield _RequestSource(job, inputs)
    finally:
        inputs.close()


def _has_unsealed(journal: Path) -> bool:
    from pipeline.storage.journal_reader import read_state

    return read_state(journal)[1] > 0


def _job_of(plan: RunIdentity, output: Path, given: str | None) -> Job | None:
    """The job in its file, to render requests with; None, and a note, if it may not be run or has changed.

    Raises `UsageError` if the given file is not the run's.
    """
    from pipeline.execution.job_trust import target_of
    from pipeline.job.loader import is_job_file, job_of_requests, load_job

    try:
        target = target_of(plan, output, given)
        job = load_job(target) if is_job_file(target) else job_of_requests([target])
        if job.fingerprint()["prompt"] == plan.job.get("prompt"):
            return job
        problem = UsageError(f"the prompt of {target} is not the one that was asked")
    except UsageError as error:
        problem = error
    if given is not None:
        raise problem
    print(f"note: requests are not shown: {printable(str(problem))}", file=sys.stderr)
    return None


@dataclass(frozen=True, slots=True)
class _View:
    """Prints rows, with texts as sent and received, up to `most` characters each."""

    asked: _RequestSource
    key_column: str | None
    most: int | None

    def print(self, row: RunRow) -> None:
        record = row.record
        title = f"row {row.ordinal}"
        if self.key_column is not None and self.key_column in record:
            title = f"{self.key_column} {record[self.key_column]} ({title})"
        state = record["status"] if row.sealed else f"{record['status']}, not yet written to a part"
        print(printable(f"=== {' '.join(title.split())}: {state}"))
        if (request := self._request(row)) is not None:
            self._section("request", request)
        elif inputs := {name: value for name, value in record.items() if name not in _OURS}:
            self._section("input", _as_json(inputs))
        if reply := (record["response"] or {}).get("text"):
            self._section("reply", reply)
        if (error := record["error"]) is not None:
            self._section("error", f"{error['type']}: {error['message']}")
        elif record["status"] == "ok":
            self._section("parsed", _as_json(record["parsed"]))
        print()

    def _section(self, name: str, text: str) -> None:
        left = "" if self.most is None or len(text) <= self.most else f"\n... {len(text) - self.most:,} more characters"
        shown = text if self.most is None else text[: self.most]
        print(f"--- {name}\n{printable(shown)}{left and printable(left)}")

    def _request(self, row: RunRow) -> str | None:
        """The request as it was sent; None if it cannot be rendered."""
        from pipeline.data import Row

        if (row.record["error"] or {}).get("type") == "InvalidRow":
            return "(the row was not asked)"
        if self.asked.job is None or not (self.asked.inputs or self.asked.from_output):
            return None
        try:
            asked = self.asked.inputs.row(row.ordinal)[0] if self.asked.inputs else Row(row.ordinal, row.record)
            return messages_of(self.asked.job, asked)
        except InvalidRow as fault:  # it was asked once, so a function or file of the prompt has changed since
            return f"(it cannot be shown: {fault.message})"


def _as_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1, default=in_words)


def _write_media(ordinal: int, record: Mapping[str, Any], folder: Path) -> None:
    """Writes media that the model made to files named by row and number."""
    import mimetypes

    folder.mkdir(parents=True, exist_ok=True)
    for number, item in enumerate((record["response"] or {}).get("media") or ()):
        suffix = mimetypes.guess_extension(item["mime_type"]) or ".bin"
        path = folder / f"row-{ordinal:06d}-{number}{suffix}"
        path.write_bytes(item["data"])
        print(path, file=sys.stderr)
