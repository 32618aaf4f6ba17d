"""What a job file may import from its folder, without that folder standing in anybody else's way."""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import FrameType, ModuleType

_LIBRARIES = tuple(
    os.path.realpath(path)
    for path in (
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        *site.getsitepackages(),
        site.getusersitepackages(),
        *([sys.prefix] if sys.prefix != sys.base_prefix else []),
        str(Path(__file__).parent),
    )
)
"""Where modules are nobody's own: the interpreter's, installed packages, this one."""


def importable_beside(job: Path) -> None:
    """Lets the modules below a job file's folder, and below the working directory, import what lies there.

    Only they do, and only what is found nowhere else: a file called `email.py` or a folder called `pipeline` beside a
    job changes nothing for the standard library, for installed packages and for us.
    """
    folders = tuple(dict.fromkeys(os.path.realpath(folder) for folder in (job.resolve().parent, Path.cwd())))
    found = next((finder for finder in sys.meta_path if isinstance(finder, _Siblings)), None)
    if found is None:
        found = _Siblings()
        sys.meta_path.append(found)
    found.folders = [folders, *(others for others in found.folders if others != folders)]


class _Siblings:
    """A finder of top-level modules, for importers that lie in one of its folders. The last one that Python asks."""

    def __init__(self) -> None:
        self.folders: list[tuple[str, ...]] = []

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module as it lies beside whoever imports it; None for whoever is not a job's."""
        if path is not None:  # of a package, which knows where its modules are
            return None
        importer = _importer(sys._getframe(1))  # noqa: SLF001 - the only way to know who asks
        if importer is None or _is_below(importer, _LIBRARIES):
            return None
        for folders in self.folders:
            if _is_below(importer, folders):
                return PathFinder.find_spec(name, folders, target)
        return None


def _importer(frame: FrameType | None) -> str | None:
    """The file of the code that runs an import statement, or calls importlib."""
    while frame is not None:
        name, file = frame.f_globals.get("__name__", ""), frame.f_code.co_filename
        if not (name.partition(".")[0] == "importlib" or file.startswith("<frozen")):
            own = frame.f_globals.get("__file__")
            return os.path.realpath(own) if isinstance(own, str) else None
        frame = frame.f_back
    return None


def _is_below(file: str, folders: Sequence[str]) -> bool:
    return any(file.startswith(f"{folder.rstrip('/')}/") for folder in folders)
