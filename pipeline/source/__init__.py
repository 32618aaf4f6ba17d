"""Rows out of JSONL and Parquet, lazily, in order, with stable ordinals.

Whether the input can be used is known before its first row is: `survey` reads it once, `Source` reads the rows.
"""

from pipeline.source.files import changed, find_files
from pipeline.source.layout import BadLine, Batch, Conflict, File, Position, Survey, kept_schema
from pipeline.source.reader import Source, survey

__all__ = [
    "BadLine",
    "Batch",
    "Conflict",
    "File",
    "Position",
    "Source",
    "Survey",
    "changed",
    "find_files",
    "kept_schema",
    "survey",
]
