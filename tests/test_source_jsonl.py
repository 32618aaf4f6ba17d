"""A line of JSONL is a row, exactly as written, or a row that says what is wrong with it."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import Row
from pipeline.faults import UsageError
from pipeline.source import BadLine, Position, Source, Survey, survey
from pipeline.source.jsonl import MAX_LINE_BYTES, MAX_NESTING, lines, parse


def written(folder: Path, content: bytes) -> Path:
    path = folder / "a.jsonl"
    path.write_bytes(content)
    return path


def read(found: Survey, *, kept: bool = False) -> list[Row]:
    source = Source(found, needed=None, kept=list(found.columns) if kept else [])
    return [row for index in range(len(found.chunks)) for batch in source.chunk(index) for row in batch.rows]


def kept_of(found: Survey, *names: str) -> dict[str, list[Any]]:
    (batch,) = Source(found, needed=[], kept=names).chunk(0)
    columns: dict[str, list[Any]] = batch.kept.to_pydict()
    return columns


BAD = {
    "NUL": b'{"secret": "\x00"}',
    "NUL after the object": b'{"secret": 1}\x00',
    "cut short": b'{"secret": "sec',
    "invalid UTF-8": b'{"secret": "\xff"}',
    "a lone surrogate": b'{"secret": "\\ud800"}',
    "NaN": b'{"secret": NaN}',
    "a number too large for a double": b'{"secret": 1e999}',
    "a trailing comma": b'{"secret": 1,}',
    "two objects": b'{"secret": 1} {"secret": 2}',
    "nesting without end": b'{"secret": ' + b"[" * 100_000,
    "nesting too deep to write again": b'{"secret": ' + b"[" * MAX_NESTING + b"]" * MAX_NESTING + b"}",
    "a carriage return alone": b'{"secret": 1}\r{"secret": 2}',
}


@pytest.mark.parametrize("line", BAD.values(), ids=BAD)
def test_i1_h10_a_malformed_line_is_a_row_with_its_line_number_and_none_of_its_content(
    tmp_path: Path, line: bytes
) -> None:
    path = written(tmp_path, b'{"n": 1}\n\n' + line + b'\n{"n": 2}\n')
    found = survey([path])
    good, bad, last = read(found)
    assert (good, last) == (Row(0, {"n": 1}), Row(2, {"n": 2}))
    assert (bad.ordinal, bad.values) == (1, {})
    assert bad.problem is not None
    assert bad.problem.startswith("line 3: ")
    assert "secret" not in bad.problem
    assert (found.rows, found.bad_count) == (3, 1)
    assert found.bad_lines == (BadLine(str(path), 3, 1, bad.problem),)
    assert kept_of(found, "n") == {"n": [1, None, 2]}


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b"[1]", "a list"),
        (b'"a"', "a string"),
        (b"1", "a number"),
        (b"1.5", "a number"),
        (b"true", "a boolean"),
        (b"null", "null"),
    ],
)
def test_i1_a_line_that_is_no_object_is_a_row_with_a_problem(line: bytes, kind: str) -> None:
    assert parse(line) == f"not a JSON object but {kind}"


def test_i1_blank_lines_are_no_rows_but_count_as_lines(tmp_path: Path) -> None:
    path = written(tmp_path, b'\n  \t\r\n{"n": 1}\n\n\r\n{"n": 2}\noops\n\n')
    assert [(row.ordinal, row.values, (row.problem or "")[:7]) for row in read(survey([path]))] == [
        (0, {"n": 1}, ""),
        (1, {"n": 2}, ""),
        (2, {}, "line 7:"),
    ]


def test_i1_a_byte_order_mark_crlf_and_a_missing_last_newline_are_passed_over(tmp_path: Path) -> None:
    path = written(tmp_path, b'\xef\xbb\xbf{"n": 1}\r\n{"n": 2}\r\n{"n": 3}')
    for chunk_rows in (1, 2, 3):
        assert [row.values for row in read(survey([path], chunk_rows=chunk_rows))] == [{"n": 1}, {"n": 2}, {"n": 3}]


def test_i1_a_byte_order_mark_elsewhere_than_at_the_start_is_a_bad_line(tmp_path: Path) -> None:
    assert survey([written(tmp_path, b'{"n": 1}\n\xef\xbb\xbf{"n": 2}\n')]).bad_count == 1


def test_i1_only_newline_bytes_end_lines(tmp_path: Path) -> None:
    text = "a\u2028b\u2029c\x85d"
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [row.values for row in read(survey([path]), kept=True)] == [{"text": text}]


@pytest.mark.parametrize("size", [MAX_LINE_BYTES, MAX_LINE_BYTES + 1])
def test_i1_a_line_may_have_as_many_bytes_as_the_limit_and_no_more(tmp_path: Path, size: int) -> None:
    long = b'{"text": "' + b"x" * (size - 12) + b'"}'
    found = survey([written(tmp_path, long + b'\n{"text": "y"}\n')], chunk_rows=1)
    assert found.bad_count == size - MAX_LINE_BYTES
    first, second = read(found)
    assert first.problem == (None if found.bad_count == 0 else "line 1: longer than 32 MiB")
    assert second == Row(1, {"text": "y"})
    assert found.chunks[1] == Position(0, size + 1, 2)


def read_of(pieces: Sequence[bytes]) -> Callable[[int], bytes]:
    """What reads a stream that comes in these pieces."""
    left = iter(pieces)
    return lambda _: next(left)


def test_i1_a_line_of_any_length_is_passed_over_in_bounded_memory() -> None:
    pieces = [b'{"n": 1}\n{"x": "', *[b"x" * (1 << 20)] * 100, b'"}\n{"n": 2}\n', b""]
    found = list(lines(read_of(pieces), Position(0, 0, 1)))
    assert [(number, offset) for number, offset, _ in found] == [(1, 0), (2, 9), (3, 9 + 7 + (100 << 20) + 3)]
    assert MAX_LINE_BYTES < len(found[1][2]) < MAX_LINE_BYTES + (2 << 20)
    assert found[2][2] == b'{"n": 2}'


def test_i1_a_line_over_the_limit_is_never_blank() -> None:
    pieces = [b" " * (MAX_LINE_BYTES + 5), b'{"n": 1}', b"\n", b""]
    assert [number for number, _, _ in lines(read_of(pieces), Position(0, 0, 1))] == [1]


@settings(max_examples=200, deadline=None)
@given(content=st.lists(st.sampled_from([b"\n", b"\r", b" ", b"ab", b"{}", b"\xef\xbb\xbf"])), data=st.data())
def test_lines_do_not_depend_on_how_the_stream_is_cut_and_can_be_taken_up_at_any_of_them(
    content: list[bytes], data: st.DataObject
) -> None:
    whole = b"".join(content)
    cuts = sorted(data.draw(st.lists(st.integers(3, max(3, len(whole) - 1)))))
    pieces = [whole[start:end] for start, end in pairwise([0, *cuts, len(whole)]) if start < end] + [b""]
    found = list(lines(read_of(pieces), Position(0, 0, 1)))
    expected = whole.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    assert [(number, line) for number, _, line in found] == [
        (number, line) for number, line in enumerate(expected, 1) if line.strip()
    ]
    for index, (number, offset, _) in enumerate(found):
        assert list(lines(read_of([whole[offset:], b""]), Position(0, offset, number))) == found[index:]


def test_of_two_equal_keys_the_last_counts() -> None:
    assert parse(b'{"a": 1, "b": 2, "a": 3}') == {"a": 3, "b": 2}


@settings(max_examples=300)
@given(st.recursive(st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False), st.lists))
def test_h10_numbers_are_what_is_written_integers_of_any_size_exactly(value: Any) -> None:
    for text in (json.dumps({"a": value}), json.dumps({"a": value}, separators=(",", ":"))):
        record = parse(text.encode())
        assert record == {"a": value}
        assert repr(record) == repr({"a": value})


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 2**64 - 1, 2**64, -(2**64), 10**300])
def test_h10_an_integer_beyond_64_bits_reaches_the_row_exactly_and_makes_its_column_text(
    tmp_path: Path, number: int
) -> None:
    path = written(tmp_path, b'{"n": 1, "x": "a"}\n{"n": %d}\n' % number)
    found = survey([path])
    assert [row.values["n"] for row in read(found)] == [1, number]
    assert kept_of(found, "x", "n") == {"x": ["a", None], "n": ["1", str(number)]}


def test_digits_inside_strings_stay_text() -> None:
    assert parse(b'{"id": "123456789012345678901234567890", "f": 0.1234567890123456789012345}') == {
        "id": "123456789012345678901234567890",
        "f": 0.12345678901234568,
    }


def test_only_the_first_twenty_bad_lines_are_listed_but_all_are_counted(tmp_path: Path) -> None:
    found = survey([written(tmp_path, b"oops\n" * 50 + b"{}\n")])
    assert (found.bad_count, found.rows) == (50, 51)
    assert [bad.line_number for bad in found.bad_lines] == list(range(1, 21))
    assert dict(found.columns) == {}
    source = Source(found, needed=["text"], kept=[])
    assert [row.ordinal for batch in source.chunk(0) for row in batch.rows] == list(range(51))


def test_line_numbers_are_right_in_every_chunk_and_file(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_bytes(b'\n{"n": 1}\noops\n' * 4)
    for chunk_rows in (1, 3, 100):
        found = survey([tmp_path], chunk_rows=chunk_rows)
        source = Source(found, needed=None, kept=[])
        rows = [row for i in reversed(range(len(found.chunks))) for batch in source.chunk(i) for row in batch.rows]
        problems = [row.problem or "" for row in sorted(rows, key=lambda row: row.ordinal)]
        assert [problem.split(":")[0] for problem in problems] == [
            "",
            "line 3",
            "",
            "line 6",
            "",
            "line 9",
            "",
            "line 12",
        ] * 2


COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    ".jsonl.gz": gzip.compress,
    ".jsonl.bz2": bz2.compress,
    ".jsonl.xz": lzma.compress,
    ".jsonl.zst": lambda content: pa.compress(content, "zstd", asbytes=True),  # type: ignore[no-any-return,unused-ignore] # untyped
}


@pytest.mark.parametrize("suffix", COMPRESSED)
@pytest.mark.parametrize("cut", [1, 9, 40])
def test_a_compressed_file_that_was_cut_short_is_refused_before_the_first_call(
    tmp_path: Path, suffix: str, cut: int
) -> None:
    content = COMPRESSED[suffix](b"".join(b'{"n": %d}\n' % n for n in range(10_000)))
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content[:-cut])
    with pytest.raises(UsageError, match=f"{path} is damaged or cut short"):
        survey([path])


@pytest.mark.parametrize("suffix", COMPRESSED)
def test_a_compressed_file_with_other_content_is_refused_before_the_first_call(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b'{"n": 1}\n')
    with pytest.raises(
        UsageError, match=f"{path} is not compressed, though its name says so: mv {path} {tmp_path}/a.jsonl"
    ):
        survey([path])
    path.write_bytes(COMPRESSED[suffix](b'{"n": 1}\n') + b"trailing")
    with pytest.raises(UsageError, match=f"{path} is damaged or cut short"):
        survey([path])


@pytest.mark.parametrize("suffix", COMPRESSED)
def test_a_chunk_far_into_a_compressed_file_can_be_read_first(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(COMPRESSED[suffix](b"".join(b'{"n": %d}\n' % n for n in range(300_000))))
    found = survey([path], chunk_rows=290_000)
    assert found.chunks[1].offset > 3 << 20
    batch = next(Source(found, needed=["n"], kept=[]).chunk(1))
    assert batch.rows[0] == Row(290_000, {"n": 290_000})


def test_batches_of_long_rows_are_cut_by_their_bytes(tmp_path: Path) -> None:
    found = survey([written(tmp_path, (b'{"t": "' + b"x" * (1 << 20) + b'"}\n') * 40)])
    sizes = [len(batch.rows) for batch in Source(found, needed=None, kept=["t"]).chunk(0)]
    assert sum(sizes) == 40
    assert max(sizes) <= 16
