"""The reply cache of a run at work: looked up in batches, written in batches, never waited for by the event loop."""

from __future__ import annotations

import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeVar

import anyio
from anyio import to_thread

from pipeline.data import Failure, Outcome, Reply
from pipeline.faults import UsageError
from pipeline.storage.codec import decode, encode
from pipeline.storage.reply_cache.file import connect, make, transaction

TICK_S = 0.25
"""How long replies gather before they are committed together."""

MOST_PENDING = 20_000
"""Replies that wait for their commit before further ones are not stored: a slow disk must not fill the memory."""

USED_EVERY_S = 3600
"""How exactly the last use of a reply is known."""

_AT_ONCE = 500
"""Keys in a statement: each one lets go of the interpreter, and may wait for a busy event loop to give it back."""

_T = TypeVar("_T")


class Cache:
    """Replies that earlier runs have paid, by the keys of their requests, for one run.

    What was answered is held until its row is settled, and stored only if the row came to a value: an answer that is
    cut, refused or does not fit is asked for again the next time. `endpoint` says in the file who has answered.

    All but the making and the closing belong to the event loop. Raises `UsageError` when the file cannot be opened.
    When it fails later, the run goes on without: nothing is found or stored any more.
    """

    def __init__(self, folder: Path, endpoint: str) -> None:
        self._path = make(folder)
        self._endpoint = endpoint
        self._reader = connect(self._path)
        try:
            self._writer = connect(self._path)
        except UsageError:
            self._reader.close()
            raise
        self._works = True
        self._wanted: dict[bytes, _Wanted] = {}
        self._held: dict[int, list[tuple[bytes, Reply]]] = {}
        self._used: dict[int, list[bytes]] = {}
        self._changes = _Changes()
        self._committing = _Changes()
        self._asked = anyio.Event()
        self._changed = anyio.Event()

    async def find(self, ordinal: int, key: bytes) -> Reply | None:
        """The reply with this key, for this row; None when there is none."""
        reply = self._changes.replies.get(key) or self._committing.replies.get(key)
        if reply is None and self._works:
            wanted = self._wanted.setdefault(key, _Wanted())
            self._asked.set()
            await wanted.found.wait()
            reply = wanted.reply
        if reply is not None:
            self._used.setdefault(ordinal, []).append(key)
        return reply

    def hold(self, ordinal: int, key: bytes, reply: Reply) -> None:
        """A reply that is stored if its row comes to a value."""
        self._held.setdefault(ordinal, []).append((key, reply))

    def settle(self, outcome: Outcome) -> None:
        """What became of a row: its new replies are stored, or those that it was wrongly made of are forgotten."""
        held = self._held.pop(outcome.ordinal, ())
        used = self._used.pop(outcome.ordinal, ())
        if isinstance(outcome, Failure):
            if outcome.reply is not None and outcome.fault.reply is None:  # or a later call failed, not this one
                self._forget(used)
        elif held and len(self._changes.replies) < MOST_PENDING:
            self._changes.replies |= dict(held)
            self._changed.set()

    def _forget(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            self._changes.replies.pop(key, None)
        self._changes.gone += keys
        self._changed.set()

    async def keep_working(self, tell: Callable[[str], object]) -> None:
        """Looks up and stores, until it is cancelled. When the disk fails, tells so, once."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep_reading, tell)
            tasks.start_soon(self._keep_writing, tell)

    async def _keep_reading(self, tell: Callable[[str], object]) -> None:
        while True:
            await self._asked.wait()
            self._asked = anyio.Event()
            wanted, self._wanted = self._wanted, {}
            found = await self._tried(partial(self._read, list(wanted)), tell) if self._works else None
            for key, one in wanted.items():
                one.reply = found.replies.get(key) if found else None
                one.found.set()
            if found and found.touched:
                self._changes.touched += found.touched
                self._changed.set()

    async def _keep_writing(self, tell: Callable[[str], object]) -> None:
        while True:
            await self._changed.wait()
            await anyio.sleep(TICK_S)
            self._changed = anyio.Event()
            self._committing, self._changes = self._changes, _Changes()
            if self._works:
                await self._tried(self._write, tell)
            self._committing = _Changes()

    async def _tried(self, work: Callable[[], _T], tell: Callable[[str], object]) -> _T | None:
        try:
            return await to_thread.run_sync(work)
        except sqlite3.Error as error:
            if self._works:
                tell(f"the reply cache {self._path} failed: {error}; the run goes on without it")
            self._works = False
            return None

    # In a thread.

    def _read(self, keys: Sequence[bytes]) -> _Found:
        found = _Found()
        now = int(time.time())
        for some in _slices(keys):
            query = f"SELECT key, used, reply FROM replies WHERE key IN ({_marks(len(some))})"  # noqa: S608 - question marks
            for key, used, packed in self._reader.execute(query, some):
                # One that does not unpack is damaged, and as good as none.
                with suppress(zlib.error, ValueError, LookupError, TypeError):
                    found.replies[key] = unpacked(packed)
                if now - used >= USED_EVERY_S:
                    found.touched.append(key)
        return found

    def _write(self) -> None:
        changes = self._committing
        now = int(time.time())
        rows = [
            (key, self._endpoint, reply.model or "", now, now, reply.cost_usd, packed(reply))
            for key, reply in changes.replies.items()
        ]
        with transaction(self._writer):
            for keys in _slices(changes.gone):
                self._writer.execute(f"DELETE FROM replies WHERE key IN ({_marks(len(keys))})", keys)  # noqa: S608 - question marks
            for keys in _slices(changes.touched):
                statement = f"UPDATE replies SET used = ? WHERE key IN ({_marks(len(keys))})"  # noqa: S608 - question marks
                self._writer.execute(statement, (now, *keys))
            for some in _slices(rows):
                values = ", ".join([f"({_marks(7)})"] * len(some))
                statement = f"INSERT OR REPLACE INTO replies VALUES {values}"  # noqa: S608 - question marks
                self._writer.execute(statement, [*chain.from_iterable(some)])

    def close(self) -> None:
        """Commits what is pending, if that is possible, and closes the file."""
        try:
            self._committing = self._changes.after(self._committing)
            if self._works:
                with suppress(sqlite3.Error):  # what is not stored is asked again: nothing is lost but money saved
                    self._write()
        finally:
            self._reader.close()
            self._writer.close()


@dataclass(slots=True)
class _Wanted:
    """A key that is being looked up."""

    found: anyio.Event = field(default_factory=anyio.Event)
    reply: Reply | None = None


@dataclass(slots=True)
class _Found:
    """What was found, and which of it has not been used for long."""

    replies: dict[bytes, Reply] = field(default_factory=dict)
    touched: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class _Changes:
    """What waits for its commit."""

    replies: dict[bytes, Reply] = field(default_factory=dict)
    touched: list[bytes] = field(default_factory=list)
    gone: list[bytes] = field(default_factory=list)

    def after(self, before: _Changes) -> _Changes:
        """Both, this one later."""
        kept = {key: reply for key, reply in before.replies.items() if key not in self.gone}
        return _Changes(kept | self.replies, before.touched + self.touched, before.gone + self.gone)


def packed(reply: Reply) -> bytes:
    """A reply as it is stored: what we know of it as a line of JSON, then its body; compressed."""
    known, body = encode(reply)
    return zlib.compress(b"%b\n%b" % (known, body or b""), 1)


def unpacked(stored: bytes) -> Reply:
    """The reply that `packed` wrote. Raises one of zlib's, JSON's or our reader's errors when it is damaged."""
    known, _, body = zlib.decompress(stored).partition(b"\n")
    reply = decode(known, body)
    if not isinstance(reply, Reply):
        raise TypeError("an entry without a body is no reply")
    return reply


def _slices(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for start in range(0, len(items), _AT_ONCE):
        yield items[start : start + _AT_ONCE]


def _marks(count: int) -> str:
    return ", ".join("?" * count)
