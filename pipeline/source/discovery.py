"""Finds the files of an input, which must all have one format; no file is skipped silently."""

from __future__ import annotations

import glob
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from urllib.parse import unquote

from pipeline.faults import UsageError
from pipeline.source.format_detection import kind_of_rows
from pipeline.source.formats import TABLES, format_of, known_suffixes
from pipeline.source.lake_tables import require_no_lake
from pipeline.source.object_discovery import objects_at, require_complete_runs, runs_of, with_versions
from pipeline.source.run_parts import RowChoice, holds_kept_rows, require_complete, run_of
from pipeline.source.survey import Format, Partitions
from pipeline.store.address import Address, place_of
from pipeline.store.object_store import ObjectInfo

Inputs = str | Path | Sequence[str | Path]

_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_NOT_INPUT = frozenset({"_manifest.json", "Thumbs.db", "desktop.ini"})
"""Files that our runs, and file managers, leave in folders."""

_LISTED = 5


@dataclass(frozen=True, slots=True)
class FoundFile:
    """An input file, by its path or address. See `pipeline.source.survey.File` for the other fields."""

    path: Path | Address
    name: str
    partitions: Partitions
    only_ok: bool = False
    size: int = 0
    version: str = ""
    rows_before: int = 0
    """As in `File`: its rows that were surveyed earlier, if it has grown. `size` is then what it has grown by."""


@dataclass(frozen=True, slots=True)
class Discovery:
    """The input files, in order and of one format; and, in sentences, which other files were skipped."""

    files: tuple[FoundFile, ...]
    format: Format
    notes: tuple[str, ...]


def discover(
    inputs: Inputs,
    include: str | Sequence[str] = (),
    *,
    rows: RowChoice = "ok",
    allow_partial: bool = False,
    versions: bool = True,
) -> Discovery:
    """The input files: absolute paths or addresses, sorted within each input, each file once, all of one format.

    An input is a file, a directory (searched recursively; names that begin with `_` or `.` are skipped) or a glob
    pattern, on this machine or in object stores. With `include`, a file found by directory or pattern is used only if
    its name, or the end of its path, matches one of the globs. Folders named `key=value`, in the given path and below
    it, become columns: see `partitions_of`. Of parts of a run, the ok rows are read, or `all` of them. Without
    `versions`, those of objects may be left out.

    Raises `UsageError` when an input matches no file; when a file cannot be read; when a file that may hold rows is of
    an unsupported kind; when the files have several formats; when a folder is a table of a lake format; and when it is
    the output of a run that is not complete, unless that is allowed.
    """
    search = _Search((include,) if isinstance(include, str) else tuple(include))
    entries = [inputs] if isinstance(inputs, str | Path) else inputs
    if not entries:
        raise UsageError("no input: name a file, a directory or a pattern")
    for entry in entries:
        search.add(entry)
    if search.objects:
        return _of_objects(search, rows, allow_partial=allow_partial, versions=versions)
    paths = list(search.found)
    require_no_lake([*paths, *search.unknown])
    search.require_known()
    for path in paths:
        _check_readable(path)
    if not allow_partial:
        require_complete(paths)
    root = os.path.commonpath([path.parent for path in paths])
    files = tuple(
        FoundFile(
            path,
            path.relative_to(root).as_posix(),
            partitions,
            rows == "ok" and run_of(path) is not None,
            path.stat().st_size,
        )
        for path, partitions in search.found.items()
    )
    return Discovery(files, _one_format(paths), tuple(search.notes()))


