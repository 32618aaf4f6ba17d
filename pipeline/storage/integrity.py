"""Checks that the files of sealed parts are unchanged since they were sealed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from pipeline.data import PARTS, Part, PartFile
from pipeline.faults import Broken
from pipeline.storage.durable import stamp_of


class PartCheck:
    """Compares the parts of an output folder with their records; reads a file only if its stamp changed."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._whole: dict[tuple[str, str], str] = {}

    def damage(self, parts: Iterable[Part]) -> dict[int, str]:
        """A message for each damaged part, by its chunk; it begins with the path of the file.

        Raises `Broken` when a file exists and cannot be read.
        """
        found = {part.chunk: next(filter(None, map(self._wrong, part.files)), None) for part in parts}
        return {chunk: wrong for chunk, wrong in found.items() if wrong is not None}

    def unrecorded(self, parts: Iterable[Part]) -> list[Path]:
        """Files that readers would take for a part of the dataset but that no part records, except hidden ones.

        Raises `Broken` when the folder cannot be listed.
        """
        known = {file.name for part in parts for file in part.files}
        try:
            found = sorted((self._output / PARTS).iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise Broken(f"{self._output / PARTS} cannot be listed: {error}; fix the disk, then run again") from error
        return [path for path in found if path.name not in known and not path.name.startswith((".", "_"))]

    def _wrong(self, file: PartFile) -> str | None:
        path = self._output / file.path
        try:
            stamp = stamp_of(path)
        except FileNotFoundError:
            return f"{path} is missing"
        except OSError as error:
            raise Broken(f"{path} cannot be read: {error}; fix the disk, then run again") from error
        if stamp in (file.stamp, self._whole.get((file.name, file.sha256))):
            return None
        if int(stamp.partition("-")[0]) != file.bytes or _sha256_of(path) != file.sha256:
            return f"{path} was changed since it was sealed"
        self._whole[file.name, file.sha256] = stamp
        return None


def _sha256_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Broken(f"{path} cannot be read: {error}; fix the disk, then run again") from error
