"""CSV is read as RFC 4180 has it: every field as it is written, and a record that does not fit fails alone."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import Row
from pipeline.faults import UsageError
from pipeline.source import Source, Survey, survey
from pipeline.source.cell_types import CellType
from tests.commands import JOB, Shell


def read(tmp_path: Path, content: str | bytes, name: str = "a.csv", **options: Any) -> tuple[Survey, list[Row]]:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    found = survey(tmp_path / name, **options)
    source = Source(found, needed=None, kept=list(found.columns))
    chunks = {index: list(source.chunk(index)) for index in reversed(range(len(found.chunks)))}
    batches = [batch for index in sorted(chunks) for batch in chunks[index]]
    kept = [record for batch in batches for record in batch.kept.to_pylist()]
    rows = [row for batch in batches for row in batch.rows]
    assert kept == [dict(row.values) if row.problem is None else dict.fromkeys(found.columns) for row in rows]
    return found, rows


def values(rows: list[Row]) -> list[Any]:
    return [row.problem or dict(row.values) for row in rows]


def test_fields_are_text_as_it_is_written_and_an_empty_one_is_null(tmp_path: Path) -> None:
    found, rows = read(tmp_path, 'zip,n,when\n00123,1.50,2026-01-31\n,"", x \n')
    assert dict(found.columns) == {"zip": "string", "n": "string", "when": "string"}
    assert values(rows) == [
        {"zip": "00123", "n": "1.50", "when": "2026-01-31"},
        {"zip": None, "n": None, "when": " x "},
    ]


fields = st.text(alphabet='ab",;\n\r\t é|', max_size=8)


@settings(max_examples=200, deadline=None)
@given(
    records=st.lists(st.tuples(fields, fields), max_size=12),
    chunk_rows=st.integers(1, 5),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    end=st.sampled_from(["\n", "\r\n"]),
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
)
def test_what_a_writer_of_csv_writes_is_read_from_any_chunk(
    tmp_path_factory: pytest.TempPathFactory,
    records: list[tuple[str, str]],
    chunk_rows: int,
    quoting: Any,
    end: str,
    delimiter: str,
) -> None:
    if quoting == csv.QUOTE_MINIMAL:  # before Python 3.13 the writer leaves a carriage return without quotes
        records = [(one.replace("\r", ""), two.replace("\r", "")) for one, two in records]
    text = io.StringIO(newline="")
    csv.writer(text, quoting=quoting, lineterminator=end, delimiter=delimiter).writerows([("one", "two"), *records])
    _, rows = read(tmp_path_factory.mktemp("csv"), text.getvalue(), chunk_rows=chunk_rows)
    expected = [{"one": one or None, "two": two or None} for one, two in records]
    assert values(rows) == expected


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("a;b\n1,5;x\n2,5;y\n", "a.csv"),
        ("a\tb\n1,5\tx\n2,5\ty\n", "a.tsv"),
        ("a\tb\n1,5\tx\n2,5\ty\n", "a.csv"),
        ("a|b\n1,5|x\n2,5|y\n", "a.csv"),
        ("sep=;\r\na;b\r\n1,5;x\r\n2,5;y\r\n", "a.csv"),
        ("\ufeffa;b\n1,5;x\n\n  \n2,5;y", "a.csv"),
    ],
)
def test_the_delimiter_is_told_from_the_first_records(tmp_path: Path, content: str, name: str) -> None:
    assert values(read(tmp_path, content, name)[1]) == [{"a": "1,5", "b": "x"}, {"a": "2,5", "b": "y"}]


def test_a_single_column_needs_no_delimiter(tmp_path: Path) -> None:
    assert values(read(tmp_path, 'text\nHello\n"a, b"\n')[1]) == [{"text": "Hello"}, {"text": "a, b"}]


def test_compressed_csv_is_read_too(tmp_path: Path) -> None:
    assert values(read(tmp_path, gzip.compress(b"a,b\n1,2\n"), "a.csv.gz")[1]) == [{"a": "1", "b": "2"}]


def test_a_record_that_does_not_fit_the_header_fails_alone_with_its_line(tmp_path: Path) -> None:
    found, rows = read(tmp_path, 'a,b\n1,2\n3\n4,5,6\n"x\ny",7\n"8"9,10\n11,12\n', chunk_rows=2)
    assert values(rows) == [
        {"a": "1", "b": "2"},
        "line 3: 1 fields, but the header has 2",
        "line 4: 3 fields, but the header has 2",
        {"a": "x\ny", "b": "7"},
        "line 7: not valid CSV: text after a closing quote (a quote within quotes is written twice)",
        {"a": "11", "b": "12"},
    ]
    assert found.bad_count == 3


def test_a_quote_that_is_never_closed_spoils_its_own_line_only(tmp_path: Path) -> None:
    body = "".join(f"{n},text {n}\n" for n in range(500))
    _, rows = read(tmp_path, 'a,b\n1,fine\n2,"never closed\n' + body, chunk_rows=7)
    assert (len(rows), [row.ordinal for row in rows if row.problem]) == (502, [1])
    assert rows[1].problem == "line 3: a quote is opened and never closed"
    assert rows[2].values == {"a": "0", "b": "text 0"}


def test_two_stray_quotes_far_apart_spoil_their_own_lines_only(tmp_path: Path) -> None:
    body = "".join(f"{n},text {n}\n" for n in range(50))
    _, rows = read(tmp_path, 'a,b\n2,"stray\n' + body + '3,"stray\n' + body)
    assert [row.ordinal for row in rows if row.problem] == [0, 51]


def test_bytes_that_are_no_utf8_fail_their_record_alone(tmp_path: Path) -> None:
    found, rows = read(tmp_path, b"a,b\n1,gr\xfcn\n2,rot\n")
    assert found.notes[0].startswith(
        f"1 of 2 records cannot be read, and are failed rows; the first: {tmp_path}/a.csv: line 2"
    )
    told, good = values(rows)
    assert told.startswith("line 2: not valid UTF-8; if the file is Windows' or Latin-1: iconv")
    assert good == {"a": "2", "b": "rot"}


def test_columns_without_a_name_are_numbered_and_files_may_differ_in_their_columns(tmp_path: Path) -> None:
    (tmp_path / "0.csv").write_text(",a\n1,2\n")
    found, rows = read(tmp_path, "a;b\n3;4\n", "1.csv")
    found = survey(tmp_path)
    rows = [row for batch in Source(found, needed=None, kept=[]).chunk(0) for row in batch.rows]
    assert [dict(row.values) for row in rows] == [
        {"column_1": "1", "a": "2", "b": None},
        {"column_1": None, "a": "3", "b": "4"},
    ]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("a,b,a\n1,2,3\n", "several columns named a"),
        ("a,b\r1,2\r", "a carriage return alone: tr"),
        (b"gr\xfcn,b\n1,2\n", "its first line is not a header: not valid UTF-8"),
        ('"a,b\n1,2\n', "its first line is not a header: a quote is opened and never closed"),
    ],
)
def test_a_file_without_a_usable_header_is_refused(tmp_path: Path, content: str | bytes, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        read(tmp_path, content)


def test_an_empty_file_and_a_header_alone_hold_no_row(tmp_path: Path) -> None:
    assert read(tmp_path, "")[1] == []
    found, rows = read(tmp_path, "a,b\n")
    assert (rows, dict(found.columns)) == ([], {"a": "string", "b": "string"})


TYPES: dict[str, CellType] = {"n": "integer", "price": "number", "paid": "boolean"}


def test_columns_have_the_types_that_are_given_and_the_others_are_text(tmp_path: Path) -> None:
    content = "zip,n,price,paid\n00123,-7,1.50,TRUE\n00124, 9223372036854775807 ,1e3,0\n00125,,,\n"
    found, rows = read(tmp_path, content, types=TYPES, chunk_rows=2)
    assert dict(found.columns) == {"zip": "string", "n": "int64", "price": "double", "paid": "bool"}
    assert values(rows) == [
        {"zip": "00123", "n": -7, "price": 1.5, "paid": True},
        {"zip": "00124", "n": 2**63 - 1, "price": 1000.0, "paid": False},
        {"zip": "00125", "n": None, "price": None, "paid": None},
    ]
    assert Survey.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        *(("n", cell) for cell in ("1.0", "x", "1 000", "0x1", "\u0661", "9" * 500, "1_000", str(2**63))),
        *(("price", cell) for cell in ("1.2.3", "nan", "inf", "1e999", "$1", "-")),
        *(("paid", cell) for cell in ("yes", "2", "tru")),
    ],
)
def test_a_field_that_does_not_fit_its_type_fails_its_row_alone(column: str, cell: str, tmp_path: Path) -> None:
    """And is not quoted."""
    found, rows = read(tmp_path, f"{column}\n1\n{cell}\n0\n", types={column: TYPES[column]})
    one = {"n": 1, "price": 1.0, "paid": True}[column]
    kind = {"n": "integer of 64 bits"}.get(column, TYPES[column])
    problem = f"line 3: column {column!r} holds no {kind}"
    assert values(rows) == [{column: one}, problem, {column: one - 1}]
    assert found.bad_count == 1


def test_a_column_without_a_value_has_the_type_that_is_given_and_the_columns_stay_in_order(tmp_path: Path) -> None:
    """Or the files of two days, one of them without a price, would differ in its type."""
    found, rows = read(
        tmp_path, "zip,n,price,paid\n1,,,\n", types={name: TYPES[name] for name in ("paid", "price", "n")}
    )
    assert list(found.columns.items()) == [("zip", "string"), ("n", "int64"), ("price", "double"), ("paid", "bool")]
    assert values(rows) == [{"zip": "1", "n": None, "price": None, "paid": None}]


def test_types_are_for_columns_that_csv_has(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"`types` names the column 'm', which the input lacks; it has: n"):
        read(tmp_path, "n\n1\n", types={"m": "integer"})
    with pytest.raises(UsageError, match="`types` is for columns of CSV"):
        read(tmp_path, '{"n": 1}\n', "a.jsonl", types={"n": "integer"})


def test_a_run_knows_the_types_in_prompts_and_output_and_refuses_to_go_on_with_others(tmp_path: Path) -> None:
    shell = Shell(tmp_path, {})
    shell.write("job.py", JOB)
    shell.write("rows.csv", "id,text\n1,a\nx,b\n3,c\n")
    command = ["run", "job.py", "--emulate", "-q", "-i", "rows.csv", "--set", "user={{ id + 1 }}", "--no-fail-fast"]
    assert shell.pipeline(*command, "--set", 'types={"id": "integer"}').code == 3
    assert [(row["id"], row["status"]) for row in shell.output()] == [(1, "ok"), (None, "failed"), (3, "ok")]
    refused = shell.pipeline(*command)
    assert (refused.code, "columns changed" in refused.err) == (2, True)


@pytest.mark.parametrize("above", ["# made today\n", "Report 2026\n\n", "\n\nReport, of a kind\nby me\n"])
def test_lines_above_the_header_are_answered_with_the_command_that_leaves_them_out(above: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(above + "a,b,c\n1,2,3\n4,5,6\n")
    line = above.count("\n") + 1
    with pytest.raises(UsageError, match=rf"if its header is line {line}: tail -n \+{line} .*a.csv > new.csv"):
        survey(tmp_path)


def test_rows_that_do_not_fit_a_header_in_its_place_are_not_blamed_on_it(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\na,b\n1\n2\n")
    with pytest.raises(UsageError, match=r"1 fields, but the header has 2$"):
        survey(tmp_path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('1,"x \\"y\\" z"', "not valid CSV: text after a closing quote (a quote within quotes is written twice)"),
        ("1,x\ry", "not valid CSV: a carriage return outside of quotes"),
        ('1,"x', "a quote is opened and never closed"),
    ],
)
def test_a_record_that_cannot_be_read_says_why_to_who_wrote_it(line: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(f"a,b\n{line}\n3,4\n".encode())
    assert survey(tmp_path).bad_lines[0].problem == f"line 2: {said}"
