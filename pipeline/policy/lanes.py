"""Where requests go, and when: one queue for the run, and a lane for each endpoint with limits of its own."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import anyio

from pipeline.data import Ask, Reply, Request
from pipeline.faults import Denied, Settled, Throttled, Unavailable
from pipeline.pace import AdaptiveRate, Breaker, Gate, Latencies, Spacing, TokenEstimate
from pipeline.policy.stop import Stop
from pipeline.tally import Tally

GIVE_UP_S = 1800.0
"""How long an endpoint may fail as a whole before the run ends, resumable."""


MOST_THROTTLES = 50
"""How often a row is throttled, while others are answered, before each further time uses up one of its attempts."""

_SHORTEST_NAP_S = 0.002
_LONGEST_NAP_S = 1.0


@dataclass(slots=True)
class Lane:
    """One endpoint, and what is known of it. `rate` is None when only the bound on calls in flight counts."""

    name: str
    ask: Ask
    weight: float = 1.0
    rate: AdaptiveRate | None = field(default_factory=AdaptiveRate)
    gate: Gate = field(default_factory=Gate)
    breaker: Breaker = field(default_factory=Breaker)
    in_flight: int = 0
    rows: set[int] = field(default_factory=set)
    """The rows that it works on."""
    health: float = 1.0
    """The share of its latest calls that succeeded."""
    answered_at: float | None = None
    """When a request was answered last, or the first one left."""

    @property
    def opened_at(self) -> float | None:
        """Since when the endpoint has failed as a whole; None when it has not."""
        return self.breaker.opened_at

    def wait(self, now: float) -> float:
        """Seconds until a request may leave by this lane."""
        return max(self.gate.wait(now), self.breaker.wait(now), self.rate.wait(now) if self.rate else 0.0)

    def sent(self, now: float) -> None:
        """A request leaves."""
        self.answered_at = now if self.answered_at is None else self.answered_at
        self.breaker.sent(now)
        if self.rate:
            self.rate.sent(now)

    def answered(self, now: float, left_at: float) -> None:
        """A request was answered, or refused for reasons of its own."""
        self.answered_at = now
        self.health += 0.1 * (1.0 - self.health)
        if self.breaker.succeeded(now) and self.rate:
            self.rate.restart(now)
        elif self.rate:
            self.rate.answered(now, left_at)

    def throttled(self, now: float, left_at: float, retry_after: float | None) -> None:
        """A request was refused for want of quota."""
        self.breaker.succeeded(now)
        if self.rate:
            self.rate.throttled(now, left_at)
        if retry_after is not None:
            self.gate.close(now, retry_after)

    def failed(self, now: float, row: int, in_play: int = 10) -> None:
        """A request failed, with so many rows in play."""
        self.health = max(0.02, 0.9 * self.health)
        self.breaker.failed(now, row, in_play)
        if self.rate:
            self.rate.failed(now)


@dataclass(slots=True)
class Limits:
    """The bounds of a run, which may be changed while it works; `concurrency` up to `most`, if that is given."""

    concurrency: int
    requests: Spacing | None = None
    tokens: Spacing | None = None
    most: int | None = None


@dataclass(frozen=True, slots=True)
class _Leave:
    """A slot that was taken: by which lane a try leaves, since when, and for how many tokens."""

    lane: Lane
    at: float
    tokens: float


@dataclass(slots=True, eq=False)
class _Turn:
    """A try in the queue. It is called when it may leave, or when it is to look at the clock sooner than it meant."""

    size: int
    avoid: Sequence[Lane]
    leave: _Leave | None = None
    looks_at: float = float("inf")
    called: anyio.Event | None = None

    def call(self) -> None:
        """Wakes it, if it sleeps."""
        if self.called is not None:
            self.called.set()


class Dispatcher:
    """The queue at which every try of every row waits for its turn, and which sends it down a lane.

    First come, first served. Whoever waits holds no slot and uses up no attempt, whatever it waits for: a place
    among the calls in flight, the rate that the quota grants, a time that the server named, a declared limit, or an
    endpoint that has failed. A throttled try queues again by itself, and one that failed on a lane goes down another,
    if there is one, before the failure counts; so does a second request of a row while its first runs. While an
    endpoint has failed as a whole, so do the rows that it failed: only probes leave, and the rows go on when one of
    them succeeds.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        limits: Limits,
        *,
        stop: Stop,
        tally: Tally,
        give_up_s: float,
        dice: random.Random | None = None,
    ) -> None:
        self.lanes = list(lanes)
        self.limits = limits
        self.latencies = Latencies()
        self._stop = stop
        self._tally = tally
        self._give_up_s = give_up_s
        self._queue: deque[_Turn] = deque()
        self._lookout: _Turn | None = None
        """The one of them that looks at the clock for all: were it the first, each that leaves would wake the next."""
        self._told = False
        """Whether those who wait have been called because of the stop."""
        self._estimate = TokenEstimate()
        self._dice = dice or random.Random()  # noqa: S311 - jitter

    async def ask(self, request: Request) -> Reply:
        """The reply, from whichever lane had room. Raises what the endpoint raises, except `Throttled`."""
        pause, throttles = 0.0, 0
        tried = [lane for lane in self.lanes if request.ordinal in lane.rows]
        size = _size(request) if self.limits.tokens else 0
        while True:
            if pause:
                await self._stop.pause(pause)
            leave = await self._enter(size, tried)
            lane, left_at = leave.lane, leave.at
            lane.rows.add(request.ordinal)
            try:
                reply = await lane.ask(request)
            except Throttled as fault:
                throttles += 1
                self._throttled(lane, fault, left_at, throttles)
                pause = min(30.0, max(0.5, 2.0 * pause)) * self._dice.uniform(0.5, 1.0)
            except Unavailable as fault:
                tally = self._tally
                in_play = tally.in_flight + tally.waiting + tally.retrying
                lane.failed(anyio.current_time(), request.ordinal, in_play)
                # While all fails, a 500 is the server's word on this row, and counts; anything else does not.
                fault.own = lane.opened_at is not None and fault.http_status == 500
                tried.append(lane)
                elsewhere = [other for other in self.lanes if other not in tried and other.opened_at is None]
                if fault.own or (lane.opened_at is None and not elsewhere):
                    raise
                pause = 0.0
            except Settled:
                lane.answered(anyio.current_time(), left_at)
                raise
            else:
                now = anyio.current_time()
                lane.answered(now, left_at)
                self.latencies.add(now - left_at)
                self._settle(size, leave.tokens, reply)
                return reply
            finally:
                lane.in_flight -= 1
                lane.rows.discard(request.ordinal)
                self._tally.in_flight -= 1
                self.admit()

    def _throttled(self, lane: Lane, fault: Throttled, left_at: float, throttles: int) -> None:
        """Takes note of a 429. Raises when waiting for quota would have no end, for all rows or for this one."""
        now = anyio.current_time()
        self._tally.throttled += 1
        lane.throttled(now, left_at, fault.retry_after)
        if lane.answered_at is not None and now - lane.answered_at >= self._give_up_s:
            raise Denied(f"every request was throttled for {self._give_up_s:.0f} s (--give-up-after): {fault.message}")
        if throttles >= MOST_THROTTLES and lane.answered_at is not None and lane.answered_at > left_at:
            raise Unavailable(fault.message, http_status=fault.http_status)

    async def _enter(self, size: int, avoid: Sequence[Lane]) -> _Leave:
        """Waits for a turn; says which lane to use, whose slot is then taken."""
        turn = _Turn(size, avoid)
        self._queue.append(turn)
        self._tally.waiting += 1
        try:
            self.admit()
            while turn.leave is None:
                self._stop.check()
                self._check_patience(anyio.current_time())
                await self._nap(turn)
                if turn.leave is None:
                    self.admit()
        except BaseException:  # a cancellation, too, must not leave the turn in the queue
            self._abandon(turn)
            raise
        finally:
            self._tally.waiting -= 1
        return turn.leave

    def admit(self) -> None:
        """Lets everyone leave who may now, in order, and has the lookout look again when it may be somebody's turn.

        All at once, whoever calls: were each to wake the next, no more than one would leave in a round of the loop.
        """
        if self._stop.requested:
            if not self._told:
                self._told = True
                for turn in self._queue:
                    turn.call()
            return
        now = anyio.current_time() if self._queue else 0.0
        while self._queue:
            turn = self._queue[0]
            wait, lane = self._next(now, turn.avoid)
            if wait > 0:
                self._look_again(now + min(wait, _LONGEST_NAP_S))
                return
            self._queue.popleft()
            turn.leave = _Leave(lane, now, self._take(lane, now, turn.size))
            turn.call()

    def _look_again(self, at: float) -> None:
        if self._lookout is None or self._lookout.leave is not None:
            self._lookout = self._queue[-1]  # the one that stays longest
        if at < self._lookout.looks_at:
            self._lookout.looks_at = at
            self._lookout.call()

    async def _nap(self, turn: _Turn) -> None:
        """Sleeps until the turn is called, or it is time to look."""
        turn.called = anyio.Event()
        if turn is not self._lookout:
            await turn.called.wait()
            return
        with anyio.move_on_after(turn.looks_at - anyio.current_time()):
            await turn.called.wait()
        turn.looks_at = float("inf")

    def _abandon(self, turn: _Turn) -> None:
        """Gives up a place in the queue, or the slot that was taken meanwhile."""
        if turn is self._lookout:
            self._lookout = None
        if turn.leave is None:
            self._queue.remove(turn)
        else:
            turn.leave.lane.in_flight -= 1
            self._tally.in_flight -= 1
            self._tally.requests -= 1
        self.admit()

    def _next(self, now: float, avoid: Sequence[Lane]) -> tuple[float, Lane]:
        """The lane that may send soonest, the emptiest of several; and in how many seconds.

        A lane that fails fast looks empty: what share of its calls succeed counts as its room. Lanes to `avoid` are
        those that have failed this row already or still work on it, and are taken when there are no others.
        """
        if self._tally.in_flight >= self.limits.concurrency:
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
        since = self._failed_since()
        return None if since is None else f"the endpoint, which has failed for {now - since:.0f} s"

    def _failed_since(self) -> float | None:
        """Since when no lane works; None when one does."""
        since: float | None = None
        for lane in self.lanes:
            if lane.opened_at is None:
                return None
            since = lane.opened_at if since is None else max(since, lane.opened_at)
        return since

    def _take(self, lane: Lane, now: float, size: int) -> float:
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
        if self.limits.tokens is None:
            return
        usage = reply.usage
        answered = usage.output + usage.reasoning
        self.limits.tokens.settle(estimated, usage.input + answered)
        self._estimate.learn(size, usage.input, answered)

    def _check_patience(self, now: float) -> None:
        since = self._failed_since()
        if since is not None and now - since >= self._give_up_s:
            raise Denied(f"the endpoint has failed for {self._give_up_s:.0f} s (--give-up-after)")


def _size(request: Request) -> int:
    return len(str(request.payload.get("messages", "")))
