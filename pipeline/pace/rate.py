"""How fast to send where nobody says it: the rate that the quota grants, found by the answers alone."""

from __future__ import annotations

import math
from dataclasses import InitVar, dataclass, field
from enum import Enum

from pipeline.pace.background_check import BackgroundCheck
from pipeline.pace.declared_limits import LATE_S
from pipeline.pace.loss_evidence import Evidence, LossVerdict, Stretch, Trial
from pipeline.pace.measured_limit import MARGIN, Limit
from pipeline.pace.quota_windows import Closure
from pipeline.pace.rate_trials import Aim, Checks, End, Regime, ended, ended_above
from pipeline.pace.refusal_counts import Background, Excess, Traffic
from pipeline.pace.slow_start import FIRST_RATE, SlowStart, is_much

LEAST_RATE = 0.2

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

_BACKGROUND_LOSS = 0.02
"""The background from which on slow start checks now and then that a lower rate is no better."""

_MOST_BACKGROUND = 0.45
"""The most that a check may raise the background to."""

_LASTING_S = 4.5
"""What began while a limit was known is believed to be the background after so long: others who share the quota have
long cut their rates, too, when it has shrunk."""


class _Phase(Enum):
    START = "slow start: no limit is known"
    CRUISE = "just under the limit"
    CLIMB = "above it, until something is refused"
    TRIAL = "at another rate, to see what that changes"
    CHECK = "at a far lower rate, to see whether refusals are still background"
    CLOSED = "nothing is granted"


@dataclass(frozen=True, slots=True)
class RateChange:
    """Why the rate was changed, for the user."""

    at: float
    text: str


