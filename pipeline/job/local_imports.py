"""Lets a job file import modules from its folder, without that folder shadowing other modules."""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import FrameType, ModuleType

import pipeline

_LIBRARIES = tuple(
    os.path.realpath(path)
    for path in (
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        *site.getsitepackages(),
        site.getusersitepackages(),
        *([sys.prefix] if sys.prefix != sys.base_prefix else []),
        str(Path(pipeline.__file__).parent),
    )
)
"""Folders that are not a job's own: the interpreter's, installed packages, this package."""


def importable_beside(job: Path) -> None:
    """Lets the modules below a job file's folder, and below the working directory, import what is there.

    Only those modules can, and only what is found nowhere else: a file called `email.py` or a folder called `pipeline`
    beside a job changes nothing for the standard library, for installed packages or for this one.
    """
    folders = tuple(dict.fromkeys(os.path.realpath(folder) for folder in (job.resolve().parent, Path.cwd())))
    found = next((finder for finder in sys.meta_path if isinstance(finder, _Siblings)), None)
    if found is None:
        found = _Siblings()
        sys.meta_path.append(found)
    found.folders = [folders, *(others for others in found.folders if others != folders)]


class _Siblings:
    """A finder of top-level modules, for importers located in one of its folders. Python asks it last."""

    def __init__(self) -> None:
        self.folders: list[tuple[str, ...]] = []

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module beside its importer; None if the importer does not belong to a job."""
        if path is not None:  # a submodule: its package knows where to find it
            return None
        importer = _importer(sys._getframe(1))  # noqa: SLF001 - the only way to know who asks
        if importer is None or _is_below(importer, _LIBRARIES):
            return None
        for folders in self.folders:
            if _is_below(importer, folders):
                return PathFinder.find_spec(name, folders, target)
        return None


def _importer(frame: FrameType | None) -> str | None:
    """The file of the code that executes an import statement or calls importlib."""
    while frame is not None:
        name, file = frame.f_globals.get("__name__", ""), frame.f_code.co_filename
        if not (name.partition(".")[0] == "importlib" or file.startswith("<frozen")):
            own = frame.f_globals.get("__file__")
            return os.path.realpath(own) if isinstance(own, str) else None
        frame = frame.f_back
    return None


def _is_below(file: str, folders: Sequence[str]) -> bool:
    return any(file.startswith(f"{folder.rstrip('/')}/") for folder in folders)
