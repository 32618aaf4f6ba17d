"""`pipeline emulate`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pipeline.faults import UsageError
from pipeline.store.address import local_path

SIMULATED = "SIMULATED: answers come from the built-in emulator on this machine, not from a model"

Latency = Annotated[float, typer.Option(help="Seconds per answer (the median, with --latency-sigma).", min=0)]
Sigma = Annotated[float, typer.Option(help="Spread of the latency: sigma of a log-normal; 0 makes it constant.", min=0)]
QuotaRps = Annotated[float | None, typer.Option(help="Requests per second; 429 beyond that.", min=0.001)]
QuotaWindow = Annotated[float, typer.Option(help="Seconds of --quota-rps that may be used in one burst.", min=0.001)]
QuotaFixed = Annotated[
    bool,
    typer.Option("--quota-fixed", help="Use fixed windows of --quota-window instead of a bucket."),
]
QuotaInFlight = Annotated[int | None, typer.Option(help="Requests in flight; 429 beyond that.", min=1)]
TokenLifetime = Annotated[float, typer.Option(help="How many seconds an access token is accepted.", min=0.1)]
FaultOption = Annotated[
    list[str] | None, typer.Option(help="KIND=SHARE of the requests, as in 503=0.1; may be repeated.")
]
Poison = Annotated[list[str] | None, typer.Option(help="TEXT=KIND: prompts with TEXT always get this fault.")]
RetryAfter = Annotated[str | None, typer.Option(help="Value of Retry-After with 429 and 503.")]
RetryInfo = Annotated[float | None, typer.Option(help="Seconds in google.rpc.RetryInfo with 429.")]
FieldError = Annotated[
    list[str] | None, typer.Option(help="FIELD=SHARE of answers with a wrong value in that field, as in date=0.1.")
]
AnswerKey = Annotated[
    Path | None, typer.Option(help='Known answers: JSONL of {"prompt": ..., "answer": ...}.', parser=local_path)
]
BucketOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="A bucket of a local Cloud Storage, its XML API; may be repeated."),
]
BucketFault = Annotated[
    list[str] | None, typer.Option(help="KIND=SHARE of the requests for buckets, as in 503=0.1; may be repeated.")
]
BatchDelay = Annotated[float, typer.Option(help="Seconds that a batch job takes.", min=0)]
BatchClock = Annotated[
    Literal["real", "manual"], typer.Option(help="manual: the time of batch jobs passes by /control alone.")
]
BatchEcho = Annotated[
    Literal["key", "labels", "both", "none"], typer.Option(help="Ids that batch rows come back with.")
]
BatchFiles = Annotated[int, typer.Option(help="Number of objects that a batch job's output is split into.", min=1)]
BatchFault = Annotated[
    list[str] | None, typer.Option(help="KIND=SHARE of batch rows, jobs or requests, as in row_missing=0.1.")
]
UniqueIds = Annotated[bool, typer.Option("--unique-ids", help="Give every answer a unique id.")]
UnknownModel = Annotated[list[str] | None, typer.Option(help="Models that get a 404, as in google/palm*.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]


def emulate(  # noqa: PLR0913 - one parameter an option
    *,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes any free one.", min=0, max=65535)] = 0,
    latency: Latency = 0.0,
    latency_sigma: Sigma = 0.0,
    quota_rps: QuotaRps = None,
    quota_window: QuotaWindow = 1.0,
    quota_fixed: QuotaFixed = False,
    quota_in_flight: QuotaInFlight = None,
    token_lifetime: TokenLifetime = 3600.0,
    fault: FaultOption = None,
    poison: Poison = None,
    retry_after: RetryAfter = None,
    retry_info: RetryInfo = None,
    field_error: FieldError = None,
    answer_key: AnswerKey = None,
    bucket: BucketOption = None,
    bucket_fault: BucketFault = None,
    batch_delay: BatchDelay = 1.0,
    batch_clock: BatchClock = "real",
    batch_echo: BatchEcho = "labels",
    batch_files: BatchFiles = 1,
    batch_fault: BatchFault = None,
    unique_ids: UniqueIds = False,
    unknown_model: UnknownModel = None,
    error_style: Annotated[str, typer.Option(help="How error bodies are wrapped: list or object.")] = "list",
    seed: Seed = 0,
    directory: Annotated[
        Path | None, typer.Option(help="The folder that credentials files are written to.", parser=local_path)
    ] = None,
    project: Annotated[str, typer.Option(help="The project of the credentials.")] = "emulated-project",
    as_json: Annotated[bool, typer.Option("--json", help="Print the address as one line of JSON.")] = False,
    until_stdin_closes: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Run a local Vertex AI: chat endpoint, token server and metadata server, simulated, on loopback only."""
    import asyncio

    from pipeline.emulator import (
        EmulatorAddress,
        Options,
        load_answer_key,
        parse_batch_fault,
        parse_bucket_fault,
        parse_fault,
        parse_field_error,
        parse_poison,
        serve,
    )

    try:
        options = Options(
            port=port,
            project=project,
            latency=latency,
            latency_sigma=latency_sigma,
            quota_rps=quota_rps,
            quota_window_s=quota_window,
            quota_fixed=quota_fixed,
            quota_in_flight=quota_in_flight,
            token_life=token_lifetime,
            faults=dict(parse_fault(text) for text in fault or ()),
            poison=dict(parse_poison(text) for text in poison or ()),
            retry_after=retry_after,
            retry_info=retry_info,
            field_errors=dict(parse_field_error(text) for text in field_error or ()),
            answer_key=load_answer_key(answer_key) if answer_key else {},
            buckets=tuple(bucket or ()),
            bucket_faults=dict(parse_bucket_fault(text) for text in bucket_fault or ()),
            batch_delay=batch_delay,
            batch_clock=batch_clock,
            batch_echo=batch_echo,
            batch_files=batch_files,
            batch_faults=dict(parse_batch_fault(text) for text in batch_fault or ()),
            nonce=unique_ids,
            unknown_models=tuple(unknown_model or ()),
            error_style=error_style,  # type: ignore[arg-type] # checked by Options
            seed=seed,
            directory=directory,
        )
    except ValueError as error:
        raise UsageError(str(error)) from None

    def announce(address: EmulatorAddress) -> None:
        print(json.dumps(address.as_dict()) if as_json else _introduced(address.as_dict()), flush=True)

    try:
        asyncio.run(_serve(serve, options, announce, until_stdin_closes=until_stdin_closes))
    except OSError as error:
        raise UsageError(f"the emulator cannot start: {error.strerror or error} (--port, --directory)") from error


async def _serve(serve: Any, options: Any, announce: Any, *, until_stdin_closes: bool) -> None:
    import asyncio
    import signal

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)

    def listen() -> None:
        if not os.read(0, 4096):
            stop.set()

    if until_stdin_closes:
        loop.add_reader(0, listen)
    await serve(options, announce, stop)


def _introduced(address: Mapping[str, str]) -> str:
    return f"""{SIMULATED}
base URL         {address["base_url"]}
service account  {address["credentials_file"]}
statistics       {address["stats_url"]}

Try:  pipeline run JOB.py --base-url {address["base_url"]} --credentials {address["credentials_file"]}
Stop with Ctrl-C."""
