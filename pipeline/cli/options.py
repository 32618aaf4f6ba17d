"""Options shared by several commands, and the job that they describe."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from pipeline.cli.configuration import job_defaults
from pipeline.cli.log_options import LogFormat, LogLevel, MetricsFile, OpenTelemetry, logging_on_stderr
from pipeline.execution.deadline import duration_s
from pipeline.execution.drain_timeout import drain_timeout
from pipeline.execution.options import CACHE_FOLDER, CallOptions
from pipeline.faults import UsageError
from pipeline.store.address import local_path, local_text

if TYPE_CHECKING:
    from pipeline.job.job import Job

PANELS = EVALUATION, INPUT, JOB, FAILURES, LIMITS, BATCH, ENDPOINT, EMULATOR, PRINTED = (
    "Evaluation",
    "Input and output",
    "Model and job",
    "Resuming and failures",
    "Limits and money",
    "Batch prediction",
    "Endpoint",
    "Emulator",
    "What is printed",
)
"""The parts of --help, in order."""

JobFileArgument = Annotated[
    str,
    typer.Argument(
        metavar="JOB.py",
        help="A job file (FILE.py or FILE.py:NAME), or an input of ready-made requests.",
        parser=local_text,
    ),
]
InputsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        "-i",
        metavar="PATH",
        help="File, folder or glob in quotes; may be repeated.",
        show_default="the job's",
        rich_help_panel=INPUT,
    ),
]
Include = Annotated[
    list[str] | None,
    typer.Option(
        "--include",
        metavar="GLOB",
        help="Only files in folders that match this glob; may be repeated.",
        rich_help_panel=INPUT,
    ),
]
InputRowsOption = Annotated[
    Literal["ok", "all"] | None,
    typer.Option(
        "--input-rows",
        help="Rows that are read of an input that is the output of a run.",
        show_default="the job's, or ok",
        rich_help_panel=INPUT,
    ),
]
AllowPartial = Annotated[
    bool | None,
    typer.Option(
        "--allow-partial",
        metavar="",
        help="Read the output of a run that is not complete.",
        show_default=False,
        rich_help_panel=INPUT,
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help="The model, as in google/gemini-3.5-flash-lite.",
        show_default="the job's",
        rich_help_panel=JOB,
    ),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="A field of the job, as in temperature=0; may be repeated.",
        rich_help_panel=JOB,
    ),
]
LimitOption = Annotated[
    int | None,
    typer.Option("--limit", metavar="N", help="Only the first N rows.", min=1, rich_help_panel=INPUT),
]
StateFolder = Annotated[
    Path | None,
    typer.Option(
        "--state-dir",
        envvar="PIPELINE_STATE_DIR",
        metavar="FOLDER",
        help="Where runs whose output is an address keep their state.",
        parser=local_path,
        show_default="~/.local/state/vertex-pipeline/runs",
        rich_help_panel=INPUT,
    ),
]
CredentialsFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Google credentials of any kind.",
        parser=local_path,
        show_default="GOOGLE_APPLICATION_CREDENTIALS, gcloud's, the machine's",
        rich_help_panel=ENDPOINT,
    ),
]
CacheFolder = Annotated[
    Path,
    typer.Option(
        "--cache-dir",
        envvar="PIPELINE_CACHE_DIR",
        metavar="FOLDER",
        help="Where the reply cache is.",
        parser=local_path,
        rich_help_panel=LIMITS,
    ),
]
AsJson = Annotated[
    bool,
    typer.Option("--json", metavar="", help="Print the result as exactly one line of JSON.", rich_help_panel=PRINTED),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions(CallOptions):
    """The options of every command that makes calls: overrides of the job, limits, endpoint, credentials."""

    inputs: InputsOption = None
    include: Include = None
    input_rows: InputRowsOption = None
    allow_partial: AllowPartial = None
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PLACE",
            help="Output folder, or an address: gs://, s3://, az://.",
            show_default="the job's, or out/NAME; of eval: out/FILE",
            rich_help_panel=INPUT,
        ),
    ] = None
    model: ModelOption = None
    assignments: Assignments = None
    limit: LimitOption = None
    concurrency: Annotated[
        int,
        typer.Option(
            "--concurrency", "-c", metavar="N", help="Maximum calls in flight.", min=1, rich_help_panel=LIMITS
        ),
    ] = 64
    adaptive: Annotated[
        bool,
        typer.Option(
            "--adaptive/--no-adaptive",
            metavar="",
            help="Find the rate that the quota allows, and stay just below it.",
            rich_help_panel=LIMITS,
        ),
    ] = True
    rpm: Annotated[
        float | None,
        typer.Option(metavar="N", help="Maximum requests per minute.", min=0.001, rich_help_panel=LIMITS),
    ] = None
    tpm: Annotated[
        float | None, typer.Option(metavar="N", help="Maximum tokens per minute.", min=1, rich_help_panel=LIMITS)
    ] = None
    budget_usd: Annotated[
        float | None,
        typer.Option(metavar="USD", help="Maximum spend in USD, over all resumes.", min=1e-9, rich_help_panel=LIMITS),
    ] = None
    budget_tokens: Annotated[
        float | None,
        typer.Option(metavar="N", help="Maximum tokens, over all resumes.", min=1, rich_help_panel=LIMITS),
    ] = None
    prices: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="TOML file of prices: USD per million tokens, by model.",
            parser=local_path,
            rich_help_panel=LIMITS,
        ),
    ] = None
    assume_price: Annotated[
        str | None,
        typer.Option(
            metavar="IN,OUT",
            help="USD per million tokens for calls without a known price, as in 0.30,2.50.",
            rich_help_panel=LIMITS,
        ),
    ] = None
    give_up_after: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", help="How long the endpoint may be down before the run ends.", rich_help_panel=FAILURES
        ),
    ] = 1800.0
    hedge_share: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="Share of calls, the slowest ones, that may be sent a second time.",
            min=0,
            max=0.5,
            rich_help_panel=LIMITS,
        ),
    ] = 0.0
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh",
            metavar="",
            help="Start over: what the run wrote to the output is removed.",
            rich_help_panel=FAILURES,
        ),
    ] = False
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", metavar="", help="Ask the failed rows again.", rich_help_panel=FAILURES)
    ] = False
    fail_fast: Annotated[
        bool,
        typer.Option(
            "--fail-fast/--no-fail-fast",
            metavar="",
            help="Stop when more rows fail than the job allows; eval: when the first 100 all fail the same way.",
            rich_help_panel=FAILURES,
        ),
    ] = True
    keep_replies: Annotated[
        bool,
        typer.Option(
            "--keep-replies/--no-keep-replies",
            metavar="",
            help="Keep replies as received, for reparse and --retry-failed.",
            rich_help_panel=FAILURES,
        ),
    ] = True
    drain_timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Time to drain after SIGINT or SIGTERM; auto: what the platform allows, else 20.",
            parser=drain_timeout,
            show_default="auto",
            rich_help_panel=FAILURES,
        ),
    ] = None
    deadline: Annotated[
        float | None,
        typer.Option(
            metavar="TIME",
            help="Stop after this time, as after SIGTERM: 90s, 30m, 6h.",
            parser=duration_s,
            rich_help_panel=FAILURES,
        ),
    ] = None
    cache: Annotated[
        bool | None,
        typer.Option(
            "--cache/--no-cache",
            metavar="",
            help="Reuse replies of earlier runs to the same requests, and store new ones.",
            show_default="eval does, run does not",
            rich_help_panel=LIMITS,
        ),
    ] = None
    """None leaves it to the command."""
    cache_dir: CacheFolder = CACHE_FOLDER
    project: Annotated[
        str | None,
        typer.Option(
            envvar="GOOGLE_CLOUD_PROJECT",
            metavar="ID",
            help="Google Cloud project.",
            show_default="the credentials' own",
            rich_help_panel=ENDPOINT,
        ),
    ] = None
    location: Annotated[
        list[str] | None,
        typer.Option(
            envvar="GOOGLE_CLOUD_LOCATION",
            metavar="NAME",
            help="Vertex AI location; may be repeated.",
            show_default="the job's, or global",
            rich_help_panel=ENDPOINT,
        ),
    ] = None
    endpoint_id: Annotated[
        str | None, typer.Option(metavar="ID", help="Id of a self-deployed endpoint.", rich_help_panel=ENDPOINT)
    ] = None
    base_url: Annotated[
        list[str] | None,
        typer.Option(
            envvar="OPENAI_BASE_URL",
            metavar="URL",
            help="Another server's base URL; several as WEIGHT*URL. Its key is OPENAI_API_KEY.",
            rich_help_panel=ENDPOINT,
        ),
    ] = None
    credentials: CredentialsFile = None
    emulate: Annotated[
        bool,
        typer.Option(
            "--emulate", metavar="", help="Use the built-in emulator: no account, no cost.", rich_help_panel=EMULATOR
        ),
    ] = False
    latency: Annotated[
        float,
        typer.Option(metavar="SECONDS", help="Latency of an answer.", min=0, rich_help_panel=EMULATOR),
    ] = 0.0
    quota_rps: Annotated[
        float | None,
        typer.Option(metavar="N", help="Requests per second; 429 beyond that.", min=0.001, rich_help_panel=EMULATOR),
    ] = None
    token_lifetime: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", help="How long an access token is accepted.", min=0.1, rich_help_panel=EMULATOR
        ),
    ] = 3600.0
    fault: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND=SHARE", help="Faults, as in 503=0.1; may be repeated.", rich_help_panel=EMULATOR),
    ] = None
    field_error: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=SHARE",
            help="Answers with a wrong value in a field, as in date=0.1; may be repeated.",
            rich_help_panel=EMULATOR,
        ),
    ] = None
    report: Annotated[
        bool,
        typer.Option(
            "--report",
            metavar="",
            help="Write the report of the run when it ends: OUTPUT/_report.html.",
            rich_help_panel=PRINTED,
        ),
    ] = False
    as_json: AsJson = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", metavar="", help="No progress.", rich_help_panel=PRINTED)] = (
        False
    )
    log_level: LogLevel = None
    log_format: LogFormat = None
    metrics: MetricsFile = None
    otel: OpenTelemetry = None


def with_options(command: Callable[..., int]) -> Callable[..., int]:
    """The command as typer sees it: each field of the dataclass of its `options` becomes an option."""
    own = inspect.signature(command, eval_str=True)
    group = own.parameters["options"].annotation
    hints = get_type_hints(group, include_extras=True)
    default = {one.name: one.default for one in fields(group)}
    # In the order of the classes here, not in that of the class below the command line.
    groups = [one for one in reversed(group.__mro__) if issubclass(one, RunOptions)]
    spread = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default[name], annotation=hints[name])
        for name in dict.fromkeys(name for one in groups for name in inspect.get_annotations(one))
    ]

    @wraps(command)
    def called(*arguments: Any, **given: Any) -> int:
        chosen = {parameter.name: given.pop(parameter.name) for parameter in spread}
        options = group(**chosen)
        with logging_on_stderr(options.log_level, options.log_format):
            return command(*arguments, options=options, **given)

    parameters = sorted([*(one for one in own.parameters.values() if one.name != "options"), *spread], key=_place)
    called.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined] # inspect looks for it
    called.__annotations__ = {one.name: one.annotation for one in parameters} | {"return": int}
    return called


def _place(parameter: inspect.Parameter) -> int:
    """The position of a parameter in --help: arguments first, then options by panel."""
    panels = [getattr(one, "rich_help_panel", None) for one in getattr(parameter.annotation, "__metadata__", ())]
    return next((PANELS.index(panel) for panel in panels if panel in PANELS), -1)


def load(
    target: str,
    inputs: list[str] | None,
    model: str | None,
    assignments: list[str] | None,
    output: str | Path | None,
    **of_input: Any,
) -> tuple[Job, str]:
    """The job that the command line describes, and its name in a plan.

    `of_input` are other fields of the job, such as `include`; None leaves them to it.
    """
    from pipeline.job.loader import is_job_file, job_of_requests, load_job, overridden

    if Path(f"{target}.py").is_file() and not Path(target).exists():
        raise UsageError(f"there is no {target!r}; did you mean {f'{target}.py'!r}?")
    job = load_job(target) if is_job_file(target) else job_of_requests([target, *(inputs or ())])
    changes = {"model": model, "output": output, "input": inputs if is_job_file(target) else None, **of_input}
    given = {name: value for name, value in changes.items() if value is not None}
    return overridden(job, job_defaults(job) | given, assignments or ()), target
