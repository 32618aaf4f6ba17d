"""Rows from JSON, CSV and Parquet, lazily, in order, with stable ordinals.

Whether the input is usable is known before its first row is read: `survey` reads it once, `Source` reads the rows.
"""

from pipeline.source.discovery import Discovery, FoundFile, Inputs, discover
from pipeline.source.identity import changed, found_again
from pipeline.source.progress import SurveyProgress
from pipeline.source.reader import Source, survey
from pipeline.source.run_parts import RowChoice
from pipeline.source.survey import BadLine, Batch, Conflict, File, Position, Survey, kept_schema
from pipeline.source.text_records import hint_of_rows_within

__all__ = [
    "BadLine",
    "Batch",
    "Conflict",
    "Discovery",
    "File",
    "FoundFile",
    "Inputs",
    "Position",
    "RowChoice",
    "Source",
    "Survey",
    "SurveyProgress",
    "changed",
    "discover",
    "found_again",
    "hint_of_rows_within",
    "kept_schema",
    "survey",
]
