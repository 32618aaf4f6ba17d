"""The options of whatever makes calls, by the names of the command line; the settings and the connection they mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.execution.deadline import deadline_of
from pipeline.execution.drain_timeout import platform_s
from pipeline.faults import UsageError

if TYPE_CHECKING:
    from pipeline.endpoint.connection import Connection
    from pipeline.execution.settings import Settings
    from pipeline.job.job import Job
    from pipeline.policy.compose import CacheSettings

CACHE_FOLDER = Path(".pipeline-cache")


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """How a job is run: overrides of the job, limits, endpoint, emulator. docs/running.md describes each."""

    include: Sequence[str] | None = None
    input_rows: str | None = None
    allow_partial: bool | None = None
    model: str | None = None
    limit: int | None = None
    concurrency: int = 64
    adaptive: bool = True
    rpm: float | None = None
    tpm: float | None = None
    budget_usd: float | None = None
    budget_tokens: float | None = None
    prices: Path | None = None
    assume_price: str | None = None
    give_up_after: float = 1800.0
    hedge_share: float = 0.0
    fresh: bool = False
    retry_failed: bool = False
    fail_fast: bool = True
    keep_replies: bool = True
    drain_timeout: float | None = None
    """Seconds; None is what the platform allows."""
    deadline: float | None = None
    """Seconds from the start of the command."""
    cache: bool | None = None
    """None leaves it to the caller: an evaluation reuses replies, a run does not."""
    cache_dir: Path = CACHE_FOLDER
    project: str | None = None
    location: Sequence[str] | None = None
    endpoint_id: str | None = None
    base_url: Sequence[str] | None = None
    credentials: Path | None = None
    emulate: bool = False
    latency: float = 0.0
    quota_rps: float | None = None
    token_lifetime: float = 3600.0
    fault: Sequence[str] | None = None
    field_error: Sequence[str] | None = None

    def of_input(self) -> dict[str, Any]:
        """The fields of a job that choose which part of its input is read; None for each option that was not given."""
        return {"include": self.include, "input_rows": self.input_rows, "allow_partial": self.allow_partial}


def settings_of(
    options: CallOptions, target: str, output: Path, connection: Connection, *, repeat: int = 0
) -> Settings:
    """The settings of a run. Raises `UsageError` for options that contradict each other, and for unreadable prices."""
    from pipeline.endpoint.prices import load_prices, parse_price
    from pipeline.execution.settings import Settings
    from pipeline.policy.compose import RunLimits
    from pipeline.source.reader import MOST_ROWS

    if options.fresh and options.retry_failed:
        raise UsageError("--fresh asks every row again, so there is nothing for --retry-failed: leave one of them out")
    deadline = deadline_of(options.deadline)
    grace_s = platform_s() if options.drain_timeout is None else options.drain_timeout
    return Settings(
        output=output,
        target=target,
        bounds=RunLimits(
            concurrency=options.concurrency,
            adaptive=options.adaptive,
            rpm=options.rpm,
            tpm=options.tpm,
            budget_usd=options.budget_usd,
            budget_tokens=options.budget_tokens,
            give_up_s=options.give_up_after,
            hedge=options.hedge_share,
            prices=load_prices(options.prices) if options.prices else None,
            assumed_price=parse_price(options.assume_price) if options.assume_price else None,
            reuse=_cache_settings_of(options, connection, repeat) if options.cache else None,
        ),
        limit=None if options.limit is None else min(options.limit, MOST_ROWS),
        fresh=options.fresh,
        retry_failed=options.retry_failed,
        fail_fast="job" if options.fail_fast else "never",
        keep_replies=options.keep_replies,
        grace_s=grace_s if deadline is None else deadline.drain_s(grace_s),
        deadline=deadline,
        simulated=options.emulate,
        endpoints=len(connection.locations) if options.emulate else connection.endpoints,
    )


def _cache_settings_of(options: CallOptions, connection: Connection, repeat: int) -> CacheSettings:
    """The settings of the reply cache.

    The emulator is keyed by a name, since its address differs at each start, and by its `--field-error` options.
    """
    from pipeline.policy.compose import CacheSettings

    emulated = " ".join(["emulated", *sorted(options.field_error or ())])
    endpoint = emulated if options.emulate else connection.provider
    return CacheSettings(folder=options.cache_dir, endpoint=endpoint, repeat=repeat)


def connection_of(options: CallOptions, job: Job) -> Connection:
    """The endpoint that the options name. Raises `UsageError` when the job cannot be run there."""
    from pipeline.endpoint.connection import Connection

    connection = Connection(
        project=options.project,
        locations=options.location or job.locations or ["global"],
        endpoint_id=options.endpoint_id,
        base_urls=options.base_url or (),
        credentials=options.credentials,
    )
    connection.check_tier(job.tier)
    connection.check_model(job.model)
    if not (job.model or job.carries_requests):
        raise UsageError("the job names no model: give it one, or pass --model (as in google/gemini-3.5-flash-lite)")
    return connection
