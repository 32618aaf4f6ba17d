"""Columns: an Arrow type each, and an exact conversion to it. A value that would be changed is a `Misfit`.

Every `plain` returns a value that `pyarrow.array(values, type=column.arrow())` accepts without loss or error.
pyarrow is loaded only when a type is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time
from decimal import Context, Decimal, DivisionByZero, Inexact, InvalidOperation, Overflow
from enum import Enum
from typing import Any

from pipeline.faults import UsageError
from pipeline.schema.exact_numbers import json_of
from pipeline.text import excerpt

ArrowType = Any


class Misfit(Exception):
    """A value that its column cannot hold exactly. `path` leads to it: field names, and positions in lists."""

    def __init__(self, reason: str, path: tuple[str | int, ...] = ()) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = path

    def under(self, step: str | int) -> Misfit:
        """The same misfit, with a path from one level further out."""
        return Misfit(self.reason, (step, *self.path))


@dataclass(frozen=True, slots=True)
class Column:
    """One column, or one level of a nested one.

    `label` names the type as Arrow prints it; `arrow` builds it; `plain` converts a value other than None for pyarrow,
    or raises `Misfit`. None is a null if `nullable`, else a `Misfit`. In a column with inner columns, `rebuilt` makes
    the same column with a function applied to each of them.
    """

    label: str
    arrow: Callable[[], Any]
    plain: Callable[[Any], Any]
    nullable: bool = False
    rebuilt: Callable[[Callable[[Column], Column]], Column] | None = None

    def with_leaves(self, change: Callable[[Column], Column]) -> Column:
        """The same column with `change` applied to each innermost column."""
        if self.rebuilt is None:
            return change(self)
        return replace(self.rebuilt(lambda inner: inner.with_leaves(change)), nullable=self.nullable)

    def __str__(self) -> str:
        return self.label if self.nullable else f"{self.label} not null"

    @property
    def take(self) -> Callable[[Any], Any]:
        """`plain`, extended to handle None."""
        plain = self.plain
        if self.nullable:
            return lambda value: None if value is None else plain(value)
        return plain


def quoted(value: Any, limit: int = 40) -> str:
    """Any value for a message: one line of at most `limit` characters."""
    if isinstance(value, int) and value.bit_length() > 1000:
        return f"an integer of {value.bit_length()} bits"
    return excerpt(str(value), limit)


def _expected(kind: str, value: Any) -> Misfit:
    return Misfit(
        "null where a value is required" if value is None else f"expected {kind}, found {type(value).__name__}"
    )


def _pyarrow() -> Any:
    import pyarrow as pa

    return pa


def _string(value: Any) -> str:
    if type(value) is str and value.isascii():
        return value
    if not isinstance(value, str):
        raise _expected("text", value)
    # The text itself, of a subclass such as an enum too, whose `str` may be its name.
    text = str.__str__(value)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Misfit("text with half a surrogate pair is not Unicode") from None
    return text


def _integer(value: Any) -> int:
    # Arrow would take a float without a fraction, and make 3 of 3.0: the answer said something else.
    if not isinstance(value, int):
        raise _expected("an integer", value)
    if not -(2**63) <= value < 2**63:
        raise Misfit(f"{quoted(value)} does not fit int64")
    return int(value)


def _float(value: Any) -> float:
    if not isinstance(value, int | float):
        raise _expected("a number", value)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    # Integers above 2^53 may change as doubles; NaN and infinity have no JSON, and compare unequal to themselves.
    if not math.isfinite(number) or number != value:
        raise Misfit(f"{quoted(value)} does not fit float64")
    return number


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _expected("a boolean", value)
    return value


def _binary(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise _expected("bytes", value)
    return value


def _date(value: Any) -> date:
    # A datetime is a date to Python; its time of day would be dropped in silence.
    if not isinstance(value, date) or isinstance(value, datetime):
        raise _expected("a date", value)
    return value


def _time(value: Any) -> time:
    if not isinstance(value, time):
        raise _expected("a time", value)
    return value.replace(tzinfo=None)  # the time as written, although JSON Schema's format `time` requires an offset


def _instant(value: Any) -> datetime:
    if not isinstance(value, datetime):
        raise _expected("a datetime", value)
    # Without an offset it is taken for UTC, the zone of the column; the machine's own zone would be chance.
    if value.tzinfo is None:
        return value.replace(tzinfo=UTC)
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise Misfit(f"{quoted(value)} is outside the years 1 to 9999 in UTC") from None


def _wall_time(value: Any) -> datetime:
    if not isinstance(value, datetime):
        raise _expected("a datetime", value)
    if value.tzinfo is not None:
        raise Misfit(f"{quoted(value)} has a time zone, and this timestamp has none")
    return value


STRING = Column("string", lambda: _pyarrow().string(), _string)
INT64 = Column("int64", lambda: _pyarrow().int64(), _integer)
FLOAT64 = Column("float64", lambda: _pyarrow().float64(), _float)
BOOL = Column("bool", lambda: _pyarrow().bool_(), _bool)
BINARY = Column("binary", lambda: _pyarrow().binary(), _binary)
DATE = Column("date32", lambda: _pyarrow().date32(), _date)
TIME = Column("time64[us]", lambda: _pyarrow().time64("us"), _time)
TIME_TEXT = Column("string (time)", lambda: _pyarrow().string(), lambda value: _time(value).isoformat())
INSTANT = Column("timestamp[us, UTC]", lambda: _pyarrow().timestamp("us", "UTC"), _instant)
WALL_TIME = Column("timestamp[us]", lambda: _pyarrow().timestamp("us"), _wall_time)


def decimal(precision: int = 38, scale: int = 9) -> Column:
    """Exact decimals; trailing zeros do not count.

    Raises `UsageError` above 38 digits, which DuckDB and BigQuery cannot hold.
    """
    precision = max(precision, scale, 1)
    if precision > 38:
        raise UsageError(
            f"a decimal of {precision} digits fits no column (38 at most): use max_digits=38 or less, or str"
        )
    label = f"decimal128({precision}, {scale})"
    quantum = Decimal((0, (1,), -scale))
    # Inexact is trapped: `quantize` would otherwise round what does not fit the scale.
    context = Context(prec=precision, traps=[Inexact, InvalidOperation, Overflow, DivisionByZero])

    def plain(value: Any) -> Decimal:
        if not isinstance(value, Decimal):
            raise _expected("a decimal", value)
        try:
            if value.is_finite():
                return value.quantize(quantum, context=context)
        except (Inexact, InvalidOperation):
            pass
        raise Misfit(f"{quoted(value)} does not fit {label}")

    return Column(label, lambda: _pyarrow().decimal128(precision, scale), plain)


def json_text(jsonable: Callable[[Any], Any] = lambda value: value, *, nullable: bool = False) -> Column:
    """Values without a column type, as compact JSON: keys in their original order, numbers with all their digits."""

    def plain(value: Any) -> str:
        if value is None:
            raise _expected("a value", value)
        try:
            text = json_of(jsonable(value))
        except ValueError:
            raise Misfit("holds what JSON cannot express (NaN, infinity or a foreign type)") from None
        return _string(text)

    return Column("string (JSON)", lambda: _pyarrow().string(), plain, nullable)


def via(step: Callable[[Any], Any], column: Column) -> Column:
    """`column` for values of another type: `step` converts each before the column takes it."""
    take = column.take

    def plain(value: Any) -> Any:
        return take(None if value is None else step(value))

    return Column(column.label, column.arrow, plain, column.nullable, lambda change: via(step, change(column)))


def times_as_text(column: Column) -> Column:
    """The same column with every time of day as text: HH:MM:SS, and a fraction of a second if it has one."""

    def change(leaf: Column) -> Column:
        return replace(TIME_TEXT, nullable=leaf.nullable) if leaf.label == TIME.label else leaf

    return column.with_leaves(change)


def bare(value: Any) -> Any:
    """An enum member's value; anything else unchanged."""
    return value.value if isinstance(value, Enum) else value


