"""The columns that Spark cannot read: one of them, and it refuses the whole file, whichever columns are asked for.

Tried with Spark 3.5; what Parquet has and Spark's types lack: https://spark.apache.org/docs/latest/sql-ref-datatypes.html
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

ArrowType = Any
"""A type, or a field, of pyarrow's, which is loaded when one is asked for and not before."""

MAX_DIGITS = 38


def refused_columns(fields: Iterable[ArrowType], inside: str = "") -> Iterator[str]:
    """Those among these fields, and the fields inside of them, each as its path and its type."""
    for field in fields:
        path = f"{inside}{field.name}"
        if _is_refused(field.type):
            yield f"{path} ({field.type})"
        elif field.type.num_fields:
            inner = (field.type.field(number) for number in range(field.type.num_fields))
            yield from refused_columns(inner, f"{path}.")


def _is_refused(kind: ArrowType) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _is_refused(kind.value_type)
    if pa.types.is_decimal(kind):
        return bool(kind.precision > MAX_DIGITS)
    return bool(
        pa.types.is_time(kind)
        or (pa.types.is_timestamp(kind) and kind.unit == "ns")
        or pa.types.is_float16(kind)
        or (isinstance(kind, pa.BaseExtensionType) and kind.extension_name == "arrow.uuid")
    )
