"""The options of `pipeline run --batch`, and what they make of a run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipeline.cli.options import BATCH, RunOptions
from pipeline.faults import UsageError
from pipeline.store.address import Address, place_of

if TYPE_CHECKING:
    from pipeline.endpoint.connection import Connection
    from pipeline.execution.batch.setup import BatchSetup
    from pipeline.job.job import Job

EMULATED_BUCKET = "pipeline-batch"
"""The bucket of an emulator that `run --emulate --batch` starts."""

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRunOptions(RunOptions):
    """The options of `pipeline run`: those of every command that makes calls, and those of batch prediction."""

    batch: Annotated[
        bool,
        typer.Option("--batch", metavar="", help="Ask by batch prediction, at half the price.", rich_help_panel=BATCH),
    ] = False
    batch_bucket: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Where inputs and answers of jobs on Vertex AI go, as in gs://bucket/folder.",
            show_default="below the output, if it is an address",
            rich_help_panel=BATCH,
        ),
    ] = None
    batch_wait: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Cancel a job that has not ended after this time, as in 8h, and ask its rows as --rest says.",
            show_default="as long as it takes",
            rich_help_panel=BATCH,
        ),
    ] = None
    batch_poll: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Time between two looks at the jobs.",
            min=0.01,
            show_default="30 s, rising to 5 min",
            rich_help_panel=BATCH,
        ),
    ] = None
    rest: Annotated[
        Literal["online", "batch"],
        typer.Option("--rest", help="Who is asked for what jobs did not answer.", rich_help_panel=BATCH),
    ] = "online"
    detach: Annotated[
        bool,
        typer.Option(
            "--detach",
            metavar="",
            help="End once the jobs are submitted; the same command later collects their answers.",
            rich_help_panel=BATCH,
        ),
    ] = False


def batch_setup_of(
    options: BatchRunOptions, job: Job, connection: Connection, output: Address | None
) -> BatchSetup | None:
    """What the options say of batches; None without --batch. Raises `UsageError` for what cannot be asked so."""
    if not options.batch:
        given = {
            "--batch-bucket": options.batch_bucket,
            "--batch-wait": options.batch_wait,
            "--batch-poll": options.batch_poll,
            "--rest": options.rest != "online",
            "--detach": options.detach,
        }
        if name := next((name for name, value in given.items() if value), None):
            raise UsageError(f"{name} belongs to --batch: add it, or leave {name} out")
        return None
    from pipeline.endpoint.batch.selection import check_job, check_place
    from pipeline.execution.batch.settings import BatchSettings
    from pipeline.execution.batch.setup import BatchSetup

    check_job(job)
    if options.emulate and options.detach:
        raise UsageError(
            "the jobs of --emulate end with the command, so there is nothing to detach from: start `pipeline emulate`, "
            "and name its --base-url"
        )
    place = _place(options, output)
    check_place(connection, job.model, place)
    settings = BatchSettings(
        rest=options.rest,
        wait_s=None if options.batch_wait is None else seconds_of(options.batch_wait),
        poll_s=options.batch_poll if options.batch_poll or not options.emulate else 0.2,
        detach=options.detach,
        place=_recorded(connection, place),
    )
    return BatchSetup(settings=settings, place=place, credentials=options.credentials)


def _place(options: BatchRunOptions, output: Address | None) -> Address | None:
    if options.emulate:
        return Address("gs", EMULATED_BUCKET, "")
    if options.batch_bucket is None:
        from pipeline.storage.remote.objects import BATCH as BELOW

        return output and Address(output.scheme, output.bucket, f"{output.key.strip('/')}/{BELOW}".strip("/"))
    place = place_of(options.batch_bucket)
    if not isinstance(place, Address) or place.scheme != "gs":
        raise UsageError(f"--batch-bucket is an address in Cloud Storage, as in gs://bucket/folder, not {place}")
    return place


def _recorded(connection: Connection, place: Address | None) -> dict[str, Any]:
    """Where jobs are, for commands that know only the output. No secret."""
    from pipeline.endpoint.address import weighted_url, without_query

    return {
        "project": connection.project,
        "locations": list(connection.locations),
        "base_urls": [without_query(weighted_url(text)[1]) for text in connection.base_urls],
        "bucket": None if place is None else str(place),
    }


def seconds_of(text: str) -> float:
    """The seconds of a text like `8h`, `30m`, `90s` or `1d`. Raises `UsageError`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip())
    if found is None or not float(found[1]):
        raise UsageError(f"--batch-wait is a time with its unit, as in 8h, 30m or 1d, not {text!r}")
    return float(found[1]) * _UNITS[found[2]]
