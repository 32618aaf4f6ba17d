"""How the batch jobs of a run are submitted and waited for; nothing here affects an answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

FIRST_POLL_S, LAST_POLL_S = 30.0, 300.0
"""How long to wait between two looks at the jobs, in seconds: longer from one to the next."""

CANCEL_S = 600.0
"""How long a cancelled job may take to end; after that, what it has answered so far is collected."""

MOST_WAVES = 3
"""How often a row is submitted at most; what is left then is asked online."""

STRAY_SHARE = 0.1
"""The share of a job's answers that may belong to no row, or to a row that has another one: beyond it, none of the
job's answers is believed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSettings:
    """The options of `--batch`."""

    rest: Literal["online", "batch"] = "online"
    """Who answers rows that a job did not answer: the endpoint, or the next wave of jobs."""
    wait_s: float | None = None
    """How long to wait for a job before it is cancelled, in seconds; None leaves its end to the provider."""
    poll_s: float | None = None
    """The time between two looks at the jobs, in seconds; None begins with 30 and rises to 300."""
    detach: bool = False
    """Whether to end once the jobs are submitted, instead of waiting for them."""
    place: dict[str, Any] = field(default_factory=dict)
    """Where the jobs are, as `pipeline cancel` needs it: recorded with each."""
