"""Where requests go, and when: one queue for the run, and a lane for each endpoint with limits of its own."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import anyio

from pipeline.counters import Counters
from pipeline.data import Reply, Request
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
from pipeline.policy.failure_handling import LOOK_S, Judge, Throttles
from pipeline.policy.shutdown import Shutdown
from pipeline.policy.upstream import Limits, Upstream

_SHORTEST_NAP_S = 0.002
_LONGEST_NAP_S = 1.0

_BUDGET_NAP_S = 0.1
"""How often who waits for a budget looks whether the calls of others, who share it, have ended."""


@dataclass(frozen=True, slots=True)
class _Permit:
    """A slot that was taken: by which lane a try leaves, since when, and for how many tokens."""

    lane: Upstream
    at: float
    tokens: float


@dataclass(slots=True, eq=False)
class _Waiter:
    """A try in the queue. It is called when it may leave, or when it is to look at the clock sooner than it meant."""

    size: int
    avoid: Sequence[Upstream]
    goes_first: bool = False
    bid: Bid | None = None
    """What it asks of the budgets, where there are any."""
    leave: _Permit | None = None
    looks_at: float = float("inf")
    called: anyio.Event | None = None

    def call(self) -> None:
        """Wakes it, if it sleeps."""
        if self.called is not None:
            self.called.set()


@dataclass(frozen=True, slots=True)
class _Doubt:
    """A refusal of a row, and the note of it where it may be everybody's."""

    fault: Refused | ProviderUnusable
    refusal: Refusal | None


@dataclass(slots=True)
class _Row:
    """What became of one row's tries so far; `tried` are the lanes that failed it, or work on it already."""

    ordinal: int
    tried: list[Upstream]
    goes_first: bool = False
    throttles: Throttles = field(default_factory=Throttles)
    renewed: bool = False
    resent: bool = False


