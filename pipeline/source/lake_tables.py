"""Detects folders of Parquet files that are tables of a lake format, whose files also hold deleted and old rows."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from pipeline.faults import UsageError
from pipeline.store.address import Address

_ICEBERG_METADATA = re.compile(r"(v\d+|\d+-[0-9a-f-]{36})(\.\w+)?\.metadata\.json(\.gz)?|version-hint\.text")

_LOGS = {"_delta_log": "Delta", ".hoodie": "Hudi"}

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
                raise UsageError(_refusal(folder, kind))


def lake_of_keys(folder: Address, keys: Iterable[str]) -> str | None:
    """Why objects below a folder cannot be read: one of the tables that `require_no_lake` refuses; else None."""
    for key in keys:
        names = key.split("/")
        for at, name in enumerate(names[:-1]):
            iceberg = name == "metadata" and at == len(names) - 2 and _ICEBERG_METADATA.fullmatch(names[-1])
            if kind := _LOGS.get(name) or ("Iceberg" if iceberg else None):
                return _refusal(Address(folder.scheme, folder.bucket, "/".join(names[:at])), kind)
    return None


def _refusal(table: Path | Address, kind: str) -> str:
    return (
        f"{table} is a table of {kind}: its files also hold rows that were deleted or replaced. "
        f"Export the rows that it has now, and read those: {_READERS[kind].format(table=table)}"
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
