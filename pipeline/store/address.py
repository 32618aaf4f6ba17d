"""What a text names: a path on this machine, or an address in an object store (`gs://bucket/key`).

An address has a scheme and `://`. Everything else is a path: `out:1/x` is in a folder whose name has a colon. Only for
the schemes that are known one slash is enough: `Path` makes `gs:/bucket` of `gs://bucket`, and a folder `gs:` is never
what was meant.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from pipeline.faults import UsageError

STORES = {"gs": "Google Cloud Storage", "s3": "Amazon S3", "az": "Azure Blob Storage"}
"""The object stores, by the scheme of their addresses."""

_ADDRESS = re.compile(rf"([A-Za-z][A-Za-z0-9+.-]*)://(.*)|({'|'.join(STORES)}|file):/(.*)", re.DOTALL)

_COPIED_WITH = {
    "gs": "`gcloud storage cp`",
    "gcs": "`gcloud storage cp`",
    "s3": "`aws s3 cp`",
    "s3a": "`aws s3 cp`",
    "az": "`azcopy copy`",
    "http": "`curl -O`",
    "https": "`curl -O`",
    "hf": "`hf download`",
}


@dataclass(frozen=True, slots=True)
class Address:
    """A place in an object store. `key` is that of an object or a prefix of several; empty for the whole bucket."""

    scheme: str
    """One of `STORES`."""
    bucket: str
    key: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.key}"

    @property
    def name(self) -> str:
        """The last segment of the key."""
        return self.key.rpartition("/")[2]

    @property
    def folder(self) -> Address:
        """The address of the folder that the object is in, without a slash at its end."""
        return Address(self.scheme, self.bucket, self.key.rpartition("/")[0])

    def at(self, *names: str) -> Address:
        """The address of what is below this folder."""
        return Address(self.scheme, self.bucket, "/".join(filter(None, [self.key.rstrip("/"), *names])))


def place_of(text: str) -> Path | Address:
    """The place that a text names; `file://` names a path of this machine, and may be percent-encoded.

    Raises `UsageError` for an unknown scheme, an address without a bucket, and a `file://` of another machine.
    """
    found = _ADDRESS.fullmatch(text)
    if found is None:
        return Path(text)
    scheme, rest = (found[1].lower(), found[2]) if found[1] else (found[3], found[4])
    if scheme == "file":
        return _file(text, rest if found[1] else f"/{rest}")
    if scheme not in STORES:
        raise UsageError(f"{text!r} begins with {scheme}://, which is not supported: {_remedy(scheme)}")
    bucket, _, key = rest.partition("/")
    if not bucket:
        raise UsageError(f"{text!r} names no bucket: write it as in {scheme}://BUCKET/KEY")
    return Address(scheme, bucket, key)


def local_path(place: str | Path) -> Path:
    """The path on this machine that a text, or the path made of it, names.

    Raises `UsageError` as `place_of` does, and for an address in an object store.
    """
    found = place_of(str(place))
    if isinstance(found, Address):
        raise unsupported(found)
    return found


def unsupported(address: Address) -> UsageError:
    """That an address cannot be used in its place, where paths can: only inputs of some commands may be addresses."""
    return UsageError(f"{str(address)!r}: {address.scheme}:// is not supported yet: {_remedy(address.scheme)}")


def is_address(place: object) -> bool:
    """Whether the text of a place is an address in an object store."""
    return isinstance(place, Address) or (":/" in str(place) and isinstance(place_of(str(place)), Address))


def local_text(text: str) -> str:
    """As `local_path`, for a text that may be more than a path (`job.py:NAME`); only a URL is changed."""
    path = local_path(text)
    return text if _ADDRESS.fullmatch(text) is None else str(path)


def _file(text: str, rest: str) -> Path:
    path = rest.removeprefix("localhost") if rest.startswith("localhost/") else rest
    if not path.startswith("/"):
        raise UsageError(
            f"{text!r} names a file of another machine: a path of this one has three slashes (file:///data)"
        )
    return Path(unquote(path))


def _remedy(scheme: str) -> str:
    tool = _COPIED_WITH.get(scheme, "the tool of its store")
    return f"use a local path, and copy the files to or from it with {tool}"
