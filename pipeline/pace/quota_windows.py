"""Times in which a quota grants nothing at all, as a fixed window does when it is used up; and how long windows are."""

from __future__ import annotations

import math
from dataclasses import dataclass

_FIRST_GAP_S = 0.1
_LONGEST_GAP_S = 15.0
_GROWTH = 3.0
_LONGEST_WINDOW_S = 60.0
"""Quotas a minute are common, and quotas an hour are not refused silently."""

_SURELY_PASSED_S = 0.2


@dataclass(frozen=True, slots=True)
class Opening:
    """The quota grants again: so many requests were accepted from one opening to the next, which took so long."""

    at: float
    accepted: int
    length_s: float
    shut_s: float
    refusals_take_s: float = 0.0

    @property
    def is_window(self) -> bool:
        """Whether it was shut so long that the quota is one of fixed windows, rather than a bucket that was empty."""
        return self.shut_s > max(1.0 + 4.0 * self.refusals_take_s, 0.3 * self.length_s)

    @property
    def rate(self) -> float:
        """Requests a second that it grants on average.

        A window grants all it has at once, and again when the next one begins: its whole cycle counts. A bucket that
        was empty has filled by about one request in the time that it was shut; and what it granted before was no more
        than it had saved in a second, and got meanwhile.
        """
        accepted = max(1, self.accepted)
        if self.is_window:
            return accepted / self.length_s
        return max(min(accepted / self.length_s, 1.5 / self.shut_s), self.accepted / (self.length_s + 1.0))


@dataclass(slots=True)
class Closure:
    """A quota that grants nothing is asked again after pauses that grow, by one request at a time.

    When a window has been seen before, the first request waits for its end.
    """

    opened: float | None = None
    """When the quota began to grant, this time."""
    window_s: float | None = None
    _closed: float = math.inf
    _gap: float = _FIRST_GAP_S
    _refusals_take: float = 0.0
    _probe: float | None = None

    @property
    def closed_at(self) -> float:
        """Since when it grants nothing."""
        return self._closed

    @property
    def probing(self) -> bool:
        """Whether a request is out that will tell."""
        return self._probe is not None

    @property
    def gap(self) -> float:
        """Seconds between two requests."""
        return self._gap

    def close(self, now: float, refusals_take_s: float) -> float:
        """It grants nothing; says when to ask again."""
        self._closed, self._probe, self._refusals_take = now, None, refusals_take_s
        self._gap = max(_FIRST_GAP_S, 1.5 * refusals_take_s)
        opens = now + self._gap
        if self.window_s is not None and self.opened is not None:
            opens = max(opens, min(self.opened + self.window_s, now + _LONGEST_WINDOW_S))
        return opens

    def sent(self, now: float) -> float:
        """It is asked; says when to ask again if there is no word."""
        self._probe = now
        return now + self._gap

    def refused(self, left_at: float) -> None:
        """It still grants nothing."""
        if self._probe is not None and left_at >= self._probe:
            self._probe, self._gap = None, min(_LONGEST_GAP_S, _GROWTH * self._gap)

    def passed(self, now: float) -> bool:
        """Whether the request that is out would have been refused by now."""
        return self._probe is not None and now >= self._probe + max(4.0 * self._refusals_take, _SURELY_PASSED_S)

    def open(self, now: float, accepted: int) -> Opening:
        """It grants again; so many were accepted since it was opened before."""
        at = self._probe if self._probe is not None else now
        before = self.opened if self.opened is not None else at
        opening = Opening(at, accepted, max(at - before, 0.05), max(at - self._closed, 0.05), self._refusals_take)
        self.opened, self._probe = at, None
        if opening.is_window:
            self.window_s = opening.length_s
        return opening
