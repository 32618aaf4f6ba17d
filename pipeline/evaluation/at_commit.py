"""Loads a job as of another commit, beside the current one."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from pipeline.faults import UsageError

_T = TypeVar("_T")


def commit_of(reference: str) -> str:
    """The hash of the commit that a branch, tag or hash names. Raises `UsageError` when there is none."""
    _git("rev-parse", "--show-toplevel")  # a clearer error when there is no repository
    try:
        if not reference.startswith("-"):
            return _git("rev-parse", "--verify", "--quiet", f"{reference}^{{commit}}").decode().strip()
    except UsageError:
        pass
    raise UsageError(f"there is no commit {reference!r}: --vs-ref takes a branch, a tag or a hash")


def present_commit() -> str | None:
    """The hash of the checked-out commit, with `+` if files differ from it; None outside a repository."""
    try:
        changed = _git("--no-optional-locks", "status", "--porcelain", "--untracked-files=no")
        return commit_of("HEAD") + ("+" if changed.strip() else "")
    except UsageError:
        return None


def loaded_at(reference: str, load: Callable[[], _T]) -> _T:
    """The result of `load` on the files of a commit, with its own modules.

    `load` runs in the same folder of that commit's tree, which is removed afterwards: the result must not need files
    later. The pipeline itself is the current one. Raises `UsageError` when git does not know the commit.
    """
    root = Path(_git("rev-parse", "--show-toplevel").decode().strip())
    commit = commit_of(reference)
    here = Path.cwd().resolve().relative_to(root.resolve())
    archive = _git("-C", str(root), "archive", "--format=tar", commit)
    with tempfile.TemporaryDirectory(prefix="pipeline-ref-") as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(folder, filter="data")
        if not (Path(folder) / here).is_dir():
            raise UsageError(f"the folder {here} was not there at {reference}")
        with _modules_apart(root, Path(folder)), chdir(Path(folder) / here):
            return load()


def _git(*arguments: str) -> bytes:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, check=True)  # noqa: S603, S607 - git from the PATH
    except FileNotFoundError:
        raise UsageError("--vs-ref needs git, which is not installed") from None
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines()
        raise UsageError(f"git {arguments[-1]}: {lines[-1] if lines else 'failed'}") from None
    return done.stdout


@contextmanager
def _modules_apart(root: Path, tree: Path) -> Iterator[None]:
    """A block in which modules below `root` are loaded again, from below `tree`; afterwards the old ones return."""
    path, before = list(sys.path), _modules_below(root)
    for name in before:
        del sys.modules[name]
    sys.path[:] = [entry for entry in path if not _is_below(Path(entry or os.curdir), root)]
    try:
        yield
    finally:
        sys.path[:] = path
        for name in _modules_below(tree):
            del sys.modules[name]
        sys.modules.update(before)


def _modules_below(folder: Path) -> dict[str, ModuleType]:
    """The modules whose files are in a folder, except the pipeline's, which are shared."""
    return {
        name: module
        for name, module in sys.modules.items()
        if (file := getattr(module, "__file__", None))
        and name.partition(".")[0] not in ("pipeline", "__main__")
        and _is_below(Path(file), folder)
    }


def _is_below(path: Path, folder: Path) -> bool:
    """Whether a path is in a folder, and not in a virtual environment inside it."""
    place = path.resolve()
    return place.is_relative_to(folder.resolve()) and not place.is_relative_to(Path(sys.prefix).resolve())
