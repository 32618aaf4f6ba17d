"""What is made of a try that was not answered: whose fault it is, whether it uses up an attempt, and when all ends."""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import anyio

from pipeline.counters import Counters
from pipeline.data import Ask, Reply, Request
from pipeline.faults import BudgetExhausted, Permanent, ProviderUnusable, Refused, Throttled, Transient, Unavailable
from pipeline.pace import FEW, ROWS, FailureRate, Refusal
from pipeline.policy.shutdown import Shutdown
from pipeline.policy.upstream import Control, Limits, Upstream

GIVE_UP_S = 1800.0
"""How long an endpoint may fail as a whole before the run ends, resumable."""

UNREACHABLE_S = 45.0
"""How long an endpoint may be out of reach before anything was ever answered: the run ends within a minute."""

THROTTLES = 8
"""How often a row is throttled while others are answered, at least, before that is its own failure."""

LAST_WAIT_S = 75.0
"""How long one of the last rows is throttled before that is its own failure: quotas by the minute have come round."""

_UNREACHED = {"dns", "refused", "unreachable", "tls", "proxy"}
"""Causes of `Unavailable` that are no row's, and that hardly pass by themselves."""

_REACH_AGAIN_S = 2.0
"""How soon an endpoint is tried again that was never reached: it may be starting up."""

_SILENT_S = 2.0
"""How long nothing is answered before it is said why."""

LOOK_S = 0.05
"""How often a refused row looks whether its refusal was decided upon."""

_MOST_WORDS = 300

_CONTROLS = 3
"""How often what was answered before is asked again, when that fails for reasons that tell nothing."""

AskOf = Callable[[Upstream, Request], Awaitable[Reply]]


@dataclass(slots=True)
class Throttles:
    """The 429s of one row; `own` counts those that say more about the row than about the quota, `own_since` the first.

    `passed_over` counts those of them before which others were answered.
    """

    own: int = 0
    own_since: float = math.inf
    passed_over: int = 0
    last_at: float | None = None
    pause: float = 0.0


