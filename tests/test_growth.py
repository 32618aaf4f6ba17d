"""A survey that has grown, again and again, reads as the rows that came, in the order in which they came."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.faults import Broken
from pipeline.source import ChunkSpans, Generation, Source, Survey, found_again, growth_of, survey, survey_files
from pipeline.source.growth import without_latest

GENERATIONS = st.lists(
    st.builds(Generation, st.integers(1, 40), st.integers(1, 12), st.integers(1, 3)), min_size=1, max_size=6
)


@given(GENERATIONS)
def test_every_row_is_in_one_chunk_and_no_chunk_is_of_two_generations(generations: list[Generation]) -> None:
    spans = ChunkSpans(generations)
    chunks = [spans.of(chunk) for chunk in range(sum(one.chunks for one in generations))]
    assert [row for chunk in chunks for row in chunk] == list(range(sum(one.rows for one in generations)))
    assert all(spans.chunk_of(row) == number for number, chunk in enumerate(chunks) for row in chunk)
    first = 0
    for one in generations:
        assert first in {chunk.start for chunk in chunks}
        first += one.rows
    files = [(one, file) for one in generations for file in range(one.files)]
    starts = [spans.in_file(number) for number in range(len(files))]
    assert [size for _, size in starts] == [one.chunk_rows for one, _ in files]
    assert sorted(start for start, _ in starts) == [start for start, _ in starts]


FILES = ("b.jsonl", "a.jsonl", "c.jsonl.gz")
STEPS = st.lists(
    st.tuples(st.integers(1, 5), st.dictionaries(st.sampled_from(FILES), st.integers(0, 9), min_size=1)),
    min_size=1,
    max_size=5,
)


def add(path: Path, numbers: Sequence[int]) -> None:
    """Some rows at the end of a file; in a compressed one, in a member of their own."""
    text = "".join(json.dumps({"n": number}) + "\n" for number in numbers).encode()
    with (gzip.open if path.suffix == ".gz" else open)(path, "ab") as file:
        file.write(text)


def read(survey: Survey, chunk: int) -> list[tuple[int, int]]:
    """The ordinal and the value of each row of a chunk, read on its own."""
    source = Source(survey, needed=["n"], kept=["n"], added=["source_row"])
    found = [(row.ordinal, row.values["n"]) for batch in source.chunk(chunk) for row in batch.rows]
    source.close()
    return found


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 9), STEPS)
def test_rows_keep_their_ordinals_whatever_grows(
    size: int, first: int, steps: list[tuple[int, dict[str, int]]]
) -> None:
    with TemporaryDirectory() as folder:
        expected = list(range(first))
        add(Path(folder) / "b.jsonl", expected)
        known = survey(folder, chunk_rows=size)
        for chunk_rows, gained in steps:
            came: dict[str, list[int]] = {}
            for name, count in gained.items():
                came[name] = list(range(len(expected) + 100 * len(came), len(expected) + 100 * len(came) + count))
                add(Path(folder) / name, came[name])
            growth = growth_of(known, folder)
            assert growth.differences == ()
            order = [found.path.name for found in growth.files]
            new = survey_files(growth.discovery, chunk_rows=chunk_rows)
            known = Survey.from_json(json.loads(json.dumps(growth.joined(new, ["n"], "now").to_json())))
            expected += [number for name in order for number in came.get(name, [])]
            assert known.rows == len(expected)
            unread = [path for path in Path(folder).iterdir() if str(path) not in {file.path for file in known.files}]
            assert found_again(known, folder) == (known, [f"{path} is new in the input" for path in sorted(unread)])
        chunks = range(len(known.chunks))
        assert [row for chunk in chunks for row in read(known, chunk)] == [*enumerate(expected)]
        source = Source(known, needed=["n"], kept=["n"])
        in_order = [row.values["n"] for chunk in chunks for batch in source.chunk(chunk) for row in batch.rows]
        source.close()
        assert in_order == expected


def test_the_latest_generation_is_left_out_unless_a_file_has_grown_into_it(tmp_path: Path) -> None:
    add(tmp_path / "b.jsonl", [0, 1])
    first = survey(tmp_path, chunk_rows=1)
    add(tmp_path / "a.jsonl", [2])
    growth = growth_of(first, tmp_path)
    second = growth.joined(survey_files(growth.discovery), [], "now")
    assert without_latest(second) == first
    add(tmp_path / "b.jsonl", [3])
    growth = growth_of(second, tmp_path)
    third = growth.joined(survey_files(growth.discovery), [], "now")
    assert without_latest(third) is None
    assert without_latest(first) is None


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    """Its first bytes were compared with those known before it was surveyed."""
    add(tmp_path / "b.jsonl", [0, 1])
    known = survey(tmp_path)
    add(tmp_path / "b.jsonl", [2])
    growth = growth_of(known, tmp_path)
    add(tmp_path / "b.jsonl", [3])
    with pytest.raises(Broken, match=r"b\.jsonl changed while it was being read"):
        growth.joined(survey_files(growth.discovery), ["n"], "now")


def test_parquet_of_several_generations_is_read_by_their_chunks(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": range(5)}), tmp_path / "b.parquet")
    known = survey(tmp_path, chunk_rows=3)
    for name, first, last, chunk_rows in (("a", 5, 12, 2), ("c", 12, 17, 4)):
        pq.write_table(pa.table({"n": range(first, last)}), tmp_path / f"{name}.parquet")
        growth = growth_of(known, tmp_path)
        known = growth.joined(survey_files(growth.discovery, chunk_rows=chunk_rows), ["n"], "now")
    chunks = [read(known, chunk) for chunk in range(len(known.chunks))]
    assert [len(chunk) for chunk in chunks] == [3, 2, 2, 2, 2, 1, 4, 1]
    assert [row for chunk in chunks for row in chunk] == [(n, n) for n in range(17)]
    source = Source(known, needed=["n"], kept=["n"])
    assert [[row.ordinal for batch in source.chunk(at) for row in batch.rows] for at in range(len(chunks))] == [
        [ordinal for ordinal, _ in chunk] for chunk in chunks
    ]
    source.close()
