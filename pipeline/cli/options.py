"""Options that several commands have, and the job that they describe together."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from pipeline.job import Job

Target = Annotated[str, typer.Argument(help="A job file (FILE.py or FILE.py:NAME), or an input of ready requests.")]
Inputs = Annotated[list[str] | None, typer.Option("--input", "-i", help="File, folder or glob; may be repeated.")]
Include = Annotated[
    list[str] | None, typer.Option("--include", help="Only files in folders that match this glob; may be repeated.")
]
Model = Annotated[str | None, typer.Option("--model", "-m", help="The model, as in google/gemini-3.5-flash-lite.")]
Assignments = Annotated[list[str] | None, typer.Option("--set", help="FIELD=VALUE of the job, as in temperature=0.")]
Limit = Annotated[int | None, typer.Option("--limit", help="Only the first N rows.", min=1)]
CACHE_FOLDER = Path(".pipeline-cache")
CacheFolder = Annotated[
    Path, typer.Option("--cache-dir", envvar="PIPELINE_CACHE_DIR", help="Where the reply cache is.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as exactly one line of JSON.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """The options of every command that asks: the job's overrides, how fast and for how much, where, as whom."""

    inputs: Inputs = None
    include: Include = None
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Output folder (default: the job's, or out/NAME; of eval: out/FILE)."),
    ] = None
    model: Model = None
    assignments: Assignments = None
    limit: Limit = None
    concurrency: Annotated[int, typer.Option("--concurrency", "-c", help="Calls in flight, at most.", min=1)] = 64
    adaptive: Annotated[
        bool,
        typer.Option("--adaptive/--no-adaptive", help="Find the rate that the quota grants, and keep just under it."),
    ] = True
    rpm: Annotated[float | None, typer.Option(help="Requests a minute, at most.", min=0.001)] = None
    tpm: Annotated[float | None, typer.Option(help="Tokens a minute, at most.", min=1)] = None
    budget_usd: Annotated[
        float | None, typer.Option(help="Dollars that the run may spend, all starts together.", min=1e-9)
    ] = None
    budget_tokens: Annotated[float | None, typer.Option(help="The same in tokens.", min=1)] = None
    prices: Annotated[Path | None, typer.Option(help="TOML file of prices: dollars per million tokens by model.")] = (
        None
    )
    assume_price: Annotated[
        str | None,
        typer.Option(
            metavar="IN,OUT", help="Dollars per million tokens for calls whose price is not known, as in 0.30,2.50."
        ),
    ] = None
    give_up_after: Annotated[float, typer.Option(help="Seconds that the endpoint may fail before the run ends.")] = (
        1800.0
    )
    hedge: Annotated[
        float, typer.Option(help="Ask a second time where the first is unusually late: share of calls.", min=0, max=0.5)
    ] = 0.0
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over: what the output holds is removed.")] = False
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Ask the failed rows again.")] = False
    fail_fast: Annotated[
        bool,
        typer.Option(
            "--fail-fast/--no-fail-fast",
            help="Stop when too many rows fail for the job; eval: when the first 100 fail alike.",
        ),
    ] = True
    keep_replies: Annotated[
        bool,
        typer.Option(
            "--keep-replies/--no-keep-replies", help="Keep replies as they came, for reparse and --retry-failed."
        ),
    ] = True
    grace: Annotated[float, typer.Option(help="Seconds to drain after SIGINT or SIGTERM.", min=0)] = 20.0
    cache: Annotated[
        bool | None,
        typer.Option(
            "--cache/--no-cache",
            help="Use replies of earlier runs to the same requests, and store new ones (default: eval does, run not).",
        ),
    ] = None
    """None leaves it to the command."""
    cache_dir: CacheFolder = CACHE_FOLDER
    project: Annotated[str | None, typer.Option(envvar="GOOGLE_CLOUD_PROJECT", help="Google Cloud project.")] = None
    location: Annotated[
        list[str] | None, typer.Option(envvar="GOOGLE_CLOUD_LOCATION", help="Vertex AI location; may be repeated.")
    ] = None
    endpoint_id: Annotated[str | None, typer.Option(help="Id of a self-deployed endpoint.")] = None
    base_url: Annotated[
        list[str] | None,
        typer.Option(envvar="OPENAI_BASE_URL", help="Another server's base URL; several as WEIGHT*URL."),
    ] = None
    credentials: Annotated[Path | None, typer.Option(help="Google credentials file of any kind.")] = None
    emulate: Annotated[bool, typer.Option("--emulate", help="Ask the built-in emulator: no account, no cost.")] = False
    latency: Annotated[float, typer.Option(help="With --emulate: seconds an answer takes.", min=0)] = 0.0
    quota_rps: Annotated[float | None, typer.Option(help="With --emulate: requests a second, then 429.")] = None
    token_life: Annotated[float, typer.Option(help="With --emulate: seconds a token lives.")] = 3600.0
    fault: Annotated[list[str] | None, typer.Option(help="With --emulate: KIND=SHARE, as in 503=0.1.")] = None
    field_error: Annotated[
        list[str] | None,
        typer.Option(help="With --emulate: FIELD=SHARE of answers in which a field is wrong, as in date=0.1."),
    ] = None
    report: Annotated[
        bool, typer.Option("--report", help="Write the page of the run at its end: OUTPUT/_report.html.")
    ] = False
    as_json: AsJson = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False


def with_options(command: Callable[..., int]) -> Callable[..., int]:
    """The command as typer sees it: the fields of the dataclass that its `options` wants are options of its own."""
    own = inspect.signature(command, eval_str=True)
    group = own.parameters["options"].annotation
    hints = get_type_hints(group, include_extras=True)
    spread = [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=hints[one.name])
        for one in fields(group)
    ]

    @wraps(command)
    def called(*arguments: Any, **given: Any) -> int:
        chosen = {parameter.name: given.pop(parameter.name) for parameter in spread}
        return command(*arguments, options=group(**chosen), **given)

    parameters = [*(one for one in own.parameters.values() if one.name != "options"), *spread]
    called.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined] # inspect looks for it
    called.__annotations__ = {one.name: one.annotation for one in parameters} | {"return": int}
    return called


def load(
    target: str,
    inputs: list[str] | None,
    model: str | None,
    assignments: list[str] | None,
    output: Path | None,
    *,
    include: list[str] | None = None,
) -> tuple[Job, str]:
    """The job that the command line describes, and the name it goes by in a plan."""
    from pipeline.jobfile import is_job_file, job_of_requests, load_job, overridden

    job = load_job(target) if is_job_file(target) else job_of_requests([target, *(inputs or ())])
    changes = {"model": model, "output": output, "input": inputs if is_job_file(target) else None}
    changes["include"] = include
    return overridden(job, changes, assignments or ()), target