def _of_objects(search: _Search, rows: RowChoice, *, allow_partial: bool, versions: bool) -> Discovery:
    """The same for objects. Raises `UsageError` where there are files of this machine beside them."""
    if search.found:
        raise UsageError("the input mixes files of this machine and objects in a store: run them one after the other")
    tables = [address for address in search.passed_objects if _suffix(address) in TABLES]
    if tables:
        listed = "".join(f"\n  - {address}" for address in tables[:_LISTED])
        raise UsageError(
            f"these objects may hold rows, but their kind is not supported:{listed}\n"
            f"convert them ({known_suffixes()}), or say which objects are the input: --include"
        )
    objects = with_versions(search.objects) if versions else search.objects
    runs = runs_of(objects)
    if not allow_partial:
        require_complete_runs(runs.values())
    root = os.path.commonpath([f"{address.bucket}/{address.folder.key}" for address in objects])
    files = tuple(
        FoundFile(
            address,
            f"{address.bucket}/{address.key}"[len(root) :].lstrip("/"),
            partitions_of(address.key.split("/")[:-1]),
            rows == "ok" and address in runs,
            info.size,
            info.version,
        )
        for address, info in objects.items()
    )
    return Discovery(files, _one_format(list(objects)), tuple(search.notes()))


def partitions_of(folders: Sequence[str]) -> Partitions:
    """The columns given by folders named `key=value`, as text; for a repeated key, the innermost folder counts.

    Both sides may be percent-encoded, and `__HIVE_DEFAULT_PARTITION__` is null, as Hive, Spark and DuckDB write them.
    """
    pairs = (name.partition("=") for name in folders)
    found = {unquote(key): unquote(value) for key, equals, value in pairs if key and equals}
    return tuple((key, None if value == _HIVE_NULL else value) for key, value in found.items())


class _Search:
    """Files by path, with their partitions; and the files that are skipped or unknown."""

    def __init__(self, include: tuple[str, ...]) -> None:
        self.found: dict[Path, Partitions] = {}
        self._include = include
        self._real: set[str] = set()
        self.unknown: list[Path] = []
        self._passed: list[Path] = []
        self.objects: dict[Address, ObjectInfo] = {}
        self.passed_objects: list[Address] = []

    def add(self, entry: str | Path) -> None:
        """Adds the files that one input names. Raises `UsageError` when there are none."""
        named = place_of(str(entry))
        if isinstance(named, Address):
            self._add_objects(named)
            return
        path = Path(os.path.abspath(named))  # noqa: PTH100 - Path.absolute keeps "..", and one file had two names
        matches = sorted(self._matches(path), key=str)
        if not matches and not self.unknown:
            raise self._nothing(entry)
        for match in matches:
            real = os.path.realpath(match)
            if real not in self._real:
                self._real.add(real)
                self.found[match] = partitions_of(_folders_named(match, named))

    def _add_objects(self, address: Address) -> None:
        listed = objects_at(address, lambda one: self._included(PurePosixPath(one.bucket, one.key)))
        for one in listed.objects:
            if format_of(one.name) is None:
                raise UsageError(f"{one}: unknown kind of file; its name must end with one of: {known_suffixes()}")
        if not listed.objects:
            raise self._nothing(str(address))
        self.objects |= {one: info for one, info in listed.objects.items() if one not in self.objects}
        self.passed_objects += listed.skipped

    def _nothing(self, entry: str | Path) -> UsageError:
        chosen = f" that --include {' '.join(self._include)} selects" if self._include else ""
        return UsageError(f"no input file{chosen} matches {str(entry)!r}; known suffixes: {known_suffixes()}")

    def _matches(self, path: Path) -> Iterator[Path]:
        if path.is_dir():
            yield from self._walk(path)
        elif os.path.lexists(path):
            yield _known_file(path)
        else:
            for match in map(Path, glob.glob(str(path), recursive=True)):  # noqa: PTH207 - Path.glob wants relative ones
                if match.name.startswith(("_", ".")):
                    continue
                if match.is_dir():
                    yield from self._walk(match)
                elif self._included(match):
                    yield _known_file(match)

    def _walk(self, directory: Path) -> Iterator[Path]:
        seen: set[str] = set()
        for folder, folders, names in os.walk(directory, followlinks=True, onerror=_refuse):
            real = os.path.realpath(folder)
            folders[:] = [] if real in seen else [name for name in folders if not _is_hidden(name)]
            for path in [] if real in seen else (Path(folder, name) for name in sorted(names)):
                if self._is_input(path):
                    yield path
            seen.add(real)

    def _is_input(self, path: Path) -> bool:
        """Whether a file in a folder is read; if not, notes that it was skipped."""
        if path.name.startswith(".") or path.name in _NOT_INPUT or not self._included(path):
            return False
        known = format_of(path) is not None
        if path.name.startswith("_"):
            if known:
                self._passed.append(path)
            return False
        if not known:
            (self.unknown if _may_hold_rows(path) else self._passed).append(path)
        return known

    def _included(self, path: PurePath) -> bool:
        return not self._include or any(PurePath(path).match(pattern) for pattern in self._include)

    def require_known(self) -> None:
        """Raises `UsageError` for files in folders that may hold rows but are of an unsupported kind."""
        if not self.unknown:
            return
        lines = [f"{path}: {kind_of_rows(path) or 'unknown kind of file'}" for path in self.unknown[:_LISTED]]
        if len(self.unknown) > _LISTED:
            lines.append(f"and {len(self.unknown) - _LISTED} more")
        listed = "".join(f"\n  - {text}" for text in lines)
        raise UsageError(
            f"these input files may hold rows, but their kind is not supported:{listed}\n"
            f"rename or convert them ({known_suffixes()}), move them away, "
            f"or say which files are the input: --include '*{_ending(self.found)}'"
        )

    def notes(self) -> Iterator[str]:
        """The skipped files, one sentence per folder."""
        places = [*((str(path.parent), path.name) for path in self._passed)]
        places += [(str(address.folder), address.name) for address in self.passed_objects]
        for folder in dict.fromkeys(folder for folder, _ in places):
            names = [name for parent, name in places if parent == folder]
            endings = Counter(Path(name).suffix or name for name in names).most_common(_LISTED)
            skipped = names[0] if len(names) == 1 else ", ".join(f"{count} {ending}" for ending, count in endings)
            yield f"skipped in {folder}: {skipped}"


