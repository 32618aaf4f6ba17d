"""Which files the input is made of, and whether they are still the ones that were surveyed."""

from __future__ import annotations

import glob
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

from pipeline.faults import Broken, Misuse
from pipeline.source.layout import File, Format, Survey

Inputs = str | Path | Sequence[str | Path]

BLOCK_BYTES = 1 << 20
"""How much is read from a file at once."""

_FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".jsonl.zst": "jsonl",
    ".ndjson": "jsonl",
    ".ndjson.gz": "jsonl",
    ".ndjson.zst": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}


def format_of(path: Path) -> Format | None:
    """The format that the end of the file's name stands for, or None for an unknown one."""
    name = path.name.lower()
    return next((kind for suffix, kind in _FORMATS.items() if name.endswith(suffix)), None)


def find_files(inputs: Inputs) -> list[Path]:
    """The input files: absolute, sorted within each input, each file once, all of one format.

    An input is a file, a directory (searched to any depth for the known suffixes; names that begin with `_` or `.`
    are skipped) or a glob pattern. Raises `Misuse` when an input matches no file, when a file that was named has an
    unknown suffix or cannot be read, and when JSONL and Parquet are mixed.
    """
    found: dict[str, Path] = {}
    entries = [inputs] if isinstance(inputs, str | Path) else inputs
    if not entries:
        raise Misuse("no input: name a file, a directory or a pattern")
    for entry in entries:
        matches = sorted(_matches(Path(entry)), key=str)
        if not matches:
            raise Misuse(f"no input file matches {str(entry)!r}; known suffixes: {_known()}")
        for path in matches:
            found.setdefault(os.path.realpath(path), path)
    paths = list(found.values())
    for path in paths:
        _check_readable(path)
    _check_one_format(paths)
    return paths


def _matches(entry: Path) -> Iterator[Path]:
    path = Path(os.path.abspath(entry))  # noqa: PTH100 - Path.absolute keeps "..", and one file would have two names
    if path.is_dir():
        yield from _walk(path)
    elif os.path.lexists(path):
        yield _known_file(path)
    else:
        for match in map(Path, glob.glob(str(path), recursive=True)):  # noqa: PTH207 - Path.glob wants relative ones
            if not match.name.startswith(("_", ".")):
                yield from _walk(match) if match.is_dir() else [_known_file(match)]


def _walk(directory: Path) -> Iterator[Path]:
    seen: set[str] = set()
    for folder, folders, names in os.walk(directory, followlinks=True, onerror=_refuse):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(("_", "."))]
        seen.add(real)
        paths = (Path(folder, name) for name in names if not name.startswith(("_", ".")))
        yield from (path for path in paths if format_of(path))


def _refuse(error: OSError) -> None:
    raise Misuse(f"cannot read {error.filename}: {error.strerror}") from error


def _known() -> str:
    return ", ".join(_FORMATS)


def _known_file(path: Path) -> Path:
    if format_of(path) is None:
        raise Misuse(f"{path}: unknown kind of file; rename or convert it to one of: {_known()}")
    return path


def _check_readable(path: Path) -> None:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise Misuse(f"{path}: not a regular file; copy its content to one first")
        path.open("rb").close()
    except OSError as error:
        raise Misuse(f"cannot read {path}: {error.strerror}; mend its path or its permissions") from error


def _check_one_format(paths: Iterable[Path]) -> None:
    first = {format_of(path): path for path in reversed(list(paths))}
    if len(first) > 1:
        raise Misuse(
            f"the input mixes JSONL ({first['jsonl']}) and Parquet ({first['parquet']}); run them one after the other"
        )


class InputFile:
    """The bytes of a file on disk, in order. Raises `Broken` when it cannot be opened or read."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: PTH123, SIM115 - closed by `close`
        except OSError as error:
            raise Broken(f"cannot read {path}: {error.strerror}") from error

    def read(self, count: int) -> bytes:
        """Up to `count` bytes; none at the end."""
        try:
            return self._file.read(count) or b""
        except OSError as error:
            raise Broken(f"cannot read {self.path}: {error.strerror}") from error

    def seek(self, offset: int) -> None:
        """Go on at a byte offset."""
        self._file.seek(offset)

    @property
    def closed(self) -> bool:
        """Whether the file was closed."""
        return self._file.closed

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class HashedFile(InputFile):
    """An input file that is hashed while it is read."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._digest = hashlib.sha256()
        self._count = 0
        self._status = os.fstat(self._file.fileno())

    def read(self, count: int) -> bytes:
        """As `InputFile.read`."""
        block = super().read(count)
        self._digest.update(block)
        self._count += len(block)
        return block

    def sealed(self, rows: int) -> File:
        """Read what is left, and describe the whole file. Raises `Broken` if it changed meanwhile."""
        while self.read(BLOCK_BYTES):
            pass
        status = os.fstat(self._file.fileno())
        if status.st_mtime_ns != self._status.st_mtime_ns or not status.st_size == self._count == self._status.st_size:
            raise Broken(f"{self.path} changed while it was being read; start again once it is complete")
        return File(self.path, status.st_size, status.st_mtime_ns, self._digest.hexdigest(), rows)


def changed(survey: Survey, inputs: Inputs | None = None) -> list[str]:
    """What differs between the survey and the files on disk now, a sentence each; nothing when they are the same.

    A file of the same size and modification time counts as unchanged and is not read; any other is compared by
    its content. With `inputs`, files that appeared or are no longer found count too.
    """
    differences = [sentence for file in survey.files if (sentence := difference(file))]
    return differences + ([] if inputs is None else _joined_or_left(survey, inputs))


def _joined_or_left(survey: Survey, inputs: Inputs) -> list[str]:
    known = {file.path for file in survey.files}
    try:
        found = {str(path) for path in find_files(inputs)}
    except Misuse as misuse:
        return [str(misuse)]
    joined = [f"{path} is new in the input" for path in sorted(found - known)]
    return joined + [f"{path} is no longer in the input" for path in sorted(known - found) if os.path.lexists(path)]


def difference(file: File) -> str | None:
    """How the file on disk differs from the one surveyed, in a sentence, or None."""
    now = _stamp(file.path)
    if now is None:
        return f"{file.path} is gone or cannot be read any more"
    if now[0] != file.size:
        return f"{file.path} had {file.size:,} bytes and now has {now[0]:,}"
    if now[1] == file.mtime_ns:
        return None
    try:
        with HashedFile(file.path) as content:
            same = content.sealed(file.rows).sha256 == file.sha256
    except Broken as fault:
        return fault.message
    return None if same else f"{file.path} has the size it had, but another content"


class Watch:
    """Notices when a file is no longer the one that was surveyed."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._known = (file.size, file.mtime_ns)

    def check(self) -> None:
        """Raise `Broken` if the file is gone or holds something else. Costs one `stat` while nothing touches it."""
        now = _stamp(self._file.path)
        if now == self._known:
            return
        sentence = difference(self._file)
        if sentence or now is None:
            raise Broken(f"the input changed during the run: {sentence}")
        self._known = now  # touched, with the same content


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - called once a batch, and a Path costs more than the call
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
