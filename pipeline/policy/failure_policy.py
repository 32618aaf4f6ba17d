"""Decides what follows an attempt without an answer: whose fault it is, whether it counts, and whether the run ends."""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import anyio

from pipeline.data import Ask, Reply, Request
from pipeline.faults import BudgetExhausted, Permanent, ProviderUnusable, Refused, Throttled, Transient, Unavailable
from pipeline.pace import FEW, ROWS, FailureRate, Refusal
from pipeline.policy.shutdown import Shutdown
from pipeline.policy.upstream import Control, Limits, Upstream
from pipeline.totals.counters import Counters

GIVE_UP_S = 1800.0
"""How long an endpoint as a whole may fail before the run stops, resumable."""

UNREACHABLE_S = 45.0
"""How long an endpoint that has answered nothing yet may be unreachable: the run then stops within a minute."""

THROTTLES = 8
"""How often, at least, a row is throttled while others are answered before the failure is its own."""

LAST_WAIT_S = 75.0
"""How long one of the last rows is throttled before the failure is its own: per-minute quotas have reset by then."""

PASSED_OVER = 8
"""Answers to calls that left after a row was throttled, by which it is known that the quota was not used up.

If few rows are throttled at all, such a row need not be waited for once all others have ended.
"""

_ALONE_PAUSE_S = 2.0
"""How long such a row pauses between its last tries: no quota is spared by a longer pause."""

_FIRST_PAUSE_S = 0.5
"""The first pause of a throttled row; each further one is twice as long, up to the longest."""

_LONGEST_PAUSE_S = 30.0
"""Half of the usual quota's minute: the rate, not this pause, decides when the row is sent again."""

_LONGEST_OWN_PAUSE_S = 15.0
"""The longest pause of a row that is throttled while others are answered: its few tries must come to an end."""

_UNREACHED = {"dns", "refused", "unreachable", "tls", "proxy"}
"""Causes of `Unavailable` that no row can be blamed for, and that seldom go away by themselves."""

_REACH_AGAIN_S = 2.0
"""How soon an endpoint that was never reached is tried again: it may be starting up."""

_SILENT_S = 2.0
"""How long nothing is answered before the reason is reported."""

LOOK_S = 0.05
"""How often a refused row checks whether its refusal has been decided."""

_MOST_WORDS = 300
"""Characters of a server's message that the display shows."""

_CONTROLS = 3
"""How often the control request is sent again if it fails for reasons that prove nothing."""

AskOf = Callable[[Upstream, Request], Awaitable[Reply]]


@dataclass(slots=True)
class Throttles:
    """The 429s of one row. `own` counts those that say more about the row than about the quota, since `own_since`.

    `passed_over` counts those that came after other rows had been answered. `answers` is how many answers of others
    prove nothing about it: all until its first 429, and those that were in flight then.
    """

    own: int = 0
    own_since: float = math.inf
    passed_over: int = 0
    answers: int = 0
    last_at: float | None = None
    pause: float = 0.0


