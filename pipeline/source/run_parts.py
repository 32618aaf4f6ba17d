"""Recognises the parts of a run of ours in an input, which is then read as its ok rows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pipeline.data import PARTS, is_part_name
from pipeline.faults import UsageError

RowChoice = Literal["ok", "all"]
"""Which rows are read of an input that is the output of a run."""

PLAN = Path("_run", "plan.json")
MANIFEST = "_manifest.json"
SUCCESS = "_SUCCESS"
KEPT_ROWS = ("_run", "input")


def run_of(path: Path) -> Path | None:
    """The output folder of the run that wrote a file; None for a file that is not a part of a run.

    Parts that were copied elsewhere without their manifest are files like any other.
    """
    if not is_part_name(path.name):
        return None
    output = path.parent.parent if path.parent.name == PARTS else path.parent
    return output if (output / PLAN).is_file() or (output / MANIFEST).is_file() else None


def holds_kept_rows(folder: Path) -> bool:
    """Whether a folder is where a run keeps rows that were given in memory: the names of those above are not data."""
    return folder.parts[-2:] == KEPT_ROWS


def require_complete(paths: Iterable[Path]) -> None:
    """Raises `UsageError` for parts of a run without its success marker: rows of it may be missing, or failed."""
    for output in dict.fromkeys(map(run_of, paths)):
        if output is not None and not (output / SUCCESS).is_file():
            raise UsageError(incomplete(str(output)))


def incomplete(output: str) -> str:
    """Why the output of a run without its success marker is not read, and the remedies."""
    return (
        f"{output} is the output of a run that is not complete (it has no {SUCCESS}): finish that run first, "
        f"or read what there is with --allow-partial"
    )
