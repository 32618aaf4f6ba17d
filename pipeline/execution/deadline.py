"""`--deadline`: how long a command may work before it stops by itself, as after a first SIGTERM."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.faults import DeadlineReached, UsageError
from pipeline.text import figures

if TYPE_CHECKING:
    from pipeline.policy import Shutdown
    from pipeline.totals.counters import Counters

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)([smhd])")
_EXAMPLES = "as in 90s, 30m, 6h or 1h30m"

DRAIN_SHARE = 0.5
"""The share of the time that calls in flight may have to end. The rest is for new calls, however short it is."""


def duration_s(text: str, option: str = "--deadline") -> float:
    """The seconds that an option names. Raises `UsageError` for anything but numbers with units."""
    if not (re.fullmatch(f"(?:{_DURATION.pattern})+", text) and (seconds := _sum_of(text))):
        raise UsageError(f"{option} takes a duration, {_EXAMPLES}, not {text!r}")
    return seconds


def _sum_of(text: str) -> float:
    return sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(text))


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a command ends by itself. All runs of an evaluation, and its judges, share one."""

    seconds: float
    """How long it may work, from its start on."""
    at: float
    """The moment, in seconds by the monotonic clock."""

    def drain_s(self, grace_s: float) -> float:
        """The seconds for calls in flight: `grace_s`, unless that is more than the `DRAIN_SHARE` of the whole time."""
        return min(grace_s, DRAIN_SHARE * self.seconds)

    async def keep(
        self, stop: Shutdown, counters: Counters, grace_s: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Requests the stop `grace_s` seconds before the moment, so that calls in flight end by then.

        Requests it before it gives way to other tasks if it is late already: no call is made then.
        """
        import anyio

        if (left := self.at - grace_s - clock()) > 0:
            await anyio.sleep(left)
        if not stop.requested:
            duration, calls = figures.about(self.seconds), figures.counted(counters.in_flight, "call")
            counters.notices.append(f"the deadline is near: finishing {calls} in flight, {grace_s:g} s at most")
            stop.request(DeadlineReached(f"the deadline of {duration} (--deadline) is reached"))


def deadline_of(seconds: float | None, *, clock: Callable[[], float] = time.monotonic) -> Deadline | None:
    """The deadline that is so many seconds from now; None if there is none."""
    return None if seconds is None else Deadline(seconds, clock() + seconds)
