"""The settings of a run: how it is executed, and nothing that affects an answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.policy.compose import RunLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to run a job: nothing here affects an answer."""

    output: Path
    target: str = ""
    bounds: RunLimits = field(default_factory=RunLimits)
    limit: int | None = None
    fresh: bool = False
    supersede: bool = False
    """Whether a different run in the output is replaced, rather than refused."""
    append: bool = False
    """Whether rows that the input has gained since are taken into the run, rather than refused."""
    retry_failed: bool = False
    fail_fast: Literal["job", "alike", "never"] = "job"
    """When failed rows stop the run. `job`: once the job's `max_failed` is exceeded, or all of the first rows failed
    alike; `alike`: only for the second reason; or never."""
    keep_replies: bool = True
    grace_s: float = 20.0
    simulated: bool = False
    chunk_rows: int | None = None
    """Rows per chunk; None derives it from their size."""
    chunks: int | None = None
    """Chunks that a new run has at least, about, so that shards can share it; None leaves it to the number of rows."""
    rates: Path | None = None
    """Where granted rates are kept beyond this run; None keeps them only in its folder."""
    endpoints: int = 1
    """The number of endpoints; each has its own connections."""
    in_host: bool = False
    """Whether the process belongs to another program, whose memory pool and limits are left as they are."""
