"""The objects of some buckets, in memory: generations, preconditions, listings and uploads in parts.

Every method either happens as a whole or raises `RefusedRequest` and changes nothing. What is refused, and with which
code, follows https://cloud.google.com/storage/docs/xml-api/reference-status.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

LEAST_PART = 5 << 20
"""Bytes that every part of an upload but the last must have."""

MOST_LISTED = 1000


class RefusedRequest(Exception):
    """A request that is refused: HTTP status, code and message of the XML API."""

    def __init__(self, http_status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.http_status = http_status
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as it is stored. `modified` is Unix time in seconds; a new content gets a larger generation."""

    key: str
    data: bytes = field(repr=False)
    generation: int
    modified: float
    etag: str
    """In quotes, as in headers: the MD5 of the content, or another text for one that was uploaded in parts."""
    headers: Mapping[str, str]
    """`Content-Type` and the like, and `x-goog-meta-*`, as they were sent."""

    @property
    def md5(self) -> bytes | None:
        """Of the content, from its etag: not computed, as a large object is read by many requests. None for parts."""
        return None if "-" in self.etag else bytes.fromhex(self.etag.strip('"'))


@dataclass(frozen=True, slots=True)
class Listing:
    """One page of a listing. `token` continues it; None on the last page."""

    objects: tuple[StoredObject, ...]
    prefixes: tuple[str, ...]
    token: str | None


@dataclass(slots=True)
class _Upload:
    bucket: str
    key: str
    headers: Mapping[str, str]
    parts: dict[int, bytes] = field(default_factory=dict)


@dataclass(slots=True)
class _Bucket:
    objects: dict[str, StoredObject] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    """In order, for listings."""