def _folders_named(path: Path, entry: Path) -> Sequence[str]:
    """The folders of a path that the user named, and those below: folders above a relative path are not data."""
    if holds_kept_rows(path.parent):
        return ()
    above = "/" if entry.is_absolute() else os.path.commonpath([path.parent, Path.cwd()])
    return path.parent.relative_to(above).parts


def _is_hidden(name: str) -> bool:
    return name.startswith(("_", ".")) or name == "lost+found"


def _may_hold_rows(path: Path) -> bool:
    return path.suffix.lower() in TABLES or kind_of_rows(path) is not None


def _ending(found: Iterable[Path]) -> str:
    return next(("".join(path.suffixes[-2:]) for path in found), ".jsonl")


def _refuse(error: OSError) -> None:
    raise UsageError(f"cannot read {error.filename}: {error.strerror}") from error


def _known_file(path: Path) -> Path:
    if path.is_symlink() and not path.exists():
        raise UsageError(f"{path} is a link to nothing: correct the link, or name another input")
    if format_of(path) is None:
        raise UsageError(f"{path}: unknown kind of file; rename or convert it to one of: {known_suffixes()}")
    return path


def _check_readable(path: Path) -> None:
    if not _is_unicode(str(path)):
        raise UsageError(f"{str(path)!a}: a name that is not UTF-8 cannot be recorded; rename it")
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(f"{path}: not a regular file; copy its content to one first")
        path.open("rb").close()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; fix its path or its permissions") from error


def _is_unicode(name: str) -> bool:
    """Whether a name is text; bytes that are not come from the system as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _suffix(address: Address) -> str:
    return Path(address.name).suffix.lower()


def _one_format(paths: Sequence[Path | Address]) -> Format:
    words = {"jsonl": "JSONL", "csv": "CSV", "parquet": "Parquet"}
    first = {format_of(path.name): path for path in reversed(paths)}
    if len(first) > 1:
        formats = " and ".join(f"{words[kind]} ({first[kind]})" for kind in words if kind in first)
        raise UsageError(f"the input mixes {formats}; run them one after the other, or choose with --include")
    return next(kind for kind in first if kind)
