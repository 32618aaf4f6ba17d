"""Periods in which a quota grants nothing, such as a fixed window that is used up; and how long windows are."""

from __future__ import annotations

import math
from dataclasses import dataclass

_FIRST_GAP_S = 0.1
_LONGEST_GAP_S = 15.0
_GROWTH = 3.0
_LONGEST_WINDOW_S = 60.0
"""Per-minute quotas are common; hourly quotas announce themselves in the error."""

_SURELY_PASSED_S = 0.2


@dataclass(frozen=True, slots=True)
class Opening:
    """The quota grants again: `accepted` requests passed in the `length_s` seconds from one opening to the next."""

    at: float
    accepted: int
    length_s: float
    shut_s: float
    refusals_take_s: float = 0.0

    @property
    def is_window(self) -> bool:
        """Whether it was shut for so long that the quota must use fixed windows, rather than an empty token bucket."""
        return self.shut_s > max(1.0 + 4.0 * self.refusals_take_s, 0.3 * self.length_s)

    @property
    def rate(self) -> float:
        """Requests per second that it grants on average.

        A window grants everything at once, and again when the next one begins: its whole cycle counts. An empty bucket
        fills by about one request while it is shut; and what it granted before was at most one second's savings plus
        what flowed in.
        """
        accepted = max(1, self.accepted)
        if self.is_window:
            return accepted / self.length_s
        return max(min(accepted / self.length_s, 1.5 / self.shut_s), self.accepted / (self.length_s + 1.0))


@dataclass(slots=True)
class Closure:
    """Probes a quota that grants nothing, with one request at a time, after growing pauses.

    If a window has been seen before, the first probe waits for its end.
    """

    opened: float | None = None
    """When the quota last began to grant."""
    window_s: float | None = None
    _closed: float = math.inf
    _gap: float = _FIRST_GAP_S
    _refusals_take: float = 0.0
    _probe: float | None = None

    @property
    def closed_at(self) -> float:
        """When it stopped granting."""
        return self._closed

    @property
    def probing(self) -> bool:
        """Whether a probe is in flight."""
        return self._probe is not None

    @property
    def gap(self) -> float:
        """Seconds between two probes."""
        return self._gap

    def close(self, now: float, refusals_take_s: float) -> float:
        """It grants nothing; returns when to probe."""
        self._closed, self._probe, self._refusals_take = now, None, refusals_take_s
        self._gap = max(_FIRST_GAP_S, 1.5 * refusals_take_s)
        opens = now + self._gap
        if self.window_s is not None and self.opened is not None:
            opens = max(opens, min(self.opened + self.window_s, now + _LONGEST_WINDOW_S))
        return opens

    def sent(self, now: float) -> float:
        """A probe leaves; returns when to send the next one if this one is not answered."""
        self._probe = now
        return now + self._gap

    def refused(self, left_at: float) -> None:
        """A probe was refused: it still grants nothing."""
        if self._probe is not None and left_at >= self._probe:
            self._probe, self._gap = None, min(_LONGEST_GAP_S, _GROWTH * self._gap)

    def passed(self, now: float) -> bool:
        """Whether the probe in flight would have been refused by now."""
        return self._probe is not None and now >= self._probe + max(4.0 * self._refusals_take, _SURELY_PASSED_S)

    def open(self, now: float, accepted: int) -> Opening:
        """It grants again; `accepted` requests passed since it last opened."""
        at = self._probe if self._probe is not None else now
        before = self.opened if self.opened is not None else at
        opening = Opening(at, accepted, max(at - before, 0.05), max(at - self._closed, 0.05), self._refusals_take)
        self.opened, self._probe = at, None
        if opening.is_window:
            self.window_s = opening.length_s
        return opening
