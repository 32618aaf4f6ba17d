"""Shows rows of a dataset to people, and keeps failures to show them from failing the run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.cli.tables import print_table, short
from pipeline.text import printable


@contextmanager
def for_the_eye(what: str) -> Iterator[None]:
    """Guards a block that shows `what` after the work is done: any exception becomes a note on stderr.

    The exit code is that of the work; a failure to show it does not change it.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001 - a failure to show finished work must not change its exit code
        print(f"note: {what} cannot be shown: {printable(str(error)) or type(error).__name__}", file=sys.stderr)


def print_sample(output: Path, key: str | None, *, rows: int) -> None:
    """Prints the first rows of a dataset as a small table: their key and parsed values."""
    from pipeline.storage.records import records

    table = []
    for ordinal, record in records(output):
        name = str(record[key]) if key and key in record else str(ordinal)
        value = record["parsed"]
        values = value if isinstance(value, dict) else {"answer": value}
        if record["status"] == "failed":
            values = dict.fromkeys(values, None) | {"error": record["error"]["message"]}
        table.append({key or "row": name, **{field: short(inner, 32) for field, inner in list(values.items())[:5]}})
        if len(table) == rows:
            break
    columns = list(dict.fromkeys(name for line in table for name in line))
    print_table([{name: line.get(name, "") for name in columns} for line in table])