def list_of(element: Column, *, ordered: bool = True) -> Column:
    """A list. An unordered collection is sorted, so that the same answer always gives the same column."""
    take = element.take

    def plain(value: Any) -> list[Any]:
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Collection):
            raise _expected("a list", value)
        try:
            items = [take(item) for item in value]
        except Misfit:
            # Positions cost a generator step per item, so they are found only once something does not fit.
            items = list(_located(take, value))
        return items if ordered else _sorted(items)

    def arrow() -> Any:
        pa = _pyarrow()
        return pa.list_(pa.field("element", element.arrow(), nullable=element.nullable))

    def rebuilt(change: Callable[[Column], Column]) -> Column:
        return list_of(change(element), ordered=ordered)

    return Column(f"list<element: {element}>", arrow, plain, rebuilt=rebuilt)


def _located(take: Callable[[Any], Any], values: Collection[Any]) -> Any:
    """Converts a list with a misfit again: slower, but it reports the position."""
    for position, value in enumerate(values):
        try:
            yield take(value)
        except Misfit as misfit:
            raise misfit.under(position) from None


def _sorted(items: list[Any]) -> list[Any]:
    try:
        return sorted(items)
    # By `repr`, whose order means nothing but is the same in every process.
    except TypeError:  # nulls and structs have no natural order
        return sorted(items, key=repr)


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a struct: its column's name, and how to get its value from the struct."""

    name: str
    get: Callable[[Any], Any]
    column: Column


def struct_of(fields: Sequence[Field], kind: type, where: str) -> Column:
    """A struct of `fields`, read from an instance of `kind`.

    Raises `UsageError` when two names differ only in case: BigQuery rejects them.
    """
    # Here, where the schema is compiled: after the run, BigQuery would refuse the finished dataset.
    _refuse_twins([field.name for field in fields], where)
    steps = [(field.name, field.get, field.column.take) for field in fields]

    def plain(value: Any) -> dict[str, Any]:
        if not isinstance(value, kind):
            raise _expected(where, value)
        record = {}
        for name, get, take in steps:
            try:
                record[name] = take(get(value))
            except Misfit as misfit:
                raise misfit.under(name) from None
        return record

    def arrow() -> Any:
        pa = _pyarrow()
        return pa.struct([pa.field(f.name, f.column.arrow(), nullable=f.column.nullable) for f in fields])

    def rebuilt(change: Callable[[Column], Column]) -> Column:
        return struct_of([replace(field, column=change(field.column)) for field in fields], kind, where)

    label = ", ".join(f"{field.name}: {field.column}" for field in fields)
    return Column(f"struct<{label}>", arrow, plain, rebuilt=rebuilt)


def _refuse_twins(names: Sequence[str], where: str) -> None:
    seen: dict[str, str] = {}
    for name in names:
        twin = seen.setdefault(name.casefold(), name)
        if twin is not name:
            raise UsageError(
                f"{where}: the fields {twin!r} and {name!r} differ only in case, which warehouses reject: rename one"
            )
