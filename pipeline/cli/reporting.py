"""`pipeline report`: the page of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import AsJson
from pipeline.faults import Misuse

if TYPE_CHECKING:
    from pipeline.evaluate import Assessment


def report(
    output: Annotated[Path, typer.Argument(help="The output folder of a run.")],
    *,
    to: Annotated[Path | None, typer.Option("--to", help="The file to write (default: OUTPUT/_report.html).")] = None,
    as_json: AsJson = False,
) -> int:
    """Write the page of a run: one HTML file that opens offline, also while the run is at work."""
    path = put_page(output, to)
    print(json.dumps({"report": str(path), "bytes": path.stat().st_size}) if as_json else path)
    return 0


def put_page(
    output: Path,
    to: Path | None = None,
    *,
    assessment: Assessment | None = None,
    prompts: Mapping[str, str] | None = None,
) -> Path:
    """Writes the page, and says where. Raises `Misuse` when there is no run, or the file cannot be written."""
    from pipeline.report.facts import run_facts
    from pipeline.report.page import NAME, page_of, write_page

    path = to or output / NAME
    page = page_of(run_facts(output), assessment, prompts)
    try:
        write_page(page, path)
    except OSError as error:
        raise Misuse(f"the page cannot be written to {path}: {error.strerror or error}") from error
    return path
