"""Lines that are surveyed many at once are described as if each were read by itself."""

from __future__ import annotations

import json
import tempfile
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.faults import UsageError
from pipeline.source import Survey, survey
from pipeline.source.jsonl import MAX_NESTING, is_plain, lines, parse, parse_lines
from pipeline.source.survey import Position
from pipeline.source.type_inference import ColumnTypes

_INTS = st.sampled_from([0, 7, -1, 2**53, 2**53 + 1, -(2**53) - 1, 2**63 - 1, 2**63, 2**64, -(2**63), -(2**63) - 1])
_SCALARS = st.one_of(
    st.none(), st.booleans(), _INTS, st.sampled_from([0.5, -1.0, 1e300]), st.sampled_from(["", "é", "1" * 25, "[[["])
)
_DEEP = st.sampled_from([9, 10, 11, 12, MAX_NESTING - 1, MAX_NESTING, MAX_NESTING + 1]).map(
    lambda depth: json.loads("[" * depth + "]" * depth)
)
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("pq"), inner), max_leaves=5
)
_RECORDS = st.dictionaries(st.sampled_from(["a", "b", "c", "messages"]), _VALUES | _DEEP, max_size=4)
_OTHERS = st.sampled_from(
    [
        b"",
        b"  ",
        b"\r",
        b"[1]",
        b"null",
        b'{"a": 1',
        b'{"a": "\xff"}',
        b'{"a": 1, "a": 99999999999999999999}',
        b'{"a":1}\r',
    ]
)


def line_of(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode()


def alike(records: list[dict[str, Any]], times: int) -> list[bytes]:
    """Lines that repeat some records: of the same keys, if there is one record."""
    return [line_of(record) for record in records] * times


_PIECES = st.one_of(
    st.builds(alike, st.lists(_RECORDS, min_size=1, max_size=3), st.sampled_from([1, 2, 9])),
    st.lists(_OTHERS, max_size=2),
    st.just([line_of({"a": "x" * 70_000})]),
)
_CONTENTS = st.lists(_PIECES, min_size=1, max_size=6).map(lambda pieces: b"\n".join(chain.from_iterable(pieces)))


def described(content: bytes, chunk_rows: int, limit: int | None) -> dict[str, Any]:
    """What a survey must say of a file: read line by line, and its types inferred from all lines at once."""
    stream = iter([content])
    found = [*lines(lambda _: next(stream, b""), Position(0, 0, 1))][:limit]
    records = [parse(line) for _, _, line in found]
    columns = ColumnTypes()
    columns.add([record for record in records if isinstance(record, dict)])
    bad = [(found[at][0], at) for at, record in enumerate(records) if isinstance(record, str)]
    return {
        "rows": len(found),
        "bad": bad[:20],
        "bad_count": len(bad),
        "bytes": sum(len(line) for _, _, line in found),
        "chunks": tuple(Position(0, offset, number) for number, offset, _ in found[::chunk_rows]),
        "columns": columns.words(),
        "order": [*columns.types()],
        "schema": pa.schema([*columns.types().items()]),
        "as_json": columns.as_json(),
    }


def facts(found: Survey) -> dict[str, Any]:
    return {
        "rows": found.rows,
        "bad": [(bad.line_number, bad.ordinal) for bad in found.bad_lines],
        "bad_count": found.bad_count,
        "bytes": round(found.mean_row_bytes * max(found.rows, 1)),
        "chunks": found.chunks,
        "columns": found.columns,
        "order": [*found.columns],
        "schema": found.arrow_schema(),
        "as_json": found.json_columns,
    }


@settings(max_examples=150, deadline=None)
@given(
    content=_CONTENTS,
    bom=st.sampled_from([b"", b"\xef\xbb\xbf"]),
    end=st.sampled_from([b"", b"\n", b"\r\n\n"]),
    chunk_rows=st.sampled_from([1, 2, 3, 7, 1000]),
    limit=st.sampled_from([None, 1, 5]),
)
def test_a_survey_of_many_lines_at_once_says_the_same_as_one_of_each_line(
    content: bytes, bom: bytes, end: bytes, chunk_rows: int, limit: int | None
) -> None:
    whole = bom + content + end
    expected = described(whole, chunk_rows, limit)
    with tempfile.TemporaryDirectory() as folder:
        (path := Path(folder) / "a.jsonl").write_bytes(whole)
        if expected["rows"] == expected["bad_count"] > 0:
            with pytest.raises(UsageError):
                survey(path, chunk_rows=chunk_rows, limit=limit)
        else:
            assert facts(survey(path, chunk_rows=chunk_rows, limit=limit)) == expected


@settings(max_examples=300, deadline=None)
@given(before=st.lists(_RECORDS, max_size=2), records=st.lists(_RECORDS | _RECORDS.map(dict), min_size=1, max_size=4))
@example(before=[{"a": 1}, {"a": "x"}], records=[{"a": 2**64}])  # nobody looks into a column that is text by now
@example(before=[], records=[{"a": [{"p": 2**64}]}])
@example(before=[], records=[{"messages": json.loads("[" * MAX_NESTING + "]" * MAX_NESTING)}])
def test_records_that_are_called_exact_are_and_have_the_types_of_all_values(
    before: list[dict[str, Any]], records: list[dict[str, Any]]
) -> None:
    text = [line_of(record) for record in records]
    read = parse_lines(text)
    assert read is not None
    one, other = ColumnTypes(), ColumnTypes()
    for columns in (one, other):
        columns.add(before)
    examined = one.examine(read)
    assert examined is not None
    types, is_exact = examined
    if is_exact or is_plain(text):
        one.accept(types)
        other.add([record for record in map(parse, text) if isinstance(record, dict)])
        assert read == [parse(line) for line in text]
        assert (one.types(), one.as_json(), one.words()) == (other.types(), other.as_json(), other.words())


def test_records_of_the_same_keys_and_plain_values_need_no_second_look() -> None:
    """Else all lines would be read as slowly as the few that need it."""
    record = {"a": "1" * 30, "b": 2**60, "c": 0.5, "d": None, "e": [{"p": 1, "q": ["x"]}, {"p": 2, "q": []}]}
    examined = ColumnTypes().examine([record, record | {"d": True}])
    assert examined is not None
    assert examined[1]
