"""The calls of a row: their answers, their total cost, and which need not be paid for again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from pipeline.data import Ask, Reply, Request, together
from pipeline.job.turns import FIRST_REQUEST, Results, Turn, digest_of


class TurnBooks(Protocol):
    """Keeps the answers of unfinished rows: the journal."""

    async def put_turn(self, ordinal: int, number: int, turn: Turn) -> None:
        """Hands a turn over; it is durable within a tick, and is deleted with the entry of its row."""


@dataclass(slots=True)
class _Made:
    """An answered call."""

    request: Request
    reply: Reply
    results: Results | None = None
    is_kept: bool = False


class RowCalls:
    """The calls of one row, in order.

    A row with one call costs nothing here. Before another call follows or tools run, the answers so far are kept. When
    the row is asked again after a stop and its n-th request is the same as before, the kept answer is used and its
    tools do not run again.
    """

    def __init__(self, ordinal: int, books: TurnBooks, stored: Mapping[int, Turn] | None = None) -> None:
        self._ordinal = ordinal
        self._books = books
        self._stored = stored or {}
        self._made: list[_Made] = []
        self._in_vain: list[Reply] = []

    async def answered(self, request: Request, ask: Ask) -> Reply:
        """The reply to the next call."""
        # Not for the first call: nearly all rows have just one, and the journal gets it as the row's reply anyway.
        if self._made:
            await self.keep()
        stored = self._stored.get(len(self._made))
        if stored is not None and (self._is_first(stored) or stored.digest == digest_of(request)):
            self._made.append(_Made(request, stored.reply, stored.results, is_kept=True))
            return stored.reply
        self._stored = {}  # the row has diverged: later answers no longer apply
        reply = await ask(request)
        self._made.append(_Made(request, reply))
        return reply

    def _is_first(self, stored: Turn) -> bool:
        return stored.digest == FIRST_REQUEST and not self._made

    async def keep(self) -> None:
        """Hands the answers so far to the books."""
        for number, made in enumerate(self._made):
            if not made.is_kept:
                await self._put(number, made)

    async def tool_results(self, run: Callable[[], Awaitable[Results]]) -> Results:
        """The results of the tools that the last answer calls: the kept ones, or by running the tools now."""
        await self.keep()
        made = self._made[-1]
        if made.results is None:
            made.results = await run()
            await self._put(len(self._made) - 1, made)
        return made.results

    def paid_in_vain(self, reply: Reply) -> None:
        """A call failed, but was paid for."""
        self._in_vain.append(replace(reply, attempts=0))

    def whole(self, reply: Reply) -> Reply:
        """The row's reply, with the cost of failed calls included."""
        for one in self._in_vain:
            reply = _with_cost_of(reply, one)
        return reply

    def so_far(self) -> Reply | None:
        """The last answer, with the cost of all calls; None if none was paid for."""
        reply: Reply | None = None
        for made in self._made:
            reply = together(reply, made.reply)
        if reply is not None:
            return self.whole(reply)
        for one in self._in_vain:
            reply = together(reply, one)
        return reply

    def close(self) -> None:
        """Releases the answers.

        Requests refer to their log, and the log to its requests: a cycle that the garbage collector would find only
        after hundreds of rows, among tens of thousands of objects.
        """
        self._made.clear()

    async def _put(self, number: int, made: _Made) -> None:
        # Before the await, so that it is handed over once.
        made.is_kept = True
        await self._books.put_turn(self._ordinal, number, Turn(digest_of(made.request), made.reply, made.results))


def logged(ask: Ask) -> Ask:
    """Ask, with every call of a row recorded in its log, or answered from it."""

    async def logged_ask(request: Request) -> Reply:
        return await ask(request) if request.calls is None else await request.calls.answered(request, ask)

    return logged_ask


def _with_cost_of(reply: Reply, other: Reply) -> Reply:
    both = together(other, reply)
    return replace(reply, usage=both.usage, cost_usd=both.cost_usd)
