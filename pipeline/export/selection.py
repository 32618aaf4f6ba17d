"""Which columns are exported, by names such as `id`, `parsed` or `parsed.place.city`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.faults import UsageError
from pipeline.text import nearest

Path = tuple[str, ...]
"""The name of a column, then those of the fields within it."""

_Tree = dict[str, Any]
"""The selected fields by name, each with its own selected fields; None for a field that is selected as a whole."""


@dataclass(frozen=True, slots=True)
class ColumnSelection:
    """The selected columns and fields of a dataset, in the order in which they were named."""

    schema: pa.Schema
    """The schema of the dataset."""
    paths: tuple[Path, ...]

    @property
    def columns(self) -> list[str]:
        """The columns that hold something selected."""
        return list(dict.fromkeys(path[0] for path in self.paths))

    def nested(self) -> pa.Schema:
        """The schema of `pruned` batches: structs hold their selected fields alone."""
        return self.pruned(pa.RecordBatch.from_pylist([], schema=self.schema)).schema

    def pruned(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The selected columns of a batch; structs hold their selected fields alone."""
        tree = _tree(self.paths)
        arrays = [_pruned(batch.column(name), fields) for name, fields in tree.items()]
        fields = [self.schema.field(name).with_type(array.type) for name, array in zip(tree, arrays, strict=True)]
        return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))

    def leaves(self) -> list[Path]:
        """The paths of everything selected that is not a struct.

        Raises `UsageError` if two have the same dotted name.
        """
        found = list(dict.fromkeys(leaf for path in self.paths for leaf in _leaves(path, _type_at(self.schema, path))))
        alike = [name for name, count in Counter(map(dotted, found)).items() if count > 1]
        if alike:
            raise UsageError(
                f"two columns would be called {', '.join(alike)}: leave one out with --columns, or export .jsonl"
            )
        return found


def select(schema: pa.Schema, names: Sequence[str]) -> ColumnSelection:
    """The columns and fields of these names, each of which may be several, separated by commas; without names, all.

    A field within a struct is named after it, with a dot. Raises `UsageError` for an unknown name, and for names that
    are all empty.
    """
    if not names:
        return ColumnSelection(schema, tuple((name,) for name in schema.names))
    whole = set(schema.names)  # these may have commas, or blanks around them
    pieces = (piece for name in names for piece in ([name] if name in whole else name.split(",")))
    single = (piece if piece in whole else piece.strip() for piece in pieces)
    paths = tuple(dict.fromkeys(_path(name, schema) for name in single if name))
    if not paths:
        raise UsageError("--columns names no column: leave it out for all of them")
    return ColumnSelection(schema, paths)


def dotted(path: Path) -> str:
    """The name of a column of a flat format."""
    return ".".join(path)


def values_at(batch: pa.RecordBatch, path: Path) -> pa.Array:
    """A column of a batch, or a field within it; null where a struct around it is."""
    array = batch.column(path[0])
    for name in path[1:]:
        array = pc.struct_field(array, array.type.get_field_index(name))
    return array


def _path(name: str, schema: pa.Schema) -> Path:
    """The path that a name means: names may themselves hold dots, and the longest that exists counts."""
    path: Path = ()
    rest, fields = name, {field.name: field.type for field in schema}
    while rest:
        fitting = [known for known in fields if rest == known or rest.startswith(f"{known}.")]
        if not fitting:
            known = [dotted((*path, inner)) for inner in fields]
            hint = nearest(name, known) if known else f" ({dotted(path)} has no fields)"
            raise UsageError(f"--columns names {name!r}, which is not in the dataset{hint}")
        found = max(fitting, key=len)
        path, rest = (*path, found), rest[len(found) + 1 :]
        kind = fields[found]
        fields = {field.name: field.type for field in kind} if pa.types.is_struct(kind) else {}
    return path


def _type_at(schema: pa.Schema, path: Path) -> pa.DataType:
    kind = schema.field(path[0]).type
    for name in path[1:]:
        kind = kind.field(name).type
    return kind


def _leaves(path: Path, kind: pa.DataType) -> Iterator[Path]:
    if not pa.types.is_struct(kind):
        yield path
        return
    for field in kind:
        yield from _leaves((*path, field.name), field.type)


def _tree(paths: Sequence[Path]) -> _Tree:
    root: _Tree = {}
    for path in paths:
        place = root
        for name in path[:-1]:
            inner = place.setdefault(name, {})
            if inner is None:
                break  # the whole of it is selected already
            place = inner
        else:
            place[path[-1]] = None
    return root


def _pruned(array: pa.Array, selected: _Tree | None) -> pa.Array:
    if selected is None:
        return array
    fields, arrays = [], []
    for name, inner in selected.items():
        field = array.type.field(name)
        arrays.append(_pruned(array.field(name), inner))
        fields.append(field.with_type(arrays[-1].type))
    return pa.StructArray.from_arrays(arrays, fields=fields, mask=array.is_null())
