"""The format and compression that a file's name indicates."""

from __future__ import annotations

from pathlib import Path

from pipeline.source.survey import Format

_FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jsonlines": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
}
_PARQUET = (".parquet", ".pq")

COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")

TABLES = frozenset(
    {
        ".avro", ".orc", ".arrow", ".arrows", ".feather", ".ipc", ".lance", ".vortex", ".xlsx", ".xls", ".xlsb", ".ods",
        ".xml", ".sqlite", ".sqlite3", ".db", ".duckdb", ".pkl", ".pickle", ".h5", ".hdf5", ".npy", ".npz", ".sav",
        ".dta", ".rdata", ".rds", ".sas7bdat", ".pb", ".tfrecord", ".tfrecords", ".mds", ".zip", ".tar", ".tgz",
        ".tbz2", ".txz", ".7z", ".rar", ".gz", ".zst", ".zstd", ".bz2", ".xz", ".lz4", ".lzma", ".sz", ".snappy", ".z",
        ".br", ".psv", ".tab", ".dat", ".geojson", ".json5", ".jl", ".ldjson", ".geojsonl",
    }
)  # fmt: skip
"""Suffixes of files that may hold rows but are not supported."""


def known_suffixes() -> str:
    """The supported suffixes, for people."""
    plain = ", ".join([*_FORMATS, *_PARQUET])
    return f"{plain} (all but Parquet also with {', '.join(COMPRESSIONS)})"


def format_of(path: str | Path) -> Format | None:
    """The format that the file's suffix indicates, or None for an unknown one."""
    name = Path(path).name.lower()
    if name.endswith(_PARQUET):
        return "parquet"
    compression = compression_of(path)
    return next((kind for suffix, kind in _FORMATS.items() if name.removesuffix(compression).endswith(suffix)), None)


def compression_of(path: str | Path) -> str:
    """The suffix that names a file's compression, with its dot; empty for an uncompressed file."""
    suffix = Path(path).suffix.lower()
    return suffix if suffix in COMPRESSIONS else ""


def is_json(path: str | Path) -> bool:
    """Whether the name promises JSON in any layout (`.json`), rather than one object per line."""
    return Path(path).name.lower().removesuffix(compression_of(path)).endswith(".json")


def is_tab_separated(path: str | Path) -> bool:
    """Whether the name promises tab-separated fields (`.tsv`)."""
    return Path(path).name.lower().removesuffix(compression_of(path)).endswith(".tsv")
