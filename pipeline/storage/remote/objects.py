"""The objects of one output: their names, and writes that are done at most once, whatever answers are lost."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data import PARTS
from pipeline.faults import Broken
from pipeline.storage.run_folder import BATCH_FILES, PLAN, REPLIES, RUN
from pipeline.store.object_store import AlreadyThere, Changed, NotThere

if TYPE_CHECKING:
    from pipeline.store.address import Address
    from pipeline.store.object_store import ObjectInfo, ObjectStore

PLAN_NAME = f"{RUN}/{PLAN}"
LEASE = f"{RUN}/lease.json"
LEDGER: str = f"{RUN}/ledger.json"
SHARDS = f"{RUN}/shards/"
LEDGERS = f"{RUN}/ledgers/"
RECORDS = f"{RUN}/parts/"
INTENTS = f"{RUN}/intents/"
KEPT_REPLIES = f"{RUN}/{REPLIES}/"
SEGMENTS = f"{RUN}/journal/"
BATCH = f"{RUN}/{BATCH_FILES}/"
DATA = f"{PARTS}/"
"""Names below the address of the output. Those that end with a slash are prefixes of several objects."""

_TRIES = 5  # each lost to another writer; our own write an object every few seconds

_PIECE = 8 << 20
"""Bytes of an object that are in memory at a time."""

_PERMISSIONS = {
    "gs": "a run needs to create, get, list and delete objects (the role Storage Object User)",
    "s3": "a run needs s3:PutObject, s3:GetObject, s3:DeleteObject, and s3:ListBucket of the bucket",
    "az": "a run needs the role Storage Blob Data Contributor",
}


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of an object, and the version that they are of."""

    data: bytes
    info: ObjectInfo


class OutputObjects:
    """The objects below one address. Names are relative to it. All methods raise what the store does."""

    def __init__(self, store: ObjectStore, address: Address) -> None:
        self._store = store
        self._prefix = f"{address.key.strip('/')}/" if address.key.strip("/") else ""
        self.address = f"{address.scheme}://{address.bucket}/{self._prefix}".rstrip("/")
        self.permissions = _PERMISSIONS[address.scheme]

    def head(self, name: str) -> ObjectInfo | None:
        """Size, version and time of an object; None if there is none."""
        try:
            return self._named(self._store.head(self._prefix + name))
        except NotThere:
            return None

    def read(self, name: str) -> Content | None:
        """The whole of one version of a small object; None if there is none.

        Raises `Broken` if it is replaced again and again while it is read.
        """
        for _ in range(_TRIES):
            if (info := self.head(name)) is None:
                return None
            with suppress(Changed, NotThere):  # replaced between the two requests: the new one is read
                return Content(b"".join(self._pieces(info)), info)
        raise Broken(f"{self.address}/{name} was replaced {_TRIES} times while it was being read; try again")

    def listing(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """The objects whose names begin with `prefix`, in order."""
        return (self._named(info) for info in self._store.listing(self._prefix + prefix))

    def create(self, name: str, content: bytes | Path) -> str:
        """Writes an object that is not there yet, and returns its version.

        Raises `AlreadyThere` if there is one with other bytes. One with the same bytes is ours: the answer to an
        earlier try was lost.
        """
        try:
            return self._store.put(self._prefix + name, content, only="new")
        except AlreadyThere:
            info = self.head(name)
            if info is None or not self._holds(info, content):
                raise
            return str(info.version)

    def replace(self, name: str, content: bytes | Path, version: str | None) -> str:
        """Writes an object in place of `version`, or where there is none, and returns its version.

        Raises `Changed` or `AlreadyThere` if another writer came first.
        """
        if version is None:
            return self.create(name, content)
        try:
            return self._store.put(self._prefix + name, content, only=version)
        except Changed:
            info = self.head(name)
            if info is None or not self._holds(info, content):
                raise
            return str(info.version)

    def remove(self, name: str) -> None:
        """Removes an object, if it is there."""
        self._store.delete(self._prefix + name)

    def sha256(self, info: ObjectInfo) -> str:
        """The hash of one version of an object, read piece by piece."""
        digest = hashlib.sha256()
        for some in self._pieces(info):
            digest.update(some)
        return digest.hexdigest()

    def download(self, name: str, path: Path) -> None:
        """Writes an object to a file, which is complete or absent. Raises `NotThere`."""
        info = self._store.head(self._prefix + name)
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("wb") as file:
            file.writelines(self._pieces(self._named(info)))
        temporary.replace(path)

    def _pieces(self, info: ObjectInfo) -> Iterator[bytes]:
        for start in range(0, info.size, _PIECE):
            length = min(_PIECE, info.size - start)
            yield self._store.get(self._prefix + info.key, version=info.version, start=start, length=length)

    def _holds(self, info: ObjectInfo, content: bytes | Path) -> bool:
        """Whether an object has these bytes."""
        if isinstance(content, Path):
            if info.size != content.stat().st_size:
                return False
            with content.open("rb") as file:
                return all(file.read(len(some)) == some for some in self._pieces(info))
        return info.size == len(content) and b"".join(self._pieces(info)) == content

    def _named(self, info: ObjectInfo) -> ObjectInfo:
        return replace(info, key=info.key.removeprefix(self._prefix))


def record_name(chunk: int) -> str:
    """The object that says that a chunk is sealed, and by which files."""
    return f"{RECORDS}{chunk:06d}.json"


def intent_name(chunk: int, sha256: str) -> str:
    """The object that describes a part before it is uploaded; several machines may have tried."""
    return f"{INTENTS}{chunk:06d}-{sha256[:16]}.json"


def replies_name(chunk: int, sha256: str) -> str:
    """The kept replies of a part. They belong to these bytes of it: another machine may have had other replies."""
    return f"{KEPT_REPLIES}part-{chunk:06d}-{sha256[:16]}.replies"


def chunk_of(name: str) -> int:
    """The chunk of a record, an intent, or a part file, by its name."""
    digits = name.rpartition("/")[2].removeprefix("part-")
    return int(digits[: len(digits) - len(digits.lstrip("0123456789"))] or -1)


def submission_name(wave: int, number: int) -> str:
    """The object that says which rows a batch job has, written before the job is created."""
    return f"{BATCH}{wave:03d}-{number:04d}.json"


def ended_name(wave: int, number: int) -> str:
    """The object that says that a batch job's answers are recorded, or that the job came to nothing."""
    return f"{BATCH}{wave:03d}-{number:04d}.ended.json"


def is_submission(name: str) -> bool:
    """Whether this is the name of one of these two: inputs and answers of jobs lie beside them, in folders."""
    return name.endswith(".json") and "/" not in name.removeprefix(BATCH)
