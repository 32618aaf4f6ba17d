"""How fast to send where nobody says it: the rate that the quota grants, found by the answers alone."""

from __future__ import annotations

import math
from dataclasses import InitVar, dataclass, field

from pipeline.pace.background_trials import BackgroundTrials
from pipeline.pace.declared_limits import LATE_S
from pipeline.pace.measured_limit import MARGIN
from pipeline.pace.quota_windows import Closure
from pipeline.pace.rate_state import HELD_BACK_S, LEAST_RATE, Phase, RateChange, RateState
from pipeline.pace.slow_start import FIRST_RATE, SlowStart, is_much

_START, _CLIMB, _CRUISE = 5.0, 3.2, 5.0
_USUAL_RATE = 30.0
"""Evidence of excess (see `Excess`) that ends a slow start, a climb and a cruise, at up to 30 requests a second; above,
it grows with the logarithm of the rate, so that chance does so no more often an hour. One refusal after good times
ends a climb, two in quick succession a cruise."""

_PAUSE, _PAUSE_IN_LOSS = 1.0, 2.0
"""Evidence above which a climb does not go on for the moment."""

_CLOSED_AFTER = 8
_CLOSED_AFTER_WINDOW = 3
"""Refusals in a row after which nothing is granted; fewer where that was so before."""

_AFTER_OUTAGE = 5.0
"""What the rate is divided by after an outage."""

_LONGEST_HOLD = 30.0
"""Windows of a quota for which no more is tried, at most."""

_BACKGROUND_LOSS = 0.02
"""The background from which on slow start checks now and then that a lower rate is no better."""


