"""An endpoint with its own limits, and what is known about it."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field

from pipeline.data import Ask, Request
from pipeline.endpoint.log_events import log
from pipeline.faults import Fault
from pipeline.pace import (
    QUIET_S,
    ROWS,
    AdaptiveRate,
    Blame,
    CircuitBreaker,
    Pacer,
    Refusal,
    RetryAfterHold,
    ThrottleEpisode,
)

_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class Limits:
    """The limits of a run, which may be changed while it runs; `concurrency` up to `most`, if given."""

    concurrency: int
    requests: Pacer | None = None
    tokens: Pacer | None = None
    most: int | None = None


@dataclass(slots=True)
class Control:
    """A request that the endpoint has answered in this start: sent again, it tells a general fault from a row's own.

    `request` is the last one that was answered; None before the first, and after it was refused or proved nothing.
    """

    request: Request | None = None
    is_wanted: bool = False
    """Whether enough rows were refused alike to end the run if this request is refused too."""
    out: Request | None = None
    """The one in flight."""
    tries: int = 0
    has_lost: bool = False
    """Whether it was refused when it was sent again, and nothing has been answered since."""
    is_elsewhere: bool = False
    """Whether it is a worker process that has such a request."""
    undecided: int = 0
    """Rows refused by this endpoint about which nothing is decided yet."""
    _refused_at: float = float("-inf")

    @property
    def decides(self) -> bool:
        """Whether it can be sent again, or its answer is known."""
        return self.can_be_sent or self.has_lost

    @property
    def lost_at(self) -> float:
        """When it was sent again and then refused, if nothing has been answered since; otherwise minus infinity."""
        return self._refused_at if self.has_lost else float("-inf")

    @property
    def can_be_sent(self) -> bool:
        """Whether there is one to be sent again."""
        return self.request is not None or self.is_elsewhere

    @property
    def is_awaited(self) -> bool:
        """Whether refused rows of this endpoint wait for it to be sent again, or for its answer."""
        return self.is_wanted and self.request is not None and self.undecided > 0

    def answered(self, request: Request, left_at: float) -> None:
        """A request that left at `left_at` was answered."""
        # One that left before the refusal says nothing about the time after it.
        if left_at > self._refused_at:
            self.request, self.is_wanted, self.tries, self.has_lost = request, False, 0, False

    def refused(self, left_at: float) -> None:
        """It was refused when it was sent again, at `left_at`."""
        self.request, self._refused_at, self.has_lost = None, left_at, True

    def proved_nothing(self, *, most: int) -> None:
        """The attempt proved nothing. After `most` of these, the request is given up."""
        self.tries += 1
        if self.tries >= most:
            self.request = None


@dataclass(slots=True)
class Upstream(ABC):
    """One endpoint, and what is known about it in this process.

    `LocalUpstream` decides by itself when a request may leave; one of a worker process does what its parent leased.
    """

    name: str
    ask: Ask
    weight: float = 1.0
    _: KW_ONLY
    hold: RetryAfterHold = field(default_factory=RetryAfterHold)
    in_flight: int = 0
    rows: set[int] = field(default_factory=set)
    """The rows it is working on."""
    health: float = 1.0
    """The share of its recent calls that succeeded (an exponential average)."""
    answered_at: float | None = None
    """When a request was last answered, or the first one left."""
    served_at: float = float("-inf")
    """When a request was last answered with anything but a refusal."""
    blame: Blame = field(default_factory=Blame)
    control: Control = field(default_factory=Control)
    trouble: Fault | None = None
    """The last fault; None once something was answered after it."""
    hitch: Callable[[], str | None] = lambda: None
    """Why nothing is answered, if that is known from elsewhere: a wait for a token, for instance."""

    @property
    @abstractmethod
    def rate(self) -> AdaptiveRate | None:
        """The rate that its quota allows; None if that is not decided here, or only the concurrency limit applies."""

    @property
    @abstractmethod
    def has_served(self) -> bool:
        """Whether it has answered a request."""

    @property
    @abstractmethod
    def failing_since(self) -> float | None:
        """When the first request to fail since the last answer left."""

    @property
    @abstractmethod
    def opened_at(self) -> float | None:
        """When the endpoint as a whole failed; None if it works."""

    @abstractmethod
    def wait(self, now: float) -> float:
        """Seconds until a request may leave by this lane."""

    @abstractmethod
    def sent(self, now: float) -> None:
        """A request leaves."""

    @abstractmethod
    def answered(self, now: float, left_at: float, *, served: bool = True) -> None:
        """A request was answered; or refused for its own fault (not `served`)."""

    @abstractmethod
    def refused(self, refusal: Refusal) -> None:
        """A request was refused, perhaps for a reason that applies to every row."""

    @abstractmethod
    def clears(self, refusal: Refusal) -> bool:
        """Whether a refusal is known to be its row's own."""

    @abstractmethod
    def throttled(self, now: float, left_at: float, retry_after: float | None) -> None:
        """A request was refused for lack of quota."""

    @abstractmethod
    def failed(self, now: float, row: int, in_play: int = ROWS, left_at: float | None = None) -> None:
        """A request that left at `left_at` failed, with `in_play` rows in play."""

    def noted(self, now: float, *, served: bool) -> None:
        """The endpoint has shown that it works."""
        self.answered_at = now
        self.trouble = None
        self.health += 0.1 * (1.0 - self.health)  # the last ten calls or so count
        if served:
            self.served_at = now

    def trouble_in_words(self) -> str:
        """What is wrong with it, as last reported."""
        return self.hitch() or (self.trouble.message if self.trouble is not None else "")

    def weakened(self) -> None:
        """A request failed: others get more of the requests for a while."""
        # Never 0: a lane that gets no calls would never show that it has recovered.
        self.health = max(0.02, 0.9 * self.health)