class FailurePolicy:
    """Sees how every attempt of a run ends, and decides what follows for its row and for the run.

    `undecided` counts the rows whose refusal has not yet been found to be their own.
    """

    def __init__(
        self,
        lanes: Sequence[Upstream],
        limits: Limits,
        *,
        stop: Shutdown,
        counters: Counters,
        give_up_s: float,
        dice: random.Random | None = None,
    ) -> None:
        self.undecided = 0
        self._answers = 0
        self._lanes = lanes
        self._limits = limits
        self._stop = stop
        self._counters = counters
        self._give_up_s = give_up_s
        self._scarcity = FailureRate()
        self._dice = dice or random.Random()  # noqa: S311 - jitter

    def answered(self, row: Throttles) -> None:
        """A row was answered."""
        self._answers += 1
        if row.last_at is None:
            self._scarcity.saw(failed=False)

    def throttled(self, lane: Upstream, fault: Throttled, left_at: float, row: Throttles) -> float:
        """Notes a 429, and returns how long its row pauses. Raises if waiting for quota would never end.

        If others were answered since the row's previous 429, this one is about the row rather than the quota: its
        Retry-After holds this row only, and after a few of them the rate is no longer cut. The same holds for the last
        rows in play, if others were answered before; or, if there are more than a few of them, since its first 429.
        """
        now = anyio.current_time()
        self._counters.throttled += 1
        if row.last_at is None:
            self._scarcity.saw(failed=True)
            row.answers = self._answers + self._counters.in_flight
        passed_over = row.last_at is not None and lane.served_at > row.last_at
        overtaken = self._answers - row.answers >= PASSED_OVER
        few_left = self._in_play() <= FEW and self._has_served()
        among_last = few_left or (overtaken and self._at_the_end())
        if passed_over or among_last:
            row.own, row.own_since = row.own + 1, min(row.own_since, now)
        row.last_at, row.passed_over = now, row.passed_over + passed_over
        # A row that is throttled while others are answered must not slow them: only its first few 429s cut the rate.
        lane.trouble = fault
        self._counters.last_throttle = fault.message[:_MOST_WORDS]
        if row.own < FEW:
            lane.throttled(now, left_at, None if passed_over else fault.retry_after)
        out_of_patience = lane.answered_at is not None and now - lane.answered_at >= self._give_up_s
        # Where many rows are throttled, the quota is short, and no row is blamed before it had more tries.
        most = self._scarcity.attempts(THROTTLES)
        is_alone = few_left and overtaken and self._scarcity.attempts(1) == 1
        waited = now - row.own_since >= LAST_WAIT_S
        tried = row.own >= most and (is_alone or waited or row.passed_over >= most)
        # Where the server names a long time, so many tries would take a quarter of an hour.
        if tried or (is_alone and waited and row.own >= FEW) or (out_of_patience and among_last):
            when = "while other rows were answered" if passed_over else "after all others had ended"
            raise Refused(f"{fault.message} (throttled again and again {when})", http_status=fault.http_status)
        if out_of_patience:
            raise ProviderUnusable(
                f"every request was throttled for {self._give_up_s:.0f} s (--give-up-after): {fault.message}"
            )
        longest = _ALONE_PAUSE_S if is_alone else _LONGEST_OWN_PAUSE_S if row.own else _LONGEST_PAUSE_S
        row.pause = min(longest, max(_FIRST_PAUSE_S, 2.0 * row.pause))
        pause = row.pause * self._dice.uniform(0.5, 1.0)  # or rows throttled together would come back together
        return max(pause, fault.retry_after or 0.0) if row.own else pause

    def failed(
        self, lane: Upstream, fault: Unavailable, row: int, left_at: float, tried: Sequence[Upstream]
    ) -> float | None:
        """Notes a failure. None if it uses up one of the row's attempts, else the pause before the row goes on."""
        now = anyio.current_time()
        if fault.reply is not None:  # answered and paid for, but unusable
            lane.answered(now, left_at)
            fault.own = True
            return None
        lane.trouble = fault
        self._counters.last_failure = fault.message[:_MOST_WORDS]
        lane.failed(now, row, self.rows_in_play(fault.cause), left_at)
        # While everything fails, a 500 is still the server's verdict on this row, and counts; other failures do not.
        fault.own = lane.opened_at is not None and fault.http_status == 500
        # Another lane that works gets the row at once; this is not counted as one of the row's attempts.
        elsewhere = [other for other in self._lanes if other not in tried and other.opened_at is None]
        out_of_reach = fault.cause in _UNREACHED and not self._has_served_here()
        if fault.own or (lane.opened_at is None and not elsewhere and not out_of_reach):
            return None
        return _REACH_AGAIN_S if out_of_reach else 0.0

    def refused(
        self,
        lane: Upstream,
        row: int,
        fault: Refused | ProviderUnusable,
        left_at: float,
        compared: Control | None = None,
    ) -> Refusal | None:
        """Notes a refusal; None if it is certainly the row's own. A returned refusal must be passed to `settled`.

        `compared` is the control whose request was refused; None for any other call, also one of the control's row.
        """
        now = anyio.current_time()
        lane.answered(now, left_at, served=False)
        suspect = not isinstance(fault, Refused) or fault.suspect
        if fault.kind is None or not (suspect or not self._has_served()):
            return None
        # Refused itself, so it cannot show that the endpoint answers what it answered before.
        if compared is lane.control:
            compared.refused(left_at)
        refusal = Refusal(row, fault.kind, suspect, fault.message, left_at, now, isinstance(fault, ProviderUnusable))
        lane.refused(refusal)
        self.undecided += 1
        lane.control.undecided += 1
        if (denied := self.verdict(now)) is not None:
            self._stop.request(denied)  # now, or the slot about to be freed would be used once more
        return refusal

    async def settled(self, lane: Upstream, refusal: Refusal, ask: AskOf) -> None:
        """Returns once a refusal is known to be the row's own. Raises `ProviderUnusable` if it applies to every row.

        `ask` sends a request by a lane, if only a comparison can decide.
        """
        try:
            while not lane.clears(refusal):
                self._stop.check()
                self.require(self.verdict(anyio.current_time()))
                await self._compare_or_wait(lane, ask)
        finally:
            self.undecided -= 1
            lane.control.undecided -= 1

    async def compare(self, lane: Upstream, ask: AskOf) -> None:
        """Sends the control request again while that is wanted; returns once it has been decided, or proved nothing.

        It need not be called where a refused row waits in `settled`, which does the same.
        """
        while lane.control.is_wanted and lane.control.request is not None:
            self._stop.check()
            await self._compare_or_wait(lane, ask)

    @property
    def is_comparing(self) -> bool:
        """Whether rows wait for the outcome of a control request (see `Control`)."""
        return self.undecided > 0 and any(lane.control.is_awaited for lane in self._lanes)

    async def _compare_or_wait(self, lane: Upstream, ask: AskOf) -> None:
        control = lane.control
        if control.is_wanted and control.request is not None and control.out is None:
            await self._compare(control, control.request, partial(ask, lane))
        else:
            await self._stop.pause(LOOK_S)

    async def _compare(self, control: Control, request: Request, ask: Ask) -> None:
        """Sends the control request again. If it is answered, the refused rows are to blame themselves."""
        control.out = request
        try:
            await ask(request)
        except (Permanent, BudgetExhausted):
            control.proved_nothing(most=1)
        except Transient:
            control.proved_nothing(most=_CONTROLS)
            await self._stop.pause(_REACH_AGAIN_S)
        else:
            if control.is_wanted:  # another lane answered: that proves nothing about this one
                control.proved_nothing(most=_CONTROLS)
        finally:
            control.out = None

    def verdict(self, now: float) -> ProviderUnusable | None:
        """The fault that ends the run, if rows were refused for a reason that applies to every row."""
        for lane in self._lanes:
            if not lane.blame.is_open:
                continue
            found = lane.blame.everybodys(self._limits.concurrency) or lane.blame.last_word(
                now, others=self._in_play(), answered=self._has_served(), compares=lane.control.decides
            )
            # Before a run ends for a refusal, a request that was once answered is sent again, where there is one.
            if found is not None and lane.control.can_be_sent:
                lane.control.is_wanted = True  # one of the waiting rows sends it, or a worker that is asked to
            elif found is not None:
                where = f" by {lane.name}" if len(self._lanes) > 1 else ""
                about = "this is about the account, not about a row: " if found.accounts else ""
                said = f"{about}every row was refused alike{where}, and none was answered since"
                return ProviderUnusable(f"{found.message} ({said})")
        return None

    def despair(self, now: float) -> ProviderUnusable | None:
        """The fault that ends the run, if the endpoint was never reachable or has failed for too long."""
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
        """Reports in the counters what is wrong while nothing is answered; returns the fault that ends the run, if any.

        To be called every second, even while nothing is sent.
        """
        troubles = [_words(lane) if now - lane.served_at >= _SILENT_S else None for lane in self._lanes]
        self._counters.trouble = troubles[0] if all(troubles) else None
        return self.despair(now) or self.verdict(now)

    def require(self, denied: ProviderUnusable | None) -> None:
        """Raises the fault that ends the run, if there is one."""
        if denied is not None:
            raise denied

    def failed_since(self) -> float | None:
        """When the last working lane failed; None if one works."""
        since: float | None = None
        for lane in self._lanes:
            if lane.opened_at is None:
                return None
            began = lane.opened_at if lane.failing_since is None else lane.failing_since
            since = began if since is None else max(since, began)
        return since

    def rows_in_play(self, cause: str | None = None) -> int:
        """Rows in play, for the breaker. At the end of the input, a few failing rows do not mean a failed endpoint.

        They are the ones that failed all along, and their attempts bound them; unless this start has been answered
        nothing yet, or no row can be blamed for the cause.
        """
        is_over = self._at_the_end() and self._has_served_here() and cause not in _UNREACHED
        return ROWS if is_over else self._in_play()

    def _at_the_end(self) -> bool:
        """Whether every row that is left is in play."""
        return 0 < self._counters.rows <= self._counters.done + self._in_play()

    def _in_play(self) -> int:
        """Rows in flight, waiting for anything but a verdict, or sleeping before their next attempt."""
        return self._counters.in_flight + self._counters.waiting + self._counters.retrying

    def _has_served_here(self) -> bool:
        return any(lane.has_served for lane in self._lanes)

    def _has_served(self) -> bool:
        """Whether any row was ever answered, in an earlier start or in this one."""
        return self._counters.ok_before > 0 or self._has_served_here()


def _words(lane: Upstream) -> str | None:
    """What is wrong with a lane, as last reported."""
    return lane.hitch() or (lane.trouble.message[:_MOST_WORDS] if lane.trouble is not None else None)
