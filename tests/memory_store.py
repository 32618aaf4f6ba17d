"""An object store in memory with the conditions of Cloud Storage, a clock of its own, and a death at any request."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar, cast

import pytest

from pipeline.emulator.bucket.objects import Buckets, RefusedRequest, StoredObject
from pipeline.storage.remote.objects import OutputObjects
from pipeline.store.address import Address
from pipeline.store.object_store import AlreadyThere, Changed, NotThere, ObjectInfo, ObjectStore

BUCKET = "bucket"

T = TypeVar("T")


DIES_IN_THREADS = pytest.mark.filterwarnings(
    "ignore:(?s)Exception in thread .*Killed:pytest.PytestUnhandledThreadExceptionWarning"
)
"""For tests that kill at a request: it may be one that a thread beside the run makes."""


class Killed(BaseException):
    """The process is gone: nothing that it does afterwards reaches the store."""


class Clock:
    """Unix time, which stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class MemoryStore:
    """The bucket as one process sees it. `dies_at` is the number of the request at which it is killed.

    `answers_lost`: that request still happens.
    """

    def __init__(self, buckets: Buckets, *, dies_at: int | None = None, answers_lost: bool = False) -> None:
        self._buckets = buckets
        self._dies_at = dies_at
        self._answers_lost = answers_lost
        self._lock = threading.Lock()
        self.requests: list[str] = []
        self.before: Callable[[str], None] = lambda _: None
        """Called with the text of each request, before it."""

    @property
    def dead(self) -> bool:
        return self._dies_at is not None and len(self.requests) >= self._dies_at

    def objects(self, key: str = "out") -> OutputObjects:
        return OutputObjects(cast("ObjectStore", self), Address("gs", BUCKET, key))

    def head(self, key: str) -> ObjectInfo:
        return self._request(f"HEAD {key}", lambda: _info(self._buckets.get(BUCKET, key)))

    def listing(self, prefix: str = "") -> Iterator[ObjectInfo]:
        folder = f"{prefix.rstrip('/')}/" if prefix else ""
        page = self._request(f"LIST {folder}", lambda: self._buckets.list(BUCKET, prefix=folder))
        assert page.token is None
        # As Cloud Storage: a listing has no versions.
        return (ObjectInfo(found.key, found.size, "", found.modified) for found in map(_info, page.objects))

    def get(self, key: str, *, version: str | None = None, start: int = 0, length: int | None = None) -> bytes:
        def read() -> bytes:
            found = self._buckets.get(BUCKET, key, None if version is None else int(version))
            return found.data[start : None if length is None else start + length]

        try:
            return self._request(f"GET {key}", read)
        except NotThere:
            raise (NotThere if version is None else Changed)(key) from None

    def put(self, key: str, content: bytes | Path, *, only: str | None = None) -> str:
        data = content.read_bytes() if isinstance(content, Path) else content
        match = None if only is None else 0 if only == "new" else int(only)

        def write() -> str:
            try:
                return str(self._buckets.put(BUCKET, key, data, {}, match).generation)
            except RefusedRequest:
                raise (AlreadyThere if only == "new" else Changed)(key) from None

        return self._request(f"PUT {key}", write)

    def delete(self, key: str) -> None:
        try:
            self._request(f"DELETE {key}", lambda: self._buckets.delete(BUCKET, key))
        except NotThere:
            return

    def _request(self, what: str, do: Callable[[], T]) -> T:
        self.before(what)
        with self._lock:
            if self.dead:
                raise Killed(what)
            self.requests.append(what)
            last = len(self.requests) == self._dies_at
            if last and not self._answers_lost:
                raise Killed(what)
            try:
                result = do()
            except RefusedRequest:
                raise NotThere(what) from None
            if last:
                raise Killed(what)
            return result


def contents(buckets: Buckets) -> dict[str, bytes]:
    """Every object, by its key."""
    return {found.key: found.data for found in buckets.list(BUCKET).objects}


def _info(found: StoredObject) -> ObjectInfo:
    return ObjectInfo(found.key, len(found.data), str(found.generation), datetime.fromtimestamp(found.modified, UTC))
