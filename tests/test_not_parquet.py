"""A file that is called Parquet and is something else says what it is, and what to do."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import feather

from pipeline.faults import UsageError
from pipeline.source import survey

OTHERS = {
    "a pointer of Git LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n",
        "a pointer that Git LFS left in place of the file: git lfs pull",
    ),
    "JSON Lines": (b'{"n": 1}\n{"n": 2}\n', "is JSON Lines, and its name says Parquet: give it the ending"),
    "a JSON array": (b'[{"n": 1}]', "is JSON, and its name says Parquet: give it the ending"),
    "gzip": (gzip.compress(b'{"n": 1}\n'), "is compressed, and its name says Parquet: give it the ending"),
    "Avro": (b"Obj\x01\x04", "is Avro, and its name says Parquet: convert it"),
    "Parquet, cut short": (b"PAR1\x15\x04", "is not a complete Parquet file"),
    "nothing": (b"", "is not a complete Parquet file"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_i7_a_file_called_parquet_that_is_something_else_says_what_it_is(tmp_path: Path, kind: str) -> None:
    content, told = OTHERS[kind]
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(UsageError) as refused:
        survey(tmp_path)
    assert told in str(refused.value)


def test_i7_feather_called_parquet_says_so(tmp_path: Path) -> None:
    feather.write_feather(pa.table({"n": [1]}), str(tmp_path / "a.parquet"))
    with pytest.raises(UsageError, match="is Arrow, and its name says Parquet: convert it"):
        survey(tmp_path)
