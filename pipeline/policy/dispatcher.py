"""Decides where and when requests leave: one queue per run, and one lane per endpoint, with limits of its own."""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import anyio

from pipeline.data import Reply, Request
from pipeline.endpoint.log_events import log
from pipeline.faults import (
    Expired,
    Fault,
    Interrupted,
    InvalidRow,
    Permanent,
    ProviderUnusable,
    Refused,
    Throttled,
    Transient,
    Unavailable,
    Unparsable,
)
from pipeline.pace import LatencyWindow, Refusal, TokenEstimate
from pipeline.policy.account import Account, Bid
from pipeline.policy.failure_policy import LOOK_S, FailurePolicy, Throttles
from pipeline.policy.shutdown import Shutdown
from pipeline.policy.upstream import Control, Limits, Upstream
from pipeline.totals.counters import Counters

_LOG = logging.getLogger(__name__)

_SHORTEST_NAP_S = 0.002
_LONGEST_NAP_S = 1.0
"""A waiter looks again after a second at most: limits may be tuned, and an endpoint may have failed for too long."""

_BUDGET_NAP_S = 0.1
"""Polling interval of a call that waits for a budget: several runs may share it, and only ours wake this queue."""


@dataclass(frozen=True, slots=True)
class _Permit:
    """A slot that was taken: the lane an attempt leaves by, when it was taken, and the tokens reserved."""

    lane: Upstream
    at: float
    tokens: float


@dataclass(slots=True, eq=False)
class _Waiter:
    """An attempt in the queue. It is woken when it may leave, or when its timer must be set earlier."""

    size: int
    avoid: Sequence[Upstream]
    goes_first: bool = False
    bid: Bid | None = None
    """What it asks of the budgets, if there are any."""
    leave: _Permit | None = None
    looks_at: float = float("inf")
    called: anyio.Event | None = None

    def call(self) -> None:
        """Wakes it if it sleeps."""
        if self.called is not None:
            self.called.set()


@dataclass(frozen=True, slots=True)
class _Doubt:
    """A refused row, and its record if the refusal may apply to every row."""

    fault: Refused | ProviderUnusable
    refusal: Refusal | None


@dataclass(slots=True)
class _RowAttempts:
    """The history of one row's attempts; `tried` lists the lanes that failed it or are working on it."""

    ordinal: int
    tried: list[Upstream]
    compared: Control | None = None
    """The control whose request this is, sent again (see `Control`); None for every other call."""
    throttles: Throttles = field(default_factory=Throttles)
    renewed: bool = False
    resent: bool = False


