"""Rows from JSON, CSV and Parquet, lazily, in order, with stable ordinals.

Whether the input is usable is known before its first row is read: `survey` reads it once, `Source` reads the rows.
"""

from pipeline.source.discovery import Discovery, FoundFile, Inputs, discover
from pipeline.source.generations import ChunkSpans, Generation
from pipeline.source.growth import Growth, growth_of, without_latest
from pipeline.source.identity import changed, found_again
from pipeline.source.progress import SurveyProgress
from pipeline.source.reader import Source, survey, survey_files
from pipeline.source.run_parts import RowChoice
from pipeline.source.survey import BadLine, Batch, Conflict, File, Position, Survey, kept_schema
from pipeline.source.text_records import hint_of_rows_within

__all__ = [
    "BadLine",
    "Batch",
    "ChunkSpans",
    "Conflict",
    "Discovery",
    "File",
    "FoundFile",
    "Generation",
    "Growth",
    "Inputs",
    "Position",
    "RowChoice",
    "Source",
    "Survey",
    "SurveyProgress",
    "changed",
    "discover",
    "found_again",
    "growth_of",
    "hint_of_rows_within",
    "kept_schema",
    "survey",
    "survey_files",
    "without_latest",
]
