"""Tells one stretch of refusals for lack of quota from the next, so that a log has two lines for it, not thousands."""

from __future__ import annotations

from dataclasses import dataclass

QUIET_S = 10.0
"""How long nothing may be refused before an episode is over, in seconds."""


@dataclass(frozen=True, slots=True)
class EndedEpisode:
    """An episode that is over: how many calls were refused, and for how many seconds, from the first to the last."""

    refusals: int
    seconds: float


@dataclass(slots=True)
class ThrottleEpisode:
    """The refusals of one endpoint that belong together."""

    refusals: int = 0
    """Refusals so far; 0 between episodes."""
    _began: float = 0.0
    _last: float = 0.0

    def refused(self, now: float) -> bool:
        """A call was refused. Returns whether an episode begins."""
        begins = not self.refusals
        self._began, self._last = (now if begins else self._began), now
        self.refusals += 1
        return begins

    def answered(self, now: float) -> EndedEpisode | None:
        """A call was answered. Returns the episode that is over with it, if any."""
        if not self.refusals or now - self._last < QUIET_S:
            return None
        ended, self.refusals = EndedEpisode(self.refusals, self._last - self._began), 0
        return ended