@dataclass(slots=True)
class AdaptiveRate:
    """Requests a second that the quota grants now; a clock value goes in everywhere.

    - *Slow start* from `first`, until much is refused; where `known` is given, a cruise at that rate comes first.
    - *Cruise* just under the limit (see `measured_limit`).
    - *Climb* every second or few, until a refusal or two: how else would it be known that the quota grew?
    - *Trial* when more is refused than usual: a lower rate, to see whether it helps. When it does, the rate stays
      there; when it does not, refusals are the background, and the rate goes back (see `background_trials`).
    - *Check* in background, now and then and whenever the rate has grown: a far lower rate must show as many refusals
      (see `background_check`), or it was a quota after all.
    - *Closed* when nothing is granted: single requests, until one passes (see `quota_windows`).

    The rate never grows beyond twice what was sent lately, and only on answers. Why a rate and not a number of calls
    in flight: Vertex's shared quota counts requests and tokens by time, and a bound on calls in flight lets through
    more of them whenever answers come faster.
    """

    first: InitVar[float] = FIRST_RATE
    known: InitVar[float | None] = None
    """The rate that was granted at last, in an earlier start."""
    initial: InitVar[float] = FIRST_RATE
    """The most that is sent before any answer."""
    _state: RateState = field(init=False)
    _trials: BackgroundTrials = field(init=False)
    _start: SlowStart = field(init=False)
    _closure: Closure = field(default_factory=Closure)
    _answered_at: float = -math.inf
    _latency: float | None = None
    _was_refused: bool = False
    _hold: float = 3.0
    """For how many windows of a quota that has some no more is tried than it granted."""

    def __post_init__(self, first: float, known: float | None, initial: float) -> None:
        self._start = SlowStart(first, known)
        self._state = RateState(min(initial, self._start.target))
        self._trials = BackgroundTrials(self._state)

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self._state.rate

    @rate.setter
    def rate(self, rate: float) -> None:
        self._state.rate = rate

    @property
    def change(self) -> RateChange | None:
        """Why the rate was cut, or was not, at last."""
        return self._state.change

    @change.setter
    def change(self, change: RateChange | None) -> None:
        self._state.change = change

    @property
    def granted(self) -> float | None:
        """The rate to begin with next time; None when nothing is known."""
        state = self._state
        if not state.limit.known:
            return self._start.peak or None
        return state.limit.climbed_from if state.phase in {Phase.CLIMB, Phase.CLOSED} else state.rate

    def wait(self, now: float) -> float:
        """Seconds until the next request may leave; 0 when it may now."""
        state = self._state
        if state.phase is Phase.CLOSED and self._closure.passed(now):
            self._reopen(now)
        wait = max(0.0, state.next - now)
        if wait:
            self.held_back(now)
        elif state.phase is Phase.CLOSED and self._closure.probing:
            return LATE_S
        return wait

    def held_back(self, at: float) -> None:
        """A request that was ready then had to wait for the rate."""
        self._state.held_back_at = max(self._state.held_back_at, at)

    def sent(self, now: float) -> None:
        """A request leaves: the next one may follow after its interval, so that no second sees a burst."""
        state = self._state
        state.traffic.send(now)
        state.limit.count(state.rate, refused=False)
        if self._closure.opened is None:
            self._closure.opened = self._answered_at = now
            self._start.begin(now, state.rate)
        if state.phase is Phase.CLOSED:
            state.next = self._closure.sent(now)
            return
        self._go_up(now)
        # One that leaves late does not entitle the next ones to catch up, beyond `LATE_S`.
        state.next = max(state.next, now - LATE_S) + 1.0 / state.rate
        self._advance(now)

    def answered(self, now: float, left_at: float) -> None:
        """A request that left at `left_at` was answered: room to grow, perhaps."""
        state = self._state
        latency = now - left_at
        self._latency = latency if self._latency is None else self._latency + 0.1 * (latency - self._latency)
        self._answered_at = now
        if state.phase is Phase.CLOSED:
            if self._closure.probing and left_at >= self._closure.closed_at:
                self._reopen(now)
            return
        # It left at an earlier rate, and says nothing about this one.
        if left_at < state.regime.at:
            return
        if state.phase is Phase.START:
            self._grow_at_start(now)
        self._advance(now)

    def failed(self, now: float) -> None:
        """The endpoint failed a request: no growth on account of the time until now."""
        self._state.grown_at = max(self._state.grown_at, now)

    def throttled(self, now: float, left_at: float) -> None:
        """A request that left at `left_at` was refused for want of quota."""
        state = self._state
        state.traffic.refuse(left_at)
        state.limit.count(state.rate, refused=True)
        state.refusals_take = min(5.0, max(0.95 * state.refusals_take, now - left_at, 0.01))
        self._was_refused = True
        self._start.stop()
        if state.phase is Phase.CLOSED:
            self._closure.refused(left_at)
            state.rate = 1.0 / self._closure.gap
            return
        state.count_row(left_at)
        if left_at < state.regime.at:
            return
        number = state.traffic.until(left_at)
        state.regime.refuse(left_at, number, begins=state.excess.refuse(number, state.background.sure))
        if self._nothing_is_granted:
            self._close(now)
        else:
            self._weigh(now, left_at, number)

    def restart(self, now: float) -> None:
        """Begins anew after an outage, from a fifth of the rate that went through before."""
        state = self._state
        state.rate = max(LEAST_RATE, state.rate / _AFTER_OUTAGE)
        state.phase, state.next = Phase.START, now
        self._start.stop()
        state.begin(now)

    # What a refusal means.

    @property
    def _nothing_is_granted(self) -> bool:
        if self._closure.window_s is not None:
            return self._state.row >= _CLOSED_AFTER_WINDOW
        return self._state.row >= _CLOSED_AFTER and self._state.phase in {Phase.TRIAL, Phase.CHECK}

    def _weigh(self, now: float, left_at: float, number: int) -> None:
        """More is refused than usual, or not; each phase has an end of its own."""
        state = self._state
        # More requests are as many more chances for a run of refusals.
        more = math.log(max(1.0, state.rate / _USUAL_RATE))
        match state.phase:
            case Phase.TRIAL:
                self._trials.judge(now)
            case Phase.CHECK:
                state.background_check.refuse(number)
                self._trials.judge_background(now)
            case Phase.CLIMB if state.excess.value >= _CLIMB + more:
                self._end_climb(now, left_at, number)
            case Phase.START if state.excess.value >= _START + more and self._is_much(left_at, number):
                self._trials.alarm(now, left_at, number)
            case Phase.CRUISE if state.excess.value >= _CRUISE + more:
                self._trials.alarm(now, left_at, number)

    def _is_much(self, left_at: float, number: int) -> bool:
        _, sent, refused = self._state.regime.episode(left_at, number)
        return is_much(sent, refused, self._state.row, self._state.background.share)

    # Phases.

    def _advance(self, now: float) -> None:
        """Time has passed, and a request left or was answered."""
        state = self._state
        match state.phase:
            case Phase.CRUISE | Phase.CLIMB if self._trials.background_is_due(now):
                self._trials.check_background(now)
            case Phase.CRUISE if now >= state.limit.climbs_at and now - state.held_back_at < HELD_BACK_S:
                background, fallen = state.background.sure, state.rate / max(state.limit.best, LEAST_RATE)
                if state.regime.refused >= 3 and self._trials.checks.doubts(now, state.limit.waste, background, fallen):
                    self._trials.check_up(now)
                else:
                    self._climb(now)
            case Phase.CLIMB if now - self._answered_at < 2.0 + 3.0 * (self._latency or 1.0):
                self._grow_in_climb(now)
            # Without answers, nothing says that the rate is granted.
            case Phase.CLIMB:
                self.failed(now)
            case Phase.TRIAL:
                self._trials.judge(now)
            case Phase.CHECK:
                self._trials.judge_background(now)
            case Phase.START if now >= self._trials.checks.at:
                self._trials.check(now)

    def _climb(self, now: float) -> None:
        state = self._state
        state.learn(now)
        state.limit.climbed_from, self._trials.cut_before = state.rate, False
        state.phase = Phase.CLIMB
        state.begin(now)

    def _end_climb(self, now: float, left_at: float, number: int) -> None:
        state = self._state
        refused = state.regime.refused
        state.evidence.forget(now, state.rate)
        if state.evidence:
            state.keep(now)
            if self._trials.is_background_loss(now, state.verdict(now)):
                return
        rate = state.limit.after_climb(state.rate, state.traffic, now, left_at, number, state.background.sure)
        # Only a climb from a confirmed limit tells what climbs cost: others find the limit as well.
        if state.limit.sure:
            state.limit.cost(refused)
        state.set(now, Phase.CRUISE, rate)
        background_loss, others = (
            (1.2 * state.background.sure, 0.0) if state.background_loss else (0.0, state.background.share)
        )
        state.limit.cruise_on(now, state.rate, state.refusals_take, background_loss, others)

    def _close(self, now: float) -> None:
        state = self._state
        state.change = RateChange(
            now, f"nothing was granted to the last {self._state.row} requests: one at a time is sent"
        )
        state.limit.climbed_from = state.rate
        state.phase, state.next = Phase.CLOSED, self._closure.close(now, state.refusals_take)
        state.rate = 1.0 / max(self._closure.gap, min(state.next - now, 1.0 / LEAST_RATE))

    def _reopen(self, now: float) -> None:
        state = self._state
        opened, closed = self._closure.opened, self._closure.closed_at
        accepted = 0 if opened is None else state.traffic.accepted(opened - 1e-9, closed)
        opening = self._closure.open(now, accepted)
        state.evidence.clear()
        state.limit.used_up(opening.at, state.traffic.sent, state.limit.ceiling)
        state.limit.doubt()
        state.limit.found()
        said = f"the quota grants {accepted} requests in {opening.length_s:.0f} s" if opening.is_window else None
        state.set(now, Phase.CRUISE, MARGIN * opening.rate, said)
        state.limit.cruise_on(now, state.rate, state.refusals_take)
        if opening.is_window:
            state.limit.cruise(now, state.rate, self._hold * opening.length_s)
            # A window grants the same again, most often: each try at more that ends in a closure costs refusals.
            self._hold = min(_LONGEST_HOLD, 2.0 * self._hold)

    # Growth.

    def _go_up(self, now: float) -> None:
        """To the first rate at once; and on, boldly, where that is the one that was granted before."""
        state = self._state
        rate = self._start.ramp(now, state.rate) if state.phase is Phase.START else None
        if rate is None:
            return
        state.rate = rate
        if self._start.known is not None and rate >= self._start.known:
            state.limit.remember(rate)
            self._start.known, state.phase = None, Phase.CLIMB
            state.begin(now)

    def _grow_at_start(self, now: float) -> None:
        state = self._state
        if state.known(now) - state.regime.first >= 20:
            self._start.peak = max(self._start.peak, min(state.rate, state.traffic.rate(now)))
            state.learn(now)
            # Counted in portions: the rate has grown since the earlier ones left.
            state.regime.begin_counting(state.known(now))
        refusals_take = state.refusals_take if self._was_refused else None
        state.grow(now, self._start.doubling_s(self._latency, refusals_take))
        # The rate was not what limited the requests: it must not run ahead of them.
        if now - state.held_back_at > HELD_BACK_S:
            state.rate = min(state.rate, max(self._start.first, 2.0 * state.traffic.rate(now)))
        if state.background.sure > _BACKGROUND_LOSS:
            self._trials.checks.begin(now)

    def _grow_in_climb(self, now: float) -> None:
        state = self._state
        pause = _PAUSE_IN_LOSS if state.background_loss else _PAUSE
        if state.excess.now(state.known(now), state.background.sure) > pause:
            self.failed(now)
        elif state.limit.left_behind(state.rate):
            state.limit.remembered, state.limit.sure = False, False
            state.phase = Phase.START
            self._start.begin(now, state.rate)
            state.begin(now)
        else:
            state.grow(now, state.limit.doubling_s(state.rate, state.refusals_take))
