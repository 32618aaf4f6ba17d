"""Virtual time for async tests: an hour passes in no time, and the clock says exactly how long things took.

A module whose async tests run in virtual time says so once: `anyio_backend = virtual.anyio_backend`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
import pytest
from trio.testing import MockClock

T = TypeVar("T")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Trio, with a clock that begins at 0 in every test and jumps to the next deadline when all tasks wait."""
    return "trio", {"clock": MockClock(autojump_threshold=0)}


def run(work: Callable[[], Awaitable[T]]) -> T:
    """What `work` returns, on a clock of its own: for property tests, whose examples must not share one."""
    return anyio.run(work, backend="trio", backend_options={"clock": MockClock(autojump_threshold=0)})


async def at(moment: float, call: Callable[..., object], *args: object) -> None:
    """Calls at this moment of virtual time."""
    await anyio.sleep(max(0.0, moment - anyio.current_time()))
    call(*args)
