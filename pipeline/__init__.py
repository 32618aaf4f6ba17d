"""Batch jobs on Gemini: rows in, typed Parquet out."""

__version__ = "0.1.0"
