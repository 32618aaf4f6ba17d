"""Whether an input is still the surveyed one: the same bytes in the same order, wherever they are stored now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pipeline.faults import Broken, UsageError
from pipeline.source.discovery import FoundFile, Inputs, discover
from pipeline.source.files import difference, digest_of, stamp
from pipeline.source.run_parts import RowChoice
from pipeline.source.survey import File, Partitions, Survey


def changed(survey: Survey) -> list[str]:
    """Differences between the survey and the files on disk now, one sentence each; empty when there are none."""
    return [sentence for file in survey.files if (sentence := difference(file))]


def found_again(
    survey: Survey,
    inputs: Inputs,
    include: str | Sequence[str] = (),
    *,
    rows: RowChoice = "ok",
    allow_partial: bool = False,
) -> tuple[Survey, list[str]]:
    """The survey with the current locations of its files; and the input's changes, one sentence each.

    Content, order and the columns given by folders count; names, other folders and times do not. A file with the same
    path, size and modification time counts as unchanged and is not read. Files of later generations follow those of
    earlier ones, whatever their names.
    """
    try:
        now: Sequence[FoundFile] = discover(inputs, include, rows=rows, allow_partial=allow_partial).files
    except UsageError as misuse:
        return survey, [str(misuse)]
    known = latest_entries(survey.files)
    if survey.appended:
        matched = by_place(known, now)
        taken = set(matched.values())
        now = [*matched.values(), *(found for found in now if found not in taken)]
    if len(now) != len(known):
        return survey, joined_or_left(known, now)
    moved: dict[str, File] = {}
    differences: list[str] = []
    for file, found in zip(known, now, strict=True):
        sentence = difference_from(file, found)
        if sentence is None:
            moved[file.path] = where_found(file, found)
        else:
            differences.append(sentence)
    if differences:
        return survey, joined_or_left(known, now) or differences
    return moved_to(survey, moved), []


def latest_entries(files: Sequence[File]) -> list[File]:
    """Each file once, by its latest entry, in the order in which they were first taken in."""
    return list({file.path: file for file in files}.values())


def by_place(known: Sequence[File], now: Sequence[FoundFile]) -> dict[str, FoundFile]:
    """The files that were found, by the paths of the known ones.

    They are known by their paths if some are still there, else by their names below the input's folder.
    """
    paths = {str(found.path): found for found in now}
    if any(file.path in paths for file in known):
        return {file.path: paths[file.path] for file in known if file.path in paths}
    names = {found.name: found for found in now}
    return {file.path: names[file.name] for file in known if file.name in names}


def where_found(file: File, found: FoundFile) -> File:
    """The entry of an unchanged file with its current place."""
    if found.version:
        return file
    size_and_time = stamp(str(found.path))
    mtime_ns = file.mtime_ns if size_and_time is None else size_and_time[1]
    return replace(file, path=str(found.path), mtime_ns=mtime_ns)


def moved_to(survey: Survey, now: Mapping[str, File]) -> Survey:
    """The survey with the place and content of each file as in `now`, by its path before, in all of its entries."""
    files = (
        replace(file, path=one.path, size=one.size, mtime_ns=one.mtime_ns, sha256=one.sha256)
        for file in survey.files
        for one in [now.get(file.path, file)]
    )
    return replace(survey, files=tuple(files))


def joined_or_left(files: Sequence[File], now: Sequence[FoundFile]) -> list[str]:
    """Files added and removed: by path if some files did not move, else by name below the input's folder."""
    paths, found_paths = {file.path for file in files}, {str(found.path) for found in now}
    if not paths & found_paths:
        paths, found_paths = {file.name for file in files}, {found.name for found in now}
    joined = [f"{path} is new in the input" for path in sorted(found_paths - paths)]
    gone = {file.path for file in files if not file.version and stamp(file.path) is None}
    left = {path: "is gone" if path in gone else "is no longer in the input" for path in sorted(paths - found_paths)}
    return joined + [f"{path} {change}" for path, change in left.items()]


def difference_from(file: File, found: FoundFile) -> str | None:
    """How a file differs from the surveyed one in whose place it was found, in a sentence; None if it does not."""
    path = str(found.path)
    if found.only_ok != file.only_ok:
        before, now = ("ok", "all") if file.only_ok else ("all", "ok")
        return f"the rows read of {path} changed: {before} -> {now} (--input-rows {before})"
    if found.partitions != file.partitions:
        return f"the folders of {path} give {_words(found.partitions)}, and gave {_words(file.partitions)} before"
    if path == file.path and found.version:
        return None if found.version == file.version else f"{path} was replaced"
    if path == file.path:
        return difference(file)
    if found.version or file.version:
        return f"{path} is in the place of {file.path}: an object is known by its address and its version"
    size_and_time = stamp(path)
    if size_and_time is not None and size_and_time[0] == file.size:
        try:
            if digest_of(path) == file.sha256:
                return None
        except Broken as fault:
            return fault.message
    return f"{path} is in the place of {file.path}, but has different content"


def _words(partitions: Partitions) -> str:
    return ", ".join(f"{name}={value}" for name, value in partitions) or "no column"
