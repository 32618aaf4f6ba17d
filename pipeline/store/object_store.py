"""Objects in Cloud Storage, S3 and Azure Blob Storage: read by ranges, written with conditions. All that knows obstore.

Every request is pinned to a version where one is given, so that nobody reads two halves of two objects. obstore is
loaded by the first store that is opened. A store must not be used before this process forks another one: in the child,
every later call of obstore would wait for ever. Opening one is harmless.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, cast

from pipeline.faults import Broken, ProviderUnusable, UsageError
from pipeline.store.address import STORES, Address
from pipeline.store.retries import FIRST_RETRIES_S, RETRIES_S, Retries, Timing, answered_with, is_passing
from pipeline.text import excerpt, one_line

Only = str | Literal["new"] | None  # noqa: PYI051 - says which text is special
"""When an object is written: `new` if there is none; a version if that is the present one; None always."""

_TOKEN_SHOWN_S = 1.0
"""How long obstore believes that a token lives: it then asks for each request, and a renewed token counts at once."""

_MOST_QUOTED = 300

_PIECE_BYTES, _MOST_PIECES = 8 << 20, 9_000
"""Of an upload in pieces; S3 takes 10,000."""

_NO_BUCKET = re.compile(r"<Code>(NoSuchBucket|ContainerNotFound)<")

_Result = TypeVar("_Result")


class StoreAccess(Protocol):
    """What gives access to object stores: Google's tokens, ways through the network, and redaction."""

    def endpoint(self, scheme: str) -> str | None:
        """The base URL of the store of a scheme; None for its provider's own.

        Raises `UsageError` where a Google token may not be sent to the one that the environment names.
        """

    def client_options(self, scheme: str) -> dict[str, Any]:
        """Proxy and certificate authorities for requests to that store, as obstore's `ClientConfig`."""

    def google_headers(self) -> Mapping[str, str]:
        """Headers of requests to Cloud Storage, beside the token."""

    def google_token(self) -> str:
        """A Google token that is valid now; waits for one if necessary. Raises `ProviderUnusable`, `UsageError`."""

    def renew(self, rejected: str) -> None:
        """Has a rejected token replaced: `google_token` returns another one, or raises."""

    def redact(self, text: str) -> str:
        """A foreign text without any secret."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object. `version` is empty where a listing does not tell it, as that of Cloud Storage; `head` always does."""

    key: str
    size: int
    version: str
    modified: datetime


class StoreConflict(Exception):
    """The object is not in the state that the request needs."""


class NotThere(StoreConflict):
    """There is no object of this key."""


class AlreadyThere(StoreConflict):
    """There is an object of this key. After a lost response, it may be the one that was written."""


class Changed(StoreConflict):
    """The object does not have, or no longer has, the version of the request."""


def open_store(bucket: Address, access: StoreAccess) -> ObjectStore:
    """The store of an address's bucket; its key does not count. Sends nothing.

    Raises `UsageError` without obstore, and as `StoreAccess.endpoint` does.
    """
    try:
        import obstore  # noqa: F401 - to say how to get it
    except ImportError:
        raise UsageError(f"{bucket.scheme}:// needs the extra `cloud`: pip install 'vertex-pipeline[cloud]'") from None
    return ObjectStore(bucket, access)


