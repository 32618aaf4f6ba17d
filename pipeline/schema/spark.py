"""The columns that Spark cannot read: with one of them it rejects the whole file, whichever columns are selected.

Tested with Spark 3.5. Spark's types: https://spark.apache.org/docs/latest/sql-ref-datatypes.html
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pipeline.schema.columns import ArrowType

"""A pyarrow type or field. pyarrow is loaded only when one is used."""

MAX_DIGITS = 38


def refused_columns(fields: Iterable[ArrowType], inside: str = "") -> Iterator[str]:
    """The columns that Spark rejects, among these fields and the fields inside them, each as its path and type."""
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
