"""Limits declared by the user: an exact rate, and an estimate of a request's tokens before it is answered."""

from __future__ import annotations

from dataclasses import dataclass

LATE_S = 0.02
"""How late, in seconds, a sleeper may wake without losing rate: coarse timers must not make us send less."""


@dataclass(slots=True)
class Pacer:
    """A declared rate, kept exactly: at most `per_minute` units in any minute, evenly spaced.

    Units are requests or tokens; tokens are estimated before a request leaves and settled when it is answered. This
    is the generic cell rate algorithm without any burst (ITU-T I.371): each request delays the next one by the time
    its units take.
    """

    per_minute: float
    late_s: float = 0.0
    """How late, in seconds, a request may leave without delaying the next one."""
    _next: float = float("-inf")

    def wait(self, now: float) -> float:
        """Seconds until the next request may leave."""
        return max(0.0, self._next - now)

    def take(self, now: float, units: float = 1.0) -> None:
        """A request of `units` leaves."""
        self._next = max(self._next, now - self.late_s) + units * 60.0 / self.per_minute

    def change(self, now: float, per_minute: float) -> None:
        """Changes the rate; the remaining wait is scaled to it."""
        self._next = now + max(0.0, self._next - now) * self.per_minute / per_minute
        self.per_minute = per_minute

    def settle(self, estimated: float, actual: float) -> None:
        """An answer shows how many units it actually took."""
        self._next += (actual - estimated) * 60.0 / self.per_minute


@dataclass(slots=True)
class TokenEstimate:
    """Estimates the tokens of a request before it is sent, learned from the run's own answers."""

    _per_byte: float = 0.25
    _answer: float = 200.0
    _seen: float = 0.0

    def of(self, size: int) -> float:
        """Expected tokens of a request of `size` bytes, answer included."""
        return size * self._per_byte + self._answer

    def learn(self, size: int, asked: int, answered: int) -> None:
        """A request of `size` bytes took `asked` input tokens and `answered` output tokens."""
        self._seen = min(self._seen + 1.0, 200.0)
        share = 1.0 / self._seen
        self._per_byte += share * (asked / max(size, 1) - self._per_byte)
        self._answer += share * (answered - self._answer)
