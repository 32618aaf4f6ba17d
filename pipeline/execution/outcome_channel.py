"""Outcomes of rows, from the event loop of a run to that of its consumer, no faster than they are taken."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.data import Outcome, Row, Success, Usage
from pipeline.faults import Fault
from pipeline.job.job import Job

WAITING = 16
"""Outcomes that may wait for the consumer; with more, no further row is asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowOutcome:
    """A row that has been answered, or has failed; it is recorded.

    `value` is an instance of the job's schema if that is a pydantic model, what the JSON Schema describes otherwise,
    and the text of the answer without a schema; a list if the job asks for several answers.
    """

    ordinal: int
    """The position of the row in the input, from 0."""
    row: Mapping[str, Any]
    """The columns of the row that the request needs, and those that are copied to the output."""
    status: Literal["ok", "failed"]
    value: Any = None
    error: Fault | None = None
    cost_usd: float | None = None
    """What all calls of the row cost; None if the price is not known."""
    usage: Usage | None = None
    """Their tokens; None if the server did not say."""


class OutcomeChannel:
    """The observer of a run, and what its consumer takes the outcomes from, in the order in which they come."""

    def __init__(self) -> None:
        self.job: Job
        """The job, which is known before the first row."""
        self._rows: dict[int, Mapping[str, Any]] = {}
        self._waiting: deque[RowOutcome] = deque()
        self._ended = self._closed = False
        self._consumer = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._producer: asyncio.AbstractEventLoop | None = None
        self._room: asyncio.Event

    # In the event loop of the run.

    def begin(self, row: Row) -> None:
        """Takes a row before it is asked."""
        self._rows[row.ordinal] = dict(row.values)

    async def observe(self, outcome: Outcome) -> None:
        """Takes the outcome of a row. Waits while the consumer has enough to take."""
        if self._producer is None:
            self._room = asyncio.Event()
            self._producer = asyncio.get_running_loop()
        made = self._made(outcome)
        while len(self._waiting) >= WAITING and not self._closed:
            self._room.clear()
            await self._room.wait()
        self._waiting.append(made)
        self._tell_consumer()

    def end(self) -> None:
        """Says that no more outcomes come; from any thread."""
        self._ended = True
        self._tell_consumer()

    def _made(self, outcome: Outcome) -> RowOutcome:
        row, reply = self._rows.pop(outcome.ordinal, {}), outcome.reply
        cost, usage = (None, None) if reply is None else (reply.cost_usd, reply.usage)
        if isinstance(outcome, Success):
            value = self.job.reader.instance_of(outcome)
            return RowOutcome(ordinal=outcome.ordinal, row=row, status="ok", value=value, cost_usd=cost, usage=usage)
        return RowOutcome(
            ordinal=outcome.ordinal, row=row, status="failed", error=outcome.fault, cost_usd=cost, usage=usage
        )

    def _tell_consumer(self) -> None:
        with suppress(RuntimeError):  # its loop was closed
            self._consumer.call_soon_threadsafe(self._news.set)

    # In that of the consumer.

    async def take(self) -> RowOutcome | None:
        """The next outcome; None after the last."""
        while not self._waiting:
            if self._ended:
                return None
            self._news.clear()
            if not self._waiting and not self._ended:  # either may have come since the event was cleared
                await self._news.wait()
        taken = self._waiting.popleft()
        self._tell_producer()
        return taken

    def close(self) -> None:
        """Says that nobody takes more outcomes: those that follow are dropped, and the run does not wait for it."""
        self._closed = True
        self._tell_producer()

    def _tell_producer(self) -> None:
        if self._producer is not None:
            with suppress(RuntimeError):  # the run has ended
                self._producer.call_soon_threadsafe(self._room.set)
