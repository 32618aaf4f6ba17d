"""Rows that are in memory or come one by one, written to a Parquet file that is then the input.

Anything with `__arrow_c_stream__` (https://arrow.apache.org/docs/format/CDataInterface/PyCapsuleInterface.html) is read
through it: Arrow tables and readers, pandas, Polars, DuckDB relations. None of these libraries is imported.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.faults import NothingToDo, UsageError

GROUP_ROWS = 10_000
"""Rows of a row group; fewer if they are large. The same rows make the same file, however they are divided."""

GROUP_BYTES = 32 << 20

_PANDAS_INDEX = re.compile(r"__index_level_\d+__")
"""The index of a pandas frame, where it has no name: it numbers rows, and is not data."""

_ACCEPTED = (
    "`rows` takes paths and addresses, an Arrow table or reader, a frame of pandas, Polars or DuckDB, "
    "a dataset of Hugging Face, or an iterable of dicts or pydantic models"
)


def are_places(rows: Any) -> bool:
    """Whether rows are given as paths, addresses or globs, rather than as values."""
    if isinstance(rows, str | Path):
        return True
    return isinstance(rows, list | tuple) and bool(rows) and all(isinstance(one, str | Path) for one in rows)


def write_rows(rows: Any, file: IO[bytes]) -> None:
    """Writes rows as Parquet, with memory that does not grow with their number; the same rows give the same bytes.

    Raises `UsageError` for what cannot be rows, and `NothingToDo` if there are none.
    """
    with ExitStack() as stack:
        schema, batches = _stream_of(rows, stack)
        _require_columns(schema)
        count = _write(schema, batches, file)
    if count == 0:
        raise NothingToDo("`rows` holds no row")


def _write(schema: pa.Schema, batches: Iterator[pa.RecordBatch], file: IO[bytes]) -> int:
    """Writes the batches, and returns the number of their rows."""
    count = 0
    try:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for table in _regrouped(batches, schema):
                count += table.num_rows
                for piece in _pieces(table):
                    writer.write_table(piece, row_group_size=max(1, piece.num_rows))
    except pa.ArrowNotImplementedError as error:
        raise UsageError(f"`rows` holds values that Parquet has no type for ({error}): convert them first") from None
    return count


def _stream_of(rows: Any, stack: ExitStack) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """The columns of rows, and the rows in batches; what they need is closed by the stack."""
    rows = _arrow_of(rows)
    if hasattr(rows, "__arrow_c_stream__"):
        reader = pa.RecordBatchReader.from_stream(rows)
        kept = [index for index, name in enumerate(reader.schema.names) if not _PANDAS_INDEX.fullmatch(name)]
        fields = [_storable(reader.schema.field(index)) for index in kept]
        schema = pa.schema(fields)
        return schema, (_batch_of([batch.column(index) for index in kept], schema) for batch in reader)
    if isinstance(rows, Mapping | bytes) or not isinstance(rows, Iterable):
        remedy = ": pa.table(rows) makes a table of a dict of columns" if isinstance(rows, Mapping) else ""
        raise UsageError(f"{_ACCEPTED}, not {type(rows).__name__}{remedy}")
    return _of_records(iter(rows), stack.enter_context(_Spill()))


def _arrow_of(rows: Any) -> Any:
    """The Arrow table within an object of a library that wraps one, such as a dataset of Hugging Face."""
    if isinstance(rows, pa.RecordBatch):
        return pa.Table.from_batches([rows])
    if hasattr(rows, "__arrow_c_stream__"):
        return rows
    if hasattr(rows, "with_format") and hasattr(rows, "features"):
        # A selection or a shuffle of a Hugging Face dataset is an index over its table: in this format it is applied.
        return _hugging_face(rows.with_format("arrow"))
    return rows


def _hugging_face(dataset: Any) -> Any:
    batches = (batch for table in dataset.iter(batch_size=GROUP_ROWS) for batch in table.to_batches())
    first = next(batches, None)
    if first is None:
        return iter(())
    return pa.RecordBatchReader.from_batches(first.schema, chain([first], batches))


def _storable(field: pa.Field) -> pa.Field:
    """The column as it is stored: without another library's metadata, and with a type that every reader has."""
    return pa.field(field.name, _plain_type(field.type), nullable=True)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_dictionary(kind):
        return pa.dictionary(pa.int32(), _plain_type(kind.value_type), kind.ordered)
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(one.name, _plain_type(one.type), one.nullable) for one in kind])
    if pa.types.is_list_view(kind) or pa.types.is_list(kind):
        return pa.list_(_plain_type(kind.value_type))
    if pa.types.is_large_list_view(kind) or pa.types.is_large_list(kind):
        return pa.large_list(_plain_type(kind.value_type))
    return kind


