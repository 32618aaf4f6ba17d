"""Whether refusals come from a quota or are background: trials of other rates, and what follows from them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from pipeline.pace.loss_evidence import LossVerdict, Stretch, Trial
from pipeline.pace.measured_limit import MARGIN
from pipeline.pace.rate_state import HELD_BACK_S, LEAST_RATE, Phase, RateChange, RateState
from pipeline.pace.rate_trials import Aim, Checks, End, ended, ended_above

_MOST_BACKGROUND = 0.45
"""The most that a check may raise the background to."""

_LASTING_S = 4.5
"""What began while a limit was known is believed to be the background after so long: others who share the quota have
long cut their rates, too, when it has shrunk."""

_LEAST_REQUESTS = 4
"""A trial is not looked at before so many requests: `ended` tells nothing of fewer."""

_CRUISE_AFTER_S = 2.0
"""Until the next climb after a trial of a higher rate that was worse."""

_BEFORE_CHECK_S = 2.0
"""How much of the time before a check is evidence for the rate it is compared with."""

_SURE = 100.0
"""The weight, in requests, of a background that a trial has shown: what is learned later changes it slowly."""


@dataclass(slots=True)
class BackgroundTrials:
    """Trials of lower and of higher rates, and checks of the background: they set the rate of the state they are given.

    A trial begins with `alarm`, `check` or `check_up`, a check of the background with `check_background`. From then on,
    `judge` and `judge_background` look at what was refused, and end it as soon as enough is known.
    """

    _state: RateState
    cut_before: bool = False
    """Whether the rate was cut since the last climb: a second alarm leads to a trial."""
    checks: Checks = field(default_factory=Checks)
    _aim: Aim = Aim.FIND
    _low: Trial | None = None
    """What was seen at the rate from before a trial of a higher one."""
    _came_from: Phase = Phase.START

    def alarm(self, now: float, left_at: float, number: int) -> None:
        """Far more is refused than usual: to a lower rate, and let that tell whether it helps."""
        state = self._state
        began, sent, refused = state.regime.episode(left_at, number)
        seconds = left_at - began
        rate = min(state.rate, max(state.traffic.rate(now), LEAST_RATE))
        actual = max(LEAST_RATE, min(state.rate, sent / seconds)) if seconds > 0 else state.rate
        if state.phase is Phase.CRUISE:
            state.learn(now)
        state.evidence.forget(now, state.rate)
        # A second alarm within one series of trials belongs to it: the way back leads to where the first one came from.
        if state.evidence:
            state.keep(now)
        else:
            self._came_from = state.phase
            state.evidence.add(Stretch(began, now, actual, state.rate))
        state.limit.used_up(left_at, number, actual)
        state.limit.doubt()
        if self.is_background_loss(now, state.verdict(now)):
            return
        said = f"{refused + 1} of {sent + 1} requests were refused at {state.rate:.3g} a second"
        # The limit is known: most often it has only moved a little, and a small cut costs less than a trial.
        if state.phase is Phase.CRUISE and not self.cut_before:
            self.cut_before = True
            granted = MARGIN * (sent - refused + 0.5) / max(seconds, 1e-3)
            state.set(now, Phase.CRUISE, min(0.9 * rate, max(0.6 * rate, granted)), said)
            state.limit.cruise_on(now, state.rate, state.refusals_take)
            return
        # A bucket of a second's worth grants twice the quota in its first second, and no more.
        least = 0.45 * state.traffic.accepted(now - 1.0, now) if state.phase is Phase.START else 0.0
        # The more was refused, the further the quota is below the rate.
        factor = 0.5 if refused < 0.6 * (sent + 1) else 0.3 if refused < sent or sent < 3 else 0.15
        self._aim = Aim.FIND
        state.set(now, Phase.TRIAL, max(least, factor * rate), said)

    def judge(self, now: float) -> None:
        """Looks at a trial that is on its way: it ends as soon as enough is known."""
        state = self._state
        trial = state.trial(now)
        if trial.sent < _LEAST_REQUESTS:
            return
        if self._low is not None:
            self._judge_up(now, self._low, trial)
            return
        verdict = state.verdict(now, trial)
        if self.is_background_loss(now, verdict):
            return
        lasted = now - state.regime.at - state.refusals_take
        check, lowest = self._aim is Aim.CHECK, state.rate <= LEAST_RATE
        end = ended(trial, verdict, state.background.share, lasted=lasted, check=check, lowest=lowest)
        match end:
            case End.LOWER | End.FAR_LOWER:
                state.learn(now)
                state.keep(now)
                said = f"{trial.refused} of {trial.sent} requests were refused at {trial.rate:.3g} a second"
                state.set(now, Phase.TRIAL, (0.5 if end is End.LOWER else 0.3) * state.rate, said)
            case End.BACKGROUND_LOSS:
                self._believe_background_loss(now, trial.refused / trial.sent)
            case End.BACK:
                self._go_back(now)
            case End.QUOTA:
                rate = MARGIN * min(max(verdict.quota, state.rate), 0.97 * state.evidence.latest(state.rate))
                state.learn(now)
                state.keep(now)
                state.limit.found()
                state.go_to(now, rate, Phase.CRUISE)
                self._leave_start(now)
                state.limit.cruise_on(now, state.rate, state.refusals_take)

    def _leave_start(self, now: float) -> None:
        """A limit was found: what a slow start was refused may have been due to it; background is checked now."""
        state = self._state
        if state.background_loss and state.background_check.rate == math.inf:
            self._find_background(now)
        elif not state.background_loss and self._came_from is Phase.START:
            state.background.doubt()

    def _judge_up(self, now: float, low: Trial, trial: Trial) -> None:
        state = self._state
        match ended_above(low, trial, state.background.share):
            case End.BACKGROUND_LOSS:
                self._low = None
                state.evidence.clear()
                self._believe_background_loss(now, (low.refused + trial.refused) / (low.sent + trial.sent))
            case End.BACK:
                self._low = None
                state.set(now, Phase.CRUISE, low.rate)
                state.limit.cruise(now, state.rate, _CRUISE_AFTER_S)

    def check(self, now: float) -> None:
        """With loss: is a lower rate still no better? It must be asked for, or a quota would hide behind it."""
        state = self._state
        rate = min(state.rate, max(state.traffic.rate(now), LEAST_RATE))
        self._came_from, self._aim = state.phase, Aim.CHECK
        state.evidence.clear()
        state.evidence.add(Stretch(now - _BEFORE_CHECK_S, now, rate, state.rate))
        state.set(now, Phase.TRIAL, 0.6 * rate)

    def check_up(self, now: float) -> None:
        """Much is refused although the limit is known: if it is the background, twice the rate is no worse."""
        state = self._state
        self.checks.tried_up(now)
        self._came_from, self._low = Phase.CRUISE, state.trial(now)
        state.learn(now)
        state.evidence.clear()
        state.set(now, Phase.TRIAL, min(2.0 * state.rate, 2.0 * max(1.0, state.traffic.rate(now))))

    def is_background_loss(self, now: float, verdict: LossVerdict) -> bool:
        """Whether the verdict is background, and lasts: then it is believed, and the rate goes back up."""
        if verdict.background_loss is None:
            return False
        if self._came_from is not Phase.START and now - self._state.evidence.began < _LASTING_S:
            return False
        self._believe_background_loss(now, verdict.background_loss)
        return True

    def _believe_background_loss(self, now: float, share: float) -> None:
        """So much is refused at any rate: back to where the rate was before it was cut."""
        state = self._state
        state.background_loss = True
        state.background.believe(share, _SURE)
        before, start = state.evidence.highest(state.rate), self._came_from is Phase.START
        state.evidence.clear()
        state.go_to(now, before if start else max(state.rate, 0.6 * before), self._came_from if start else Phase.CRUISE)
        state.limit.climbs_at, state.limit.sure = now, True
        # Without a limit there is no rate to check the background at: slow start checks that a lower one is no better.
        if start:
            state.background_check.rate = math.inf
            self.checks.later(now)
        else:
            self._find_background(now)
        said = f"{share:.0%} of the requests are refused at any rate: it is not cut for that"
        state.change = RateChange(now, said)

    def _find_background(self, now: float) -> None:
        """Refusals are background although a limit is known: checked soon, then more rarely, and when the rate grew."""
        state = self._state
        if state.background_check.rate == math.inf:
            self.checks.restart()
        self.checks.later(now)
        state.background_check.rate = state.rate

    def background_is_due(self, now: float) -> bool:
        """Whether the belief in background has to be checked, and can be: requests are held back by the rate alone."""
        state = self._state
        check = state.background_check
        if not state.background_loss or check.rate == math.inf or now - state.held_back_at >= HELD_BACK_S:
            return False
        return now >= self.checks.at or check.is_due(state.rate)

    def check_background(self, now: float) -> None:
        """Begins a check of the background, at a far lower rate."""
        state = self._state
        state.evidence.clear()
        rate = state.background_check.begin(state.rate, state.traffic.rate(now), state.traffic.sent)
        state.set(now, Phase.CHECK, rate)

    def judge_background(self, now: float) -> None:
        """Looks at a check of the background that is on its way."""
        state = self._state
        trial, check = state.trial(now), state.background_check
        is_background = check.is_background(trial, now - state.regime.at)
        if is_background is None:
            return
        said = f"{trial.refused} of {trial.sent} requests were refused at {trial.rate:.3g} a second"
        if is_background:
            share = max(state.background.share, trial.refused / trial.sent)
            state.background.believe(min(_MOST_BACKGROUND, share), _SURE)
            state.go_to(now, check.back, Phase.CRUISE, said)
            state.limit.climbs_at = now
            self._find_background(now)
            return
        # It was a quota after all: what was taken for background was refused for want of it.
        state.background_loss = False
        state.background.doubt()
        state.limit.doubt()
        state.go_to(now, check.rate, Phase.CRUISE, said)
        state.limit.cruise_on(now, state.rate, state.refusals_take)
        check.rate = math.inf

    def _go_back(self, now: float) -> None:
        """It was no better: back to the rate before, and the next check after twice the time."""
        state = self._state
        before = state.evidence.highest(state.rate)
        state.evidence.clear()
        state.go_to(now, before, self._came_from)
        state.limit.cruise_on(now, state.rate, state.refusals_take)
        self.checks.later(now)
