"""Finds the objects that an address names: one object, those below a folder, or those that a pattern matches."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from pipeline.data import PARTS, is_part_name
from pipeline.faults import UsageError
from pipeline.source.formats import format_of
from pipeline.source.lake_tables import lake_of_keys
from pipeline.source.run_parts import MANIFEST, PLAN, SUCCESS, incomplete
from pipeline.store.address import Address
from pipeline.store.object_store import NotThere, ObjectInfo
from pipeline.store.stores import store_at

_WILDCARD = re.compile(r"[*?\[]")
_HEADS_AT_ONCE = 16


@dataclass(slots=True)
class FoundObjects:
    """The objects that an address names, in order of their keys; and those in its folders that are not input."""

    objects: dict[Address, ObjectInfo] = field(default_factory=dict)
    skipped: list[Address] = field(default_factory=list)


def objects_at(address: Address, is_included: Callable[[Address], bool]) -> FoundObjects:
    """The objects of an address. In folders, names that begin with `_` or `.` are skipped, and so is what has no rows.

    Raises `UsageError` for a key whose name says no format, and for a folder with a table of a lake format.
    """
    store, key = store_at(str(address))
    if key and not key.endswith("/") and not _WILDCARD.search(key):
        try:
            found = store.head(key)
        except NotThere:
            pass
        else:
            return FoundObjects({address: found})
    segments = [name for name in key.split("/") if name]
    fixed = next((at for at, name in enumerate(segments) if _WILDCARD.search(name)), len(segments))
    folder = Address(address.scheme, address.bucket, "/".join(segments[:fixed]))
    listed = FoundObjects()
    infos = sorted(store.listing(folder.key), key=lambda info: info.key)
    if lake := lake_of_keys(folder, (info.key for info in infos)):
        raise UsageError(lake)
    for info in infos:
        names = info.key.split("/")[len(segments[:fixed]) :]
        if not _selected(names, segments[fixed:]):
            continue
        one = Address(address.scheme, address.bucket, info.key)
        if any(name.startswith(("_", ".")) for name in names[:-1]) or names[-1].startswith(".") or not is_included(one):
            continue
        if names[-1].startswith("_"):
            listed.skipped += [one] if format_of(one.name) and one.name != MANIFEST else []
        elif format_of(one.name) is None:
            listed.skipped.append(one)
        else:
            listed.objects[one] = info
    return listed


def _selected(names: list[str], patterns: list[str]) -> bool:
    """Whether a pattern matches an object or one of its folders, segment by segment; no pattern matches everything."""
    return not patterns or any(_matches(names[:count], patterns) for count in range(1, len(names) + 1))


def _matches(names: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not names
    if patterns[0] == "**":
        return any(_matches(names[start:], patterns[1:]) for start in range(len(names) + 1))
    return bool(names) and fnmatchcase(names[0], patterns[0]) and _matches(names[1:], patterns[1:])


def with_versions(objects: Mapping[Address, ObjectInfo]) -> dict[Address, ObjectInfo]:
    """The objects with their versions, which listings of Cloud Storage do not tell: one request for each of them."""
    unknown = [address for address, info in objects.items() if not info.version]
    if not unknown:
        return dict(objects)
    with ThreadPoolExecutor(min(_HEADS_AT_ONCE, len(unknown))) as pool:
        stores = [store_at(str(address)) for address in unknown]
        infos = pool.map(lambda place: place[0].head(place[1]), stores)
        try:
            return {**objects, **dict(zip(unknown, infos, strict=True))}
        except NotThere as gone:
            raise UsageError(f"{gone}, and was there a moment ago: run again once the input is complete") from None


def runs_of(addresses: Iterable[Address]) -> dict[Address, Address]:
    """The output folders of the runs that wrote objects, by object: see `pipeline.source.run_parts.run_of`."""
    parts = [address for address in addresses if is_part_name(address.name)]
    outputs = {part: part.folder.folder if part.folder.name == PARTS else part.folder for part in parts}
    is_run = {output: _has(output.at(*PLAN.parts)) or _has(output.at(MANIFEST)) for output in set(outputs.values())}
    return {part: output for part, output in outputs.items() if is_run[output]}


def require_complete_runs(outputs: Iterable[Address]) -> None:
    """Raises `UsageError` for a run without its success marker."""
    for output in dict.fromkeys(outputs):
        if not _has(output.at(SUCCESS)):
            raise UsageError(incomplete(str(output)))


def _has(address: Address) -> bool:
    store, key = store_at(str(address))
    try:
        store.head(key)
    except NotThere:
        return False
    return True