class ObjectStore:
    """One bucket. Its methods block, and may be called from any thread.

    Requests are repeated on 429, 5xx and lost connections, for 3 minutes, then raise `Broken`. They raise
    `ProviderUnusable` where access is denied, `UsageError` for a bucket that does not exist. No message has a secret.
    """

    def __init__(self, bucket: Address, access: StoreAccess, timing: Timing | None = None) -> None:
        self.bucket = Address(bucket.scheme, bucket.bucket, "")
        self._access = access
        self._timing = timing or Timing()
        self._answered = False
        self._token = ""
        self._store: Any = self._opened()

    def _opened(self) -> Any:
        return _MAKERS[self.bucket.scheme](self.bucket.bucket, self._access, lambda: self._token)

    def head(self, key: str) -> ObjectInfo:
        """The object of a key, with its version. Raises `NotThere`."""
        import obstore

        return self._info(self._tried(key, lambda: obstore.head(self._store, key)))

    def listing(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """The objects in the folder `prefix` and below, in no promised order; all of the bucket for an empty one."""
        import obstore
        from obstore.exceptions import BaseError

        stream: Iterator[Any] | None = None
        last: str | None = None

        def following() -> Any:
            nonlocal stream
            stream = stream or iter(obstore.list(self._store, prefix.rstrip("/") or None, offset=last, chunk_size=1000))
            try:
                return next(stream, [])
            except BaseError:
                stream = None  # one that has failed would end as if this were all
                raise

        while page := self._tried(prefix, following):
            yield from map(self._info, page)
            last = page[-1]["path"]

    def get(self, key: str, *, version: str | None = None, start: int = 0, length: int | None = None) -> bytes:
        """Bytes of an object from `start`: `length` of them, or all. They must exist.

        Raises `Changed` if it does not have the version, `NotThere` if none was given and there is no object.
        """
        import obstore

        if length == 0:
            return b""
        options: dict[str, Any] = {} if version is None else self._pinned(version)
        if length is not None:
            options["range"] = (start, start + length)
        elif start:
            options["range"] = {"offset": start}

        def read() -> bytes:
            return bytes(obstore.get(self._store, key, options=cast("Any", options)).bytes())

        return self._tried(key, read, version)

    def put(self, key: str, content: bytes | Path, *, only: Only = None) -> str:
        """Writes an object as a whole, or nothing, and returns its version.

        Raises `AlreadyThere` or `Changed` if the condition does not hold: see `Only`.
        """
        import obstore

        mode: Any = {None: "overwrite", "new": "create"}.get(only) or self._update(str(only))
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        piece = max(_PIECE_BYTES, size // _MOST_PIECES)  # only without a condition; otherwise it is one request
        put = lambda: obstore.put(self._store, key, content, mode=mode, chunk_size=piece)  # noqa: E731 - tried below
        result = self._tried(key, put, only)
        return self._version(result)

    def delete(self, key: str) -> None:
        """Removes an object; there may be none."""
        import obstore

        try:
            self._tried(key, lambda: obstore.delete(self._store, key))
        except NotThere:
            return

    def reader(self, key: str, version: str, size: int, *, ahead: int = 0) -> ObjectFile:
        """A version of an object as a file; each read is a request, and fetches `ahead` bytes or more."""
        return ObjectFile(self, key, version, size, ahead=ahead)

    def address_of(self, key: str) -> str:
        """The address of an object, as people write it."""
        return f"{self.bucket}{key}"

    def _info(self, found: Mapping[str, Any]) -> ObjectInfo:
        return ObjectInfo(found["path"], found["size"], self._version(found), found["last_modified"])

    def _version(self, found: Mapping[str, Any]) -> str:
        return str(found.get("version" if self.bucket.scheme == "gs" else "e_tag") or "")

    def _pinned(self, version: str) -> dict[str, Any]:
        return {"version": version} if self.bucket.scheme == "gs" else {"if_match": version}

    def _update(self, version: str) -> dict[str, str]:
        return {"version" if self.bucket.scheme == "gs" else "e_tag": version}

    def _tried(self, key: str, request: Callable[[], _Result], version: str | None = None) -> _Result:
        """The result of a request; a rejected token is renewed once. `version` is what the request is pinned to.

        What fails in passing is repeated here and not by obstore, whose waits of a tenth of a second hardly grow.
        """
        from obstore.exceptions import BaseError

        retries, renewed = Retries(self._timing), False
        while True:
            if self.bucket.scheme == "gs":
                self._token = self._access.google_token()
            token = self._token
            try:
                result = request()
            except (BaseError, OSError, ValueError) as error:
                passing, status = is_passing(error), _status_of(error)
                self._answered = self._answered or not passing or answered_with(error) is not None
                if passing and retries.again(RETRIES_S if self._answered else FIRST_RETRIES_S):
                    continue
                if status != 401 or renewed or not token:
                    raise self._translated(self.address_of(key), error, version) from None
            else:
                self._answered = True
                return result
            renewed = True
            self._access.renew(token)
            self._store = self._opened()  # the present one keeps the rejected token for another 0.1 s

    def _translated(self, place: str, error: Exception, version: str | None) -> Exception:
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        match error:
            case _ if _NO_BUCKET.search(str(error)):
                return UsageError(f"{self.bucket} does not exist: correct the address, or create the bucket")
            case FileNotFoundError() if version not in (None, "new"):
                return Changed(f"{place} was replaced or deleted")
            case FileNotFoundError():
                return NotThere(f"{place} does not exist")
            case AlreadyExistsError():
                return AlreadyThere(f"{place} exists already")
            case PreconditionError():
                return Changed(f"{place} was replaced or deleted")
        if status := _status_of(error):
            remedy = "the permissions of these credentials" if status == 403 else "the credentials"
            return ProviderUnusable(
                f"{place}: access is denied, check {remedy}: {self._said(error)}", http_status=status
            )
        return Broken(f"{place}: {STORES[self.bucket.scheme]} cannot be used: {self._said(error)}")

    def _said(self, error: Exception) -> str:
        """What went wrong, on one line without any secret and without the dump of the error that obstore appends."""
        return excerpt(one_line(self._access.redact(str(error).partition("\n\n")[0])), _MOST_QUOTED)


class ObjectFile(io.RawIOBase):
    """One version of an object as a file to read. Raises what `ObjectStore.get` raises."""

    def __init__(self, store: ObjectStore, key: str, version: str, size: int, *, ahead: int) -> None:
        super().__init__()
        self._store = store
        self._key = key
        self._version = version
        self._size = size
        self._ahead = ahead
        self._at = 0
        self._start = 0
        self._block = b""

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def size(self) -> int:
        """Bytes of the object."""
        return self._size

    def tell(self) -> int:
        """The position in bytes."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves the position; sends nothing."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, count: int = -1, /) -> bytes:
        """The next `count` bytes, fewer only at the end; all that are left for a negative count."""
        left = max(0, self._size - self._at)
        count = left if count is None or count < 0 else min(count, left)
        if not self._start <= self._at <= self._at + count <= self._start + len(self._block):
            self._fetch(min(left, max(count, self._ahead)))
        found = self._block[self._at - self._start : self._at - self._start + count]
        self._at += len(found)
        return found

    def readinto(self, buffer: Any, /) -> int:
        """As `read`, into a buffer; returns the number of bytes."""
        found = self.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def _fetch(self, count: int) -> None:
        self._block = b""  # before the next one is here: one block is in memory, not two
        self._block = self._store.get(self._key, version=self._version, start=self._at, length=count)
        self._start = self._at


def _status_of(error: Exception) -> int | None:
    """401 or 403; None for any other error. For listings, only the text of obstore's error tells."""
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    if isinstance(error, UnauthenticatedError | PermissionDeniedError):
        return 401 if isinstance(error, UnauthenticatedError) else 403
    found = answered_with(error)
    return found if found in (401, 403) else None


_ONE_TRY = {"max_retries": 0, "retry_timeout": timedelta(seconds=RETRIES_S)}


def _client_options(scheme: str, access: StoreAccess, endpoint: str | None) -> dict[str, Any]:
    return access.client_options(scheme) | {"allow_http": bool(endpoint and endpoint.startswith("http://"))}


def _google(bucket: str, access: StoreAccess, token: Callable[[], str]) -> Any:
    from obstore.store import GCSStore

    # Said even where it is the default: no other setting may send the token elsewhere.
    endpoint = access.endpoint("gs") or "https://storage.googleapis.com"

    def credential() -> Any:
        return {"token": token(), "expires_at": datetime.now(UTC) + timedelta(seconds=_TOKEN_SHOWN_S)}

    options = _client_options("gs", access, endpoint)
    if headers := access.google_headers():
        options["default_headers"] = dict(headers)
    return GCSStore(
        bucket,
        config={"base_url": endpoint},
        credential_provider=credential,
        client_options=cast("Any", options),
        retry_config=cast("Any", _ONE_TRY),
    )


def _amazon(bucket: str, access: StoreAccess, _: Callable[[], str]) -> Any:
    from obstore.store import S3Store

    endpoint = access.endpoint("s3")
    options = _client_options("s3", access, endpoint)
    config: Any = {} if endpoint is None else {"endpoint": endpoint}
    return S3Store(bucket, config=config, client_options=cast("Any", options), retry_config=cast("Any", _ONE_TRY))


def _azure(bucket: str, access: StoreAccess, _: Callable[[], str]) -> Any:
    from obstore.store import AzureStore

    endpoint = access.endpoint("az")
    options = _client_options("az", access, endpoint)
    config: Any = {} if endpoint is None else {"use_emulator": True}
    return AzureStore(bucket, config=config, client_options=cast("Any", options), retry_config=cast("Any", _ONE_TRY))


_MAKERS: Mapping[str, Callable[[str, StoreAccess, Callable[[], str]], Any]] = {
    "gs": _google,
    "s3": _amazon,
    "az": _azure,
}
