"""Composes the ask of a run from all policies, and holds its limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from pipeline.data import Ask, Usage
from pipeline.endpoint.connection import OpenEndpoint
from pipeline.endpoint.prices import Price, Prices, prices_of
from pipeline.faults import BudgetExhausted, UsageError
from pipeline.job.job import Job
from pipeline.pace import (
    FIRST_RATE,
    SILENCE_AMONG_S,
    SILENCE_S,
    AdaptiveRate,
    CircuitBreaker,
    FailureRate,
    Pacer,
    RetryBudget,
    StragglerDetector,
    first_rate,
)
from pipeline.policy import (
    GIVE_UP_S,
    Account,
    Books,
    Budget,
    Dispatcher,
    Keys,
    Limits,
    LocalBudget,
    LocalUpstream,
    Shutdown,
    SingleFlight,
    Store,
    ToolLimits,
    Upstream,
    attaching,
    cached,
    charged,
    hedged,
    logged,
    repairing,
    retrying,
    watched,
    with_tools,
    within,
)
from pipeline.policy.account import ASSUME
from pipeline.totals.counters import Counters
from pipeline.totals.ledger import NOTHING, Charges

ATTEMPTS = 5
"""Attempts of a row if its job does not say; more while many rows fail."""

_MEMORY = 20
"""Stragglers are judged among this many calls per call in flight: those started while one takes 20 times the mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSettings:
    """Which earlier replies a run may reuse, and where it stores its own.

    `endpoint` identifies who answers, by a name that is stable across runs. If the same rows are asked repeatedly,
    each `repeat` has its own replies. Concurrent runs share their `flights`.
    """

    folder: Path
    endpoint: str
    repeat: int = 0
    flights: SingleFlight | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLimits:
    """What a run may use: calls in flight, requests and tokens per minute, money, patience, earlier replies."""

    concurrency: int = 64
    shards: int = 1
    """The number of starts that work at the same time, of which these limits are one's part."""
    adaptive: bool = True
    granted: Mapping[str, float] = field(default_factory=dict)
    """Requests per second that each endpoint last granted, by its name."""
    rpm: float | None = None
    tpm: float | None = None
    budget_usd: float | None = None
    budget_tokens: float | None = None
    give_up_s: float = GIVE_UP_S
    hedge: float = 0.0
    prices: Mapping[str, Price] | None = None
    assumed_price: Price | None = None
    """The price of every call whose price is not known otherwise."""
    reuse: CacheSettings | None = None


AnyUpstream = TypeVar("AnyUpstream", bound=Upstream)


@dataclass(frozen=True, slots=True)
class ProcessLimits(Generic[AnyUpstream]):
    """The limits that a process applies itself: those of the run or, in a worker, what its parent leases to it."""

    limits: Limits
    upstream: Callable[[OpenEndpoint, Ask], AnyUpstream]
    """What stands for an endpoint in the queue, given the ask that sends to it."""
    retries: RetryBudget = field(default_factory=RetryBudget)


@dataclass(frozen=True, slots=True)
class ComposedAsk(Generic[AnyUpstream]):
    """The ask of a run, and those of its parts that can be observed and changed while it runs."""

    ask: Ask
    dispatcher: Dispatcher
    lanes: Sequence[AnyUpstream]
    """The lanes of the dispatcher, one for each endpoint."""
    account: Account


def prices_for(job: Job, bounds: RunLimits) -> Prices:
    """The prices that a run uses: those of the command line override the job's, which override the built-in ones."""
    return Prices({**prices_of(job.prices, "`prices`"), **(bounds.prices or {})}, bounds.assumed_price)


def units_of(bounds: RunLimits) -> list[str]:
    """The units in which a run has a budget."""
    caps = {"USD": bounds.budget_usd, "tokens": bounds.budget_tokens}
    return [unit for unit, cap in caps.items() if cap is not None]


def budgets_for(job: Job, bounds: RunLimits, charged: Charges = NOTHING) -> list[LocalBudget]:
    """The budgets of a run, less what earlier starts were charged.

    Raises `UsageError` if the price of its model is unknown. A job whose rows name their models is accepted: each
    price is looked up before the row is sent.
    """
    budgets = []
    prices = prices_for(job, bounds)
    if bounds.budget_usd is not None:
        if job.model and not prices.knows(job.model):
            raise UsageError(
                f"a budget in dollars needs the price of {job.model}, which is not known: give it in the job's "
                f"`prices`, with --prices or with --assume-price, or use --budget-tokens"
            )
        budgets.append(_dollars(bounds.budget_usd, charged, prices, job.model))
    if bounds.budget_tokens is not None:
        budgets.append(_tokens(bounds.budget_tokens, charged, prices))
    return budgets


def _dollars(cap: float, charged: Charges, prices: Prices, model: str) -> LocalBudget:
    """A budget in dollars. Earlier calls without a known price are priced now, as far as possible."""
    late = Usage(charged.unpriced_input, charged.unpriced_output)
    cost = prices.cost(model or None, late) if charged.unpriced_calls else 0.0
    budget = LocalBudget(cap, "USD", spent=charged.cost_usd + charged.lost_usd + (cost or 0.0))
    if cost is None or (charged.unmetered_calls and prices.assumed is None):
        budget.fail(_unknown("USD", charged.unpriced_calls or charged.unmetered_calls, "price"))
    return budget


def _tokens(cap: float, charged: Charges, prices: Prices) -> LocalBudget:
    budget = LocalBudget(cap, "tokens", spent=charged.tokens)
    if charged.unmetered_calls and prices.assumed is None:
        budget.fail(_unknown("tokens", charged.unmetered_calls, "usage"))
    return budget


