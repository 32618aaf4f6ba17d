"""Detects folders of Parquet files that are tables of a lake format, whose files also hold deleted and old rows."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from pipeline.faults import UsageError

_ICEBERG_METADATA = re.compile(r"(v\d+|\d+-[0-9a-f-]{36})(\.\w+)?\.metadata\.json(\.gz)?|version-hint\.text")

_READERS = {
    "Delta": "duckdb -c \"COPY (SELECT * FROM delta_scan('{table}')) TO 'rows.parquet'\"",
    "Iceberg": "duckdb -c \"COPY (SELECT * FROM iceberg_scan('{table}')) TO 'rows.parquet'\"",
    "Hudi": "spark.read.format(\"hudi\").load('{table}').write.parquet('rows')",
    "Paimon": "spark.read.format(\"paimon\").load('{table}').write.parquet('rows')",
}


def require_no_lake(paths: Iterable[Path]) -> None:
    """Raises `UsageError` for a file in a table of a lake format: only the table's log says which rows are current."""
    seen: set[Path] = set()
    for path in paths:
        for folder in path.parents:
            if folder in seen:
                break
            seen.add(folder)
            if kind := _lake_at(folder):
                raise UsageError(
                    f"{folder} is a table of {kind}: its files also hold rows that were deleted or replaced. "
                    f"Export the rows that it has now, and read those: {_READERS[kind].format(table=folder)}"
                )


def _lake_at(folder: Path) -> str | None:
    if (folder / "_delta_log").is_dir():
        return "Delta"
    if (folder / ".hoodie").is_dir():
        return "Hudi"
    if any(_ICEBERG_METADATA.fullmatch(name) for name in _names(folder / "metadata")):
        return "Iceberg"
    if (folder / "snapshot").is_dir() and (folder / "manifest").is_dir() and (folder / "schema").is_dir():
        return "Paimon"
    return None


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - names are enough
    except OSError:
        return []