@dataclass(slots=True)
class AdaptiveRate:
    """Requests a second that the quota grants now; a clock value goes in everywhere.

    - *Slow start* from `first`, until much is refused; where `known` is given, a cruise at that rate comes first.
    - *Cruise* just under the limit (see `limit`).
    - *Climb* every second or few, until a refusal or two: how else would it be known that the quota grew?
    - *Trial* when more is refused than usual: a lower rate, to see whether it helps. When it does, the rate stays
      there; when it does not, refusals are the background, and the rate goes back (see `evidence`).
    - *Check* in background, now and then and whenever the rate has grown: a far lower rate must show as many refusals
      (see `background_check`), or it was a quota after all.
    - *Closed* when nothing is granted: single requests, until one passes (see `closures`).

    The rate never grows beyond twice what was sent lately, and only on answers. Why a rate and not a number of calls
    in flight: Vertex's shared quota counts requests and tokens by time, and a bound on calls in flight lets through
    more of them whenever answers come faster.
    """

    first: InitVar[float] = FIRST_RATE
    known: InitVar[float | None] = None
    """The rate that was granted at last, in an earlier start."""
    rate: float = 0.0
    change: RateChange | None = None
    """Why the rate was cut, or was not, at last."""
    _phase: _Phase = _Phase.START
    _next: float = 0.0
    _held_back_at: float = -math.inf
    _grown_at: float = -math.inf
    _answered_at: float = -math.inf
    _latency: float | None = None
    _refusals_take: float = 0.05
    _was_refused: bool = False
    _row: int = 0
    """Refusals in a row, of requests as they left."""
    _row_until: float = 0.0
    _start: SlowStart = field(init=False)
    _traffic: Traffic = field(default_factory=Traffic)
    _background: Background = field(default_factory=Background)
    _excess: Excess = field(default_factory=Excess)
    _closure: Closure = field(default_factory=Closure)
    _limit: Limit = field(default_factory=Limit)
    _regime: Regime = field(default_factory=Regime)
    _evidence: Evidence = field(init=False)
    _aim: Aim = Aim.FIND
    _low: Trial | None = None
    _came_from: _Phase = _Phase.START
    _cut_before: bool = False
    _background_loss: bool = False
    _checks: Checks = field(default_factory=Checks)
    _background_check: BackgroundCheck = field(default_factory=BackgroundCheck)
    _hold: float = 3.0
    """For how many windows of a quota that has some no more is tried than it granted."""

    def __post_init__(self, first: float, known: float | None) -> None:
        self._evidence = Evidence(self._traffic)
        self._start = SlowStart(first, known)
        self.rate = min(FIRST_RATE, self._start.target)

    @property
    def granted(self) -> float | None:
        """The rate to begin with next time; None when nothing is known."""
        if not self._limit.known:
            return self._start.peak or None
        return self._limit.climbed_from if self._phase in {_Phase.CLIMB, _Phase.CLOSED} else self.rate

    def wait(self, now: float) -> float:
        """Seconds until the next request may leave; 0 when it may now."""
        if self._phase is _Phase.CLOSED and self._closure.passed(now):
            self._reopen(now)
        wait = max(0.0, self._next - now)
        if wait:
            self.held_back(now)
        elif self._phase is _Phase.CLOSED and self._closure.probing:
            return LATE_S
        return wait

    def held_back(self, at: float) -> None:
        """A request that was ready then had to wait for the rate."""
        self._held_back_at = max(self._held_back_at, at)

    def sent(self, now: float) -> None:
        """A request leaves: the next one may follow after its interval, so that no second sees a burst."""
        self._traffic.send(now)
        self._limit.count(self.rate, refused=False)
        if self._closure.opened is None:
            self._closure.opened = self._answered_at = now
            self._start.begin(now, self.rate)
        if self._phase is _Phase.CLOSED:
            self._next = self._closure.sent(now)
            return
        self._go_up(now)
        self._next = max(self._next, now - LATE_S) + 1.0 / self.rate
        self._advance(now)

    def answered(self, now: float, left_at: float) -> None:
        """A request that left at `left_at` was answered: room to grow, perhaps."""
        latency = now - left_at
        self._latency = latency if self._latency is None else self._latency + 0.1 * (latency - self._latency)
        self._answered_at = now
        if self._phase is _Phase.CLOSED:
            if self._closure.probing and left_at >= self._closure.closed_at:
                self._reopen(now)
            return
        if left_at < self._regime.at:
            return
        if self._phase is _Phase.START:
            self._grow_at_start(now)
        self._advance(now)

    def failed(self, now: float) -> None:
        """The endpoint failed a request: no growth on account of the time until now."""
        self._grown_at = max(self._grown_at, now)

    def throttled(self, now: float, left_at: float) -> None:
        """A request that left at `left_at` was refused for want of quota."""
        self._traffic.refuse(left_at)
        self._limit.count(self.rate, refused=True)
        self._refusals_take = min(5.0, max(0.95 * self._refusals_take, now - left_at, 0.01))
        self._was_refused = True
        self._start.stop()
        if self._phase is _Phase.CLOSED:
            self._closure.refused(left_at)
            self.rate = 1.0 / self._closure.gap
            return
        self._count_row(left_at)
        if left_at < self._regime.at:
            return
        number = self._traffic.until(left_at)
        self._regime.refuse(left_at, number, begins=self._excess.refuse(number, self._background.sure))
        if self._nothing_is_granted:
            self._close(now)
        else:
            self._weigh(now, left_at, number)

    def restart(self, now: float) -> None:
        """Begins anew after an outage, from a fifth of the rate that went through before."""
        self.rate = max(LEAST_RATE, self.rate / 5.0)
        self._phase, self._next = _Phase.START, now
        self._start.stop()
        self._begin(now)

    # What a refusal means.

    def _count_row(self, left_at: float) -> None:
        if left_at >= self._row_until:
            accepted = self._traffic.accepted(self._row_until, left_at)
            self._row = self._row + 1 if accepted <= 0 else 1
            self._row_until = left_at

    @property
    def _nothing_is_granted(self) -> bool:
        if self._closure.window_s is not None:
            return self._row >= _CLOSED_AFTER_WINDOW
        return self._row >= _CLOSED_AFTER and self._phase in {_Phase.TRIAL, _Phase.CHECK}

    def _weigh(self, now: float, left_at: float, number: int) -> None:
        """More is refused than usual, or not; each phase has an end of its own."""
        more = math.log(max(1.0, self.rate / _USUAL_RATE))
        match self._phase:
            case _Phase.TRIAL:
                self._judge(now)
            case _Phase.CHECK:
                self._background_check.refuse(number)
                self._judge_background(now)
            case _Phase.CLIMB if self._excess.value >= _CLIMB + more:
                self._end_climb(now, left_at, number)
            case _Phase.START if self._excess.value >= _START + more and self._is_much(left_at, number):
                self._alarm(now, left_at, number)
            case _Phase.CRUISE if self._excess.value >= _CRUISE + more:
                self._alarm(now, left_at, number)

    def _is_much(self, left_at: float, number: int) -> bool:
        _, sent, refused = self._regime.episode(left_at, number)
        return is_much(sent, refused, self._row, self._background.share)

    def _alarm(self, now: float, left_at: float, number: int) -> None:
        """Far more is refused than usual: to a lower rate, and let that tell whether it helps."""
        began, sent, refused = self._regime.episode(left_at, number)
        seconds = left_at - began
        rate = min(self.rate, max(self._traffic.rate(now), LEAST_RATE))
        actual = max(LEAST_RATE, min(self.rate, sent / seconds)) if seconds > 0 else self.rate
        if self._phase is _Phase.CRUISE:
            self._learn(now)
        self._evidence.forget(now, self.rate)
        if self._evidence:
            self._keep(now)
        else:
            self._came_from = self._phase
            self._evidence.add(Stretch(began, now, actual, self.rate))
        self._limit.used_up(left_at, number, actual)
        self._limit.doubt()
        if self._is_background_loss(now, self._verdict(now)):
            return
        said = f"{refused + 1} of {sent + 1} requests were refused at {self.rate:.3g} a second"
        if self._phase is _Phase.CRUISE and not self._cut_before:
            self._cut_before = True
            granted = MARGIN * (sent - refused + 0.5) / max(seconds, 1e-3)
            self._set(now, _Phase.CRUISE, min(0.9 * rate, max(0.6 * rate, granted)), said)
            self._limit.cruise_on(now, self.rate, self._refusals_take)
            return
        # A bucket of a second's worth grants twice the quota in its first second, and no more.
        least = 0.45 * self._traffic.accepted(now - 1.0, now) if self._phase is _Phase.START else 0.0
        factor = 0.5 if refused < 0.6 * (sent + 1) else 0.3 if refused < sent or sent < 3 else 0.15
        self._aim = Aim.FIND
        self._set(now, _Phase.TRIAL, max(least, factor * rate), said)

    # Trials.

    def _judge(self, now: float) -> None:
        """Looks at a trial that is on its way: it ends as soon as enough is known."""
        trial = self._trial(now)
        if trial.sent < 4:
            return
        if self._low is not None:
            self._judge_up(now, self._low, trial)
            return
        verdict = self._verdict(now, trial)
        if self._is_background_loss(now, verdict):
            return
        lasted = now - self._regime.at - self._refusals_take
        check, lowest = self._aim is Aim.CHECK, self.rate <= LEAST_RATE
        end = ended(trial, verdict, self._background.share, lasted=lasted, check=check, lowest=lowest)
        match end:
            case End.LOWER | End.FAR_LOWER:
                self._learn(now)
                self._keep(now)
                said = f"{trial.refused} of {trial.sent} requests were refused at {trial.rate:.3g} a second"
                self._set(now, _Phase.TRIAL, (0.5 if end is End.LOWER else 0.3) * self.rate, said)
            case End.BACKGROUND_LOSS:
                self._believe_background_loss(now, trial.refused / trial.sent)
            case End.BACK:
                self._go_back(now)
            case End.QUOTA:
                rate = MARGIN * min(max(verdict.quota, self.rate), 0.97 * self._evidence.latest(self.rate))
                self._learn(now)
                self._keep(now)
                self._limit.found()
                self._go_to(now, rate, _Phase.CRUISE)
                self._leave_start(now)
                self._limit.cruise_on(now, self.rate, self._refusals_take)

    def _leave_start(self, now: float) -> None:
        """A limit was found: what a slow start was refused may have been due to it; background is checked now."""
        if self._background_loss and self._background_check.rate == math.inf:
            self._find_background(now)
        elif not self._background_loss and self._came_from is _Phase.START:
            self._background.doubt()

    def _keep(self, now: float) -> None:
        """What happened at this rate is evidence from now on."""
        sent = self._traffic.until(now) - self._traffic.until(self._regime.at)
        rate = max(LEAST_RATE, min(self.rate, sent / max(now - self._regime.at, 1e-3)))
        self._evidence.add(Stretch(self._regime.at, now, rate, self.rate))

    def _judge_up(self, now: float, low: Trial, trial: Trial) -> None:
        match ended_above(low, trial, self._background.share):
            case End.BACKGROUND_LOSS:
                self._low = None
                self._evidence.clear()
                self._believe_background_loss(now, (low.refused + trial.refused) / (low.sent + trial.sent))
            case End.BACK:
                self._low = None
                self._set(now, _Phase.CRUISE, low.rate)
                self._limit.cruise(now, self.rate, 2.0)

    def _check(self, now: float) -> None:
        """With loss: is a lower rate still no better? It must be asked for, or a quota would hide behind it."""
        rate = min(self.rate, max(self._traffic.rate(now), LEAST_RATE))
        self._came_from, self._aim = self._phase, Aim.CHECK
        self._evidence.clear()
        self._evidence.add(Stretch(now - 2.0, now, rate, self.rate))
        self._set(now, _Phase.TRIAL, 0.6 * rate)

    def _check_up(self, now: float) -> None:
        """Much is refused although the limit is known: if it is the background, twice the rate is no worse."""
        self._checks.tried_up(now)
        self._came_from, self._low = _Phase.CRUISE, self._trial(now)
        self._learn(now)
        self._evidence.clear()
        self._set(now, _Phase.TRIAL, min(2.0 * self.rate, 2.0 * max(1.0, self._traffic.rate(now))))

    def _verdict(self, now: float, *latest: Trial) -> LossVerdict:
        return self._evidence.verdict(now, now - self._refusals_take, self._background.share, *latest)

    def _is_background_loss(self, now: float, verdict: LossVerdict) -> bool:
        if verdict.background_loss is None:
            return False
        if self._came_from is not _Phase.START and now - self._evidence.began < _LASTING_S:
            return False
        self._believe_background_loss(now, verdict.background_loss)
        return True

    def _believe_background_loss(self, now: float, share: float) -> None:
        """So much is refused at any rate: back to where the rate was before it was cut."""
        self._background_loss = True
        self._background.believe(share, 100.0)
        before, start = self._evidence.highest(self.rate), self._came_from is _Phase.START
        self._evidence.clear()
        self._go_to(now, before if start else max(self.rate, 0.6 * before), self._came_from if start else _Phase.CRUISE)
        self._limit.climbs_at, self._limit.sure = now, True
        if start:
            self._background_check.rate = math.inf
            self._checks.later(now)
        else:
            self._find_background(now)
        said = f"{share:.0%} of the requests are refused at any rate: it is not cut for that"
        self.change = RateChange(now, said)

    def _find_background(self, now: float) -> None:
        """Refusals are background although a limit is known: checked soon, then more rarely, and when the rate grew."""
        if self._background_check.rate == math.inf:
            self._checks.restart()
        self._checks.later(now)
        self._background_check.rate = self.rate

    def _check_background(self, now: float) -> None:
        self._evidence.clear()
        rate = self._background_check.begin(self.rate, self._traffic.rate(now), self._traffic.sent)
        self._set(now, _Phase.CHECK, rate)

    def _judge_background(self, now: float) -> None:
        """Looks at a check of the background that is on its way."""
        trial, check = self._trial(now), self._background_check
        is_background = check.is_background(trial, now - self._regime.at)
        if is_background is None:
            return
        said = f"{trial.refused} of {trial.sent} requests were refused at {trial.rate:.3g} a second"
        if is_background:
            self._background.believe(
                min(_MOST_BACKGROUND, max(self._background.share, trial.refused / trial.sent)), 100.0
            )
            self._go_to(now, check.back, _Phase.CRUISE, said)
            self._limit.climbs_at = now
            self._find_background(now)
            return
        self._background_loss = False
        self._background.doubt()
        self._limit.doubt()
        self._go_to(now, check.rate, _Phase.CRUISE, said)
        self._limit.cruise_on(now, self.rate, self._refusals_take)
        check.rate = math.inf

    def _go_back(self, now: float) -> None:
        """It was no better: back to the rate before, and the next check after twice the time."""
        before = self._evidence.highest(self.rate)
        self._evidence.clear()
        self._go_to(now, before, self._came_from)
        self._limit.cruise_on(now, self.rate, self._refusals_take)
        self._checks.later(now)

    # Phases.

    def _advance(self, now: float) -> None:
        """Time has passed, and a request left or was answered."""
        match self._phase:
            case _Phase.CRUISE | _Phase.CLIMB if self._background_is_due(now):
                self._check_background(now)
            case _Phase.CRUISE if now >= self._limit.climbs_at and now - self._held_back_at < 1.0:
                background, fallen = self._background.sure, self.rate / max(self._limit.best, LEAST_RATE)
                if self._regime.refused >= 3 and self._checks.doubts(now, self._limit.waste, background, fallen):
                    self._check_up(now)
                else:
                    self._climb(now)
            case _Phase.CLIMB if now - self._answered_at < 2.0 + 3.0 * (self._latency or 1.0):
                self._grow_in_climb(now)
            case _Phase.CLIMB:
                self.failed(now)
            case _Phase.TRIAL:
                self._judge(now)
            case _Phase.CHECK:
                self._judge_background(now)
            case _Phase.START if now >= self._checks.at:
                self._check(now)

    def _background_is_due(self, now: float) -> bool:
        """Whether the belief in background has to be checked, and can be: requests are held back by the rate alone."""
        check = self._background_check
        if not self._background_loss or check.rate == math.inf or now - self._held_back_at >= 1.0:
            return False
        return now >= self._checks.at or check.is_due(self.rate)

    def _climb(self, now: float) -> None:
        self._learn(now)
        self._limit.climbed_from, self._cut_before = self.rate, False
        self._phase = _Phase.CLIMB
        self._begin(now)

    def _end_climb(self, now: float, left_at: float, number: int) -> None:
        refused = self._regime.refused
        self._evidence.forget(now, self.rate)
        if self._evidence:
            self._keep(now)
            if self._is_background_loss(now, self._verdict(now)):
                return
        rate = self._limit.after_climb(self.rate, self._traffic, now, left_at, number, self._background.sure)
        if self._limit.sure:
            self._limit.cost(refused)
        self._set(now, _Phase.CRUISE, rate)
        background_loss, others = (
            (1.2 * self._background.sure, 0.0) if self._background_loss else (0.0, self._background.share)
        )
        self._limit.cruise_on(now, self.rate, self._refusals_take, background_loss, others)

    def _close(self, now: float) -> None:
        self.change = RateChange(now, f"nothing was granted to the last {self._row} requests: one at a time is sent")
        self._limit.climbed_from = self.rate
        self._phase, self._next = _Phase.CLOSED, self._closure.close(now, self._refusals_take)
        self.rate = 1.0 / max(self._closure.gap, min(self._next - now, 1.0 / LEAST_RATE))

    def _reopen(self, now: float) -> None:
        opened, closed = self._closure.opened, self._closure.closed_at
        accepted = 0 if opened is None else self._traffic.accepted(opened - 1e-9, closed)
        opening = self._closure.open(now, accepted)
        self._evidence.clear()
        self._limit.used_up(opening.at, self._traffic.sent, self._limit.ceiling)
        self._limit.doubt()
        self._limit.found()
        said = f"the quota grants {accepted} requests in {opening.length_s:.0f} s" if opening.is_window else None
        self._set(now, _Phase.CRUISE, MARGIN * opening.rate, said)
        self._limit.cruise_on(now, self.rate, self._refusals_take)
        if opening.is_window:
            self._limit.cruise(now, self.rate, self._hold * opening.length_s)
            self._hold = min(30.0, 2.0 * self._hold)

    # Arithmetic.

    def _set(self, now: float, phase: _Phase, rate: float, said: str | None = None) -> None:
        """Another rate, which the next request waits for."""
        self._go_to(now, rate, phase, said)
        self._next = now + 1.0 / self.rate

    def _go_to(self, now: float, rate: float, phase: _Phase, said: str | None = None) -> None:
        before, self.rate, self._phase = self.rate, max(LEAST_RATE, rate), phase
        if said is not None:
            verb = "cut" if self.rate < before else "raised"
            self.change = RateChange(now, f"{said}: {verb} from {before:.3g} to {self.rate:.3g} a second")
        self._begin(now)

    def _begin(self, now: float) -> None:
        self._regime = Regime(now, self._traffic.sent)
        self._excess.begin(self._traffic.sent)
        self._grown_at = max(self._grown_at, now)

    def _known(self, now: float) -> int:
        """How many have left so long ago that a refusal would have come by now."""
        return self._traffic.until(now - self._refusals_take)

    def _trial(self, now: float) -> Trial:
        """The present rate, so far."""
        refused = self._regime.refused
        return Trial(self.rate, max(self._known(now) - self._regime.first, refused), refused)

    def _learn(self, now: float) -> None:
        """What was refused at a low enough rate is the background: a tenth at most, unless a trial showed more.

        In background, only checks tell it: a tenth at most, in bursts that count once, would soon belittle strong
        background.
        """
        if self._background_loss and self._background_check.rate < math.inf:
            return
        _, sent, refused = self._trial(now)
        if sent >= 10 and self._phase is _Phase.CRUISE:
            self._evidence.calm(now, Trial(self.rate, sent, min(sent, refused)))
        if sent > 0 and refused < 0.5 * sent:
            start = self._phase is _Phase.START
            counted, most = (refused, 0.6) if start else (self._regime.clusters, 0.1)
            self._background.learn(sent, counted, most=most, memory=max(300.0, 8.0 * self.rate))
            if sent >= 20 and refused <= 0.02 * sent:
                self._evidence.clear()

    def _go_up(self, now: float) -> None:
        """To the first rate at once; and on, boldly, where that is the one that was granted before."""
        rate = self._start.ramp(now, self.rate) if self._phase is _Phase.START else None
        if rate is None:
            return
        self.rate = rate
        if self._start.known is not None and rate >= self._start.known:
            self._limit.remember(rate)
            self._start.known, self._phase = None, _Phase.CLIMB
            self._begin(now)

    def _grow_at_start(self, now: float) -> None:
        if self._known(now) - self._regime.first >= 20:
            self._start.peak = max(self._start.peak, min(self.rate, self._traffic.rate(now)))
            self._learn(now)
            self._regime.begin_counting(self._known(now))
        refusals_take = self._refusals_take if self._was_refused else None
        self._raise(now, self._start.doubling_s(self._latency, refusals_take))
        if now - self._held_back_at > 1.0:
            self.rate = min(self.rate, max(self._start.first, 2.0 * self._traffic.rate(now)))
        if self._background.sure > _BACKGROUND_LOSS:
            self._checks.begin(now)

    def _grow_in_climb(self, now: float) -> None:
        pause = _PAUSE_IN_LOSS if self._background_loss else _PAUSE
        if self._excess.now(self._known(now), self._background.sure) > pause:
            self.failed(now)
        elif self._limit.left_behind(self.rate):
            self._limit.remembered, self._limit.sure = False, False
            self._phase = _Phase.START
            self._start.begin(now, self.rate)
            self._begin(now)
        else:
            self._raise(now, self._limit.doubling_s(self.rate, self._refusals_take))

    def _raise(self, now: float, doubling_s: float) -> None:
        """Grows for the time since it did last, while the rate is what holds requests back."""
        since, self._grown_at = max(0.0, now - self._grown_at), max(self._grown_at, now)
        if now - self._held_back_at <= 1.0:
            grown = self.rate * 2.0 ** (min(since, 0.25) / doubling_s)
            self.rate = max(self.rate, min(grown, 2.0 * max(self._traffic.rate(now), 1.0)))
