"""How long a request to a store is repeated that failed in passing."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

RETRIES_S = 180.0
"""How long a request is repeated after its first try, if the store has answered before, in seconds."""

FIRST_RETRIES_S = 20.0
"""The same for a store that has never answered: its address may be wrong."""

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 10.0
_STATUS = re.compile(r"status code: (\d{3})\b")
_PASSING = frozenset({408, 429, 500, 502, 503, 504})
_CONNECTION = "HTTP error: "


@dataclass(frozen=True, slots=True)
class Timing:
    """The clock of waits, in seconds, and how they are waited."""

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


class Retries:
    """The tries of one request, the first of which begins now."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._began = timing.clock()
        self._wait = _FIRST_WAIT_S

    def again(self, within: float) -> bool:
        """Waits for the next try, and returns True; False, at once, `within` seconds after the first one."""
        left = self._began + within - self._timing.clock()
        if left <= 0:
            return False
        self._timing.sleep(min(left, self._wait * random.uniform(0.5, 1.0)))  # noqa: S311 - many wait at once
        self._wait = min(_LONGEST_WAIT_S, self._wait * 2)
        return True


def answered_with(error: Exception) -> int | None:
    """The HTTP status that an error of obstore tells; None if it tells none, as for a lost connection."""
    found = _STATUS.search(str(error))
    return int(found[1]) if found else None


def is_passing(error: Exception) -> bool:
    """Whether the same request may succeed later: the store is overloaded, or the connection was lost."""
    status = answered_with(error)
    return status in _PASSING if status is not None else _CONNECTION in str(error)