def _unknown(unit: str, calls: int, what: str) -> BudgetExhausted:
    return BudgetExhausted(
        f"the budget in {unit} cannot be kept: {calls} earlier calls were answered without a known {what}; {ASSUME}"
    )


def compose(  # noqa: PLR0913 - everything that a run is made of
    job: Job,
    bounds: RunLimits,
    endpoints: Sequence[OpenEndpoint],
    budgets: Sequence[Budget],
    *,
    counters: Counters,
    stop: Shutdown,
    store: Store | None = None,
    books: Books | None = None,
) -> ComposedAsk[LocalUpstream]:
    """The ask of a run over its endpoints, and its limits. The cost of every call is written to the books.

    It includes the cache if `bounds` allow the reuse of earlier replies and there is a store of them.
    """
    account = Account(prices_for(job, bounds), counters, stop, budgets, books)
    return compose_within(_all_of(bounds, len(endpoints)), job, bounds, endpoints, account, store)


def compose_within(
    limits: ProcessLimits[AnyUpstream],
    job: Job,
    bounds: RunLimits,
    endpoints: Sequence[OpenEndpoint],
    account: Account,
    store: Store | None,
) -> ComposedAsk[AnyUpstream]:
    """Like `compose`, for a process that applies these limits."""
    counters, stop = account.counters, account.stop
    stragglers = _straggler_detector(bounds)
    lanes = [limits.upstream(endpoint, _lane_ask(job, endpoint, account, stragglers)) for endpoint in endpoints]
    dispatcher = Dispatcher(
        lanes, limits.limits, stop=stop, counters=counters, give_up_s=bounds.give_up_s, account=account
    )
    ask = _with_policies(job, bounds, dispatcher, account, stragglers=stragglers, store=store, retries=limits.retries)
    return ComposedAsk(ask, dispatcher, lanes, account)


def _with_policies(
    job: Job,
    bounds: RunLimits,
    dispatcher: Dispatcher,
    account: Account,
    *,
    stragglers: StragglerDetector | None,
    store: Store | None,
    retries: RetryBudget,
) -> Ask:
    """The queue as an ask, wrapped in (outermost first) deadline, repairs, tools, log, cache, retries, hedging."""
    counters, stop = account.counters, account.stop
    ask: Ask = dispatcher.ask
    if stragglers:
        ask = hedged(ask, stragglers, counters, account.charge_again)
    # A job that sets the number of attempts gets exactly that, at any failure rate.
    attempts, failure_rate = (job.attempts, FailureRate(job.attempts)) if job.attempts else (ATTEMPTS, FailureRate())
    ask = retrying(ask, attempts=attempts, failure_rate=failure_rate, budget=retries, stop=stop, counters=counters)
    if bounds.reuse is not None and store is not None:
        keys = Keys(bounds.reuse.endpoint, _media_root(job), bounds.reuse.repeat)
        ask = cached(ask, store, keys.of, counters, bounds.reuse.flights)
    ask = logged(ask)
    if job.runs_tools:
        tool_limits = ToolLimits(turns=job.max_turns, calls=job.max_calls_per_turn, timeout_s=job.tool_timeout_s)
        ask = with_tools(ask, job.tool_list, tool_limits, transcript=job.transcript)
    if job.repairs:
        ask = repairing(ask, job.outcome, job.repairs)
    if job.row_timeout_s is not None:
        ask = within(ask, job.row_timeout_s)
    return ask


def _lane_ask(job: Job, endpoint: OpenEndpoint, account: Account, stragglers: StragglerDetector | None) -> Ask:
    """An endpoint as a lane sees it: calls are charged, watched for stragglers, and get their media attached.

    When the run stops, nothing keeps waiting for a token: such a call has not been sent, so there is nothing to drain.
    """
    account.stop.then(endpoint.leave)
    ask = charged(endpoint.ask, account, endpoint.name)
    if stragglers:
        ask = watched(ask, stragglers)
    if job.conversation.has_media:
        ask = attaching(ask, _media_root(job))
    return ask


def workers_for(concurrency: int) -> int:
    """How many rows are worked on at once.

    More than the calls in flight, so that rows sleeping before a retry leave no slot empty, and at least enough that
    the concurrency can be raised during the run.
    """
    return max(64, concurrency + min(concurrency, 512))


def _straggler_detector(bounds: RunLimits) -> StragglerDetector | None:
    """The detector of late calls; None if calls are not hedged."""
    return StragglerDetector(bounds.hedge, max(2000, _MEMORY * bounds.concurrency)) if bounds.hedge else None


def _all_of(bounds: RunLimits, endpoints: int) -> ProcessLimits[LocalUpstream]:
    """The limits of a run with this number of endpoints, for a process that does not share them."""
    silence_s = SILENCE_S if endpoints == 1 else SILENCE_AMONG_S
    first = first_rate(bounds.concurrency * bounds.shards) / bounds.shards

    def upstream(endpoint: OpenEndpoint, ask: Ask) -> LocalUpstream:
        known = bounds.granted.get(endpoint.name)
        rate = AdaptiveRate(first, known, FIRST_RATE / bounds.shards) if bounds.adaptive else None
        breaker = CircuitBreaker(silence_s)
        return LocalUpstream(endpoint.name, ask, endpoint.weight, rate=rate, breaker=breaker, hitch=endpoint.hitch)

    limits = Limits(
        bounds.concurrency,
        Pacer(bounds.rpm) if bounds.rpm else None,
        Pacer(bounds.tpm) if bounds.tpm else None,
        most=workers_for(bounds.concurrency),
    )
    return ProcessLimits(limits, upstream)


def _media_root(job: Job) -> Path | None:
    return None if job.media_root is None else Path(job.media_root)
