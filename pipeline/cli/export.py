"""`pipeline export`: writes the rows of a run to one CSV, JSONL or Parquet file, or to such an object."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

from pipeline.cli.options import AsJson
from pipeline.cli.remote_output import output_to_read
from pipeline.cli.stores import reading_stores
from pipeline.cli.tables import json_line
from pipeline.store.address import place_of
from pipeline.text import printable


def export(  # noqa: PLR0913 - one parameter an option
    output: Annotated[str, typer.Argument(help="The output folder of a run, or its address.")],
    *,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FILE",
            help="The file or object to write: .csv, .tsv, .jsonl (these also with .gz or .zst), .parquet.",
        ),
    ],
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--columns",
            metavar="NAMES",
            help="Columns, as in id,parsed.name; may be repeated.",
            show_default="all",
        ),
    ] = None,
    rows: Annotated[
        Literal["ok", "failed", "all"], typer.Option("--rows", help="Which rows, by their status.")
    ] = "all",
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", metavar="", help="Export a run that is not complete, as far as it is.")
    ] = False,
    bom: Annotated[
        bool, typer.Option("--bom", metavar="", help="Begin CSV with a byte order mark, by which Excel knows UTF-8.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", metavar="", help="Replace the file if it exists.")] = False,
    as_json: AsJson = False,
) -> int:
    """Write the rows of a run to one CSV, JSONL or Parquet file."""
    from pipeline.cli.progress import stage
    from pipeline.export.export import ExportOptions, export

    options = ExportOptions(columns=columns or (), rows=rows, force=force, allow_partial=allow_partial, bom=bom)
    place = place_of(to)
    with reading_stores(), output_to_read(output) as (folder, remote), stage("exporting", quiet=as_json):
        done = export(folder, place, options, remote)
    if done.left_out:
        print(f"note: {done.left_out} rows are in no part yet, and not exported", file=sys.stderr)
    if as_json:
        facts = {"file": str(done.file), "rows": done.rows, "columns": list(done.columns), "bytes": done.bytes}
        print(json_line({**facts, "left_out": done.left_out}))
    else:
        print(printable(f"{done.file}: {done.rows} rows, {len(done.columns)} columns, {done.bytes} bytes"))
    return 0
