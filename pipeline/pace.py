"""Arithmetic of time: a clock value goes in, a decision comes out. Nothing here waits, sends or reads a clock."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0


@dataclass(slots=True)
class Gate:
    """One gate for all workers: closed for a while after the quota was used up.

    The pause grows by doubling from one throttled episode to the next (1 s to 60 s) and is forgotten when a
    request that left after the gate opened is answered. A server's own time is a floor, never shortened. Callers
    are let in one after the other over a spread, so that they do not all return in the same instant.
    """

    spread: float = 0.5
    """Seconds over which callers are let in again, per second of pause."""
    dice: random.Random = field(default_factory=random.Random)
    _opens: float = 0.0
    _closed: float = -math.inf
    _episodes: int = 0

    def wait(self, now: float) -> float:
        """Seconds until this caller may ask; 0 when it may ask now. Draws anew at each call while closed."""
        if now >= self._opens:
            return 0.0
        pause = self._opens - now
        return pause + self.dice.uniform(0.0, self.spread * max(pause, 0.1))

    def close(self, now: float, left_at: float, retry_after: float | None) -> None:
        """A request that left at `left_at` was throttled. Requests of one episode close the gate once."""
        if left_at > self._closed:
            self._episodes += 1
            self._closed = now
            pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(self._episodes - 1, 10))
            self._opens = max(self._opens, now + self.dice.uniform(0.5, 1.0) * pause)
        if retry_after is not None:
            self._opens = max(self._opens, now + retry_after)

    def opened(self, left_at: float) -> None:
        """A request that left at `left_at` was answered."""
        if left_at > self._closed:
            self._episodes = 0


UNLIKELY = 1e-6
MOST_ATTEMPTS = 20
_PRIOR = 20.0
_MEMORY = 500.0


@dataclass(slots=True)
class Weather:
    """How often the endpoint fails rows in general: what tells a bad hour from a bad row.

    Only the first try of each row counts, so that one row that always fails weighs no more than any other. Old
    observations fade: the last `_MEMORY` or so count.
    """

    _tries: float = 0.0
    _failures: float = 0.0

    def saw(self, *, failed: bool) -> None:
        """One row's first try has ended."""
        fading = 1 - 1 / _MEMORY
        self._tries = self._tries * fading + 1
        self._failures = self._failures * fading + failed

    @property
    def share(self) -> float:
        """The share of first tries that fail now, cautiously low while little was seen."""
        return self._failures / (self._tries + _PRIOR)

    def attempts(self, least: int) -> int:
        """How many tries a row gets: at least `least`, and so many that mere chance hardly uses them all up.

        With 10 % of calls failing, one row in 100,000 would fail five times in a row by chance alone; ten million
        rows would lose a hundred. A row whose own failures stand out from the others' gets `least` tries.
        """
        if self.share <= 0:
            return least
        needed = math.ceil(math.log(UNLIKELY) / math.log(min(self.share, 0.9)))
        return min(max(least, needed), max(least, MOST_ATTEMPTS))
