"""Tasks in order, a bounded number of them at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import anyio

from pipeline.policy import Shutdown

Item = TypeVar("Item")


async def in_window(items: Iterable[Item], width: int, work: Callable[[Item], Awaitable[None]], stop: Shutdown) -> None:
    """Has all items worked on, in order, `width` at a time. None begins once the stop is requested.

    Returns when all that began have ended.
    """
    left = iter(items)

    async def take_turns() -> None:
        for item in left:
            if stop.requested:
                return
            await work(item)

    async with anyio.create_task_group() as tasks:
        for _ in range(width):
            tasks.start_soon(take_turns)
