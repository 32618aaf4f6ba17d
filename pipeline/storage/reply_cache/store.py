"""The reply cache of an active run: reads and writes in batches, without blocking the event loop."""

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
"""How long replies are collected before they are committed together."""

MOST_PENDING = 20_000
"""Uncommitted replies beyond which further ones are not stored: a slow disk must not fill the memory."""

USED_EVERY_S = 3600
"""The resolution of a reply's last use, in seconds."""

_AT_ONCE = 500
"""Keys per statement: each statement releases the GIL, and may wait for a busy event loop to get it back."""

_T = TypeVar("_T")


class Cache:
    """Replies that earlier runs have paid for, by the keys of their requests, for one run.

    A reply is held until its row is settled, and stored only if the row produced a value: an answer that is truncated,
    refused or does not match the schema is asked for again the next time. `endpoint` is recorded as its source.

    All methods but the constructor and `close` belong to the event loop. Raises `UsageError` when the file cannot be
    opened. When it fails later, the run goes on without it: nothing more is found or stored.
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
        self._wanted: dict[bytes, _Lookup] = {}
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
            wanted = self._wanted.setdefault(key, _Lookup())
            self._asked.set()
            await wanted.found.wait()
            reply = wanted.reply
        if reply is not None:
            self._used.setdefault(ordinal, []).append(key)
        return reply

    def hold(self, ordinal: int, key: bytes, reply: Reply) -> None:
        """Holds a reply, to be stored if its row produces a value."""
        self._held.setdefault(ordinal, []).append((key, reply))

    def settle(self, outcome: Outcome) -> None:
        """Settles a row: stores its new replies, or deletes the cached replies that made it fail."""
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
        """Looks up and stores until it is cancelled. Reports a disk failure through `tell`, once."""
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

    # In a worker thread.

    def _read(self, keys: Sequence[bytes]) -> _FoundReplies:
        found = _FoundReplies()
        now = int(time.time())
        for some in _slices(keys):
            query = f"SELECT key, used, reply FROM replies WHERE key IN ({_marks(len(some))})"  # noqa: S608 - question marks
            for key, used, packed in self._reader.execute(query, some):
                # A reply that cannot be unpacked is damaged, and treated as missing.
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
        """Commits pending changes if possible, and closes the file."""
        try:
            self._committing = self._changes.after(self._committing)
            if self._works:
                with suppress(sqlite3.Error):  # what is not stored is asked again: only the saving is lost
                    self._write()
        finally:
            self._reader.close()
            self._writer.close()


@dataclass(slots=True)
class _Lookup:
    """A key that is being looked up."""

    found: anyio.Event = field(default_factory=anyio.Event)
    reply: Reply | None = None


@dataclass(slots=True)
class _FoundReplies:
    """The replies found, and those whose recorded last use is out of date."""

    replies: dict[bytes, Reply] = field(default_factory=dict)
    touched: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class _Changes:
    """Changes that wait for a commit."""

    replies: dict[bytes, Reply] = field(default_factory=dict)
    touched: list[bytes] = field(default_factory=list)
    gone: list[bytes] = field(default_factory=list)

    def after(self, before: _Changes) -> _Changes:
        """Both combined; this one is the later."""
        kept = {key: reply for key, reply in before.replies.items() if key not in self.gone}
        return _Changes(kept | self.replies, before.touched + self.touched, before.gone + self.gone)


def packed(reply: Reply) -> bytes:
    """A reply as it is stored: its metadata as a line of JSON, then its body; compressed."""
    known, body = encode(reply)
    return zlib.compress(b"%b\n%b" % (known, body or b""), 1)


def unpacked(stored: bytes) -> Reply:
    """The reply that `packed` wrote. Raises an error of zlib, JSON or the codec when it is damaged."""
    known, _, body = zlib.decompress(stored).partition(b"\n")
    reply = decode(known, body)
    if not isinstance(reply, Reply):
        raise TypeError("an entry without a body is not a reply")
    return reply


def _slices(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for start in range(0, len(items), _AT_ONCE):
        yield items[start : start + _AT_ONCE]


def _marks(count: int) -> str:
    return ", ".join("?" * count)
