"""Parts in the bucket: the record that seals each, and what is there without one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from pathlib import Path

import orjson

from pipeline.data import Part, PartFile, is_part_name
from pipeline.faults import Broken
from pipeline.storage.remote.objects import (
    DATA,
    INTENTS,
    RECORDS,
    Content,
    OutputObjects,
    chunk_of,
    record_name,
)
from pipeline.store.object_store import ObjectInfo

_READERS = 16
"""Requests at once, when many small objects are read."""

_SKEW = timedelta(seconds=2)
"""How far the times of two objects may differ in their order: stores have many clocks, and some round to seconds."""


def packed(part: Part) -> bytes:
    """A part as its record and its intents have it."""
    return orjson.dumps(asdict(part), option=orjson.OPT_INDENT_2)


def unpacked(objects: OutputObjects, name: str, content: bytes) -> Part:
    """The inverse of `packed`. Raises `Broken` for anything else."""
    try:
        part = Part.from_json(orjson.loads(content))
        wrong = None if part.chunk == chunk_of(name) else f"it is of chunk {part.chunk}"
    except ValueError as error:
        wrong = str(error)
    if wrong is not None:
        raise Broken(f"{objects.address}/{name} is not the record of a part ({wrong}): restore it, or use --fresh")
    return part


def stamped(part: Part, stamps: Sequence[str]) -> Part:
    """The part with the versions of its objects as the stamps of its files."""
    more = tuple(replace(file, stamp=stamp) for file, stamp in zip(part.more, stamps[1:], strict=True))
    return replace(part, stamp=stamps[0], more=more)


def records_in(objects: OutputObjects, names: Iterable[str]) -> list[Part]:
    """The parts that these records seal. Raises `Broken` for one that cannot be read."""
    found = list(names)
    return [
        unpacked(objects, name, content.data)
        for name, content in zip(found, contents_of(objects, found), strict=True)
        if content is not None
    ]


def contents_of(objects: OutputObjects, names: Sequence[str]) -> list[Content | None]:
    """Several small objects, read side by side."""
    if not names:
        return []
    with ThreadPoolExecutor(min(_READERS, len(names)), thread_name_prefix="records") as pool:
        return list(pool.map(objects.read, names))


def intended(objects: OutputObjects, chunk: int) -> Part | None:
    """The part whose files are all there, by what its writer said of it before; None if there is none.

    Several machines may have tried: the one whose bytes are in the bucket counts.
    """
    for info in list(objects.listing(INTENTS)):
        if chunk_of(info.key) == chunk and (content := objects.read(info.key)) is not None:
            part = unpacked(objects, info.key, content.data)
            found = [_same(objects, file) for file in part.files]
            stamps = [stamp for stamp in found if stamp is not None]
            if len(stamps) == len(found):
                return stamped(part, stamps)
    return None


def settle_unrecorded(objects: OutputObjects, within: range | None = None) -> list[Part]:
    """Ends what killed starts left between a part and its record, and returns the parts that are now recorded.

    Whole parts get their record, since their rows are paid for, and so do those that replaced a recorded one. Files of
    others are removed, and so are the intents of parts that have a record. Only of the chunks `within`, if others are
    worked on elsewhere.
    """
    recorded = {chunk_of(info.key) for info in objects.listing(RECORDS)}
    files = {info.key for info in objects.listing(DATA) if is_part_name(info.key.removeprefix(DATA))}
    settled = []
    for chunk in sorted({chunk_of(name) for name in files if _counts(name, within)} - recorded):
        part = intended(objects, chunk)
        if part is not None:
            objects.create(record_name(chunk), packed(part))
            settled.append(part)
            continue
        for name in sorted(name for name in files if chunk_of(name) == chunk):
            objects.remove(name)
    settled += _replacements(objects, [chunk for chunk in recorded if within is None or chunk in within])
    recorded |= {part.chunk for part in settled}
    for info in list(objects.listing(INTENTS)):
        if chunk_of(info.key) in recorded and _counts(info.key, within):
            objects.remove(info.key)
    return settled


def _counts(name: str, within: range | None) -> bool:
    return within is None or chunk_of(name) in within


def _replacements(objects: OutputObjects, recorded: Collection[int]) -> list[Part]:
    """The parts that were uploaded in place of recorded ones by a re-parse that was killed; they get the record."""
    found = []
    for chunk in sorted({chunk_of(info.key) for info in objects.listing(INTENTS)} & set(recorded)):
        name, part = record_name(chunk), intended(objects, chunk)
        before = objects.read(name)
        if part is None or before is None or unpacked(objects, name, before.data).sha256 == part.sha256:
            continue
        objects.replace(name, packed(part), before.info.version)
        found.append(part)
    return found


def _same(objects: OutputObjects, file: PartFile) -> str | None:
    """The version of a part file in the bucket; None if it is not there, or has other bytes."""
    info = objects.head(file.path)
    if info is None or info.size != file.bytes or objects.sha256(info) != file.sha256:
        return None
    return info.version


class RemotePartCheck:
    """Compares the part files in the bucket with the records of their parts, by two listings, without reading them."""

    def __init__(self, objects: OutputObjects) -> None:
        self._objects = objects

    def damage(self, parts: Iterable[Part]) -> dict[int, str]:
        """A message for each damaged part, by its chunk; it begins with the address of the file."""
        files = {info.key: info for info in self._objects.listing(DATA)}
        sealed = {chunk_of(info.key): info.modified for info in self._objects.listing(RECORDS)}
        found = {}
        for part in parts:
            wrong = (self._wrong(file, files, sealed.get(part.chunk)) for file in part.files)
            if (message := next(filter(None, wrong), None)) is not None:
                found[part.chunk] = message
        return found

    def unrecorded(self, parts: Iterable[Part]) -> list[Path]:
        """Objects that readers would take for a part of the dataset but that no part records, except hidden ones."""
        known = {file.path for part in parts for file in part.files}
        found = sorted(info.key for info in self._objects.listing(DATA))
        return [
            Path(name) for name in found if name not in known and not name.removeprefix(DATA).startswith((".", "_"))
        ]

    def _wrong(self, file: PartFile, found: Mapping[str, ObjectInfo], sealed: datetime | None) -> str | None:
        place = f"{self._objects.address}/{file.path}"
        info = found.get(file.path)
        if info is None:
            return f"{place} is missing"
        # Without quotes: in its listings, Azure leaves out those of an etag.
        same = info.version.strip('"') in ("", file.stamp.strip('"'))
        replaced = not same or (sealed is not None and info.modified > sealed + _SKEW)
        return f"{place} was changed since it was sealed" if info.size != file.bytes or replaced else None
