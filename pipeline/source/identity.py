"""Whether an input is still the one that was surveyed: the same bytes in the same order, wherever they lie now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipeline.faults import Broken, UsageError
from pipeline.source.discovery import Found, Inputs, discover
from pipeline.source.files import difference, digest_of, stamp
from pipeline.source.survey import File, Partitions, Survey


def changed(survey: Survey) -> list[str]:
    """What differs between the survey and the files on disk now, a sentence each; nothing when they are the same."""
    return [sentence for file in survey.files if (sentence := difference(file))]


def found_again(survey: Survey, inputs: Inputs, include: str | Sequence[str] = ()) -> tuple[Survey, list[str]]:
    """The survey with its files where they are now; and what makes the input another one, a sentence each.

    Content, order and the columns that folders stand for count; names, other folders and times do not. A file of the
    same path, size and modification time counts as unchanged and is not read.
    """
    try:
        now = discover(inputs, include).files
    except UsageError as misuse:
        return survey, [str(misuse)]
    if len(now) != len(survey.files):
        return survey, _joined_or_left(survey.files, now)
    moved: list[File] = []
    differences: list[str] = []
    for file, found in zip(survey.files, now, strict=True):
        sentence = _difference(file, found)
        if sentence is None:
            size_and_time = stamp(str(found.path))
            mtime_ns = file.mtime_ns if size_and_time is None else size_and_time[1]
            moved.append(replace(file, path=str(found.path), mtime_ns=mtime_ns))
        else:
            differences.append(sentence)
    if differences:
        return survey, _joined_or_left(survey.files, now) or differences
    return replace(survey, files=tuple(moved)), []


def _joined_or_left(files: Sequence[File], now: Sequence[Found]) -> list[str]:
    """By path where some files are where they were, else by their names below the input's folder."""
    paths, found_paths = {file.path for file in files}, {str(found.path) for found in now}
    if not paths & found_paths:
        paths, found_paths = {file.name for file in files}, {found.name for found in now}
    joined = [f"{path} is new in the input" for path in sorted(found_paths - paths)]
    gone = {file.path for file in files if stamp(file.path) is None}
    left = {path: "is gone" if path in gone else "is no longer in the input" for path in sorted(paths - found_paths)}
    return joined + [f"{path} {told}" for path, told in left.items()]


def _difference(file: File, found: Found) -> str | None:
    path = str(found.path)
    if found.partitions != file.partitions:
        return f"the folders of {path} stand for {_words(found.partitions)}, and stood for {_words(file.partitions)}"
    if path == file.path:
        return difference(file)
    size_and_time = stamp(path)
    if size_and_time is not None and size_and_time[0] == file.size:
        try:
            if digest_of(path) == file.sha256:
                return None
        except Broken as fault:
            return fault.message
    return f"{path} is where {file.path} was, and holds something else"


def _words(partitions: Partitions) -> str:
    return ", ".join(f"{name}={value}" for name, value in partitions) or "no column"
