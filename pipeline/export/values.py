"""Values of a dataset as JSON and as text, without loss.

Decimals keep their digits, dates and times are ISO 8601 (those with a time zone in UTC, as `Z`), binary data is base64,
durations are ISO 8601 seconds (`PT1.5S`). JSON has no NaN and no infinity, which are the texts `NaN`, `Infinity` and
`-Infinity`.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.types as t

from pipeline.storage.batches import rows_of

_Form = Callable[[Any], Any]

_DIGITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}
"""Decimal digits of a second in a unit."""


def python_rows(arrays: Sequence[pa.Array]) -> Iterator[list[Any]]:
    """The rows of some columns as values that `json_bytes` and `text_of` take."""
    if not arrays:
        return
    forms = [_form(array.type) for array in arrays]
    batch = pa.RecordBatch.from_arrays(list(arrays), names=[str(number) for number in range(len(arrays))])
    for row in rows_of(batch):
        yield [value if form is None else form(value) for form, value in zip(forms, row.values(), strict=True)]


def json_bytes(value: Any) -> bytes:
    """A value of `python_rows` as compact JSON."""
    return orjson.dumps(value, default=_json_form, option=orjson.OPT_UTC_Z)


def text_of(value: Any) -> str:
    """A value of `python_rows`, other than null, as the text of a cell; lists and maps are JSON."""
    match value:
        case str():
            return value
        case bool() | list() | dict():
            return json_bytes(value).decode()
        case int() | float():
            return repr(value)
        case datetime():
            return value.isoformat().replace("+00:00", "Z")
        case date() | time():
            return value.isoformat()
        case Decimal():
            return format(value, "f")
        case _:
            return str(_json_form(value))


def _json_form(value: object) -> Any:
    """What orjson does not know."""
    match value:
        case Decimal():
            return orjson.Fragment(format(value, "f").encode())
        case bytes():
            return base64.b64encode(value).decode()
        case timedelta():
            return _seconds(value // timedelta(microseconds=1), 6)
        case _:
            return str(value)


def _seconds(count: int, digits: int) -> str:
    """A number of units, of which 10 to the power of `digits` make a second, as ISO 8601 seconds."""
    text = format(Decimal(count).scaleb(-digits), "f")
    return f"PT{text.rstrip('0').rstrip('.') if '.' in text else text}S"


def _form(kind: pa.DataType) -> _Form | None:
    """What makes of a Python value of this type one that JSON can hold; None if it is one."""
    if t.is_floating(kind):
        return _finite
    if t.is_timestamp(kind):
        return _timestamp
    if t.is_duration(kind):
        return partial(_duration, digits=_DIGITS[kind.unit])
    if t.is_dictionary(kind):
        return _form(kind.value_type)
    if t.is_map(kind):
        return _map_form(_form(kind.item_type))
    if t.is_struct(kind):
        inner = {field.name: form for field in kind if (form := _form(field.type)) is not None}
        return _struct_form(inner) if inner else None
    if t.is_nested(kind):
        form = _form(kind.value_type)
        return None if form is None else lambda values: values and [form(value) for value in values]
    return None


def _finite(value: float | None) -> float | str | None:
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _timestamp(value: Any) -> Any:
    """Nanoseconds and years above 9999 come as text in UTC, with a space between date and time."""
    if isinstance(value, str):
        return value.replace(" ", "T", 1)
    return value if value is None or value.tzinfo is None else value.astimezone(UTC)


def _duration(value: Any, digits: int) -> Any:
    """Nanoseconds, and more days than Python knows, come as text: the number of units."""
    return _seconds(int(value), digits) if isinstance(value, str) else value


def _map_form(form: _Form | None) -> _Form:
    def of(pairs: Any) -> Any:
        return pairs if pairs is None else {text_of(key): form(item) if form else item for key, item in pairs}

    return of


def _struct_form(inner: dict[str, _Form]) -> _Form:
    def of(value: Any) -> Any:
        return value if value is None else value | {name: form(value[name]) for name, form in inner.items()}

    return of