class Judge:
    """Sees how every try of a run ends, and decides what follows for its row and for the run.

    `undecided` counts the rows of which nobody knows yet whether their refusal is their own.
    """

    def __init__(
        self,
        lanes: Sequence[Upstream],
        limits: Limits,
        *,
        stop: Shutdown,
        tally: Counters,
        give_up_s: float,
        dice: random.Random | None = None,
    ) -> None:
        self.undecided = 0
        self._lanes = lanes
        self._limits = limits
        self._stop = stop
        self._tally = tally
        self._give_up_s = give_up_s
        self._scarcity = FailureRate()
        self._dice = dice or random.Random()  # noqa: S311 - jitter

    def answered(self, row: Throttles) -> None:
        """A row was answered."""
        if row.last_at is None:
            self._scarcity.saw(failed=False)

    def throttled(self, lane: Upstream, fault: Throttled, left_at: float, row: Throttles) -> float:
        """Takes note of a 429, and says how long its row pauses. Raises when waiting for quota would have no end.

        A 429 between whose predecessor and itself others were answered is about this row rather than about the quota:
        the time that it names holds this row only, and after a few of them the rate is left alone. So is one of the
        last rows, where others were answered before.
        """
        now = anyio.current_time()
        self._tally.throttled += 1
        if row.last_at is None:
            self._scarcity.saw(failed=True)
        passed_over = row.last_at is not None and lane.served_at > row.last_at
        among_last = self._in_play() <= FEW and self._has_served()
        if passed_over or among_last:
            row.own, row.own_since = row.own + 1, min(row.own_since, now)
        row.last_at, row.passed_over = now, row.passed_over + passed_over
        if row.own < FEW:
            lane.throttled(now, left_at, None if passed_over else fault.retry_after)
        lane.trouble = fault
        out_of_patience = lane.answered_at is not None and now - lane.answered_at >= self._give_up_s
        most = self._scarcity.attempts(THROTTLES)
        waited = row.passed_over >= most or now - row.own_since >= LAST_WAIT_S
        if (row.own >= most and waited) or (out_of_patience and among_last):
            told = "while other rows were answered" if passed_over else "after all others had ended"
            raise Refused(f"{fault.message} (throttled again and again {told})", http_status=fault.http_status)
        if out_of_patience:
            raise ProviderUnusable(
                f"every request was throttled for {self._give_up_s:.0f} s (--give-up-after): {fault.message}"
            )
        row.pause = min(15.0 if row.own else 30.0, max(0.5, 2.0 * row.pause))
        pause = row.pause * self._dice.uniform(0.5, 1.0)
        return max(pause, fault.retry_after or 0.0) if row.own else pause

    def failed(
        self, lane: Upstream, fault: Unavailable, row: int, left_at: float, tried: Sequence[Upstream]
    ) -> float | None:
        """Takes note of a failure: None when it uses up one of the row's attempts, else the pause before it goes on."""
        now = anyio.current_time()
        if fault.reply is not None:  # it was answered and paid, with nothing that can be used
            lane.answered(now, left_at)
            fault.own = True
            return None
        lane.trouble = fault
        lane.failed(now, row, self.rows_in_play(fault.cause), left_at)
        # While all fails, a 500 is the server's word on this row, and counts; anything else does not.
        fault.own = lane.opened_at is not None and fault.http_status == 500
        elsewhere = [other for other in self._lanes if other not in tried and other.opened_at is None]
        out_of_reach = fault.cause in _UNREACHED and not self._has_served_here()
        if fault.own or (lane.opened_at is None and not elsewhere and not out_of_reach):
            return None
        return _REACH_AGAIN_S if out_of_reach else 0.0

    def refused(self, lane: Upstream, row: int, fault: Refused | ProviderUnusable, left_at: float) -> Refusal | None:
        """Takes note of a refusal; None when it is the row's own beyond doubt. What it returns must be `settled`."""
        now = anyio.current_time()
        lane.answered(now, left_at, served=False)
        suspect = not isinstance(fault, Refused) or fault.suspect
        if fault.kind is None or not (suspect or not self._has_served()):
            return None
        lane.control.refused(row, left_at)
        refusal = Refusal(row, fault.kind, suspect, fault.message, left_at, now, isinstance(fault, ProviderUnusable))
        lane.refused(refusal)
        self.undecided += 1
        if (denied := self.verdict(now)) is not None:
            self._stop.request(denied)  # now, or the slot that becomes free would be taken once more
        return refusal

    async def settled(self, lane: Upstream, refusal: Refusal, ask: AskOf) -> None:
        """Returns when a refusal is known to be the row's own. Raises `ProviderUnusable` when it is everybody's.

        `ask` asks a lane for a request, if that is in doubt otherwise.
        """
        try:
            while not lane.clears(refusal):
                self._stop.check()
                self.require(self.verdict(anyio.current_time()))
                if lane.control.is_wanted and lane.control.request is not None and lane.control.out is None:
                    await self._compare(lane.control, lane.control.request, partial(ask, lane))
                else:
                    await self._stop.pause(LOOK_S)
        finally:
            self.undecided -= 1

    @property
    def is_comparing(self) -> bool:
        """Whether rows wait for what becomes of a request that was answered before."""
        return self.undecided > 0 and any(
            lane.control.is_wanted and lane.control.request is not None for lane in self._lanes
        )

    async def _compare(self, control: Control, request: Request, ask: Ask) -> None:
        """Asks once more what was answered before. Answered, it clears those that were refused."""
        control.out = request
        try:
            await ask(request)
        except (Permanent, BudgetExhausted):
            control.told_nothing(most=1)
        except Transient:
            control.told_nothing(most=_CONTROLS)
            await self._stop.pause(_REACH_AGAIN_S)
        else:
            if control.is_wanted:  # another lane has answered
                control.told_nothing(most=_CONTROLS)
        finally:
            control.out = None

    def verdict(self, now: float) -> ProviderUnusable | None:
        """The end of the run, when what rows were refused for was found to be everybody's."""
        for lane in self._lanes:
            if not lane.blame.is_open:
                continue
            found = lane.blame.everybodys(self._limits.concurrency) or lane.blame.last_word(
                now, others=self._in_play(), answered=self._has_served()
            )
            if found is not None and lane.control.request is not None:
                lane.control.is_wanted = True  # one of those who wait asks
            elif found is not None:
                where = f" by {lane.name}" if len(self._lanes) > 1 else ""
                about = "this is about the account, not about a row: " if found.accounts else ""
                said = f"{about}every row was refused alike{where}, and none was answered since"
                return ProviderUnusable(f"{found.message} ({said})")
        return None

    def despair(self, now: float) -> ProviderUnusable | None:
        """The end of the run, when the endpoint was out of reach from the start, or has failed for long."""
        troubles = [lane.trouble for lane in self._lanes if lane.trouble is not None]
        words = next(filter(None, (_words(lane) for lane in self._lanes)), "no answer")
        began = [lane.answered_at for lane in self._lanes if lane.answered_at is not None]
        unreached = [one for one in troubles if isinstance(one, Unavailable) and one.cause in _UNREACHED]
        if began and len(unreached) == len(self._lanes) and not self._has_served_here():
            patience = min(UNREACHABLE_S, self._give_up_s)
            if now - min(began) >= patience:
                return ProviderUnusable(
                    f"the endpoint cannot be reached: {words} (nothing was answered for {patience:.0f} s)"
                )
        since = self.failed_since()
        if since is not None and now - since >= self._give_up_s:
            return ProviderUnusable(f"the endpoint has failed for {self._give_up_s:.0f} s (--give-up-after): {words}")
        return None

    def look(self, now: float) -> ProviderUnusable | None:
        """Says in the tally what is wrong, when nothing is answered; and how the run ends, when it does.

        To be called every second, also while nobody asks.
        """
        told = [_words(lane) if now - lane.served_at >= _SILENT_S else None for lane in self._lanes]
        self._tally.trouble = told[0] if all(told) else None
        return self.despair(now) or self.verdict(now)

    def require(self, denied: ProviderUnusable | None) -> None:
        """Raises what ends the run, if there is anything."""
        if denied is not None:
            raise denied

    def failed_since(self) -> float | None:
        """Since when no lane works; None when one does."""
        since: float | None = None
        for lane in self._lanes:
            if lane.opened_at is None:
                return None
            began = lane.opened_at if lane.failing_since is None else lane.failing_since
            since = began if since is None else max(since, began)
        return since

    def rows_in_play(self, cause: str | None = None) -> int:
        """Rows that ask, for the breaker: at the end of the input a few that fail are no failure of the endpoint.

        They are the ones that failed all along. Their attempts bound them, unless nothing was answered yet in this
        start, or the cause is no row's.
        """
        in_play, tally = self._in_play(), self._tally
        at_the_end = 0 < tally.rows <= tally.done + in_play
        return ROWS if at_the_end and self._has_served_here() and cause not in _UNREACHED else in_play

    def _in_play(self) -> int:
        """Rows in flight, those that wait for anything but a verdict, those that sleep before their next try."""
        return self._tally.in_flight + self._tally.waiting + self._tally.retrying

    def _has_served_here(self) -> bool:
        return any(lane.has_served for lane in self._lanes)

    def _has_served(self) -> bool:
        """Whether any row was ever answered, in an earlier start or in this one."""
        return self._tally.ok_before > 0 or self._has_served_here()


def _words(lane: Upstream) -> str | None:
    """What is wrong with a lane, as it was said last."""
    return lane.hitch() or (lane.trouble.message[:_MOST_WORDS] if lane.trouble is not None else None)
