"""JSON is read in whatever arrangement and encoding it comes; a file that is something else says what it is."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import shlex
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import Row
from pipeline.faults import UsageError
from pipeline.source import Position, Source, Survey, hint_of_rows_within, survey
from pipeline.source.json_documents import values as cut
from pipeline.source.jsonl import MAX_LINE_BYTES

RECORDS: list[dict[str, Any]] = [{"n": n, "text": f'"{{]\\ é\n {n}', "inner": [{"a": [n]}, []]} for n in range(9)]


def rows_of(found: Survey, order: Sequence[int] | None = None) -> list[Row]:
    source = Source(found, needed=None, kept=[])
    chunks = {index: list(source.chunk(index)) for index in order or range(len(found.chunks))}
    return [row for index in sorted(chunks) for batch in chunks[index] for row in batch.rows]


ARRANGEMENTS: dict[str, Callable[[list[dict[str, Any]]], str]] = {
    "an array on a line": json.dumps,
    "an array over several lines": lambda records: json.dumps(records, indent=2, ensure_ascii=False),
    "an array with an object a line": lambda records: "[\n" + ",\n".join(map(json.dumps, records)) + "\n]\n",
    "an array with commas in front": lambda records: "[ " + "\n, ".join(map(json.dumps, records)) + "]",
    "objects a line": lambda records: "\n".join(map(json.dumps, records)),
    "objects over several lines": lambda records: "\n".join(json.dumps(record, indent=2) for record in records),
    "objects without anything between": lambda records: "".join(json.dumps(record, indent=1) for record in records),
    "objects with commas between": lambda records: ",\n".join(json.dumps(record, indent=1) for record in records),
}
ENCODED: dict[str, Callable[[bytes], bytes]] = {
    ".json": bytes,
    ".json.gz": gzip.compress,
    ".json.bz2": bz2.compress,
    ".json.xz": lzma.compress,
    ".json.zst": lambda content: bytes(pa.compress(content, "zstd", asbytes=True)),
}


@pytest.mark.parametrize("suffix", ENCODED)
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_json_of_any_arrangement_is_read_from_any_chunk(tmp_path: Path, arrangement: str, suffix: str) -> None:
    content = ARRANGEMENTS[arrangement](RECORDS).encode()
    (tmp_path / f"a{suffix}").write_bytes(ENCODED[suffix](content))
    for chunk_rows in (1, 4, 100):
        found = survey(tmp_path, chunk_rows=chunk_rows)
        assert [row.values for row in rows_of(found, range(len(found.chunks))[::-1])] == RECORDS


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".jsonl.gz"])
def test_unicode_of_any_width_is_read_from_any_chunk(tmp_path: Path, suffix: str, encoding: str) -> None:
    lines = ["text"] if suffix == ".csv" else []
    lines += ["ab😀é" if suffix == ".csv" else json.dumps({"text": "ab😀é"}, ensure_ascii=False)] * 40_000
    content = "\n".join(lines).encode(encoding)
    (tmp_path / f"a{suffix}").write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    found = survey(tmp_path, chunk_rows=9_999)
    assert (found.rows, found.bad_count) == (40_000, 0)
    assert {row.values["text"] for row in rows_of(found, range(len(found.chunks))[::-1])} == {"ab😀é"}


@pytest.mark.parametrize("end", [b"\x7b", b"\x00\xd8"], ids=["half a character", "half a pair"])
def test_what_is_no_character_of_its_encoding_fails_its_line_alone(tmp_path: Path, end: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes('{"n": 1}\n'.encode("utf-16") + end)
    found = survey(tmp_path)
    assert (found.rows, found.bad_count) == (2, 1)


def test_one_value_of_an_array_that_is_broken_or_no_object_fails_alone(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[\n{"n": 1},\n{"n": 2,},\n3, "four", null, [5],\n{"n": 6}\n]')
    found = survey(tmp_path)
    problems = [row.problem or row.values["n"] for row in rows_of(found)]
    assert [problems[0], problems[-1]] == [1, 6]
    assert str(problems[1]).startswith("line 3: not valid JSON")
    kinds = ["a number", "a string", "null", "a list"]
    assert problems[2:-1] == [f"line 4: not a JSON object but {kind}" for kind in kinds]


def test_an_array_that_is_cut_short_fails_in_its_last_row_alone(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(RECORDS)[:-20])
    found = survey(tmp_path)
    assert (found.rows, [bad.ordinal for bad in found.bad_lines]) == (9, [8])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='ab"\\[]{},\n é', max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('k"]', max_size=2), inner, max_size=3),
    max_leaves=8,
)


def in_blocks(text: bytes, size: int, start: Position) -> Callable[[int], bytes]:
    blocks = iter([text[at : at + size] for at in range(start.offset, len(text), size)])
    return lambda _: next(blocks, b"")


@settings(max_examples=300, deadline=None)
@given(
    records=st.lists(json_values, max_size=6),
    size=st.integers(1, 9),
    array=st.booleans(),
    indent=st.none() | st.integers(0, 2),
    between=st.sampled_from(["\n", " ", ",", " ,\n"]),
)
def test_values_do_not_depend_on_how_the_text_is_cut_and_can_be_taken_up_at_any_of_them(
    records: list[Any], size: int, indent: int | None, between: str, *, array: bool
) -> None:
    dumped = [json.dumps(record, indent=indent, ensure_ascii=False) for record in records]
    text = (json.dumps(records, indent=indent, ensure_ascii=False) if array else between.join(dumped)).encode()
    if not array and records and isinstance(records[0], list):
        text = b" " + text
    found = list(cut(in_blocks(text, size, Position(0, 0, 1)), Position(0, 0, 1), array=array))
    assert [json.loads(content) for _, _, content in found] == records
    for index, (number, offset, content) in enumerate(found):
        assert text[offset : offset + len(content)] == content
        assert number == 1 + text[:offset].count(b"\n")
        again = cut(in_blocks(text, size, Position(0, offset, number)), Position(0, offset, number), array=array)
        assert list(again) == found[index:]


def test_a_value_over_the_limit_comes_cut_and_the_next_ones_whole() -> None:
    text = b'[{"a": "' + b"x\n" * (MAX_LINE_BYTES // 2 + 3_000_000) + b'"}, {"b": 1}]'
    (one, other) = cut(in_blocks(text, 1 << 20, Position(0, 0, 1)), Position(0, 0, 1), array=True)
    assert MAX_LINE_BYTES < len(one[2]) < MAX_LINE_BYTES + (2 << 20)
    assert other == (1 + text.count(b"\n"), text.index(b'{"b"'), b'{"b": 1}')


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n"
LOOKS = {
    "an array": (json.dumps(RECORDS).encode(), "a JSON array", "jq"),
    "an array over lines": (json.dumps(RECORDS, indent=2).encode(), "a JSON array", "jq"),
    "pretty objects": ("\n".join(json.dumps(one, indent=2) for one in RECORDS).encode(), "over several lines", "jq"),
    "commas after objects": (b'{"n": 1},\n{"n": 2},\n', "lines end with commas", "sed"),
    "carriage returns": (b'{"n": 1}\r{"n": 2}\r', "carriage return alone", "tr"),
    "CSV": (b"id,text\n1,a\n2,b\n", "fields between commas", None),
    "TSV": (b"id\ttext\n1\ta\n", "fields between tabs", None),
    "Python's notation": (b"{'n': 1}\n{'n': None}\n", "Python's own notation", None),
    "XML": (b"<rows>\n<row/>\n</rows>", "XML or HTML", None),
    "Latin-1": ("größe\nmaß\n".encode("latin-1"), "not UTF-8", None),
    "JSON in Latin-1": ('{"n": "größe"}\n{"n": "maß"}\n'.encode("latin-1"), "not UTF-8", "iconv"),
    "one line in Latin-1": ('{"n": "ß"}'.encode("latin-1"), "not UTF-8", "iconv"),
    "a JSON text sequence": (b'\x1e{"n": 1}\n\x1e{"n": 2}\n', "a JSON text sequence", "tr"),
    "a pointer of Git LFS": (POINTER, "a pointer that Git LFS left", None),
    "gzip": (gzip.compress(b'{"n": 1}\n'), "is compressed, which its name does not say", "mv"),
    "Parquet": (b"PAR1\x15\x04", "is Parquet, which its name does not say", None),
}


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("kind", LOOKS)
def test_i7_a_file_of_which_no_line_is_a_record_says_what_it_looks_like(
    tmp_path: Path, kind: str, *, together: bool
) -> None:
    content, told, _ = LOOKS[kind]
    (tmp_path / "b.jsonl").write_bytes(content)
    if together:
        (tmp_path / "a.jsonl").write_text('{"n": 0}\n')
    with pytest.raises(UsageError) as refused:
        survey(tmp_path)
    assert f"{tmp_path}/b.jsonl" in str(refused.value)
    assert told in str(refused.value)


@pytest.mark.parametrize("kind", [kind for kind, (_, _, tool) in LOOKS.items() if tool in {"sed", "tr", "mv", "iconv"}])
def test_i7_the_command_that_is_told_makes_the_file_one_that_is_read(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "it's here"
    source.mkdir()
    (source / "b.jsonl").write_bytes(LOOKS[kind][0])
    with pytest.raises(UsageError) as refused:
        survey(source)
    command = str(refused.value).rpartition(": ")[2]
    assert command.split()[0] == LOOKS[kind][2]
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)  # noqa: S602 - a command of ours
    made = tmp_path / "new.jsonl" if (tmp_path / "new.jsonl").exists() else source / "b.jsonl.gz"
    assert survey(made).bad_count == 0, shlex.quote(command)


def test_i7_an_input_of_bad_records_alone_is_refused_with_the_first(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('oops\n"text"\n')
    with pytest.raises(
        UsageError, match=r"none of the 2 records of the input can be read; the first: .*line 1: not valid"
    ):
        survey(tmp_path)


def test_i7_a_line_that_is_not_utf8_says_so_and_fails_alone(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes('{"n": "ß"}\n'.encode("latin-1") + '{"n": "ß"}\n'.encode())
    bad, good = rows_of(survey(tmp_path))
    assert str(bad.problem).startswith("line 1: not valid UTF-8; if the file is Windows' or Latin-1: iconv")
    assert good.values == {"n": "ß"}


def test_a_line_with_nan_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"n": NaN}\n{"n": 1}\n')
    assert "NaN and Infinity are not JSON: write null" in str(rows_of(survey(tmp_path))[0].problem)


ONE_OBJECT: dict[str, tuple[dict[str, Any], str | None]] = {
    "a page of results": ({"next": None, "errors": [{"e": 1}], "data": RECORDS}, ".data[]"),
    "a name that is no word": ({"my data": RECORDS, "count": 9}, '.["my data"][]'),
    "brackets in texts": ({"title": 'a ] } " \\', "items": RECORDS}, ".items[]"),
    "a record with a short list": ({"text": "x", "tags": ["a", "b"]}, None),
    "a record with an object": ({"text": "x", "inner": {"data": [{"a": 1}]}}, None),
}


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz"])
@pytest.mark.parametrize("kind", ONE_OBJECT)
def test_an_object_with_the_rows_inside_of_it_is_known_by_their_list(kind: str, name: str, tmp_path: Path) -> None:
    content, step = ONE_OBJECT[kind]
    text = json.dumps(content).encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    told = hint_of_rows_within(survey(tmp_path))
    assert (told is None) == (step is None)
    if told is not None and step is not None:
        assert shlex.split(told)[shlex.split(told).index("-c") + 1] == step


def test_records_with_lists_of_objects_are_rows_themselves(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("\n".join(json.dumps({"data": RECORDS}, indent=1) for _ in range(2)))
    assert hint_of_rows_within(survey(tmp_path)) is None


def test_an_object_that_is_too_large_for_a_row_is_refused_with_the_command_that_gives_its_rows(tmp_path: Path) -> None:
    long = [{"text": "x" * 1_000_000} for _ in range(MAX_LINE_BYTES // 1_000_000 + 1)]
    (tmp_path / "a.json").write_text(json.dumps({"data": long}))
    with pytest.raises(UsageError, match=r"longer than 32 MiB; .*a.json is one object; if its rows are in 'data': jq"):
        survey(tmp_path)


def test_lists_of_rows_one_after_another_are_answered_with_the_command_that_joins_them(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"n": 1}]\n[{"n": 2}]\n')
    with pytest.raises(
        UsageError, match=r"but a list; if its rows are in that list: jq -c '\.\[\]' .*a.json > new.jsonl"
    ):
        survey(tmp_path)


TABLES: dict[str, tuple[dict[str, Any], bool]] = {
    "as pandas writes it": ({"a": {"0": 1, "1": 2}, "b": {"0": "x", "1": "y"}}, True),
    "as lists": ({"a": [1, 2], "b": ["x", "y"]}, True),
    "lists of other lengths": ({"a": [1, 2], "b": ["x"]}, False),
    "one list": ({"a": [1, 2]}, False),
    "lists beside a text": ({"a": [1, 2], "b": [3, 4], "c": "x"}, False),
    "objects with names": ({"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 4}}, False),
    "an empty object": ({}, False),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_single_record_that_is_a_table_by_columns_is_noted(kind: str, tmp_path: Path) -> None:
    """Its one request would have all rows in it."""
    record, is_table = TABLES[kind]
    (tmp_path / "a.json").write_text(json.dumps(record))
    notes = survey(tmp_path).notes
    assert any("one record, of columns with 2 values each: if it is a table" in note for note in notes) is is_table
    (tmp_path / "a.json").write_text("\n".join([json.dumps(record)] * 2))
    assert not survey(tmp_path).notes


def test_a_file_that_is_compressed_twice_is_answered_with_the_command_that_undoes_one(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(bz2.compress(b'{"n": 1}\n')))
    with pytest.raises(UsageError, match="is compressed twice: gzip -dc ") as refused:
        survey(tmp_path)
    subprocess.run(str(refused.value).partition(": ")[2], shell=True, check=True, cwd=tmp_path)  # noqa: S602 - ours
    assert survey(tmp_path / "new.jsonl.bz2").rows == 1


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.jsonl.bz2", "a.jsonl.XZ"])
def test_a_file_of_another_compression_than_its_name_says_is_answered_with_its_name(name: str, tmp_path: Path) -> None:
    content = b'{"n": 1}\n' * 1000
    (tmp_path / name).write_bytes(gzip.compress(content) if "gz" not in name else lzma.compress(content))
    with pytest.raises(UsageError, match="in another way than its name says: mv ") as refused:
        survey(tmp_path)
    subprocess.run(str(refused.value).partition(": ")[2], shell=True, check=True)  # noqa: S602 - ours
    assert survey(tmp_path).rows == 1000


def test_parquet_within_a_compressed_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"PAR1\x15\x04"))
    with pytest.raises(UsageError, match=r"the content of .*a.jsonl.gz is Parquet, which its name does not say"):
        survey(tmp_path)


@pytest.mark.parametrize("name", ["a.arrows", "a.arrow", "a.bin"])
def test_an_arrow_stream_in_a_folder_is_not_passed_over(name: str, tmp_path: Path) -> None:
    """The cache of Hugging Face datasets, for one, is of such files."""
    with pa.OSFile(str(tmp_path / name), "wb") as file, pa.ipc.new_stream(file, pa.schema([("n", pa.int64())])):
        pass
    (tmp_path / "a.jsonl").write_text('{"n": 1}\n')
    with pytest.raises(UsageError, match=rf"their kind is not supported:\n  - .*{name}: Arrow"):
        survey(tmp_path)


def test_a_name_that_is_not_utf8_is_refused_with_the_remedy(tmp_path: Path) -> None:
    """The plan of a run names its files, and is JSON."""
    (tmp_path / os.fsdecode(b"\xff.jsonl")).write_text('{"n": 1}\n')
    with pytest.raises(UsageError, match=r"udcff.jsonl': a name that is not UTF-8 cannot be recorded; rename it"):
        survey(tmp_path)
