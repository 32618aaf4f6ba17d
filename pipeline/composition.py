"""The one ask of a run, composed once from everything that governs calls; and its bounds, while it works."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data import Ask
from pipeline.faults import Misuse
from pipeline.job import Job
from pipeline.pace import (
    SILENCE_AMONG_S,
    SILENCE_S,
    AdaptiveRate,
    Breaker,
    Lateness,
    RetryBudget,
    Spacing,
    Weather,
    first_rate,
)
from pipeline.policy import (
    GIVE_UP_S,
    Budget,
    Dispatcher,
    Flights,
    Keys,
    Lane,
    Limits,
    Purse,
    Stop,
    Store,
    attaching,
    budgeted,
    cached,
    hedged,
    priced,
    repairing,
    retrying,
    watched,
    with_tools,
    within,
)
from pipeline.prices import Price, Prices, prices_of
from pipeline.tally import Tally

_GUESSED_CALL_TOKENS = 1000.0
"""What the first calls are taken to use before any was answered, half of it output."""

_MEMORY = 20
"""For so many calls per call in flight lateness is judged: those that begin while one takes 20 times the mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reuse:
    """Which earlier replies a run may use instead of calls, and where it stores its own.

    `endpoint` is who answers, by a name that stays the same from run to run. Where the same rows are asked several
    times over, each `repeat` has replies of its own. Runs that go side by side share their `flights`.
    """

    folder: Path
    endpoint: str
    repeat: int = 0
    flights: Flights | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a run may use: of calls in flight, of requests and tokens a minute, of money, of patience, of the past."""

    concurrency: int = 64
    adaptive: bool = True
    granted: Mapping[str, float] = field(default_factory=dict)
    """Requests a second that the endpoints granted at last, by their names."""
    rpm: float | None = None
    tpm: float | None = None
    budget_usd: float | None = None
    budget_tokens: float | None = None
    give_up_s: float = GIVE_UP_S
    hedge: float = 0.0
    prices: Mapping[str, Price] | None = None
    reuse: Reuse | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """An open endpoint: its name in the rows, its share of the work, and its ask."""

    name: str
    weight: float
    ask: Ask


@dataclass(frozen=True, slots=True)
class Composed:
    """The ask of a run, and the parts of it that can be looked at and changed while it works."""

    ask: Ask
    dispatcher: Dispatcher
    purses: Sequence[Purse]


def prices_for(job: Job, bounds: Bounds) -> Prices:
    """The prices that a run uses: the command line's, else the job's, else the built-in ones."""
    return Prices({**prices_of(job.prices, "`prices`"), **(bounds.prices or {})})


def purses_for(job: Job, bounds: Bounds, *, spent_usd: float, spent_tokens: float) -> list[Purse]:
    """The budgets of a run, less what earlier starts spent. Raises `Misuse` when the price of its model is unknown."""
    purses = []
    if bounds.budget_usd is not None:
        prices = prices_for(job, bounds)
        if not job.model or not prices.knows(job.model):
            raise Misuse(
                f"a budget in dollars needs the price of {job.model or 'the model that each row names'}, which is not "
                f"known: give it in the job's `prices` or with --prices, or use --budget-tokens"
            )
        half = round(_GUESSED_CALL_TOKENS / 2)
        guess = prices.guess(job.model, half)
        purses.append(Purse(bounds.budget_usd, "USD", guess, spent=spent_usd))
    if bounds.budget_tokens is not None:
        purses.append(Purse(bounds.budget_tokens, "tokens", _GUESSED_CALL_TOKENS, spent=spent_tokens))
    return purses


def compose(
    job: Job,
    bounds: Bounds,
    endpoints: Sequence[Opened],
    purses: Sequence[Purse],
    *,
    tally: Tally,
    stop: Stop,
    store: Store | None = None,
) -> Composed:
    """The ask of a run over its endpoints, and what bounds it.

    The cache is in it when `bounds` allow the reuse of earlier replies, and there is a store of them.
    """
    silence_s = SILENCE_S if len(endpoints) == 1 else SILENCE_AMONG_S
    lateness = lateness_for(bounds)
    lanes = [_lane(job, bounds, endpoint, silence_s, lateness) for endpoint in endpoints]
    limits = Limits(
        bounds.concurrency,
        Spacing(bounds.rpm) if bounds.rpm else None,
        Spacing(bounds.tpm) if bounds.tpm else None,
        most=workers_for(bounds.concurrency),
    )
    dispatcher = Dispatcher(lanes, limits, stop=stop, tally=tally, give_up_s=bounds.give_up_s)
    ask = governed(job, bounds, dispatcher, purses, tally=tally, stop=stop, lateness=lateness, store=store)
    return Composed(ask, dispatcher, purses)


def governed(  # noqa: PLR0913 - everything that governs
    job: Job,
    bounds: Bounds,
    dispatcher: Dispatcher,
    purses: Sequence[Budget],
    *,
    tally: Tally,
    stop: Stop,
    lateness: Lateness | None = None,
    store: Store | None = None,
    retries: RetryBudget | None = None,
) -> Ask:
    """The queue as an ask; around it, outermost first: deadline, repairs, tools, cache, budget, retries, hedging."""
    ask: Ask = dispatcher.ask
    if lateness:
        ask = hedged(ask, lateness, tally)
    budget = retries or RetryBudget()
    ask = retrying(ask, attempts=job.attempts, weather=Weather(), budget=budget, stop=stop, tally=tally)
    for purse in purses:
        ask = budgeted(ask, purse, stop)
    if bounds.reuse is not None and store is not None:
        keys = Keys(bounds.reuse.endpoint, _media_root(job), bounds.reuse.repeat)
        ask = cached(ask, store, keys.of, tally, bounds.reuse.flights)
    if job.runs_tools:
        ask = with_tools(
            ask, job.tool_list, max_turns=job.max_turns, timeout_s=job.tool_timeout_s, transcript=job.transcript
        )
    if job.repairs:
        ask = repairing(ask, job.outcome, job.repairs)
    if job.row_timeout_s is not None:
        ask = within(ask, job.row_timeout_s)
    return ask


def laned(job: Job, bounds: Bounds, endpoint: Opened, lateness: Lateness | None = None) -> Ask:
    """An endpoint as a lane asks it: its replies priced, its calls watched for late ones, its media attached."""
    ask = priced(endpoint.ask, prices_for(job, bounds), endpoint.name)
    if lateness:
        ask = watched(ask, lateness)
    if job.conversation.has_media:
        ask = attaching(ask, _media_root(job))
    return ask


def workers_for(concurrency: int) -> int:
    """How many rows are worked on at once.

    More than the calls in flight, so that rows which sleep before a retry leave no slot empty, and so many at least
    that the concurrency can be raised while the run works.
    """
    return max(64, concurrency + min(concurrency, 512))


def lateness_for(bounds: Bounds) -> Lateness | None:
    """What tells which calls are late, where those are asked a second time."""
    return Lateness(bounds.hedge, max(2000, _MEMORY * bounds.concurrency)) if bounds.hedge else None


def _lane(job: Job, bounds: Bounds, endpoint: Opened, silence_s: float, lateness: Lateness | None) -> Lane:
    ask = laned(job, bounds, endpoint, lateness)
    known = bounds.granted.get(endpoint.name)
    rate = AdaptiveRate(first_rate(bounds.concurrency), known) if bounds.adaptive else None
    return Lane(endpoint.name, ask, endpoint.weight, rate, breaker=Breaker(silence_s))


def _media_root(job: Job) -> Path | None:
    return None if job.media_root is None else Path(job.media_root)