class Buckets:
    """The buckets of these names; there are no others. `clock` returns Unix time in seconds."""

    def __init__(self, names: Iterable[str], clock: Callable[[], float] = time.time) -> None:
        self._buckets = {name: _Bucket() for name in names}
        self._uploads: dict[str, _Upload] = {}
        self._clock = clock
        self._generation = 0

    def get(self, bucket: str, key: str, generation: int | None = None) -> StoredObject:
        """The object, or 404; also if its generation is another one by now, since old ones are not kept."""
        found = self._in(bucket).objects.get(key)
        if found is None or generation not in (None, found.generation):
            raise RefusedRequest(404, "NoSuchKey", "The specified key does not exist.")
        return found

    def put(
        self, bucket: str, key: str, data: bytes, headers: Mapping[str, str], match: int | None = None
    ) -> StoredObject:
        """Stores an object whose generation before must be `match`, if given; 0 stands for no object."""
        self._require(bucket, key, match)
        return self._stored(bucket, key, data, headers, _etag(data))

    def copy(self, source: tuple[str, str], bucket: str, key: str, match: int | None = None) -> StoredObject:
        """Copies an object, with the same condition on its target as `put`."""
        original = self.get(*source)
        self._require(bucket, key, match)
        return self._stored(bucket, key, original.data, original.headers, original.etag)

    def delete(self, bucket: str, key: str, match: int | None = None) -> None:
        """Removes an object, with the same condition as `put`."""
        self._require(bucket, key, match)
        self.get(bucket, key)
        found = self._in(bucket)
        del found.objects[key]
        del found.keys[bisect_left(found.keys, key)]

    def list(
        self, bucket: str, *, prefix: str = "", delimiter: str = "", after: str = "", most: int = MOST_LISTED
    ) -> Listing:
        """The objects whose keys begin with `prefix` and come after `after`, in order.

        With a delimiter, keys that hold it behind the prefix are given as one common prefix each.
        """
        objects: list[StoredObject] = []
        prefixes: list[str] = []
        for name, found in self._entries(bucket, prefix, delimiter, after):
            if len(objects) + len(prefixes) == min(most, MOST_LISTED):
                last = max([*(found.key for found in objects[-1:]), *prefixes[-1:]], default=after)
                return Listing(tuple(objects), tuple(prefixes), last)
            if found is None:
                prefixes.append(name)
            else:
                objects.append(found)
        return Listing(tuple(objects), tuple(prefixes), None)

    def begin(self, bucket: str, key: str, headers: Mapping[str, str]) -> str:
        """Begins an upload in parts and returns its id."""
        self._in(bucket)
        upload = uuid.uuid4().hex
        self._uploads[upload] = _Upload(bucket, key, headers)
        return upload

    def part(self, bucket: str, key: str, upload: str, number: int, data: bytes) -> str:
        """Adds a part, or replaces it, and returns its etag."""
        if not 1 <= number <= 10_000:
            raise RefusedRequest(400, "InvalidArgument", "The part number must be from 1 to 10000.")
        self._upload(bucket, key, upload).parts[number] = data
        return _etag(data)

    def complete(
        self, bucket: str, key: str, upload: str, parts: Mapping[int, str], match: int | None = None
    ) -> StoredObject:
        """Makes an object of the parts with these numbers and etags, with the same condition as `put`."""
        found = self._upload(bucket, key, upload)
        if not parts or any(_etag(found.parts.get(number, b"")) != etag for number, etag in parts.items()):
            raise RefusedRequest(400, "InvalidPart", "One or more of the specified parts could not be found.")
        chosen = [found.parts[number] for number in sorted(parts)]
        if any(len(data) < LEAST_PART for data in chosen[:-1]):
            raise RefusedRequest(400, "EntityTooSmall", "Your proposed upload is smaller than the minimum object size.")
        self._require(bucket, key, match)
        del self._uploads[upload]
        data = b"".join(chosen)
        of_parts = "".join(_etag(part) for part in chosen)
        etag = f'"{hashlib.sha256(of_parts.encode()).hexdigest()[:32]}-{len(chosen)}"'
        return self._stored(bucket, key, data, found.headers, etag)

    def abort(self, bucket: str, key: str, upload: str) -> None:
        """Forgets an upload and its parts."""
        self._upload(bucket, key, upload)
        del self._uploads[upload]

    def uploads(self) -> int:
        """The number of uploads that are neither completed nor aborted."""
        return len(self._uploads)

    def _in(self, bucket: str) -> _Bucket:
        found = self._buckets.get(bucket)
        if found is None:
            raise RefusedRequest(404, "NoSuchBucket", "The specified bucket does not exist.")
        return found

    def _upload(self, bucket: str, key: str, upload: str) -> _Upload:
        found = self._uploads.get(upload)
        if found is None or (found.bucket, found.key) != (bucket, key):
            raise RefusedRequest(404, "NoSuchUpload", "The requested upload was not found.")
        return found

    def _require(self, bucket: str, key: str, match: int | None) -> None:
        found = self._in(bucket).objects.get(key)
        if match is not None and match != (found.generation if found else 0):
            raise unmet()

    def _stored(self, bucket: str, key: str, data: bytes, headers: Mapping[str, str], etag: str) -> StoredObject:
        now = self._clock()
        self._generation = max(self._generation + 1, int(now * 1e6))
        place = self._in(bucket)
        if key not in place.objects:
            insort(place.keys, key)
        place.objects[key] = StoredObject(key, data, self._generation, now, etag, dict(headers))
        return place.objects[key]

    def _entries(
        self, bucket: str, prefix: str, delimiter: str, after: str
    ) -> Iterator[tuple[str, StoredObject | None]]:
        """Keys with their objects, and common prefixes, all of them after `after`."""
        place = self._in(bucket)
        at = bisect_left(place.keys, max(prefix, after))
        while at < len(place.keys) and (key := place.keys[at]).startswith(prefix):
            cut = key.find(delimiter, len(prefix)) if delimiter else -1
            name = key if cut < 0 else key[: cut + len(delimiter)]
            if name > after:
                yield name, place.objects[key] if cut < 0 else None
            # All keys below a common prefix are behind it at once.
            at = at + 1 if cut < 0 else bisect_left(place.keys, name + "\U0010ffff", at)


def unmet() -> RefusedRequest:
    """412: a precondition does not hold."""
    return RefusedRequest(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold.")


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'
