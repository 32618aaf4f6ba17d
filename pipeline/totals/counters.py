"""The counters of a run in progress: the policies write them, the display reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from pipeline.data import Failure, Outcome
from pipeline.totals.failures import Failures
from pipeline.totals.histogram import CallDurations, CallTokens

_PRESENT = {
    "rows", "done_before", "ok_before", "failures_before", "in_flight", "retrying", "waiting", "waits_for", "trouble",
    "limit", "notices", "cost_before_usd", "concurrency", "last_throttle", "last_failure",
    "wait_s",
}  # fmt: skip
"""Fields that describe the current state; all others are counts."""


@dataclass(slots=True)
class Counters:
    """Counters for one start of a run. Written on the event loop only."""

    rows: int = 0
    """Rows of the input, including those done before this start."""
    done_before: int = 0
    ok_before: int = 0
    """Rows among `done_before` that have a value."""
    ok: int = 0
    failed: int = 0
    failures: Failures = field(default_factory=Failures)
    failures_before: Failures = field(default_factory=Failures)
    """Failures from earlier starts."""
    requests: int = 0
    """Requests that left this process, answered or not."""
    retries: int = 0
    throttled: int = 0
    in_flight: int = 0
    retrying: int = 0
    """Rows that are waiting before their next attempt."""
    waiting: int = 0
    """Rows that wait in the queue."""
    waits_for: str | None = None
    """What the first row in the queue waits for, if it is more than a slot among the calls in flight."""
    trouble: str | None = None
    """Why no call is being answered, if none is."""
    limit: float | None = None
    """Requests per second that the quota was found to allow."""
    concurrency: int | None = None
    """The most calls that may be in flight now."""
    last_throttle: str | None = None
    """The words of the last refusal for lack of quota."""
    last_failure: str | None = None
    """The words of the last other fault of a call that may be made again."""
    wait_s: float | None = None
    """Seconds for which the endpoint is sent nothing, because it said so or counts as failed; None if it is."""
    request_outcomes: Counter[str] = field(default_factory=Counter)
    """How the requests ended: `answered`, or the kind of fault, as in `throttled`."""
    durations: CallDurations = field(default_factory=CallDurations)
    """Of the answered calls that were sent, in seconds."""
    input_tokens: CallTokens = field(default_factory=CallTokens)
    """Of the answered calls that reported them."""
    output_tokens: CallTokens = field(default_factory=CallTokens)
    """The same, of the answers, without what is in `reasoning_tokens`."""
    reasoning_tokens: int = 0
    cached_tokens: int = 0
    """Those among `input_tokens` that the provider's cache had."""
    hedged: int = 0
    cache_hits: int = 0
    """Calls that the reply cache answered; they do not count as `requests`."""
    cost_usd: float = 0.0
    """Cost of this start's calls, added as they are answered."""
    cost_before_usd: float = 0.0
    """Cost of the calls of earlier starts."""
    notices: list[str] = field(default_factory=list)
    """Messages for the user, each shown once."""
    unpriced: int = 0
    """Calls of unknown price, which `cost_usd` excludes."""

    @property
    def done(self) -> int:
        """Rows that need no further call, from earlier starts too."""
        return self.done_before + self.ok + self.failed

    @property
    def why_it_waits(self) -> str | None:
        """The words of the fault for which rows wait: why nothing is answered, or why calls are made again."""
        if self.trouble:
            return self.trouble
        if self.waits_for == "quota":
            return self.last_throttle
        return self.last_failure if self.retrying else None

    def count(self, outcome: Outcome) -> None:
        """Adds one finished row."""
        if isinstance(outcome, Failure):
            self.failed += 1
            self.failures += Failures.of([outcome])
        else:
            self.ok += 1

    def drain(self) -> dict[str, Any]:
        """What was counted since the last call of this method; resets the counts."""
        counted = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in _PRESENT}
        for name, value in counted.items():
            setattr(self, name, type(value)())
        return {name: value for name, value in counted.items() if value != type(value)()}

    def snapshot(self) -> Counters:
        """A copy for another thread: what is counted from now on does not change it."""
        histograms = ("durations", "input_tokens", "output_tokens")
        copied = {name: (one := getattr(self, name)) + type(one)() for name in histograms}
        return replace(self, request_outcomes=Counter(self.request_outcomes), notices=[], **copied)

    def add(self, counted: Mapping[str, Any]) -> None:
        """Adds the counts drained from other counters."""
        for name, value in counted.items():
            setattr(self, name, getattr(self, name) + value)
