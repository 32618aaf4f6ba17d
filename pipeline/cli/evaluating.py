"""`pipeline eval`, `grade`, `gate`, `compare` and `bless`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Target = Annotated[str, typer.Argument(help="A file with an evaluation: FILE.py or FILE.py:NAME.")]
Evaluated = Annotated[Path, typer.Argument(help="The output folder of `pipeline eval`.")]
JobFile = Annotated[str | None, typer.Option("--job", "-j", help="The evaluation's file (default: the one that ran).")]
Common = Annotated[
    bool, typer.Option("--common", help="Where gold data or graders have changed: compare the rows that are the same.")
]
Report = Annotated[bool, typer.Option("--report", help="Write the page of the run, _report.html.")]
