"""One Arrow type is settled for each column of JSON, without changing a value and whatever the blocks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.faults import UsageError
from pipeline.source import Source, survey
from pipeline.source.jsonl import MAX_NESTING
from pipeline.source.plain_types import MAX_DEPTH, MAX_FIELDS
from pipeline.source.type_inference import (
    ALWAYS_JSON,
    MAX_COLUMNS,
    ColumnTypes,
    infer_type,
    json_text,
    merge,
)


def settled(tmp_path: Path, *files: Sequence[Any], name: str = "x") -> tuple[Any, list[Any]]:
    """The type of one column, given its values by file, and the values as kept."""
    for index, values in enumerate(files):
        content = "".join(json.dumps({name: value}) + "\n" for value in values)
        (tmp_path / f"{index}.jsonl").write_text(content)
    found = survey([tmp_path])
    source = Source(found, needed=[], kept=[name])
    return source.kept_schema.field(name).type, [
        value
        for index in range(len(found.chunks))
        for batch in source.chunk(index)
        for value in batch.kept[name].to_pylist()
    ]


def struct(**fields: pa.DataType) -> pa.DataType:
    return pa.struct(list(fields.items()))


def nested(levels: int, value: Any) -> Any:
    return value if levels == 0 else [nested(levels - 1, value)]


def nested_type(levels: int) -> pa.DataType:
    return pa.int64() if levels == 0 else pa.list_(nested_type(levels - 1))


EXACT = {
    "integers": ([1, None, -(2**63)], pa.int64()),
    "fractions": ([1.5, None], pa.float64()),
    "integers that a double holds, and fractions": ([1, 2.5, 2**53], pa.float64()),
    "strings": (["a", None, ""], pa.string()),
    "booleans": ([True, None], pa.bool_()),
    "dates stay strings": (["2025-01-31"], pa.string()),
    "nulls only": ([None, None], pa.string()),
    "lists": ([[1], None, [], [None, 2]], pa.list_(pa.int64())),
    "lists of nulls": ([[], [None]], pa.list_(pa.string())),
    "lists of integers and fractions": ([[1], [2.5]], pa.list_(pa.float64())),
    "objects": ([{"a": 1, "b": None}, None], struct(a=pa.int64(), b=pa.string())),
    "lists of lists": ([[[1.5]], [[]]], pa.list_(pa.list_(pa.float64()))),
    "lists as deep as readers of Parquet go": ([nested(MAX_DEPTH, 1)], nested_type(MAX_DEPTH)),
    "lists of objects": ([[{"a": True}, None]], pa.list_(struct(a=pa.bool_()))),
}


@pytest.mark.parametrize(("values", "kind"), EXACT.values(), ids=EXACT)
def test_i5_a_column_is_kept_exactly_in_the_type_of_its_values(
    tmp_path: Path, values: list[Any], kind: pa.DataType
) -> None:
    assert settled(tmp_path, values) == (kind, values)


@pytest.mark.parametrize(("values", "kind"), EXACT.values(), ids=EXACT)
def test_i4_null_widens_to_any_type_of_another_file(tmp_path: Path, values: list[Any], kind: pa.DataType) -> None:
    assert settled(tmp_path, [None], values, [None]) == (kind, [None, *values, None])


def test_i4_integers_in_one_file_and_fractions_in_another_become_doubles(tmp_path: Path) -> None:
    assert settled(tmp_path, [1, -(2**53)], [0.5]) == (pa.float64(), [1.0, -(2.0**53), 0.5])


def test_i4_integers_small_in_one_file_and_large_in_another_stay_integers(tmp_path: Path) -> None:
    assert settled(tmp_path, [1], [2**60, None], [-(2**63)]) == (pa.int64(), [1, 2**60, None, -(2**63)])


def test_i5_objects_with_different_keys_become_one_struct_with_nulls(tmp_path: Path) -> None:
    kind, values = settled(tmp_path, [{"b": 1}], [{"a": ["x"]}, {}])
    assert kind == struct(b=pa.int64(), a=pa.list_(pa.string()))
    assert values == [{"b": 1, "a": None}, {"b": None, "a": ["x"]}, {"b": None, "a": None}]


JSON_TEXTS = {
    "lists of strings and numbers": [["a", 1]],
    "lists of different types": [[1], ["a"], None],
    "objects whose values differ in type": [{"a": 1}, {"a": "x"}],
    "lists and objects": [[1], {"a": 1}],
    "empty objects": [{}, None, {}],
    "objects that hold empty objects": [{"a": {}}, {"a": {}}],
    "lists of empty objects": [[], [{}]],
    "integers beyond 64 bits inside": [[2**64], [-(2**80)]],
    "integers beyond 2^53 with fractions": [[2**53 + 1], [0.5]],
    "integers below -2^53 with fractions": [[-(2**53) - 1], [0.5]],
    "objects whose keys add up to very many": [{f"{kind}{n}": 1 for n in range(MAX_FIELDS - 1)} for kind in "ab"],
    "booleans and integers inside": [[True], [1]],
    "deeper than readers of Parquet go": [nested(MAX_DEPTH + 1, 1)],
    "as deep as a line may be, with an integer beyond 64 bits": [nested(MAX_NESTING - 1, 2**70)],
    "objects with very many keys": [{str(n): 1} for n in range(MAX_FIELDS + 1)],
}


@pytest.mark.parametrize("values", JSON_TEXTS.values(), ids=JSON_TEXTS)
def test_i5_lists_and_objects_that_fit_no_one_type_are_kept_as_exact_json_text(
    tmp_path: Path, values: list[Any]
) -> None:
    kind, kept = settled(tmp_path, values)
    assert kind == pa.string()
    assert [None if text is None else json.loads(text) for text in kept] == values
    apart, kept_apart = settled(tmp_path, *([value] for value in values[:4]))
    assert values[4:] or (apart, kept_apart) == (kind, kept)


@pytest.mark.parametrize("name", sorted(ALWAYS_JSON))
def test_chats_are_json_text_even_when_their_types_agree(tmp_path: Path, name: str) -> None:
    values = [[{"role": "user", "content": "hi"}], None]
    kind, kept = settled(tmp_path, values, name=name)
    assert (kind, kept) == (pa.string(), ['[{"role":"user","content":"hi"}]', None])


def test_a_column_named_body_that_holds_strings_is_a_plain_string(tmp_path: Path) -> None:
    assert settled(tmp_path, ["a", '"'], name="body") == (pa.string(), ["a", '"'])


MIXED = {
    "a string and an integer": (["a", 1], ["a", "1"]),
    "digits as text and as a number": (["007", 7, 7.5], ["007", "7", "7.5"]),
    "a boolean and an integer": ([True, 1], ["true", "1"]),
    "a fraction and a string": ([0.5, "a"], ["0.5", "a"]),
    "a list and a string": ([[1, "é"], "[1]"], ['[1,"é"]', "[1]"]),
    "an object and a string": ([{"a": None}, "x"], ['{"a":null}', "x"]),
    "JSON text and a number": ([[1, "a"], 1.5], ['[1,"a"]', "1.5"]),
    "an integer beyond 2^53 and a fraction": ([2**53 + 1, 0.5], ["9007199254740993", "0.5"]),
    "an integer beyond 64 bits": ([2**64, 1, -(2**63) - 1], ["18446744073709551616", "1", "-9223372036854775809"]),
}


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(("values", "texts"), MIXED.values(), ids=MIXED)
def test_values_of_several_types_are_kept_as_text_and_reach_the_row_as_they_are(
    tmp_path: Path, values: list[Any], texts: list[str], *, together: bool
) -> None:
    files = [[None, *values]] if together else [[None, values[0]], values[1:]]
    assert settled(tmp_path, *files) == (pa.string(), [None, *texts])
    found = survey([tmp_path])
    assert found.columns == {"x": "string (mixed)"}
    rows = [row.values["x"] for batch in Source(found, needed=["x"], kept=[]).chunk(0) for row in batch.rows]
    assert list(map(repr, rows)) == list(map(repr, [None, *values]))


def test_types_are_told_in_words_for_every_column(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"n": 1, "s": {"a": [0.5]}, "j": [1, "a"], "m": 1, "e": null}\n{"m": "a"}\n')
    found = survey([path])
    assert found.columns == {
        "n": "int64",
        "s": "struct<a: list<item: double>>",
        "j": "string (JSON)",
        "m": "string (mixed)",
        "e": "string",
    }
    assert found.json_columns == ("j", "m")
    assert found.arrow_schema().names == ["n", "s", "j", "m", "e"]


def wide(count: int) -> str:
    return json.dumps({str(number): 1 for number in range(count)})


def test_a_row_with_too_many_keys_fails_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n' * 20 + wide(MAX_COLUMNS) + "\n" + '{"b": 2}\n' * 20)
    found = survey([path], chunk_rows=7)
    assert list(found.columns) == ["a", "b"]
    assert [(bad.line_number, bad.ordinal) for bad in found.bad_lines] == [(21, 20)]
    source = Source(found, needed=None, kept=["b"])
    rows = [row for chunk in range(len(found.chunks)) for batch in source.chunk(chunk) for row in batch.rows]
    assert [row.ordinal for row in rows if row.problem] == [20]
    assert rows[20].problem == "line 21: its keys are more than the 2,000 columns that an input may have"


def test_data_as_keys_is_refused_before_it_becomes_thousands_of_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"id": 1, "k{n}": 1}}\n' for n in range(MAX_COLUMNS * 2)))
    with pytest.raises(UsageError, match=r"more than 2,000 different keys together.*one nested object"):
        survey([path])


numbers = st.none() | st.sampled_from([0, 1, -(2**53), 2**53 + 1, -(2**53) - 1, 2**63, 0.5])
scalars = numbers | st.booleans() | st.text(max_size=1)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
    max_leaves=5,
)
alike = [numbers, st.lists(numbers, max_size=2), st.dictionaries(st.sampled_from("abc"), numbers, max_size=2), values]
blocks = st.sampled_from(alike).flatmap(
    lambda value: st.lists(st.lists(value, min_size=1, max_size=4), min_size=1, max_size=4)
)


def columns_of(blocks: Sequence[Sequence[Any]]) -> ColumnTypes:
    columns = ColumnTypes()
    for block in blocks:
        assert columns.add([{"x": value} for value in block]) == []
    return columns


@settings(max_examples=400, deadline=None)
@given(blocks)
def test_the_settled_type_does_not_depend_on_how_the_rows_are_cut_into_blocks(blocks: list[list[Any]]) -> None:
    cut = columns_of(blocks)
    together, apart = (
        columns_of([[value for block in blocks for value in block]]),
        columns_of([[value] for block in blocks for value in block]),
    )
    for other in (together, apart):
        assert other.types() == cut.types()
        assert other.as_json() == cut.as_json()
        assert other.words() == cut.words()


kinds = st.one_of(alike).map(lambda value: infer_type([value])).filter(lambda kind: kind is not None)


@settings(max_examples=400, deadline=None)
@given(one=kinds, two=kinds, three=kinds)
def test_merging_types_is_idempotent_commutative_and_associative(one: Any, two: Any, three: Any) -> None:
    def merged(left: Any, right: Any) -> Any:
        return None if left is None or right is None else merge(left, right)

    def unordered(kind: Any) -> Any:
        if kind is None or not pa.types.is_nested(kind):
            return kind
        inner = [unordered(kind.field(index).type) for index in range(kind.num_fields)]
        names = [kind.field(index).name for index in range(kind.num_fields)]
        return kind.id, sorted(zip(names, map(str, inner), strict=True))

    assert merge(one, one) == one
    assert unordered(merge(one, two)) == unordered(merge(two, one))
    assert merged(merge(one, two), three) == merged(one, merge(two, three))


@settings(max_examples=200)
@given(values)
def test_json_text_is_compact_and_exact(value: Any) -> None:
    text = json_text(value)
    assert json.loads(text) == value
    assert text == json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":"))
