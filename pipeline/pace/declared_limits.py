"""Limits that the user declares: a rate kept exactly, and the tokens of a request before it is answered."""

from __future__ import annotations

from dataclasses import dataclass

LATE_S = 0.02
"""How late a sleeper may wake without losing its place: a clock's coarseness is no reason to send less."""


@dataclass(slots=True)
class Pacer:
    """A declared rate, kept exactly: at most `per_minute` units in any minute, and no more than its share of a second.

    Units are requests, or tokens: those are estimated before a request leaves and settled when it is answered. It
    is the generic cell rate algorithm without any burst (ITU-T I.371): each request puts the next one off by the
    time that its units take.
    """

    per_minute: float
    late_s: float = 0.0
    """How late a request may leave without putting off the next one."""
    _next: float = float("-inf")

    def wait(self, now: float) -> float:
        """Seconds until the next request may leave."""
        return max(0.0, self._next - now)

    def take(self, now: float, units: float = 1.0) -> None:
        """A request of so many units leaves."""
        self._next = max(self._next, now - self.late_s) + units * 60.0 / self.per_minute

    def change(self, now: float, per_minute: float) -> None:
        """The rate is another from now on: what is left to wait for takes as much longer, or shorter."""
        self._next = now + max(0.0, self._next - now) * self.per_minute / per_minute
        self.per_minute = per_minute

    def settle(self, estimated: float, actual: float) -> None:
        """An answer tells how many units it really were."""
        self._next += (actual - estimated) * 60.0 / self.per_minute


@dataclass(slots=True)
class TokenEstimate:
    """Tokens of a request before it is asked, learned from the run's own answers."""

    _per_byte: float = 0.25
    _answer: float = 200.0
    _seen: float = 0.0

    def of(self, size: int) -> float:
        """Tokens that a request of `size` bytes is likely to take, answer included."""
        return size * self._per_byte + self._answer

    def learn(self, size: int, asked: int, answered: int) -> None:
        """A request of `size` bytes took so many tokens in and out."""
        self._seen = min(self._seen + 1.0, 200.0)
        share = 1.0 / self._seen
        self._per_byte += share * (asked / max(size, 1) - self._per_byte)
        self._answer += share * (answered - self._answer)