class Dispatcher:
    """The queue in which every attempt of every row waits for its turn, and which sends it by a lane.

    First come, first served. A waiting attempt holds no slot and uses up no attempt, whatever it waits for: a place
    among the calls in flight, the rate that the quota grants, a time that the server named, a declared limit, or an
    endpoint that has failed. A throttled attempt is queued again automatically, and one that failed on a lane is sent
    by another, if there is one, before the failure counts; so is the second request of a hedged row. While an endpoint
    as a whole has failed, the rows that it failed wait too: only probes leave, and the rows go on once one succeeds. A
    row refused for a reason that may apply to every row waits until other calls show whether it does (see
    `pipeline.pace.Blame`); meanwhile fewer calls leave.
    """

    def __init__(
        self,
        lanes: Sequence[Upstream],
        limits: Limits,
        *,
        stop: Shutdown,
        counters: Counters,
        give_up_s: float,
        account: Account | None = None,
        dice: random.Random | None = None,
    ) -> None:
        self.lanes = list(lanes)
        self.limits = limits
        self.latencies = LatencyWindow()
        self._stop = stop
        self._counters = counters
        self._account = account
        self.failure_policy = FailurePolicy(
            self.lanes, limits, stop=stop, counters=counters, give_up_s=give_up_s, dice=dice
        )
        self._queue: deque[_Waiter] = deque()
        self._timer_owner: _Waiter | None = None
        """The waiter whose timer serves the whole queue. Not the first, or each one that leaves would wake the next."""
        self._woken_to_stop = False
        """Whether all waiters have been woken because the run is stopping."""
        self._estimate = TokenEstimate()

    async def ask(self, request: Request) -> Reply:
        """The reply, from whichever lane had room. Raises what the endpoint raises, except `Throttled`.

        Under budgets, a call leaves once they can cover what it may cost; raises `BudgetExhausted` if they never will.
        """
        return await self._ask(request, [lane for lane in self.lanes if request.ordinal in lane.rows])

    async def _ask_of(self, lane: Upstream, request: Request) -> Reply:
        """The reply of this lane if possible, ahead of everything that waits."""
        return await self._ask(request, [other for other in self.lanes if other is not lane], lane.control)

    async def compare(self, lane: Upstream) -> None:
        """Sends a lane's control request again, if that is wanted (see `Control`); returns once its answer is known.

        Raises the fault that ends the run, or `Interrupted` if it is stopping.
        """
        try:
            await self.failure_policy.compare(lane, self._ask_of)
        finally:
            self.admit()

    async def _ask(self, request: Request, avoid: list[Upstream], compared: Control | None = None) -> Reply:
        pause: float | None = 0.0
        row = _RowAttempts(request.ordinal, avoid, compared)
        size = _size(request) if self.limits.tokens else 0
        bid = self._account.bid(request) if self._account else None
        while True:
            if pause:
                await self._rest(pause)
            leave = await self._acquire(size, row, bid)
            lane, left_at, is_cut = leave.lane, leave.at, False
            ended_at: float | None = None
            lane.rows.add(request.ordinal)
            try:
                if bid:
                    await bid.secured()
                reply = await lane.ask(request)
            except Fault as fault:
                follows = self._unanswered(lane, fault, left_at, row)
                if follows is None:
                    raise
            except anyio.get_cancelled_exc_class():
                is_cut = self._stop.requested
                raise
            else:
                ended_at = anyio.current_time()
                lane.answered(ended_at, left_at)
                lane.control.answered(request, left_at)
                self.failure_policy.answered(row.throttles)
                self.latencies.add(ended_at - left_at)
                self._counters.durations.observe(ended_at - left_at)
                self._counters.request_outcomes["answered"] += 1
                self._settle(size, leave.tokens, reply)
                return reply
            finally:
                if bid:
                    bid.release(is_lost=is_cut)
                lane.in_flight -= 1
                lane.rows.discard(request.ordinal)
                self._counters.in_flight -= 1
                self.admit(ended_at)
            if isinstance(follows, _Doubt):
                await self._refuse(lane, follows)
            else:
                pause = follows

    def _unanswered(self, lane: Upstream, fault: Fault, left_at: float, row: _RowAttempts) -> float | _Doubt | None:
        """What follows an unanswered call: a pause before the next, an undecided refusal, or None: the fault counts."""
        if not _never_left(fault):
            self._counters.request_outcomes[type(fault).__name__.lower()] += 1
        # The first case that matches decides; the order matters.
        match fault:
            # 1. A 401 to a token that had just been renewed: a refusal of the credentials, not a stale token.
            case Expired() if row.renewed:
                denied = _unaccepted(fault)
                return _Doubt(denied, self.failure_policy.refused(lane, row.ordinal, denied, left_at, row.compared))
            # 2. Anything else that may pass.
            case Transient():
                return self._passing(lane, fault, left_at, row)
            # 3. Refused for a reason that may apply to every row: other calls decide.
            case Refused() | ProviderUnusable(kind=str()):
                return _Doubt(fault, self.failure_policy.refused(lane, row.ordinal, fault, left_at, row.compared))
            # 4. The row's own for certain; the endpoint works, which closes its breaker.
            case Permanent():
                self._counters.requests -= _never_left(fault)
                lane.answered(anyio.current_time(), left_at, served=isinstance(fault, Unparsable))
            # 5. The run ends, and the call was never sent.
            case ProviderUnusable() | Interrupted():
                self._counters.requests -= 1  # it was waiting for a token
        return None

    def _passing(self, lane: Upstream, fault: Transient, left_at: float, row: _RowAttempts) -> float | None:
        """The pause before the call is made again; None if the failure counts and uses up an attempt."""
        match fault:
            case Throttled():
                row.renewed = False
                pause = self.failure_policy.throttled(lane, fault, left_at, row.throttles)
                wait = {"wait_s": pause, "retry_after_s": fault.retry_after}
                log(_LOG, "row.throttled", row=row.ordinal, lane=lane.name, reason=fault, **wait)
                return pause
            case Expired():
                # The token has been renewed. Sent again from the queue, the call is counted and waits for its turn.
                row.renewed = True
                return 0.0
            case Unavailable(cause="stale") if not row.resent:
                row.resent = True  # never seen by the server: neither the row nor the lane failed
                return 0.0
            case Unavailable():
                row.tried.append(lane)
                return self.failure_policy.failed(lane, fault, row.ordinal, left_at, row.tried)
        return None

    async def _refuse(self, lane: Upstream, doubt: _Doubt) -> NoReturn:
        """Raises the refusal once it is known to be the row's own, or the fault that ends the run. Holds no slot."""
        fault = doubt.fault
        if doubt.refusal is not None:
            try:
                await self.failure_policy.settled(lane, doubt.refusal, self._ask_of)
            finally:
                self.admit()
        if isinstance(fault, Refused):
            raise fault
        own = Refused(f"{fault.message} (others were answered)", http_status=fault.http_status)
        own.reply = fault.reply
        raise own

    async def _rest(self, seconds: float) -> None:
        """Sleeps, counted as waiting."""
        self._counters.waiting += 1
        try:
            await self._stop.pause(seconds)
        finally:
            self._counters.waiting -= 1

    async def _acquire(self, size: int, row: _RowAttempts, bid: Bid | None) -> _Permit:
        """Waits for a turn. The permit names the lane, whose slot is then taken and whose cost is reserved."""
        turn = _Waiter(size, row.tried, row.compared is not None, bid)
        self._queue.appendleft(turn) if turn.goes_first else self._queue.append(turn)
        self._counters.waiting += 1
        try:
            now = anyio.current_time()
            self.admit(now)
            while turn.leave is None:
                self._stop.check()
                self.failure_policy.require(self.failure_policy.despair(now))
                self._check_budgets(turn)
                await self._sleep(turn)
                if turn.leave is None:
                    now = anyio.current_time()
                    self.admit(now)
        except BaseException:  # cancellation too must not leave the waiter in the queue
            self._abandon(turn)
            raise
        finally:
            self._counters.waiting -= 1
        return turn.leave

    def admit(self, now: float | None = None) -> None:
        """Lets every waiter leave that may leave now, in order, and sets the timer for the next one.

        All in one call: if each waiter woke the next, only one would leave per iteration of the event loop.
        """
        if self._stop.requested:
            if not self._woken_to_stop:
                self._woken_to_stop = True
                for turn in self._queue:
                    turn.call()
            return
        if now is None:
            now = anyio.current_time()
        while self._queue:
            # Only the head is considered: strict order keeps a large request from starving.
            turn = self._queue[0]
            # 1. Slots, rates, holds and declared limits.
            wait, lane = self._next(now, turn.avoid)
            # 2. A comparison is under way (`is_comparing`): only what is asked again may leave, since its
            #    answer must come before these do.
            if self.failure_policy.is_comparing and not turn.goes_first:
                wait = max(wait, LOOK_S)
            # 3. Budgets last: a call must not reserve money while it waits for anything else.
            if wait == 0 and turn.bid and not turn.bid.is_afforded():
                self._counters.waits_for, wait = "the budget", _BUDGET_NAP_S
                if turn.bid.refusal():  # it never will be: the waiter raises that itself
                    turn.call()
            if wait > 0:
                self._look_again(now + min(wait, _LONGEST_NAP_S))
                return
            self._queue.popleft()
            turn.leave = _Permit(lane, now, self._take(lane, now, turn.size))
            if turn.bid:
                turn.bid.reserve()
            turn.call()

    def _look_again(self, at: float) -> None:
        if self._timer_owner is None or self._timer_owner.leave is not None:
            self._timer_owner = self._queue[-1]  # the one that will stay longest
        if at < self._timer_owner.looks_at:
            self._timer_owner.looks_at = at
            self._timer_owner.call()

    async def _sleep(self, turn: _Waiter) -> None:
        """Sleeps until the waiter is woken; the owner of the timer, until the timer fires at the latest."""
        turn.called = anyio.Event()
        if turn is not self._timer_owner:
            await turn.called.wait()
            return
        with anyio.move_on_after(turn.looks_at - anyio.current_time()):
            await turn.called.wait()
        turn.looks_at = float("inf")

    def _abandon(self, turn: _Waiter) -> None:
        """Gives up a place in the queue, or the permit granted meanwhile."""
        if turn is self._timer_owner:
            self._timer_owner = None
        if turn.leave is None:
            self._queue.remove(turn)
        else:
            if turn.bid:
                turn.bid.release()
            turn.leave.lane.in_flight -= 1
            self._counters.in_flight -= 1
            self._counters.requests -= 1
        self.admit()

    def _next(self, now: float, avoid: Sequence[Upstream]) -> tuple[float, Upstream]:
        """The lane that may send soonest (the least loaded of several), and the seconds until then.

        A lane that fails fast looks empty, so its load is weighted by the share of its calls that succeed. Lanes to
        `avoid` have failed this row already or are working on it; they are used if there are no others.
        """
        # Each undecided refusal (see `Blame`) lowers the concurrency by one, so that less is wasted if every row is
        # refused; but never below one, or nothing could decide. (A worker process may have no place at all yet.)
        most = self.limits.concurrency
        if self._counters.in_flight >= max(min(1, most), most - self.failure_policy.undecided):
            self._counters.waits_for = self._failing(now)
            return float("inf"), self.lanes[0]
        wait, lane = self.lanes[0].wait(now), self.lanes[0]
        if len(self.lanes) > 1:
            wait, _, number = min(
                (lane.wait(now), (lane in avoid, (lane.in_flight + 1) / (lane.weight * lane.health)), number)
                for number, lane in enumerate(self.lanes)
            )
            lane = self.lanes[number]
        if wait > 0:
            # Event loop timers are no finer, and would busy-wait; a lane makes up for the delay (see `pace.LATE_S`).
            wait = max(wait, _SHORTEST_NAP_S)
        declared = max([limit.wait(now) for limit in (self.limits.requests, self.limits.tokens) if limit], default=0.0)
        if wait > 0 or declared > 0:
            self._counters.waits_for = self._failing(now) or ("the declared limit" if declared > wait else "quota")
        else:
            self._counters.waits_for = None
        return max(wait, declared), lane

    def _failing(self, now: float) -> str | None:
        since = self.failure_policy.failed_since()
        return None if since is None else f"the endpoint, which has failed for {now - since:.0f} s"

    def _take(self, lane: Upstream, now: float, size: int) -> float:
        lane.sent(now)
        lane.in_flight += 1
        self._counters.requests += 1
        self._counters.in_flight += 1
        if self.limits.requests:
            self.limits.requests.take(now)
        if self.limits.tokens is None:
            return 0.0
        estimated = self._estimate.of(size)
        self.limits.tokens.take(now, estimated)
        return estimated

    def _settle(self, size: int, estimated: float, reply: Reply) -> None:
        usage = reply.usage
        if self.limits.tokens is None or usage is None:  # without usage the estimate stands
            return
        answered = usage.output + usage.reasoning
        self.limits.tokens.settle(estimated, usage.input + answered)
        self._estimate.learn(size, usage.input, answered)

    def _check_budgets(self, turn: _Waiter) -> None:
        refusal = turn.bid.refusal() if turn.bid and self._queue[0] is turn else None
        if refusal is not None:
            raise refusal


def _never_left(fault: Fault) -> bool:
    """Whether no request was sent: none can be made for the row, or the call was waiting for a token."""
    return isinstance(fault, InvalidRow | Interrupted) or (isinstance(fault, ProviderUnusable) and fault.kind is None)


def _unaccepted(fault: Expired) -> ProviderUnusable:
    """The fault that a 401 to a renewed token stands for."""
    said = f"the endpoint does not accept a fresh token either: {fault.message}"
    denied = ProviderUnusable(said, http_status=401, kind="401")
    denied.reply = fault.reply
    return denied


def _size(request: Request) -> int:
    return len(str(request.payload.get("messages", "")))