@dataclass(slots=True)
class LocalUpstream(Upstream):
    """One endpoint with the limits of a run, all of which this process applies."""

    rate: AdaptiveRate | None = field(default_factory=AdaptiveRate)
    breaker: CircuitBreaker = field(default_factory=CircuitBreaker)
    throttle_episode: ThrottleEpisode = field(default_factory=ThrottleEpisode)

    @property
    def has_served(self) -> bool:
        """Whether it has answered a request."""
        return self.blame.has_served

    @property
    def failing_since(self) -> float | None:
        """When the first request to fail since the last answer left."""
        return self.breaker.failing_since

    @property
    def opened_at(self) -> float | None:
        """When the endpoint as a whole failed; None if it works."""
        return self.breaker.opened_at

    def wait(self, now: float) -> float:
        """Seconds until a request may leave by this lane."""
        return max(self.hold.wait(now), self.breaker.wait(now), self.rate.wait(now) if self.rate else 0.0)

    def shut_for(self, now: float) -> float:
        """Seconds for which nothing is sent because the server named a time, or until the next probe."""
        return max(0.0, self.hold.opens_at - now, self.breaker.wait(now))

    def sent(self, now: float) -> None:
        """A request leaves."""
        self.answered_at = now if self.answered_at is None else self.answered_at
        self.breaker.sent(now)
        if self.rate:
            self.rate.sent(now)

    def answered(self, now: float, left_at: float, *, served: bool = True) -> None:
        """A request was answered; or refused for its own fault (not `served`)."""
        self.noted(now, served=served)
        if served:
            self.blame.served(left_at)
        # After an outage the rate starts again: what the quota granted before says little about a server that comes up.
        if self._recovered(now) and self.rate:
            self.rate.restart(now)
        elif self.rate:
            self.rate.answered(now, left_at)
        if self.throttle_episode.refusals and (ended := self.throttle_episode.answered(now)):
            seconds, refusals = ended.seconds, ended.refusals
            log(_LOG, "throttle.end", lane=self.name, refusals=refusals, seconds=seconds, quiet_s=QUIET_S)

    def refused(self, refusal: Refusal) -> None:
        """A request was refused, perhaps for a reason that applies to every row."""
        self.blame.refused(refusal)

    def clears(self, refusal: Refusal) -> bool:
        """Whether a refusal is known to be its row's own."""
        return refusal.ended_at < self.blame.cleared_until

    def throttled(self, now: float, left_at: float, retry_after: float | None) -> None:
        """A request was refused for lack of quota."""
        self._recovered(now)  # it works, and says so
        if self.throttle_episode.refused(now):
            log(_LOG, "throttle.begin", lane=self.name, reason=self.trouble_in_words())
        if self.rate:
            self.rate.throttled(now, left_at)
        if retry_after is not None:
            self.hold.close(now, retry_after)

    def failed(self, now: float, row: int, in_play: int = ROWS, left_at: float | None = None) -> None:
        """A request that left at `left_at` failed, with `in_play` rows in play."""
        self.weakened()
        if self.breaker.failed(now, row, in_play, left_at):
            log(_LOG, "breaker.open", lane=self.name, reason=self.trouble_in_words())
        if self.rate:
            self.rate.failed(now)

    def _recovered(self, now: float) -> bool:
        """The endpoint has shown that it works. Returns whether it counted as failed until now."""
        opened_at = self.breaker.opened_at
        if not self.breaker.succeeded(now):
            return False
        log(_LOG, "breaker.close", lane=self.name, seconds=now - opened_at if opened_at is not None else 0.0)
        return True
