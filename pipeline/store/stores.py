"""The object stores of a process: one for each bucket, opened when the first address of the bucket is read."""

from __future__ import annotations

import io
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from contextvars import ContextVar
from typing import IO, Any

from pipeline.faults import Broken
from pipeline.store.address import Address, place_of, unsupported
from pipeline.store.object_store import ObjectStore, StoreAccess, open_store

_BLOCK_BYTES = 8 << 20
_COPIES = 4
"""Objects that are kept on disk at once, by each process."""


class Stores:
    """The stores that one access opens, and copies of objects on disk. May be used from any thread."""

    def __init__(self, access: StoreAccess) -> None:
        self._access = access
        self._opened: dict[tuple[str, str], ObjectStore] = {}
        self._copies: dict[tuple[str, str], IO[bytes]] = {}
        self._lock = threading.Lock()
        self._copying = threading.Lock()

    def of(self, address: Address) -> ObjectStore:
        """The store of an address's bucket. Raises as `open_store` does."""
        bucket = address.scheme, address.bucket
        with self._lock:
            if bucket not in self._opened:
                self._opened[bucket] = open_store(address, self._access)
            return self._opened[bucket]

    def copy(self, address: Address, version: str, size: int) -> Copy:
        """A copy of an object on disk; the oldest of several is given up for the next one."""
        wanted = str(address), version
        with self._copying:
            if wanted not in self._copies:
                while len(self._copies) >= _COPIES:
                    self._copies.pop(next(iter(self._copies))).close()
                self._copies[wanted] = self._copied(address, version, size)
            return Copy(os.dup(self._copies[wanted].fileno()))

    def close(self) -> None:
        """Deletes the copies."""
        for copy in self._copies.values():
            copy.close()

    def _copied(self, address: Address, version: str, size: int) -> IO[bytes]:
        copy = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`; it has no name, so no crash leaves it
        try:
            with self.of(address).reader(address.key, version, size, ahead=_BLOCK_BYTES) as source:
                while block := source.read(_BLOCK_BYTES):
                    copy.write(block)
            copy.flush()
        except BaseException as error:
            with suppress(OSError):  # a full disk says so again
                copy.close()
            if isinstance(error, OSError):
                reason = error.strerror or str(error)
                raise Broken(f"no room for a copy of {address}: {reason}; set TMPDIR to another disk") from error
            raise
        return copy


class Copy(io.RawIOBase):
    """A copy of an object as a file to read, at a position of its own."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._at = 0

    def readable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves the position, which is counted from the start. Raises `ValueError` for any other `whence`."""
        if whence != io.SEEK_SET:
            raise ValueError("a copy is sought from its start")
        self._at = offset
        return offset

    def readinto(self, buffer: Any, /) -> int:
        """Reads into a buffer; returns the number of bytes, 0 at the end."""
        found = os.pread(self._descriptor, len(buffer), self._at)
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)

    def close(self) -> None:
        """Closes this file, not the copy."""
        if not self.closed:
            os.close(self._descriptor)
        super().close()


# A variable of the context, as of `decimal`: an input is read by its path in a dozen functions that know nothing of
# stores, and none of them has a reason to choose another access than the one of its command.
_STORES: ContextVar[Stores | None] = ContextVar("stores", default=None)


@contextmanager
def opened_stores(access: StoreAccess) -> Iterator[Stores]:
    """Lets everything in the block, and the threads that anyio starts for it, read addresses with this access."""
    with closing(Stores(access)) as stores:
        token = _STORES.set(stores)
        try:
            yield stores
        finally:
            _STORES.reset(token)


def store_at(place: str) -> tuple[ObjectStore, str]:
    """The store and the key of an address. Raises `UsageError` outside of `opened_stores`, and as `open_store` does."""
    address, stores = _found(place)
    return stores.of(address), address.key


def copy_at(place: str, version: str, size: int) -> Copy:
    """A copy of an object on disk; see `Stores.copy`. Raises as `store_at` does."""
    address, stores = _found(place)
    return stores.copy(address, version, size)


def _found(place: str) -> tuple[Address, Stores]:
    address, stores = place_of(place), _STORES.get()
    if not isinstance(address, Address):
        raise TypeError(f"{place!r} is a path")
    if stores is None:
        raise unsupported(address)
    return address, stores
