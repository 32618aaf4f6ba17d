"""Whose fault a refusal is: that of the row that was refused, or everybody's. Decided by what became of other calls."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

FEW = 3
"""Rows that are refused alike before that is more than chance, where nothing was answered yet, or no other is left."""

FEW_ACCOUNTS = 2
"""The same for what says that it is about the account."""

LEAST_ALIKE = 5
"""The same among rows that are answered: a cluster of fewer bad rows stops no run, however few calls are in flight."""

MOST_ALIKE = 32
"""Refusals alike in a row that are enough for any concurrency: more would only be wasted calls."""

QUIET_S = 1.0
"""How long nobody else asks before the refused rows are taken for the last ones. The input may be slow in coming."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A call that was refused: when it left and ended, whether its status is a suspect one, and what it is like.

    `accounts` says that the answer speaks of the account, not of a row.
    """

    row: int
    kind: str
    suspect: bool
    message: str
    left_at: float
    ended_at: float
    accounts: bool = False


@dataclass(slots=True)
class Blame:
    """The refusals by one endpoint that nobody has decided about, and what decides; a clock value goes in everywhere.

    A refusal is its row's own once a call that left after it had ended is answered: what was refused for everybody
    then could not have been. It is everybody's once enough different rows were refused alike, and no call that left
    later than theirs was answered. Times of leaving are compared, not of answers: a slow call that left before a
    permission was revoked says nothing of the time after. Equal times decide nothing: event loops count milliseconds.
    """

    cleared_until: float = float("-inf")
    """Refusals that ended before this moment are their rows' own."""
    decided_until: float = float("-inf")
    """When the last of those ended that were found to be so: it changes only when there was something to decide."""
    _served_left_at: float = float("-inf")
    _open: dict[int, Refusal] = field(default_factory=dict)
    _quiet_since: float | None = None

    @property
    def has_served(self) -> bool:
        """Whether a call was answered."""
        return self._served_left_at > float("-inf")

    @property
    def is_open(self) -> bool:
        """Whether some refusal is undecided."""
        return bool(self._open)

    def served(self, left_at: float) -> None:
        """A call that left then was answered."""
        self._served_left_at = max(self._served_left_at, left_at)
        self.clear(left_at)

    def refused(self, refusal: Refusal) -> None:
        """A call was refused."""
        self._open[refusal.row] = refusal
        self.clear(self.cleared_until)

    def clear(self, until: float) -> None:
        """Whatever ended before is its row's own."""
        self.cleared_until = max(self.cleared_until, until)
        if self._open:
            own = [one for one in self._open.values() if one.ended_at < self.cleared_until]
            self.decided_until = max([self.decided_until, *(one.ended_at for one in own)])
            for one in own:
                del self._open[one.row]

    def everybodys(self, concurrency: int) -> Refusal | None:
        """A refusal that is everybody's, when so many calls in flight have shown one."""
        alike, example = self._alike()
        return example if alike >= max(self._least(example), min(concurrency, MOST_ALIKE)) else None

    def last_word(self, now: float, *, others: int, answered: bool) -> Refusal | None:
        """Decides when nobody else is left to ask: what is everybody's; None when there is nothing, or not yet.

        `others` are asking besides; `answered` says whether any row was ever answered, here or elsewhere. Where none
        was, one refusal by status is enough, and one that speaks of the account is everywhere. Otherwise a few alike
        are, more of them where some were in this start, and fewer are their rows' own.
        """
        if others or not self._open:
            self._quiet_since = None
            return None
        self._quiet_since = now if self._quiet_since is None else self._quiet_since
        if now - self._quiet_since < QUIET_S:
            return None
        alike, example = self._alike()
        if alike >= self._least(example):
            return example
        suspects = [one for one in self._open.values() if one.accounts or (one.suspect and not answered)]
        if suspects:
            return suspects[0]
        self.clear(math.nextafter(now, math.inf))
        return None

    def _least(self, example: Refusal | None) -> int:
        """How many refusals like this one are more than chance."""
        if self.has_served:
            return LEAST_ALIKE
        return FEW_ACCOUNTS if example is not None and example.accounts else FEW

    def _alike(self) -> tuple[int, Refusal | None]:
        """How many rows were refused alike by calls that left after the last one that was answered; one of them."""
        counted = [one for one in self._open.values() if one.left_at > self._served_left_at]
        if not counted:
            return 0, None
        kind, rows = Counter(one.kind for one in counted).most_common(1)[0]
        return rows, next(one for one in counted if one.kind == kind)