def _batch_of(arrays: Sequence[pa.Array], schema: pa.Schema) -> pa.RecordBatch:
    pairs = zip(arrays, schema.types, strict=True)
    return pa.RecordBatch.from_arrays([_cast(array, kind) for array, kind in pairs], schema=schema)


def _cast(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if array.type == kind:
        return array
    if pa.types.is_dictionary(kind):  # that of Polars has views as values, which cannot be cast in it
        indices, values = array.indices.cast(kind.index_type), array.dictionary.cast(kind.value_type)
        return pa.DictionaryArray.from_arrays(indices, values, ordered=kind.ordered)
    return array.cast(kind)


def _require_columns(schema: pa.Schema) -> None:
    if not schema.names:
        raise UsageError("`rows` holds no column")
    for name in schema.names:
        if schema.names.count(name) > 1:
            raise UsageError(f"`rows` holds two columns called {name!r}: rename one")


def _regrouped(batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows in tables of `GROUP_ROWS`, whatever the batches were."""
    waiting: list[pa.RecordBatch] = []
    count = 0
    for whole in batches:
        at = 0
        while at < whole.num_rows:
            taken = whole.slice(at, GROUP_ROWS - count)
            waiting.append(taken)
            at, count = at + taken.num_rows, count + taken.num_rows
            if count == GROUP_ROWS:
                yield pa.Table.from_batches(waiting, schema)
                waiting, count = [], 0
    if waiting:
        yield pa.Table.from_batches(waiting, schema)


def _pieces(table: pa.Table) -> Iterator[pa.Table]:
    rows = max(1, table.num_rows // max(1, -(-table.nbytes // GROUP_BYTES)))
    return (table.slice(at, rows).combine_chunks() for at in range(0, table.num_rows, rows))


# Records: dicts and pydantic models.


def _of_records(records: Iterator[Any], spill: _Spill) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """The columns are known when all records have been seen: until then they wait in a file, in the types so far."""
    at = 0
    while rows := list(islice(records, GROUP_ROWS)):
        spill.add(_columns_of([_record(one, at + index) for index, one in enumerate(rows)], at))
        at += len(rows)
    if spill.schema is None:
        raise NothingToDo("`rows` holds no row")
    return spill.schema, spill.batches()


def _record(one: Any, index: int) -> Mapping[str, Any]:
    if isinstance(one, Mapping):
        record: Mapping[str, Any] = one
    elif hasattr(one, "model_dump"):
        record = one.model_dump()
    else:
        raise UsageError(f"{_ACCEPTED}; row {index} is a {type(one).__name__}")
    for name in record:
        if not isinstance(name, str):
            raise UsageError(f"the columns of `rows` are named by texts, and row {index} has {name!r}")
    return record


def _columns_of(records: Sequence[Mapping[str, Any]], first: int) -> pa.RecordBatch:
    names = list(dict.fromkeys(chain.from_iterable(records)))
    arrays = [_array([record.get(name) for record in records], name, first) for name in names]
    return pa.RecordBatch.from_arrays(arrays, names=names)


def _array(values: Sequence[Any], name: str, first: int) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"the values of {name!r}, in rows {first} to {first + len(values) - 1} of `rows`, have no common type "
            f"({reason}): convert them first"
        ) from None


class _Spill:
    """Batches on disk, each in its own type; and the type that all of them fit."""

    def __init__(self) -> None:
        self.schema: pa.Schema | None = None
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `__exit__`
        self._spans: list[tuple[int, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, batch: pa.RecordBatch) -> None:
        """Writes a batch. Raises `UsageError` if it has no type in common with those before."""
        try:
            known = [self.schema] if self.schema is not None else []
            self.schema = pa.unify_schemas([*known, batch.schema], promote_options="permissive")
        except pa.ArrowException as error:
            raise UsageError(f"`rows` has values of different types in one column ({error}): convert them") from None
        began = self._file.tell()
        with pa.ipc.new_stream(self._file, batch.schema) as writer:
            writer.write_batch(batch)
        self._spans.append((began, self._file.tell()))

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The batches again, all in the type that they share."""
        if self.schema is None:
            return
        for began, end in self._spans:
            self._file.seek(began)
            for batch in pa.ipc.open_stream(self._file.read(end - began)):
                yield _widened(batch, self.schema)


def _widened(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The batch with the columns of a schema, null where it lacks one. Raises `UsageError` if a value does not fit."""
    arrays = []
    for field in schema:
        at = batch.schema.get_field_index(field.name)
        try:
            arrays.append(pa.nulls(batch.num_rows, field.type) if at < 0 else batch.column(at).cast(field.type))
        except pa.ArrowException as error:
            raise UsageError(
                f"the values of {field.name!r} in `rows` have no common type ({error}): convert them first"
            ) from None
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


# What differs between two files of rows.


def row_differences(before: Path, now: Path) -> list[str]:
    """How the rows of two files that `write_rows` wrote differ, a sentence for each column; empty if they do not."""
    with pq.ParquetFile(before) as old, pq.ParquetFile(now) as new:
        columns = [*old.schema_arrow.names, *(n for n in new.schema_arrow.names if n not in old.schema_arrow.names)]
        found = [text for name in columns if (text := _type_difference(name, old.schema_arrow, new.schema_arrow))]
        if old.metadata.num_rows != new.metadata.num_rows:
            found.append(f"rows changed: {old.metadata.num_rows:,} -> {new.metadata.num_rows:,}")
        common = [name for name in columns if name in old.schema_arrow.names and name in new.schema_arrow.names]
        return found + [text for name in common if (text := _value_difference(name, old, new))]


def _type_difference(name: str, old: pa.Schema, new: pa.Schema) -> str | None:
    if name not in new.names:
        return f"column {name!r} is no longer in `rows`"
    if name not in old.names:
        return f"column {name!r} is new in `rows`"
    before, now = old.field(name).type, new.field(name).type
    return None if before == now else f"column {name!r} changed its type: {before} -> {now}"


def _value_difference(name: str, old: pq.ParquetFile, new: pq.ParquetFile) -> str | None:
    if old.schema_arrow.field(name).type != new.schema_arrow.field(name).type:
        return None
    first = 0
    sides = (file.iter_batches(GROUP_ROWS, columns=[name]) for file in (old, new))
    for before, now in zip(*sides, strict=False):
        one, other = before.column(0), now.column(0)
        count = min(len(one), len(other))
        if not one.slice(0, count).equals(other.slice(0, count)):
            at = next((index for index in range(count) if one[index].as_py() != other[index].as_py()), None)
            where = "" if at is None else f", first in row {first + at}: {_shown(one[at])} -> {_shown(other[at])}"
            return f"column {name!r} changed{where}"
        first += len(one)
    return None


def _shown(value: pa.Scalar) -> str:
    text = repr(value.as_py())
    return text if len(text) <= 60 else f"{text[:57]}..."
