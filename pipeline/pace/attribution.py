"""Decides whether a refusal concerns one row or every row, from the outcomes of other calls."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

FEW = 3
"""Rows refused alike that are more than chance, when nothing has been answered yet or no other row is left."""

FEW_ACCOUNTS = 2
"""The same for errors that say they concern the account."""

LEAST_ALIKE = 5
"""The same once rows are being answered: a smaller cluster of bad rows never stops a run, at any concurrency."""

MOST_ALIKE = 32
"""Refusals alike that are enough at any concurrency: more would only be wasted calls."""

LEAST_COMPARED = 2
"""The same where a request that was answered can be sent again: its answer decides, so that fewer may ask for it.

A single one does not: a lone refusal among the last rows is nearly always its row's own, and the comparison is paid.
"""

QUIET_S = 1.0
"""How long no other row is in play before the refused rows count as the last ones: the input may be slow to arrive."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A call that was refused: when it left and ended, its kind, and whether its status is suspect.

    `accounts` says that the error message is about the account, not about a row.
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
    """The undecided refusals of one endpoint, and the rule that decides them; every method takes the clock value.

    A refusal is its row's own once a call that left after the refusal ended is answered: had the refusal applied to
    every row, that call would have been refused too. It applies to every row once enough different rows were refused
    alike and no call that left after them was answered. Departure times are compared, not answer times: a slow call
    that left before a permission was revoked says nothing about the time after. Equal times decide nothing, because
    event loops have a resolution of milliseconds.
    """

    cleared_until: float = float("-inf")
    """Refusals that ended before this time are their rows' own."""
    decided_until: float = float("-inf")
    """When the last refusal cleared in this way ended. Changes only when there was something to decide."""
    _served_left_at: float = float("-inf")
    _open: dict[int, Refusal] = field(default_factory=dict)
    _quiet_since: float | None = None

    @property
    def has_served(self) -> bool:
        """Whether any call was answered."""
        return self._served_left_at > float("-inf")

    @property
    def is_open(self) -> bool:
        """Whether any refusal is undecided."""
        return bool(self._open)

    def served(self, left_at: float) -> None:
        """A call that left at `left_at` was answered."""
        self._served_left_at = max(self._served_left_at, left_at)
        self.clear(left_at)

    def refused(self, refusal: Refusal) -> None:
        """A call was refused."""
        self._open[refusal.row] = refusal
        self.clear(self.cleared_until)

    def clear(self, until: float) -> None:
        """Every refusal that ended before `until` is its row's own."""
        self.cleared_until = max(self.cleared_until, until)
        if self._open:
            own = [one for one in self._open.values() if one.ended_at < self.cleared_until]
            self.decided_until = max([self.decided_until, *(one.ended_at for one in own)])
            for one in own:
                del self._open[one.row]

    def everybodys(self, concurrency: int) -> Refusal | None:
        """A refusal that applies to every row, once enough rows for this `concurrency` have been refused alike."""
        alike, example = self._alike()
        return example if alike >= max(self._least(example), min(concurrency, MOST_ALIKE)) else None

    def last_word(self, now: float, *, others: int, answered: bool, compares: bool = False) -> Refusal | None:
        """Decides once no other row is in play: a refusal that applies to every row; None if there is none, or not yet.

        `others` counts the other rows in play; `answered` says whether any row was ever answered, in any start. If none
        was, one refusal with a suspect status is enough; one about the account always is. Otherwise it takes several
        alike, and more if this start was answered; fewer are their rows' own. With `compares`, a comparison decides
        what is returned here, or has decided it.
        """
        if others or not self._open:
            self._quiet_since = None
            return None
        self._quiet_since = now if self._quiet_since is None else self._quiet_since
        if now - self._quiet_since < QUIET_S:
            return None
        alike, example = self._alike()
        if alike >= (LEAST_COMPARED if compares else self._least(example)):
            return example
        suspects = [one for one in self._open.values() if one.accounts or (one.suspect and not answered)]
        if suspects:
            return suspects[0]
        self.clear(math.nextafter(now, math.inf))
        return None

    def _least(self, example: Refusal | None) -> int:
        """How many refusals alike are more than chance."""
        if self.has_served:
            return LEAST_ALIKE
        return FEW_ACCOUNTS if example is not None and example.accounts else FEW

    def _alike(self) -> tuple[int, Refusal | None]:
        """How many rows were refused alike, by calls that left after the last answered one; and an example."""
        counted = [one for one in self._open.values() if one.left_at > self._served_left_at]
        if not counted:
            return 0, None
        kind, rows = Counter(one.kind for one in counted).most_common(1)[0]
        return rows, next(one for one in counted if one.kind == kind)