class Dispatcher:
    """The queue at which every try of every row waits for its turn, and which sends it down a lane.

    First come, first served. Whoever waits holds no slot and uses up no attempt, whatever it waits for: a place
    among the calls in flight, the rate that the quota grants, a time that the server named, a declared limit, or an
    endpoint that has failed. A throttled try queues again by itself, and one that failed on a lane goes down another,
    if there is one, before the failure counts; so does a second request of a row while its first runs. While an
    endpoint has failed as a whole, so do the rows that it failed: only probes leave, and the rows go on when one of
    them succeeds. A row that was refused for a reason that may be everybody's waits until other calls have shown whose
    it is (see `pipeline.pace.Blame`); meanwhile fewer calls leave.
    """

    def __init__(
        self,
        lanes: Sequence[Upstream],
        limits: Limits,
        *,
        stop: Shutdown,
        tally: Counters,
        give_up_s: float,
        account: Account | None = None,
        dice: random.Random | None = None,
    ) -> None:
        self.lanes = list(lanes)
        self.limits = limits
        self.latencies = LatencyWindow()
        self._stop = stop
        self._tally = tally
        self._account = account
        self.judge = Judge(self.lanes, limits, stop=stop, tally=tally, give_up_s=give_up_s, dice=dice)
        self._queue: deque[_Waiter] = deque()
        self._lookout: _Waiter | None = None
        """The one of them that looks at the clock for all: were it the first, each that leaves would wake the next."""
        self._told = False
        """Whether those who wait have been called because of the stop."""
        self._estimate = TokenEstimate()

    async def ask(self, request: Request) -> Reply:
        """The reply, from whichever lane had room. Raises what the endpoint raises, except `Throttled`.

        Under budgets a call leaves when what it may cost is left of them, and raises `BudgetExhausted` when it never
        will be.
        """
        return await self._ask(request, [lane for lane in self.lanes if request.ordinal in lane.rows])

    async def _ask_of(self, lane: Upstream, request: Request) -> Reply:
        """The reply of this lane, where that can be; before all others that wait."""
        return await self._ask(request, [other for other in self.lanes if other is not lane], goes_first=True)

    async def _ask(self, request: Request, avoid: list[Upstream], *, goes_first: bool = False) -> Reply:
        pause: float | None = 0.0
        row = _Row(request.ordinal, avoid, goes_first)
        size = _size(request) if self.limits.tokens else 0
        bid = self._account.bid(request) if self._account else None
        while True:
            if pause:
                await self._rest(pause)
            leave = await self._enter(size, row, bid)
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
                self.judge.answered(row.throttles)
                self.latencies.add(ended_at - left_at)
                self._settle(size, leave.tokens, reply)
                return reply
            finally:
                if bid:
                    bid.release(is_lost=is_cut)
                lane.in_flight -= 1
                lane.rows.discard(request.ordinal)
                self._tally.in_flight -= 1
                self.admit(ended_at)
            if isinstance(follows, _Doubt):
                await self._refuse(lane, follows)
            else:
                pause = follows

    def _unanswered(self, lane: Upstream, fault: Fault, left_at: float, row: _Row) -> float | _Doubt | None:
        """What follows when a call was not answered: a pause before the next, a doubt whose fault it is, or its end."""
        match fault:
            case Expired() if row.renewed:
                denied = _unaccepted(fault)
                return _Doubt(denied, self.judge.refused(lane, row.ordinal, denied, left_at))
            case Transient():
                return self._passing(lane, fault, left_at, row)
            case Refused() | ProviderUnusable(kind=str()):
                return _Doubt(fault, self.judge.refused(lane, row.ordinal, fault, left_at))
            case Permanent():
                self._tally.requests -= isinstance(fault, InvalidRow)  # it never left
                lane.answered(anyio.current_time(), left_at, served=isinstance(fault, Unparsable))
            case ProviderUnusable() | Interrupted():
                self._tally.requests -= 1  # it waited for a token, and never left
        return None

    def _passing(self, lane: Upstream, fault: Transient, left_at: float, row: _Row) -> float | None:
        """The pause after which the call is made again; None when its failure counts, and uses up an attempt."""
        match fault:
            case Throttled():
                row.renewed = False
                return self.judge.throttled(lane, fault, left_at, row.throttles)
            case Expired():
                # The token has been renewed. Sent again from here, the call is counted and waits its turn.
                row.renewed = True
                return 0.0
            case Unavailable(cause="stale") if not row.resent:
                row.resent = True  # the server has not seen it: no failure of the row's or of the lane's
                return 0.0
            case Unavailable():
                row.tried.append(lane)
                return self.judge.failed(lane, fault, row.ordinal, left_at, row.tried)
        return None

    async def _refuse(self, lane: Upstream, doubt: _Doubt) -> NoReturn:
        """Raises the refusal once it is known to be the row's own, or what ends the run. Holds no slot meanwhile."""
        fault = doubt.fault
        if doubt.refusal is not None:
            try:
                await self.judge.settled(lane, doubt.refusal, self._ask_of)
            finally:
                self.admit()
        if isinstance(fault, Refused):
            raise fault
        own = Refused(f"{fault.message} (others were answered)", http_status=fault.http_status)
        own.reply = fault.reply
        raise own

    async def _rest(self, seconds: float) -> None:
        """Sleeps, as one of those who wait."""
        self._tally.waiting += 1
        try:
            await self._stop.pause(seconds)
        finally:
            self._tally.waiting -= 1

    async def _enter(self, size: int, row: _Row, bid: Bid | None) -> _Permit:
        """Waits for a turn; says which lane to use, whose slot is then taken, and paid for."""
        turn = _Waiter(size, row.tried, row.goes_first, bid)
        self._queue.appendleft(turn) if row.goes_first else self._queue.append(turn)
        self._tally.waiting += 1
        try:
            now = anyio.current_time()
            self.admit(now)
            while turn.leave is None:
                self._stop.check()
                self.judge.require(self.judge.despair(now))
                self._check_budgets(turn)
                await self._nap(turn)
                if turn.leave is None:
                    now = anyio.current_time()
                    self.admit(now)
        except BaseException:  # a cancellation, too, must not leave the turn in the queue
            self._abandon(turn)
            raise
        finally:
            self._tally.waiting -= 1
        return turn.leave

    def admit(self, now: float | None = None) -> None:
        """Lets everyone leave who may now, in order, and has the lookout look again when it may be somebody's turn.

        All at once, whoever calls: were each to wake the next, no more than one would leave in a round of the loop.
        """
        if self._stop.requested:
            if not self._told:
                self._told = True
                for turn in self._queue:
                    turn.call()
            return
        if now is None:
            now = anyio.current_time()
        while self._queue:
            turn = self._queue[0]
            wait, lane = self._next(now, turn.avoid)
            if self.judge.is_comparing and not turn.goes_first:
                wait = max(wait, LOOK_S)  # what is asked again goes first, or its answer comes too late for these
            if wait == 0 and turn.bid and not turn.bid.is_afforded():
                self._tally.waits_for, wait = "the budget", _BUDGET_NAP_S
                if turn.bid.refusal():
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
        if self._lookout is None or self._lookout.leave is not None:
            self._lookout = self._queue[-1]  # the one that stays longest
        if at < self._lookout.looks_at:
            self._lookout.looks_at = at
            self._lookout.call()

    async def _nap(self, turn: _Waiter) -> None:
        """Sleeps until the turn is called, or it is time to look."""
        turn.called = anyio.Event()
        if turn is not self._lookout:
            await turn.called.wait()
            return
        with anyio.move_on_after(turn.looks_at - anyio.current_time()):
            await turn.called.wait()
        turn.looks_at = float("inf")

    def _abandon(self, turn: _Waiter) -> None:
        """Gives up a place in the queue, or the slot that was taken meanwhile."""
        if turn is self._lookout:
            self._lookout = None
        if turn.leave is None:
            self._queue.remove(turn)
        else:
            if turn.bid:
                turn.bid.release()
            turn.leave.lane.in_flight -= 1
            self._tally.in_flight -= 1
            self._tally.requests -= 1
        self.admit()

    def _next(self, now: float, avoid: Sequence[Upstream]) -> tuple[float, Upstream]:
        """The lane that may send soonest, the emptiest of several; and in how many seconds.

        A lane that fails fast looks empty: what share of its calls succeed counts as its room. Lanes to `avoid` are
        those that have failed this row already or still work on it, and are taken when there are no others.
        """
        most = self.limits.concurrency
        if self._tally.in_flight >= max(min(1, most), most - self.judge.undecided):
            self._tally.waits_for = self._failing(now)
            return float("inf"), self.lanes[0]
        wait, lane = self.lanes[0].wait(now), self.lanes[0]
        if len(self.lanes) > 1:
            wait, _, number = min(
                (lane.wait(now), (lane in avoid, (lane.in_flight + 1) / (lane.weight * lane.health)), number)
                for number, lane in enumerate(self.lanes)
            )
            lane = self.lanes[number]
        if wait > 0:
            # Timers of event loops are no finer, and spin on what is; a lane makes up for it, see `pace.rate.LATE_S`.
            wait = max(wait, _SHORTEST_NAP_S)
        declared = max([limit.wait(now) for limit in (self.limits.requests, self.limits.tokens) if limit], default=0.0)
        if wait > 0 or declared > 0:
            self._tally.waits_for = self._failing(now) or ("the declared limit" if declared > wait else "quota")
        else:
            self._tally.waits_for = None
        return max(wait, declared), lane

    def _failing(self, now: float) -> str | None:
        since = self.judge.failed_since()
        return None if since is None else f"the endpoint, which has failed for {now - since:.0f} s"

    def _take(self, lane: Upstream, now: float, size: int) -> float:
        lane.sent(now)
        lane.in_flight += 1
        self._tally.requests += 1
        self._tally.in_flight += 1
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


def _unaccepted(fault: Expired) -> ProviderUnusable:
    """What a 401 to a renewed token says."""
    said = f"the endpoint does not accept a fresh token either: {fault.message}"
    denied = ProviderUnusable(said, http_status=401, kind="401")
    denied.reply = fault.reply
    return denied


def _size(request: Request) -> int:
    return len(str(request.payload.get("messages", "")))
