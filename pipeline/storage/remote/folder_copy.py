"""A copy of an output folder in an object store: the workspace of an evaluation, which its commands read and write.

Unlike a run, which a bucket follows while it works, a folder is uploaded once a command has ended. An index, written
last, lists the files with their hashes: what it does not list is not there.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import orjson

from pipeline.faults import Broken
from pipeline.storage.durable import FILES
from pipeline.storage.remote.lease import RunLease
from pipeline.storage.remote.objects import PLAN_NAME, OutputObjects
from pipeline.storage.run_folder import ADDRESS, EVALUATION, LOCK, RUN, STATE, SUCCESS, TUNE, WORKERS
from pipeline.store.object_store import AlreadyThere, Changed, NotThere

INDEX = f"{EVALUATION}/index.json"

_OF_A_MACHINE = frozenset({ADDRESS, LOCK, STATE, TUNE, WORKERS, "answer_key.jsonl"})
"""Files of a run folder or a workspace that are of no use elsewhere."""


@dataclass(frozen=True, slots=True)
class FolderIndex:
    """The files of a copy, by name, each with its SHA-256. `id` is another one after each upload."""

    id: str
    files: Mapping[str, str]
    version: str

    @property
    def holds_the_run(self) -> bool:
        """Whether the whole output folder was copied, and not only the results of an evaluation of the run there."""
        return PLAN_NAME in self.files


def index_of(objects: OutputObjects) -> FolderIndex | None:
    """The index of the copy at an address; None if there is none. Raises `Broken` if it cannot be read."""
    found = objects.read(INDEX)
    if found is None:
        return None
    try:
        content = orjson.loads(found.data)
        files = {_safe(name): str(digest) for name, digest in content["files"].items()}
        return FolderIndex(str(content["id"]), files, found.info.version)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Broken(f"{objects.address}/{INDEX} is not an index of files ({error}): restore it") from error


def download(objects: OutputObjects, index: FolderIndex, folder: Path) -> None:
    """Writes the files of a copy into a folder. Raises `Broken` if one is not, or no longer, what the index says."""
    for name, digest in index.files.items():
        path = folder / name
        (FILES.make_private if RUN in path.parts else FILES.make_folder)(path.parent)
        try:
            objects.download(name, path)
        except NotThere as missing:
            raise Broken(f"{missing}: restore it, or evaluate again") from None
        if _sha256(path) != digest:
            raise Broken(f"{objects.address}/{name} was changed since it was uploaded: try again, or restore it")


def upload(
    objects: OutputObjects, lease: RunLease, folder: Path, before: FolderIndex | None, takes: Callable[[str], bool]
) -> FolderIndex:
    """Makes the copy hold what the folder does, as far as `takes` says for a name, and returns its new index.

    Whoever reads meanwhile finds files that are not those of the index, and says so. Raises `Broken` if another
    command has taken over the lease.
    """
    known = before.files if before else {}
    files = {name: _sha256(folder / name) for name in _names(folder) if takes(name)}
    if before is not None and files == known:
        return before
    lease.renew()
    if SUCCESS in known:
        objects.remove(SUCCESS)
    for name in sorted(files.keys() - {SUCCESS}):
        if known.get(name) != files[name]:
            lease.require()
            _put(objects, name, folder / name)
    index = FolderIndex(uuid.uuid4().hex, files, "")
    content = orjson.dumps({"id": index.id, "files": files}, option=orjson.OPT_INDENT_2)
    try:
        version = objects.replace(INDEX, content, before.version if before else None)
    except (Changed, AlreadyThere):
        lease.renew()
        raise Broken(f"{objects.address}/{INDEX} was written by somebody else meanwhile: try again") from None
    for name in sorted(known.keys() - files.keys()):
        lease.require()
        objects.remove(name)
    if SUCCESS in files:
        objects.create(SUCCESS, b"")
    return FolderIndex(index.id, files, version)


def _put(objects: OutputObjects, name: str, path: Path) -> None:
    found = objects.head(name)
    try:
        objects.replace(name, path, found.version if found else None)
    except (Changed, AlreadyThere):
        raise Broken(f"{objects.address}/{name} was written by somebody else meanwhile: try again") from None


def _names(folder: Path) -> Iterable[str]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in _OF_A_MACHINE and not path.name.startswith("."):
            yield path.relative_to(folder).as_posix()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _safe(name: str) -> str:
    """The name of a file below a folder. Raises `ValueError` for any other: the index may come from anybody."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or path.as_posix() != name:
        raise ValueError(f"{name!r} is no name of a file in it")
    return name
